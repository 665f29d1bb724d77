"`select` against FACTS' rule, by brute force, on generated losses."
import numpy as np, pytest, torch
from fastai.callback.schedule import combine_scheds, SchedCos, SchedLin
from hypothesis import given, settings, strategies as st
from blf_explore.blf import select
from core_tools import *

# few distinct values give ties; zeros; tiny and huge ones as float32 holds them
values = st.one_of(st.sampled_from([0., 1., 2., .5, 1e-45, 1e-30, 3e38, 7.]), st.floats(0, 2.**100, width=32))
shares = st.one_of(st.sampled_from([0., 1e-9, .1, .25, .3, .5, .9, .99, 1.]), st.floats(0, 1))

@settings(max_examples=600, deadline=None)
@given(st.lists(values, min_size=1, max_size=40), shares, shares)
def test_brute_force(vals, loss_perc, sample_perc):
    if loss_perc==0 and sample_perc==0: loss_perc = .5
    losses = torch.tensor(vals, dtype=torch.float32)
    sel = select(losses, loss_perc, sample_perc)
    assert sel.idxs.dtype==torch.int64 and sel.weights is None
    assert sel.idxs.tolist()==brute_blf(losses, loss_perc, sample_perc)

@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=30), st.integers(0, 16), st.integers(0, 16))
def test_exact_arithmetic(vals, a, b):
    "Whole numbers and sixteenths are exact in floating point: the rule holds to the letter, without rounding."
    if a==b==0: a = 1
    idxs = select(torch.tensor(vals, dtype=torch.float32), a/16, b/16).idxs.tolist()
    kept,total = [vals[i] for i in idxs],sum(vals)
    floor = -(-len(vals)*b//16)
    assert len(set(idxs))==len(idxs)>=max(1, floor)
    assert all(x>=y for x,y in zip(kept, kept[1:]))
    assert all(v<=kept[-1] for i,v in enumerate(vals) if i not in idxs)
    assert 16*sum(kept)>=a*total # reached, by the sample that crosses the line
    if a<16 and len(idxs)>max(1, floor): assert 16*sum(kept[:-1])<a*total # and not before
    if a==16 or b==16: assert len(idxs)==len(vals)

@pytest.mark.parametrize('n', [1, 2, 3, 64])
def test_every_pair_on_equal_losses(n):
    "Ties: equal losses stay in their order, zeros too."
    for fill in (0., 1., 1e-38, 1e38):
        for lp in np.linspace(0, 1, 11):
            for sp in np.linspace(0, 1, 11):
                if lp==0 and sp==0: continue
                losses = torch.full((n,), fill)
                got = select(losses, float(lp), float(sp)).idxs.tolist()
                assert got==list(range(len(got))) and got==brute_blf(losses, lp, sp)

def test_defaults():
    losses = torch.tensor([1., 5., 3., .5, .5])
    assert select(losses).idxs.tolist()==[1, 2, 0]==brute_blf(losses, .9, 0.)
    assert select(losses).weights is None

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype):
    losses = torch.rand(50, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert select(losses, .7).idxs.tolist()==brute_blf(losses.double(), .7, 0)

def test_one_gradient_free_answer():
    "Losses that carry a graph are accepted and left alone."
    losses = torch.rand(9, requires_grad=True)
    before = losses.detach().clone()
    sel = select(losses*1, .5)
    assert not sel.idxs.requires_grad and torch.equal(losses.detach(), before) and losses.grad is None

@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_not_finite_keeps_all(bad):
    assert sorted(select(torch.tensor([1., bad, 2.]), .1).idxs.tolist())==[0, 1, 2]

@pytest.mark.parametrize('name', ['loss_perc', 'sample_perc'])
@pytest.mark.parametrize('val', [1.5, -.1, float('nan'), float('inf'), 'a lot', None, [.5], True])
def test_bad_settings(name, val):
    with pytest.raises(ValueError) as e: select(torch.ones(4), **{name: val})
    msg = str(e.value)
    assert name in msg and repr(val) in msg and '0' in msg and '1' in msg and '\n' not in msg

def test_both_zero():
    with pytest.raises(ValueError, match='loss_perc=0 and sample_perc=0'): select(torch.ones(4), 0, 0.)

# ---- BLF itself

@pytest.mark.parametrize('loss_perc,sample_perc', [(.9, 0.), (.5, 0.), (.2, .4), (0., .3), (0., 1e-9)])
def test_equals_a_hand_written_loop(loss_perc, sample_perc):
    def pick(losses, pct):
        idxs = brute_blf(losses, loss_perc, sample_perc)
        if len(idxs)==1: idxs = sorted(range(len(losses)), key=lambda i: -losses[i])[:2] # this net's BatchNorm cannot train on one row
        return idxs
    ref = make_learner()
    picked = reference_fit(ref, 3, pick, lr=1e-2)
    blf = make_learner().batch_loss_filter(loss_perc, sample_perc, plain_every=3)
    blf.fit(3, 1e-2)
    assert_same(state(ref), state(blf))
    assert differs(state(ref), state(trained(None, 3)[0]))
    b = blf.selection.batches
    assert b.n_kept.tolist()==[len(o) for o in picked]
    assert b.n_seen.tolist()==[16]*5+[10]+[16]*5+[10]+[16]*5+[10]

def test_schedule_against_a_hand_written_loop():
    sched = combine_scheds([.5,.5], [SchedCos(1., .5), SchedLin(.5, .1)])
    ref = make_learner()
    picked = reference_fit(ref, 3, lambda l, pct: brute_blf(l, sched(pct), .5*pct), lr=1e-2)
    blf = make_learner().batch_loss_filter(sched, SchedLin(0., .5))
    blf.fit(3, 1e-2)
    assert_same(state(ref), state(blf))
    b = blf.selection.batches
    assert b.n_kept.tolist()==[len(o) for o in picked]
    assert b.loss_perc.iloc[0]==1 and b.loss_perc.is_monotonic_decreasing and b.sample_perc.is_monotonic_increasing
