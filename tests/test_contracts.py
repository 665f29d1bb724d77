"What training with BatchLossFilter promises, against hand-written loops and against the plain learner."
import copy, functools, itertools, pickle, re, warnings
import matplotlib; matplotlib.use('Agg')
import numpy as np, pytest, torch
from fastai.callback.core import CancelBatchException, CancelEpochException, CancelFitException, CancelTrainException
from fastai.callback.schedule import SchedLin, SchedCos, combine_scheds
from blf_explore.blf import BatchLossFilter, select
from blf_explore.engine.filtering import SelectiveTraining
from blf_explore.engine.record import Record
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

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('wrap', [torch.jit.script, lambda m: torch.compile(m, backend='eager')], ids=['script','compile'])
def test_all_kept_is_plain_training_wrapped(wrap):
    "Networks whose modules keep their mode elsewhere than `nn.Module` does."
    def model(): return wrap(bn_net())
    (plain,_),(blf,_) = trained(None, model=model),trained(dict(loss_perc=1., plain_every=2), model=model)
    assert_same(state(plain), state(blf))
    assert all('training' not in vars(o) or type(o).__module__.startswith('torch.nn') for o in blf.model.modules())
    assert not blf.model.training and not any(o.training for o in blf.model.modules()) # after validation, as fastai leaves it

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

# ---- nothing outlives a fit

class Boom(Exception): pass

class FailingLoss(nn.Module):
    "Raises `exc` at call `at` of those with (or without) gradients; a loss that has a `reduction`."
    def __init__(self, exc=None, at=None, grad=True):
        super().__init__()
        self.reduction,self.exc,self.at,self.grad = 'mean',exc,at,grad
        self.calls = itertools.count(1) # nothing puts this back
    def forward(self, p, y):
        if torch.is_grad_enabled()==self.grad and next(self.calls)==self.at: raise self.exc
        return F.cross_entropy(p, y, reduction=self.reduction)

class FailingNet(nn.Module):
    "Raises `exc` at forward `at` of those in training (or eval) mode, in the middle of the model; one BatchNorm is frozen."
    def __init__(self, exc=None, at=None, training=True):
        super().__init__()
        self.net,self.exc,self.at,self.mode = bn_net(),exc,at,training
        self.calls = itertools.count(1) # nothing puts this back
        self.net[1].register_forward_pre_hook(lambda *_: None) # a user's own hook stays
    def forward(self, x):
        x = self.net[:3](x)
        if self.training==self.mode and next(self.calls)==self.at: raise self.exc
        return self.net[3:](x)

class Freeze(Callback):
    run_valid = False
    def before_train(self): self.model.net[1].eval()

class FailingCallback(Callback):
    def __init__(self, exc, event, at=3, order=0):
        self.fail,self.event,self.hit_at,self.hits,self.order = exc,event,at,0,order
    def _hit(self, event):
        if event!=self.event or not self.training: return
        self.hits += 1
        if self.hits==self.hit_at: raise self.fail
for _e in ('before_batch','after_pred','after_loss','before_backward','after_backward','before_step','after_step','after_batch'):
    setattr(FailingCallback, _e, functools.partialmethod(FailingCallback._hit, _e))

def hooks(model): return [(len(o._forward_pre_hooks), len(o._forward_hooks), len(o._backward_hooks)) for o in model.modules()]

def traces(learn):
    "What a fit could leave changed, besides what it trained."
    return dict(loss_func=id(learn.loss_func), reduction=learn.loss_func.reduction, metrics=[id(o) for o in learn.metrics],
                cbs=[id(o) for o in learn.cbs], hooks=hooks(learn.model), logger=learn.logger, dls=id(learn.dls),
                grad=torch.is_grad_enabled(), modes=[o.training for o in learn.model.modules()])

fit_ends = dict(
    loss_scoring=lambda e: dict(loss_func=FailingLoss(e, 5, grad=False)), loss_training=lambda e: dict(loss_func=FailingLoss(e, 5)),
    loss_first=lambda e: dict(loss_func=FailingLoss(e, 1)), model_scoring=lambda e: dict(model=FailingNet(e, 9, training=False)),
    model_first=lambda e: dict(model=FailingNet(e, 1)), model_training=lambda e: dict(model=FailingNet(e, 5)),
    **{f'{ev}_{order}': (lambda e, ev=ev, order=order: dict(cbs=FailingCallback(e, ev, order=order)))
       for ev in ('before_batch','after_pred','after_loss','before_step','after_batch') for order in (0, 58)})

@pytest.mark.parametrize('where', fit_ends)
@pytest.mark.parametrize('exc', [RuntimeError('boom'), KeyboardInterrupt(), CancelFitException(), CancelTrainException(), CancelEpochException(), CancelBatchException()],
                         ids=lambda o: type(o).__name__)
def test_nothing_is_left_behind(where, exc):
    if type(exc) is CancelBatchException and where.startswith('after_batch'): return # fastai has no handler for it there
    kw = fit_ends[where](exc)
    kw = dict(dict(model=FailingNet, loss_func=FailingLoss()), **kw)
    kw['cbs'] = L(kw.get('cbs')) + Freeze()
    learn = make_learner(**kw).batch_loss_filter(.5, plain_every=0)
    before = traces(learn)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        if type(exc) in (RuntimeError, KeyboardInterrupt):
            with pytest.raises(type(exc)): learn.fit(2)
            assert {k: v for k,v in traces(learn).items() if k!='modes'}=={k: v for k,v in before.items() if k!='modes'}
            assert [o.training for o in learn.model.modules()]==[o is not learn.model.net[1] for o in learn.model.modules()]
        else:
            learn.fit(2)
            assert {k: v for k,v in traces(learn).items() if k!='modes'}=={k: v for k,v in before.items() if k!='modes'}
    # and what comes after is a fit like any other
    learn.fit(1)
    b = learn.selection.batches
    assert len(b)==6 and b.n_seen.sum()==90 and b.n_kept.sum()<90 and len(learn.selection.epochs)==1
    learn.remove_cb(BatchLossFilter)
    learn.fit(1)
    assert learn.validate()[0]>0

@pytest.mark.parametrize('exc,words', [(Boom, ''), (Boom('said so'), 'said so'), (ValueError('x', 2), 'x')])
@pytest.mark.parametrize('at', [1, 2, 9])
@pytest.mark.parametrize('plain_every', [0, 2])
def test_the_users_exception_arrives(exc, words, at, plain_every):
    "Of its own type and with its own words, wherever it was raised."
    for kw in dict(loss_func=FailingLoss(exc, at)),dict(model=FailingNet(exc, at)):
        learn = make_learner(**kw).batch_loss_filter(.5, plain_every=plain_every)
        with pytest.raises(exc if isinstance(exc, type) else type(exc), match=words): learn.fit(2)

def test_interrupted_then_removed_is_plain():
    "After Ctrl-C and removal the learner trains as one that never had the callback."
    def run(blf):
        learn = make_learner(loss_func=FailingLoss())
        if blf:
            learn.loss_func.exc,learn.loss_func.at = KeyboardInterrupt(),1 # the first scoring: nothing has trained yet
            learn.batch_loss_filter(.5)
            with pytest.raises(KeyboardInterrupt): learn.fit(1)
            learn.remove_cb(BatchLossFilter)
        random.seed(5); torch.manual_seed(5)
        learn.model.load_state_dict({k: v for k,v in make_learner().model.state_dict().items()})
        random.seed(5); torch.manual_seed(5)
        learn.dls.train.rng = random.Random(5)
        learn.fit(2, 1e-2, reset_opt=True)
        return learn
    plain,blf = run(False),run(True)
    assert_same(state(plain), state(blf))
    assert blf.recorder.metric_names==plain.recorder.metric_names

def test_cancelled_batches_in_the_record():
    "A cancelled epoch or train phase keeps the rows of the batches that trained, the last one too."
    for exc,n in (CancelTrainException, 3),(CancelEpochException, 3),(CancelFitException, 3):
        learn = make_learner(cbs=FailingCallback(exc(), 'after_batch', at=3)).batch_loss_filter(.5)
        learn.fit(1)
        assert len(learn.selection.batches)==n and learn.selection.batches.n_seen.tolist()==[16]*3
    for event in 'before_batch','after_pred','after_loss':
        learn = make_learner(cbs=FailingCallback(CancelTrainException(), event, at=3, order=58)).batch_loss_filter(.5)
        learn.fit(1)
        assert len(learn.selection.batches)==2
