"Faults that a review found: each is a way in which a fit went wrong without, or with the wrong, word."
import math
from functools import partial
import pytest, torch
from torch import nn
from fastai.callback.core import Callback, CancelBatchException, CancelEpochException, CancelFitException, CancelTrainException
from fastai.losses import LabelSmoothingCrossEntropyFlat
from blf_explore.engine.filtering import SelectiveTraining, join, take
from blf_explore.hnm import HardNegativeMining
from blf_explore.importance import ImportanceSampling, TauSwitch
from blf_explore.infobatch import InfoBatch
from blf_explore.rho import RHOLoss
from blf_explore.sb import RankSelectiveBackprop, SelectiveBackprop
from core_tools import *

def fit(learn, n=3):
    with learn.no_bar(), learn.no_logging(): learn.fit(n, 1e-2)
    return learn.selection

class Early(Callback):
    "Raises before the selection, in a batch that is not a full one."
    order = 10
    def __init__(self, exc): self.exc,self.sizes = exc,[]
    def before_batch(self):
        if not self.training: return
        self.sizes.append(len(self.xb[0]))
        if len(self.xb[0])!=16 and self.exc is not None: raise self.exc

def full_batches(): return loaders(*blobs(n=96)) # 6 of 16

@pytest.mark.parametrize('exc', [CancelBatchException(), CancelTrainException(), CancelEpochException(), CancelFitException()], ids=lambda o: type(o).__name__)
def test_an_earlier_callback_may_cancel_what_the_queue_still_holds(exc):
    learn = make_learner(dls=full_batches, cbs=[SelectiveBackprop(), Early(exc)])
    s = fit(learn)
    left = [o for o in learn.early.sizes if o!=16]
    assert left # there was something to cancel
    if isinstance(exc, CancelBatchException): assert (s.batches.n_kept-s.batches.n_trained).sum()==sum(left) and len(s.epochs)==3

@pytest.mark.parametrize('exc', [KeyboardInterrupt(), ZeroDivisionError('said so')], ids=lambda o: type(o).__name__)
def test_an_earlier_callbacks_exception_is_what_arrives(exc):
    with pytest.raises(type(exc)): fit(make_learner(dls=full_batches, cbs=[SelectiveBackprop(), Early(exc)]))

def test_an_earlier_callback_sees_the_rows_that_are_trained_on():
    learn = make_learner(dls=full_batches, cbs=[SelectiveBackprop(), Early(None)])
    class Late(Callback):
        order,sizes = 80,[]
        def before_batch(self):
            if self.training and len(self.xb[0])!=16 and self.learn.early.sizes[-1]!=16: self.sizes.append(len(self.xb[0]))
    learn.add_cb(Late())
    fit(learn, 6)
    rest = [o for o in learn.early.sizes if o!=16]
    assert rest==learn.late.sizes!=[]

class Diverge(Callback):
    order = 90
    def __init__(self, epoch): self.at = epoch
    def before_batch(self):
        if self.training and self.epoch==self.at and self.iter==2:
            with torch.no_grad(): next(self.model.parameters()).fill_(math.nan)

@pytest.mark.parametrize('make', [InfoBatch, lambda: SelectiveBackprop(warmup=5), lambda: SelectiveBackprop(beta=4., stale=2, queue=False), lambda: RHOLoss(torch.zeros(96), .3, warmup=2)],
                         ids=['InfoBatch', 'warm-up', 'stale', 'RHO-LOSS'])
def test_a_divergence_is_told_and_counted_by_every_method(make):
    learn = make_learner(dls=full_batches, cbs=[make(), Diverge(1)], model=lambda: nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3)))
    with pytest.warns(UserWarning, match='not finite') as w: s = fit(learn)
    assert len([o for o in w if 'not finite' in str(o.message)])==1
    b = s.batches
    assert b.finite[:6].all()
    assert not b.finite[10:].any() and (b.n_kept[10:]==16).all() # two batches later nothing is skipped any more

@pytest.mark.parametrize('share,size', [(.5, None), (.01, 8)])
def test_a_scale_that_the_model_cannot_score_is_told_before_a_step(share, size):
    stepped = []
    class Steps(Callback):
        def after_step(self): stepped.append(1)
    def dls(): return loaders(*blobs(n=96)) if size is None else loaders(*[Rows(torch.rand(n, 1, size, size), torch.randint(0, 3, (n,))) for n in (96, 16)])
    model = None if size is None else lambda: nn.Sequential(nn.Flatten(), nn.Linear(size*size, 3))
    learn = make_learner(dls=dls, model=model, cbs=[RankSelectiveBackprop(scale_factor=share), Steps()])
    with pytest.raises(ValueError, match=f'scale_factor={share}'): fit(learn)
    assert stepped==[]

def test_a_fixed_input_size_is_told_before_a_step():
    def dls(): return loaders(*[Rows(torch.rand(n, 1, 8, 8), torch.randint(0, 3, (n,))) for n in (96, 16)])
    learn = make_learner(dls=dls, model=lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), cbs=RankSelectiveBackprop(scale_factor=.5))
    with pytest.raises(ValueError, match='scale_factor=0.5 is not accepted'): fit(learn)

@pytest.mark.parametrize('kw', [dict(score='loss'), dict(score=None), dict(selector='hardest'), dict(selector=5), dict(keep_losses='a')], ids=case)
def test_what_is_no_function_is_told_at_once(kw):
    k,v = next(iter(kw.items()))
    with pytest.raises(ValueError, match=f'^{k}={v!r} is not accepted'): SelectiveTraining(**kw)

class Noted(TauSwitch):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.sizes = []
    def update(self, state, scores, cb):
        self.sizes.append(len(scores))
        return super().update(state, scores, cb)

def test_a_switch_goes_on_seeing_where_nothing_is_scored():
    "InfoBatch has no scoring forward: also while it selects, the switch is shown what was trained on."
    switch = Noted(0)
    s = fit(make_learner(dls=full_batches, cbs=InfoBatch(switch=switch, queue=False)), 4)
    assert len(switch.sizes)==24 and (s.epochs.n_kept[1:]<96).any()

def test_a_switch_is_shown_whole_batches_or_none():
    def score(f, p, y): return nn.functional.cross_entropy(p, y, reduction='none')
    switch = Noted(0, score=score) # the method's own: reused scores and new ones together
    fit(make_learner(dls=lambda: loaders(*blobs(n=90)), cbs=HardNegativeMining(.5, stale=1, switch=switch, score=score)), 4)
    assert sorted(switch.sizes)==4*[10]+20*[16]
    # another: only where all are scored anew
    switch = Noted(0)
    fit(make_learner(dls=full_batches, cbs=HardNegativeMining(.5, stale=1, switch=switch)), 4)
    assert set(switch.sizes)=={16}

def test_a_staleness_set_in_mid_epoch_marks_no_other_samples():
    "In the first batches nobody asked for the samples' numbers; what of them waits in the queue must not be noted as samples 0, 1, 2."
    seen = set()
    class Set(Callback):
        order = 56
        def after_batch(self):
            if not self.training: return
            if self.iter==2 and self.epoch==0: self.learn.selection.set(stale=1)
            if self.learn.selection.ids is not None: seen.update(self.learn.selection.ids.tolist())
            m = self.learn.selection.memory
            if 'when' in m and self.epoch==0: assert set((m['when']>=0).nonzero()[:,0].tolist())<=seen
    fit(make_learner(dls=full_batches, cbs=[SelectiveBackprop(1., interrupt=2, warmup=0), Set()]), 2)

def test_every_score_of_rho_loss_is_a_difference():
    s = fit(make_learner(dls=full_batches, cbs=RHOLoss(torch.full((96,), 100.), .3, warmup=1)), 2)
    assert all((o<-50).all() for o in s.record.losses)

def test_a_list_with_an_entry_per_sample_goes_with_its_samples():
    boxes = [torch.arange(k) for k in (1, 4, 2, 0)] # of four images; one has four boxes
    b = torch.arange(4),boxes
    x,y = take(b, torch.tensor([2,0]), 4)
    assert x.tolist()==[2,0] and [len(o) for o in y]==[2,1]
    x,y = join([b, (x, y)], [4,2])
    assert x.tolist()==[0,1,2,3,2,0] and [len(o) for o in y]==[1,4,2,0,2,1]
    two = [torch.arange(2), torch.arange(2)+5] # a list of two whole tensors, of a batch of two
    assert [o.tolist() for o in take(two, torch.tensor([1]), 2)]==[[1],[6]]

@pytest.mark.parametrize('n_epoch,plain', [(2,1), (3,1), (4,1), (5,1), (7,1), (8,1), (10,2), (16,2), (20,3)])
def test_the_end_of_infobatch_is_plain_as_published(n_epoch, plain):
    "Epochs at the end without pruning, worked by hand: those e, counted from 1, above .875 n (NUS-HPC-AI-Lab/InfoBatch, infobatch.py)."
    whole = (fit(make_learner(dls=full_batches, cbs=InfoBatch()), n_epoch).epochs.n_kept==96).tolist()[1:] # the first knows no losses
    assert whole==[False]*(n_epoch-1-plain)+[True]*plain

def test_methods_that_weight_refuse_class_weights():
    w = torch.tensor([1., 2., 3.])
    for make in (ImportanceSampling, InfoBatch):
        for lf in (CrossEntropyLossFlat(weight=w), LabelSmoothingCrossEntropyFlat(weight=w), nn.CrossEntropyLoss(weight=w), partial(nn.functional.cross_entropy, weight=w)):
            learn = make_learner(cbs=make(), loss_func=lf)
            before = [p.clone() for p in learn.model.parameters()]
            with pytest.raises(ValueError, match='divides by the class weights'): fit(learn)
            assert all(torch.equal(a, b) for a,b in zip(before, learn.model.parameters()))
    fit(make_learner(cbs=SelectiveBackprop(), loss_func=CrossEntropyLossFlat(weight=w)), 2) # it weights nothing
