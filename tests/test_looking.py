"Looking at a batch: scoring forwards leave no trace, on smaller images too, and old scores are reused only where they belong."
import numpy as np, pytest, torch
from fastai.callback.core import Callback
from fastai.callback.data import WeightedDL
from fastai.callback.hook import ActivationStats
from torch import nn
from blf_explore.all import BatchLossFilter, GradientProbe, SelectiveTraining
from blf_explore.engine.looking import Look, stores
from blf_explore.engine.losses import per_sample_loss
from blf_explore.engine.rows import Rows as Samples
from blf_explore.sb import RankSelectiveBackprop, SelectiveBackprop
from core_tools import *
from references import loss_of, steps_by_hand, top

def test_random_state_during_scoring():
    "A model that draws in eval mode: a loop that puts the random state back after scoring gives the same numbers."
    ref = make_learner(model=Noisy)
    reference_fit(ref, 2, lambda l, pct: brute_blf(l, .6, .2))
    end = random_states()
    blf = make_learner(model=Noisy).batch_loss_filter(.6, .2, plain_every=2)
    blf.fit(2)
    assert_same(state(ref), state(blf))
    assert end==random_states() and blf.selection.batches.n_kept.sum()<180

def test_gradients_seen_by_nobody_else():
    "`.grad` from before a batch survives scoring and the timing of a plain step."
    class Watch(Callback):
        order,run_valid = 56,False # right after the selection
        def before_batch(self):
            for p,g in zip(self.model.parameters(), grads): assert p.grad is g and (g==7).all()
        def after_pred(self):
            for p in self.model.parameters(): p.grad = None
        def after_batch(self):
            grads[:] = [torch.full_like(p, 7) for p in self.model.parameters()]
            for p,g in zip(self.model.parameters(), grads): p.grad = g
    grads = []
    make_learner(cbs=Watch()).batch_loss_filter(.5, plain_every=1).fit(1)
    assert grads

def test_scoring_sees_eval_mode_and_no_grad():
    seen = []
    class Spy(nn.Linear):
        def forward(self, x):
            if not tries_out(learn): seen.append((self.training, torch.is_grad_enabled(), len(x)))
            return super().forward(x)
    learn = None
    learn = make_learner(model=nn.Sequential(Spy(6, 3))).batch_loss_filter(.5, plain_every=0)
    learn.fit(1)
    train = [o for o in seen if o[0]]
    assert len(train)==6 and all(o[1] for o in train) and sum(o[2] for o in train)<90
    assert seen[0]==(False, False, 16) and seen[2]==(False, False, 16)

@pytest.mark.parametrize('share,size', [(.5, None), (.01, 8)])
def test_a_scale_that_the_model_cannot_score_is_told_before_a_step(share, size):
    stepped = []
    class Steps(Callback):
        def after_step(self): stepped.append(1)
    def dls(): return loaders(*blobs(n=96)) if size is None else loaders(*[Rows(torch.rand(n, 1, size, size), torch.randint(0, 3, (n,))) for n in (96, 16)])
    model = None if size is None else lambda: nn.Sequential(nn.Flatten(), nn.Linear(size*size, 3))
    learn = make_learner(dls=dls, model=model, cbs=[RankSelectiveBackprop(scale_factor=share), Steps()])
    with pytest.raises(ValueError, match=f'scale_factor={share}'): fit_quietly(learn)
    assert stepped==[]

def test_a_fixed_input_size_is_told_before_a_step():
    def dls(): return loaders(*[Rows(torch.rand(n, 1, 8, 8), torch.randint(0, 3, (n,))) for n in (96, 16)])
    learn = make_learner(dls=dls, model=lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), cbs=RankSelectiveBackprop(scale_factor=.5))
    with pytest.raises(ValueError, match='scale_factor=0.5 is not accepted'): fit_quietly(learn)

def test_a_staleness_set_in_mid_epoch_marks_no_other_samples():
    "In the first batches nobody asked for the samples' numbers; what of them waits in the queue must not be noted as samples 0, 1, 2."
    seen = set()
    class Set(Callback):
        order = 56
        def after_batch(self):
            if not self.training: return
            if self.iter==2 and self.epoch==0: self.learn.selection.set(stale=1)
            if self.learn.selection.ids is not None: seen.update(self.learn.selection.ids.tolist())
            m = self.learn.selection.memory
            if 'when' in m and self.epoch==0: assert set((m['when']>=0).nonzero()[:,0].tolist())<=seen
    fit_quietly(make_learner(dls=full_batches, cbs=[SelectiveBackprop(1., interrupt=2, warmup=0), Set()]), 2)

@double
@pytest.mark.parametrize('queue', [False, True])
def test_smaller_images_for_scoring(queue):
    "Scored on images of half the size, trained on whole ones."
    def learn_(cb=None): return learner(cb, dls=lambda: loaders(*stripes()), model=image_net)
    learn = learn_(SelectiveTraining(selector=top, scale_factor=.5, queue=queue))
    learn.fit(2, .1)
    ref = learn_()
    ref.create_opt(); ref.opt.set_hypers(lr=.1)
    def small(x): return F.interpolate(x, scale_factor=.5, mode='bilinear', antialias=True)
    for x,y,w in steps_by_hand(ref, 2, top, queue, see=small):
        loss_of(ref.model, x, y, w).backward()
        ref.opt.step(); ref.opt.zero_grad()
    close(learn, ref)
    assert small(torch.zeros(1, 2, 6, 6)).shape==(1, 2, 3, 3)
    with pytest.raises(ValueError, match='scale_factor=0.5 needs images'):
        learner(SelectiveTraining(selector=top, scale_factor=.5)).fit(1)

# ---- a look leaves no trace: in a model, a loss, a loader, NumPy's random numbers

class KeepsItsState(nn.Module):
    "An LSTM whose state goes on from batch to batch, row by row."
    def __init__(self): super().__init__(); self.lstm,self.out,self.h = nn.LSTM(6, 5, batch_first=True),nn.Linear(5, 3),None
    def forward(self, x):
        y,h = self.lstm(x[:,None], self.h if self.h is not None and self.h[0].shape[1]==len(x) else None)
        self.h = tuple(o.detach() for o in h)
        return self.out(y[:,-1])

class Counts(nn.Module):
    "A buffer that moves in eval mode, too, a list and a dict that grow: the output depends on all of them."
    def __init__(self):
        super().__init__()
        self.net,self.seen,self.by_size = bn_net(),[],{}
        self.register_buffer('k', torch.zeros(()))
    def forward(self, x):
        self.k += 1
        self.seen.append(x.mean().item())
        self.by_size[len(x)] = self.by_size.get(len(x), 0)+1
        return self.net(x)*(1+.001*self.k)+1e-3*len(self.seen)+1e-4*sum(self.by_size.values())

class MovesInEval(nn.Module):
    "A running mean that knows no eval mode, in a hook of a layer that keeps nothing as a rule."
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3))
        self.net[0].register_buffer('mean', torch.zeros(6))
        self.net[0].register_forward_hook(self.hook)
    def hook(self, m, args, out):
        m.mean = .9*m.mean+.1*out.detach().mean(0)
        return out-m.mean
    def forward(self, x): return self.net(x)

class NumpyNoise(nn.Module):
    def __init__(self): super().__init__(); self.net = bn_net()
    def forward(self, x): return self.net(x+torch.tensor(np.random.randn(*x.shape), dtype=x.dtype)*.1)

class OwnGenerator(nn.Module):
    "Noise from generators of its own, in eval mode too."
    def __init__(self): super().__init__(); self.net,self.gen,self.rng = bn_net(),torch.Generator().manual_seed(1),np.random.default_rng(1)
    def forward(self, x): return self.net(x+.1*torch.randn(x.shape, generator=self.gen))+1e-2*self.rng.random()

class Centres(nn.Module):
    "A loss with running class centres, in buffers of its own, and a count."
    def __init__(self): super().__init__(); self.register_buffer('c', torch.zeros(3, 3)); self.n,self.sizes = 0,[]
    def forward(self, p, y):
        with torch.no_grad():
            self.n += 1
            self.sizes.append(len(y))
            for k in y.unique(): self.c[k] = .9*self.c[k]+.1*p[y==k].mean(0)
        return F.cross_entropy(p, y)+.1*(p-self.c[y]).pow(2).mean()

def weighted_dls():
    train,valid = blobs()
    return DataLoaders(WeightedDL(train, bs=16, shuffle=True, wgts=np.arange(1, 91.)), DataLoader(valid, bs=16), device='cpu')

KEEPS = dict(lstm=dict(model=KeepsItsState, dls=full_batches), counts=dict(model=Counts), moves=dict(model=MovesInEval), numpy=dict(model=NumpyNoise),
             generator=dict(model=OwnGenerator), loss=dict(loss_func=Centres), weighted=dict(dls=weighted_dls))

def told(o):
    "What a module keeps in attributes, as something that `==` compares."
    return repr({k: v for k,v in vars(o).items() if not k.startswith('_') and not isinstance(v, (torch.Generator,np.random.Generator,tuple))})

@pytest.mark.parametrize('name', KEEPS)
def test_a_look_leaves_no_trace(name):
    "Scoring, timed plain steps and a probe: the run is bit for bit the plain one, down to what the model and the loss keep."
    def run(cbs):
        kw = {k: v() if k=='loss_func' else v for k,v in KEEPS[name].items()}
        np.random.seed(1)
        learn = fitted(2, metrics=None, cbs=cbs, **kw)
        return learn,random_states(),np.random.get_state()[1].tolist()
    (a,*rnd),(b,*rnd2) = run([]),run([BatchLossFilter(1., plain_every=2), GradientProbe(32, every=2)])
    assert_same(state(a), state(b))
    assert rnd==rnd2 and told(a.model)==told(b.model) and told(a.loss_func)==told(b.loss_func)
    if name=='loss': assert torch.equal(a.loss_func.c, b.loss_func.c) and a.loss_func.n==b.loss_func.n
    if name=='generator': assert torch.equal(a.model.gen.get_state(), b.model.gen.get_state())
    assert len(b.selection.record.probes)>2

@pytest.mark.parametrize('name', [o for o in KEEPS if o!='lstm'])
def test_what_keeps_something_of_batches_is_filtered(name):
    kw = {k: v() if k=='loss_func' else v for k,v in KEEPS[name].items()}
    learn = fitted(2, metrics=None, cbs=[BatchLossFilter(.5)], **kw)
    assert learn.selection.batches.n_kept.sum()<.9*learn.selection.batches.n_seen.sum()
    if name=='loss': assert [o for o in learn.loss_func.sizes if o in learn.selection.batches.n_trained.tolist()] # rows kept, not rows seen

@pytest.mark.parametrize('name', METHODS)
def test_a_state_kept_row_by_row_is_refused(name):
    "Selected rows would meet the state of others: a sentence, in the first batch that would be selected from at the latest."
    learn = make_learner(model=KeepsItsState, dls=full_batches, metrics=None, 
                         cbs=[PRESETS['HNM']() if name=='RHO' else PRESETS[name](**(dict(at='out') if name=='PFB' else {})), Trained()])
    says(lambda: learn.fit(3), 'model=KeepsItsState carries something over from batch to batch', 'reset it before every batch, or keep all samples')
    assert learn.selection.batches.n_kept.equals(learn.selection.batches.n_seen) # none was left out until then

# ---- `Look`, alone

def look_at(learn, **kwargs):
    learn.opt or learn.create_opt()
    return Look(learn, **kwargs)

def a_batch(learn):
    x,y = next(iter(learn.dls.train))
    return Samples((x,), (y,), torch.arange(len(x)))

def test_scores_are_those_of_eval_mode():
    learn = make_learner()
    rows,before,rnd = a_batch(learn),state(learn),random_states()
    preds,scores,more = look_at(learn).scores(per_sample_loss, rows, per_sample_loss)
    assert random_states()==rnd and learn.model.training
    assert_same(before, {k: v for k,v in state(learn).items() if k in before})
    learn.model.eval()
    want = learn.model(rows.xb[0])
    assert torch.equal(preds, want) and torch.equal(scores, F.cross_entropy(want, rows.yb[0], reduction='none')) and torch.equal(more, scores)
    assert not preds.requires_grad

def test_a_plain_step_is_undone():
    class Timer:
        def start(self, name): pass
        def stop(self): return [('plain', 0), (None, 1)]
    learn = make_learner(model=Counts)
    learn.model.net[0].weight.grad = (g := torch.ones_like(learn.model.net[0].weight))
    rows,before,keeps,rnd = a_batch(learn),state(learn),told(learn.model),random_states()
    assert look_at(learn).plain_step(rows, Timer())[0][0]=='plain'
    assert random_states()==rnd and told(learn.model)==keeps and learn.model.net[0].weight.grad is g and learn.model.net[0].bias.grad is None
    assert all(torch.equal(v, before[k]) for k,v in learn.model.state_dict().items())

class InPred(Callback):
    def after_pred(self): self.learn.pred = self.pred*2
class ByName(Callback):
    def after_pred(self): setattr(self.learn, 'pred', self.pred*2)
class Within(Callback):
    def after_pred(self):
        def inner(): self.learn.pred = self.pred*2
        inner()
class Helped(Callback):
    def after_pred(self): self.double()
    def double(self): self.learn.pred = self.pred*2
class OnlyReads(Callback):
    def after_pred(self): self.n = len(self.pred)

@pytest.mark.parametrize('cb,sets', [(InPred, True), (ByName, True), (Within, True), (Helped, True), (OnlyReads, False), (ActivationStats, False)])
def test_which_callbacks_stand_between(cb, sets):
    assert stores(cb(), 'after_pred', {'pred','yb'})==sets
    if not sets: return
    learn = make_learner(cbs=cb())
    rows = a_batch(learn)
    _,scores,_ = look_at(learn).scores(per_sample_loss, rows)
    learn.model.eval()
    torch.testing.assert_close(scores, F.cross_entropy(learn.model(rows.xb[0])*2, rows.yb[0], reduction='none').detach())
    assert not hasattr(learn, 'pred') or learn.pred is None
