"`SelectiveTraining` in fastai's loop: bit for bit the plain run where all is kept, what it promises otherwise, and nothing that outlives a fit."
import functools, itertools, math, random, warnings
import numpy as np, pytest, torch
from fastai.basics import BCEWithLogitsLossFlat, MSELossFlat
from fastai.callback.core import (Callback, CancelBatchException, CancelEpochException, CancelFitException,
                                  CancelTrainException)
from fastai.callback.mixup import MixUp
from fastai.callback.schedule import SchedLin
from fastai.callback.training import GradientClip
from fastai.losses import LabelSmoothingCrossEntropyFlat
from fastai.torch_core import params
from functools import partial
from torch import nn
from blf_explore.all import InfoBatch, RHOLoss, Selection, SelectiveTraining
from blf_explore.blf import BatchLossFilter
from blf_explore.hnm import HardNegativeMining
from blf_explore.importance import ImportanceSampling, TauSwitch
from blf_explore.sb import SelectiveBackprop
from core_tools import *
from references import fit_by_hand, make, Some, top, weighted

# ---- losses of every kind train, and select what they should

def regression(): return Rows(torch.randn(60, 4), torch.randn(60)),Rows(torch.randn(20, 4), torch.randn(20))
def multi_label(): return Rows(torch.randn(60, 4), (torch.rand(60, 3)>.5).float()),Rows(torch.randn(20, 4), (torch.rand(20, 3)>.5).float())
def pixels(): return Rows(torch.randn(60, 1, 4, 5), torch.randint(0, 3, (60, 4, 5))),Rows(torch.randn(20, 1, 4, 5), torch.randint(0, 3, (20, 4, 5)))
def tokens(): return Rows(torch.randint(0, 9, (60, 7)), torch.randint(0, 9, (60, 7))),Rows(torch.randint(0, 9, (20, 7)), torch.randint(0, 9, (20, 7)))
def branchy(p, y):
    loss = F.mse_loss(p.squeeze(-1), y)
    return loss if loss<100 else loss*.5

problems = dict(
    regression=(regression, lambda: nn.Linear(4, 1), MSELossFlat()), branchy=(regression, lambda: nn.Linear(4, 1), branchy),
    multi_label=(multi_label, lambda: nn.Linear(4, 3), BCEWithLogitsLossFlat()), multi_label_f=(multi_label, lambda: nn.Linear(4, 3), F.binary_cross_entropy_with_logits),
    pixels=(pixels, lambda: nn.Conv2d(1, 3, 1), CrossEntropyLossFlat(axis=1)), pixels_plain=(pixels, lambda: nn.Conv2d(1, 3, 1), lambda p, y: F.cross_entropy(p, y)),
    tokens=(tokens, lambda: nn.Embedding(9, 9), CrossEntropyLossFlat()), tokens_plain=(tokens, lambda: nn.Embedding(9, 9), lambda p, y: F.cross_entropy(p.flatten(0, 1), y.flatten())),
    partial=(blobs, bn_net, functools.partial(F.cross_entropy, label_smoothing=.1)))

@pytest.mark.parametrize('name', problems)
def test_losses_train(name):
    "Against the hand-written loop, which takes each sample's loss by calling the loss function on that sample."
    data,net,lf = problems[name]
    def make():
        return make_learner(dls=lambda: loaders(*data()), model=net, loss_func=lf, metrics=None)
    ref = make()
    picked = reference_fit(ref, 2, lambda l, pct: brute_blf(l, .6, .2), lr=1e-2)
    blf = make().batch_loss_filter(.6, .2, plain_every=2)
    blf.fit(2, 1e-2)
    assert blf.selection.batches.n_kept.tolist()==[len(o) for o in picked]
    for (k,a),b in zip(state(ref).items(), state(blf).values()): torch.testing.assert_close(a, b, msg=k)
    assert blf.loss_func is lf

# ---- numbers that are not numbers

@quiet
@pytest.mark.parametrize('bad', [float('nan'), float('inf'), -float('inf')])
def test_not_finite(bad):
    def lf(p, y, reduction='mean'):
        l = F.cross_entropy(p, y.clamp(max=2), reduction='none')
        l = torch.where(y==9, l.detach()*0+bad, l)
        return l.mean() if reduction=='mean' else l
    train,valid = blobs()
    train.ts[1][[3, 20, 77]] = 9
    learn = make_learner(dls=loaders(train, valid, shuffle=False), loss_func=lf, metrics=None, cbs=Spy()).batch_loss_filter(.5)
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('always')
        learn.fit(1, 0.)
        assert len([o for o in w if 'finite' in str(o.message)])==1
    b = learn.selection.batches
    assert b.finite.astype(bool).tolist()==[False, False, True, True, False, True]
    assert b.n_kept[~b.finite.astype(bool)].tolist()==[16, 16, 16] and (b.n_kept[b.finite.astype(bool)]<10).all()
    assert [len(yb[0]) for _,yb in learn.spy.seen]==b.n_kept.tolist()
    assert torch.equal(learn.spy.seen[0][1][0], train.ts[1][:16]) # whole, and in its own order
    assert not np.isfinite(b.train_loss[0]) # the divergence shows

def test_batch_of_one_and_last_short_batch():
    for bs,sizes in (1, [1]*5),(4, [4,1]),(64, [5]):
        train = Rows(torch.randn(5, 4), torch.randn(5))
        learn = make_learner(dls=loaders(train, train, bs=bs), model=lambda: nn.Linear(4, 1), loss_func=MSELossFlat(), metrics=None)
        learn.batch_loss_filter(.5, plain_every=1).fit(1)
        assert learn.selection.batches.n_seen.tolist()==sizes and (learn.selection.batches.n_kept>=1).all()

def test_at_least_one_is_kept():
    "All losses zero; settings that ask for nothing at the start of a schedule."
    from fastai.callback.schedule import SchedLin
    zero = lambda p, y, reduction='mean': (p.sum(1)*0).mean() if reduction=='mean' else p.sum(1)*0
    net = lambda: nn.Linear(6, 3)
    learn = make_learner(model=net, loss_func=zero, metrics=None).batch_loss_filter(.5)
    learn.fit(1)
    assert learn.selection.batches.n_kept.tolist()==[1]*6
    learn = make_learner(model=net).batch_loss_filter(SchedLin(0., .8), SchedLin(0., .1))
    learn.fit(2)
    assert learn.selection.batches.n_kept[0]==1 and learn.selection.batches.n_kept.max()>1

# ---- bit for bit

class ZeroLoss(nn.Module):
    "Exact zeros for two thirds of the samples: all of the loss is reached without them."
    def __init__(self, reduction='mean'):
        super().__init__()
        self.reduction = reduction
    def forward(self, p, y):
        l = F.cross_entropy(p, y, reduction='none')*(y==0)
        return l.mean() if self.reduction=='mean' else l

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

def hooks(model): return [(len(o._forward_pre_hooks), len(o._forward_hooks), len(o._backward_hooks)) for o in model.modules()]

def traces(learn):
    "What a fit could leave changed, besides what it trained."
    return dict(loss_func=id(learn.loss_func), reduction=learn.loss_func.reduction, metrics=[id(o) for o in learn.metrics],
                cbs=[id(o) for o in learn.cbs], hooks=hooks(learn.model), logger=learn.logger, dls=id(learn.dls),
                grad=torch.is_grad_enabled(), modes=[o.training for o in learn.model.modules()])

fit_ends = dict(
    loss_scoring=lambda e: dict(loss_func=FailingLoss(e, 5, grad=False)), loss_training=lambda e: dict(loss_func=FailingLoss(e, 5)),
    loss_first=lambda e: dict(loss_func=FailingLoss(e, 1)), model_scoring=lambda e: dict(model=FailingNet(e, 12, training=False)),
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

# ---- attaching, replacing, removing

def test_batch_loss_filter_returns_the_learner_and_replaces():
    learn = make_learner()
    n = len(learn.cbs)
    assert learn.batch_loss_filter() is learn
    assert learn.selection.loss_perc==.9 and learn.selection.sample_perc==0
    first = learn.selection
    assert learn.batch_loss_filter(.5, .1) is learn and learn.selection is not first
    assert len(learn.cbs)==n+1 and learn.selection.loss_perc==.5 and learn.selection.sample_perc==.1
    assert learn.batch_loss_filter(loss_perc=.4, sample_perc=.2).selection.loss_perc==.4
    learn.fit(1)
    assert learn.remove_cb(BatchLossFilter) is learn and len(learn.cbs)==n and not hasattr(learn, 'selection')
    assert callable(learn.batch_loss_filter) and learn.batch_loss_filter().selection is not first

def test_by_cbs():
    a = make_learner(cbs=BatchLossFilter(.5))
    b = make_learner(); b.batch_loss_filter(.5)
    c = make_learner()
    for learn in a,b: # made in turn from the same seed, trained in turn from another
        random.seed(4); torch.manual_seed(4); learn.dls.train.rng = random.Random(4)
        learn.fit(2)
    random.seed(4); torch.manual_seed(4); c.dls.train.rng = random.Random(4)
    cb = BatchLossFilter(.5)
    c.fit(2, cbs=cb)
    assert_same(state(a), state(b)); assert_same(state(a), state(c))
    assert a.selection.batches.n_kept.tolist()==cb.batches.n_kept.tolist()
    assert not hasattr(c, 'selection') and callable(c.batch_loss_filter)
    assert make_learner(cbs=BatchLossFilter).selection.loss_perc==.9 # fastai takes the class, too

def test_removed_is_as_if_never_there():
    def run(blf):
        learn = make_learner(cbs=GradientClip())
        if blf: learn.batch_loss_filter(.3).fit(1); learn.remove_cb(BatchLossFilter)
        else: learn.fit(1)
        learn.model.load_state_dict(make_learner().model.state_dict())
        random.seed(9); torch.manual_seed(9); learn.dls.train.rng = random.Random(9)
        learn.fit_one_cycle(2, 1e-2, reset_opt=True)
        return learn
    a,b = run(False),run(True)
    assert_same(state(a), state(b))
    assert a.recorder.values==b.recorder.values and a.recorder.metric_names==b.recorder.metric_names
    assert [type(o) for o in a.cbs]==[type(o) for o in b.cbs]

def test_two_selections_are_refused():
    learn = make_learner().batch_loss_filter(.5)
    first,before = learn.selection,state(learn)
    with pytest.raises(ValueError, match='two'): learn.fit(1, cbs=BatchLossFilter(.1))
    assert_same(before, {k: v for k,v in state(learn).items() if k in before})
    learn.fit(1)
    assert learn.selection is first and len(first.epochs)==1

class Early(Callback):
    "Raises before the selection, in a batch that is not a full one."
    order = 10
    def __init__(self, exc): self.exc,self.sizes = exc,[]
    def before_batch(self):
        if not self.training: return
        self.sizes.append(len(self.xb[0]))
        if len(self.xb[0])!=16 and self.exc is not None: raise self.exc

@pytest.mark.parametrize('exc', [CancelBatchException(), CancelTrainException(), CancelEpochException(), CancelFitException()], ids=lambda o: type(o).__name__)
def test_an_earlier_callback_may_cancel_what_the_queue_still_holds(exc):
    learn = make_learner(dls=full_batches, cbs=[SelectiveBackprop(), Early(exc)])
    s = fit_quietly(learn)
    left = [o for o in learn.early.sizes if o!=16]
    assert left # there was something to cancel
    if isinstance(exc, CancelBatchException): assert (s.batches.n_kept-s.batches.n_trained).sum()==sum(left) and len(s.epochs)==3

@pytest.mark.parametrize('exc', [KeyboardInterrupt(), ZeroDivisionError('said so')], ids=lambda o: type(o).__name__)
def test_an_earlier_callbacks_exception_is_what_arrives(exc):
    with pytest.raises(type(exc)): fit_quietly(make_learner(dls=full_batches, cbs=[SelectiveBackprop(), Early(exc)]))

def test_an_earlier_callback_sees_the_rows_that_are_trained_on():
    learn = make_learner(dls=full_batches, cbs=[SelectiveBackprop(), Early(None)])
    class Late(Callback):
        order,sizes = 80,[]
        def before_batch(self):
            if self.training and len(self.xb[0])!=16 and self.learn.early.sizes[-1]!=16: self.sizes.append(len(self.xb[0]))
    learn.add_cb(Late())
    fit_quietly(learn, 6)
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
    with pytest.warns(UserWarning, match='not finite') as w: s = fit_quietly(learn)
    assert len([o for o in w if 'not finite' in str(o.message)])==1
    b = s.batches
    assert b.finite[:6].all()
    assert not b.finite[10:].any() and (b.n_kept[b.epoch==2 if s.by_epoch else b.batch>=10]==16).all() # two batches later nothing is skipped any more

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
    s = fit_quietly(make_learner(dls=full_batches, cbs=InfoBatch(switch=switch)), 4)
    assert len(switch.sizes)==len(s.batches)<24 and (s.epochs.n_kept[1:]<96).any()

def test_a_switch_is_shown_whole_batches_or_none():
    def score(f, p, y): return nn.functional.cross_entropy(p, y, reduction='none')
    switch = Noted(0, score=score) # the method's own: reused scores and new ones together
    fit_quietly(make_learner(dls=lambda: loaders(*blobs(n=90)), cbs=HardNegativeMining(.5, stale=1, switch=switch, score=score)), 4)
    assert sorted(switch.sizes)==4*[10]+20*[16]
    # another: only where all are scored anew
    switch = Noted(0)
    fit_quietly(make_learner(dls=full_batches, cbs=HardNegativeMining(.5, stale=1, switch=switch)), 4)
    assert set(switch.sizes)=={16}

def test_methods_that_weight_refuse_class_weights():
    w = torch.tensor([1., 2., 3.])
    for method in (ImportanceSampling, InfoBatch):
        for lf in (CrossEntropyLossFlat(weight=w), LabelSmoothingCrossEntropyFlat(weight=w), nn.CrossEntropyLoss(weight=w), partial(nn.functional.cross_entropy, weight=w)):
            learn = make_learner(cbs=method(), loss_func=lf)
            before = [p.clone() for p in learn.model.parameters()]
            with pytest.raises(ValueError, match='neither the mean nor the sum'): fit_quietly(learn)
            assert all(torch.equal(a, b) for a,b in zip(before, learn.model.parameters()))
    fit_quietly(make_learner(cbs=SelectiveBackprop(), loss_func=CrossEntropyLossFlat(weight=w)), 2) # it weights nothing

@double
@pytest.mark.parametrize('pick', [top, Some, weighted])
def test_the_loop_itself(pick):
    "The plainest case, so that a difference found below is not the loop's own."
    a = learner(SelectiveTraining(selector=make(pick), plain_every=3), model=bare)
    a.fit(2, .1)
    close(a, fit_by_hand(2, pick, model=bare))
    b = fit_by_hand(2, lambda s: Selection(top(s).idxs[1:]), model=bare) # and it can differ
    assert any((x-y).abs().max()>1e-4 for x,y in zip(a.model.parameters(), b.model.parameters()))

@double
@pytest.mark.parametrize('name,queue', [(o, q) for o in METHODS for q in (False, True) if not q or o in QUEUING])
def test_never_on_is_plain(name, queue):
    "Bit for bit, dropout and BatchNorm included, though every batch was watched."
    def run(cb):
        learn = make_learner(cbs=cb and [cb()], loss_func=CrossEntropyLossFlat())
        learn.fit_one_cycle(2, 1e-2)
        return state(learn)
    torch.set_default_dtype(torch.float32)
    assert_same(run(lambda: PRESETS[name](warmup=2, queue=queue, plain_every=2)), run(None))

COMBINED = dict(queue=dict(queue=True), no_queue=dict(queue=False), stale=dict(stale=1, queue=False),
                stale_queue=dict(stale=2, queue=True), small=dict(scale_factor=.5), after=dict(after_mix=True), after_queue=dict(after_mix=True, queue=True, stale=1),
                often=dict(interrupt=2, warmup=1, queue=True), switch=dict(switch='tau'))

@double
@pytest.mark.parametrize('combined', COMBINED)
@pytest.mark.parametrize('name', METHODS)
def test_every_method_with_everything(name, combined):
    "Every method with every way of stepping: nothing is lost, no step is empty, and all ends with finite weights."
    kw = dict(COMBINED[combined])
    if 'switch' in kw: kw['switch'] = TauSwitch(tau_th=.5) # its running mean begins at 0
    torch.set_default_dtype(torch.float32)
    train,valid = stripes(90)
    learn = make_learner(cbs=[PRESETS[name](plain_every=3, **kw), Trained(), *([MixUp()] if combined.startswith('after') else [])],
                         dls=lambda: loaders(train, valid), model=image_net, loss_func=CE(), metrics=None)
    if name=='CoreSet' and kw.get('stale'): # its features are of one moment
        with pytest.raises(ValueError, match='stale=. is not accepted'): learn.fit(1)
        return
    if name=='PFB' and (kw.get('queue') or kw.get('stale')): # its scores and its kept rows are of this very forward
        with pytest.raises(ValueError, match='(queue|stale)=.* is not accepted'): learn.fit(1)
        return
    learn.fit_one_cycle(3, 1e-2)
    b,bs = learn.selection.batches,16
    assert (len(b)<=18 if name in BY_EPOCH else len(b)==18) and all(o.isfinite().all() for o in learn.model.state_dict().values())
    assert (b.n_kept>0).all() and (b.n_kept<=b.n_seen).all() and b.n_kept.sum()<b.n_seen.sum()
    steps = learn.trained.steps
    if not learn.selection.queue:
        assert [len(o) for o in steps]==b.n_trained.tolist()==b.n_kept.tolist()
    else:
        assert b.groupby('epoch').n_trained.sum().tolist()==b.groupby('epoch').n_kept.sum().tolist()
        assert set(b.n_trained[b.epoch==b.epoch.shift(-1)])<={0, bs}
    if kw.get('stale') and name not in BY_EPOCH: assert b[b.epoch==1].n_scored.sum()<90
    if name in (*BY_EPOCH,'PFB'): assert b.n_scored.sum()==0
    assert [o for m in learn.model.modules() for o in (*m._forward_hooks, *m._forward_pre_hooks)]==[]

class Breaks(Callback):
    "Ctrl-C in the middle of a batch that was selected from: while scoring, in the forward, behind the loss, in the step."
    order = 99
    def __init__(self, where): self.where = where
    def before_fit(self):
        if self.where!='scoring': return
        def stop(*_):
            if not self.learn.model.training and self.epoch==2: raise KeyboardInterrupt
        self.hook = self.learn.model.register_forward_hook(stop)
    def _at(self, where):
        if self.where==where and self.training and self.epoch==2 and self.iter>=2: raise KeyboardInterrupt
    def after_pred(self): self._at('forward')
    def after_loss(self): self._at('loss')
    def before_step(self): self._at('step')

@double
@pytest.mark.parametrize('name,where', [(o, w) for o in METHODS for w in ('scoring','forward','loss','step')
                                        if w!='scoring' or o not in (*BY_EPOCH,'PFB')]) # they score nothing
def test_nothing_outlives_ctrl_c(name, where):
    "Interrupted in mid-batch, and the callback removed: the learner then trains as one that never had it."
    torch.set_default_dtype(torch.float32)
    def new(*cbs): return make_learner(cbs=[MixUp(), GradientClip(), *cbs], dls=lambda: loaders(*stripes(90)), model=image_net_bn,
                                       loss_func=CE())
    plain,sel = new(),new(PRESETS[name](plain_every=2))
    cbs,lf = [type(o) for o in plain.cbs],sel.loss_func
    breaks = Breaks(where)
    with pytest.raises(KeyboardInterrupt): sel.fit(4, 1e-2, cbs=breaks)
    if where=='scoring': breaks.hook.remove()
    assert all(o.training for o in sel.model.modules()) and torch.is_grad_enabled() and not torch.is_autocast_enabled('cpu')
    sel.mix_up.after_train() # which fastai leaves out when interrupted, with or without this callback
    assert sel.loss_func is lf and lf.reduction=='mean'
    sel.remove_cb(SelectiveTraining)
    assert [type(o) for o in sel.cbs]==cbs and not hasattr(sel, 'selection')
    assert [o for m in sel.model.modules() for o in (*m._forward_hooks, *m._forward_pre_hooks, *m._backward_hooks)]==[]
    sel.model.load_state_dict(new().model.state_dict())
    for learn in plain,sel:
        reseed(learn)
        learn.opt = None
        for p in learn.model.parameters(): p.grad = None
        learn.fit_one_cycle(2, 1e-2)
    assert_same(state(plain), state(sel))
    for o in 'metric_names','values': assert getattr(plain.recorder, o)==getattr(sel.recorder, o)

def image_net_bn():
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Dropout(.2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))

# ---- several fits of one training

@pytest.mark.parametrize('name', ['BLF','SB','InfoBatch'])
def test_fine_tune_is_two_fits(name, tmp_path):
    "Both are in `fits`, can be joined and saved; warm-up is counted anew in each, as is the method's memory."
    from blf_explore.engine.record import joined, load
    learn = make_learner(cbs=PRESETS[name](warmup=1) if name!='BLF' else BatchLossFilter(.5, warmup=1), splitter=lambda m: [params(m[:3]), params(m[3:])], path=tmp_path)
    learn.fine_tune(3, freeze_epochs=2)
    a,b = learn.selection.fits
    assert b is learn.selection.record and (len(a.epochs), len(b.epochs))==(2, 3)
    for r in (a, b):
        e = r.epochs
        assert e.n_kept[0]==e.n_seen[0]==90 and e.n_kept[1:].max()<90 # the first epoch of each fit is trained plainly
    both = joined(learn.selection.fits)
    assert both.epochs.epoch.tolist()==[0, 1, 2, 3, 4] and both.epochs.n_kept.tolist()==a.epochs.n_kept.tolist()+b.epochs.n_kept.tolist()
    both.save(tmp_path/'both.npz')
    again = load(tmp_path/'both.npz')
    assert again.epochs.n_kept.tolist()==both.epochs.n_kept.tolist() and again.epochs.accuracy_.tolist()==both.epochs.accuracy_.tolist()
    learn.fit(1)
    assert len(learn.selection.fits)==3 and learn.selection.fits[:2]==[a, b]

def test_a_fit_that_was_broken_off_is_in_its_fits():
    learn = make_learner(cbs=[BatchLossFilter(.5), FailingCallback(KeyboardInterrupt(), 'before_step', at=8)])
    with pytest.raises(KeyboardInterrupt): learn.fit(3)
    learn.fit(1)
    assert [len(o.batches) for o in learn.selection.fits]==[7, 6] and [len(o.epochs) for o in learn.selection.fits]==[1, 1]

def test_neither_a_validation_nor_a_search_is_a_fit():
    learn = make_learner(cbs=BatchLossFilter(.5), bar=True)
    learn.validate()
    with learn.no_bar(): learn.lr_find(num_it=5, show_plot=False)
    assert learn.selection.fits==[]
