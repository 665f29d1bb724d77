"What the tests of the core share: tiny learners, and the reference loops that they are compared with."
import math, random
import pytest, torch
from torch import nn
import torch.nn.functional as F
from fastai.basics import Adam, Callback, CrossEntropyLossFlat, DataLoader, DataLoaders, L, Learner, SGD
import fastai.callback.schedule

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
    f = getattr(getattr(learn, 'selection', None), '_fit', None)
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

def brute_blf(losses, loss_perc, sample_perc):
    "FACTS' rule in plain Python: positions, hardest first."
    losses = [float(o) for o in losses]
    order = sorted(range(len(losses)), key=lambda i: -losses[i]) # stable
    total = 0.
    for i in order: total += losses[i]
    if loss_perc==1: m = len(losses)
    else:
        m,mass = 0,0.
        while mass < loss_perc*total:
            mass += losses[order[m]]
            m += 1
    return order[:max(1, m, math.ceil(len(losses)*sample_perc))]

def reference_fit(learn, n_epoch, pick, lr=None, loss_one=None):
    """Train `learn`'s model by a hand-written loop: score in eval mode without gradients, `pick(losses, pct)` the rows, train on them.
    Returns the positions picked, batch by batch."""
    model,lf = learn.model,learn.loss_func
    loss_one = loss_one or (lambda p, y: torch.stack([lf(p[i:i+1], y[i:i+1]) for i in range(len(y))]))
    if learn.opt is None: learn.create_opt()
    if learn.wd is not None: learn.opt.set_hypers(wd=learn.wd)
    learn.opt.set_hypers(lr=learn.lr if lr is None else lr)
    picked,pct = [],0.
    for epoch in range(n_epoch):
        pct = epoch/n_epoch
        model.train()
        for x,y in learn.dls.train:
            before = torch.get_rng_state(),random.getstate()
            model.eval()
            with torch.no_grad(): losses = loss_one(model(x), y)
            model.train()
            torch.set_rng_state(before[0]); random.setstate(before[1])
            idxs = pick(losses, pct)
            picked.append(idxs)
            if len(idxs)<len(y): x,y = x[idxs],y[idxs]
            lf(model(x), y).backward()
            learn.opt.step()
            learn.opt.zero_grad()
            pct += 1/(len(learn.dls.train)*n_epoch)
        model.eval()
        with torch.no_grad():
            for x,_ in learn.dls.valid: model(x)
    return picked

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
    assert [len(o) for o in rec.losses]==b.n_seen.tolist()
