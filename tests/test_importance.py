"Importance sampling against algebra, finite differences, statistics, and loops written by hand."
import copy, inspect, math, pickle, random, warnings
import numpy as np, pytest, torch
from fastai.basics import (BCEWithLogitsLossFlat, CrossEntropyLossFlat, FocalLoss, FocalLossFlat,
                           LabelSmoothingCrossEntropy, LabelSmoothingCrossEntropyFlat, MSELossFlat)
from fastai.callback.core import Callback, CancelFitException
from fastai.callback.schedule import SchedLin
from fastai.losses import BaseLoss
from fastai.torch_core import TensorBase
from functools import partial
from scipy.stats import chi2
from blf_explore import importance
from blf_explore.blf import BatchLossFilter
from blf_explore.all import Selection, SelectiveTraining
from blf_explore.engine.losses import per_sample_loss
from blf_explore.importance import (grad_norm, grad_norm_bound, ImportanceSampling, tau, tau_threshold, TauSwitch,
                                    weighted_draw)
from core_tools import *
from references import hand_fit, hand_tau, loop_norms

def gen(seed=0): return torch.Generator().manual_seed(seed)
def rand(*shape, seed=0): return torch.randn(*shape, generator=gen(seed), dtype=torch.float64)

n,C = 9,5
z = rand(n, C)*2
labels = torch.randint(0, C, (n,), generator=gen(1))
ignored = labels.clone(); ignored[[2,5]] = -100

soft = rand(n, C, seed=2).softmax(1)
many = (rand(n, C, seed=3)>0).double()
one = many[:,0]

# every loss that has a formula: (name, loss, preds, target)
ce_losses = dict(
    module=nn.CrossEntropyLoss(), summed=nn.CrossEntropyLoss(reduction='sum'), function=F.cross_entropy, flat=CrossEntropyLossFlat(),
    smooth=nn.CrossEntropyLoss(label_smoothing=.1), smooth_partial=partial(F.cross_entropy, label_smoothing=.3),
    fastai_smooth=LabelSmoothingCrossEntropy(), fastai_smooth_flat=LabelSmoothingCrossEntropyFlat(eps=.2))
bce_losses = dict(module=nn.BCEWithLogitsLoss(), function=F.binary_cross_entropy_with_logits, flat=BCEWithLogitsLossFlat())
closed = [(k, f, z, labels) for k,f in ce_losses.items()] + [(k+', ignored', f, z, ignored) for k,f in ce_losses.items()]
closed += [(k+', soft', ce_losses[k], z, soft) for k in ('module','function','smooth','smooth_partial')]
closed += [('binary '+k, f, z[:,0], one) for k,f in bce_losses.items()] + [('several labels '+k, f, z, many) for k,f in bce_losses.items()]
closed += [
    ('soft, not summing to 1', nn.CrossEntropyLoss(label_smoothing=.1), z, 2*soft),
    ('soft, not flattened', CrossEntropyLossFlat(flatten=False), z, soft),
    ('ignore_index', nn.CrossEntropyLoss(ignore_index=1), z, labels),
    ('flat ignore_index', CrossEntropyLossFlat(ignore_index=2), z, labels),
    ('partial ignore_index', partial(F.cross_entropy, ignore_index=0), z, labels),
    ('column of labels', CrossEntropyLossFlat(), z, labels[:,None]),
    ('tensor subclass', CrossEntropyLossFlat(), TensorBase(z), TensorBase(labels)),
    ('binary, (n,1)', bce_losses['module'], z[:,:1], many[:,:1]),
    ('binary, (n,1) and (n,)', bce_losses['flat'], z[:,:1], one),
    ('several labels, whole numbers', bce_losses['flat'], z, many.long()),
    ('mask', bce_losses['module'], rand(n, 1, 3, 4), (rand(n, 1, 3, 4, seed=5)>0).double())]

def weights(): return torch.arange(1., C+1).double()
def named(p, t): return p['scale']*(p['out']-t).pow(2).mean() + p['more'][0].abs().mean()
def pair(p, a, b): return F.cross_entropy(p[0], a) + F.l1_loss(p[1], b)
def branching(p, t):
    l = F.cross_entropy(p, t)
    return l.log() if l>1 else l-1

# losses without a formula, and such as look like one that has
pixels,tokens = (torch.randint(0, C, o, generator=gen(4)) for o in ((n,3,2), (n,4)))
other = [
    ('class weights', nn.CrossEntropyLoss(weight=weights()), z, (labels,)),
    ('class weights, partial', partial(F.cross_entropy, weight=weights()), z, (labels,)),
    ('class weights, flat', CrossEntropyLossFlat(weight=weights().float()), z.float(), (labels,)),
    ('class weights, fastai smoothing', LabelSmoothingCrossEntropy(weight=weights()), z, (labels,)),
    ('pos_weight', nn.BCEWithLogitsLoss(pos_weight=weights()), z, (many,)),
    ('output weights', nn.BCEWithLogitsLoss(weight=weights()), z, (many,)),
    ('per pixel', nn.CrossEntropyLoss(), rand(n, C, 3, 2), (pixels,)),
    ('per pixel, flat', CrossEntropyLossFlat(axis=1), rand(n, C, 3, 2), (pixels,)),
    ('per pixel, some ignored', nn.CrossEntropyLoss(ignore_index=0), rand(n, C, 3, 2), (pixels,)),
    ('per token', CrossEntropyLossFlat(), rand(n, 4, C), (tokens,)),
    ('focal', FocalLoss(), z, (labels,)),
    ('focal, flat', FocalLossFlat(gamma=1.5), z, (labels,)),
    ('squares', nn.MSELoss(), z, (soft,)),
    ('squares, flat', MSELossFlat(), z[:,:1], (one,)),
    ('lambda', lambda p, t: F.cross_entropy(p, t), z, (labels,)),
    ('branching', branching, z, (labels,)),
    ('other arguments', partial(F.cross_entropy, size_average=None), z, (labels,)),
    ('two outputs', pair, (z, rand(n, 2)), (labels, rand(n, 2, seed=6))),
    ('dict', named, dict(out=z, more=[rand(n, 3)], scale=torch.tensor(3.).double(), name=None), (soft,))]

def leaves_of(preds):
    "The tensors of an output, in tuples, lists and dicts."
    if isinstance(preds, torch.Tensor): return [preds]
    if not isinstance(preds, (dict,tuple,list)): return []
    return [o for v in (preds.values() if isinstance(preds, dict) else preds) for o in leaves_of(v)]

def tol(f, fine, coarse):
    "fastai's flattened losses make float32 of what they get."
    return dict(zip(('rtol','atol'), coarse if isinstance(f, BaseLoss) else fine))

def by_differences(f, preds, targs):
    "Norm of each sample's gradient, by central differences of its loss in every number of its output."
    h,preds = 1e-2 if isinstance(f, BaseLoss) else 1e-6,copy.deepcopy(preds)
    sq = torch.zeros(n, dtype=torch.float64)
    for leaf in leaves_of(preds):
        if not leaf.ndim: continue
        flat = leaf.as_subclass(torch.Tensor).view(n, -1)
        for j in range(flat.shape[1]):
            old = flat[:,j].clone()
            flat[:,j] = old+h; up = per_sample_loss(f, preds, *targs)
            flat[:,j] = old-h; down = per_sample_loss(f, preds, *targs)
            flat[:,j] = old
            sq += ((up-down)/(2*h))**2
    return sq.sqrt()

# ---- the bound

@pytest.mark.parametrize('name,f,preds,targ', closed, ids=[o[0] for o in closed])
def test_closed_form(name, f, preds, targ):
    "Formula, autograd and finite differences agree; the formula is indeed what is used."
    assert importance._formula(f, preds, (targ,)) is not None
    with torch.no_grad():
        got = grad_norm_bound(f, preds, targ)
        target = targ.double() if name=='several labels, whole numbers' else targ
        auto = importance._by_autograd(f, preds, targ)
        diff = by_differences(f, preds, (target,))
    assert got.shape==(n,) and not got.requires_grad
    torch.testing.assert_close(got, auto, **tol(f, (1e-9, 1e-12), (1e-5, 1e-6)))
    torch.testing.assert_close(got, diff, check_dtype=False, **tol(f, (1e-6, 1e-8), (1e-3, 3e-4)))

@pytest.mark.parametrize('name,f,preds,targs', other, ids=[o[0] for o in other])
def test_any_other_loss(name, f, preds, targs):
    assert importance._formula(f, preds, targs) is None
    with torch.no_grad():
        got,diff = grad_norm_bound(f, preds, *targs),by_differences(f, preds, targs)
    assert got.shape==(n,) and not got.requires_grad and got.min()>0
    torch.testing.assert_close(got, diff, check_dtype=False, **tol(f, (1e-6, 1e-8), (1e-3, 3e-4)))

def test_by_hand():
    "p = (.5, .25, .25)"
    preds = torch.tensor([[.5,.25,.25]]*3).log()
    want = [(.25+.0625+.0625)**.5, (.25+.5625+.0625)**.5, (.25+.5625+.0625)**.5]
    assert grad_norm_bound(F.cross_entropy, preds, torch.tensor([0,1,2])).tolist()==pytest.approx(want)
    assert grad_norm_bound(nn.BCEWithLogitsLoss(), torch.tensor([[0.,0.]]), torch.tensor([[1.,0.]])).tolist()==pytest.approx([(2*.25**2)**.5])
    assert grad_norm_bound(F.cross_entropy, torch.zeros(1, 4), torch.tensor([-100])).tolist()==[0.]
    assert 0<=grad_norm_bound(F.cross_entropy, torch.randn(500, 7)*5, torch.randint(0, 7, (500,))).max()<=2**.5

def test_subclasses_have_no_formula():
    "A loss that only derives from a known one may compute anything."
    class Double(nn.CrossEntropyLoss):
        def forward(self, p, t): return 2*super().forward(p, t)
    torch.testing.assert_close(grad_norm_bound(Double(), z, labels), 2*grad_norm_bound(nn.CrossEntropyLoss(), z, labels))

@pytest.mark.parametrize('f', [nn.CrossEntropyLoss(), FocalLoss()])
def test_leaves_no_trace(f):
    preds = z.float().clone().requires_grad_(True)
    res = grad_norm_bound(f, preds*1, labels)
    assert preds.grad is None and not res.requires_grad and f.reduction=='mean'
    before = random_states(),torch.is_grad_enabled()
    with torch.no_grad():
        torch.testing.assert_close(grad_norm_bound(f, preds, labels), res)
        assert not torch.is_grad_enabled()
    assert (random_states(), torch.is_grad_enabled())==before
    preds.sum().backward() # still part of a graph of its own

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('f', [F.cross_entropy, FocalLoss()])
def test_half_precision(f, dtype):
    got = grad_norm_bound(f, z.to(dtype), labels)
    assert got.dtype==torch.float32
    torch.testing.assert_close(got, grad_norm_bound(f, z.to(dtype).float(), labels), rtol=.05, atol=.02)

def test_well_known_samples():
    "Losses and probabilities at the edge of float32."
    preds = torch.tensor([[200.,0.,0.], [-200.,0.,0.], [1e30,0.,0.]])
    got = grad_norm_bound(F.cross_entropy, preds, torch.zeros(3, dtype=torch.long))
    torch.testing.assert_close(got, torch.tensor([0., 1.5**.5, 0.]), atol=1e-6, rtol=0)
    assert grad_norm_bound(F.cross_entropy, torch.full((1,3), math.nan), torch.zeros(1, dtype=torch.long)).isnan().all()

def test_loss_without_gradient():
    def n_right(p, t): return (p.argmax(1)==t).float()
    with pytest.raises(ValueError, match="gives the model's output no gradient") as e: grad_norm_bound(n_right, z, labels)
    assert '\n' not in str(e.value)

def test_faults_are_those_of_the_loss():
    "Shapes that do not fit raise what the loss itself raises; nothing is guessed."
    for f in (F.cross_entropy, nn.CrossEntropyLoss(), nn.BCEWithLogitsLoss()):
        with pytest.raises(Exception): grad_norm_bound(f, z, labels[:4])
    with pytest.raises(Exception): grad_norm_bound(LabelSmoothingCrossEntropy(), z, soft)

linear_cases = [
    ('cross-entropy', F.cross_entropy, C, labels), ('torch smoothing', nn.CrossEntropyLoss(label_smoothing=.2), C, labels),
    ('fastai smoothing', LabelSmoothingCrossEntropyFlat(), C, labels), ('soft', nn.CrossEntropyLoss(), C, soft),
    ('binary', BCEWithLogitsLossFlat(), 1, one), ('several labels', nn.BCEWithLogitsLoss(), C, many)]

@pytest.mark.parametrize('name,f,c,y', linear_cases, ids=[o[0] for o in linear_cases])
def test_linear_model(name, f, c, y):
    "Without hidden layers the exact norm is the bound times the norm of the input with its 1 for the bias."
    torch.manual_seed(0)
    model,x = nn.Linear(7, c).double(),rand(n, 7, seed=8)
    with torch.no_grad(): bound = grad_norm_bound(f, model(x), y)
    want = bound*torch.cat([x, torch.ones(n, 1)], 1).norm(dim=1)
    t = tol(f, (1e-9, 1e-12), (1e-5, 1e-6))
    torch.testing.assert_close(grad_norm(model, f, (x,), (y,)), want, **t)
    torch.testing.assert_close(loop_norms(model, f, (x,), (y,)), want, **t)
    no_bias = nn.Linear(7, c, bias=False).double()
    with torch.no_grad(): bound = grad_norm_bound(f, no_bias(x), y)
    torch.testing.assert_close(grad_norm(no_bias, f, (x,), (y,)), bound*x.norm(dim=1), **t)

class WithDict(nn.Module):
    def __init__(self):
        super().__init__()
        self.a,self.b = nn.Linear(4, 6),nn.Linear(9, C)
    def forward(self, d, more): return self.b(torch.cat([self.a(d['x']).relu(), more], 1))

class Recurrent(nn.Module): # vmap has no rule for an LSTM
    def __init__(self):
        super().__init__()
        self.rnn,self.head = nn.LSTM(3, 5, batch_first=True),nn.Linear(5, C)
    def forward(self, x): return self.head(self.rnn(x)[0][:,-1])

def small_conv():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(4*9, C))

exact_cases = dict(bn=lambda: (bn_net(6, C), (rand(n, 6),), (labels,)), conv=lambda: (small_conv(), (rand(n, 1, 5, 5),), (labels,)),
                   dicts=lambda: (WithDict(), (dict(x=rand(n, 4)), rand(n, 3)), (labels,)),
                   lstm=lambda: (Recurrent(), (rand(n, 6, 3),), (labels,)))
some_losses = dict(ce=nn.CrossEntropyLoss(), flat=CrossEntropyLossFlat(), focal=FocalLoss(), function=lambda p, t: F.cross_entropy(p, t))

@pytest.mark.parametrize('case', exact_cases)
@pytest.mark.parametrize('f', some_losses.values(), ids=some_losses)
def test_grad_norm(case, f):
    torch.manual_seed(0)
    model,xb,yb = exact_cases[case]()
    model.double()
    torch.testing.assert_close(grad_norm(model, f, xb, yb), loop_norms(model, f, xb, yb), **tol(f, (1e-8, 1e-10), (1e-4, 1e-6)))

def test_branching_loss():
    model,x = bn_net(6, C).double(),rand(n, 6)
    torch.testing.assert_close(grad_norm(model, branching, x, labels), loop_norms(model, branching, (x,), (labels,)), rtol=1e-8, atol=1e-10)

def test_grad_norm_leaves_no_trace():
    torch.manual_seed(0)
    model = bn_net(6, C)
    model[1].eval() # frozen on purpose
    F.cross_entropy(model(rand(n, 6).float()), labels).backward()
    weights,grads = copy.deepcopy(model.state_dict()),[p.grad.clone() for p in model.parameters()]
    before = [o.training for o in model.modules()],random_states()
    res = grad_norm(model, nn.CrossEntropyLoss(), (rand(n, 6).float(),), (labels,))
    assert not res.requires_grad and all(p.requires_grad for p in model.parameters())
    assert_same(weights, model.state_dict())
    assert all(torch.equal(a, p.grad) for a,p in zip(grads, model.parameters()))
    assert before==([o.training for o in model.modules()], random_states())
    with pytest.raises(Exception): grad_norm(model, nn.CrossEntropyLoss(), (rand(n, 5).float(),), (labels,))
    assert before==([o.training for o in model.modules()], random_states())

def test_grad_norm_frozen_and_in_chunks():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2100, 1000), nn.ReLU(), nn.Linear(1000, C)) # more than 2 million weights: chunks of one
    x,y = rand(5, 2100).float(),labels[:5]
    def same():
        want = loop_norms(model, F.cross_entropy, (x,), (y,))
        torch.testing.assert_close(grad_norm(model, F.cross_entropy, x, y), want, rtol=1e-4, atol=1e-6)
    same()
    for p in model[0].parameters(): p.requires_grad_(False)
    same()
    for p in model.parameters(): p.requires_grad_(False)
    with pytest.raises(ValueError, match='unfreeze some'): grad_norm(model, F.cross_entropy, x, y)

# ---- tau

@pytest.mark.parametrize('scores,want', [
    ([1,1,1,1], 1.), ([0,0,0,5], 2.), ([0,0,2,2], 2**.5), ([1,2,3,4], (4*30)**.5/10), ([3], 1.), ([0,0,0], 1.), ([-1,0,1,1], 2**.5),
    ([1e-40]*6, 1.), ([3e38]*6, 1.), ([0,3e38], 2**.5)])
def test_tau_by_hand(scores, want): assert tau(torch.tensor(scores, dtype=torch.float64))==pytest.approx(want, rel=1e-9)

def test_tau_by_its_equation():
    rng = np.random.default_rng(0)
    for k in range(300):
        s = rng.random(rng.integers(2, 40))**rng.integers(1, 6)
        g = s/s.sum()
        want = 1/math.sqrt(1-((g-1/len(g))**2).sum()/(g**2).sum())
        assert tau(torch.tensor(s))==pytest.approx(want, rel=1e-6)
        assert tau(torch.tensor(7*s))==pytest.approx(want, rel=1e-6) and 1-1e-9<=tau(torch.tensor(s))<=math.sqrt(len(s))+1e-9

def test_tau_is_the_ratio_of_second_moments():
    "tau squared: how much the mean square of a weighted draw falls against a uniform one, if scores are the norms."
    norms = rand(40).abs()
    p = norms/norms.sum()
    uniform,by_score = (norms**2).mean(),((norms/(40*p))**2*p).sum()
    assert tau(norms)**2==pytest.approx((uniform/by_score).item())

@pytest.mark.parametrize('B,b,want', [(3, 1, 2.), (640, 128, (640+384)/384), (1024, 128, (1024+384)/384), (64, 64, 4/3), (10, 1, 13/3)])
def test_threshold_by_hand(B, b, want): assert tau_threshold(B, b)==pytest.approx(want)

@pytest.mark.parametrize('f', [
    lambda: tau(torch.zeros(0)), lambda: tau(torch.tensor([1., math.nan])), lambda: tau(torch.tensor([math.inf])),
    lambda: tau_threshold(0, 1), lambda: tau_threshold(8, 0), lambda: tau_threshold(8, 2.5), lambda: tau_threshold(True, 1),
    *(lambda k=k: weighted_draw(torch.ones(3), k, gen()) for k in (0, -1, 1.5, True, None)), lambda: weighted_draw(torch.ones(3), 1, None),
    lambda: weighted_draw(torch.ones(0), 1, gen()), lambda: weighted_draw(torch.tensor([math.nan]), 1, gen())])
def test_bad_numbers(f):
    with pytest.raises(ValueError, match='give') as e: f()
    assert '\n' not in str(e.value)

# ---- the draw

@pytest.mark.parametrize('scores', [[0., 1., 2., 3., 5., 8., 13., .1, .01, 21.], [1.]*10, [0.]*10, [-5., 0., 1., 1., 4.]])
def test_frequencies(scores):
    "Pearson's chi-square of 200,000 draws stays below what chance exceeds once in a million times."
    N,scores = 200_000,torch.tensor(scores)
    p = scores.clamp(min=0).double()
    p = p/p.sum() if p.sum()>0 else torch.full_like(p, 1/len(p))
    sel = weighted_draw(scores, N, gen(3))
    counts = sel.idxs.bincount(minlength=len(scores))
    assert (counts[p==0]==0).all()
    alive = p>0
    stat = ((counts-N*p)[alive]**2/(N*p[alive])).sum().item()
    assert stat<chi2.ppf(1-1e-6, alive.sum().item()-1)
    torch.testing.assert_close(sel.weights, (1/(len(p)*p[sel.idxs])).float())
    if scores.unique().numel()>2: # the test can fail: these are not uniform draws
        assert ((counts-N/len(p))**2/(N/len(p))).sum()>chi2.ppf(1-1e-6, len(p)-1)

@pytest.mark.parametrize('by', ['bound', 'loss', 'random numbers'])
def test_unbiased_gradient(by):
    """The mean of many drawn and weighted gradients is the batch's gradient. Its squared distance from that has the
    expectation V/(k T), V the variance of one draw. It is a weighted sum of squared normal deviates, and such a sum exceeds 25
    times its mean less often than a single square does (6 times in 10 million)."""
    torch.manual_seed(0)
    model,x = nn.Sequential(nn.Linear(7, 8), nn.Tanh(), nn.Linear(8, C)).double(),rand(n, 7, seed=8)
    with torch.no_grad(): model[2].weight *= 8 # sure of itself, so that norms differ
    def flat(loss): return torch.cat([o.flatten() for o in torch.autograd.grad(loss, list(model.parameters()))])
    G = torch.stack([flat(F.cross_entropy(model(x[i:i+1]), labels[i:i+1])) for i in range(n)])
    full = flat(F.cross_entropy(model(x), labels))
    with torch.no_grad(): preds = model(x)
    if by=='random numbers': scores = torch.rand(n, generator=gen())+.1
    else: scores = dict(bound=grad_norm_bound, loss=per_sample_loss)[by](F.cross_entropy, preds, labels)
    k,T,g = 4,5000,gen(7)
    sels = [weighted_draw(scores, k, g) for _ in range(T)]
    def step(s): return flat((F.cross_entropy(model(x[s.idxs]), labels[s.idxs], reduction='none')*s.weights.double()).mean())
    some = torch.stack([step(s) for s in sels[:20]])
    ests = torch.stack([(G[s.idxs]*s.weights.double()[:,None]).mean(0) for s in sels])
    torch.testing.assert_close(some, ests[:20]) # the step's gradient is that mean
    p = scores.double()/scores.double().sum()
    V = (G.norm(dim=1)**2/p).sum()/n**2 - full.norm()**2
    off = (ests.mean(0)-full).norm()**2
    assert off<25*V/(k*T)
    assert ests.var(0).sum().item()==pytest.approx((V/k).item(), rel=.2)
    unweighted = torch.stack([G[s.idxs].mean(0) for s in sels]).mean(0)
    assert (unweighted-full).norm()**2>25*V/(k*T) # without the weights it is not

def test_draws_leave_the_global_random_state():
    before,np_before = random_states(),np.random.get_state()[1].tolist()
    a = weighted_draw(torch.rand(9, generator=gen()), 50, gen(5))
    assert random_states()==before and np.random.get_state()[1].tolist()==np_before
    torch.manual_seed(99); random.seed(99)
    b = weighted_draw(torch.rand(9, generator=gen()), 50, gen(5))
    assert torch.equal(a.idxs, b.idxs) and torch.equal(a.weights, b.weights)
    assert a.idxs.dtype==torch.int64 and a.weights.dtype==torch.float32 and len(a.idxs)==len(a.weights)==50
    assert not torch.equal(a.idxs, weighted_draw(torch.rand(9, generator=gen()), 50, gen(6)).idxs)

def drawer(g, share):
    def draw(losses, bounds):
        n,p = len(bounds),bounds.double()/bounds.double().sum()
        idxs = torch.multinomial(p, math.ceil(n*share), replacement=True, generator=g)
        return idxs.tolist(),(1/(n*p[idxs])).float()
    return draw

def published(share): return lambda n: (n+3*math.ceil(n*share))/(3*math.ceil(n*share))

def apart():
    "Classes that lie further apart, and are soon learnt but for a few."
    train,valid = blobs()
    g = torch.Generator().manual_seed(9)
    return loaders(Rows(train.ts[0] + 4*torch.randn(3, 6, generator=g)[train.ts[1]], train.ts[1]), valid)

def both(make, seed=1, n_epoch=6, lr=.05):
    "A callback's run and the learner for a loop from the same start."
    a,b = make_learner(seed, opt_func=SGD, dls=apart),make_learner(seed, opt_func=SGD, dls=apart)
    cb = make()
    random.seed(5); torch.manual_seed(5); a.dls.train.rng = random.Random(5)
    a.fit(n_epoch, lr, cbs=cb)
    random.seed(5); torch.manual_seed(5); b.dls.train.rng = random.Random(5)
    return a,b,cb

def close(a, b):
    for (k,v),w in zip(a.model.state_dict().items(), b.model.state_dict().values()):
        torch.testing.assert_close(v, w, rtol=2e-3, atol=1e-4, msg=k)

@pytest.mark.parametrize('share', [1/3, .5, .9])
def test_always_on(share):
    a,b,cb = both(lambda: ImportanceSampling(share, tau_th=0, plain_every=0))
    used,_ = hand_fit(b, 6, .05, drawer(gen(cb.gen.initial_seed()), share), lambda n: 0)
    assert cb.batches.n_kept.tolist()==[len(o) for o in used]==[math.ceil(o*share) for o in cb.batches.n_seen]
    assert any(len(set(o))<len(o) for o in used)
    close(a, b)

@pytest.mark.parametrize('share,tau_th', [(.8, None), (.6, 1.25)])
def test_switch(share, tau_th):
    "Which batches are drawn from, by a running mean kept by hand; and the weights after training."
    a,b,cb = both(lambda: ImportanceSampling(share, tau_th=tau_th, plain_every=0), n_epoch=10, lr=.1)
    used,means = hand_fit(b, 10, .1, drawer(gen(cb.gen.initial_seed()), share), published(share) if tau_th is None else lambda n: tau_th)
    assert cb.batches.n_kept.tolist()==[len(o) for o in used]
    on = [len(o)<n for o,n in zip(used, cb.batches.n_seen)]
    assert cb.batches.n_scored.tolist()==[n if o else 0 for o,n in zip(on, cb.batches.n_seen)] # no scoring forward while it is off
    assert 10<on.index(True)<50 and sum(on)>5
    taus = [(new-.9*old)/.1 for old,new in zip(means, means[1:]+[cb.memory['switch']])]
    assert [tau(torch.as_tensor(o)) for o in cb.record.losses]==pytest.approx(taus, rel=2e-3)
    close(a, b)

def test_switch_before_blf():
    a,b,cb = both(lambda: BatchLossFilter(.8, switch=TauSwitch(1.25), plain_every=0), n_epoch=10, lr=.1)
    def choose(losses, bounds):
        idxs = brute_blf(losses, .8, 0.)
        return idxs if len(idxs)>1 else losses.argsort(descending=True)[:2].tolist(),1. # BatchNorm cannot train on one
    used,_ = hand_fit(b, 10, .1, choose, lambda n: 1.25)
    assert cb.batches.n_kept.tolist()==[len(o) for o in used]
    assert (cb.batches.n_scored==0).sum()>5 and (cb.batches.n_scored>0).sum()>5
    close(a, b)

def test_the_switch_may_have_a_score_of_its_own():
    "Tau of the losses, not of the bounds that draw."
    seen = []
    class Spy(TauSwitch):
        def update(self, state, scores, cb):
            seen.append(scores)
            return super().update(state, scores, cb)
    a,b,cb = both(lambda: ImportanceSampling(.6, switch=Spy(1.3, score=per_sample_loss), plain_every=0), n_epoch=3)
    assert len(seen)==len(cb.record.losses)==18 and cb.tau_th==1.3
    for s,g in zip(seen, cb.record.losses): # for three classes a loss l means a bound between 1-e^-l and sqrt(2) times that
        r = torch.as_tensor(g)/(1-(-s).exp())
        assert (r>.999).all() and (r<1.415).all()

def test_switches_off_again():
    "Scores that become equal bring tau down, and the batches whole again."
    flat = [False]
    def score(f, p, *t):
        s = grad_norm_bound(f, p, *t)
        return torch.ones_like(s) if flat[0] else s**4
    class Turn(Callback):
        order = 99
        def after_batch(self):
            if self.training and self.train_iter==18: flat[0] = True
    learn = make_learner(cbs=[Turn(), ImportanceSampling(.5, score=score, tau_th=1.2, plain_every=0)])
    learn.fit(8, .01)
    on = learn.selection.batches.n_scored>0
    assert on[:19].any() and not on[40:].any()

# ---- settings

@pytest.mark.parametrize('tau_th', [0, None, 3.])
def test_whole_batches_are_plain_bit_for_bit(tau_th):
    def run(cbs):
        learn = make_learner(cbs=cbs)
        learn.fit_one_cycle(3, 1e-2)
        return state(learn)
    assert_same(run(None), run(ImportanceSampling(1., tau_th=tau_th)))
    assert_same(run(None), run(ImportanceSampling(.3, tau_th=1e6, plain_every=2))) # never on
    assert differs(run(None), run(ImportanceSampling(.9, tau_th=0)))

def test_draws_leave_training_its_random_numbers():
    "Without any effect of the draw on the weights (lr=0), shuffling and dropout go on as in a plain run."
    class States(Callback):
        order = 90
        def before_fit(self): self.seen = []
        def before_batch(self): self.seen.append(random_states())
    def run(cbs):
        learn = make_learner(cbs=[States()] + cbs, model=lambda: nn.Linear(6, 3)) # without dropout, which draws a number per row
        learn.fit(2, 0.)
        return learn.states.seen,random_states()
    assert run([])==run([ImportanceSampling(.5, tau_th=0)])

def test_repeatable():
    def run(seed):
        learn = make_learner(seed, cbs=ImportanceSampling(.4, tau_th=0))
        learn.fit(2)
        return state(learn)
    assert_same(run(3), run(3))
    assert differs(run(3), run(4))

def test_schedules_and_changes():
    class Move(Callback):
        order = 99
        def after_batch(self):
            if self.training and self.train_iter==12: self.learn.selection.set(tau_th=1e6)
    learn = make_learner(cbs=[Move(), ImportanceSampling(SchedLin(0., 1.), tau_th=0, plain_every=0)])
    learn.fit(4)
    b,c = learn.selection.batches,learn.selection.record.changes
    np.testing.assert_allclose(b.sample_perc, np.arange(24)/24, atol=1e-6)
    want = [max(2, math.ceil(round(o.n_seen*o.sample_perc, 9))) for o in b.itertuples()] # one would stop BatchNorm
    assert b.n_kept.tolist()==want[:12]+b.n_seen.tolist()[12:]
    assert c.values.tolist()==[[1, 12, 'tau_th', 0, 1e6]] and learn.selection.tau_th==learn.selection.switch.tau_th==1e6
    assert learn.selection.record.info['settings']['sample_perc']=='schedule from 0 to 1'
    learn = make_learner(cbs=ImportanceSampling(.5, tau_th=SchedLin(0., 0.)), model=lambda: nn.Linear(6, 3))
    learn.fit(1)
    assert (learn.selection.batches.n_kept<learn.selection.batches.n_seen).all()
    learn.selection.sample_perc = SchedLin(0., 0.)
    learn.fit(1)
    assert set(learn.selection.batches.n_kept)=={1}

def test_published_threshold_follows_the_settings():
    cb = ImportanceSampling(.5)
    for share,b in ((.5, 30), (1/3, 20), (.01, 1)):
        cb.sample_perc = share
        class Now: pct_train,sample_perc = .5,share
        assert cb.switch.threshold(60, Now)==pytest.approx((60+3*b)/(3*b))
    class Now: pct_train,sample_perc = .5,SchedLin(0., 1.)
    assert cb.switch.threshold(60, Now)==pytest.approx(5/3)
    Now.pct_train = 0.
    assert cb.switch.threshold(60, Now)==21. # one sample at least

bad_settings = [
    *(dict(sample_perc=o) for o in (0, 1.5, -.1, 'a third', None, True, math.nan, SchedLin(.5, 2.))),
    *(dict(tau_th=o) for o in (-1, '2', math.nan, math.inf, True, SchedLin(1., -1.), lambda pct: 'no'))]

@pytest.mark.parametrize('kw', bad_settings)
def test_bad_settings(kw):
    "One sentence that names the argument, at once, in mid-training too; nothing is changed."
    learn = make_learner(cbs=ImportanceSampling(.5, tau_th=1.5))
    name,val = next(iter(kw.items()))
    for f in (lambda: ImportanceSampling(**kw), lambda: learn.selection.set(**kw)):
        with pytest.raises(ValueError) as e: f()
        msg = str(e.value)
        assert name in msg and '\n' not in msg and '. ' not in msg and (callable(val) or repr(val) in msg)
    assert learn.selection.sample_perc==.5 and learn.selection.tau_th==1.5
    before = state(learn)
    setattr(learn.selection, name, val)
    with pytest.raises(ValueError, match=name): learn.fit(1)
    now = state(learn)
    assert all(torch.equal(before[k], now[k]) for k in before)

@pytest.mark.parametrize('f', [
    lambda: TauSwitch(-1), lambda: TauSwitch('2'), *(lambda m=m: TauSwitch(momentum=m) for m in (1, -.1, 'x', True, None)),
    lambda: ImportanceSampling(tau_th=2, switch=TauSwitch(1)), lambda: ImportanceSampling(switch=3)])
def test_bad_switches(f):
    with pytest.raises(ValueError, match='give') as e: f()
    assert '\n' not in str(e.value)

def test_no_threshold_to_be_had():
    "Told before anything is trained."
    def some(scores): return Selection(torch.arange(3))
    for cb,what in [(BatchLossFilter(.9, switch=TauSwitch()), 'BLF has at 0'),
                    (SelectiveTraining(selector=some, switch=TauSwitch()), 'plain does not have')]:
        learn = make_learner(cbs=cb)
        before = state(learn)
        with pytest.raises(ValueError, match=what) as e: learn.fit(1)
        assert 'TauSwitch(1.5)' in str(e.value)
        now = state(learn)
        assert all(torch.equal(before[k], now[k]) for k in before)
    make_learner(cbs=BatchLossFilter(.9, .25, switch=TauSwitch())).fit(1) # has a share to compute it from

# ---- beside the rest

def test_scores_and_switch_go_with_other_methods():
    a = make_learner(cbs=BatchLossFilter(.7, score=grad_norm_bound, plain_every=0)); a.fit(2)
    for s,k in zip(a.selection.record.losses, a.selection.batches.n_kept): assert k==max(2, len(brute_blf(s, .7, 0))) and s.max()<=2**.5
    b = make_learner(cbs=ImportanceSampling(.5, tau_th=0, queue=True)); b.fit(2)
    assert set(b.selection.batches.n_trained[:5])<={0, 16}
    e = b.selection.batches.groupby('epoch').sum(numeric_only=True)
    assert e.n_trained.tolist()==e.n_kept.tolist()

def test_one_sample_and_batchnorm():
    "Two samples in the last batch, one of them drawn: BatchNorm gets two rows, the other of which weighs nothing."
    train = Rows(*(o[:34] for o in blobs()[0].ts))
    learn = make_learner(dls=lambda: loaders(train, blobs()[1]), cbs=ImportanceSampling(.4, tau_th=0))
    learn.fit(2)
    assert learn.selection.batches.n_kept.tolist()==[7, 7, 2]*2

def test_not_finite():
    "Kept whole, and no number of it enters the running mean."
    train,valid = blobs()
    bad = Rows(train.ts[0].clone(), train.ts[1]); bad.ts[0][40] = math.nan
    learn = make_learner(dls=lambda: loaders(bad, valid, shuffle=False), model=lambda: nn.Linear(6, 3), cbs=ImportanceSampling(.5, tau_th=0))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        learn.fit(1, 0.)
    b = learn.selection.batches
    assert b.finite.tolist()==[True]*2+[False]*4 # from then on all weights are NaN
    assert b.n_kept.tolist()==[8, 8, 16, 16, 16, 10]
    mean = 0.
    for s in learn.selection.record.losses[:2]: mean = .9*mean + .1*hand_tau(s)
    assert learn.selection.memory['switch']==pytest.approx(mean, rel=1e-5)

@pytest.mark.parametrize('f,target', [(nn.CrossEntropyLoss(label_smoothing=.1), None), (LabelSmoothingCrossEntropy(), None),
                                      (FocalLossFlat(), None), (BCEWithLogitsLossFlat(), lambda y: F.one_hot(y, 3).float()), (lambda p, t: F.cross_entropy(p, t), None)])
def test_trains_with_any_loss(f, target):
    train,valid = (Rows(o.ts[0], o.ts[1] if target is None else target(o.ts[1])) for o in blobs())
    learn = make_learner(dls=lambda: loaders(train, valid), loss_func=f, metrics=None, cbs=ImportanceSampling(.5, tau_th=0, plain_every=0))
    x,y = train[torch.arange(90)]
    before = f(learn.model.eval()(x), y).item()
    learn.fit(6, .02)
    assert f(learn.model.eval()(x), y).item()<.8*before

def test_resumed():
    "Two fits of which the second goes on from the first's state are one fit: draws, running mean and all."
    def make(): return make_learner(opt_func=SGD, dls=apart, cbs=ImportanceSampling(.8, plain_every=0))
    def on(learn): return (learn.selection.batches.n_scored>0).tolist()
    class Stop(Callback):
        order = 99
        def after_epoch(self):
            if self.epoch<6: return
            self.kept = copy.deepcopy((self.model.state_dict(), self.opt.state_dict(), self.learn.selection.state_dict()))
            raise CancelFitException
    a = make()
    a.fit(10, .1)
    b = make() # with the same seed as a
    b.fit(10, .1, cbs=(stop := Stop()))
    first,(model,opt,state_) = on(b),stop.kept
    c = make()
    c.create_opt(); c.model.load_state_dict(model); c.opt.load_state_dict(opt); c.selection.load_state_dict(state_)
    random.seed(77); torch.manual_seed(77)
    c.fit(10, .1, start_epoch=7)
    assert first+on(c)[-18:]==on(a) and any(on(c)) and not all(on(a))
    assert c.selection.memory['switch']==a.selection.memory['switch']
    assert_same(dict(a.model.state_dict()), dict(c.model.state_dict()))

def test_copies():
    "A copied or stored learner has a switch of its own."
    learn = make_learner(cbs=ImportanceSampling(.5, tau_th=1.5))
    for again in (copy.deepcopy(learn.selection), pickle.loads(pickle.dumps(ImportanceSampling(.5, tau_th=1.5)))):
        again.tau_th = 2.
        assert learn.selection.tau_th==1.5 and again.switch.tau_th==2.
    shared = TauSwitch(1.5)
    a,b = ImportanceSampling(switch=shared),ImportanceSampling(switch=shared)
    a.set(tau_th=3.)
    assert (a.tau_th, b.tau_th, shared.tau_th)==(3., 1.5, 1.5)

def test_signatures():
    "As the issue words them."
    assert str(inspect.signature(grad_norm_bound))=='(loss_func, preds, *targs) -> torch.Tensor'
    p = inspect.signature(ImportanceSampling).parameters
    assert list(p)[:3]==['sample_perc','score','tau_th']
    assert [p[o].default for o in list(p)[:3]]==[1/3, grad_norm_bound, None]
    assert ImportanceSampling.settings==('sample_perc','tau_th') and ImportanceSampling().record.method=='importance'
    p = inspect.signature(TauSwitch).parameters
    assert p['tau_th'].default is None and p['score'].default is grad_norm_bound and p['momentum'].default==.9
