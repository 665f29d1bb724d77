"What the tests share: tiny learners, data and networks for them, and every method with settings that suit them."
import dataclasses, functools, random, types
from collections import OrderedDict, UserDict
import pytest, torch
from torch import nn
import torch.nn.functional as F
from fastai.basics import Adam, Callback, CrossEntropyLossFlat, DataLoader, DataLoaders, fastuple, L, Learner, SGD
from fastai.callback.core import CancelTrainException
import fastai.callback.schedule
from blf_explore.all import (BatchLossFilter, BLS, CoreSet, HardNegativeMining, ImportanceSampling, InfoBatch, PartialForwardBlocking,
                             RankSelectiveBackprop, RHOLoss, SelectiveBackprop, SelectiveTraining, SeTa)
from references import brute_blf, reference_fit

double = pytest.mark.usefixtures('double_precision')

class Rows(torch.utils.data.Dataset):
    "Rows of tensors, as items of a dataset that fastai batches."
    def __init__(self, *ts): self.ts = ts
    def __len__(self): return len(self.ts[0])
    def __getitem__(self, i): return tuple(o[i] for o in self.ts)
    def new_empty(self): return Rows(*[o[:0] for o in self.ts]) # for `learn.export`

def blobs(n=90, n_valid=20, d=6, c=3, seed=0):
    "A small classification problem: (train, valid) datasets."
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(c, d, generator=g)*1.5
    def make(n):
        y = torch.randint(0, c, (n,), generator=g)
        return Rows(centres[y] + torch.randn(n, d, generator=g), y)
    return make(n), make(n_valid)

def loaders(train, valid=None, bs=16, shuffle=True, **kwargs):
    dls = [DataLoader(train, bs=bs, shuffle=shuffle, drop_last=False, num_workers=0)]
    if valid is not None: dls.append(DataLoader(valid, bs=bs, num_workers=0))
    return DataLoaders(*dls, device='cpu', **kwargs)

def bn_net(d=6, c=3): # BatchNorm and dropout: both would show a scoring pass that is not careful
    return nn.Sequential(nn.Linear(d, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(.3), nn.Linear(12, c))

def case(settings):
    "A test case's name. Two processes that share the tests must find the same names, so no object's address is in it."
    def named(v): return getattr(v, '__name__', type(v).__name__) if callable(v) else str(v)
    return '-'.join(f'{k}={named(v)}' for k,v in settings.items()) or 'as it is'

def accuracy_(p, y): return (p.argmax(1)==y).float().mean()

def make_learner(seed=1, cbs=None, model=None, dls=None, loss_func=None, metrics=accuracy_, opt_func=Adam, path='.', bar=False, **kwargs):
    "A learner that is the same for the same seed, down to the order of its batches."
    random.seed(seed); torch.manual_seed(seed)
    dls = loaders(*blobs()) if dls is None else dls() if callable(dls) else dls
    model = bn_net() if model is None else model() if not isinstance(model, nn.Module) else model
    learn = Learner(dls, model, loss_func=CrossEntropyLossFlat() if loss_func is None else loss_func, metrics=metrics, cbs=cbs,
                    opt_func=opt_func, path=path, **kwargs)
    learn.logger = noop_log
    if not bar and hasattr(learn, 'progress'): learn.remove_cb(learn.progress)
    return learn

def tries_out(learn):
    "Whether the selection is trying the learner out, before the first batch of a fit: forwards that belong to no batch."
    f = getattr(getattr(learn, 'selection', None), '_fit', None) if learn is not None else None
    return f is not None and not f.rehearsed

def noop_log(*_): pass # unlike fastai's `noop`, which stands for "no table at all"

def state(learn):
    "Everything that training moves: parameters, buffers, the optimizer's state."
    res = {k: v.clone() for k,v in learn.model.state_dict().items()}
    if learn.opt is not None:
        for i,p in enumerate(learn.opt.all_params()):
            res |= {f'opt.{i}.{k}': (v.clone() if isinstance(v, torch.Tensor) else torch.tensor(float(v))) for k,v in sorted(learn.opt.state[p[0]].items())}
    return res

def random_states():
    "torch's and Python's random state, as something that `==` compares."
    return torch.get_rng_state().tolist(), random.getstate()

def assert_same(a, b):
    "Two states are equal bit for bit."
    assert a.keys()==b.keys()
    for k in a: assert torch.equal(a[k], b[k]), k

def differs(a, b): return any(not torch.equal(a[k], b[k]) for k in a)

quiet = pytest.mark.filterwarnings('ignore')

class Spy(Callback):
    "What the training step saw, batch by batch."
    order,run_valid = 99,False
    def before_fit(self): self.seen = []
    def before_batch(self): self.seen.append((self.xb, self.yb))

class Noisy(nn.Module):
    "Draws from torch's and Python's random state in eval mode, too."
    def __init__(self):
        super().__init__()
        self.net = bn_net()
    def forward(self, x): return self.net(x + .1*torch.randn_like(x)) + random.random()*1e-3

def trained(blf, n_epoch=2, **kwargs):
    "A learner after `fit_one_cycle`, with BatchLossFilter or without, and the random state that it leaves."
    learn = make_learner(**kwargs)
    if blf is not None: learn.batch_loss_filter(**blf)
    learn.fit_one_cycle(n_epoch, 1e-2)
    return learn,random_states()

class FailingCallback(Callback):
    def __init__(self, exc, event, at=3, order=0):
        self.fail,self.event,self.hit_at,self.hits,self.order = exc,event,at,0,order
    def _hit(self, event):
        if event!=self.event or not self.training: return
        self.hits += 1
        if self.hits==self.hit_at: raise self.fail
for _e in ('before_batch','after_pred','after_loss','before_backward','after_backward','before_step','after_step','after_batch'):
    setattr(FailingCallback, _e, functools.partialmethod(FailingCallback._hit, _e))

def fit_quietly(learn, n=3):
    with learn.no_bar(), learn.no_logging(): learn.fit(n, 1e-2)
    return learn.selection

def full_batches(): return loaders(*blobs(n=96)) # 6 of 16

def net(d=6, c=3): return nn.Sequential(nn.Flatten(), nn.Linear(d, 10), nn.BatchNorm1d(10), nn.Tanh(), nn.Linear(10, c))
def bare(d=6, c=3): return nn.Sequential(nn.Flatten(), nn.Linear(d, 10), nn.Tanh(), nn.Linear(10, c))

class CE(nn.CrossEntropyLoss): y_int = True # as fastai's own says of itself: MixUp may take its loss at both labels

class ShownLoss(Callback):
    "The loss that is shown and recorded, not the one that goes backward, in the precision that fastai's Recorder has."
    order,run_valid = 99,False
    def after_loss(self): self.learn.loss = self.learn.loss.float()

def learner(cbs=None, seed=1, model=net, opt_func=SGD, loss_func=None, **kwargs):
    cbs = [ShownLoss(), *(cbs if isinstance(cbs, (list,tuple)) else [] if cbs is None else [cbs])]
    return make_learner(seed, cbs, model=model, opt_func=opt_func, loss_func=loss_func or CE(), metrics=None, **kwargs)

def close(a, b, tol=1e-9):
    "Two learners hold the same parameters and buffers, to rounding."
    a,b = [o.model.state_dict() for o in (a,b)]
    assert a.keys()==b.keys()
    for k in a: torch.testing.assert_close(a[k], b[k], rtol=tol, atol=tol, msg=lambda m: f'{k}: {m}')

# ---- every method

HOLDOUT = torch.linspace(0, .5, 90)
PRESETS = dict(
    plain=lambda **kw: SelectiveTraining(**kw),
    BLF=lambda **kw: BatchLossFilter(**dict(loss_perc=.6) | kw),
    HNM=lambda **kw: HardNegativeMining(**dict(sample_perc=.4) | kw),
    SB=lambda **kw: SelectiveBackprop(**dict(beta=1.) | kw),
    rank=lambda **kw: RankSelectiveBackprop(**dict(start=0., end=1., interrupt=0) | kw),
    importance=lambda **kw: ImportanceSampling(**dict(sample_perc=.5) | ({} if 'switch' in kw else dict(tau_th=0)) | kw),
    CoreSet=lambda **kw: CoreSet(**dict(sample_perc=.4) | kw),
    RHO=lambda **kw: RHOLoss(HOLDOUT, **dict(sample_perc=.4) | kw),
    InfoBatch=lambda **kw: InfoBatch(**dict(warmup=1, delta=1.) | kw),
    SeTa=lambda **kw: SeTa(**dict(prune=.1, groups=5, window=.6, delta=1.) | kw),
    BLS=lambda **kw: BLS(**dict(warmup=1, delta=1.) | kw),
    PFB=lambda **kw: PartialForwardBlocking(**dict(sample_perc=.4, start=0., end=1.) | kw))
METHODS = [o for o in PRESETS if o!='plain']
QUEUING = [o for o in METHODS if o!='PFB'] # whose kept samples may wait for a full batch: PFB's are in the middle of a forward
BY_EPOCH = ('InfoBatch','SeTa','BLS') # they choose whole epochs: what they leave out is not loaded

class CutShort(Callback):
    "Ends the epoch's training, or the epoch, after so many batches."
    def __init__(self, n, what=CancelTrainException, order=0): self.n,self.what,self.order = n,what,order
    def after_batch(self):
        if self.training and self.iter==self.n-1: raise self.what

class Trained(Callback):
    "Which samples each step took, and of how many batches fastai was told; by their first input, which is another in every sample."
    order,run_valid = 99,False
    def before_fit(self): self.steps = []
    def before_step(self): self.steps.append(self.xb[0][:,0].tolist())

# ---- containers of many kinds, with the samples in the first place

@dataclasses.dataclass
class Data:
    x:object
    more:object=None

class OwnDict(OrderedDict): pass

WRAPS = dict( # how to wrap a tensor, and how to get at it again
    dataclass=(lambda o: Data(o, dict(a=o)), lambda w: w.x), fastuple=(lambda o: fastuple(o, o*2), lambda w: w[0]), L=(lambda o: L(o, o), lambda w: w[0]),
    own_dict=(lambda o: OwnDict(a=o, b=[o]), lambda w: w['a']), user_dict=(lambda o: UserDict(a=o), lambda w: w['a']),
    namespace=(lambda o: types.SimpleNamespace(a=o, kind='x'), lambda w: w.a), deep=(lambda o: dict(a=[Data(fastuple(o, None))]), lambda w: w['a'][0].x[0]))

class Wrapping(nn.Module):
    "A model of samples that come wrapped, or whose output is wrapped."
    def __init__(self, before=lambda o: o, after=lambda o: o): super().__init__(); self.net,self.before,self.after = bn_net(),before,after
    def forward(self, x): return self.after(self.net(self.before(x)))

def wrapped_dls(wrap, of='x', shuffle=True):
    "`blobs`, their inputs or targets wrapped batch by batch."
    class Wrapped(DataLoader):
        def create_batch(self, b):
            xs,ys = map(torch.stack, zip(*b))
            return (wrap(xs), ys) if of=='x' else (xs, wrap(ys))
    train,valid = blobs()
    return DataLoaders(Wrapped(train, bs=16, shuffle=shuffle), Wrapped(valid, bs=16), device='cpu')

# ---- small images, and mixing

def stripes(n=72, n_valid=16, c=3, size=6):
    g = torch.Generator().manual_seed(3)
    y = torch.randint(0, c, (n+n_valid,), generator=g)
    x = torch.randn(n+n_valid, 2, size, size, generator=g) + y[:,None,None,None]*torch.linspace(-1, 1, size)
    return Rows(x[:n], y[:n]),Rows(x[n:], y[n:])

def image_net(): return nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))

class OneHot(nn.Module):
    "A loss of soft labels, without `y_int`: fastai then mixes the labels themselves."
    reduction = 'mean'
    def forward(self, p, y):
        l = -(p.log_softmax(1)*y).sum(1)
        return l.mean() if self.reduction=='mean' else l

def mixing_learner(kind, soft, cbs=None, **kwargs):
    train,valid = stripes()
    if soft: train,valid = [Rows(o.ts[0], F.one_hot(o.ts[1], 3).double()) for o in (train,valid)]
    return learner(cbs, dls=lambda: loaders(train, valid), model=image_net, loss_func=OneHot() if soft else CE(), **kwargs)

def reseed(learn, seed=4):
    random.seed(seed); torch.manual_seed(seed)
    learn.dls.train.rng = random.Random(seed)

# ---- numbered samples, one sentence

def gen(seed=0): return torch.Generator().manual_seed(seed)

def says(f, *parts, exc=ValueError):
    "One sentence of the kind `exc` that has these parts."
    with pytest.raises(exc) as e: f()
    msg = str(e.value).split('\n\t')[-1] # fastai puts the callback and the event before it, on a line of its own
    for o in parts: assert o in msg, msg
    assert '\n' not in msg and '. ' not in msg, msg
    return msg

def fitted(n, lr=1e-2, **kwargs):
    "A learner, trained at once: the next one made is to find the same random state."
    learn = make_learner(**kwargs)
    learn.fit(n, lr)
    return learn

def numbered(n=90, **kwargs):
    "`blobs` with each sample's number beside it, as a second input, that models are told to ignore."
    train,valid = blobs(n, **kwargs)
    def with_number(ds): return Rows(ds.ts[0], torch.arange(len(ds)), ds.ts[1])
    return with_number(train), with_number(valid)

class Ignores(nn.Module):
    "A model of samples, handed samples and their numbers."
    def __init__(self, model): super().__init__(); self.model = model
    def forward(self, x, i): return self.model(x)

def numbered_dls(drop_last=False, workers=0, bs=16, n=90):
    train,valid = numbered(n)
    dls = DataLoaders(DataLoader(train, bs=bs, shuffle=True, drop_last=drop_last, num_workers=workers), DataLoader(valid, bs=16), device='cpu')
    dls.n_inp = 2
    return dls

def exports_and_loads(make, tmp_path):
    "A learner with this callback, exported and loaded, predicts the same and has an empty record."
    from fastai.learner import load_learner
    learn = make_learner(cbs=make(), path=tmp_path)
    learn.fit(2)
    learn.export('l.pkl')
    again = load_learner(tmp_path/'l.pkl')
    assert type(again.selection) is type(learn.selection) and again.selection.epochs.empty
    x = blobs()[1].ts[0]
    with torch.no_grad(): assert torch.equal(again.model.eval()(x), learn.model.eval()(x))

def has_a_record(make, method):
    "Three epochs with this callback are written down under the method's name, with its settings and every batch's scores."
    from blf_explore.engine.record import colors
    learn = make_learner(cbs=make())
    learn.fit(3)
    rec = learn.selection.record
    assert rec.method==method and method in colors
    assert set(rec.info['settings'])>=set(learn.selection.settings)
    b = rec.batches
    assert b.n_kept.sum()<b.n_seen.sum() and set(learn.selection.settings)<=set(b)
    assert [len(o) for o in rec.losses]==(b.n_kept if learn.selection.by_epoch else b.n_seen).tolist() # those left out of an epoch are not seen again
