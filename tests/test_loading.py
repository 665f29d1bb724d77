"Which samples a batch holds: told by the batch itself, whatever the loader's order and whoever else draws from it."
import contextlib, pickle
import numpy as np, pytest, torch
from fastai.callback.data import PartialDL, WeightedDL
from fastai.callback.mixup import MixUp
from fastai.callback.progress import ProgressCallback
from fastai.callback.schedule import combined_cos
from fastai.callback.training import GradientClip
from fastai.data.load import SkipItemException
from fastai.distributed import DistributedDL
from blf_explore.all import HardNegativeMining, InfoBatch, keep_all, RHOLoss, SelectiveBackprop, Selection
from blf_explore.engine.loading import _twin, cannot_number, left_in, Numbered
from core_tools import *

ASKS = dict(rho=lambda: RHOLoss(HOLDOUT, .5), info=lambda: InfoBatch(.5, warmup=9), stale=lambda: HardNegativeMining(.5, stale=1),
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

# ---- samples left out of the epoch

def order_of(make, seed=3):
    "What this loader's epoch holds when all stay: its samples' numbers, batch by batch."
    random.seed(seed); np.random.seed(seed); torch.manual_seed(seed)
    dl = make().train
    return [i.tolist() for _,i,_ in dl],dl.rng.getstate()

def left_by_hand(order, keep, bs=16, drop_last=False):
    idxs,out = [i for i in order if keep[i]],[i for i in order if not keep[i]]
    if len(idxs)<2: idxs += out[:2-len(idxs)]
    elif len(idxs)%bs==1: idxs.append(out[0])
    cut = [idxs[k:k+bs] for k in range(0, len(idxs), bs)]
    return [o for o in cut if len(o)==bs] if drop_last and len(cut[0])==bs else cut

SHORT = LOADERS | dict(unshuffled=lambda: DataLoaders(DataLoader(numbered()[0], bs=16)), drop_last=lambda: numbered_dls(True),
                       workers=lambda: numbered_dls(workers=2))
MASKS = dict(half=lambda i: i%2==0, tenth=lambda i: i%10==0, one=lambda i: i==40, none=lambda i: False, lone=lambda i: i<33, all=lambda i: True)

@pytest.mark.parametrize('name,mask', [(o, 'half') for o in SHORT] + [(o, m) for o in ('plain','drop_last','weighted') for m in MASKS])
def test_an_epoch_without_some(name, mask):
    "The loader's own order, whatever it is, less what is left out, cut into batches; its length, and who comes with whom; drawn from the same random numbers."
    if name=='stateful': return # its batches depend on how many items there were
    (batches,rng),keep = order_of(SHORT[name]),torch.tensor([MASKS[mask](i) for i in range(90)])
    want = sum(batches, [])
    if name=='drop_last': want = sum(order_of(lambda: numbered_dls())[0], []) # with the samples that are dropped at the end
    if name=='skipping': want,keep = [i for i in want],keep & (torch.arange(90)%7!=3)
    want = left_by_hand(want, keep, drop_last=name=='drop_last')
    random.seed(3); np.random.seed(3); torch.manual_seed(3)
    dl = SHORT[name]().train
    num = Numbered(dl, keep=keep)
    n = len(num)
    seen = [(i.tolist(), num.ids.tolist(), num.behind(len(i))) for _,i,_ in num]
    assert [a for a,_,_ in seen]==[b for _,b,_ in seen]==want and n==len(want)
    assert dl.rng.getstate()==rng
    if name in ('plain','workers','unshuffled'): assert sum(len(a)+n for a,_,n in seen)==90

def test_samples_that_are_left_out_twice_over():
    "By hand."
    keep = torch.tensor([True, False, True, False])
    assert left_in([3, 2, 2, 0, 1], keep, 2)==[2, 2, 0, 3] and left_in(iter([3, 2, 0]), keep, 4)==[2, 0]
    assert left_in(np.array([1, 3, 2]), keep, 4)==[2, 1] and left_in(torch.tensor([1, 3]), keep, 4)==[1, 3] and left_in([1, 3], keep, 1)==[1]
    assert left_in([0, 2, 0, 2, 0, 1, 3, 1], keep, 2, world=2)==[0, 2, 0, 2, 0, 1, 3] # of 5 each process would have 3, the last alone

@pytest.mark.parametrize('world', [2, 3])
def test_a_distributed_loader_without_some(world, monkeypatch):
    "All processes have as many batches, together they hold all that stays, and share what is left out."
    monkeypatch.setattr(DistributedDL, '_broadcast', lambda self, t, rank: t) # each draws the first one's order here
    keep = torch.arange(90)%3==0
    got = []
    for rank in range(world):
        random.seed(3)
        num = Numbered(DistributedDL(numbered_dls().train, rank, world, device='cpu'), keep=keep)
        n = len(num)
        got.append([(i.tolist(), num.behind(len(i))) for _,i,_ in num])
        assert len(got[-1])==n
    assert len({len(o) for o in got})==1 and {i for o in got for b,_ in o for i in b}>=set(range(0, 90, 3))
    assert all(len(b)>1 for o in got for b,_ in o) and all(sum(len(b)+k for b,k in o)==90//world for o in got)

class CountsItems(Rows):
    def __init__(self, *ts): super().__init__(*ts); self.n = [0]*len(ts[0])
    def __getitem__(self, i):
        self.n[i] += 1
        return super().__getitem__(i)

class FirstThird(SelectiveTraining):
    "From the second epoch on a third of the samples stays, with a weight each."
    method,by_id,watch_rows,by_epoch,weighs = 'third',True,True,True,True
    def __init__(self, weights=None, **kwargs): super().__init__(selector=keep_all, **kwargs); self.w = weights
    def keep_epoch(self, last): return None if self.epoch==0 else Selection(torch.arange(30), self.w)

class Schedule(Callback):
    order,run_valid = 99,False
    def before_fit(self): self.at = []
    def before_batch(self): self.at.append((self.epoch, self.learn.pct_train, self.learn.opt.hypers[0]['lr']))

def test_what_is_left_out_is_not_loaded_and_the_schedule_is_right():
    "Items are counted where they are read; the learning rate is that of fastai's one-cycle at the share of the training that is done, each epoch its third."
    tr,valid = numbered()
    ds = CountsItems(*tr.ts)
    dls = DataLoaders(DataLoader(ds, bs=16, shuffle=True), DataLoader(valid, bs=16), device='cpu')
    dls.n_inp = 2
    learn = numbered_learner(FirstThird(), dls, [sched := Schedule()])
    learn.fit_one_cycle(3, 1e-2)
    assert ds.n==[3]*30+[1]*60 and sorted(learn.checks.seen)==sorted([*range(90), *2*list(range(30))])
    f = combined_cos(.25, 1e-2/25, 1e-2, 1e-2/1e5)
    want = [(0, i/18) for i in range(6)]+[(e, e/3+i/6) for e in (1,2) for i in range(2)]
    assert [e for e,_,_ in sched.at]==[e for e,_ in want]
    np.testing.assert_allclose([p for _,p,_ in sched.at], [p for _,p in want], atol=1e-12)
    np.testing.assert_allclose([lr for _,_,lr in sched.at], [float(f(p)) for _,p in want], rtol=1e-6)
    e = learn.selection.epochs
    assert e.n_seen.tolist()==[90]*3 and e.n_kept.tolist()==[90, 30, 30] and e.n_iter.tolist()==[6, 2, 2]
    np.testing.assert_allclose(e.kept_pct, [100, 100/3, 100/3])
    assert learn.selection.batches.n_seen.tolist()==[16]*5+[10]+[48, 42]*2 and learn.selection.batches.n_trained.tolist()==[16]*5+[10]+[16, 14]*2

@pytest.mark.parametrize('beside', ['mixup','clip','progress','partial'])
def test_weights_of_an_epoch_come_with_its_batches(beside):
    "Each sample's own, whatever else is there; weights of 1 train bit for bit as none."
    make = dict(mixup=lambda: [MixUp()], clip=lambda: [GradientClip()], progress=lambda: [ProgressCallback()], partial=lambda: [CutShort(2)])[beside]
    w = torch.linspace(.5, 2, 30)
    class Looks(Callback):
        order,run_valid = 57,False
        def before_batch(self):
            rows = self.learn.selection._fit.rows
            if self.epoch: assert torch.equal(rows.weights, w[rows.ids]); self.seen = True
    learn = make_learner(dls=lambda: loaders(*stripes(90)), model=image_net, loss_func=CE(), metrics=None, cbs=[FirstThird(w), *make(), looks := Looks()])
    with contextlib.redirect_stdout(None): learn.fit(2, 1e-2)
    assert looks.seen and learn.selection.epochs.n_kept[1]==30
    with contextlib.redirect_stdout(None):
        a,b = [fitted(2, dls=lambda: loaders(*stripes(90)), model=image_net, loss_func=CE(), metrics=None, cbs=[FirstThird(o), *make()])
               for o in (None, torch.ones(30))]
    assert_same(state(a), state(b))

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
