"Holdout losses one by one, RHO-LOSS against a loop without any callback."
import copy, math, os, pickle
from contextlib import nullcontext
import numpy as np, pytest, torch
from fastai.callback.schedule import SchedLin
from fastai.data.core import Datasets
from fastai.text.data import SortedDL
from fastai.vision.augment import RandTransform
from blf_explore import rho
from blf_explore.engine.data import get_dls
from blf_explore.hnm import HardNegativeMining
from blf_explore.rho import RHOLoss, holdout_losses
from core_tools import *

# ---- holdout losses

def one_by_one(model, ds, n_inp=1):
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        return torch.stack([F.cross_entropy(model(*[o[None] for o in b[:n_inp]]), b[n_inp][None]) for b in (ds[i] for i in range(len(ds)))])

@pytest.mark.parametrize('seed', [0, 42])
def test_wrong_labels_fall_into_both_halves_evenly(seed, monkeypatch):
    "One seed for the flips and for the halves: neither may say where the other lies."
    seen = []
    class Learner:
        def __init__(self, dls, model, cbs): seen.append(dls.train.get_idxs())
        def no_bar(self): return nullcontext()
        no_logging = no_bar
        def fit_one_cycle(self, *args): pass
    monkeypatch.setattr(rho, 'Learner', Learner)
    dls = get_dls(seed=seed, label_noise=.2)
    rho.half_losses(dls, seed, stopped=lambda: True)
    assert sorted(seen[0]+seen[1])==list(range(1437))
    sd = math.sqrt(.2*.8/718*(1-718/1437)) # of a share among 718 drawn from 1,437 without replacement
    for o in seen: assert abs(torch.isin(torch.tensor(o), dls.flipped).float().mean().item()-.2)<4*sd

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
    for write in (lambda f: np.savez(f, format=rho._format, losses=np.array([Evil()], dtype=object)), lambda f: pickle.dump(Evil(), f),
                  lambda f: np.savez(f, format=rho._format, losses=np.full(90, np.nan, np.float32)), lambda f: np.savez(f, losses=np.zeros(90, np.float32)),
                  lambda f: np.savez(f, format=rho._format, losses=np.zeros((90, 2), np.float32)), lambda f: np.save(f, np.zeros(90, np.float32))):
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
    says(lambda: holdout_losses('a net', dls, F.cross_entropy), 'model=str', 'learn.model')
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

# ---- with the rest

def test_export_and_load(tmp_path): exports_and_loads(lambda: RHOLoss(torch.linspace(0, 2, 90), .3), tmp_path)

def test_record(): has_a_record(lambda: RHOLoss(torch.linspace(0, 2, 90), .3), 'RHO-LOSS')

def test_all_has_them():
    import blf_explore.all as a
    for o in ('holdout_losses', 'RHOLoss'): assert getattr(a, o) is getattr(rho, o)
