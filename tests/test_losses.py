"`per_sample_loss`: each sample's loss is what the loss function says of that sample alone."
import functools, math
import pytest, torch
from torch import nn
import torch.nn.functional as F
from fastai.losses import (CrossEntropyLossFlat, BCEWithLogitsLossFlat, MSELossFlat, L1LossFlat, FocalLossFlat,
                           LabelSmoothingCrossEntropy, LabelSmoothingCrossEntropyFlat, DiceLoss)
from fastai.torch_core import TensorImage, TensorCategory
from blf_explore.engine.losses import check_reduction, per_sample_loss, Reduction, reduction_of, TopLoss
from core_tools import says, WRAPS

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

# ---- one row in, one loss out, whatever it comes in

@pytest.mark.parametrize('of', ['output','target'])
@pytest.mark.parametrize('name', WRAPS)
def test_containers_of_every_kind(name, of):
    "With a loss that has a `reduction` and one that has none: as the same numbers in tensors alone."
    wrap,get = WRAPS[name]
    def ce(p, y, **kw): return F.cross_entropy(get(p), y, **kw) if of=='output' else F.cross_entropy(p, get(y), **kw)
    def has(p, y, reduction='mean'): return ce(p, y, reduction=reduction)
    def squared(p, y): return ce(p, y)**2 # of a batch of one it is that sample's own
    p,y = (wrap(logits), labels) if of=='output' else (logits, wrap(labels))
    want = F.cross_entropy(logits, labels, reduction='none')
    torch.testing.assert_close(per_sample_loss(has, p, y), want)
    torch.testing.assert_close(per_sample_loss(ce, p, y), want)
    torch.testing.assert_close(per_sample_loss(squared, p, y), want**2)

def squeezes(p, y): return F.binary_cross_entropy_with_logits(p.squeeze(), y)
def squeezes_sum(p, y): return F.binary_cross_entropy_with_logits(p.squeeze(), y, reduction='sum')
def squeezes_branch(p, y): # nothing that vmap could trace
    loss = F.mse_loss(p.squeeze(), y)
    return loss if loss>1e9 else loss*2

@pytest.mark.parametrize('lf,unit', [(squeezes, F.binary_cross_entropy_with_logits), (squeezes_sum, F.binary_cross_entropy_with_logits),
                                     (squeezes_branch, lambda p, y, reduction: 2*F.mse_loss(p, y, reduction=reduction))])
def test_a_loss_that_squeezes(lf, unit):
    p,y = rnd(n, 1),cls(2, n).float()
    torch.testing.assert_close(per_sample_loss(lf, p, y), unit(p[:,0], y, reduction='none'))

def test_an_output_without_rows_is_refused():
    says(lambda: per_sample_loss(lambda p, y: p['loss'], dict(loss=torch.tensor(1.)), labels), 'of type dict, holds no tensor with a row for each of the 7 samples')

# ---- how a loss makes one number of its samples' losses: measured

def rows_(k=12): return rnd(k, 3),cls(3, k)

def scaled_sum(p, y): return 3*F.cross_entropy(p, y, reduction='sum')
REDUCTIONS = dict(mean=(nn.CrossEntropyLoss(), 'mean'), flat=(CrossEntropyLossFlat(), 'mean'), function=(plain, 'mean'),
                  sum=(nn.CrossEntropyLoss(reduction='sum'), 'sum'), scaled=(lambda p, y: .1*F.cross_entropy(p, y), 'mean'),
                  smoothed=(functools.partial(F.cross_entropy, label_smoothing=.1), 'mean'))

@pytest.mark.parametrize('name', REDUCTIONS)
def test_mean_and_sum_are_measured(name):
    "And what it makes of them is the batch's loss, of other batches too."
    lf,kind = REDUCTIONS[name]
    r = reduction_of(lf, *rows_())
    assert r.kind==kind
    for k in (1, 2, 5, 64):
        p,y = rows_(k)
        assert r.total(per_sample_loss(lf, p, y)).item()==pytest.approx(lf(p, y).item(), rel=1e-3)

def test_batchmean_is_a_mean_times_a_factor():
    "`KLDivLoss('batchmean')` divides by the samples, where a sample's loss is the mean over its classes."
    lf,p,y = nn.KLDivLoss(reduction='batchmean'),rnd(12, 5).log_softmax(1),rnd(12, 5).softmax(1)
    r = reduction_of(lf, p, y)
    assert r.kind=='mean' and r.factor==pytest.approx(5, rel=1e-3)
    assert r.total(per_sample_loss(lf, p, y)).item()==pytest.approx(lf(p, y).item(), rel=1e-3)

def test_dice_of_each_image_is_a_sum():
    "fastai's `DiceLoss` makes its quotient of each image and class, and adds them up."
    lf,p,y = DiceLoss(),rnd(8, 3, 4, 4),cls(3, 8, 4, 4)
    r = reduction_of(lf, p, y)
    assert r.kind=='sum' and r.total(per_sample_loss(lf, p, y)).item()==pytest.approx(float(lf(p, y)), rel=1e-3)

def test_a_sum_times_a_factor():
    r = reduction_of(scaled_sum, *rows_())
    p,y = rows_(9)
    assert r.kind in ('mean','sum') and r.total(per_sample_loss(scaled_sum, p, y)).item()==pytest.approx(scaled_sum(p, y).item(), rel=1e-3)

def root(p, y): return (F.mse_loss(p, y)+1e-9).sqrt()
def off_diagonal(p, y): return (p@p.T).pow(2).mean() # every sample against every other
def batch_dice(p, y):
    p,y = p.sigmoid(),F.one_hot(y, p.shape[1])
    return 1-2*(p*y).sum()/(p+y).sum()
p_,y_ = rnd(12, 3),cls(3, 12)
NEITHER = dict(ignored=(nn.CrossEntropyLoss(ignore_index=1), p_, y_), class_weights=(nn.CrossEntropyLoss(weight=torch.tensor([1., 2., 5.])), p_, y_),
               flat_weights=(CrossEntropyLossFlat(weight=torch.tensor([1., 2., 5.])), p_, y_),
               dice=(batch_dice, p_, y_), root=(root, rnd(12, 3), rnd(12, 3)), pairs=(off_diagonal, p_, y_))

@pytest.mark.parametrize('name', NEITHER)
def test_neither_mean_nor_sum_is_refused(name):
    lf,p,y = NEITHER[name]
    says(lambda: reduction_of(lf, p, y), 'loss_func=', 'neither the mean nor the sum', 'give a loss that is, or a method that does not weight')

def test_most_labels_ignored():
    "75% of them: the batch's loss is a mean over a quarter of the samples."
    y = torch.where(torch.arange(12)%4==0, y_, -100)
    says(lambda: reduction_of(nn.CrossEntropyLoss(), p_, y), 'neither the mean nor the sum')

def test_a_later_batch_is_checked():
    losses = per_sample_loss(plain, p_, y_)
    for r,loss in (Reduction('mean', 1.), losses.mean()),(Reduction('sum', 2.), 2*losses.sum()): assert check_reduction(r, losses, loss, plain) is None
    says(lambda: check_reduction(Reduction('mean', 1.), losses, losses.mean()*4, plain), 'did not before')
    assert check_reduction(Reduction('mean', 1.), losses*float('nan'), losses.mean(), plain) is None # a divergence is told elsewhere
