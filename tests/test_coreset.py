"Core-sets against brute force and against a loop without any callback."
import itertools, math
import numpy as np, pytest, torch
from fastai.callback.core import CancelFitException
from fastai.callback.schedule import SchedLin
from blf_explore import coreset
from blf_explore.coreset import CoreSet, k_center
from core_tools import *

# ---- k-center

def dist(a, b): return math.sqrt(sum((x-y)**2 for x,y in zip(a, b)))
def radius(pts, idxs): return max(min(dist(p, pts[i]) for i in idxs) for p in pts)

def naive(pts, k, first=None):
    "Farthest point first, by comparing every point with every chosen one."
    if first is None:
        mean = [sum(o)/len(pts) for o in zip(*pts)]
        first = max(range(len(pts)), key=lambda i: (dist(pts[i], mean), -i))
    idxs = [first]
    while len(idxs)<k:
        left = [i for i in range(len(pts)) if i not in idxs]
        idxs.append(max(left, key=lambda i: (min(dist(pts[i], pts[j]) for j in idxs), -i)))
    return idxs

def sets(n, d, g):
    yield torch.rand(n, d, generator=g)
    yield torch.randn(n, d, generator=g)**3 # outliers
    yield torch.randint(0, 3, (n, d), generator=g).float() # ties and duplicates
    yield torch.randn(3, d, generator=g)[torch.randint(0, 3, (n,), generator=g)]*10 + torch.randn(n, d, generator=g) # clusters

def test_k_center_within_twice_the_optimum():
    g,worst,others = gen(),0,0
    for n,d in (1,1),(4,1),(7,2),(8,3),(9,2):
        for pts in sets(n, d, g):
            p = pts.tolist()
            for k in range(1, n+1):
                best = min(radius(p, c) for c in itertools.combinations(range(n), k))
                for first in (None, *range(n)):
                    idxs = k_center(pts, k, first).tolist()
                    assert len(set(idxs))==k and all(0<=i<n for i in idxs)
                    got = radius(p, idxs)
                    assert got<=2*best+1e-6
                    if best>1e-6: worst = max(worst, got/best)
                if best>1e-6: others = max(others, radius(p, range(k))/best)
    assert 1.5<worst and others>2 # the bound is nearly met, and broken by the first k in order

def test_k_center_is_farthest_first():
    g = gen(1)
    for pts in sets(40, 5, g):
        p = pts.tolist()
        for first in (0, 17): assert k_center(pts, 25, first).tolist()==naive(p, 25, first)
    pts = torch.randn(50, 16, generator=g)
    assert k_center(pts, 50).tolist()==naive(pts.tolist(), 50) # from the farthest of the mean
    far = (pts*100).round()+1e4 # all alike but for a small part
    assert k_center(far, 30).tolist()==naive(far.tolist(), 30)
    assert k_center(pts*1e30, 20).tolist()==k_center(pts, 20).tolist() # squares beyond float32
    assert k_center(pts.view(50, 4, 2, 2), 20).tolist()==k_center(pts, 20).tolist()
    for o in (pts.half(), pts.bfloat16(), (pts*100).long()): assert k_center(o, 20).tolist()==naive(o.double().tolist(), 20)
    assert k_center(pts.numpy(), 5).tolist()==k_center(pts.requires_grad_(), 5).tolist()
    assert k_center(pts.double(), np.int64(3), first=np.int64(4)).dtype==torch.int64

def test_k_center_of_duplicates():
    assert k_center(torch.ones(5, 3), 4).tolist()==[0, 1, 2, 3]
    two = torch.tensor([[0.], [0.], [9.], [0.], [9.]])
    idxs = k_center(two, 5).tolist()
    assert sorted(idxs)==list(range(5)) and idxs[:2]==[2, 0] # both places first, and then their copies
    one_apart = torch.full((30, 2), 7.)
    one_apart[11] = 8
    assert k_center(one_apart, 2).tolist()==[11, 0]

@pytest.mark.parametrize('kw,name', [(dict(k=0), 'k=0'), (dict(k=7), 'k=7'), (dict(k=2.), 'k=2.0'), (dict(k=True), 'k=True'), (dict(k=None), 'k=None'),
    (dict(first=6), 'first=6'), (dict(first=-1), 'first=-1'), (dict(first=.5), 'first=0.5'), (dict(features=torch.zeros(0, 3)), 'features'),
    (dict(features=torch.ones(6)), 'features'), (dict(features=torch.full((6, 2), math.nan)), 'features'), (dict(features='abc'), 'features'), (dict(features=None), 'features')])
def test_k_center_refuses(kw, name): says(lambda: k_center(**(dict(features=torch.rand(6, 2), k=2) | kw)), name, 'give')

# ---- core-set batches

def mlp(d=6, c=3, p=0.): return nn.Sequential(nn.Linear(d, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(p), nn.Linear(12, c))
def hooks(model): return sum(len(o._forward_pre_hooks)+len(o._forward_hooks) for o in model.modules())

def test_core_set_against_a_loop():
    "A hand-written loop, which knows the features as the output of all layers but the last: the same samples, the same parameters."
    def new(cbs=None): return make_learner(model=lambda: mlp(p=.3), cbs=cbs)
    a = new(CoreSet(.3))
    chosen = []
    class Note(Callback):
        order = 56
        def before_batch(self):
            if self.training: chosen.append(self.learn.selection.last.selection.idxs.tolist())
    a.fit(2, 1e-2, cbs=Note())
    b,want,losses = new(),[],[]
    b.create_opt(); b.opt.set_hypers(lr=1e-2)
    for _ in range(2):
        for x,y in b.dls.train:
            with torch.no_grad():
                f = b.model.eval()[:-1](x)
                losses.append(F.cross_entropy(b.model[-1](f), y, reduction='none'))
            b.model.train()
            want.append(naive(f.tolist(), math.ceil(.3*len(y))))
            F.cross_entropy(b.model(x[want[-1]]), y[want[-1]]).backward()
            b.opt.step(); b.opt.zero_grad()
        for _ in b.dls.valid: pass # a loader, too, draws a random number when it begins
    assert chosen==want and len(want)==12
    assert_same(state(a), state(b))
    for l,r in zip(losses, a.selection.record.losses): np.testing.assert_allclose(l, r, atol=1e-6) # the record has the losses
    assert hooks(a.model)==0 and a.selection.features is None

def test_core_set_of_all_is_plain():
    assert_same(state(fitted(2, cbs=CoreSet(1.))), state(fitted(2)))

@pytest.mark.parametrize('exc', [KeyboardInterrupt, RuntimeError, CancelFitException])
def test_core_set_hooks_are_gone(exc):
    "However scoring ends, no hook stays; nor does a fit need one to begin."
    calls = itertools.count(1) # nothing puts this back
    class Stops(nn.Linear):
        def forward(self, x):
            if next(calls)==15: raise exc()
            return super().forward(x)
    learn = make_learner(model=lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), Stops(8, 3)), cbs=CoreSet(.5))
    if exc is CancelFitException: learn.fit(1)
    else:
        with pytest.raises(exc): learn.fit(1)
    assert hooks(learn.model)==0
    learn.fit(1)
    assert hooks(learn.model)==0 and set(learn.selection.batches.n_kept)=={5, 8}

def test_core_set_takes_the_last_linear_layer():
    "Of a model of two inputs and several linear layers, one of them in the middle of a branch."
    heads = []
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.body,self.head = nn.Sequential(nn.Linear(3, 8), nn.Tanh()),nn.Linear(8, 3)
            self.last = nn.Linear(3, 3)
        def forward(self, a, b):
            heads.append(self.head(self.body(a)+self.body(b)))
            return self.last(heads[-1])
    train,_ = blobs()
    x,y = train.ts
    dls = loaders(Rows(x[:,:3], x[:,3:], y), Rows(x[:9,:3], x[:9,3:], y[:9]))
    dls.n_inp = 2
    learn = make_learner(dls=dls, model=Two, cbs=CoreSet(.25))
    class Check(Callback):
        order,n = 56,0
        def before_batch(self):
            if self.training:
                assert self.learn.selection.last.selection.idxs.tolist()==naive(heads[-1].detach().tolist(), math.ceil(len(heads[-1])/4))
                self.n += 1
    check = Check()
    learn.fit(1, cbs=check)
    assert check.n==6

def test_core_set_bad_input():
    for bad in (0, 1.5, -.1, None, 'x', True, math.nan, SchedLin(.5, 1.5)): says(lambda: CoreSet(bad), 'sample_perc', 'give')
    learn = make_learner(cbs=CoreSet(.5))
    says(lambda: learn.selection.set(sample_perc=0), 'sample_perc=0')
    says(lambda: learn.selection.set(loss_perc=.5), 'no setting of core-set')
    before = state(learn)
    learn.selection.stale = 2
    says(lambda: learn.fit(1), 'stale=2', 'CoreSet')
    assert_same(before, {k: v for k,v in state(learn).items() if k in before})
    says(lambda: make_learner(cbs=CoreSet(stale=1)).fit(1), 'stale=1')

def test_core_set_needs_a_linear_layer():
    class Conv(nn.Sequential):
        def __init__(self): super().__init__(nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 3, 6), nn.Flatten())
    learn = make_learner(model=Conv, cbs=CoreSet(.5))
    before = state(learn)
    says(lambda: learn.fit(1), 'model=Conv', 'nn.Linear', 'CoreSet')
    assert_same(before, {k: v for k,v in state(learn).items() if k in before})
    class Tokens(nn.Module): # its last linear layer is given a row per token, not per sample
        def __init__(self): super().__init__(); self.lin = nn.Linear(2, 3)
        def forward(self, x): return self.lin(x.reshape(-1, 2)).view(len(x), 3, 3).mean(1)
    says(lambda: make_learner(model=Tokens, cbs=CoreSet(.5)).fit(1), 'shape (48, 2)', 'batch of 16')
    class Unused(nn.Module):
        def __init__(self): super().__init__(); self.lin,self.spare = nn.Linear(6, 3),nn.Linear(3, 3)
        def forward(self, x): return self.lin(x)
    says(lambda: make_learner(model=Unused, cbs=CoreSet(.5)).fit(1), 'nothing', 'CoreSet')

def test_core_set_of_features_that_are_not_finite():
    class Inf(nn.Module): # the loss is finite, one feature is not
        def forward(self, x): return torch.cat([x, torch.full((len(x), 1), math.inf)], 1)
    class Head(nn.Linear):
        def forward(self, x): return F.linear(x[:,:-1], self.weight[:,:-1], self.bias)
    learn = make_learner(model=lambda: nn.Sequential(Inf(), Head(7, 3)), cbs=CoreSet(.5))
    learn.fit(1)
    assert (learn.selection.batches.n_kept==learn.selection.batches.n_seen).all()

def test_core_set_of_a_compiled_model():
    "Compiled before or after a first call, the features are found, and the samples are those of the model that is not compiled."
    kept = []
    class Note(Callback):
        order = 56
        def before_batch(self):
            if self.training: self.got.append(self.learn.selection.last.selection.idxs.tolist())
    for how in ('plain', 'compiled', 'called before'):
        learn,note = make_learner(model=lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), cbs=CoreSet(.5)),Note()
        if how!='plain': learn.model = torch.compile(learn.model, backend='eager')
        if how=='called before':
            with torch.no_grad(): learn.model.eval()(torch.zeros(16, 6))
        note.got = []
        learn.fit(1, 1e-2, cbs=note)
        kept.append(note.got)
    torch._dynamo.reset()
    assert kept[0]==kept[1]==kept[2] and len(kept[0])==6

# ---- with the rest

def test_export_and_load(tmp_path): exports_and_loads(lambda: CoreSet(.3), tmp_path)

def test_record(): has_a_record(lambda: CoreSet(.3), 'core-set')

def test_all_has_them():
    import blf_explore.all as a
    for o in ('k_center', 'CoreSet'): assert getattr(a, o) is getattr(coreset, o)
