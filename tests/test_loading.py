"Which samples a batch holds: told by the batch itself, whatever the loader's order and whoever else draws from it."
import pickle
import numpy as np, pytest, torch
from fastai.callback.data import PartialDL, WeightedDL
from fastai.data.load import SkipItemException
from blf_explore.all import HardNegativeMining, InfoBatch, RHOLoss, SelectiveBackprop
from blf_explore.engine.loading import _twin, cannot_number, Numbered
from core_tools import *

ASKS = dict(rho=lambda: RHOLoss(HOLDOUT, .5), info=lambda: InfoBatch(.5), stale=lambda: HardNegativeMining(.5, stale=1),
            queue=lambda: SelectiveBackprop(1., stale=1, warmup=0))

class Checks(Callback):
    "Each batch's numbers are those that its samples carry, and so are those of what is trained on."
    order,run_valid = 99,False
    def before_fit(self): self.seen,self.last = [],None
    def check(self):
        raw = self.learn.selection._fit.raw
        assert raw.ids.tolist()==raw.xb[1].tolist()
        if raw is not self.last: self.seen += raw.ids.tolist()
        self.last = raw
    def before_batch(self):
        self.check()
        assert self.learn.selection._fit.rows.ids.tolist()==self.xb[1].tolist()
    def after_cancel_batch(self):
        if self.training: self.check() # a batch that only fills the queue

def numbered_learner(cb, dls, cbs=()):
    return make_learner(dls=dls, model=lambda: Ignores(bn_net()), cbs=[*([] if cb is None else [cb, Checks()]), *cbs], metrics=None)

def of_class(cls, train=None, **kwargs):
    "Numbered samples in a loader of this class."
    tr,valid = numbered()
    dls = DataLoaders(cls(tr if train is None else train(tr), bs=16, shuffle=True, **kwargs), DataLoader(valid, bs=16), device='cpu')
    dls.n_inp = 2
    return dls

class Skipping(Rows):
    def __getitem__(self, i):
        if i%7==3: raise SkipItemException()
        return super().__getitem__(i)

class Array(DataLoader):
    def get_idxs(self): return np.random.permutation(90)
class Iterator(DataLoader):
    def get_idxs(self): return iter(np.random.permutation(90).tolist())
class Tensors(DataLoader):
    def get_idxs(self): return torch.randperm(90)
class Repeating(DataLoader):
    "Draws with replacement, and twice as many as there are."
    def get_idxs(self): return np.random.randint(0, 90, 180)
    def __len__(self): return 12

LOADERS = dict(plain=lambda: of_class(DataLoader), array=lambda: of_class(Array), iterator=lambda: of_class(Iterator), tensor=lambda: of_class(Tensors),
               weighted=lambda: of_class(WeightedDL, wgts=np.arange(1, 91.)), partial=lambda: of_class(PartialDL, partial_n=50),
               repeating=lambda: of_class(Repeating), skipping=lambda: of_class(DataLoader, lambda tr: Skipping(*tr.ts)))

class Stateful(DataLoader):
    "Sets what it needs when an epoch begins, in all the places that fastai has for it, and counts its items."
    epoch = made = 0
    def __iter__(self):
        self.epoch += 1
        yield from super().__iter__()
    def before_iter(self, *_): self.scale = torch.tensor(1.+self.epoch)
    def get_idxs(self):
        self.idxs = self.rng.sample(range(90), 90)
        return self.idxs
    def before_batch(self, b):
        self.made += len(b)
        return b
    def create_batch(self, b):
        x,*rest = super().create_batch(b)
        return x*self.scale+self.made*1e-3+self.idxs[0]*1e-3,*rest

LOADERS['stateful'] = lambda: of_class(Stateful)

class DrawsMore(Callback):
    "Looks at a batch of the training set in the middle of an epoch."
    def __init__(self, order): self.order = order
    def before_batch(self):
        if self.training: self.dls.train.one_batch()

@quiet
@pytest.mark.parametrize('name,loader,draws', [(list(ASKS)[i%3], o, (0, 56)[i%2]) for i,o in enumerate(LOADERS)] +
                         [('queue', o, 0) for o in LOADERS] + [(n, 'plain', None) for n in ASKS])
def test_each_sample_by_its_number(name, loader, draws):
    learn = numbered_learner(ASKS[name](), LOADERS[loader], [] if draws is None else [DrawsMore(draws)])
    learn.fit(2, 1e-2)
    seen = learn.checks.seen
    n = dict(partial=50, repeating=180, skipping=90-len(range(3, 90, 7))).get(loader, 90)
    assert len(seen)==2*n==learn.selection.batches.n_seen.sum()
    for o in (seen[:n], seen[n:]):
        if loader not in ('repeating','weighted'): assert len(set(o))==n
        if loader=='skipping': assert not {i for i in o if i%7==3}

@pytest.mark.slow
@quiet
@pytest.mark.parametrize('train', [None, lambda tr: Skipping(*tr.ts)])
@pytest.mark.parametrize('name', ASKS)
def test_workers(name, train):
    learn = numbered_learner(ASKS[name](), lambda: of_class(DataLoader, train, num_workers=2), [DrawsMore(0)])
    learn.fit(1, 1e-2)
    assert learn.checks.seen

@pytest.mark.parametrize('loader', LOADERS)
@quiet
def test_the_loaders_order_is_as_without_us(loader):
    "All kept is bit for bit the plain run, and the loader's and all other random numbers go on from the same place."
    def run(cb):
        np.random.seed(3)
        learn = numbered_learner(cb, LOADERS[loader], [DrawsMore(0)])
        learn.fit(2, 1e-2)
        return state(learn),random_states(),np.random.get_state()[1].tolist(),learn.dls.train.rng.getstate()
    a,b = run(None),run(HardNegativeMining(1., stale=1))
    assert_same(a[0], b[0])
    assert a[1:]==b[1:]

@pytest.mark.parametrize('exc', [ZeroDivisionError('boom'), KeyboardInterrupt()])
@pytest.mark.parametrize('event', ['before_batch','after_loss','after_batch'])
def test_nothing_is_left_on_the_loader(exc, event):
    dls = numbered_dls()
    def held(): return {k: id(v) for k,v in vars(dls.train).items() if k not in ('rng','it','_DataLoader__idxs')} # these are fastai's own
    before = held()
    learn = numbered_learner(RHOLoss(HOLDOUT, .5), dls, [FailingCallback(exc, event, order=98)])
    with pytest.raises(type(exc)): learn.fit(1)
    assert learn.dl is dls.train and learn.dls is dls and not isinstance(dls.train, Numbered)
    assert held()==before
    learn.fit(1) # and the next one is as any other
    assert len(learn.selection.batches)==6

def test_batch_transforms_are_told_the_split():
    "Augmentation of the training set alone is done with numbered batches as without: the same images, and bit for bit the plain run."
    from fastai.data.core import Datasets
    from fastai.vision.augment import RandTransform, TensorImage
    class Noise(RandTransform): # `split_idx` 0: in training only
        def encodes(self, x:TensorImage): return x+torch.randn_like(x)
    train,_ = stripes()
    def dls():
        sets = Datasets(range(72), [[lambda i: TensorImage(train.ts[0][i])], [lambda i: train.ts[1][i]]], splits=[range(60), range(60, 72)])
        return sets.dataloaders(bs=16, after_batch=[Noise()], device='cpu')
    def run(cbs): return fitted(2, dls=dls, model=image_net, metrics=None, cbs=[*cbs, Spy()])
    plain = run([])
    assert not torch.isin(plain.spy.seen[0][0][0].flatten(), train.ts[0]).any()
    for cb in (HardNegativeMining(1., stale=1), RHOLoss(torch.zeros(60), 1.)):
        learn = run([cb])
        assert_same(state(plain), state(learn))
        assert all(torch.equal(a[0][0], b[0][0]) for a,b in zip(plain.spy.seen, learn.spy.seen))

def test_a_loader_that_goes_to_a_process_started_anew():
    "It is pickled there, with the numbers."
    dl = numbered_dls().train
    twin,_ = _twin(dl)
    again = pickle.loads(pickle.dumps(twin.fake_l)).d
    again.offs,again.num_workers = 0,1
    b = again.do_batch([again.do_item(i) for i in (5, 3)])
    assert b['ids'].tolist()==[5, 3]==b['batch'][1].tolist()

# ---- alone

def test_a_numbered_loader_alone():
    dl = numbered_dls().train
    done = []
    num = Numbered(dl, lambda: done.append(1))
    assert len(num)==6 and num.bs==16 and num.dataset is dl.dataset
    seen = []
    for x,i,y in num:
        assert num.ids.tolist()==i.tolist() and num.ids.dtype==torch.int64
        seen += i.tolist()
        assert len(next(iter(num)))==3 and len(num.one_batch())==3 # somebody else's batches
        assert num.ids.tolist()==i.tolist()
    assert sorted(seen)==list(range(90)) and done==[1]

def test_an_epoch_that_is_broken_off_is_done():
    done = []
    for _ in Numbered(numbered_dls().train, lambda: done.append(1)): break
    assert done==[1]

@pytest.mark.parametrize('prepares', ['after_item','before_batch','after_batch'])
def test_what_the_loader_does_to_items_and_batches_is_done(prepares):
    def more(o): return (o[0]+1, *o[1:]) if isinstance(o, tuple) else [(p[0]+1, *p[1:]) for p in o]
    train,_ = numbered()
    dl = DataLoader(train, bs=16, **{prepares: more})
    for (x,i,y),(x2,i2,y2) in zip(num := Numbered(dl), dl): # no order of its own here
        assert torch.equal(x, x2) and torch.equal(i, i2) and num.ids.tolist()==i.tolist()
        assert torch.equal(x, train.ts[0][i]+1)

# ---- refused

class Stream(torch.utils.data.IterableDataset):
    def __iter__(self): return iter([tuple(o) for o in zip(*numbered()[0].ts)])

class Invented(DataLoader):
    "Makes its items itself."
    def create_item(self, s): return self.dataset[(s or 0)//2]

class Joined(DataLoader):
    "Makes two samples of each item."
    def create_batch(self, b): return tuple(torch.cat([o, o]) for o in super().create_batch(b))

REFUSED = dict(torch=(lambda tr: torch.utils.data.DataLoader(tr, 16, shuffle=True), 'is no fastai DataLoader'),
               stream=(lambda tr: DataLoader(Stream(), bs=16, n=90), 'without positions'),
               invented=(lambda tr: Invented(tr, bs=16), 'makes its items itself'),
               whole=(lambda tr: DataLoader([tuple(t[i:i+16] for t in tr.ts) for i in range(0, 90, 16)], bs=None), 'whole batches'))

@pytest.mark.parametrize('name,why', [(o, 'torch') for o in ASKS] + [('rho', o) for o in REFUSED])
def test_refused_before_training(name, why):
    make,words = REFUSED[why]
    tr,valid = numbered()
    dls = DataLoaders(make(tr), DataLoader(valid, bs=16), device='cpu')
    dls.n_inp = 2
    learn = make_learner(dls=dls, model=lambda: Ignores(bn_net()), cbs=ASKS[name](), metrics=None)
    before = state(learn)
    msg = says(lambda: learn.fit(1), f'dls.train={type(dls.train).__name__} ', words)
    assert msg==cannot_number(dls.train)
    assert all(torch.equal(v, before[k]) for k,v in learn.model.state_dict().items())

@pytest.mark.parametrize('why', ['torch','stream','invented'])
def test_they_train_where_nobody_asks_for_numbers(why):
    tr,valid = numbered()
    dls = DataLoaders(REFUSED[why][0](tr), DataLoader(valid, bs=16), device='cpu')
    dls.n_inp = 2
    learn = fitted(2, dls=dls, model=lambda: Ignores(bn_net()), cbs=SelectiveBackprop(1.), metrics=None)
    assert learn.selection.batches.n_kept.sum()<180

def test_more_samples_than_items():
    "Found in the first batch, before a step."
    learn = make_learner(dls=lambda: of_class(Joined), model=lambda: Ignores(bn_net()), cbs=[RHOLoss(HOLDOUT, .5), Trained()], metrics=None)
    says(lambda: learn.fit(1), 'dls.train=Joined made a batch of 32 samples out of 16 items')
    assert learn.trained.steps==[]
