"What a dashboard does, without a page: its messages, by hand and by a clock made by hand."
import base64, csv, gc, io, json, math, pathlib, tempfile, threading, time, weakref, zipfile
import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from blf_explore.page.widgets import Dashboard, LiveDashboard, Outbox
from blf_explore.page.widgets import record_file, same_setup, sorted_batch, strip, what_differs
from blf_explore.page.sessions import check_settings, dashboard_defaults, page_choices
from waits import wait_until

quick = dict(name='digits', bs=64, network='mlp', epochs=2)

class Page:
    "A page that remembers what it was sent, and answers if it is told to."
    def __init__(self, view='a', answers=True): self.view,self.answers,self.got,self.parts,self.dash = view,answers,[],{},None
    def __call__(self, msg):
        self.got.append(msg)
        if msg['type']!='update': return
        self.parts |= {k: json.loads(v) for k,v in msg['parts'].items()}
        if self.answers and self.dash: self.dash.take(dict(type='ack', view=self.view))
    def say(self, kind, **more): self.dash.take(dict(type=kind, view=self.view, **more))
    @property
    def state(self): return self.parts.get('state', {})
    def shows(self, f, what): return wait_until(lambda: self.state and f(self.state), what=what)

@pytest.fixture(scope='module', autouse=True)
def nothing_left():
    "A thread that still loads when Python ends would take it down loudly."
    yield
    wait_until(lambda: not any(t.name.startswith('blf_explore') and 'company' not in t.name for t in threading.enumerate()), what='every thread to end')

@pytest.fixture
def page():
    p = Page()
    p.dash = Dashboard(p, **quick)
    p.say('hello')
    yield p
    p.dash.close()

# ---- the outbox, by a clock made by hand

@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(['batch','click','ack','wait']), st.floats(.001, 3)), max_size=60), st.booleans())
def test_an_outbox_never_sends_more_than_a_page_takes(events, running):
    "Whatever happens: without a click nothing is sent while an answer is missing, or sooner than the gap; all is told in the end."
    o,now,sent,version,unanswered = Outbox(),0.,[],0,False
    o.join('a')
    def settle(until):
        nonlocal now,unanswered
        while True:
            click,last = o.urgent,sent[-1][0] if sent else -math.inf
            what,wait = o.next(now, running)
            if what in ('update','quick'):
                if not click:
                    assert not unanswered, 'no second update before the first was drawn'
                    assert now-last>=(.15 if now<o.lively_until else .5 if running else .05)-1e-9
                if o.news({'x': str(version)}, now):
                    sent.append((now, version))
                    unanswered = True
                if what=='update': o.t_full = now
            elif what=='beat': o.t_beat = now
            elif what=='gone':
                assert unanswered and now-o.awaiting>20
                o.answered(); unanswered = False
            else:
                if wait is None or now+wait>until: break
                assert wait>0
                now += wait
        now = max(now, until)
    for kind,dt in events:
        if kind=='batch': version,o.changed = version+1,True
        elif kind=='click': version,o.changed,o.urgent = version+1,True,True
        elif kind=='ack': o.answered(); unanswered = False
        settle(now+dt)
    o.answered(); unanswered = False
    settle(now+1)
    assert sent[-1][1]==version

def test_a_sign_of_life_every_two_seconds_and_none_without_a_page():
    o = Outbox()
    assert o.next(100., True)==(None,None)
    o.join('a')
    assert o.next(0., False)==('update', 0.)
    o.news({}, 0.)
    now,beats = 0.,[]
    while now<20:
        what,wait = o.next(now, False)
        if what=='beat': o.t_beat = now; beats.append(now)
        else: now += wait
    assert len(beats)==10 and np.allclose(np.diff(beats), 2., atol=.01)

def test_a_page_that_comes_back_is_told_everything():
    o = Outbox()
    o.join('a')
    assert o.news(dict(a='1', b='2'), 0.)==dict(a='1', b='2') and o.news(dict(a='1', b='2'), 1.)=={}
    o.join('a')
    assert o.next(1.1, True)[0]=='update' and o.news(dict(a='1', b='2'), 1.1)==dict(a='1', b='2')

def test_what_happens_while_the_parts_are_drawn_is_told_next():
    "A click between the drawing and the sending of an update was lost once."
    o = Outbox()
    o.join('a')
    assert o.next(0., False)[0]=='update'
    o.changed = o.urgent = True
    o.news(dict(a='1'), .01) # drawn before the click
    assert o.next(.02, False)[0]=='update'
    o.news(dict(a='2'), .03)
    assert o.next(.04, False)[0]!='update'

# ---- a dashboard and a page that only remembers

def test_a_run_reaches_the_page(page):
    page.shows(lambda s: s['status']=='ready', 'the dashboard to be ready')
    page.say('step')
    page.shows(lambda s: s['n_batch']==1, 'one batch')
    page.say('run')
    page.shows(lambda s: s['status']=='done', 'the end')
    assert page.state['n_batch']==44 and page.state['progress'][0]<=page.state['progress'][1]
    wait_until(lambda: len(page.parts['accuracy']['epoch']['data'][0]['y'])==2, what='both epochs in the chart')
    assert set(page.parts['accuracy'])=={'epoch','seconds','samples'}==set(page.state['values']['accuracy'])
    rec = page.dash.records['BLF']
    assert page.parts['accuracy']['samples']['data'][0]['x']==np.cumsum(rec.epochs.n_kept).tolist()
    b,losses = page.parts['batch'],sorted(page.dash.session.lane.last.losses.tolist(), reverse=True)
    assert np.allclose(b['losses'], losses, rtol=1e-3) and sum(b['kept'])==b['cut']==rec.batches.n_kept.iloc[-1]
    assert [o['i'] for o in page.parts['strip']['kept']]==list(range(min(8, b['cut']))) and all(o['i']>=b['cut'] for o in page.parts['strip']['skipped'])

def test_loading_is_told_step_by_step():
    p = Page()
    p.dash = Dashboard(p, **quick)
    try:
        p.say('hello')
        p.shows(lambda s: s['status']=='ready', 'ready')
        seen = [json.loads(o['parts']['state']) for o in p.got if o['type']=='update' and 'state' in o['parts']]
        steps = [s['progress'] for s in seen]
        assert all(a<=b for a,b in zip(steps, steps[1:])) and len({n for _,n in steps})==1 and steps[-1][0]<=steps[-1][1]
    finally: p.dash.close()

def test_what_is_typed_into_a_field(page):
    page.shows(lambda s: s['status']=='ready', 'ready')
    for typed,shown,value in (('10%', '10%', .1), ('0,1', '10%', .1), ('25', '25%', .25)):
        page.say('set', settings=dict(label_noise=typed))
        page.shows(lambda s: s['settings']['label_noise']==value and s['fields']['label_noise']==shown, f'{typed} to be {shown}')
    page.say('set', settings=dict(lr='0,02', bs='2000'))
    page.shows(lambda s: s['status']=='ready' and s['fields']['lr']=='0.02' and 'only 1,437' in s['notes'].get('bs', ''), 'the note on a batch that holds them all')

def test_an_address_keeps_what_is_good_and_names_all_that_is_not(page):
    page.shows(lambda s: s['status']=='ready', 'ready')
    page.say('hello', query='?method=SB&beta=9&epochs=-1&lr=0.02&prune=.3&nonsense=1')
    page.shows(lambda s: s['error'] and s['now']['method']=='SB', 'what was accepted')
    assert page.state['now']['lr']==.02 and page.state['now']['epochs']==2
    assert page.state['query']=='lr=0.02&method=SB' # what differs from how the page began: a link to hand out
    assert all(o in page.state['error'] for o in ('beta=9','epochs=-1','prune=0.3'))

def test_a_page_that_says_hello_again_begins_nothing_anew(page):
    page.shows(lambda s: s['status']=='ready', 'ready')
    page.say('hello', query='lr=0.02')
    page.shows(lambda s: s['status']=='ready' and s['now']['lr']==.02, 'what the address asks for')
    session = page.dash.session
    for _ in range(3): page.say('hello', query=page.state['query']) # one that slept, or was loaded anew
    assert page.state['query']=='lr=0.02' and page.dash.session is session

def test_every_mistake_speaks_also_the_same_one_again(page):
    page.shows(lambda s: s['status']=='ready', 'ready')
    ids = []
    for i in range(3):
        page.say('set', settings=dict(epochs=-3))
        page.shows(lambda s: s['error'] and s['error_id']>i, 'the sentence')
        assert page.state['error'].startswith('epochs=-3 is not accepted') and page.state['settings']['epochs']==2
        ids.append(page.state['error_id'])
        if i==1: # read
            page.say('ok')
            page.shows(lambda s: not s['error'], 'the sentence to go')
    assert ids==[1,2,3]

def test_after_a_set_up_that_cannot_be_loaded_every_later_mistake_still_speaks(page, tmp_path):
    page.shows(lambda s: s['status']=='ready', 'ready')
    page.say('set', settings=dict(name='folder', path=str(tmp_path))) # an empty folder
    page.shows(lambda s: s['status']=='error' and s['error'], 'the load error')
    first = page.state['error']
    page.say('ok')
    page.shows(lambda s: not s['error'], 'the sentence to go')
    page.say('set', settings=dict(lr=-1))
    page.shows(lambda s: s['error'], 'the next mistake')
    assert page.state['error'].startswith('lr=-1 is not accepted') and page.state['error']!=first
    page.say('ok')
    page.say('set', settings=dict(name='digits'))
    page.shows(lambda s: s['status']=='ready' and not s['error'], 'the way back')

def test_a_message_that_makes_no_sense_harms_nothing(page):
    page.shows(lambda s: s['status']=='ready', 'ready')
    for bad in (dict(), dict(type='no such thing', view='a'), dict(type='set', view='a'), dict(type='set', view='a', settings=3), dict(type='forget', view='a'),
                dict(type='file', view='a', what='exe'), dict(type='preset', view='a', settings=dict(name='x')), dict(type='close', view='a'), dict(type='__class__')):
        page.dash.take(bad)
    assert page.dash.status=='ready' and page.dash.n_batch==0
    page.say('step')
    page.shows(lambda s: s['n_batch']==1, 'a batch')

def test_a_page_loaded_anew_in_mid_run_finds_its_run(page):
    page.dash.set(epochs=500)
    page.shows(lambda s: s['status']=='ready' and s['n_epoch']==500, 'ready')
    page.say('run')
    page.shows(lambda s: s['n_batch']>5, 'some batches')
    page.say('bye')
    wait_until(lambda: page.dash.status=='paused', what='the pause')
    n = page.dash.n_batch
    page.view,page.parts = 'b',{}
    page.say('hello')
    page.shows(lambda s: s['status']=='running' and s['n_batch']>n, 'the run to go on')
    assert page.state['away']==''

def test_a_page_that_was_away_for_long_is_told_why_its_run_stands_still(page, monkeypatch):
    page.dash.set(epochs=500)
    page.shows(lambda s: s['status']=='ready' and s['n_epoch']==500, 'ready')
    page.say('run')
    page.shows(lambda s: s['n_batch']>5, 'some batches')
    monkeypatch.setattr(page.dash._outbox, 'patience', .5)
    page.answers = False
    wait_until(lambda: page.dash.status=='paused', what='the pause') # it did not answer
    page.answers = True
    page.say('ack') # it is back
    page.shows(lambda s: 'did not answer' in s['away'] and s['status']=='paused', 'why it is paused')
    page.say('go_on')
    page.shows(lambda s: s['status']=='running' and not s['away'], 'the run to go on')

def test_past_runs_stay_on_the_chart_until_they_are_taken_away(page):
    page.shows(lambda s: s['status']=='ready', 'ready')
    page.say('run')
    page.shows(lambda s: s['status']=='done', 'the end')
    first = page.dash.records
    page.say('more') # the same set-up, the next seed
    page.shows(lambda s: s['status']=='done' and s['now']['seed']==43, 'the second seed')
    band, = [t for t in page.parts['accuracy']['epoch']['data'] if t.get('name')=='BLF, 2 seeds']
    accs = [o['BLF'].epochs.accuracy for o in (first, page.dash.records)]
    assert band['x']==[1,2,2,1] and band['y']==pytest.approx([100*f(*o) for f,es in ((max, (0,1)), (min, (1,0))) for e in es for o in [(accs[0][e], accs[1][e])]])
    assert 'median of 2 seeds' in page.state['answer'] and 'fewer than five' in page.state['answer'] and page.state['evidence']
    page.say('more')
    page.shows(lambda s: s['now']['seed']==44, 'the third seed')
    page.say('set', settings=dict(loss_perc=.4))
    page.say('reset')
    page.shows(lambda s: s['n_batch']==0 and s['status']=='ready', 'another run')
    wait_until(lambda: len(page.parts['runs'] or [])>=2, what='the past runs')
    runs = page.parts['runs']
    assert [o['seed'] for o in runs][:2]==[42,43] and runs[0]['names']==['BLF','plain'] and 'loss_perc 0.9' in runs[0]['differs']
    assert page.dash.past[0]['records']['BLF'] is first['BLF']
    wait_until(lambda: page.parts['accuracy'], what='the chart')
    faint = [t for t in page.parts['accuracy']['epoch']['data'] if t.get('opacity')==.3]
    assert len(faint)>=2*len(runs)
    for o in runs: page.say('forget', run=o['id'])
    wait_until(lambda: page.parts['runs']==[], what='them to go')
    page.say('forget', run=1) # twice does no harm

def test_a_good_bye_said_twice_is_one(page):
    page.dash.set(epochs=500)
    page.shows(lambda s: s['status']=='ready' and s['n_epoch']==500, 'ready')
    page.say('run')
    page.shows(lambda s: s['n_batch']>3, 'batches')
    for _ in range(2):
        page.say('bye')
        wait_until(lambda: page.dash.status=='paused', what='the pause')
    page.say('hello')
    assert page.dash.status=='running', 'it goes on'

def test_the_same_seed_once_more_is_no_other_seed(page):
    "Nor is a run in which a slider was moved one of the set-up that it ended with."
    page.shows(lambda s: s['status']=='ready', 'ready')
    def ended(): return page.shows(lambda s: s['status']=='done' and s['answer'], 'the end')
    for _ in range(3):
        page.say('run')
        ended()
        assert 'of one seed' in page.state['answer']
        page.say('reset')
        page.shows(lambda s: s['n_batch']==0 and s['status']=='ready', 'the same once more')
    page.say('more')
    page.shows(lambda s: s['status']=='done' and s['now']['seed']==43, 'another seed')
    assert 'median of 2 seeds' in page.state['answer']
    assert 'BLF, 2 seeds' in [t.get('name') for t in page.parts['accuracy']['epoch']['data']]
    page.say('reset')
    page.shows(lambda s: s['n_batch']==0 and s['status']=='ready', 'the same once more')
    page.say('step')
    page.shows(lambda s: s['n_batch']==1, 'a batch')
    for o in (.5,.9): # there and back
        page.say('set', settings=dict(loss_perc=o))
        page.shows(lambda s: s['now']['loss_perc']==o, 'the slider to move')
        page.say('step')
        page.shows(lambda s: s['n_batch']==(2 if o==.5 else 3), 'a batch')
    page.say('run')
    ended()
    assert 'of one seed: run more to be sure; a slider was moved on the way' in page.state['answer']

def test_one_more_seed_is_of_the_same_set_up(page):
    page.shows(lambda s: s['status']=='ready', 'ready')
    page.say('run')
    page.shows(lambda s: s['status']=='done', 'the end')
    page.say('set', settings=dict(lr='0,02'))
    page.shows(lambda s: s['pending']==['lr'], 'what waits for Reset')
    page.say('more')
    page.shows(lambda s: s['status']=='done' and s['now']['seed']==43, 'the second seed')
    assert page.state['now']['lr']==.01 and page.state['pending']==['lr'] and page.state['settings']['lr']==.02
    assert 'median of 2 seeds' in page.state['answer']

def test_a_chart_that_cannot_be_drawn_is_said_once_and_the_rest_goes_on(page, monkeypatch):
    from blf_explore.page import widgets
    page.shows(lambda s: s['status']=='ready', 'ready')
    tries = []
    def broken(*recs):
        tries.append(len(page.got))
        raise RuntimeError('no such chart')
    monkeypatch.setattr(widgets, 'samples_spec', broken)
    for i in range(3):
        page.say('step')
        page.shows(lambda s: s['n_batch']==i+1, 'a batch')
        assert page.state['error']=='RuntimeError: no such chart' and page.state['error_id']==1
    page.say('run')
    page.shows(lambda s: s['status']=='done', 'the end')
    sent = len([o for o in page.got if o['type']=='update'])
    assert len(tries)<=3*sent, 'it is not tried again and again'

def test_two_pages_see_one_run_and_each_may_leave(page):
    page.shows(lambda s: s['status']=='ready', 'ready')
    page.dash.take(dict(type='hello', view='b'))
    page.dash.set(epochs=500)
    page.say('run')
    page.shows(lambda s: s['n_batch']>3, 'batches')
    page.dash.take(dict(type='bye', view='b'))
    time.sleep(.2)
    assert page.dash.status=='running'
    page.say('bye')
    wait_until(lambda: page.dash.status=='paused', what='the pause once nobody looks')

def test_a_closed_dashboard_lets_go_of_its_networks():
    p = Page()
    p.dash = Dashboard(p, **quick)
    assert p.dash.wait()=='ready'
    p.dash.run()
    wait_until(lambda: p.dash.n_batch>3, what='some batches')
    models = [weakref.ref(o.learn.model) for o in p.dash.session.lanes]
    threads = [o.thread for o in p.dash.session.lanes]
    p.dash.close()
    assert not any(o.is_alive() for o in threads)
    del threads
    wait_until(lambda: gc.collect() is not None and not any(o() for o in models), what='the networks to go')
    wait_until(lambda: not any(t.name.startswith('blf_explore') and 'company' not in t.name for t in threading.enumerate()), what='the threads to end')

# ---- files, words

def test_the_record_as_a_file(page):
    with pytest.raises(ValueError, match='train first'): record_file({}, 'csv')
    page.dash.wait()
    page.dash.run()
    page.dash.wait(('done','error'))
    page.say('file', what='csv')
    got = page.got[-1] if page.got[-1]['type']=='file' else next(o for o in reversed(page.got) if o['type']=='file')
    rows = list(csv.DictReader(io.StringIO(base64.b64decode(got['data']).decode())))
    rec = page.dash.records['BLF']
    assert got['name'].endswith('.csv') and [r['run'] for r in rows]==2*['BLF']+2*['plain']
    assert [int(r['n_kept']) for r in rows[:2]]==rec.epochs.n_kept.tolist() and [float(r['accuracy']) for r in rows[:2]]==pytest.approx(rec.epochs.accuracy.tolist())
    page.say('file', what='npz')
    got = next(o for o in reversed(page.got) if o['type']=='file')
    from blf_explore.engine.record import Record
    with zipfile.ZipFile(io.BytesIO(base64.b64decode(got['data']))) as z:
        assert sorted(z.namelist())==['BLF.npz','plain.npz']
        with tempfile.TemporaryDirectory() as d:
            z.extractall(d)
            assert Record.load(pathlib.Path(d)/'BLF.npz').epochs.n_kept.tolist()==rec.epochs.n_kept.tolist()

def test_which_set_ups_are_the_same():
    a = check_settings(**quick)
    assert same_setup(a, a | dict(seed=7, pace=5.)) and not same_setup(a, a | dict(lr=.1))
    assert what_differs(a, a)=='' and what_differs(a | dict(lr=.1, network='resnet', pace=3.), a)=='network resnet, lr 0.1'
    assert json.loads(json.dumps(page_choices()))['name']['digits'] and set(dashboard_defaults)>=set(a)

class _Last: pass

@given(st.integers(1, 40), st.integers(0, 2**31), st.booleans())
@settings(max_examples=30, deadline=None)
def test_the_sorted_batch_against_a_slow_rule(n, seed, hardest):
    import torch
    from blf_explore.engine.rows import Selection
    gen = torch.Generator().manual_seed(seed)
    losses = torch.rand(n, generator=gen)
    k = int(torch.randint(1, n+1, (1,), generator=gen))
    idxs = losses.argsort(descending=True)[:k] if hardest else torch.randperm(n, generator=gen)[:k]
    last = _Last()
    last.losses,last.selection,last.preds = losses,Selection(idxs),torch.rand(n, 3, generator=gen)
    last.xb,last.yb = (torch.rand(n, 1, 4, 4, generator=gen),),(torch.randint(0, 3, (n,), generator=gen),)
    class dls: train_ds,vocab = [],['a','b','c']
    b,s = sorted_batch(last, dls),strip(last, dls)
    by_hand = sorted(range(n), key=lambda i: -losses[i].item())
    assert b['kept']==[i in idxs.tolist() for i in by_hand]
    assert b['cut']==(k if set(idxs.tolist())==set(by_hand[:k]) else None)
    assert len(b['images'])==min(n, 12) and b['images'][0]['i']==0 and b['images'][-1]['i']==n-1
    for o in [*b['images'], *s['kept'], *s['skipped']]: assert o['label']==dls.vocab[int(last.yb[0][by_hand[o['i']]])] and o['pred']==dls.vocab[int(last.preds[by_hand[o['i']]].argmax())]

# ---- in a notebook's cell

def test_a_cell_that_runs_again_ends_what_it_made_before(monkeypatch):
    from blf_explore.page import widgets
    cell = ['x', 1]
    monkeypatch.setattr(widgets, '_this_cell', lambda: tuple(cell))
    a,b = LiveDashboard(**quick),LiveDashboard(**quick) # two in one cell may stand side by side
    try:
        assert not a._closed and not b._closed
        cell[0] = 'y'
        c = LiveDashboard(**quick)
        assert not a._closed
        cell[:] = 'x',2
        d = LiveDashboard(**quick)
        assert a._closed and b._closed and not c._closed and not d._closed
        with pytest.raises(ValueError): LiveDashboard(lr=-1) # bad settings end nothing
        assert not d._closed
    finally:
        for o in (a,b,c,d): o.close()

def test_a_saved_notebook_has_a_picture_of_the_page_as_it_was_last(monkeypatch):
    import IPython.display
    from PIL import Image
    shown,updated = [],[]
    class Handle:
        def update(self, data, raw): updated.append(data)
    monkeypatch.setattr(IPython.display, 'display', lambda data, **kwargs: shown.append(data) or Handle())
    def image(data): return Image.open(io.BytesIO(base64.b64decode(data['image/png'])))
    d = LiveDashboard(**quick)
    try:
        d._ipython_display_()
        picture,widget = shown
        assert image(picture).size[0]>=1000 and 'application/vnd.jupyter.widget-view+json' in widget
        f = io.BytesIO()
        Image.new('RGB', (7,5)).save(f, 'PNG')
        d.take(dict(type='picture', view='a', data='data:image/png;base64,'+base64.b64encode(f.getvalue()).decode()))
        assert image(updated[0]).size==(7,5)
        for bad in (None, 'x', 'data:text/html;base64,PGI+', 'data:image/png;base64,'+'A'*6_000_000): d.take(dict(type='picture', view='a', data=bad))
        assert len(updated)==1 and image({'image/png': d.picture.split(',')[1]}).size==(7,5)
    finally: d.close()
