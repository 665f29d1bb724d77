"Trainings without a page: fair times, fair turns, what may be loaded, and what people type."
import math, statistics, threading, time, weakref
import pytest
from blf_explore.page.sessions import (Allow, InOrder, Session, Turns, changed_settings, check_settings, dashboard_defaults, field_notes, from_query,
                                       page_state, read_field, show_field, to_query)
from waits import wait_until

QUICK = dict(name='digits', network='mlp', bs=256, epochs=1)

def session(loaded=None, changed=lambda: None, **settings):
    "A session that has loaded."
    s = Session(check_settings(**QUICK | settings), changed, loaded)
    s.thread.join()
    assert s.problem is None
    return s

def run(s):
    s.tell(lambda t: t.allow(math.inf))
    wait_until(lambda: s.done, lambda: s.problem and f'{type(s.problem).__name__}: {s.problem}', what='the run to end')
    return s

# ---- both lanes under the same conditions

def test_no_lane_ends_before_the_last_batch_of_all():
    "When a thread ends, its OpenMP team goes, and the other's last batch would be trained in another way than all before."
    seen,s = [],session()
    for o in s.lanes: o.changed = lambda: seen.append([o.thread.is_alive() for o in s.lanes]) # called after each batch, and at the end
    run(s)
    for o in s.lanes: o.thread.join()
    assert seen==(5+1+5+1)*[[True, True]]

def test_the_step_beforehand_is_taken_in_the_lanes_thread_and_leaves_no_trace(monkeypatch):
    import random, torch
    from blf_explore.page import sessions
    seen,own = [],sessions.Lane._warm_up
    def look(lane):
        def all_(): return [*map(repr, (random.getstate(), torch.get_rng_state().tolist(), lane.learn.dls.train.rng.getstate())),
                            *[o.tolist() for o in lane.learn.model.state_dict().values()], [p.grad for p in lane.learn.model.parameters()]]
        before = all_()
        own(lane)
        seen.append((threading.current_thread() is lane.thread, before==all_()))
    monkeypatch.setattr(sessions.Lane, '_warm_up', look)
    s = session()
    s.stop()
    assert seen==[(True, True)]*2

def test_one_thread_keeps_the_process_company():
    "Also where one lane trains alone: what it finds beside it is the same with one dashboard or several, and at any time."
    for _ in range(2):
        s = session(other='none')
        assert [o.name for o in threading.enumerate()].count('blf_explore company')==1
        s.stop()

@pytest.mark.slow
def test_equal_methods_take_equal_times():
    """Both lanes plain. If nothing but chance tells their batches apart, each of the five is the slowest of its lane in one run of five: in seven
    or eight of eight runs with a chance of 8.4e-5. And the epochs' times differ by no more than their own spread allows (Student's t of eight
    runs, .1%), or 5%: whichever batch comes second may find warmer caches."""
    runs,s = [],None
    for _ in range(8):
        s = run(session(s and s.stop(), network='convnet', method='plain', other='plain'))
        runs.append([[b['t_train_s'] for b in o.record.rows['batches']] for o in s.lanes])
    for lane in 0,1:
        slowest = [max(range(5), key=r[lane].__getitem__) for r in runs]
        assert all(slowest.count(o)<7 for o in range(5)), slowest
    ratios = [math.log(sum(b)/sum(a)) for a,b in runs]
    assert abs(statistics.mean(ratios))<max(.05, 5.41*statistics.stdev(ratios)/8**.5), ratios

# ---- several sessions in one process

def test_a_lock_is_given_in_the_order_in_which_it_was_asked_for():
    lock,out,asked = InOrder(),[],[]
    def take(i):
        asked.append(i)
        with lock: out.append(i)
    threads = [threading.Thread(target=take, args=(i,)) for i in range(20)]
    with lock:
        for i,o in enumerate(threads):
            o.start()
            wait_until(lambda: len(lock._waiting)==i+1, what='the next to wait')
    for o in threads: o.join()
    assert out==asked==list(range(20))
    with pytest.raises(KeyError):
        with lock: raise KeyError
    with lock: pass # free again

def test_sessions_share_their_rounds():
    "Of one lane each: a thread that lets the lock go and takes it again at once is the one that nobody else gets in between."
    ss = [session(epochs=1000, network='convnet', bs=64, other='none', seed=i) for i in range(3)]
    def batches(): return [sum(o.n_batch for o in s.lanes) for s in ss]
    try:
        for s in ss: s.tell(lambda t: t.allow(math.inf))
        wait_until(lambda: min(batches())>2, what='all to train')
        before = batches()
        wait_until(lambda: sum(batches())-sum(before)>45, what='45 batches')
        counts = [b-a for a,b in zip(before, batches())]
    finally:
        for s in ss: s.stop()
    assert max(counts)-min(counts)<=3, counts # counted while they train

def test_equal_set_ups_share_a_data_set(monkeypatch):
    from blf_explore.engine import data
    loaded,own = [],data.get_dls
    monkeypatch.setattr(data, 'get_dls', lambda **kw: loaded.append(kw) or own(**kw))
    a,b,c = session(seed=11),session(seed=11),session(seed=12)
    try:
        assert a.loaded is b.loaded is not c.loaded
        assert [o['seed'] for o in loaded]==[11,12]
    finally:
        for s in (a,b,c): s.stop()

def test_a_data_set_goes_from_one_session_to_the_next_and_no_further(monkeypatch):
    "Also where another dashboard has loaded one meanwhile; and no two are held where one is needed."
    from blf_explore.engine import data
    read,own = [],data.get_dls
    def get_dls(**kw):
        read.append(kw['seed'])
        wait_until(lambda: held() is None, what='the one before to be let go of')
        return own(**kw)
    monkeypatch.setattr(data, 'get_dls', get_dls)
    held = lambda: None
    a,b = session(seed=21),session(seed=22)
    held = weakref.ref(a.loaded)
    c = session(a.stop(), seed=21)
    assert a.loaded is None and c.loaded is held() and read==[21,22]
    d = Session(check_settings(**QUICK | dict(seed=23)), lambda: None, c.stop())
    d.thread.join()
    assert d.ready and read==[21,22,23]
    for s in (b,d): s.stop()

def test_a_new_pace_holds_at_once():
    "Also for who waits by the old one, which may be minutes a batch."
    turns,done = Turns(),threading.Event()
    turns.pace(1e-3)
    turns.join(0)
    def train():
        for _ in range(2): turns.wait(0)
        done.set()
    threading.Thread(target=train, daemon=True).start()
    turns.add(2)
    wait_until(lambda: turns.begun==1 and 0 in turns.waiting, what='the wait for the second round')
    turns.pace(0)
    wait_until(done.is_set, what='the second round')

def test_others_train_while_holdout_models_do(monkeypatch):
    import torch
    from blf_explore.page import sessions
    from blf_explore.engine.data import get_dls
    from blf_explore.rho import half_losses
    alone = half_losses(get_dls('digits', bs=256, seed=42), 42)
    s = session(epochs=1000)
    s.tell(lambda t: t.allow(math.inf))
    try:
        while not s.lanes[0].n_batch: time.sleep(.01)
        at,own = [],sessions._half_losses
        def look(*args):
            at.append(s.lanes[0].n_batch)
            res = own(*args)
            at.append(s.lanes[0].n_batch)
            return res
        monkeypatch.setattr(sessions, '_half_losses', look)
        o = session(method='RHO-LOSS')
        assert at[1]-at[0]>4 # two models, four epochs of two batches each: beside each batch, one of one of the two lanes
        assert torch.equal(o.loaded.holdout[0], alone)
        o.stop()
    finally: s.stop()

def test_a_session_that_could_not_load_is_replaced(monkeypatch):
    from blf_explore.engine import data
    own = data.get_dls
    def broken(**kw): raise ConnectionError('no network')
    monkeypatch.setattr(data, 'get_dls', broken)
    s = Session(check_settings(**QUICK | dict(seed=99)), lambda: None)
    s.thread.join()
    assert str(s.problem)=='no network' and not s.ready and s.idle and s.records==[None, None] and s.notes=={} and s.diverged=={}
    monkeypatch.setattr(data, 'get_dls', own)
    s = run(session(s.stop(), seed=99))
    assert s.problem is None and s.progress==[6, 6]

# ---- a run that gets out of hand

def test_a_run_that_diverges_says_so():
    s = run(session(lr=100., epochs=3, network='convnet'))
    assert set(s.diverged)=={'method','other'}
    assert all(o.startswith('its losses ') and 'from epoch 1 on' in o for o in s.diverged.values())
    assert run(session()).diverged=={}

# ---- what is typed

@pytest.mark.parametrize('name, text, value', [
    ('label_noise', '10%', .1), ('label_noise', '10', .1), ('label_noise', '0,1', .1), ('label_noise', '0.1', .1), ('label_noise', ' 12,5 % ', .125),
    ('label_noise', '0', 0.), ('label_noise', '100%', 1.), ('label_noise', '0,5%', .005), ('redundancy', '90', .9), ('redundancy', '1', .01), ('lr', '0,01', .01), ('lr', '1e-3', .001),
    ('lr', '0,001', .001), ('bs', '64', 64), ('bs', '64,0', 64), ('epochs', '1e2', 100), ('pace', '2,5', 2.5), ('seed', '0', 0), ('epochs', '1.5e1', 15), ('lr', '1.000', 1.), ('path', '', None), ('path', ' /a b ', '/a b'),
    ('name', 'digits', 'digits'), ('loss_perc', '0,9', .9)])
def test_fields_take_what_people_type(name, text, value):
    got = read_field(name, text)
    assert got==pytest.approx(value) if isinstance(value, float) else got==value
    assert type(got) is type(value)
    assert read_field(name, show_field(name, got))==pytest.approx(got) if isinstance(got, float) else read_field(name, show_field(name, got))==got

@pytest.mark.parametrize('name, text, says', [
    ('label_noise', '1', "label_noise='1' can be read in two ways: give '1%' or '100%'"),
    ('label_noise', '101', "label_noise='101' is not accepted: give a number from 0% to 100%"),
    ('redundancy', '100%', "redundancy='100%' is not accepted: give a number from 0% to 99.9%"),
    ('label_noise', '-5%', "label_noise='-5%' is not accepted: give a number from 0% to 100%"),
    ('lr', 'fast', "lr='fast' is not a number: give one such as 0.01"), ('lr', '', "lr='' is not a number: give one such as 0.01"),
    ('lr', 'nan', "lr='nan' is not a number"), ('lr', 'inf', "lr='inf' is not a number"), ('bs', '1,024', "bs='1,024' can be read in two ways: give it without separators of thousands, such as 1024"),
    ('epochs', '1.000', "epochs='1.000' can be read in two ways: give it without separators of thousands, such as 1000"),
    ('lr', '1.000,5', "lr='1.000,5' can be read in two ways: give it without separators of thousands, such as 1000.5"), ('bs', '12,5', "bs='12,5' is not accepted: give a whole number from 1 to 65536"),
    ('epochs', '0', "epochs='0' is not accepted: give a whole number from 1 to 1000"), ('size', '3', "size='3' is not a setting: choose from name, network,")])
def test_a_field_says_what_to_write_instead(name, text, says):
    with pytest.raises(ValueError) as e: read_field(name, text)
    assert str(e.value).startswith(says) and '\n' not in str(e.value)

def test_a_batch_larger_than_the_data_set_is_said():
    s = session(bs=4096)
    assert list(s.notes)==['bs'] and '1,437' in s.notes['bs'] and s.lanes[0].n_iter==1
    assert field_notes(s.settings, 4096)==field_notes(s.settings)=={}
    run(s)
    assert [len(r.rows['batches']) for r in s.records]==[1, 1]

# ---- links

def test_a_link_holds_what_differs_and_is_read_back():
    base = check_settings(name='digits', bs=64, method='SB', beta=2.)
    for new in ({}, dict(method='BLF', loss_perc=.5), dict(name='fashion_small', label_noise=.125), dict(other='SB', other_beta=3., beta=1., lr=3e-4, pace=2.),
                dict(other='none'), dict(method='RHO-LOSS'), dict(seed=7, epochs=3, network='resnet')):
        s = changed_settings(base, **new)
        for b in (base, check_settings()):
            asked,bad = from_query(to_query(s, b), b)
            assert bad==[] and changed_settings(b, **asked)==s
        assert set(from_query(to_query(s, base), base)[0])==set(new)
    assert to_query(check_settings())==''

def test_bad_values_of_a_link_are_named_together_and_the_good_ones_kept():
    good,bad = from_query('?method=SB&loss_perc=.3&epochs=0&bs=32&network=vgg&lr=fast&label_noise=40%25&token=abc&hide=setup')
    assert good==dict(method='SB', bs=32, label_noise=.4)
    assert [o.split(' ')[0] for o in bad]==["network='vgg'", 'epochs=0', "lr='fast'", 'loss_perc=0.3']
    assert bad[-1]=='loss_perc=0.3 is no setting of SB: it has beta, stale' and changed_settings(check_settings(), **good)['method']=='SB'
    assert from_query('loss_perc=0&sample_perc=.5')==(dict(loss_perc=0, sample_perc=.5), []) # neither alone would do
    assert from_query('loss_perc=0&bs=16')[0]==dict(bs=16)

# ---- what may be reached

def test_only_what_the_command_line_named(tmp_path):
    mine,other = tmp_path/'mine',tmp_path/'other'
    mine.mkdir()
    other.mkdir()
    allow = Allow((str(mine),), download=False)
    assert check_settings(allow, name='folder', path=str(mine))['path']==str(mine)
    assert check_settings(allow, name='fashion_mnist')['path']==str(mine) # the one that there is, and nothing is fetched
    assert check_settings(Allow(()), name='cifar10')['path'] is None and check_settings(allow)['name']=='fashion_small'
    said = {}
    for path in (other, tmp_path/'none', '/etc', mine/'..'/'other', mine/'sub'):
        with pytest.raises(ValueError) as e: check_settings(allow, name='folder', path=str(path))
        said[path] = str(e.value).replace(str(path), '')
        assert str(e.value).startswith(f"path={str(path)!r} is not allowed here: give {str(mine)!r}")
    assert len(set(said.values()))==1 # what is there and what is not cannot be told apart
    with pytest.raises(ValueError, match="^path='/etc' is not allowed here: a folder has to be named on the command line, by blf-dashboard's --path$"): check_settings(Allow(()), path='/etc')
    for folders in ((), (str(mine),str(other)), None):
        with pytest.raises(ValueError, match="^name='cifar10' would have to be fetched, which is not allowed here: choose one of 'digits', 'fashion_small'"):
            check_settings(Allow(folders, download=False), name='cifar10')
    with pytest.raises(ValueError, match='not allowed'): changed_settings(check_settings(), Allow((), False), name='cifar10')
    assert from_query(f'name=folder&path={other}&bs=32', allow=allow)[0]==dict(bs=32)

def test_what_a_page_is_told_has_one_list():
    s = check_settings()
    state = page_state(s, epoch=3, status='running')
    assert (state['epoch'],state['status'],state['n_epoch'],state['now'])==(3,'running',10,s) and state['fields']['label_noise']=='0%'
    assert page_state(s | dict(epochs=7), s)['n_epoch']==10 and page_state(s | dict(epochs=7), s)['fields']['epochs']=='7'
    with pytest.raises(TypeError, match='^epochs, stauts: no part of the state$'): page_state(s, stauts='running', epochs=3)

def test_the_defaults_are_accepted_as_they_are():
    s = check_settings()
    assert set(s)==set(dashboard_defaults) and changed_settings(s)==s
