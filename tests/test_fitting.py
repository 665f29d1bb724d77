"What belongs to one fit: how it begins, what it refuses, and how another goes on from its saved state."
import numpy as np, pytest, torch
from blf_explore.all import BatchLossFilter, InfoBatch, SelectiveBackprop, SelectiveTraining
from blf_explore.engine.fitting import check_options, check_state, go_on, saved_state
from blf_explore.engine.rows import Filter, LastScores, Queue
from core_tools import *

class InFit(Callback):
    "Keeps what the selection knows of the fit."
    order,run_valid = 99,False
    def before_batch(self): self.fit = self.learn.selection._fit

def test_a_fit_begins():
    learn = make_learner(cbs=[BatchLossFilter(.5, warmup=1, interrupt=3), InFit()])
    assert learn.selection._fit is None and learn.selection.record.batches.empty and learn.selection.fits==[]
    learn.fit(2)
    f,cb = learn.in_fit.fit,learn.selection
    assert cb._fit is None and cb.fits==[cb.record] # the fit is over, its record stays
    assert isinstance(f.step, Filter) and f.when.warmup==1 and f.when.interrupt==3 and f.rehearsed and f.log.record is cb.record
    info = cb.record.info
    assert info['bs']==16 and info['n_iter']==6 and info['n_epoch']==2 and info['settings']==dict(loss_perc=.5, sample_perc=0., warmup=1, interrupt=3)
    learn.fit(1)
    assert learn.in_fit.fit is not f and len(cb.fits)==2 and cb.fits[1] is cb.record

def test_a_queue_begins_with_what_waits():
    learn = make_learner(cbs=[SelectiveBackprop(1., warmup=0), InFit()])
    learn.fit(1)
    assert isinstance(learn.in_fit.fit.step, Queue) and learn.in_fit.fit.step.bs==16 and len(learn.in_fit.fit.step)==0

def test_the_draws_of_a_fit_follow_the_seed():
    "And take nothing from the training's random numbers."
    def run(seed, cb):
        learn = make_learner(seed, cbs=cb)
        learn.fit(1, 0.)
        return learn.selection.batches.n_kept.tolist(),random_states()
    a,b,c,plain = run(1, SelectiveBackprop(warmup=0)),run(1, SelectiveBackprop(warmup=0)),run(2, SelectiveBackprop(warmup=0)),run(1, SelectiveTraining())
    assert a==b and a[0]!=c[0] and a[1][1]==plain[1][1]

@pytest.mark.parametrize('kw,words', [
    (dict(warmup=-1), 'warmup=-1'), (dict(warmup=1.5), 'warmup=1.5'), (dict(interrupt=-2), 'interrupt=-2'), (dict(start=.6, end=.5), 'start=0.6'),
    (dict(start=lambda p: p), 'start is a schedule'), (dict(stale=-1), 'stale=-1'), (dict(plain_every=None), 'plain_every=None'), (dict(queue=1), 'queue=1'),
    (dict(after_mix='no'), "after_mix='no'"), (dict(scale_factor=0), 'scale_factor=0'), (dict(scale_factor=True), 'scale_factor=True'), (dict(switch=1.5), 'switch=1.5')])
def test_options_that_are_refused(kw, words):
    "When the callback is made, and again when a fit begins with what was assigned since."
    says(lambda: SelectiveTraining(**kw), words)
    learn = make_learner(cbs=[SelectiveTraining(selector=lambda s: s), Trained()])
    for k,v in kw.items(): setattr(learn.selection, k, v)
    says(lambda: check_options(learn.selection), words)
    says(lambda: learn.fit(1), words)
    assert learn.trained.steps==[] and learn.selection._fit is None

# ---- saved state

@pytest.mark.parametrize('state,words', [({}, 'state is a dict, not of SB'), (None, 'state is a NoneType'), (dict(method='BLF'), 'state is of BLF, not of SB')])
def test_what_is_no_saved_state(state, words):
    says(lambda: check_state(state, 'SB'), words, 'give what state_dict() of this method returned')
    says(lambda: SelectiveBackprop().load_state_dict(state), words)

class Saves(Callback):
    order,run_valid = 100,False
    def after_epoch(self):
        if self.epoch==0: self.saved = saved_state(self.learn.selection)

@pytest.mark.parametrize('make', [lambda: SelectiveBackprop(2., warmup=0, stale=1), lambda: InfoBatch(.5), lambda: BatchLossFilter(.5, queue=True)])
def test_saved_and_gone_on(make, tmp_path):
    "Read with `weights_only`, put into another callback, and saved there again: the same."
    learn = make_learner(cbs=[make(), Saves()])
    learn.fit(2)
    torch.save(learn.saves.saved, tmp_path/'state.pth')
    again = torch.load(tmp_path/'state.pth', weights_only=True)
    other = make_learner(7, cbs=make())
    other.create_opt()
    go_on(other.selection, again, 'cpu')
    got = saved_state(other.selection)
    def words(o): return repr(o).replace('Queue', '') if not isinstance(o, dict) else {k: words(v) for k,v in o.items()}
    assert got['method']==again['method'] and torch.equal(got['gen'], again['gen']) and got['loader']==again['loader']
    assert words(got['memory'])==words(again['memory'])
    if again['known'] is not None: assert isinstance(other.selection.known, LastScores) and torch.equal(got['known']['epochs'], again['known']['epochs'])
    np.testing.assert_array_equal(got['rng'][1][1].numpy(), again['rng'][1][1].numpy())
    assert got['rng'][0]==again['rng'][0] and torch.equal(got['rng'][2], again['rng'][2])

def test_a_saved_state_is_a_copy():
    learn = make_learner(cbs=[SelectiveBackprop(1., warmup=0, stale=1), Saves()])
    learn.fit(3)
    at_first = learn.saves.saved
    assert at_first['known']['epochs'].max()==0 and saved_state(learn.selection)['known']['epochs'].max()>0
