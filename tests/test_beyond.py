"Core-sets against brute force, RHO-LOSS and InfoBatch against loops without any callback."
import copy, itertools, math, os, pickle
import numpy as np, pytest, torch
from fastai.callback.core import CancelFitException
from fastai.callback.schedule import SchedCos, SchedLin
from fastai.data.core import Datasets
from fastai.text.data import SortedDL
from fastai.vision.augment import RandTransform
from blf_explore import beyond
from blf_explore.beyond import CoreSet, InfoBatch, RHOLoss, holdout_losses, infobatch_keep, k_center
from blf_explore.hnm import HardNegativeMining
from core_tools import *

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
    class Stops(nn.Linear):
        n = 0
        def forward(self, x):
            self.n += 1
            if self.n==5: raise exc()
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
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.body,self.head = nn.Sequential(nn.Linear(3, 8), nn.Tanh()),nn.Linear(8, 3)
            self.last = nn.Linear(3, 3)
        def forward(self, a, b):
            self.seen = self.head(self.body(a)+self.body(b))
            return self.last(self.seen)
    train,_ = blobs()
    x,y = train.ts
    dls = loaders(Rows(x[:,:3], x[:,3:], y), Rows(x[:9,:3], x[:9,3:], y[:9]))
    dls.n_inp = 2
    learn = make_learner(dls=dls, model=Two, cbs=CoreSet(.25))
    class Check(Callback):
        order,n = 56,0
        def before_batch(self):
            if self.training:
                assert self.learn.selection.last.selection.idxs.tolist()==naive(self.model.seen.detach().tolist(), math.ceil(len(self.model.seen)/4))
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

# ---- holdout losses

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

def one_by_one(model, ds, n_inp=1):
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        return torch.stack([F.cross_entropy(model(*[o[None] for o in b[:n_inp]]), b[n_inp][None]) for b in (ds[i] for i in range(len(ds)))])

@pytest.mark.parametrize('drop_last,workers', [(False, 0), (True, 0), (True, 2)])
def test_holdout_losses_one_by_one(drop_last, workers):
    "A shuffling loader, one that leaves samples out, workers; a model with BatchNorm and dropout, of which nothing is moved."
    dls = numbered_dls(drop_last, workers)
    torch.manual_seed(3)
    model = Ignores(bn_net())
    model.model[1].eval() # frozen
    before,modes,rnd,rng = copy.deepcopy(model.state_dict()),[o.training for o in model.modules()],random_states(),dls.train.rng.getstate()
    got = holdout_losses(model, dls, CrossEntropyLossFlat())
    assert got.shape==(90,) and got.dtype==torch.float32 and not got.requires_grad
    torch.testing.assert_close(got, one_by_one(model, dls.train_ds, 2), atol=1e-6, rtol=1e-5)
    assert len(got.unique())>80 # so another order would not pass
    assert_same(before, model.state_dict())
    assert [o.training for o in model.modules()]==modes and random_states()==rnd and dls.train.rng.getstate()==rng
    assert all(o.grad is None for o in model.parameters())

def test_holdout_losses_of_other_loaders():
    train,valid = blobs()
    model = bn_net()
    want = one_by_one(model, train)
    torch_dls = DataLoaders(torch.utils.data.DataLoader(train, 16, shuffle=True, drop_last=True), torch.utils.data.DataLoader(valid, 16))
    torch.testing.assert_close(holdout_losses(model, torch_dls, F.cross_entropy), want, atol=1e-6, rtol=1e-5)
    by_length = DataLoaders(SortedDL(train, sort_func=lambda o: float(o[0].sum()), bs=16, shuffle=False, num_workers=0, n_inp=1), DataLoader(valid), device='cpu')
    torch.testing.assert_close(holdout_losses(model, by_length, F.cross_entropy), want, atol=1e-6, rtol=1e-5)
    train.loss_func = nn.CrossEntropyLoss() # as a Learner finds it
    torch.testing.assert_close(holdout_losses(model, loaders(train, valid)), want, atol=1e-6, rtol=1e-5)
    assert train.loss_func.reduction=='mean'

class Noise(RandTransform):
    "A random augmentation, of training batches only (as all of fastai's)."
    split_idx,order = 0,50
    def encodes(self, o:torch.Tensor): return o+10 if o.is_floating_point() else o

def test_holdout_losses_without_augmentation():
    x,y = blobs()[0].ts
    dsets = Datasets(list(range(90)), [[lambda i: x[i]], [lambda i: y[i]]], splits=[list(range(60)), list(range(60, 90))])
    dls = dsets.dataloaders(bs=16, after_batch=[Noise(p=1.)], num_workers=0, device='cpu')
    model = bn_net()
    assert dls.train.one_batch()[0].mean()>5 # it is at work
    got = holdout_losses(model, dls, F.cross_entropy)
    torch.testing.assert_close(got, one_by_one(model, Rows(x[:60], y[:60])), atol=1e-6, rtol=1e-5)
    assert dls.train.one_batch()[0].mean()>5 and dls.train_ds.split_idx==0 # and still is

def test_holdout_losses_are_kept(tmp_path):
    dls,path = loaders(*blobs()),tmp_path/'holdout.npz'
    torch.manual_seed(0)
    got = holdout_losses(bn_net(), dls, F.cross_entropy, path)
    assert os.listdir(tmp_path)==['holdout.npz']
    class Asked(nn.Module):
        def forward(self, x): raise AssertionError('was asked')
    assert torch.equal(holdout_losses(Asked(), dls, F.cross_entropy, str(path)), got)
    with np.load(path, allow_pickle=False) as z: np.testing.assert_array_equal(z['losses'], got) # no pickle in it

def test_holdout_file_damaged(tmp_path):
    dls,path,model = loaders(*blobs()),tmp_path/'holdout.npz',bn_net()
    holdout_losses(model, dls, F.cross_entropy, path)
    whole = path.read_bytes()
    for n in (0, 1, 10, len(whole)//2, len(whole)-1):
        path.write_bytes(whole[:n])
        says(lambda: holdout_losses(model, dls, F.cross_entropy, path), repr(str(path)), 'delete it')
        assert path.read_bytes()==whole[:n] # nothing was written over it
    i = whole.index(b'losses.npy')+60
    path.write_bytes(whole[:i]+bytes([whole[i]^255])+whole[i+1:])
    says(lambda: holdout_losses(model, dls, F.cross_entropy, path), 'not a whole file')
    class Evil:
        def __reduce__(self): return os.mkdir, (str(tmp_path/'evil'),)
    for write in (lambda f: np.savez(f, format=beyond._format, losses=np.array([Evil()], dtype=object)), lambda f: pickle.dump(Evil(), f),
                  lambda f: np.savez(f, format=beyond._format, losses=np.full(90, np.nan, np.float32)), lambda f: np.savez(f, losses=np.zeros(90, np.float32)),
                  lambda f: np.savez(f, format=beyond._format, losses=np.zeros((90, 2), np.float32)), lambda f: np.save(f, np.zeros(90, np.float32))):
        with open(path, 'wb') as f: write(f)
        says(lambda: holdout_losses(model, dls, F.cross_entropy, path), 'not a whole file')
    assert not (tmp_path/'evil').exists()
    path.write_bytes(whole)
    says(lambda: holdout_losses(model, loaders(*blobs(91)), F.cross_entropy, path), '90 losses', '91 samples')

@pytest.mark.parametrize('at', ['savez_compressed', 'replace'])
def test_holdout_file_whole_or_not_at_all(tmp_path, monkeypatch, at):
    def stop(*args, **kwargs): raise KeyboardInterrupt
    monkeypatch.setattr(np if at=='savez_compressed' else os, at, stop)
    with pytest.raises(KeyboardInterrupt): holdout_losses(bn_net(), loaders(*blobs()), F.cross_entropy, tmp_path/'h.npz')
    assert os.listdir(tmp_path)==[]

def test_holdout_losses_bad_input(tmp_path):
    dls,model = loaders(*blobs()),bn_net()
    says(lambda: holdout_losses(model, dls), 'loss_func=None')
    says(lambda: holdout_losses(make_learner(), dls, F.cross_entropy), 'model=Learner', 'learn.model')
    says(lambda: holdout_losses(model, dls, F.cross_entropy, tmp_path), repr(str(tmp_path)), 'folder', exc=IsADirectoryError)
    says(lambda: holdout_losses(model, dls, F.cross_entropy, tmp_path/'no'/'h.npz'), repr(str(tmp_path/'no'/'h.npz')), exc=FileNotFoundError)
    model[-1].bias.data[:] = math.inf
    says(lambda: holdout_losses(model, dls, F.cross_entropy, tmp_path/'h.npz'), 'not finite', '90 of 90')
    assert os.listdir(tmp_path)==[]

# ---- RHO-LOSS

@pytest.mark.parametrize('drop_last,workers', [(False, 0), (True, 0), (True, 2)])
def test_rho_against_a_loop(drop_last, workers):
    "Shuffled batches, whose samples carry their number: the same ones are kept, and the parameters are equal in every bit."
    holdout = torch.rand(90, generator=gen())*2
    def new(cbs=None): return make_learner(dls=lambda: numbered_dls(drop_last, workers), model=lambda: Ignores(bn_net()), cbs=cbs)
    a,kept,seen = new(RHOLoss(holdout, .3)),[],[]
    class Note(Callback):
        order = 56
        def before_batch(self):
            if not self.training: return
            o = self.learn.selection.last
            seen.append(self.learn.selection.ids.tolist()); kept.append(self.xb[1].tolist())
            assert seen[-1]==o.xb[1].tolist() # the positions are the numbers that the samples carry
    a.fit(2, 1e-2, cbs=Note())
    b,want,scores = new(),[],[]
    b.create_opt(); b.opt.set_hypers(lr=1e-2)
    for _ in range(2):
        for x,i,y in b.dls.train:
            rnd = torch.get_rng_state()
            with torch.no_grad(): losses = F.cross_entropy(b.model.eval()(x, i), y, reduction='none')
            b.model.train(); torch.set_rng_state(rnd)
            score = [l-holdout[j].item() for l,j in zip(losses.tolist(), i.tolist())]
            top = sorted(range(len(y)), key=lambda o: -score[o])[:math.ceil(.3*len(y))]
            want.append(i[top].tolist()); scores.append(score)
            F.cross_entropy(b.model(x[top], i[top]), y[top]).backward()
            b.opt.step(); b.opt.zero_grad()
        for _ in b.dls.valid: pass # a loader, too, draws a random number when it begins
    assert kept==want and len(want)==(10 if drop_last else 12)
    assert [len(o) for o in want]==([5]*10 if drop_last else [5,5,5,5,5,3]*2)
    assert_same(state(a), state(b))
    for r,o in zip(a.selection.record.losses, scores): np.testing.assert_allclose(r, o, atol=1e-6)
    assert a.selection.batches.n_scored.tolist()==[len(o) for o in seen]

def test_rho_of_equal_holdout_losses_is_hard_negative_mining():
    a,b,c = (fitted(2, cbs=o) for o in (RHOLoss(torch.full((90,), 2.), .4), HardNegativeMining(.4), RHOLoss(torch.arange(90.), .4)))
    assert_same(state(a), state(b))
    assert differs(state(a), state(c))

def test_rho_skips_what_the_holdout_model_cannot_explain():
    "Samples with a very high holdout loss are not trained on while there are enough others."
    holdout = torch.zeros(90); holdout[::2] = 1e6
    learn,kept = make_learner(dls=numbered_dls, model=lambda: Ignores(bn_net()), cbs=RHOLoss(holdout, .1)),[]
    class Note(Callback):
        order = 56
        def before_batch(self):
            if self.training: kept.extend(self.xb[1].tolist())
    learn.fit(3, cbs=Note())
    assert kept and all(i%2 for i in kept)

def test_rho_takes_numbers_of_many_kinds():
    states = []
    for o in (torch.arange(90.)/40, torch.arange(90)/torch.tensor(40.), (np.arange(90)/40).astype(np.float32), [i/40 for i in range(90)]):
        learn = make_learner(cbs=RHOLoss(o, .4))
        learn.fit(1)
        states.append(state(learn))
    for o in states[1:]: assert_same(states[0], o)

def test_rho_bad_input():
    for bad in (None, 'x', 3., torch.zeros(90, 2), torch.zeros(0), torch.full((90,), math.nan), [1., math.inf], {'a': 1}): says(lambda: RHOLoss(bad), 'holdout', 'give')
    for bad in (0, 1.5, None, True): says(lambda: RHOLoss(torch.zeros(90), bad), 'sample_perc', 'give')
    learn = make_learner(cbs=RHOLoss(torch.zeros(89)))
    before = state(learn)
    says(lambda: learn.fit(1), 'holdout has 89 losses', '90 samples')
    assert_same(before, {k: v for k,v in state(learn).items() if k in before})

def test_rho_with_schedule_queue_and_warmup():
    learn = make_learner(cbs=RHOLoss(torch.rand(90, generator=gen()), SchedLin(.5, .1), queue=True, warmup=1))
    learn.fit(3)
    b = learn.selection.batches
    assert (b.n_trained[b.epoch==0]==b.n_seen[b.epoch==0]).all() and (b.n_scored[b.epoch==0]==0).all()
    for e in (1, 2): assert b.n_trained[b.epoch==e].sum()==b.n_kept[b.epoch==e].sum()<60

# ---- InfoBatch: the draw

def test_infobatch_by_hand():
    l = torch.tensor([.5, 3., 1., .2, math.nan, 1.5])
    for seed in range(20):
        r,sel = torch.rand(6, generator=gen(seed)),infobatch_keep(l, 1., .6, gen(seed))
        want = [i for i in range(6) if i in (1, 2, 4, 5) or r[i]>=.6] # 1 is not strictly below 1; what is not known is kept
        assert sel.idxs.tolist()==want
        assert sel.weights.tolist()==pytest.approx([2.5 if i in (0, 3) else 1. for i in want])
    for kw in (dict(prune=0), dict(mean=.2), dict(mean=math.nan)):
        sel = infobatch_keep(**(dict(losses=l[~l.isnan()], mean=1., prune=.6) | kw))
        assert sel.weights is None and sel.idxs.tolist()==list(range(5))
    third = torch.full((7,), .1) # the mean of equal losses is that loss, and none of them is below it
    assert infobatch_keep(third, third.double().mean().item()).weights is None
    assert infobatch_keep(third, third[0].item()+1e-12).weights is not None # below, if only in double precision
    before = random_states()
    infobatch_keep(l, 1., .5, gen())
    assert random_states()==before # a generator of one's own

@pytest.mark.parametrize('prune', [.1, .5, .9])
@pytest.mark.parametrize('n', [1, 2, 40])
def test_infobatch_is_unbiased(prune, n):
    """The weighted sum is on average that of all, and so is each sample's own weight, within 5 standard errors. With one or two samples all
    are often dropped: what is kept instead may not bias the sum."""
    g = gen(n)
    l = torch.rand(n, generator=g).double()+.1
    if n>2: l[:7] *= 20
    mean = 1.5 if n>2 else 5.
    low,draws = l<mean,8000 if n<3 else 3000
    w = torch.zeros(draws, n, dtype=torch.double)
    for row in w:
        sel = infobatch_keep(l, mean, prune, g)
        row[sel.idxs] = sel.weights.double()
    # of a weight that is 1/(1-prune) or 0 the variance is prune/(1-prune); all samples are independent
    assert (w[:,~low]==1).all()
    assert ((w.mean(0)-1).abs() <= 5*torch.where(low, prune/(1-prune), 0.).div(draws).sqrt()+1e-6).all()
    se = ((l[low]**2).sum()*prune/(1-prune)/draws).sqrt()
    assert abs((w@l).mean()-l.sum()) <= 5*se
    unweighted = ((w>0).double()@l).mean()
    assert abs(unweighted-l.sum())>5*se # which the sum without weights does not pass
    kept = (w>0)[:,low].double().mean()
    assert abs(kept-(1-prune)) <= 5*math.sqrt(prune*(1-prune)/(draws*low.sum()))

def test_infobatch_gradient_is_unbiased():
    "The same for the gradient of a network: the mean of many weighted gradients against that of the whole set."
    torch.manual_seed(0)
    net,(x,y) = nn.Linear(6, 3),blobs(30)[0].ts
    losses = F.cross_entropy(net(x), y, reduction='none')
    per = torch.stack([torch.cat([o.flatten() for o in torch.autograd.grad(l, net.parameters(), retain_graph=True)]) for l in losses])
    mean,g,n = losses.mean().item(),gen(),3000
    low = losses<mean
    got = torch.stack([(s.weights[:,None]*per[s.idxs]).sum(0) for s in (infobatch_keep(losses.detach(), mean, .5, g) for _ in range(n))])
    se = (per[low]**2).sum(0).div(n).sqrt() # prune/(1-prune) is 1
    assert ((got.mean(0)-per.sum(0)).abs() <= 5*se+1e-5).all()

# ---- InfoBatch: the training

class Seeded(InfoBatch):
    "The draws of the loop below."
    def begin(self): self.gen.manual_seed(11)

def plain_net(): return Ignores(nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)))

def infobatch_loop(learn, n_epoch, prune, delta, queue, lr, bs=16):
    "InfoBatch without any callback, sample by sample: (numbers in each step, their weights)."
    g,N = gen(11),len(learn.dls.train_ds)
    last,steps,params = [None]*N,[],list(learn.model.parameters())
    xs,_,ys = learn.dls.train_ds.ts
    def train(rows, scale=1.):
        ids,w = [i for i,_ in rows],torch.tensor([w for _,w in rows])
        losses = F.cross_entropy(learn.model(xs[ids], None), ys[ids], reduction='none')
        (scale*(losses*w).sum()/len(ids)).backward()
        with torch.no_grad():
            for p in params: p -= lr*p.grad; p.grad = None
        for i,l in zip(ids, losses.tolist()): last[i] = l
        steps.append(ids)
    for epoch in range(n_epoch):
        known = [o for o in last if o is not None]
        mean = sum(known)/len(known) if known else None
        waiting = []
        batches = [i.tolist() for _,i,_ in learn.dls.train]
        for ids in batches:
            rows = [(i, 1.) for i in ids]
            low = [mean is not None and last[i] is not None and last[i]<mean for i in ids]
            if any(low) and epoch+1<=n_epoch*delta:
                r = torch.rand(len(ids), generator=g).tolist()
                rows = [(i, 1/(1-prune) if lo else 1.) for i,lo,o in zip(ids, low, r) if not lo or o>=prune]
                assert rows # these small sets never drop all
            if not queue: train(rows, len(rows)/len(ids))
            else:
                waiting += rows
                while len(waiting)>=bs: train(waiting[:bs]); waiting = waiting[bs:]
        while waiting: train(waiting[:bs]); waiting = waiting[bs:]
    return steps, last

@pytest.mark.parametrize('queue,drop_last,prune,delta', [(True, False, .5, .875), (True, True, .5, .6), (False, False, .5, .875), (False, True, .7, 1.), (True, True, .8, 1.)])
def test_infobatch_against_a_loop(queue, drop_last, prune, delta):
    "The same samples in the same steps; parameters and last losses equal to rounding."
    def new(cbs=None): return make_learner(dls=lambda: numbered_dls(drop_last), model=plain_net, opt_func=SGD, cbs=cbs)
    a,steps = new(Seeded(prune, delta, queue=queue)),[]
    class Note(Callback):
        order = 56
        def before_step(self): steps.append(self.learn.xb[1].tolist())
    a.fit(5, .1, cbs=Note())
    b = new()
    want,last = infobatch_loop(b, 5, prune, delta, queue, .1)
    assert steps==want
    for (k,p),q in zip(a.model.state_dict().items(), b.model.state_dict().values()): torch.testing.assert_close(p, q, atol=2e-6, rtol=1e-4)
    np.testing.assert_allclose(a.selection.memory['last'], [math.nan if o is None else o for o in last], atol=1e-5)
    rec = a.selection.batches
    assert rec.n_trained.sum()==rec.n_kept.sum()==sum(map(len, want))
    assert rec.n_scored.sum()==0
    by_epoch = rec.groupby('epoch')[['n_kept','n_seen']].sum()
    assert (by_epoch.n_kept==by_epoch.n_seen).tolist()==[e==0 or e+1>5*delta for e in range(5)]
    if queue:
        for _,o in rec.groupby('epoch'):
            whole,rest = divmod(o.n_kept.sum(), 16)
            sizes = o.n_trained[o.n_trained>0].tolist()
            assert sum(sizes)==16*whole+rest and all(s==16 for s in sizes[:-1]) and 0<sizes[-1]<=31 # a last full step, and what is left
    else: assert len(steps)==len(rec)

def test_infobatch_weighs_an_epoch_as_a_plain_one():
    "The sum over an epoch's steps of the summed weights, each over its step's size and all over the plain number of steps, is about 1, with a queue and without."
    for queue in (True, False):
        total,n = 0.,0
        learn = make_learner(dls=lambda: numbered_dls(True, bs=20, n=400), model=plain_net, opt_func=SGD, cbs=Seeded(.6, 1., queue=queue, plain_every=0))
        class Note(Callback):
            order = 56
            def before_step(self):
                nonlocal total, n
                rows = self.learn.selection._fit.rows
                if self.epoch: total += 1. if rows is None or rows.weights is None else rows.weights.mean().item()
                n = max(n, self.epoch)
        learn.fit(9, .05, cbs=Note())
        # a low sample's weight has the variance prune/(1-prune) = 1.5; there are at most 8*400 draws
        assert abs(total/(n*20)-1) <= 5*math.sqrt(1.5/3200)
        assert learn.selection.batches.n_kept.sum()<.85*learn.selection.batches.n_seen.sum()

@pytest.mark.parametrize('kw', [dict(prune=0), dict(delta=0), dict(warmup=3), dict(prune=0, queue=False)])
def test_infobatch_of_all_is_plain(kw):
    assert_same(state(fitted(3, cbs=InfoBatch(**kw))), state(fitted(3)))

def test_infobatch_scores_nothing():
    calls = []
    class Counted(nn.Sequential):
        def forward(self, x): calls.append((self.training, len(x))); return super().forward(x)
    learn = make_learner(model=lambda: Counted(*bn_net()), cbs=InfoBatch(plain_every=0))
    learn.fit(3)
    train = [n for training,n in calls if training]
    b = learn.selection.batches
    assert sum(train)==b.n_trained.sum()<b.n_seen.sum()
    assert len(calls)-len(train)<=3*2+1 # validation's batches, and one look for a BatchNorm that cannot train on one sample

def test_infobatch_warmup_zero_and_unseen_samples():
    "Without a warm-up the first epoch is plain all the same: no loss is known. What the loader left out is kept when it comes."
    learn = make_learner(dls=lambda: numbered_dls(True, n=94), model=plain_net, cbs=Seeded(.95, 1., warmup=0))
    news = []
    class Note(Callback):
        order = 54 # before the selection
        def before_batch(self):
            if not self.training: return
            m = self.learn.selection.memory
            ids = self.xb[1]
            self.new = set() if 'last' not in m else set(ids[m['last'][ids].isnan()].tolist())
            if self.epoch: news.append(len(self.new))
    class Then(Callback):
        order = 56
        def before_batch(self):
            if not self.training: return
            waiting = [i for o in self.learn.selection.memory['queue'] for i in o.ids.tolist()]
            assert self.learn.note.new <= set(self.xb[1].tolist()) | set(waiting)
    learn.fit(4, 1e-2, cbs=[Note(), Then()])
    b = learn.selection.batches
    assert b.n_kept[b.epoch==0].sum()==80 and sum(news)>0

def test_infobatch_settings():
    for bad in (1, 1.5, -.1, None, 'x', True, math.nan, SchedLin(0., 1.), SchedLin(-.5, .5)):
        says(lambda: InfoBatch(bad), 'prune=', 'give'); says(lambda: infobatch_keep(torch.ones(3), 1., bad), 'prune=', 'give')
    for bad in (1.5, -.1, None, True): says(lambda: InfoBatch(delta=bad), 'delta=', 'give')
    says(lambda: infobatch_keep(torch.zeros(0), 1., .5), 'losses is empty')
    learn = make_learner(cbs=InfoBatch())
    says(lambda: learn.selection.set(prune=1), 'prune=1')
    says(lambda: learn.selection.set(sample_perc=.5), 'no setting of InfoBatch')
    assert (learn.selection.prune, learn.selection.delta)==(.5, .875)
    class Set(Callback):
        def before_batch(self):
            if self.training and self.epoch==2 and self.iter==0: self.learn.selection.set(prune=.9)
            if self.training and self.epoch==3 and self.iter==0: self.learn.selection.set(delta=.5)
    learn.fit(5, 1e-2, cbs=Set())
    b = learn.selection.batches
    kept = b.groupby('epoch').n_kept.sum().tolist()
    assert kept[0]==90>kept[1]>kept[2] and kept[3:]==[90, 90]
    assert b.groupby('epoch').prune.last().tolist()==[.5, .5, .9, .9, .9]
    assert learn.selection.record.changes.setting.tolist()==['prune', 'delta']
    sched = make_learner(cbs=InfoBatch(SchedCos(.9, 0.), 1.))
    sched.fit(4)
    assert sched.selection.batches.prune.is_monotonic_decreasing

def test_infobatch_resumed_is_uninterrupted(tmp_path):
    def new(seed): return make_learner(seed, model=bn_net, cbs=InfoBatch(.5, 1.), path=tmp_path)
    whole = new(1)
    whole.fit_one_cycle(4, 1e-2)
    want = state(whole)
    class Keep(Callback):
        order = 99
        def before_epoch(self):
            if self.epoch==2: raise CancelFitException
    first = new(1)
    first.fit_one_cycle(4, 1e-2, cbs=Keep())
    first.save('half', with_opt=True)
    torch.save(first.selection.state_dict(), tmp_path/'selection.pth')
    second = new(7)
    second.load('half', with_opt=True)
    second.selection.load_state_dict(torch.load(tmp_path/'selection.pth', weights_only=True))
    second.fit_one_cycle(4, 1e-2, start_epoch=2)
    assert_same(state(second), want)

# ---- with the rest

@pytest.mark.parametrize('make', [lambda: CoreSet(.3), lambda: RHOLoss(torch.linspace(0, 2, 90), .3), InfoBatch])
def test_export_and_load(make, tmp_path):
    from fastai.learner import load_learner
    learn = make_learner(cbs=make(), path=tmp_path)
    learn.fit(2)
    learn.export('l.pkl')
    again = load_learner(tmp_path/'l.pkl')
    assert type(again.selection) is type(learn.selection) and again.selection.epochs.empty
    x = blobs()[1].ts[0]
    with torch.no_grad(): assert torch.equal(again.model.eval()(x), learn.model.eval()(x))

@pytest.mark.parametrize('make,method', [(lambda: CoreSet(.3), 'core-set'), (lambda: RHOLoss(torch.linspace(0, 2, 90), .3), 'RHO-LOSS'), (InfoBatch, 'InfoBatch')])
def test_record(make, method):
    from blf_explore.engine.record import colors
    learn = make_learner(cbs=make())
    learn.fit(3)
    rec = learn.selection.record
    assert rec.method==method and method in colors
    assert set(rec.info['settings'])>=set(learn.selection.settings)
    b = rec.batches
    assert b.n_kept.sum()<b.n_seen.sum() and set(learn.selection.settings)<=set(b)
    assert [len(o) for o in rec.losses]==b.n_seen.tolist()

def test_all_has_them():
    import blf_explore.all as a
    for o in ('k_center', 'CoreSet', 'holdout_losses', 'RHOLoss', 'infobatch_keep', 'InfoBatch'): assert getattr(a, o) is getattr(beyond, o)
