"Interrupted, and resumed in another learner: the uninterrupted run bit for bit."
import contextlib
import numpy as np, pandas as pd, pytest, torch
from fastai.callback.core import CancelEpochException, CancelFitException
from fastai.callback.schedule import SchedLin
from blf_explore.all import BLS, CoreSet, InfoBatch, PartialForwardBlocking, SelectiveTraining, SeTa
from blf_explore.blf import BatchLossFilter
from blf_explore.importance import ImportanceSampling, TauSwitch
from blf_explore.sb import RankSelectiveBackprop, SelectiveBackprop
from core_tools import *

RESUMED = dict(
    plain=lambda: SelectiveTraining(),
    BLF=lambda: BatchLossFilter(loss_perc=SchedLin(.9, .5)),
    BLF_queue=lambda: BatchLossFilter(loss_perc=.5, queue=True, interrupt=4),
    SB=lambda: SelectiveBackprop(beta=2., history=50),
    SB_stale=lambda: SelectiveBackprop(beta=1., history=50, stale=2),
    SB_filter=lambda: SelectiveBackprop(queue=False, warmup=0, stale=1),
    rank=lambda: RankSelectiveBackprop(start=.25, end=.75),
    importance=lambda: ImportanceSampling(tau_th=0),
    importance_tau=lambda: ImportanceSampling(tau_th=.8), # not reached before the interruption
    importance_queue=lambda: ImportanceSampling(sample_perc=.4, tau_th=0, queue=True),
    switched_BLF=lambda: BatchLossFilter(loss_perc=.5, switch=TauSwitch(tau_th=.8)),
    InfoBatch=lambda: InfoBatch(prune=.5, delta=.75),
    SeTa=lambda: SeTa(.2, 4, .5, 1.),
    BLS=lambda: BLS(.5, 1., .7),
    CoreSet=lambda: CoreSet(sample_perc=.5),
    PFB=lambda: PartialForwardBlocking(sample_perc=.5, start=0., end=1., n_centres=30))

class Ends(Callback):
    "Saves what a resumed run needs when an epoch has ended, and interrupts the run in one of several ways."
    order = 100
    def __init__(self, how, folder): self.how,self.folder = how,folder
    def save(self, learn):
        learn.save('model', with_opt=True)
        torch.save(learn.selection.state_dict(), self.folder/'selection.pth')
    def after_epoch(self):
        if self.epoch!=1: return
        if self.how=='raise': self.save(self.learn)
        if self.how=='finish': raise CancelFitException
        if self.how=='ctrl-c': raise KeyboardInterrupt
    def after_batch(self):
        if self.how=='raise' and self.training and self.epoch==2 and self.iter==1: raise RuntimeError('no power')

def tidy(d): return d[[o for o in d if not o.startswith('t_') and o not in ('train_loss','overhead_pct')]].reset_index(drop=True)

@double
@pytest.mark.parametrize('name,how,cut', [(o, 'raise', cut) for o in RESUMED for cut in (False, True)] +
                         [(o, how, False) for o in ('BLF_queue','SB_stale','importance') for how in ('finish','ctrl-c','shorter')])
def test_resumed_is_uninterrupted(tmp_path, name, how, cut):
    """Four epochs at once, or two, and two more in a fresh learner: the same parameters, optimizer state, selections and random
    numbers. With `cut`, every epoch is cancelled in the middle, so that a queue is not empty when the run is interrupted."""
    def new(seed): return learner([CutShort(4, CancelEpochException)] if cut else None, seed, path=tmp_path, opt_func=Adam,
                                  model=lambda: nn.Sequential(net(), nn.Dropout(.1))).add_cb(RESUMED[name]())
    def fit(learn, n, **kwargs): learn.fit(n, 1e-2, **kwargs) if how=='shorter' else learn.fit_one_cycle(n, 1e-2, **kwargs)
    whole = new(1)
    fit(whole, 4)
    want,rnd = state(whole),random_states()

    first = new(1)
    ends = Ends(how, tmp_path)
    if how=='shorter': fit(first, 2)
    else:
        ended = contextlib.nullcontext() if how=='finish' else pytest.raises((RuntimeError, KeyboardInterrupt))
        with ended: fit(first, 4, cbs=ends)
    if how!='raise': ends.save(first)
    if cut and 'queue' in name: assert torch.load(tmp_path/'selection.pth')['queue']
    del first

    second = new(9)
    second.load('model', with_opt=True)
    assert second.selection.load_state_dict(torch.load(tmp_path/'selection.pth', weights_only=True)) is second.selection
    fit(second, 4, start_epoch=2)
    assert_same(state(second), want)
    assert random_states()==rnd
    a,b = whole.selection.record,second.selection.record
    last = (a.batches.epoch>=2).tolist()
    assert sum(last)==len(b.batches)>0
    for i,o in zip([i for i,l in enumerate(last) if l and a.losses], b.losses): np.testing.assert_array_equal(a.losses[i], o)
    x,y = tidy(a.batches[last]),tidy(b.batches)
    y['batch'] += x.batch[0]-y.batch[0]
    pd.testing.assert_frame_equal(x, y)
    np.testing.assert_array_equal(a.batches.train_loss[last], b.batches.train_loss)
    if not cut: pd.testing.assert_frame_equal(tidy(a.epochs[2:]), tidy(b.epochs))
