"The dashboard's server: who is let in, whose run is whose, a class that watches, and what breaks on purpose."
import asyncio, base64, gzip, io, json, math, os, random, re, shutil, signal, subprocess, sys, tempfile, time
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
import psutil, pytest
from tornado import testing
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.websocket import websocket_connect
from blf_explore.page.serve import (Board, Files, House, Hub, Page, Poll, Progress, application, bins, day_secret, good_host, good_origin, own_limit, read_message,
                                    reading, token_of)
from blf_explore.page.sessions import check_settings, page_choices
from browser import appears, launch, open_page, until as true_on
from waits import ended, gone, wait_until

# ---- the question

@pytest.mark.parametrize('seed', range(5))
def test_bins_hold_every_answer_once(seed):
    rng = random.Random(seed)
    values = [round(rng.uniform(-100, 100)*rng.choice([1, .1, .01]), 2) for _ in range(rng.randint(1, 60))]
    res = bins(values)
    edges = [tuple(map(float, label.split(' to '))) for label,_ in res]
    assert 1<=len(res)<=8 and sum(n for _,n in res)==len(values)
    assert all(a[1]==b[0] for a,b in zip(edges, edges[1:])), 'no gaps'
    for (lo,hi),(_,n) in zip(edges, res): assert n==sum(lo<=v<hi for v in values)
    assert res[0][1] and res[-1][1], 'no empty ends'
    width = edges[0][1]-edges[0][0]
    assert float(f'{width:e}'.split('e')[0]) in (1., 2., 5.) and width>=1, width
    narrower = [w for w in (1, 2, 5, 10, 20, 50) if w<width] # would need more than eight
    assert not narrower or int(max(values)//narrower[-1]-min(values)//narrower[-1])+1>8
    assert bins(values, also=[150.])[-1][1]==0 and sum(n for _,n in bins(values, also=[150.]))==len(values)

def test_bins_of_nothing_and_of_one(): assert bins([])==[] and [n for _,n in bins([37.])]==[1]

def asked(how='number', what='samples', before=90.):
    p = Poll()
    p.ask(what, how, before)
    return p

def test_the_last_answer_before_the_end_counts_and_nobody_sees_it_sooner():
    p = asked()
    for who,v in [('a', 10), ('b', 20), ('a', 30)]: p.answer(who, v)
    assert p.view()=={'what': 'samples', 'words': 'samples kept of a batch', 'how': 'number', 'lo': 0, 'hi': 100, 'phase': 'open', 'n': 2}
    p.close()
    assert p.view()['middle']==25 and sum(n for _,n in p.view()['guesses'])==2
    with pytest.raises(ValueError, match='no question is open'): p.answer('c', 1)
    p.decide(41.)
    assert (p.view()['came'], p.view()['before'])==(41., 90.)

@pytest.mark.parametrize('came, says', [(92., 'rises'), (90.4, 'stays'), (89.2, 'stays'), (60., 'falls'), ('rises', 'rises')])
def test_a_direction_is_read_off_what_was_before(came, says):
    p = asked('direction')
    p.answer('a', 'falls')
    p.close()
    p.decide(came)
    assert p.view()['came']==says and p.view()['guesses']==[('rises', 0), ('stays', 0), ('falls', 1)]

@pytest.mark.parametrize('how, value', [('number', v) for v in (101, -1, 'many', True, None, float('nan'))]+[('direction', v) for v in (3, 'up', None)])
def test_answers_that_are_none_are_refused(how, value):
    p = asked(how)
    with pytest.raises(ValueError, match='value='): p.answer('a', value)
    assert p.view()['n']==0

def test_what_came_of_it_may_be_more_than_anybody_could_guess():
    "Scoring may more than double the time; the question is decided all the same."
    p = asked('number', 'time', -3.)
    p.answer('a', 100)
    p.close()
    p.decide(140.)
    assert p.view()['came']==140. and [o for o in p.view()['guesses'] if o[1]] and p.view()['guesses'][-1][0]=='140 to 150'

@pytest.mark.parametrize('how, came', [('direction', 'up'), ('direction', math.inf), ('number', 'rises'), ('number', True), ('number', math.nan)])
def test_nothing_else_came_of_it(how, came):
    p = asked(how)
    p.close()
    with pytest.raises(ValueError, match='^value='): p.decide(came)
    assert p.phase=='closed'

def test_steps_of_a_question_come_in_order():
    for f,says in ((lambda p: p.close(), 'no question'), (lambda p: p.decide(3), 'close the question'), (lambda p: p.ask('luck','number'), "what='luck'"),
                   (lambda p: p.ask('time','bet'), "how='bet'")):
        with pytest.raises(ValueError, match=says): f(Poll())
    p = asked('direction', before=None)
    p.close()
    with pytest.raises(ValueError, match='not known'): p.decide(3.)

@pytest.mark.parametrize('what, said, want', [
    ('samples', [['BLF ', 'a n'], ['32', 'a'], [' · ', 's'], ['SB ', 'b n'], ['64', 'b'], [' of 128', 's']], 25.),
    ('samples', [['64 of 256', 'a'], ['in the last batch; epoch 1: 1 of 2, 50%', '']], 25.),
    ('time', [['−52%', 'a'], ['beside plain in epoch 3: it paid; overhead 12%', '']], -52.),
    ('agreement', [['BLF ', 'a n'], ['74%', 'a']], 74.), ('accuracy', {'epoch': [['90.3%', 'a']], 'seconds': [['1%', 'a']]}, 90.3),
    ('accuracy', {'epoch': None}, None), ('samples', None, None), ('samples', [['32', 'a']], None)])
def test_the_figure_is_read_off_the_headline(what, said, want): assert reading({what: said}, what)==want

def test_headlines_can_be_read():
    from blf_explore.page.plots import headlines
    from blf_explore.whatif import load_what_if
    rec = load_what_if()
    says = headlines({rec.method: rec})
    b = rec.rows['batches'][-1]
    assert reading(says, 'samples')==pytest.approx(100*b['n_kept']/b['n_seen'])

# ---- who is let in

@pytest.mark.parametrize('netloc', ['evil.example', 'evil.example:8866', 'localhost.evil.example', 'evil.example@localhost', 'localhost@evil.example', '', ':8866', '/',
    'localhost:x', 'localhost:99999999', '192.168.1.2', '[fe80::1]', 'localhost/..', '0x7f000001', 'localhost\x00'])
def test_foreign_names(netloc): assert not good_host(netloc, {'teacher'})

@pytest.mark.parametrize('netloc', ['localhost', 'LOCALHOST:1', 'localhost.:8866', '127.0.0.1:8866', '[::1]:8866', '[::1]', 'teacher:80'])
def test_own_names(netloc): assert good_host(netloc, {'teacher'})

def test_numbers_are_nobody_elses_names():
    for o in ('10.0.0.7:8866', '[fe80::1]:8866'): assert good_host(o, (), numbers=True)
    assert not good_host('evil.example', (), numbers=True)

@pytest.mark.parametrize('origin, ok', {'http://localhost:8866': True, 'https://localhost:8866': True, 'http://localhost:3000': False, 'http://evil.example': False,
    'null': False, '': False, 'file://': False, 'https://hub.example': True, 'http://hub.example.evil.example': False, 'ftp://localhost:8866': False}.items())
def test_origins(origin, ok): assert good_origin(origin, 'localhost:8866', ('hub.example',))==ok

HOSTILE = ['', '{', '[]', '3', 'null', '"hello"', '{"type": "hello"}', '{"type": "hello", "view": ""}', '{"type": "hello", "view": "<b>"}', '{"type": ["hello"], "view": "v"}',
    '{"type": "close", "view": "v"}', '{"type": "open", "view": "v"}', '{"type": "__init__", "view": "v"}', '{"type": "set", "view": "v"}', '{"type": "set", "view": "v", "settings": []}',
    '{"type": "set", "view": "v", "settings": {"lr": NaN}}', '{"type": "set", "view": "v", "settings": {"lr": {"a": 1}}}', '{"type": "set", "view": "v", "settings": {"lr": [1]}}',
    json.dumps(dict(type='set', view='v', settings={str(i): 1 for i in range(50)})), json.dumps(dict(type='set', view='v', settings={'name': 'x'*2000})),
    json.dumps(dict(type='hello', view='v'*50)), json.dumps(dict(type='hello', view='v', query='x'*5000)), json.dumps(dict(type='hello', view='v', query=3)),
    '['*10000, '{"type": "file", "view": "v", "what": {}}', '{"type": "plotly", "view": "v"}', '{"type": "answer", "view": "v", "value": 3}', '{"a": '+'9'*5000+'}']

@pytest.mark.parametrize('text', HOSTILE, ids=lambda o: o[:40])
def test_what_is_no_message_is_one_sentence(text):
    with pytest.raises(ValueError) as e: read_message(text, 'own')
    assert len(str(e.value))<400 and '\n' not in str(e.value)
    with pytest.raises(ValueError): read_message(b'\x00', 'own')

def test_a_watcher_may_do_next_to_nothing():
    for kind in ('run','pause','step','reset','set','preset','more','keep','forget','file','go_on','ask','shut','decide','clear'):
        with pytest.raises(ValueError, match='watch may send'): read_message(json.dumps(dict(type=kind, view='v', settings={})), 'watch')

def test_a_secret_holds_for_half_a_day(tmp_path):
    a = day_secret(tmp_path)
    assert day_secret(tmp_path)==a and len(a)>=32 and (tmp_path/'blf_explore'/'day').stat().st_mode & 0o077==0
    assert len({token_of(a, o) for o in ('teacher','watch','own')})==3 and token_of(a, 'watch')==token_of(a, 'watch')!=token_of(a+'x', 'watch')
    os.utime(tmp_path/'blf_explore'/'day', (1, time.time()-13*3600))
    assert day_secret(tmp_path)!=a
    (tmp_path/'file').write_text('')
    assert day_secret(tmp_path/'file')!=day_secret(tmp_path/'file'), 'nowhere to keep it: new each time'

def test_own_dashboards_grow_with_memory_and_cores():
    assert own_limit(100, 1)==1 and own_limit(1e6, 2)==20 and own_limit(1e6, 4)==40
    assert own_limit(1000, 8)<own_limit(2000, 8)<own_limit(16000, 8)

class Terminal(io.StringIO):
    def __init__(self, tty): super().__init__(); self.tty = tty
    def isatty(self): return self.tty

def test_what_is_loaded_is_a_bar_on_a_terminal_and_a_line_elsewhere():
    steps = [dict(type='loading', what=o, i=i, n=4) for i,o in enumerate(['numpy','torch','fastai','data'])]
    for tty in (True, False):
        p = Progress(out := Terminal(tty))
        for o in (*steps, dict(type='ready'), *steps, dict(type='ready')): p.show(o) # a second trainer is started in silence
        said = out.getvalue()
        if not tty: assert said=='Loading PyTorch and fastai, while the page opens.\nReady to train.\n'
        else: assert [len(o) for o in re.findall(r'\[(#*) *\]', said)]==[0,3,6,9] and said.endswith('\r\033[KReady to train.\n') and said.count('\n')==1
    p = Progress(out := Terminal(False))
    p.show(dict(type='problem', say='ImportError: no torch'))
    assert 'ImportError: no torch' in out.getvalue()

# ---- who is here, without sockets, processes and time

class Told:
    down = ''
    def __init__(self): self.told = []
    def tell(self, do, run, msg=None, **more): self.told.append((do, run, *([msg['type'], msg['view']] if msg else [])))
    def since(self, n): return [o[:1]+o[2:] for o in self.told[n:]]

class Scene:
    "A hub, a clock that is moved by hand, and pages that write down what they hear."
    def __init__(self, **kwargs):
        self.now,self.trainer = 0.,Told()
        self.hub = Hub(self.trainer, kwargs.pop('settings', None) or check_settings(), clock=lambda: self.now, **kwargs)
    def page(self, role='own', view='v1', **more):
        p = Page(role, None)
        p.heard = []
        p.send = lambda o: p.heard.append(json.loads(gzip.decompress(o) if isinstance(o, bytes) else o))
        self.hub.pages.add(p)
        self.say(p, 'hello', view, **more)
        return p
    def say(self, page, kind, view='v1', **more): self.hub.take(page, json.dumps(dict(type=kind, view=view, **more)))
    def wait(self, seconds):
        for _ in range(round(seconds*4)):
            self.now += .25
            self.hub.tick()
    def update(self, run='class', **parts): self.hub.heard(run, '*', json.dumps(dict(type='update', parts=parts)))

def types(page): return [o['type'] for o in page.heard]
def run_of(page): return next(o['run'] for o in reversed(page.heard) if o['type']=='run')

def test_a_reload_finds_its_run_and_does_not_pause_it():
    s = Scene()
    a = s.page()
    s.hub.leave(a)
    s.wait(2)
    b = s.page(view='v2', run=run_of(a), query='?loss_perc=.5')
    s.wait(30)
    assert run_of(b)==run_of(a)
    assert s.trainer.since(0)==[('open',), ('take','hello','v1'), ('take','hello','v2'), ('take','bye','v1')], 'the new view before the old one goes'

def test_a_run_without_a_page_is_paused_and_later_ended():
    s = Scene()
    s.hub.leave(s.page())
    s.wait(s.hub.short-.5)
    assert len(s.trainer.told)==2
    s.wait(1)
    assert s.trainer.since(2)==[('take','bye','v1')]
    s.wait(s.hub.long)
    assert s.trainer.since(3)==[('close',)] and not s.hub.runs

def test_a_page_whose_run_is_gone_is_told():
    s = Scene()
    p = s.page(run='of-yesterday')
    assert types(p)==['lost'] and s.trainer.told==[]
    s.say(p, 'hello') # the same set-up anew
    assert types(p)==['lost','run','update']

@pytest.mark.parametrize('kind,more', [('ack', {}), ('bye', {}), ('run', {}), ('hello', {}), ('set', dict(settings=dict(lr=.1)))])
@pytest.mark.parametrize('role', ['own','teacher'])
def test_what_was_on_its_way_leaves_the_reason_in_sight(role, kind, more):
    "A page says something just when its trainer dies: it hears that reason, once or twice, and nothing else."
    s = Scene(is_class=role=='teacher')
    p = s.page(role)
    r,n = run_of(p),len(s.trainer.told)
    s.hub.lost('it ended')
    s.say(p, kind, **more, **(dict(run=r) if kind=='hello' else {}))
    heard = p.heard[types(p).index('lost'):]
    assert heard==[dict(type='lost', say='it ended')]*len(heard) and len(heard)==1+(kind not in ('ack','bye'))
    s.hub.leave(p) # the connection was cut as well
    q = s.page(role, view='v2', run=r)
    assert q.heard==[dict(type='lost', say='it ended')] and s.trainer.since(n)==[]
    s.say(q, 'hello', 'v2') # the button
    assert types(q)[1]=='run' and run_of(q) in s.hub.runs and not q.without

def test_a_teacher_whose_server_began_anew_is_asked_first():
    s = Scene(is_class=True)
    p = s.page('teacher', run='class')
    assert types(p)==['lost'] and 'started anew' in p.heard[0]['say'] and s.trainer.told==[]

def test_two_windows_of_one_run():
    s = Scene()
    a = s.page()
    b = s.page(view='v2', run=run_of(a))
    s.hub.heard(run_of(a), '*', '{"type":"update","parts":{}}')
    s.hub.heard(run_of(a), 'v2', '{"type":"file"}')
    assert types(a)==['run','update','update'] and types(b)==['run','update','update','file']
    s.hub.leave(a)
    s.wait(400)
    assert s.hub.runs and s.trainer.since(3)==[('take','bye','v1')]

def test_the_next_visitor_is_told_kindly_and_gets_the_place_of_who_left():
    s = Scene(limit=2, watch='watch?token=t', is_class=True)
    a,b,c = (s.page(view=f'v{i}') for i in range(3))
    assert types(c)[0]=='full' and c.heard[0]['watch']=='watch?token=t' and '2 dashboards' in c.heard[0]['say']
    s.hub.leave(a)
    s.wait(1)
    s.say(c, 'hello', 'v2')
    assert 'run' not in types(c), 'a page that is only loaded anew keeps its place'
    s.wait(s.hub.short)
    s.say(c, 'hello', 'v2')
    assert 'run' in types(c) and len(s.hub.runs)==2
    assert 'hello' not in types(b)

def test_who_finds_no_room_hears_so_whatever_it_does():
    s = Scene(limit=1)
    a,b = s.page(),s.page(view='v2')
    assert b.heard[0]['say'].startswith('One dashboard is open, ')
    for kind in ('run','ack','step'): s.say(b, kind, 'v2')
    assert [types(b),b.heard]==[['full']*3,b.heard[:1]*3]
    s.hub.leave(a)
    s.wait(s.hub.short+.5)
    s.say(b, 'hello', 'v2')
    assert types(b)[-2:]==['run','update']

def test_the_trainer_is_told_what_pages_may_reach():
    s = Scene(settings=check_settings(name='digits'), allow=dict(folders=['/data'], download=True))
    s.page()
    said = []
    s.trainer.tell = lambda do, run, **more: said.append((do, more))
    s.page(view='v2')
    assert said[0]==('open', dict(settings=check_settings(name='digits'), allow=dict(folders=['/data'], download=True)))
    assert Scene().hub.allow==dict(folders=[], download=False), 'nothing, if not said otherwise'

def test_before_hello_nothing_starts_and_refusals_harm_nobody():
    s = Scene()
    p = s.page()
    q = Page('own', lambda o: heard.append(json.loads(o)))
    heard = []
    for text in (*HOSTILE, '{"type": "run", "view": "v"}'): s.hub.take(q, text)
    assert len(heard)==len(HOSTILE)+1-HOSTILE.count(None) and {o['type'] for o in heard}=={'refused'}
    assert len(s.trainer.told)==2 and types(p)==['run','update']

def test_who_watches_costs_the_trainer_nothing_and_misses_nothing():
    s = Scene(is_class=True, limit=0)
    teacher = s.page('teacher')
    watchers = [s.page('watch', f'w{i}', gz=i%2==0) for i in range(30)]
    n = len(s.trainer.told)
    packed = []
    for i in range(40): # ten seconds of training, four updates each
        s.update(state=json.dumps(dict(n=i)), **({'time': str(i)} if i%8==0 else {}))
        version = s.hub.board.version
        s.wait(.25)
        packed.append(len(s.hub.board._packed))
        for w in watchers: s.say(w, 'ack', 'w')
    assert len(s.trainer.told)==n, 'no message of a watcher goes on'
    assert version==40 and max(packed)<=2, 'packed once for those who can unpack it, once for the others'
    for w in watchers:
        got = [o['parts'] for o in w.heard if o['type']=='update']
        assert len(got)<=12, 'no more than about one a second'
        latest = {}
        for o in got: latest |= o
        s.wait(1.25)
    for w in watchers:
        latest = {}
        for o in w.heard: latest |= o.get('parts', {})
        assert latest==dict(state='{"n": 39}', time='32')
    assert types(teacher).count('update')==41, 'the teacher sees each, after the first state'

def test_a_watcher_that_is_slow_is_not_pushed_and_catches_up():
    s = Scene(is_class=True)
    s.page('teacher')
    s.update(time='0')
    w = s.page('watch', 'w')
    for i in range(1, 6):
        s.update(time=str(i), **{f'p{i}': '1'})
        s.wait(2)
    assert types(w).count('update')==1
    s.say(w, 'ack', 'w')
    s.wait(1)
    got = [o['parts'] for o in w.heard if o['type']=='update']
    assert got[1]=={'time': '5'} | {f'p{i}': '1' for i in range(1, 6)}

def test_a_newcomer_gets_all_at_once_and_before_the_class_a_sentence():
    s = Scene(is_class=True)
    early = s.page('watch')
    assert 'patience' in types(early) and s.trainer.told==[]
    s.page('teacher')
    s.update(samples='1', time='2')
    late = s.page('watch', 'w2')
    assert [o['parts'] for o in late.heard if o['type']=='update']==[dict(samples='1', time='2')]

@pytest.mark.parametrize('begun', [True, False])
def test_nobody_but_the_teacher_gets_the_classs_run(begun):
    "Whoever may have a dashboard of their own names a run to find it again: that of the class is not theirs to name."
    s = Scene(is_class=True, limit=2)
    if begun: s.page('teacher')
    told = len(s.trainer.told)
    p = s.page('own', 'w', run='class')
    assert types(p)==['lost'] and s.trainer.since(told)==[]
    s.say(p, 'reset', 'w')
    assert types(p)==['lost','lost'] and s.trainer.since(told)==[]
    s.say(p, 'hello', 'w') # one of its own
    assert run_of(p)!='class' and 'class' not in [o.run.id for o in s.hub.pages if o.role=='own']

def test_files_of_the_teacher_stay_the_teachers():
    s = Scene(is_class=True)
    t,w = s.page('teacher'),s.page('watch', 'w')
    s.hub.heard('class', 'v1', '{"type":"file","data":"secret"}')
    s.wait(3)
    assert 'file' in types(t) and 'file' not in types(w)

def test_a_question_goes_round():
    s = Scene(is_class=True)
    t = s.page('teacher')
    a,b = s.page('watch', 'wa', who='ann'),s.page('watch', 'wb', who='bob')
    s.update(state=json.dumps(dict(values=dict(samples=[['96 of 128', 'a']]))))
    s.say(t, 'ask', what='samples', how='number')
    s.say(a, 'answer', 'wa', value=10)
    s.hub.leave(a)
    a = s.page('watch', 'wc', who='ann')
    s.say(a, 'answer', 'wc', value=30) # the same person after a reload
    s.say(b, 'answer', 'wb', value=1000)
    assert 'taken' in types(a) and b.heard[-1]['type']=='refused'
    s.wait(.5)
    room = [o for o in b.heard if o['type']=='room'][-1]
    assert (room['here'], room['poll']['n'])==(2, 1) and 'guesses' not in room['poll']
    b2 = s.page('watch', 'wd', who='ann')
    assert [o['value'] for o in b2.heard if o['type']=='taken']==[30], 'who loads the page anew sees what was answered'
    s.hub.leave(b2)
    s.say(t, 'shut')
    s.say(t, 'decide')
    assert t.heard[-1]==dict(type='refused', say='nothing was dragged or trained since the question was closed') and s.hub.poll.phase=='closed'
    s.say(t, 'set', settings=dict(loss_perc=.2))
    s.update(state=json.dumps(dict(values=dict(samples=[['32 of 128', 'a']]))))
    s.say(t, 'decide')
    s.wait(.5)
    poll = [o for o in b.heard if o['type']=='room'][-1]['poll']
    assert (poll['before'], poll['came'], poll['middle'])==(75., 25., 30.)
    s.say(b, 'ask', 'wb', what='samples', how='number')
    assert b.heard[-1]['type']=='refused' and s.hub.poll.phase=='decided'

def test_all_hear_that_the_trainer_has_died():
    s = Scene(is_class=True)
    t,w,o = s.page('teacher'),s.page('watch', 'w'),s.page('own', 'o')
    s.update(time='1')
    s.hub.lost('it ended')
    assert all(types(p)[-1]=='lost' for p in (t, w, o)) and not s.hub.runs
    n = len(s.trainer.told)
    s.say(t, 'hello')
    assert s.trainer.since(n)==[('open',), ('take','hello','v1')]
    s.update(time='2')
    s.say(w, 'ack', 'w')
    s.wait(2)
    assert [p['parts'] for p in w.heard if p['type']=='update'][-1]==dict(time='2')

def test_a_trainer_that_dies_again_and_again_is_not_waited_for():
    s = Scene()
    p = s.page()
    s.trainer.down = 'it ended three times'
    s.hub.lost('it ended')
    s.say(p, 'hello')
    assert p.heard[-1]==dict(type='lost', final=True, say='it ended three times') and len(s.trainer.told)==2
    s = Scene(is_class=True)
    t,w = s.page('teacher'),s.page('watch', 'w')
    s.trainer.down = 'it ended three times'
    s.hub.lost('it ended three times')
    late = s.page('watch', 'w2')
    for o in (t,w,late): assert next(m for m in o.heard if m['type']=='lost')==dict(type='lost', final=True, say='it ended three times') # nobody begins anew
    assert 'patience' not in types(late)

def test_signs_of_life():
    s = Scene()
    p = s.page()
    s.wait(20)
    assert 10<=types(p).count('beat')<=11

def test_the_board_packs_once():
    b = Board()
    b.put(dict(a='1'))
    assert b.since(-1, True) is b.since(-1, True) and json.loads(b.since(-1))==json.loads(gzip.decompress(b.since(-1, True)))

def test_a_page_has_its_fields_before_the_trainer_speaks():
    from blf_explore.page.widgets import Dashboard
    dash = Dashboard(lambda msg: None)
    try: says = dash._state_now(time.monotonic())
    finally: dash.close()
    s = Scene()
    a = s.page()
    early = json.loads(a.heard[1]['parts']['state'])
    assert set(early)==set(says) and early['status']=='loading'
    assert {k: early[k] for k in ('settings','now','fields')}=={k: json.loads(json.dumps(says[k])) for k in ('settings','now','fields')}
    s.update(run_of(a), state='{}')
    b = s.page(view='v2', run=run_of(a))
    assert types(b)==['run'], 'only until it is heard'
    def first(query): return [json.loads(o['parts']['state'])['now']['loss_perc'] for o in s.page(view='v3', query=query).heard if o['type']=='update']
    assert first('?loss_perc=.35&path=/etc&seed=x')==[.35] and first('?loss_perc=3')==[.9]
    assert first('?method=importance')==[], 'where the slider stands is the method\'s to say'

# ---- over HTTP, with a trainer that only listens

class Served(testing.AsyncHTTPTestCase):
    __test__ = False # has no tests of its own
    def runTest(self): "Older tornados look for it."
    options,house_options = {},{}
    def get_app(self):
        self.trainer = Told()
        self.hub = Hub(self.trainer, check_settings(), **self.options)
        self.house = House(self.hub, port=1, **self.house_options)
        return application(self.house)
    def get(self, path, host=None, **headers):
        return self.fetch(path, headers={'Host': host or f'localhost:{self.get_http_port()}'} | headers, follow_redirects=False)
    async def socket(self, query='as=own', **headers):
        port = self.get_http_port()
        return await websocket_connect(HTTPRequest(f'ws://127.0.0.1:{port}/ws?{query}', headers={'Host': f'localhost:{port}'} | headers))
    async def refused(self, code, query='as=own', **headers):
        with pytest.raises(HTTPClientError) as e: await self.socket(query, **headers)
        assert e.value.code==code

class TestAlone(Served):
    __test__ = True
    def test_the_page_asks_for_files_that_are_there_and_starts_nothing(self):
        res = self.get('/')
        text = res.body.decode()
        assert res.code==200 and 'text/html' in res.headers['Content-Type']
        info = json.loads(re.search(r'id="info">(.*?)</script>', text)[1])
        assert info['role']=='own' and info['choices']==json.loads(json.dumps(page_choices()))
        for o in info['files'].values():
            f = self.get('/'+o)
            assert f.code==200 and 'immutable' in f.headers['Cache-Control'] and not o.startswith('/')
        assert self.get('/serve.js').headers['Cache-Control']=='no-cache'
        assert not re.search(r'(src|href)="(?!data:)[^"]*(//|^/)', text), 'relative addresses only'
        assert self.trainer.told==[] and not self.hub.pages

    def test_plotly_is_packed(self):
        raw = self.get('/plotly.js', **{'Accept-Encoding': 'gzip'})
        assert raw.headers.get('X-Consumed-Content-Encoding', raw.headers.get('Content-Encoding'))=='gzip'
        assert raw.body[:300]==Files().path('plotly.js').read_bytes()[:300]

    def test_every_answer_carries_the_headers(self):
        for path in ('/', '/serve.js', '/nothing', '/ws', '/a/b'):
            h = self.get(path).headers
            assert h['X-Content-Type-Options']=='nosniff' and h['Referrer-Policy']=='no-referrer', path
            assert "frame-ancestors 'self'" in h['Content-Security-Policy'] and h['Cross-Origin-Resource-Policy']=='same-origin', path

    def test_foreign_names_get_nothing(self):
        for path in ('/', '/serve.js', '/ws?as=own', '/nothing'): assert self.get(path, host='evil.example').code==403, path

    def test_nothing_lies_beside(self):
        for path in ('/../settings.ini', '/%2e%2e/settings.ini', '/..%2fcli.py', '/cli.py', '/page.html', '/live.js/..', '//etc/passwd', '/plotly.js%00', '/live.js.map',
                     '/static/x', '/WS', '/watch', '/own', '/.git/config'): assert self.get(path).code in (400, 404), path
        for method in ('POST','PUT','DELETE','PATCH'):
            assert self.fetch('/', method=method, body=None if method=='DELETE' else b'x'*10, headers={'Host': 'localhost'}).code==405

    def test_a_get_where_the_socket_is_starts_nothing(self):
        assert self.get('/ws?as=own').code==400 and self.trainer.told==[]

    @testing.gen_test
    async def test_sockets_of_other_sites_are_not_opened(self):
        port = self.get_http_port()
        for o in ('http://evil.example', 'null', 'http://localhost:3000'): await self.refused(403, Origin=o)
        await self.refused(403, Host='evil.example')
        await self.refused(403, Host='evil.example', Origin='http://evil.example')
        for o in ('as=teacher', 'as=watch', 'as=', ''): await self.refused(404, o)
        ws = await self.socket(Origin=f'http://localhost:{port}')
        assert self.trainer.told==[], 'an open socket alone starts nothing'
        ws.write_message(json.dumps(dict(type='hello', view='v')))
        assert json.loads(await ws.read_message())['type']=='run'
        assert [o[0] for o in self.trainer.told]==['open','take']

    @testing.gen_test
    async def test_a_huge_message_ends_its_own_connection_only(self):
        a,b = await self.socket(),await self.socket()
        a.write_message('x'*2**17)
        assert await a.read_message() is None
        b.write_message(b'\x00\xff', binary=True)
        assert json.loads(await b.read_message())['type']=='refused'
        for _ in range(300): b.write_message('{')
        while (msg := await b.read_message()) is not None: assert json.loads(msg)['type']=='refused'
        assert b.close_code==1008

class TestClass(Served):
    __test__ = True
    options,house_options = dict(is_class=True, limit=1),dict(host='0.0.0.0', allowed=('hub.example',))
    def test_each_page_needs_its_own_token(self):
        t,w = (parse_qs(urlsplit(self.house.address(p)).query)['token'][0] for p in ('','watch'))
        assert t!=w and len(t)>=16 and len(w)>=10
        for path,ok in {'/': False, '/watch': False, f'/?token={w}': False, f'/watch?token={w}': True, f'/own?token={w}': True, f'/?token={t}': True, '/?token=': False,
                        '/?token=%FF%00': False, f'/watch?token={w}x': False}.items():
            res = self.get(path)
            assert res.code in ([200] if ok else [400, 403]), path
            assert ok or (t not in res.body.decode() and w not in res.body.decode())
        assert t not in self.get(f'/watch?token={w}').body.decode(), 'a student does not find the teacher\'s'
        cookie = self.get(f'/watch?token={w}').headers['Set-Cookie']
        assert 'HttpOnly' in cookie and 'SameSite=Strict' in cookie
        assert self.get('/watch', Cookie=cookie.split(';')[0]).code==200, 'a reload'
        assert self.get('/', Cookie=cookie.split(';')[0]).code==403

    def test_names(self):
        w = self.house.address('watch').split('?')[1]
        for host,ok in {'hub.example': 1, '10.1.2.3:8866': 1, 'evil.example': 0}.items(): assert self.get('/watch?'+w, host=host).code==(200 if ok else 403), host

    @testing.gen_test
    async def test_sockets(self):
        t,w = self.house.tokens['teacher'],self.house.tokens['watch']
        for o in ('as=watch', 'as=teacher', f'as=teacher&token={w}', 'as=watch&token=x'): await self.refused(403, o)
        await self.refused(403, f'as=teacher&token={t}', Origin='http://evil.example')
        await self.socket(f'as=watch&token={w}', Host='hub.example', Origin='https://hub.example')
        await self.socket(f'as=watch&token={w}', Host='127.0.0.1:8866', Origin='https://hub.example') # a proxy that does not pass the name on
        ws = await self.socket(f'as=watch&token={w}')
        for kind in ('run','reset','ask'): ws.write_message(json.dumps(dict(type=kind, view='v')))
        for _ in range(3): assert json.loads(await ws.read_message())['type']=='refused'
        assert self.trainer.told==[]

# ---- the server as it runs, with dashboards that train nothing

here = Path(__file__).parent
cache = tempfile.mkdtemp() # the tokens' secret of the day
env = os.environ | {'XDG_CACHE_HOME': cache, 'PYTHONPATH': os.pathsep.join([str(here), str(here.parent), os.environ.get('PYTHONPATH', '')])}

class Process:
    "A server in a process of its own."
    def __init__(self, port=8990, **options):
        args = [f'{k}={json.dumps(v)}' for k,v in options.items()]
        self.proc = subprocess.Popen([sys.executable, here/'made_up.py', str(port), *args], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env, start_new_session=True)
        _,port,*self.urls = self.proc.stdout.readline().split()
        self.port = int(port)
    @property
    def trainer(self): return psutil.Process(self.proc.pid).children()[0]
    def end(self, sig=signal.SIGINT):
        "What it printed after its address."
        if self.proc.poll() is None: self.proc.send_signal(sig)
        said = self.proc.stdout.read()
        ended(self.proc, 'the server')
        return said

@contextmanager
def process(**options):
    p = Process(**options)
    try: yield p
    finally:
        if p.proc.poll() is None: p.end(signal.SIGKILL)

async def talk(port, *msgs, until=lambda o: True, query='as=own', ws=None):
    "Say `msgs`, and listen until `until(message)`: (that message, the connection)."
    text,ws = None,ws or await websocket_connect(f'ws://localhost:{port}/ws?{query}')
    for o in msgs: await ws.write_message(json.dumps(dict(view='v1') | o))
    end = time.monotonic()+120
    while True:
        assert time.monotonic()<end, f'what was waited for did not come; the last was {text}'
        text = await asyncio.wait_for(ws.read_message(), 120) # beats come every 2 s: whatever the machine does, this is the end
        assert text is not None, 'the connection was closed'
        if until(msg := json.loads(text)): return msg,ws

def is_a(kind): return lambda o: o['type']==kind
def state(o): return json.loads(o['parts']['state']) if o['type']=='update' and 'state' in o['parts'] else {}

def test_a_run_over_its_life():
    async def life(p):
        run,ws = await talk(p.port, dict(type='hello', query=''), until=is_a('run'))
        await talk(p.port, dict(type='run'), until=lambda o: state(o).get('n_batch', 0)>2, ws=ws)
        ws.close()
        msg,ws = await talk(p.port, dict(type='hello', view='v2', query='?loss_perc=.1', run=run['run']), until=lambda o: state(o).get('n_batch', 0)>4)
        assert state(msg)['status']=='running', 'a reload finds its run, and it goes on'
        assert [o[:2] for o in state(msg)['told']][:3]==[['hello','v1'], ['run','v1'], ['hello','v2']]
        msg,_ = await talk(p.port, dict(type='file', view='v2', what='csv'), until=is_a('file'), ws=ws)
        assert msg['name']=='run.csv'
        msg,_ = await talk(p.port, dict(type='set', view='v2', settings=dict(lr='blow')), until=is_a('refused'), ws=ws)
        assert msg['say']=='RuntimeError: as was asked for'
        # the process that trains dies: told at once, and there again
        old = p.trainer.pid
        msg,_ = await talk(p.port, dict(type='set', view='v2', settings=dict(lr='die')), until=is_a('lost'), ws=ws)
        assert 'exit code 3' in msg['say']
        wait_until(lambda: p.trainer.pid!=old, what='a new trainer')
        msg,_ = await talk(p.port, dict(type='hello', view='v2', query=''), until=lambda o: state(o), ws=ws)
        assert state(msg)['n_batch']==0
        p.trainer.kill()
        msg,_ = await talk(p.port, until=is_a('lost'), ws=ws)
        assert 'signal 9' in msg['say']
        ws.close()
    with process() as p:
        asyncio.run(life(p))
        below = psutil.Process(p.proc.pid).children()
        said = p.end()
        assert p.proc.returncode==0
        gone(below)
        assert [o for o in said.splitlines() if not o.startswith('The process that trains has ended (')]==['Ready to train.'], said

@pytest.mark.parametrize('sig', [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_however_it_ends_nothing_stays(sig):
    with process() as p:
        asyncio.run(talk(p.port, dict(type='hello', query=''), until=lambda o: state(o)))
        below = psutil.Process(p.proc.pid).children()
        assert len(below)==1
        said = p.end(sig)
        assert p.proc.returncode==(-9 if sig==signal.SIGKILL else 0) and 'Traceback' not in said
        gone(below)

def test_the_server_imports_nothing_heavy_and_says_its_line_at_once():
    code = "import sys; from blf_explore.page import serve; print({o.split('.')[0] for o in sys.modules} & {'torch','plotly','numpy','pandas','fastai','anywidget','IPython'})"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout=='set()\n'

# ---- the page's connection, without a browser

CONNECTION = """
import {readFileSync} from 'node:fs'
const [info, script] = JSON.parse(readFileSync(0)), out = [], told = []
globalThis.addEventListener = () => {}
globalThis.document = {addEventListener() {}, getElementById: () => null}
const kept = {}
globalThis.sessionStorage = {getItem: k => kept[k] ?? null, setItem: (k, v) => { kept[k] = v }}
let ws = null
class Socket {
  constructor() { ws = this; this.readyState = 0 }
  send(text) { out.push(JSON.parse(text)) }
  close() {}
}
const {connect} = await import('data:text/javascript;base64,' + info.source)
const model = connect(info, {onOwn: m => told.push(m.type), Socket, here: new URL('http://localhost/watch')})
model.on('msg:custom', msg => { if (msg.type === 'update') model.send({type: 'ack', view: 'v'}) })  // as live.js does once it has drawn
ws.readyState = 1
ws.onopen()
model.send({type: 'hello', view: 'v'})
for (const msg of script) { ws.onmessage({data: JSON.stringify(msg)}); await new Promise(r => setTimeout(r)) }
model.close()
console.log(JSON.stringify([out.map(o => o.type), told]))
"""

@pytest.mark.skipif(not shutil.which('node'), reason='no Node here')
@pytest.mark.parametrize('role, says', [('watch', ['hello','ack','ack']), ('own', ['hello','ack'])])
def test_a_watcher_goes_on_answering_when_the_class_begins_anew(role, says):
    "What it does not answer would be the last thing that it is told."
    source = base64.b64encode(Files().path('serve.js').read_bytes()).decode()
    update = dict(type='update', parts=dict(state=json.dumps(dict(n_batch=3, settings={}))))
    script = [dict(type='run', run='class'), update, dict(type='lost', say='it ended'), *([update] if role=='watch' else [])]
    res = subprocess.run(['node', '--input-type=module', '-e', CONNECTION], input=json.dumps([dict(role=role, source=source), script]), capture_output=True, text=True)
    assert res.returncode==0, res.stderr
    assert json.loads(res.stdout)==[says, ['run','state','lost', *(['state'] if role=='watch' else [])]]

# ---- in a browser

@pytest.fixture(scope='module')
def browser():
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        res = launch(p)
        try: yield res
        finally: res.close()

def listening(page):
    "What goes wrong on a page, and which servers it asks."
    errors,hosts = [],set()
    page.on('console', lambda o: errors.append(o.text) if o.type=='error' else None)
    page.on('pageerror', lambda o: errors.append(str(o)))
    page.on('request', lambda o: hosts.add(urlsplit(o.url).netloc) if o.url.startswith('http') else None)
    return errors,hosts

def goes(page, url):
    page.goto(url, wait_until='commit')
    appears(page, 'button.run')
    true_on(page, "document.querySelector('.blf').dataset.status !== undefined")

def batches(page): return int(page.evaluate("document.querySelector('.blf').dataset.batches || 0"))

@pytest.mark.browser
def test_a_page_over_its_life(browser):
    with process() as p, open_page(browser) as page:
        errors,hosts = listening(page)
        goes(page, p.urls[0]+'?loss_perc=.35')
        page.click('button.run')
        true_on(page, "document.querySelector('.blf').dataset.batches > 3")
        n = batches(page)
        page.reload(wait_until='commit')
        true_on(page, f"document.querySelector('.blf').dataset.batches > {n}") # found, and still running
        assert errors==[] and hosts=={f'localhost:{p.port}'}
        old,port = p.trainer,p.port
        old.kill()
        appears(page, '#notice:has-text("The process that trains has ended")')
        assert page.locator('.status').inner_text()=='Ended' and page.evaluate("document.querySelector('.knobs').disabled") and page.locator('.anew').is_hidden(), 'one reason, one button'
        page.click('#notice button:has-text("Open the same set-up")')
        true_on(page, "document.querySelector('.blf').dataset.batches == 0")
        appears(page, 'output:text("0.35")')
        p.end(signal.SIGKILL)
        appears(page, '#low:has-text("No connection to the server")')
        with process(port=port) as q: # back at its address: nothing was trained, so that the page opens by itself
            true_on(page, "document.getElementById('low').hidden")
            true_on(page, "document.querySelector('.blf').dataset.status === 'ready'")
            appears(page, 'output:text("0.35")')
            assert page.locator('#notice').is_hidden()
            page.click('button.run')
            true_on(page, "document.querySelector('.blf').dataset.batches > 3")
            q.end(signal.SIGKILL)
        with process(port=port): # something was trained: the page asks first, unless it is loaded anew and shows nothing that one would miss
            appears(page, '#notice:has-text("the server was started anew")')
            page.reload(wait_until='commit')
            true_on(page, "document.querySelector('.blf').dataset.status === 'ready'")
            appears(page, 'output:text("0.35")')
            assert page.locator('#notice').is_hidden() and not page.evaluate("document.querySelector('.knobs').disabled")

number = dict(what='time', words='time beside the other run', how='number', phase='decided', n=3, guesses=[['-20 to -10', 2], ['-10 to 0', 1]], middle=-12, before=-3, came=-15)
way = dict(what='accuracy', words='accuracy', how='direction', phase='decided', n=5, guesses=[['rises', 3], ['stays', 0], ['falls', 2]], middle=None, before=88, came='falls')
SAID = [ # what room.js says of a question
    ('question', number, 'Time beside the other run: how many percent will it be?'), ('question', way, 'Accuracy: will it rise, stay or fall?'), ('question', {}, ''),
    ('summary', number, '3 answers: 2 × -20 to -10%, 1 × -10 to 0%; half of the class said −12% or less.'), ('summary', way, '5 answers: 3 × rises, 2 × falls.'),
    ('outcome', number | dict(came=15, before=10), 'It came to +15%, from +10%.'), ('summary', dict(phase='open', n=3), ''), ('outcome', number, 'It came to −15%, from −3%.'), ('outcome', way, 'It fell (it was 88%): 2 of 5 said so.'),
    ('outcome', number | dict(phase='closed', came=None), 'Before the drag: −3%.'), ('outcome', number | dict(phase='closed', before=None), '')]

@pytest.mark.browser
def test_a_class_in_the_browser(browser):
    with process(is_class=True, own=0) as p, open_page(browser) as teacher, open_page(browser, 390, 844) as phone:
        heard = [listening(o)[0] for o in (teacher, phone)]
        phone.goto(p.urls[1], wait_until='commit')
        appears(phone, '#notice:has-text("The class has not begun")')
        goes(teacher, p.urls[0])
        assert 'token' not in teacher.url, 'the class sees the address line'
        teacher.click('button.run')
        true_on(phone, "document.querySelector('.blf').dataset.batches > 3") # the student sees it move
        assert phone.locator('#notice').is_hidden()
        assert phone.locator('button.run').count()==0 and phone.locator('.lane input').first.is_disabled(), 'a student has no controls'
        # asked and answered with the keyboard alone
        teacher.focus('.room select')
        teacher.keyboard.press('Tab')
        teacher.keyboard.press('Tab')
        teacher.keyboard.press('Enter')
        appears(phone, '.room input')
        phone.focus('.room input')
        phone.keyboard.type('30')
        phone.keyboard.press('Enter')
        appears(phone, '.room :text("Your answer: 30%")')
        appears(teacher, '.room :text("1 of 1 answered")')
        assert teacher.locator('.room table').is_hidden(), 'not before the question is closed'
        teacher.click('.room button:has-text("Close")')
        appears(phone, '.room .say:has-text("1 answer: 1 × 30 to 31%")')
        appears(phone, '.room .came:has-text("Before the drag: 89.8%")')
        teacher.focus('.lane.a input[name=loss_perc]')
        for _ in range(20): teacher.keyboard.press('ArrowLeft')
        want = teacher.evaluate("Math.round(128 * document.querySelector('.lane.a input[name=loss_perc]').value)")
        appears(phone, f'.chart.samples :text("{want} of 128")')
        teacher.click('.room button:has-text("what came of it")')
        appears(phone, f'.room .came:has-text("It came to {100*want/128:.1f}%, from 89.8%")')
        assert heard==[[],[]]
        p.trainer.kill() # both say so, and what is still to be seen is marked as over
        for o in (teacher, phone):
            appears(o, '#notice:has-text("The process that trains has ended")')
            true_on(o, "document.querySelector('.blf').hasAttribute('data-lost')")
        teacher.click('#notice button:has-text("Open the same set-up")')
        true_on(phone, "!document.querySelector('.blf').hasAttribute('data-lost') && document.getElementById('notice').hidden && document.querySelector('.blf').dataset.batches == 0")
        for f,poll,want in SAID: assert phone.evaluate(f"import('./room.js').then(o => o.{f}({json.dumps(poll)}))")==want, (f, poll)
        waits = phone.evaluate("import('./serve.js').then(o => [0, 1, 2, 3, 10].map(o.pause))")
        assert waits==[250, 500, 1000, 2000, 5000], 'how long a page waits before it asks again'
