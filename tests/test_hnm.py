"Hard-negative mining: the rule by brute force, and training against a hand-written loop, the plain learner and BatchLossFilter."
import math, warnings
import numpy as np, pytest, torch
from fastai.callback.schedule import combine_scheds, SchedCos, SchedLin
from hypothesis import given, settings, strategies as st
from blf_explore.blf import BatchLossFilter, select
from blf_explore.all import SelectiveTraining
from blf_explore.engine.record import Record
from blf_explore.hnm import hardest, HardNegativeMining
from core_tools import *
from references import hardest_by_hand

# ---- the rule

values = st.one_of(st.sampled_from([0., 1., 2., .5, -1., 1e-45, 3e38, 7.]), st.floats(-2.**100, 2.**100, width=32))
shares = st.one_of(st.sampled_from([1e-9, .1, .25, .3, .5, .9, .99, 1.]), st.floats(0, 1, exclude_min=True))

@settings(max_examples=500, deadline=None)
@given(st.lists(values, min_size=1, max_size=40), shares)
def test_brute_force(vals, k):
    losses = torch.tensor(vals, dtype=torch.float32)
    sel = hardest(losses, k)
    assert sel.idxs.dtype==torch.int64 and sel.weights is None
    assert sel.idxs.tolist()==hardest_by_hand(losses, k)
    assert losses.tolist()==torch.tensor(vals, dtype=torch.float32).tolist() # and they are left alone

@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.integers(1, 16))
def test_exact_counts(vals, a):
    "Sixteenths are exact in floating point: the number kept is that of whole-number arithmetic; no loss left out is above one kept."
    idxs = hardest(torch.tensor(vals, dtype=torch.float32), a/16).idxs.tolist()
    assert len(idxs)==len(set(idxs))==max(1, -(-len(vals)*a//16))
    kept,left = [vals[i] for i in idxs],[v for i,v in enumerate(vals) if i not in idxs]
    assert max(left, default=-1)<=min(kept) and sum(kept)+sum(left)==sum(vals)

@settings(max_examples=300, deadline=None)
@given(st.lists(values, min_size=1, max_size=40), shares)
def test_is_blf_without_a_loss_to_reach(vals, k):
    losses = torch.tensor(vals, dtype=torch.float32)
    assert hardest(losses, k).idxs.tolist()==select(losses, loss_perc=0, sample_perc=k).idxs.tolist()

@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0, 2.**100, width=32), min_size=1, max_size=40), st.floats(.01, .99))
def test_one_order_two_cuts(vals, p):
    "BatchLossFilter keeps what hard-negative mining keeps that is told BatchLossFilter's count."
    losses = torch.tensor(vals)
    idxs = select(losses, p).idxs
    m,n = len(idxs),len(vals)
    assert hardest(losses, (m-.5)/n).idxs.tolist()==idxs.tolist() # half a sample less, rounded up: no rounding error can matter

@pytest.mark.parametrize('n', [1, 2, 3, 64, 1000])
def test_equal_losses_stay_in_their_order(n):
    for fill in (0., 1., 1e-38, -2.):
        for k in (.001, .1, .5, .77, 1.): assert hardest(torch.full((n,), fill), k).idxs.tolist()==list(range(math.ceil(n*k)))

def test_defaults():
    assert hardest(torch.tensor([1., 5., 3., .5])).idxs.tolist()==[1, 2]
    assert hardest(torch.tensor([1., 5., 3.])).idxs.tolist()==[1, 2] # 1.5 samples are 2
    assert HardNegativeMining().sample_perc==.5

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_dtypes(dtype):
    losses = (10*torch.rand(50, generator=torch.Generator().manual_seed(0))).to(dtype)
    assert hardest(losses, .3).idxs.tolist()==hardest_by_hand(losses.double(), .3)
    graph = torch.rand(9, requires_grad=True)
    sel = hardest(graph*2, .5)
    assert sel.idxs.tolist()==hardest_by_hand(graph.detach(), .5) and graph.grad is None and not sel.idxs.requires_grad

def test_what_is_not_finite_is_hardest():
    nan,inf = float('nan'),float('inf')
    assert hardest(torch.tensor([1., nan, 3.]), .1).idxs.tolist()==[1]
    assert hardest(torch.tensor([-inf, 2., inf, 3.]), .75).idxs.tolist()==[2, 3, 1]

# ---- bad input

bad = [1.5, -.1, 0, 0., float('nan'), float('inf'), 'half', None, True, [.5]]
bad_scheds = [SchedLin(.5, 1.5), lambda pct: 'no', lambda: .5]

def is_one_sentence(e, val):
    msg = str(e.value).split(':\n\t')[-1] # in a fit, fastai puts the callback's name and the event before it
    assert msg.startswith('sample_perc=') and '1' in msg and '0' in msg and '\n' not in msg and '. ' not in msg
    if not callable(val): assert repr(val) in msg

@pytest.mark.parametrize('val', bad)
def test_bad_share(val):
    with pytest.raises(ValueError) as e: hardest(torch.rand(4), val)
    is_one_sentence(e, val)

def test_no_losses():
    with pytest.raises(ValueError, match='losses is empty'): hardest(torch.zeros(0), .5)

@pytest.mark.parametrize('val', bad+bad_scheds)
def test_bad_settings_change_nothing(val):
    learn = make_learner(cbs=HardNegativeMining(.7))
    cb,before = learn.selection,state(learn)
    for f in (lambda: HardNegativeMining(val), lambda: cb.set(sample_perc=val)):
        with pytest.raises(ValueError) as e: f()
        is_one_sentence(e, val)
    assert cb.sample_perc==.7
    cb.sample_perc = val # not seen by anyone until the fit begins
    with pytest.raises(ValueError) as e: learn.fit(1)
    is_one_sentence(e, val)
    assert all(torch.equal(before[k], v) for k,v in state(learn).items() if k in before)
    cb.sample_perc = .5
    learn.fit(1)

def test_it_has_one_setting():
    with pytest.raises(ValueError, match='loss_perc=0.9 is no setting of HNM: it has sample_perc'): HardNegativeMining().set(loss_perc=.9)
    with pytest.raises(TypeError): HardNegativeMining(.5, loss_perc=.9)

# ---- training

def pick_two(k):
    "The rule as `reference_fit` asks it, a schedule or a number; the test network's BatchNorm cannot train on one row."
    def pick(losses, pct): return hardest_by_hand(losses, max(k(pct) if callable(k) else k, 1.5/len(losses)))
    return pick

@pytest.mark.parametrize('k', [.5, .26, .01, 1.])
def test_against_a_hand_written_loop(k):
    ref = make_learner()
    picked = reference_fit(ref, 3, pick_two(k), lr=1e-2)
    learn = make_learner(cbs=HardNegativeMining(k, plain_every=3))
    learn.fit(3, 1e-2)
    assert_same(state(ref), state(learn))
    assert learn.selection.batches.n_kept.tolist()==[len(o) for o in picked]==[max(2, math.ceil(n*k)) for n in [16]*5+[10]]*3
    plain = make_learner(); plain.fit(3, 1e-2)
    assert differs(state(plain), state(learn))==(k<1)

scheds = [SchedCos(.1, .9), SchedLin(.9, .1), SchedLin(0., 1.), combine_scheds([.25,.75], [SchedLin(1., .5), SchedCos(.5, .2)])]

@pytest.mark.parametrize('sched', scheds)
def test_schedule_against_a_hand_written_loop(sched):
    ref = make_learner()
    picked = reference_fit(ref, 3, pick_two(sched), lr=1e-2)
    learn = make_learner(cbs=HardNegativeMining(sched))
    learn.fit(3, 1e-2)
    assert_same(state(ref), state(learn))
    assert learn.selection.batches.n_kept.tolist()==[len(o) for o in picked]

@pytest.mark.parametrize('sched', scheds)
def test_schedule_values(sched):
    learn = make_learner(cbs=HardNegativeMining(sched))
    learn.fit(3)
    b = learn.selection.batches
    np.testing.assert_allclose(b.sample_perc, [sched(i/18) for i in range(18)], atol=1e-6)
    assert b.n_kept.tolist()==[max(2, math.ceil(n*k)) for n,k in zip(b.n_seen, b.sample_perc)] and b.n_kept.nunique()>3
    assert b.loss_perc.isna().all() and len(learn.selection.record.changes)==0
    assert learn.selection.record.info['settings']=={'sample_perc': f'schedule from {sched(0.):g} to {sched(1.):g}'}

def test_a_schedule_at_zero_keeps_one():
    learn = make_learner(cbs=HardNegativeMining(SchedLin(0., 0.)), model=lambda: nn.Linear(6, 3))
    learn.fit(1)
    assert learn.selection.batches.n_kept.tolist()==[1]*6

@pytest.mark.parametrize('k', [1., 1, SchedLin(1., 1.)])
@pytest.mark.parametrize('plain_every', [0, 2])
def test_all_kept_is_plain_training(k, plain_every):
    def run(cb):
        learn = make_learner(cbs=cb)
        learn.fit_one_cycle(2, 1e-2)
        return learn,random_states()
    (plain,r_plain),(hnm,r_hnm) = run(None),run(HardNegativeMining(k, plain_every=plain_every))
    assert_same(state(plain), state(hnm))
    assert plain.recorder.losses==hnm.recorder.losses and plain.recorder.values[-1][:3]==hnm.recorder.values[-1][:3] and r_plain==r_hnm
    assert hnm.selection.batches.t_score_s.gt(0).all() # it did score

def test_trains_as_blf_without_a_loss_to_reach():
    def run(cb):
        learn = make_learner(cbs=cb)
        learn.fit_one_cycle(2, 1e-2)
        return learn
    hnm,blf = run(HardNegativeMining(.3)),run(BatchLossFilter(0, .3))
    assert_same(state(hnm), state(blf))
    assert all(np.array_equal(a, b) for a,b in zip(hnm.selection.record.losses, blf.selection.record.losses, strict=True))

def test_warm_up_and_the_like_are_passed_on():
    learn = make_learner(cbs=HardNegativeMining(.25, warmup=1, keep_losses=False))
    learn.fit(3)
    e = learn.selection.epochs
    assert e.n_kept.tolist()==[90, 23, 23] and not any(len(o) for o in learn.selection.record.losses) # 5 times 4 of 16, and 3 of 10

def test_changes_in_mid_training():
    class Move(Callback):
        order,run_valid = 99,False
        def after_batch(self):
            if (self.epoch, self.iter)==(0, 1): self.learn.selection.set(sample_perc=.25)
            if (self.epoch, self.iter)==(1, 3): self.learn.selection.set(sample_perc=1.)
    learn = make_learner(cbs=[Move(), HardNegativeMining(.5)])
    learn.fit(2)
    b = learn.selection.batches
    assert b.sample_perc.tolist()==[.5]*2+[.25]*8+[1.]*2 and b.n_kept.tolist()==[8, 8, 4, 4, 4, 3, 4, 4, 4, 4, 16, 10]
    assert learn.selection.record.changes.values.tolist()==[[0, 2, 'sample_perc', .5, .25], [1, 10, 'sample_perc', .25, 1.]]

def test_a_batch_that_is_not_finite_is_kept_whole():
    train,valid = blobs()
    train.ts[0][4] = float('nan')
    learn = make_learner(dls=loaders(train, valid, shuffle=False), model=lambda: nn.Linear(6, 3), cbs=HardNegativeMining(.25))
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('always')
        learn.fit(1, 0.)
    b = learn.selection.batches
    assert not b.finite[0] and b.n_kept[0]==16
    assert sum('not finite' in str(o.message) for o in w)==1

def test_record(tmp_path):
    learn = make_learner(cbs=HardNegativeMining(.25))
    assert learn.selection.method=='HNM' and isinstance(learn.selection, SelectiveTraining)
    learn.fit(1)
    rec = Record.load(learn.selection.record.save(tmp_path/'run.npz'))
    assert rec.method=='HNM' and rec.info['settings']==dict(sample_perc=.25)
    assert rec.batches.n_kept.tolist()==[4]*5+[3] and rec.batches.sample_perc.tolist()==[.25]*6
