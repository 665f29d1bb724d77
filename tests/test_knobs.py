"Settings: their ranges, schedules and changes in mid-training, and when a method selects."
import math
from fractions import Fraction
import numpy as np, pytest, torch
from fastai.callback.core import Callback
from fastai.callback.schedule import combine_scheds, SchedCos, SchedLin
from blf_explore.blf import BatchLossFilter
from blf_explore.all import ImportanceSampling, SelectiveTraining, TopLoss
from blf_explore.blf import select
from blf_explore.coreset import CoreSet
from blf_explore.engine.knobs import count, in_words
from blf_explore.hnm import hardest
from blf_explore.sb import rank_draw
from core_tools import *
from references import hand_learner, loss_of, steps_by_hand, top

@pytest.mark.parametrize('kw', [dict(loss_perc=1.5), dict(loss_perc=-1), dict(sample_perc=2), dict(loss_perc='x'), dict(loss_perc=None), dict(loss_perc=float('nan')),
                                dict(loss_perc=0, sample_perc=0), dict(loss_perc=SchedLin(.5, 1.5)), dict(sample_perc=lambda pct: 'no'), dict(loss_perc=True)])
def test_bad_settings_change_nothing(kw):
    "One sentence that names the argument and what is accepted, at once; the learner keeps what it had."
    learn = make_learner().batch_loss_filter(.7)
    old,cbs = learn.selection,list(learn.cbs)
    for f in (lambda: learn.batch_loss_filter(**kw), lambda: BatchLossFilter(**kw), lambda: learn.selection.set(**kw)):
        with pytest.raises(ValueError) as e: f()
        msg = str(e.value)
        assert next(iter(kw)) in msg and '1' in msg and '0' in msg and '\n' not in msg and '. ' not in msg
        val = next(iter(kw.values()))
        if not callable(val): assert repr(val) in msg
    assert learn.selection is old and list(learn.cbs)==cbs and old.loss_perc==.7 and old.sample_perc==0
    learn.fit(1)

def test_bad_assignment_stops_before_training():
    learn = make_learner().batch_loss_filter()
    before = state(learn)
    learn.selection.loss_perc = 1.5
    with pytest.raises(ValueError, match='loss_perc=1.5 is not accepted'): learn.fit(1)
    now = state(learn)
    assert all(torch.equal(before[k], now[k]) for k in before)
    learn.selection.loss_perc = .5
    learn.fit(1)
    class Bad(Callback):
        def after_batch(self):
            if self.training and self.iter==2: self.learn.selection.sample_perc = 'half'
    with pytest.raises(ValueError, match="sample_perc='half'"): learn.fit(1, cbs=Bad())
    assert len(learn.selection.batches)==3

def test_unknown_setting():
    with pytest.raises(ValueError, match='beta=2'): make_learner().batch_loss_filter().selection.set(beta=2)

# ---- settings that move

def test_schedules():
    sched = combine_scheds([.25,.75], [SchedLin(1., .5), SchedCos(.5, .2)])
    learn = make_learner().batch_loss_filter(sched, sample_perc=SchedLin(.3, .1))
    learn.fit(3)
    b = learn.selection.batches
    pcts = np.arange(18)/18
    np.testing.assert_allclose(b.loss_perc, [sched(o) for o in pcts], atol=1e-6)
    np.testing.assert_allclose(b.sample_perc, .3-.2*pcts, atol=1e-6)
    for losses,row in zip(learn.selection.record.losses, b.itertuples()):
        assert max(2, len(brute_blf(losses, row.loss_perc, row.sample_perc)))==row.n_kept
    assert len(learn.selection.record.changes)==0 # a schedule that runs is no change
    assert learn.selection.record.info['settings']==dict(loss_perc='schedule from 1 to 0.2', sample_perc='schedule from 0.3 to 0.1')

@pytest.mark.parametrize('by', ['set', 'assign'])
def test_changes_in_mid_training(by):
    class Move(Callback):
        order = 99
        def after_batch(self):
            if not self.training: return
            def put(**kw): self.learn.selection.set(**kw) if by=='set' else [setattr(self.learn.selection, k, v) for k,v in kw.items()]
            if (self.epoch, self.iter)==(0, 1): put(loss_perc=.2)
            if (self.epoch, self.iter)==(1, 3): put(loss_perc=0., sample_perc=.75)
            if (self.epoch, self.iter)==(1, 4): put(loss_perc=0.) # no change
            if (self.epoch, self.iter)==(2, 0): put(loss_perc=SchedLin(1., 1.))
    learn = make_learner(cbs=Move()).batch_loss_filter(.9)
    learn.fit(3)
    b,c = learn.selection.batches,learn.selection.record.changes
    assert b.loss_perc.tolist()==[.9]*2 + [.2]*4 + [.2]*4 + [0.]*2 + [0.] + [1.]*5
    assert b.sample_perc.tolist()==[0.]*10 + [.75]*8
    for losses,row in zip(learn.selection.record.losses, b.itertuples()):
        assert max(2, len(brute_blf(losses, row.loss_perc, row.sample_perc)))==row.n_kept
    assert list(c.columns)==['epoch','batch','setting','old','new']
    assert c.values.tolist()==[[0, 2, 'loss_perc', .9, .2], [1, 10, 'loss_perc', .2, 0.], [1, 10, 'sample_perc', 0., .75], [2, 13, 'loss_perc', 0., 1.]]
    assert learn.selection.record.info['settings']==dict(loss_perc=.9, sample_perc=0.) # as the run began

@pytest.mark.parametrize('kw', [dict(score='loss'), dict(score=None), dict(selector='hardest'), dict(selector=5), dict(keep_losses='a')], ids=case)
def test_what_is_no_function_is_told_at_once(kw):
    k,v = next(iter(kw.items()))
    with pytest.raises(ValueError, match=f'^{k}={v!r} is not accepted'): SelectiveTraining(**kw)

# ---- when and how, with every method

def six(batches): return [(e, i) for e in range(4) for i in batches]

@double
@pytest.mark.parametrize('kw,on', [
    (dict(), six(range(6))),
    (dict(warmup=1), six(range(6))[6:]),
    (dict(warmup=4), []),
    (dict(start=.5, end=.75), [(2, i) for i in range(6)]), # batches 12 to 17 of 24
    (dict(start=.3, end=.8), [(1, 2), (1, 3), (1, 4), (1, 5), *[(2, i) for i in range(6)], (3, 0), (3, 1)]), # 7.2/24 and 19.2/24
    (dict(start=1/3, end=2/3), [(1, 2), (1, 3), (1, 4), (1, 5), *[(2, i) for i in range(4)]]), # 8 to 15
    (dict(interrupt=2), six([0, 2, 4])), (dict(interrupt=4), six([0, 1, 2, 4, 5])), (dict(interrupt=1), []),
    (dict(warmup=1, start=.1, end=.9, interrupt=3), [(e, i) for e,i in six([0, 1, 3, 4]) if (1, 0)<=(e, i)<(3, 4)])]) # 21.6/24
@pytest.mark.parametrize('queue', [False, True])
def test_when(kw, on, queue):
    "Which batches are selected from, listed by hand; the others train whole, and nothing was scored for them."
    learn = learner(SelectiveTraining(selector=top, queue=queue, plain_every=0, **kw))
    learn.fit(4, .05)
    b = learn.selection.batches
    assert [(e, i%6) for e,i,n in zip(b.epoch, b.batch, b.n_scored) if n]==on
    sizes = [10 if i==5 else 16 for _,i in six(range(6))]
    assert b.n_seen.tolist()==sizes and b.n_kept.tolist()==[round(n*.4) if o in on else n for n,o in zip(sizes, six(range(6)))]
    want = hand_learner(.05)
    which = iter(six(range(6)))
    pick = lambda scores: top(scores, .4 if next(which) in on else 1.)
    for x,y,w in steps_by_hand(want, 4, pick, queue):
        loss_of(want.model, x, y, w).backward()
        want.opt.step(); want.opt.zero_grad()
    close(learn, want)

@double
@pytest.mark.parametrize('name', METHODS)
def test_when_of_every_method(name):
    learn = learner(PRESETS[name](warmup=1, start=.1, end=.9, interrupt=3, queue=False))
    learn.fit(4, .05)
    b = learn.selection.batches
    at = [(e, i%6) for e,i in zip(b.epoch, b.batch)]
    if name in BY_EPOCH: # asked once an epoch, when it begins: at 0, 1/4, 1/2 and 3/4
        assert (learn.selection.epochs.n_kept<90).tolist()==[False, True, True, True] and b.n_scored.sum()==0
        return
    on = [(e, i) for e,i in six([0, 1, 3, 4]) if (1, 0)<=(e, i)<(3, 4)]
    assert all(k==n for k,n,o in zip(b.n_kept, b.n_seen, at) if o not in on)
    assert {o for o,n in zip(at, b.n_scored) if n}==(set() if name=='PFB' else set(on))
    assert sum(k for k,o in zip(b.n_kept, at) if o in on) < sum(n for n,o in zip(b.n_seen, at) if o in on)

# ---- counts as a person computes them

def exact(n, pct): return math.ceil(Fraction(pct, 100)*n)

def test_every_count_is_exact():
    "Every n up to 512 with every whole percentage, and with tenths of one, written as `.07` or computed as `7/100`; floating point alone is one off."
    off = 0
    for n in range(513):
        for pct in range(101):
            assert count(n, pct/100)==count(n, float(f'{pct/100:.2f}'))==exact(n, pct), (n, pct)
            off += math.ceil(n*(pct/100))!=exact(n, pct)
        for k in range(0, 1001, 7): assert count(n, k/1000)==math.ceil(Fraction(k, 1000)*n)
    assert off>50

def test_counts_of_simple_fractions_and_of_computed_shares():
    for n in range(1, 513):
        for k in (2, 3, 6, 7, 9): assert count(n, 1/k)==math.ceil(Fraction(1, k)*n) and count(n, (k-1)/k)==math.ceil(Fraction(k-1, k)*n)
        assert count(n, 1-.93)==exact(n, 7) and count(n, .1+.2)==exact(n, 30) and count(n, np.float32(.07).item())==exact(n, 7)
        for k in (1, n//2, n): assert count(n, k/n)==k

# pairs where floating point alone would keep one too many, or too few
TRICKY = [(n, pct) for n in range(1, 513) for pct in range(1, 100) if math.ceil(n*(pct/100))!=exact(n, pct)]

class Told(SelectiveTraining):
    def __init__(self, n): super().__init__(); self.features = torch.randn(n, 2, generator=gen())

KEPT = dict(BLF=lambda losses, s: len(select(losses, 0., s).idxs), HNM=lambda losses, s: len(hardest(losses, s).idxs), rank=lambda losses, s: len(rank_draw(losses, s, gen()).idxs),
            importance=lambda losses, s: len(ImportanceSampling(s).draw(losses, s).idxs), CoreSet=lambda losses, s: len(CoreSet.cover(Told(len(losses)), losses, s).idxs),
            TopLoss=lambda losses, s: top_loss(losses, s))

def top_loss(losses, s):
    p = losses.clone().requires_grad_()
    TopLoss(lambda p, y, reduction='mean': p if reduction=='none' else p.mean(), s)(p, losses).backward()
    return int((p.grad>0).sum())

@pytest.mark.parametrize('name', KEPT)
def test_every_rule_keeps_the_exact_count(name):
    assert len(TRICKY)>50
    for n,pct in TRICKY:
        if n<=200 or name!='CoreSet': assert KEPT[name](torch.rand(n, generator=gen(n))+.01, pct/100)==exact(n, pct), (n, pct)

@pytest.mark.parametrize('name', ['BLF','HNM','rank','importance','CoreSet','RHO','PFB'])
def test_every_method_keeps_the_exact_count(name):
    "In a fit: 7 of a batch of 100 at .07, where `ceil(100*.07)` is 8."
    assert math.ceil(100*.07)==8
    kw = dict(loss_perc=0.) if name=='BLF' else {}
    make = PRESETS[name] if name!='RHO' else lambda **kw: RHOLoss(torch.zeros(100), **kw)
    learn = fitted(1, dls=lambda: loaders(*blobs(n=100), bs=100), cbs=make(sample_perc=.07, **kw))
    assert learn.selection.batches.n_kept.tolist()==[7]

def test_settings_in_words():
    assert in_words(.5)==.5 and in_words(SchedLin(1., .25))=='schedule from 1 to 0.25' and type(in_words(np.float64(.5))) is float
