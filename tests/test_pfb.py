"Partial Forward Blocking: its density in plain Python, its training against two halves of a network in a loop without callback."
import copy, math
import pytest, torch
import torchvision
from torch import nn
import torch.nn.functional as F
from fastai.basics import Callback, CancelBatchException, CancelEpochException, CancelFitException
from fastai.callback.mixup import CutMix, MixUp
from fastai.callback.schedule import SchedLin
from blf_explore.engine.data import convnet, mlp, resnet
from blf_explore.pfb import bandwidth, block_point, Centres, compact, log_density, PartialForwardBlocking, rarity
from core_tools import *

def always(**kw): return PartialForwardBlocking(**dict(sample_perc=.4, start=0., end=1.) | kw)

# ---- the rule, in plain Python

def brute_h(cs):
    m,d = len(cs),len(cs[0])
    h = []
    for k in range(d):
        mean = sum(c[k] for c in cs)/m
        h.append(math.sqrt(sum((c[k]-mean)**2 for c in cs)/(m-1)))
    return [max(s, 1e-3*max(h))*(4/((d+2)*m))**(1/(d+4)) for s in h]

def brute_density(x, cs, ns):
    "A normal density around each centre, by its share of the kept samples."
    h,total = brute_h(cs),0.
    for c,n in zip(cs, ns):
        p = n/sum(ns)
        for a,b,s in zip(x, c, h): p *= math.exp(-((a-b)/s)**2/2)/(s*math.sqrt(2*math.pi))
        total += p
    return total

def brute_update(cs, ns, xs, most, beta=.01):
    "Room first; then each sample to its nearest centre, and each centre a hundredth of the way to the mean of its new ones."
    cs,ns,xs = [list(c) for c in cs],list(ns),[list(x) for x in xs]
    while xs and len(cs)<most: cs.append(xs.pop(0)); ns.append(1)
    h,mine = brute_h(cs),[[] for _ in cs]
    for x in xs: mine[min(range(len(cs)), key=lambda j: sum(((a-b)/s)**2 for a,b,s in zip(x, cs[j], h)))].append(x)
    for j,o in enumerate(mine):
        if o: cs[j] = [c+beta*(sum(x[k] for x in o)/len(o)-c) for k,c in enumerate(cs[j])]
        ns[j] += len(o)
    return cs,ns

@pytest.mark.parametrize('m,d', [(2, 1), (7, 3), (30, 16)])
def test_density(m, d):
    g = gen(m)
    cs,x,ns = torch.randn(m, d, generator=g).double(),2*torch.randn(20, d, generator=g).double(),torch.randint(1, 9, (m,), generator=g).double()
    torch.testing.assert_close(bandwidth(cs), torch.tensor(brute_h(cs.tolist())).double())
    want = [math.log(brute_density(o, cs.tolist(), ns.tolist())) for o in x.tolist()]
    torch.testing.assert_close(log_density(x, cs, ns), torch.tensor(want).double(), rtol=1e-6, atol=1e-6)
    if d==1: # it integrates to 1
        t = torch.linspace(-30, 30, 60001).double()
        assert torch.trapezoid(log_density(t[:,None], cs, ns).exp(), t).item()==pytest.approx(1)

def test_far_away_is_rare_and_not_lost():
    "Where a density is below the smallest float, its logarithm still orders."
    cs = torch.randn(10, 4, generator=gen())
    log_f = log_density(torch.tensor([[0.]*4, [100.]*4, [200.]*4]), cs, torch.ones(10))
    assert log_f[1].exp()==0 and log_f[0]>log_f[1]>log_f[2]>-math.inf
    assert rarity(log_f, torch.zeros(3)).argsort().tolist()==[0, 1, 2]

def test_rarity():
    f,a = torch.rand(50, generator=gen())+.01,.01*torch.rand(50, generator=gen(1))
    want = [1/(o+b*max(f.tolist())) for o,b in zip(f.tolist(), a.tolist())]
    torch.testing.assert_close(rarity(f.log(), a).exp(), torch.tensor(want))

def test_a_channel_that_never_moves():
    cs = torch.randn(8, 3, generator=gen()); cs[:,1] = 0
    x = cs.clone(); x[:,1] = 0
    assert bandwidth(cs).min()>0 and log_density(x, cs, torch.ones(8)).isfinite().all() and bandwidth(torch.zeros(4, 2)).min()>0

@pytest.mark.parametrize('most', [3, 6, 20])
def test_centres(most):
    g = gen(most)
    xs = torch.randn(5, 8, 3, generator=g).double()
    c = Centres.of(xs[0], most)
    cs,ns = xs[0][:most].tolist(),[1]*min(8, most)
    for o in xs[1:]:
        before = c.at.clone(),c.counts.clone()
        new = c.updated(o, most)
        assert torch.equal(before[0], c.at) and torch.equal(before[1], c.counts) # the old ones may be a saved state
        c = new
        cs,ns = brute_update(cs, ns, o.tolist(), most)
        torch.testing.assert_close(c.at, torch.tensor(cs, dtype=torch.float64), rtol=1e-9, atol=1e-9)
        assert c.counts.tolist()==ns and len(cs)<=most

def test_compact():
    x = torch.randn(4, 6, 5, 5, generator=gen())
    torch.testing.assert_close(compact(x), x.mean((2, 3)))
    torch.testing.assert_close(compact(x, 3), torch.stack([x[:,i:i+2].mean((1, 2, 3)) for i in (0, 2, 4)], 1))
    tokens = torch.randn(4, 7, 6, generator=gen())
    torch.testing.assert_close(compact(tokens), tokens.mean(1))
    assert not compact(x.clone().requires_grad_()).requires_grad and compact(x.half()).dtype==torch.float32

# ---- the training

def pfb_by_hand(learn, n_epoch, share, most=100, lr=.1):
    "A network in two halves: (rows kept, batch by batch)."
    cut = 4 # Flatten, Linear, BatchNorm, Tanh | Linear
    shallow,deep = learn.model[:cut],learn.model[cut:]
    before = torch.get_rng_state()
    draws = torch.Generator().manual_seed(int(torch.randint(2**62, (1,))))
    torch.set_rng_state(before)
    opt = torch.optim.SGD(learn.model.parameters(), lr)
    cs,kept = None,[]
    for _ in range(n_epoch):
        learn.model.train()
        for x,y in learn.dls.train:
            f = shallow(x)
            xs = f.detach().tolist()
            first = cs is None
            if first: cs,ns = xs[:most],[1]*min(len(xs), most)
            p = [brute_density(o, cs, ns) for o in xs]
            r = [.01*a*max(p) for a in torch.rand(len(xs), generator=draws, dtype=torch.float32).tolist()]
            importance = [1/(a+b) for a,b in zip(p, r)]
            ids = sorted(range(len(xs)), key=lambda i: -importance[i])[:math.ceil(len(xs)*share)]
            cs,ns = ([xs[i] for i in ids[:most]],[1]*min(len(ids), most)) if first else brute_update(cs, ns, [xs[i] for i in ids], most)
            kept.append(ids)
            F.cross_entropy(deep(f[ids]), y[ids]).backward()
            opt.step(); opt.zero_grad()
        learn.model.eval()
        for _ in learn.dls.valid: pass # which draws a number
    return kept

@double
@pytest.mark.parametrize('most', [12, 100])
def test_trains_as_two_halves_by_hand(most):
    "The same samples and, gradient by gradient, the same weights, BatchNorm of the shallow half over the whole batch included."
    a = learner(always(n_centres=most, plain_every=3))
    sels = []
    class Sees(Callback):
        order = 99
        def after_pred(self):
            if self.training: sels.append(self.learn.selection.last.selection.idxs.tolist())
    a.add_cb(Sees())
    a.fit(2, .1)
    b = learner()
    assert sels==pfb_by_hand(b, 2, .4, most)
    close(a, b, 1e-5) # the density is taken in float32
    assert a.selection.batches.n_kept.tolist()==[len(o) for o in sels]==2*([7]*5+[4])

class Rows_(Callback):
    "How many rows each layer with weights is given, batch by batch, in training."
    order,run_valid = 98,False
    def before_fit(self): self.seen = []
    def before_batch(self):
        self.seen.append([])
        self.hooks_ = [m.register_forward_pre_hook(lambda m, a: self.seen[-1].append(len(a[0]))) for m in self.model.modules() if isinstance(m, (nn.Linear,nn.Conv2d))]
    def after_pred(self): [o.remove() for o in self.hooks_]

@pytest.mark.parametrize('at,want', [(None, [16, 7]), (0, [16, 7]), (3, [16, 7]), ('4', [16, 16])], ids=str)
def test_deep_layers_see_what_was_kept(at, want):
    learn = fitted(1, dls=full_batches, cbs=[always(at=at, plain_every=0), Rows_(), Spy(), Trained()])
    assert learn.rows_.seen==6*[want]
    assert [len(o) for o in learn.trained.steps]==6*[7]
    assert {len(y[0]) for _,y in learn.spy.seen}=={16} # before the forward the batch is whole

def test_inputs_and_targets_follow_the_kept_rows():
    class Both(Callback):
        order,run_valid = 99,False
        def after_pred(self):
            s = self.learn.selection
            x,y = s._fit.raw.xb[0],s._fit.raw.yb[0]
            i = s.last.selection.idxs
            assert torch.equal(self.xb[0], x[i]) and torch.equal(self.yb[0], y[i]) and len(self.pred)==len(i)
            if hasattr(self.learn, 'mix_up'):
                other,lam = s._fit.raw.mixed
                assert torch.equal(self.mix_up.yb1[0], other[0][i]) and torch.equal(self.mix_up.lam.flatten(), lam.flatten()[i])
            self.n = getattr(self, 'n', 0)+1
    for mix in ([], [MixUp()]):
        learn = mixing_learner(MixUp, False, [always(), *mix, Both()])
        learn.fit(1, .1)
        assert learn.both.n==5

@pytest.mark.parametrize('kw', [dict(plain_every=2), dict(plain_every=0, n_centres=5)], ids=str)
def test_all_kept_is_plain(kw):
    "Bit for bit, BatchNorm and dropout included."
    assert_same(state(fitted(2, cbs=always(sample_perc=1., **kw))), state(fitted(2)))
    assert differs(state(fitted(2, cbs=always(**kw))), state(fitted(2)))

def test_draws_from_nobody_elses_random_numbers():
    def after(cb):
        fitted(2, model=net, dls=full_batches, cbs=cb)
        return random_states()
    assert after(always())==after(None)

# ---- when, counts, records

def test_published_share_and_span():
    "40% dropped, from epoch 16 to 260 of 300."
    s = PartialForwardBlocking()
    assert (s.sample_perc, s.start*300, s.end*300)==(.6, 16, pytest.approx(260))
    b = fitted(10, dls=full_batches, cbs=s).selection.batches # 60 batches of 16
    on = [i for i in range(60) if 16/300<=i/60<260/300]
    assert [i for i,k in enumerate(b.n_kept) if k<16]==on and set(b.n_kept[on])=={10}

def test_record():
    learn = fitted(3, cbs=always(sample_perc=SchedLin(1., .2), warmup=1, plain_every=2))
    s = learn.selection
    b = s.batches
    assert s.record.method=='PFB' and b.n_trained.tolist()==b.n_kept.tolist() and (b.n_scored==0).all()
    assert b.n_kept.tolist()==[min(n, max(1, math.ceil(round(n*(1-.8*i/18), 6)))) if i>=6 else n for i,n in enumerate(b.n_seen)]
    assert [len(o) for o in s.record.losses]==[0]*6+b.n_seen[6:].tolist()
    assert (b.t_select_s[6:]>0).all() and s.epochs.overhead_pct.notna().all()
    assert len(s.memory['centres']['at'])<=100 and s.memory['centres']['counts'].sum()==b.n_kept[6:].sum()

def test_a_divergence_is_kept_whole_and_told():
    class Diverge(Callback):
        def before_batch(self):
            if self.training and self.iter==3:
                with torch.no_grad(): next(self.model.parameters()).fill_(math.nan)
    learn = make_learner(dls=full_batches, cbs=[always(), Diverge()])
    with pytest.warns(UserWarning, match='not finite'): learn.fit(1)
    b = learn.selection.batches
    assert b.finite.tolist()==3*[True]+3*[False] and b.n_kept.tolist()==3*[7]+3*[16]
    assert learn.selection.memory['centres']['at'].isfinite().all()

def test_would_keep_is_what_is_kept():
    "Without layers that answer otherwise in eval mode; and nothing is remembered of having asked."
    class Asks(Callback):
        order,run_valid = 98,False
        def before_batch(self):
            s = self.learn.selection
            memory = copy.deepcopy(s.memory)
            self.want = s.would_keep(self.xb, self.yb).idxs.tolist()
            assert repr(memory)==repr(s.memory)
        def after_pred(self): assert self.want==self.learn.selection.last.selection.idxs.tolist()
    assert fitted(1, model=bare, cbs=[always(), Asks()]).selection.batches.n_kept.sum()<90

# ---- nothing is left

def hooks(learn): return [o for m in learn.model.modules() for o in (*m._forward_hooks, *m._forward_pre_hooks)]

class Stops(nn.Module):
    "In front of the block point, or behind it."
    exc = None
    def forward(self, x):
        if self.exc is not None and self.training and torch.is_grad_enabled(): raise self.exc
        return x

@pytest.mark.parametrize('exc', [KeyboardInterrupt(), RuntimeError('no'), CancelBatchException(), CancelEpochException(), CancelFitException()], ids=lambda o: type(o).__name__)
@pytest.mark.parametrize('where', ['shallow','deep','before_batch','after_pred','after_backward'])
def test_nothing_is_left(where, exc):
    "However a step ends, the model then answers for every row, and trains as one that never had it."
    def model(): return nn.Sequential(Stops(), nn.Linear(6, 8), nn.ReLU(), Stops(), nn.Linear(8, 3))
    class At(Callback):
        order,run_valid = 99,False
        def _hit(self, event):
            if self.iter!=2 or self.epoch: return
            if event=='before_batch' and where in ('shallow','deep'): self.model[0 if where=='shallow' else 3].exc = exc
            elif event==where: raise exc
        def before_batch(self): self._hit('before_batch')
        def after_pred(self): self._hit('after_pred')
        def after_backward(self): self._hit('after_backward')
        def after_cancel_batch(self):
            for o in (0, 3): self.model[o].exc = None
    learn = make_learner(model=model, cbs=[always(plain_every=0), At()])
    if isinstance(exc, (KeyboardInterrupt,RuntimeError)):
        with pytest.raises(type(exc)): learn.fit(2)
    else: learn.fit(2)
    for o in (0, 3): learn.model[o].exc = None
    assert hooks(learn)==[]
    assert len(learn.model.train()(torch.randn(9, 6)))==9 and '_do_one_batch' not in vars(learn)
    assert len(learn.validate())==2
    learn.remove_cbs([learn.at, learn.selection])
    fresh = make_learner(model=model)
    learn.model.load_state_dict(fresh.model.state_dict())
    for o in learn,fresh:
        o.opt = None
        random.seed(3); torch.manual_seed(3); o.dls.train.rng = random.Random(3)
        for p in o.model.parameters(): p.grad = None
        o.fit(1)
    assert_same(state(learn), state(fresh))

def test_a_second_forward_in_a_step_is_whole():
    "As of an optimizer that looks ahead: only fastai's own forward is cut."
    class Again(Callback):
        order,run_valid,ns = 99,False,[]
        def after_backward(self):
            with torch.no_grad(): self.ns.append(len(self.model(self.learn.selection._fit.raw.xb[0])))
    again = Again()
    fitted(1, dls=full_batches, cbs=[always(), again])
    assert again.ns==6*[16]

# ---- where to block, and what is refused

def test_block_point():
    m = convnet(1, 10); assert block_point(m) is m[0]
    m = resnet(3, 10); assert block_point(m) is m[0]
    m = mlp(64, 10); assert block_point(m) is m[2] # Flatten, Linear, ReLU
    m = net(); assert block_point(m) is m[3] # Flatten, Linear, BatchNorm, Tanh
    m = torchvision.models.resnet18(); assert block_point(m) is m.layer1 and block_point(m, 'layer2.0') is m.layer2[0]
    assert block_point(nn.Sequential(nn.Sequential(*list(m.children())[:-2]), nn.Linear(512, 10))) is m.layer1 # fastai's body and head
    assert block_point(m, -1) is m.fc and block_point(m, 4) is m.layer1
    says(lambda: block_point(m, 'layer9'), "at='layer9'", 'ResNet', 'give a name')
    for bad in (10, -11, 1.5, True): says(lambda: block_point(m, bad), f'at={bad!r}', '10 children')
    says(lambda: block_point(nn.Sequential(nn.Flatten())), 'at=None', 'give at')

class Skips(nn.Module):
    "A connection around the block point."
    def __init__(self): super().__init__(); self.a,self.b = nn.Linear(6, 6),nn.Linear(6, 3)
    def forward(self, x): return self.b(self.a(x)+x)

class Twice(nn.Module):
    def __init__(self): super().__init__(); self.a,self.b = nn.Linear(6, 6),nn.Linear(6, 3)
    def forward(self, x): return self.b(self.a(self.a(x)))

class OptimizedModule(nn.Sequential): "Named as what `torch.compile` makes."

REFUSED = dict(queue=(dict(queue=True), {}, ['queue=True']), stale=(dict(stale=1), {}, ['stale=1']),
    skips=(dict(at='a'), dict(model=Skips), ["at='a'", 'Skips', 'no place to block', '15 of 16', 'give at']),
    twice=(dict(at='a'), dict(model=Twice), ["at='a'", 'runs 2 times', 'give at']),
    compiled=({}, dict(model=lambda: OptimizedModule(*bn_net())), ['compiled', 'before torch.compile']),
    unmixed=(dict(after_mix=False), dict(cbs=[MixUp()]), ['after_mix=False', 'give after_mix=True']),
    unmixed_cut=(dict(after_mix=False), dict(cbs=[CutMix()]), ['after_mix=False']),
    nowhere=(dict(at='none'), {}, ["at='none'"]))

@pytest.mark.parametrize('case', REFUSED)
def test_refused_before_anything_is_trained(case):
    kw,more,parts = REFUSED[case]
    cbs = more.get('cbs', [])
    learn = make_learner(cbs=[always(**kw), *cbs], **{k: v for k,v in more.items() if k!='cbs'})
    before = {k: v.clone() for k,v in learn.model.state_dict().items()}
    says(lambda: learn.fit(1), *parts)
    assert_same(before, learn.model.state_dict())
    assert hooks(learn)==[]

def test_bad_arguments():
    for bad in (0, -.1, 1.5, None, True): says(lambda: PartialForwardBlocking(bad), f'sample_perc={bad!r}', 'give')
    for bad in (1, 2.5, True): says(lambda: PartialForwardBlocking(n_centres=bad), f'n_centres={bad!r}', 'at least 2')
    says(lambda: PartialForwardBlocking(n_dims=0), 'n_dims=0', 'at least 1')
    s = fitted(1, cbs=always()).selection
    s.set(sample_perc=.5)
    says(lambda: s.set(sample_perc=0), 'sample_perc=0')

def test_export_and_load(tmp_path): exports_and_loads(always, tmp_path)
