"`per_sample_loss`: each sample's loss is what the loss function says of that sample alone."
import functools, math
import pytest, torch
from torch import nn
import torch.nn.functional as F
from fastai.losses import (CrossEntropyLossFlat, BCEWithLogitsLossFlat, MSELossFlat, L1LossFlat, FocalLossFlat,
                           LabelSmoothingCrossEntropy, LabelSmoothingCrossEntropyFlat, DiceLoss)
from fastai.torch_core import TensorImage, TensorCategory
from blf_explore.engine.losses import per_sample_loss, TopLoss

g = torch.Generator().manual_seed(0)
def rnd(*s): return torch.randn(*s, generator=g)
def cls(c, *s): return torch.randint(0, c, s, generator=g)

class Wrapped(nn.Module):
    "A loss with no `reduction` of its own, around one that has."
    def __init__(self):
        super().__init__()
        self.ce = CrossEntropyLossFlat()
    def forward(self, p, y): return self.ce(p, y) + .1*p.pow(2).mean()

class Deaf(nn.Module):
    "A loss with a `reduction` that it ignores."
    reduction = 'mean'
    def forward(self, p, y): return F.mse_loss(p, y)

class Keyword(nn.Module):
    "Takes `reduction` when called."
    def forward(self, p, y, reduction='mean'): return F.cross_entropy(p, y, reduction=reduction)

def plain(p, y): return F.cross_entropy(p, y)
def python_branch(p, y):
    loss = F.mse_loss(p, y)
    return loss*2 if loss>1 else loss # cannot be vectorised
def through_numpy(p, y): return (p-y).abs().mean()*float(p.detach().numpy().max()>0)
def eats_kwargs(p, y, **kwargs): return F.cross_entropy(p, y)
def hinge(p, y): return (1 - p[torch.arange(len(y)), y] + p.mean(1)).clamp(min=0).mean()

n = 7
logits,labels = rnd(n, 4),cls(4, n)
cases = dict(
    nn_ce=(nn.CrossEntropyLoss(), logits, labels),
    nn_ce_sum=(nn.CrossEntropyLoss(reduction='sum'), logits, labels),
    flat_ce=(CrossEntropyLossFlat(), logits, labels),
    functional=(F.cross_entropy, logits, labels),
    partial=(functools.partial(F.cross_entropy, label_smoothing=.1), logits, labels),
    partial_mean=(functools.partial(F.cross_entropy, reduction='mean'), logits, labels),
    plain=(plain, logits, labels), lambda_=(lambda p, y: F.nll_loss(p.log_softmax(1), y), logits, labels),
    eats_kwargs=(eats_kwargs, logits, labels), hinge=(hinge, logits, labels),
    keyword=(Keyword(), logits, labels), wrapped=(Wrapped(), logits, labels),
    smoothing=(LabelSmoothingCrossEntropy(), logits, labels), smoothing_flat=(LabelSmoothingCrossEntropyFlat(), logits, labels),
    focal=(FocalLossFlat(), logits, labels),
    probabilities=(nn.CrossEntropyLoss(), logits, rnd(n, 4).softmax(1)),
    per_pixel=(CrossEntropyLossFlat(axis=1), rnd(n, 4, 5, 3), cls(4, n, 5, 3)),
    per_pixel_nn=(nn.CrossEntropyLoss(), rnd(n, 4, 5, 3), cls(4, n, 5, 3)),
    per_pixel_square=(CrossEntropyLossFlat(axis=1), rnd(4, 4, 4, 4), cls(4, 4, 4, 4)),
    per_token=(CrossEntropyLossFlat(), rnd(n, 6, 4), cls(4, n, 6)),
    per_token_plain=(lambda p, y: F.cross_entropy(p.flatten(0, 1), y.flatten()), rnd(n, 6, 4), cls(4, n, 6)),
    dice=(DiceLoss(reduction='mean'), rnd(n, 3, 4, 4), cls(3, n, 4, 4)),
    regression=(MSELossFlat(), rnd(n, 1), rnd(n)), regression_many=(MSELossFlat(), rnd(n, 3), rnd(n, 3)),
    l1=(L1LossFlat(), rnd(n, 1), rnd(n, 1)), mse_nn=(nn.MSELoss(), rnd(n, 2, 2), rnd(n, 2, 2)), huber=(F.smooth_l1_loss, rnd(n, 2), rnd(n, 2)),
    multi_label=(BCEWithLogitsLossFlat(), rnd(n, 5), cls(2, n, 5).float()),
    multi_label_weighted=(BCEWithLogitsLossFlat(pos_weight=torch.tensor(3.)), rnd(n, 5), cls(2, n, 5).float()),
    deaf=(Deaf(), rnd(n, 3), rnd(n, 3)), branch=(python_branch, rnd(n, 3)*2, rnd(n, 3)), numpy=(through_numpy, rnd(n, 3), rnd(n, 3)),
    two_targets=(lambda p, a, b: F.cross_entropy(p, a) + F.mse_loss(p.sum(1), b), logits, labels, rnd(n)),
    tuple_preds=(lambda p, a, b: F.cross_entropy(p[0], a) + F.mse_loss(p[1], b), (logits, rnd(n, 2)), labels, rnd(n, 2)),
    dict_preds=(lambda p, y: F.cross_entropy(p['a'], y) + p['b'].pow(2).mean(), dict(a=logits, b=rnd(n, 2)), labels),
    dict_targets=(lambda p, y: F.mse_loss(p, y['t']), rnd(n, 2), dict(t=rnd(n, 2))),
    subclasses=(CrossEntropyLossFlat(), TensorImage(logits), TensorCategory(labels)),
)

def row(o, i):
    if isinstance(o, torch.Tensor): return o[i:i+1]
    return {k: row(v, i) for k,v in o.items()} if isinstance(o, dict) else type(o)(row(v, i) for v in o)

@pytest.mark.parametrize('name', cases)
def test_sample_by_sample(name):
    lf,preds,*targs = cases[name]
    n = len(targs[0]) if isinstance(targs[0], torch.Tensor) else len(preds)
    before = getattr(lf, 'reduction', None)
    got = per_sample_loss(lf, preds, *targs)
    assert got.shape==(n,) and type(got) is torch.Tensor
    one = [lf(row(preds, i), *[row(o, i) for o in targs]) for i in range(n)]
    torch.testing.assert_close(got, torch.stack([o.as_subclass(torch.Tensor).reshape(()) for o in one]))
    assert getattr(lf, 'reduction', None)==before

@pytest.mark.parametrize('name', ['nn_ce', 'flat_ce', 'functional', 'plain', 'per_pixel', 'per_token', 'regression', 'multi_label', 'two_targets', 'subclasses'])
def test_mean_is_the_batch_loss(name):
    lf,preds,*targs = cases[name]
    torch.testing.assert_close(per_sample_loss(lf, preds, *targs).mean(), lf(preds, *targs).as_subclass(torch.Tensor))

def test_weighted_classes():
    "With class weights a sample's loss is its weighted loss, as `reduction='none'` gives it."
    w = torch.tensor([1., 2., 3., 4.])
    torch.testing.assert_close(per_sample_loss(CrossEntropyLossFlat(weight=w), logits, labels), F.cross_entropy(logits, labels, reduction='none')*w[labels])

@pytest.mark.parametrize('lf,axis', [(CrossEntropyLossFlat(ignore_index=0), -1), (CrossEntropyLossFlat(axis=1, ignore_index=0), 1), (nn.CrossEntropyLoss(ignore_index=0), 1)])
def test_padding_is_left_out(lf, axis):
    p,y = rnd(5, 6, 4),cls(4, 5, 6)
    y[:,0] = 1 # no sample is all padding
    if axis==1: p = p.transpose(1, 2).contiguous()
    want = torch.stack([lf(p[i:i+1], y[i:i+1]) for i in range(5)])
    torch.testing.assert_close(per_sample_loss(lf, p, y), want)

@pytest.mark.parametrize('name', ['flat_ce', 'plain', 'branch', 'per_pixel', 'wrapped'])
def test_gradient(name):
    lf,preds,*targs = cases[name]
    p = preds.clone().requires_grad_()
    got, = torch.autograd.grad(per_sample_loss(lf, p, *targs)[2], p)
    want, = torch.autograd.grad(lf(p[2:3], *[o[2:3] for o in targs]).sum(), p)
    torch.testing.assert_close(got, want)

@pytest.mark.parametrize('exc', [RuntimeError, KeyboardInterrupt, KeyError])
def test_reduction_restored_after_an_exception(exc):
    class Bad(nn.CrossEntropyLoss):
        def forward(self, *o): raise exc('boom')
    lf = Bad(reduction='sum')
    with pytest.raises(exc): per_sample_loss(lf, logits, labels)
    assert lf.reduction=='sum'

def test_batch_of_one():
    for name in ('flat_ce', 'plain', 'per_pixel', 'deaf', 'branch'):
        lf,preds,*targs = cases[name]
        got = per_sample_loss(lf, preds[:1], *[o[:1] for o in targs])
        torch.testing.assert_close(got, lf(preds[:1], *[o[:1] for o in targs]).reshape(1))

@pytest.mark.parametrize('top_perc', [.25, .5, .9, 1.])
def test_top_loss(top_perc):
    p = logits.clone().requires_grad_()
    TopLoss(CrossEntropyLossFlat(), top_perc)(p, labels).backward()
    q = logits.clone().requires_grad_()
    losses = F.cross_entropy(q, labels, reduction='none')
    keep = losses.detach().argsort(descending=True)[:math.ceil(n*top_perc)]
    F.cross_entropy(q[keep], labels[keep]).backward()
    torch.testing.assert_close(p.grad, q.grad)
    assert int((p.grad.abs().sum(1)>0).sum())==math.ceil(n*top_perc) # the rest went forward and backward for nothing
