"Rows: what a batch holds is taken, joined and weighed together, and the queue's last ones too."
import numpy as np, pytest, torch
from collections import namedtuple, OrderedDict
from fastai.basics import fastuple
from torch import nn
from blf_explore.all import Selection, SelectiveTraining
from blf_explore.engine.rows import join, take
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
