"Batches, losses and networks of every shape that fastai trains."
import functools, warnings
import matplotlib; matplotlib.use('Agg')
import numpy as np, pandas as pd, pytest, torch
from collections import OrderedDict, namedtuple
from fastai.basics import fastuple, MSELossFlat, BCEWithLogitsLossFlat
from fastai.tabular.all import TabularDataLoaders, tabular_learner, Categorify, FillMissing, Normalize, RandomSplitter
from fastai.vision.all import vision_learner, resnet18, ImageDataLoaders, Image
from blf_explore.blf import BatchLossFilter
from blf_explore.engine.filtering import SelectiveTraining, Selection, take
from core_tools import *

quiet = pytest.mark.filterwarnings('ignore')

class Spy(Callback):
    "What the training step saw, batch by batch."
    order,run_valid = 99,False
    def before_fit(self): self.seen = []
    def before_batch(self): self.seen.append((self.xb, self.yb))

# ---- several inputs and targets

Pair = namedtuple('Pair', 'a b')
class MyDict(OrderedDict): pass

@pytest.mark.parametrize('wrap', [tuple, list, lambda o: Pair(*o), lambda o: dict(a=o[0], b=o[1]), lambda o: MyDict(a=o[0], b=o[1]), fastuple,
                                  lambda o: (o[0], dict(deep=[o[1], 'name', None, 3.5]))])
def test_take_goes_everywhere(wrap):
    x,y = torch.arange(6),torch.arange(12).view(6,2)
    got,want = take(wrap((x, y)), torch.tensor([4, 1]), 6),wrap((torch.tensor([4, 1]), torch.tensor([[8, 9], [2, 3]])))
    assert type(got) is type(want)
    assert str(got)==str(want)

def test_take_leaves_the_rest():
    const,scalar = torch.eye(3),torch.tensor(2.)
    got = take((torch.arange(5), const, scalar, 'x'), torch.tensor([0]), 5)
    assert got[1] is const and got[2] is scalar and got[3]=='x'

class Ids(torch.utils.data.Dataset):
    "Every tensor of an item carries the item's number."
    def __init__(self, n, kind): self.n,self.kind = n,kind
    def __len__(self): return self.n
    def __getitem__(self, i):
        t = torch.tensor(float(i))
        x = torch.full((3,), float(i))/self.n
        if self.kind=='tuple': return (x, fastuple(x*2, t)), t, t*2
        if self.kind=='dict': return dict(a=x, b=dict(c=t)), dict(t=t, u=t*2)
        return x, t, t, t*2 # two inputs, two targets

class IdsNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(3, 2)
    def forward(self, *xs):
        x = xs[0]
        while not isinstance(x, torch.Tensor): x = x['a'] if isinstance(x, dict) else x[0]
        return self.lin(x)

def leaves(o):
    if isinstance(o, torch.Tensor): yield o
    else:
        for v in (o.values() if isinstance(o, dict) else o): yield from leaves(v)

@pytest.mark.parametrize('kind,n_inp', [('flat', 2), ('tuple', 1), ('dict', 1)])
def test_everything_is_filtered_together(kind, n_inp):
    def lf(p, *ys):
        if isinstance(ys[0], dict): ys = ys[0]['t'],ys[0]['u']
        return F.mse_loss(p[:,0], ys[0]) + F.mse_loss(p[:,1], ys[1])
    train = Ids(40, kind)
    learn = make_learner(dls=DataLoaders(DataLoader(train, bs=16, shuffle=True, n_inp=n_inp), DataLoader(train, bs=16, n_inp=n_inp), device='cpu'),
                         model=IdsNet, loss_func=lf, metrics=None, cbs=Spy())
    learn.dls.n_inp = n_inp
    learn.batch_loss_filter(.6).fit(1)
    kept = [len(next(leaves(o))) for o in learn.spy.seen]
    assert kept==learn.selection.batches.n_kept.tolist() and sum(kept)<40
    for xb,yb in learn.spy.seen:
        ids = yb[0]['t'] if kind=='dict' else yb[0]
        assert (ids[:-1]>=ids[1:]).all() # at the start larger numbers are harder, so hardest first is largest first
        for t in leaves((xb, yb)):
            assert len(t)==len(ids)
            v = t.flatten(1)[:,0] if t.ndim>1 else t
            ratio = (v[ids>0]/ids[ids>0]) # each tensor is a multiple of the item's number
            torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))

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
        torch.manual_seed(3)
        return make_learner(dls=loaders(*data()), model=net, loss_func=lf, metrics=None)
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

# ---- fastai's own learners

def frame(n=80):
    g = np.random.RandomState(0)
    d = pd.DataFrame(dict(a=g.choice(list('xyz'), n), b=g.choice(list('pq'), n), u=g.randn(n), v=g.randn(n)))
    d['y'] = np.where((d.a=='x')&(d.u>0), 'yes', 'no')
    d['z'] = d.u*2+d.v
    return d

@quiet
@pytest.mark.parametrize('y', ['y', 'z'])
def test_tabular_learner(y):
    def run(kw, n=2):
        random.seed(0); torch.manual_seed(0); np.random.seed(0)
        dls = TabularDataLoaders.from_df(frame(), y_names=y, cat_names=['a','b'], cont_names=['u','v'], procs=[Categorify, FillMissing, Normalize], bs=16)
        learn = tabular_learner(dls, layers=[16])
        learn.logger = noop_log
        learn.remove_cb(learn.progress)
        if kw: learn.batch_loss_filter(**kw)
        learn.fit_one_cycle(n, 1e-2)
        return learn
    assert_same(state(run(None)), state(run(dict(loss_perc=1., plain_every=1))))
    learn = run(dict(loss_perc=.5))
    b = learn.selection.batches
    assert (b.n_kept>=2).all() and b.n_kept.sum()<.9*b.n_seen.sum()
    if y=='y': assert torch.isfinite(learn.predict(frame().iloc[0])[2]).all()
    learn = run(dict(loss_perc=0., sample_perc=1e-9), 1) # one sample at a time is not for BatchNorm
    assert (learn.selection.batches.n_kept==2).all()

@pytest.fixture(scope='module')
def images(tmp_path_factory):
    path = tmp_path_factory.mktemp('images')
    g = np.random.RandomState(0)
    for c in ('cat','dog'):
        (path/c).mkdir()
        for i in range(12): Image.fromarray((g.rand(32, 32, 3)*(128 if c=='cat' else 255)).astype(np.uint8)).save(path/c/f'{i}.png')
    return path

@quiet
def test_vision_learner(images, tmp_path):
    from fastai.vision.all import accuracy, load_learner
    def run(kw):
        random.seed(0); torch.manual_seed(0); np.random.seed(0)
        dls = ImageDataLoaders.from_folder(images, valid_pct=.25, seed=1, bs=8, num_workers=0)
        learn = vision_learner(dls, resnet18, pretrained=False, metrics=accuracy, path=tmp_path)
        learn.logger = noop_log
        learn.remove_cb(learn.progress)
        if kw: learn.batch_loss_filter(**kw)
        learn.fit_one_cycle(1, 1e-3)
        return learn
    plain,blf = run(None),run(dict(loss_perc=1., plain_every=1))
    assert_same(state(plain), state(blf))
    assert all(torch.equal(a, b) for a,b in zip(plain.get_preds(), blf.get_preds()))
    with plain.no_bar(), blf.no_bar():
        f = images/'cat'/'0.png'
        assert plain.predict(f)[0]==blf.predict(f)[0] and torch.equal(plain.predict(f)[2], blf.predict(f)[2])
        blf.show_results(max_n=2)
    blf.selection.set(loss_perc=.4)
    blf.fit(1)
    assert blf.selection.batches.n_kept.sum()<blf.selection.batches.n_seen.sum()
    blf.export('vision.pkl')
    again = load_learner(tmp_path/'vision.pkl')
    with again.no_bar(), blf.no_bar(): assert torch.equal(again.predict(f)[2], blf.predict(f)[2])
