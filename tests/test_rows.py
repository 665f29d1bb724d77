"Rows: what a batch holds is taken, joined and weighed together, and the queue's last ones too."
import io, pickle
import numpy as np, pytest, torch
from collections import namedtuple, OrderedDict
from fastai.basics import fastuple
from torch import nn
from torch.nn.utils.rnn import pack_sequence
from blf_explore.all import Selection, SelectiveTraining
from blf_explore.engine.rows import batch_size, Filter, join, Queue, Rows as Samples, take, weigh
from core_tools import *
from references import hand_learner, steps_by_hand, weighted

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

def test_a_list_with_an_entry_per_sample_goes_with_its_samples():
    boxes = [torch.arange(k) for k in (1, 4, 2, 0)] # of four images; one has four boxes
    b = torch.arange(4),boxes
    x,y = take(b, torch.tensor([2,0]), 4)
    assert x.tolist()==[2,0] and [len(o) for o in y]==[2,1]
    x,y = join([b, (x, y)], [4,2])
    assert x.tolist()==[0,1,2,3,2,0] and [len(o) for o in y]==[1,4,2,0,2,1]
    two = [torch.arange(2), torch.arange(2)+5] # a list of two whole tensors, of a batch of two
    assert [o.tolist() for o in take(two, torch.tensor([1]), 2)]==[[1],[6]]

@double
def test_weights_in_double_precision():
    "A selector may compute its weights in double; the loss that fastai smooths stays in the network's precision."
    torch.set_default_dtype(torch.float32)
    learn = make_learner(cbs=SelectiveTraining(selector=weighted), model=bare)
    learn.fit(1)
    assert learn.loss is None and np.isfinite(learn.recorder.values[0][0])

class TwoOutputs(nn.Module):
    "Two outputs, one computed from the other, and a loss of both."
    def __init__(self):
        super().__init__()
        self.net = bare()
    def forward(self, x): return (z := self.net(x)), z.softmax(1)

def pair_loss(preds, y, reduction='mean'):
    l = F.cross_entropy(preds[0], y, reduction='none') + (1-preds[1][torch.arange(len(y)),y])**2
    return l.mean() if reduction=='mean' else l

@double
def test_weights_where_one_output_comes_from_another():
    learn = learner(SelectiveTraining(selector=weighted), model=TwoOutputs, loss_func=pair_loss)
    learn.fit(2, .1)
    ref = hand_learner(model=TwoOutputs)
    for x,y,w in steps_by_hand(ref, 2, weighted, ce=pair_loss):
        (pair_loss(ref.model(x), y, 'none')*w).mean().backward()
        ref.opt.step(); ref.opt.zero_grad()
    close(learn, ref)

@double
def test_a_lone_sample_in_the_queue():
    "BatchNorm cannot train on it alone, so that one of its batch stands by, and weighs nothing."
    def hardest(scores): return Selection(scores.argmax()[None])
    learn = learner([CutShort(1), Trained()]).add_cb(SelectiveTraining(selector=hardest, queue=True))
    learn.fit(3, .1)
    ref = hand_learner()
    for _ in range(3):
        x,y = next(iter(ref.dls.train))
        ref.model.eval()
        with torch.no_grad(): i = F.cross_entropy(ref.model(x), y, reduction='none').argmax()
        ref.model.train()
        F.cross_entropy(ref.model(torch.stack([x[i], x[0]]))[:1], y[i][None]).backward()
        ref.opt.step(); ref.opt.zero_grad()
    close(learn, ref)
    assert learn.selection.batches.n_trained.tolist()==learn.selection.batches.n_kept.tolist()==[1]*3
    assert [len(o) for o in learn.trained.steps]==[2]*3

# ---- containers of every kind

@pytest.mark.parametrize('name', WRAPS)
def test_take_of_every_container(name):
    wrap,get = WRAPS[name]
    x = torch.arange(10).view(5, 2)
    part = take(wrap(x), torch.tensor([4, 1]), 5)
    assert type(part) is type(wrap(x)) and get(part).tolist()==[[8, 9], [2, 3]]
    assert all(len(o)==2 for o in all_tensors(part)) and len(all_tensors(part))==len(all_tensors(wrap(x)))
    assert batch_size((wrap(x), torch.arange(5)))==5 and batch_size((part,))==2

def all_tensors(o):
    "All tensors in whatever it is, found by pickling it."
    found = []
    class Finds(pickle.Pickler):
        def persistent_id(self, obj):
            if isinstance(obj, torch.Tensor):
                found.append(obj)
                return len(found)
    Finds(io.BytesIO()).dump(o)
    return found

@pytest.mark.parametrize('name', WRAPS)
def test_join_of_every_container(name):
    wrap,get = WRAPS[name]
    a,b = torch.arange(10).view(5, 2),torch.arange(6).view(3, 2)
    (both,) = join([(wrap(a),), (wrap(b),)], [5, 3])
    assert type(both) is type(wrap(a)) and torch.equal(get(both), torch.cat([a, b]))

@pytest.mark.parametrize('of,queue', [('x', True), ('y', False)])
@pytest.mark.parametrize('name', WRAPS)
def test_wrapped_batches_train_as_plain_ones(name, of, queue):
    "Bit for bit as the same samples in tensors alone."
    wrap,get = WRAPS[name]
    def run(wrap, get):
        loss = (lambda p, y: F.cross_entropy(p, y)) if of=='x' else lambda p, y: F.cross_entropy(p, get(y))
        model = (lambda: Wrapping(get)) if of=='x' else Wrapping
        return fitted(2, dls=lambda: wrapped_dls(wrap, of), model=model, loss_func=loss, metrics=None, cbs=PRESETS['BLF'](queue=queue))
    a,b = run(lambda o: o, lambda o: o),run(wrap, get)
    assert_same(state(a), state(b))
    assert a.selection.batches.n_trained.tolist()==b.selection.batches.n_trained.tolist() and b.selection.batches.n_kept.sum()<180

class Opaque:
    "Holds the samples where nobody can see them."
    def __init__(self, o): self.o = o

@pytest.mark.parametrize('held', [lambda x: Opaque(x), lambda x: Opaque([x]), lambda x: pack_sequence(list(x)), lambda x: torch.nested.nested_tensor(list(x))],
                         ids=['object','object of a list','packed','nested'])
def test_what_cannot_be_split_is_refused(held):
    says(lambda: take((held(torch.randn(5, 2)), torch.arange(5)), torch.tensor([1]), 5), 'the batch holds a ', 'cannot be split into its 5 samples', 'give ')

def test_one_kept_of_a_regression():
    "One row trains, and not all sixteen."
    g = gen()
    ds = Rows(torch.randn(48, 3, generator=g), torch.randn(48, generator=g))
    for net in (lambda: nn.Linear(3, 1), lambda: nn.Sequential(nn.Linear(3, 1), nn.Flatten(0))):
        learn = make_learner(dls=loaders(ds, ds), model=net, loss_func=lambda p, t: F.mse_loss(p.view(-1), t), metrics=None,
                             cbs=[PRESETS['BLF'](loss_perc=0., sample_perc=1e-9), Spy()])
        learn.fit(2)
        assert learn.selection.batches.n_kept.tolist()==learn.selection.batches.n_trained.tolist()==[1]*6
        assert [(len(xb[0]), len(yb[0])) for xb,yb in learn.spy.seen]==[(1, 1)]*6

# ---- the queue, alone

def part(ids, width=2, w=None):
    ids = torch.tensor(ids)
    x = ids[:,None].float().expand(-1, width).contiguous()
    return Samples((x,), (ids*10,), ids, None if w is None else torch.tensor(w))

def queued(parts, bs=4, lone=True):
    "What each step trains on: [(the samples' numbers, their width)], a step a batch, and the rest at the end."
    q,steps = Queue(bs),[]
    def pop():
        r = q.pop(lone)
        assert r.yb[0].tolist()==[10*i for i in r.ids.tolist()] and all(x.tolist()==[float(i)]*r.xb[0].shape[1] for x,i in zip(r.xb[0], r.ids.tolist()))
        steps.append((r.ids.tolist(), r.xb[0].shape[1]))
    for k,p in enumerate(parts):
        q.add(p)
        if q.ready(k==len(parts)-1): pop()
        else: steps.append(None)
    while len(q): pop()
    return steps

def test_a_queue_of_one_width():
    assert queued([part([1, 2]), part([3]), part([4, 5, 6]), part([7])])==[None, None, ([1, 2, 3, 4], 2), ([5, 6, 7], 2)]

def test_a_queue_of_padded_batches():
    "What waits is trained on before what cannot be joined with it; nothing is lost or comes out of turn."
    assert queued([part([1, 2]), part([3], 3), part([4, 5], 3), part([6], 2), part([7, 8, 9, 10, 11], 2)])==[
        None, ([1, 2], 2), None, ([3, 4, 5], 3), ([6, 7, 8, 9], 2), ([10, 11], 2)]
    assert queued([part([1], 2), part([2], 3), part([3], 4), part([4], 5)])==[None, ([1], 2), ([2], 3), ([3], 4), ([4], 5)]

def test_a_queue_that_leaves_no_sample_alone():
    assert queued([part([1, 2]), part([3, 4, 5])], lone=False)==[None, ([1, 2, 3, 4, 5], 2)]
    assert queued([part([1, 2]), part([3, 4, 5])])==[None, ([1, 2, 3, 4], 2), ([5], 2)]

def test_weights_follow_their_samples_in_the_queue():
    q = Queue(3)
    q.add(part([1, 2])); q.add(part([3, 4], w=[.5, 2.]))
    r = q.pop()
    assert r.ids.tolist()==[1, 2, 3] and r.weights.tolist()==[1, 1, .5] and q.pop().weights.tolist()==[2]

def test_nothing_selected_adds_nothing():
    q = Queue(3)
    q.add(part([1])); q.add(part([1]).take(torch.tensor([], dtype=torch.long)))
    assert len(q)==1 and not q.ready(False) and q.ready(True)
    f = Filter()
    f.add(part([1, 2]))
    assert f.ready(False) and f.pop().ids.tolist()==[1, 2] and len(f)==0

@pytest.mark.parametrize('name', WRAPS)
def test_weigh_reaches_every_container(name):
    "The gradient is that of the weighted sum, by hand."
    wrap,get = WRAPS[name]
    x,w = torch.randn(5, 2, generator=gen()).requires_grad_(),torch.tensor([1., 0., 2., .5, 3.])
    get(weigh(wrap(x*3), w)).pow(2).sum().backward()
    got,x.grad = x.grad,None
    ((x*3).pow(2).sum(1)*w).sum().backward()
    torch.testing.assert_close(got, x.grad)
