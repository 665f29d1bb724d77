"What training with BatchLossFilter promises, against hand-written loops and against the plain learner."
import copy, functools, pickle, re, warnings
import matplotlib; matplotlib.use('Agg')
import numpy as np, pytest, torch
from fastai.callback.schedule import SchedLin, SchedCos, combine_scheds
from blf_explore.blf import BatchLossFilter, select
from blf_explore.filtering import SelectiveTraining
from blf_explore.record import Record
from core_tools import *

# ---- bit for bit

class ZeroLoss(nn.Module):
    "Exact zeros for two thirds of the samples: all of the loss is reached without them."
    def __init__(self, reduction='mean'):
        super().__init__()
        self.reduction = reduction
    def forward(self, p, y):
        l = F.cross_entropy(p, y, reduction='none')*(y==0)
        return l.mean() if self.reduction=='mean' else l

class Noisy(nn.Module):
    "Draws from torch's and Python's random state in eval mode, too."
    def __init__(self):
        super().__init__()
        self.net = bn_net()
    def forward(self, x): return self.net(x + .1*torch.randn_like(x)) + random.random()*1e-3

class OwnNorm(nn.Module):
    "Statistics that are replaced, not written into."
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(6, 3)
        self.register_buffer('mean', torch.zeros(6))
        self.register_buffer('seen', None)
    def forward(self, x):
        if self.training: self.mean = .9*self.mean + .1*x.detach().mean(0)
        return self.net(x-self.mean)

def trained(blf, n_epoch=2, **kwargs):
    "A learner after `fit_one_cycle`, with BatchLossFilter or without, and the random state that it leaves."
    learn = make_learner(**kwargs)
    if blf is not None: learn.batch_loss_filter(**blf)
    learn.fit_one_cycle(n_epoch, 1e-2)
    return learn,random_states()

@pytest.mark.parametrize('kw', [dict(loss_perc=1.), dict(sample_perc=1.), dict(loss_perc=1, sample_perc=1), dict(loss_perc=0., sample_perc=1), dict(loss_perc=SchedLin(1., 1.))])
@pytest.mark.parametrize('plain_every', [0, 2])
def test_all_kept_is_plain_training(kw, plain_every):
    (plain,r_plain),(blf,r_blf) = trained(None),trained(dict(kw, plain_every=plain_every))
    assert_same(state(plain), state(blf))
    assert plain.recorder.losses==blf.recorder.losses and plain.recorder.values[-1][:3]==blf.recorder.values[-1][:3]
    assert r_plain==r_blf
    assert blf.selection.batches.t_score_s.gt(0).all() # it did score

@pytest.mark.parametrize('case', ['zeros', 'noisy', 'own_norm', 'sgd', 'all_wrong'])
def test_all_kept_is_plain_training_cases(case):
    kw = dict(zeros=dict(loss_func=ZeroLoss()), noisy=dict(model=Noisy), own_norm=dict(model=OwnNorm), sgd=dict(opt_func=SGD),
              all_wrong=dict(loss_func=nn.CrossEntropyLoss(reduction='sum')))[case]
    (plain,r_plain),(blf,r_blf) = trained(None, **kw),trained(dict(loss_perc=1., plain_every=2), **kw)
    assert_same(state(plain), state(blf))
    assert r_plain==r_blf

def test_frozen_batchnorm_and_second_fit():
    "Layers that a user put into eval mode stay there, and a second fit goes on as the plain one would."
    class Freeze(Callback):
        run_valid = False
        def before_train(self): self.model[1].eval()
    def run(blf):
        learn = make_learner(cbs=Freeze())
        if blf: learn.batch_loss_filter(1.)
        learn.fit(1); learn.fit(1, 1e-3)
        return state(learn)
    assert_same(run(False), run(True))

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

def test_random_state_during_scoring():
    "A model that draws in eval mode: a loop that puts the random state back after scoring gives the same numbers."
    ref = make_learner(model=Noisy)
    reference_fit(ref, 2, lambda l, pct: brute_blf(l, .6, .2))
    end = random_states()
    blf = make_learner(model=Noisy).batch_loss_filter(.6, .2, plain_every=2)
    blf.fit(2)
    assert_same(state(ref), state(blf))
    assert end==random_states() and blf.selection.batches.n_kept.sum()<180

def test_gradients_seen_by_nobody_else():
    "`.grad` from before a batch survives scoring and the timing of a plain step."
    class Watch(Callback):
        order,run_valid = 56,False # right after the selection
        def before_batch(self):
            for p,g in zip(self.model.parameters(), grads): assert p.grad is g and (g==7).all()
        def after_pred(self):
            for p in self.model.parameters(): p.grad = None
        def after_batch(self):
            grads[:] = [torch.full_like(p, 7) for p in self.model.parameters()]
            for p,g in zip(self.model.parameters(), grads): p.grad = g
    grads = []
    make_learner(cbs=Watch()).batch_loss_filter(.5, plain_every=1).fit(1)
    assert grads

def test_scoring_sees_eval_mode_and_no_grad():
    seen = []
    class Spy(nn.Linear):
        def forward(self, x):
            seen.append((self.training, torch.is_grad_enabled(), len(x)))
            return super().forward(x)
    make_learner(model=nn.Sequential(Spy(6, 3))).batch_loss_filter(.5, plain_every=0).fit(1)
    train = [o for o in seen if o[0]]
    assert len(train)==6 and all(o[1] for o in train) and sum(o[2] for o in train)<90
    assert seen[0]==(False, False, 16) and seen[2]==(False, False, 16)
