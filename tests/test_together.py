"""Selection together with precision, accumulation, trackers, interrupted training, mixing, compiled models:
each against a loop without any callback, or against fastai without this one."""
import contextlib, copy, os, random, subprocess, sys, time
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from fastai.basics import load_learner
from fastai.callback.core import CancelEpochException, CancelFitException, CancelTrainException
from fastai.callback.mixup import CutMix, MixUp
from fastai.callback.progress import CSVLogger
from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback
from fastai.callback.training import GradientAccumulation, GradientClip, ShortEpochCallback
from fastai.callback.schedule import SchedLin
from blf_explore.all import *
import two_processes
from core_tools import *

@pytest.fixture(autouse=True)
def double():
    "Rounding errors of double precision are far below any fault, so that 1e-9 tells the two apart."
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)

def net(d=6, c=3): return nn.Sequential(nn.Flatten(), nn.Linear(d, 10), nn.BatchNorm1d(10), nn.Tanh(), nn.Linear(10, c))
def bare(d=6, c=3): return nn.Sequential(nn.Flatten(), nn.Linear(d, 10), nn.Tanh(), nn.Linear(10, c))

class CE(nn.CrossEntropyLoss): y_int = True # as fastai's own says of itself: MixUp may take its loss at both labels

class ShownLoss(Callback):
    "The loss that is shown and recorded, not the one that goes backward, in the precision that fastai's Recorder has."
    order,run_valid = 99,False
    def after_loss(self): self.learn.loss = self.learn.loss.float()

def learner(cbs=None, seed=1, model=net, opt_func=SGD, loss_func=None, **kwargs):
    cbs = [ShownLoss(), *(cbs if isinstance(cbs, (list,tuple)) else [] if cbs is None else [cbs])]
    return make_learner(seed, cbs, model=model, opt_func=opt_func, loss_func=loss_func or CE(), metrics=None, **kwargs)

def close(a, b, tol=1e-9):
    "Two learners hold the same parameters and buffers, to rounding."
    a,b = [o.model.state_dict() for o in (a,b)]
    assert a.keys()==b.keys()
    for k in a: torch.testing.assert_close(a[k], b[k], rtol=tol, atol=tol, msg=lambda m: f'{k}: {m}')

# ---- selectors that a loop without callback can follow: they depend on the scores alone

def top(scores, share=.4):
    return Selection(scores.argsort(descending=True, stable=True)[:max(1, round(len(scores)*share))])

class Some:
    "Another number of samples each time, so that a queue is never in step with the batches."
    n = 0
    def __call__(self, scores):
        self.n += 1
        return top(scores, (.1, .5, 1., .7, .3, .9, .2)[self.n%7])

def weighted(scores, share=.4):
    "Weights as sampling gives them: large for a sample that had little chance."
    i = top(scores, share).idxs
    return Selection(i, 1/(len(scores)*scores[i].double()/scores.double().sum()))

def make(pick): return pick() if isinstance(pick, type) else pick

# ---- the methods

HOLDOUT = torch.linspace(0, .5, 90)
PRESETS = dict(
    plain=lambda **kw: SelectiveTraining(**kw),
    BLF=lambda **kw: BatchLossFilter(**dict(loss_perc=.6) | kw),
    HNM=lambda **kw: HardNegativeMining(**dict(sample_perc=.4) | kw),
    SB=lambda **kw: SelectiveBackprop(**dict(beta=1.) | kw),
    rank=lambda **kw: RankSelectiveBackprop(**dict(start=0., end=1., interrupt=0) | kw),
    importance=lambda **kw: ImportanceSampling(**dict(sample_perc=.5) | ({} if 'switch' in kw else dict(tau_th=0)) | kw),
    CoreSet=lambda **kw: CoreSet(**dict(sample_perc=.4) | kw),
    RHO=lambda **kw: RHOLoss(HOLDOUT, **dict(sample_perc=.4) | kw),
    InfoBatch=lambda **kw: InfoBatch(**dict(warmup=1, delta=1.) | kw))
METHODS = [o for o in PRESETS if o!='plain']

# ---- the loop

def steps_by_hand(learn, n_epoch, pick, queue=False, ce=F.cross_entropy, ctx=contextlib.nullcontext,
                  n_batch=99, carry=False, see=lambda x: x):
    """A loop without callback: scores in eval mode, picks, and yields the rows of each optimizer step, (x, y, weights).
    With `queue`, rows wait until there are as many as a batch has; what is left comes at the epoch's end, or is carried over.
    An epoch ends after `n_batch` batches."""
    bs,model,pick = learn.dls.train.bs,learn.model,make(pick)
    wait = []
    for _ in range(n_epoch):
        for i,(x,y) in enumerate(learn.dls.train):
            if i==n_batch: break
            model.eval()
            with torch.no_grad(), ctx(): scores = ce(model(see(x)), y, reduction='none').float()
            model.train()
            sel = pick(scores)
            idxs,w = sel.idxs,[None]*len(sel.idxs) if sel.weights is None else sel.weights.tolist()
            if len(idxs)==len(x) and sel.weights is None: idxs = torch.arange(len(x)) # a whole batch stays as it is
            wait += list(zip(x[idxs], y[idxs], w))
            while len(wait)>=bs or (wait and not queue):
                now,wait = (wait[:bs],wait[bs:]) if queue else (wait,[])
                yield rows(now)
        while wait and not carry:
            now,wait = wait[:bs],wait[bs:]
            yield rows(now)

def rows(now):
    x,y,w = zip(*now)
    return torch.stack(x), torch.stack(y), None if w[0] is None else torch.tensor(w)

def loss_of(model, x, y, w, ce=F.cross_entropy):
    l = ce(model(x), y, reduction='none')
    return l.mean() if w is None else (l*w).mean()

def hand_learner(lr=.1, **kwargs):
    learn = learner(**kwargs)
    learn.create_opt()
    learn.opt.set_hypers(lr=lr)
    learn.model.train()
    return learn

def fit_by_hand(n_epoch, pick, queue=False, lr=.1, **kwargs):
    learn = hand_learner(lr, **kwargs)
    for x,y,w in steps_by_hand(learn, n_epoch, pick, queue):
        loss_of(learn.model, x, y, w).backward()
        learn.opt.step(); learn.opt.zero_grad()
    return learn

@pytest.mark.parametrize('pick', [top, Some, weighted])
def test_the_loop_itself(pick):
    "The plainest case, so that a difference found below is not the loop's own."
    a = learner(SelectiveTraining(selector=make(pick), plain_every=3), model=bare)
    a.fit(2, .1)
    close(a, fit_by_hand(2, pick, model=bare))
    b = fit_by_hand(2, lambda s: Selection(top(s).idxs[1:]), model=bare) # and it can differ
    assert any((x-y).abs().max()>1e-4 for x,y in zip(a.model.parameters(), b.model.parameters()))

# ---- mixed precision

@pytest.fixture
def on_cpu(monkeypatch):
    "fastai's mixed precision is CUDA's; the same casts and the same scaler exist for the CPU, too."
    torch.set_default_dtype(torch.float32)
    monkeypatch.setattr('fastai.callback.fp16.autocast', lambda device, **kwargs: torch.autocast('cpu', **kwargs))
    monkeypatch.setattr('fastai.callback.fp16.GradScaler', lambda device, **kwargs: torch.amp.GradScaler('cpu', **kwargs))

def nesting():
    "How many autocasts are open."
    n = torch.autocast_increment_nesting()-1
    torch.autocast_decrement_nesting()
    return n

class Clean(Callback):
    "After each batch no autocast is open, in training and in validation, at whatever order one looks."
    order,n = 98,0
    def look(self):
        assert not torch.is_autocast_enabled('cpu') and nesting()==0
        self.n += 1
    def before_train(self): self.look()
    def after_batch(self): self.look()
    def after_train(self): self.look()
    def after_fit(self): self.look()

def plain_ce(preds, y):
    "A loss that autocast does not know, so that it is computed in the precision of `preds`, which fastai's training makes float32."
    return (preds.logsumexp(1) - preds[torch.arange(len(y)),y]).mean()

DTYPES = {torch.float16: Learner.to_fp16, torch.bfloat16: Learner.to_bf16}

def precise_by_hand(dtype, pick, queue=False, loss=F.cross_entropy, n_epoch=2):
    "PyTorch's own recipe for mixed precision, with PyTorch's optimizer."
    learn = hand_learner(model=bare)
    opt = torch.optim.SGD(learn.model.parameters(), .1)
    scaler = torch.amp.GradScaler('cpu', enabled=dtype is torch.float16)
    def cast(): return torch.autocast('cpu', dtype=dtype)
    def each(p, y, reduction): return F.cross_entropy(p.float(), y, reduction=reduction)
    seen,pick = [],make(pick)
    for x,y,w in steps_by_hand(learn, n_epoch, lambda s: seen.append(s) or pick(s), queue, ce=each, ctx=cast):
        with cast():
            pred = learn.model(x).float()
            l = F.cross_entropy(pred, y, reduction='none')
        (scaler.scale(l.mean() if w is None else (l*w).mean())).backward()
        scaler.step(opt); scaler.update(); opt.zero_grad()
    return learn,seen

@pytest.mark.parametrize('loss', [CE(), plain_ce])
@pytest.mark.parametrize('pick', [top, weighted])
@pytest.mark.parametrize('dtype', DTYPES)
def test_mixed_precision(on_cpu, dtype, pick, loss):
    "Scored and trained in the learner's casts, losses in float32; the scaler's factor is gone from every gradient."
    learn = DTYPES[dtype](learner(Clean(), model=bare, loss_func=loss))
    learn.add_cb(SelectiveTraining(selector=make(pick), plain_every=3))
    learn.fit(2, .1)
    ref,seen = precise_by_hand(dtype, pick)
    for a,b in zip(learn.selection.record.losses, seen): np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5)
    close(learn, ref, 1e-5)
    assert learn.clean.n==2*8+2*2+1 # 6 training batches, 2 of validation
    with pytest.raises(AssertionError): # a step in full precision is something else
        close(learn, fit_by_hand(2, pick, model=bare), 1e-5)

@pytest.mark.parametrize('name', METHODS)
@pytest.mark.parametrize('dtype', DTYPES)
def test_mixed_precision_of_every_method(on_cpu, dtype, name):
    "Every score can be had from what the casts give, and tells the samples apart as it does in full precision."
    def run(amp):
        learn = learner(Clean(), model=net)
        if amp: learn = DTYPES[dtype](learn)
        learn.add_cb(PRESETS[name](plain_every=2))
        learn.fit(2, .05)
        return learn.selection
    a,b = run(True),run(False)
    assert a.batches.finite.all() and a.batches.n_kept.sum()<180
    first = next(i for i,o in enumerate(b.record.losses) if len(o))
    assert np.corrcoef(a.record.losses[first], b.record.losses[first])[0,1]>.99

@pytest.mark.parametrize('pick', [Some, weighted])
@pytest.mark.parametrize('dtype', DTYPES)
def test_mixed_precision_with_a_queue(on_cpu, dtype, pick):
    "A batch that only fills the queue is skipped before fastai's own callback would close its autocast."
    learn = DTYPES[dtype](learner(Clean(), model=bare)).add_cb(SelectiveTraining(selector=make(pick), queue=True, plain_every=4))
    learn.fit(2, .1)
    assert 0 in set(learn.selection.batches.n_trained) and learn.clean.n>=2*8+2*2+1
    close(learn, precise_by_hand(dtype, pick, queue=True)[0], 1e-5)

# ---- accumulated and clipped gradients

def accumulated_by_hand(n_epoch, pick, n_acc, queue=False, clip=None, lr=.1):
    "The gradient of the sum over rows, divided by `n_acc`, each time that so many rows were seen; the rest waits for the next epoch."
    learn,count = hand_learner(lr),0
    for x,y,w in steps_by_hand(learn, n_epoch, pick, queue):
        (loss_of(learn.model, x, y, w)*len(x)/n_acc).backward()
        count += len(x)
        if count<n_acc: continue
        count = 0
        if clip: nn.utils.clip_grad_norm_(learn.model.parameters(), clip)
        learn.opt.step(); learn.opt.zero_grad()
    return learn

@pytest.mark.parametrize('queue', [False, True])
@pytest.mark.parametrize('pick', [top, Some, weighted])
def test_gradient_accumulation(pick, queue):
    kw = dict(queue=True) if queue else {}
    learn = learner(GradientAccumulation(20)).add_cb(SelectiveTraining(selector=make(pick), plain_every=2, **kw))
    learn.fit(3, .1)
    close(learn, accumulated_by_hand(3, pick, 20, queue))
    with pytest.raises(AssertionError): close(learn, fit_by_hand(3, pick, queue))

@pytest.mark.parametrize('queue', [False, True])
@pytest.mark.parametrize('pick', [top, weighted])
def test_gradient_clip(pick, queue):
    kw = dict(queue=True) if queue else {}
    for n_acc,cbs in (1, [GradientClip(.2)]),(20, [GradientClip(.2), GradientAccumulation(20)]):
        learn = learner(cbs).add_cb(SelectiveTraining(selector=make(pick), plain_every=2, **kw))
        learn.fit(2, .3)
        ref = accumulated_by_hand(2, pick, n_acc, queue, clip=.2, lr=.3) if n_acc>1 else clipped_by_hand(2, pick, queue, .2, .3)
        close(learn, ref)
        with pytest.raises(AssertionError): close(learn, fit_by_hand(2, pick, queue, lr=.3))

def clipped_by_hand(n_epoch, pick, queue, clip, lr):
    learn = hand_learner(lr)
    for x,y,w in steps_by_hand(learn, n_epoch, pick, queue):
        loss_of(learn.model, x, y, w).backward()
        nn.utils.clip_grad_norm_(learn.model.parameters(), clip)
        learn.opt.step(); learn.opt.zero_grad()
    return learn

def test_weights_in_double_precision():
    "A selector may compute its weights in double; the loss that fastai smooths stays in the network's precision."
    torch.set_default_dtype(torch.float32)
    learn = make_learner(cbs=SelectiveTraining(selector=weighted), model=bare)
    learn.fit(1)
    assert learn.loss is None and np.isfinite(learn.recorder.values[0][0])

class Pair(nn.Module):
    "Two outputs, one computed from the other, and a loss of both."
    def __init__(self):
        super().__init__()
        self.net = bare()
    def forward(self, x): return (z := self.net(x)), z.softmax(1)

def pair_loss(preds, y, reduction='mean'):
    l = F.cross_entropy(preds[0], y, reduction='none') + (1-preds[1][torch.arange(len(y)),y])**2
    return l.mean() if reduction=='mean' else l

def test_weights_where_one_output_comes_from_another():
    learn = learner(SelectiveTraining(selector=weighted), model=Pair, loss_func=pair_loss)
    learn.fit(2, .1)
    ref = hand_learner(model=Pair)
    for x,y,w in steps_by_hand(ref, 2, weighted, ce=pair_loss):
        (pair_loss(ref.model(x), y, 'none')*w).mean().backward()
        ref.opt.step(); ref.opt.zero_grad()
    close(learn, ref)

# ---- trackers, loggers, short epochs

def epoch_of(learn):
    "Validation loss of a learner, computed by hand."
    learn.model.eval()
    with torch.no_grad(): res = F.cross_entropy(learn.model(learn.dls.valid_ds.ts[0]), learn.dls.valid_ds.ts[1]).item()
    learn.model.train()
    return res

def epochs_by_hand(n_epoch, pick, queue=False, lr=.1, **kwargs):
    "The learner after each epoch."
    return [fit_by_hand(i+1, pick, queue, lr, **kwargs) for i in range(n_epoch)]

@pytest.mark.parametrize('queue', [False, True])
def test_save_model(tmp_path, queue):
    cbs = [SaveModelCallback(every_epoch=True, fname='each', with_opt=True), SaveModelCallback(fname='best')]
    learn = learner(cbs, path=tmp_path).add_cb(SelectiveTraining(selector=Some(), queue=queue))
    with contextlib.redirect_stdout(None): learn.fit(4, 2.) # so large a step that the last epoch is not the best
    refs = epochs_by_hand(4, Some, queue, 2., path=tmp_path)
    losses = [epoch_of(o) for o in refs]
    best = int(np.argmin(losses))
    assert best<3
    close(learn, refs[best]) # the best is loaded at the end
    for i,ref in enumerate(refs): close(learner(path=tmp_path).load(f'each_{i}'), ref)
    np.testing.assert_allclose(learn.selection.epochs.valid_loss, losses, rtol=1e-5)

@pytest.mark.parametrize('queue', [False, True])
def test_early_stopping(queue):
    learn = learner(EarlyStoppingCallback(patience=1)).add_cb(SelectiveTraining(selector=Some(), queue=queue))
    with contextlib.redirect_stdout(None): learn.fit(4, 2.)
    refs = epochs_by_hand(4, Some, queue, 2.)
    losses = [epoch_of(o) for o in refs]
    last = next(i for i in range(1, 4) if losses[i]>min(losses[:i]))
    assert last<3 and learn.selection.epochs.epoch.tolist()==list(range(last+1))
    close(learn, refs[last])
    before = copy.deepcopy(learn.model.state_dict())
    learn.selection.selector = Some()
    learn.fit(1, 0.)
    assert learn.selection.epochs.epoch.tolist()==[0] # a stopped fit leaves nothing to the next one
    assert all(torch.equal(v, before[k]) for k,v in learn.model.state_dict().items() if 'weight' in k)

def test_csv_logger_with_a_queue(tmp_path):
    learn = learner(CSVLogger(), path=tmp_path).add_cb(SelectiveTraining(selector=Some(), queue=True))
    learn.fit(3, .1)
    d,e = learn.csv_logger.read_log(),learn.selection.epochs
    assert list(d.columns)==['epoch','train_loss','valid_loss','n_kept','time'] and d.n_kept.tolist()==e.n_kept.tolist()
    np.testing.assert_allclose(d.valid_loss, [epoch_of(o) for o in epochs_by_hand(3, Some, True)], rtol=1e-5)
    assert np.isfinite(d.train_loss).all()

def test_the_learning_rate_follows_the_batches():
    "One cycle over the batches seen, whether a step was taken or not; what is left in the queue is trained on at the last batch's rate."
    learn = learner(SelectiveTraining(selector=Some(), queue=True))
    class Rates(Callback):
        order,run_valid = 99,False
        def before_step(self): seen.append((self.learn.selection._fit.n_batch, self.opt.hypers[-1]['lr']))
    seen = []
    learn.fit_one_cycle(3, 1e-2, cbs=Rates())
    def rate(pct, lr=1e-2): # fastai's default cycle
        cos = lambda a, b, p: a + (1+np.cos(np.pi*(1-p)))*(b-a)/2
        return cos(lr/25, lr, pct/.25) if pct<.25 else cos(lr, lr/1e5, (pct-.25)/.75)
    b = learn.selection.batches
    assert len(seen)<18 and len(seen)==sum(n>0 for n in b.n_trained)+sum(n>16 for n in b.n_trained)
    flushed = [j for j in range(1, len(seen)) if np.isclose(seen[j][1], seen[j-1][1], rtol=1e-12)]
    for j,(i,lr) in enumerate(seen): np.testing.assert_allclose(lr, rate((i-(j in flushed))/18), rtol=1e-6)
    assert len(flushed)==sum(n>16 for n in b.n_trained)

class CutShort(Callback):
    "Ends the epoch's training, or the epoch, after so many batches."
    def __init__(self, n, what=CancelTrainException, order=0): self.n,self.what,self.order = n,what,order
    def after_batch(self):
        if self.training and self.iter==self.n-1: raise self.what

class Trained(Callback):
    "Which samples each step took, and of how many batches fastai was told; by their first input, which is another in every sample."
    order,run_valid = 99,False
    def before_fit(self): self.steps = []
    def before_step(self): self.steps.append(self.xb[0][:,0].tolist())

@pytest.mark.parametrize('short', ['fastai', 'train', 'late', 'epoch'])
@pytest.mark.parametrize('model', [bare, net])
def test_short_epochs_with_a_queue(short, model):
    "What an epoch cut short leaves in the queue is trained on at its end, or with the next if the epoch is cancelled."
    carried = short=='epoch'
    cut = dict(fastai=ShortEpochCallback(.5, False), train=CutShort(4), late=CutShort(4, order=70),
               epoch=CutShort(4, CancelEpochException))[short]
    learn = learner([cut, Trained()], model=model).add_cb(SelectiveTraining(selector=(pick := Kept()), queue=True, plain_every=3))
    learn.fit(3, .1)
    ref,steps = hand_learner(model=model),[]
    for x,y,w in steps_by_hand(ref, 3, Some, True, n_batch=4, carry=carried):
        steps.append(x[:,0].tolist())
        loss_of(ref.model, x, y, w).backward()
        ref.opt.step(); ref.opt.zero_grad()
    assert [sorted(o) for o in learn.trained.steps]==[sorted(o) for o in steps]
    close(learn, ref)
    b = learn.selection.batches
    assert len(b)==12 and b.n_kept.sum()==sum(pick.kept) and b.n_trained.sum()==sum(map(len, steps))
    left = sum(pick.kept)-sum(map(len, steps))
    assert left==0 if not carried else 0<=left<16

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

class Kept(Some):
    "Counts what it gives."
    def __init__(self): self.kept = []
    def __call__(self, scores):
        sel = super().__call__(scores)
        self.kept.append(len(sel.idxs))
        return sel

# ---- interrupted, and resumed in another learner

RESUMED = dict(
    plain=lambda: SelectiveTraining(),
    BLF=lambda: BatchLossFilter(loss_perc=SchedLin(.9, .5)),
    BLF_queue=lambda: BatchLossFilter(loss_perc=.5, queue=True, interrupt=4),
    SB=lambda: SelectiveBackprop(beta=2., history=50),
    SB_stale=lambda: SelectiveBackprop(beta=1., history=50, stale=2),
    SB_filter=lambda: SelectiveBackprop(queue=False, warmup=0, stale=1),
    rank=lambda: RankSelectiveBackprop(start=.25, end=.75),
    importance=lambda: ImportanceSampling(tau_th=0),
    importance_tau=lambda: ImportanceSampling(tau_th=.8), # not reached before the interruption
    importance_queue=lambda: ImportanceSampling(sample_perc=.4, tau_th=0, queue=True),
    switched_BLF=lambda: BatchLossFilter(loss_perc=.5, switch=TauSwitch(tau_th=.8)),
    InfoBatch=lambda: InfoBatch(prune=.5, delta=.75),
    CoreSet=lambda: CoreSet(sample_perc=.5))

class Ends(Callback):
    "Saves what a resumed run needs when an epoch has ended, and interrupts the run in one of several ways."
    order = 100
    def __init__(self, how, folder): self.how,self.folder = how,folder
    def save(self, learn):
        learn.save('model', with_opt=True)
        torch.save(learn.selection.state_dict(), self.folder/'selection.pth')
    def after_epoch(self):
        if self.epoch!=1: return
        if self.how=='raise': self.save(self.learn)
        if self.how=='finish': raise CancelFitException
        if self.how=='ctrl-c': raise KeyboardInterrupt
    def after_batch(self):
        if self.how=='raise' and self.training and self.epoch==2 and self.iter==1: raise RuntimeError('no power')

def tidy(d): return d[[o for o in d if not o.startswith('t_') and o not in ('train_loss','overhead_pct')]].reset_index(drop=True)

@pytest.mark.parametrize('name,how,cut', [(o, 'raise', cut) for o in RESUMED for cut in (False, True)] +
                         [(o, how, False) for o in ('BLF_queue','SB_stale','importance') for how in ('finish','ctrl-c','shorter')])
def test_resumed_is_uninterrupted(tmp_path, name, how, cut):
    """Four epochs at once, or two, and two more in a fresh learner: the same parameters, optimizer state, selections and random
    numbers. With `cut`, every epoch is cancelled in the middle, so that a queue is not empty when the run is interrupted."""
    def new(seed): return learner([CutShort(4, CancelEpochException)] if cut else None, seed, path=tmp_path, opt_func=Adam,
                                  model=lambda: nn.Sequential(net(), nn.Dropout(.1))).add_cb(RESUMED[name]())
    def fit(learn, n, **kwargs): learn.fit(n, 1e-2, **kwargs) if how=='shorter' else learn.fit_one_cycle(n, 1e-2, **kwargs)
    whole = new(1)
    fit(whole, 4)
    want,rnd = state(whole),random_states()

    first = new(1)
    ends = Ends(how, tmp_path)
    if how=='shorter': fit(first, 2)
    else:
        ended = contextlib.nullcontext() if how=='finish' else pytest.raises((RuntimeError, KeyboardInterrupt))
        with ended: fit(first, 4, cbs=ends)
    if how!='raise': ends.save(first)
    if cut and 'queue' in name: assert torch.load(tmp_path/'selection.pth')['memory']['queue']
    del first

    second = new(9)
    second.load('model', with_opt=True)
    assert second.selection.load_state_dict(torch.load(tmp_path/'selection.pth', weights_only=True)) is second.selection
    fit(second, 4, start_epoch=2)
    assert_same(state(second), want)
    assert random_states()==rnd
    a,b = whole.selection.record,second.selection.record
    last = (a.batches.epoch>=2).tolist()
    assert sum(last)==len(b.batches)>0
    for i,o in zip([i for i,l in enumerate(last) if l and a.losses], b.losses): np.testing.assert_array_equal(a.losses[i], o)
    x,y = tidy(a.batches[last]),tidy(b.batches)
    y['batch'] += x.batch[0]-y.batch[0]
    pd.testing.assert_frame_equal(x, y)
    np.testing.assert_array_equal(a.batches.train_loss[last], b.batches.train_loss)
    if not cut: pd.testing.assert_frame_equal(tidy(a.epochs[2:]), tidy(b.epochs))

# ---- mixing

def images(n=72, n_valid=16, c=3, size=6):
    g = torch.Generator().manual_seed(3)
    y = torch.randint(0, c, (n+n_valid,), generator=g)
    x = torch.randn(n+n_valid, 2, size, size, generator=g) + y[:,None,None,None]*torch.linspace(-1, 1, size)
    return Rows(x[:n], y[:n]),Rows(x[n:], y[n:])

def image_net(): return nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))

class OneHot(nn.Module):
    "A loss of soft labels, without `y_int`: fastai then mixes the labels themselves."
    reduction = 'mean'
    def forward(self, p, y):
        l = -(p.log_softmax(1)*y).sum(1)
        return l.mean() if self.reduction=='mean' else l

def blend(kind, x, y, soft):
    "What MixUp and CutMix do to a batch, written anew: mixed images, both labels (or soft ones), each sample's share of its own."
    n,alpha = len(x),torch.tensor(.4, dtype=torch.float32).double() # as fastai stores it
    if kind is MixUp:
        lam = torch.distributions.Beta(alpha, alpha).sample((n,))
        lam = torch.maximum(lam, 1-lam)
        perm = torch.randperm(n)
        x = lam[:,None,None,None]*x + (1-lam)[:,None,None,None]*x[perm]
    else:
        lam = torch.distributions.Beta(torch.tensor(1.), torch.tensor(1.)).sample((1,))
        perm = torch.randperm(n)
        h,w = x.shape[2:]
        side_w,side_h = [torch.round(o*torch.sqrt(1-lam)).long() for o in (w, h)]
        cx,cy = torch.randint(0, w, (1,)),torch.randint(0, h, (1,))
        x1,x2 = (cx-side_w//2).clamp(0, w),(cx+side_w//2).clamp(0, w)
        y1,y2 = (cy-side_h//2).clamp(0, h),(cy+side_h//2).clamp(0, h)
        mask = torch.zeros(h, w, dtype=torch.bool)
        mask[y1:y2,x1:x2] = True
        x = torch.where(mask, x[perm], x)
        lam = (1-mask.double().mean()).expand(n)
    if soft:
        y = lam[:,None]*y + (1-lam)[:,None]*y[perm]
        return x, (y, y, lam)
    return x, (y, y[perm], lam)

def mixed_loss(p, ys, soft):
    y,y1,lam = ys
    if soft: return -(p.log_softmax(1)*y).sum(1)
    return lam*F.cross_entropy(p, y, reduction='none') + (1-lam)*F.cross_entropy(p, y1, reduction='none')

def mixing_by_hand(kind, pick, after, queue, soft, n_epoch=2, lr=.1):
    learn = mixing_learner(kind, soft)
    learn.create_opt(); learn.opt.set_hypers(lr=lr)
    model,bs,pick = learn.model,learn.dls.train.bs,make(pick)
    def step(x, ys, w):
        l = mixed_loss(model(x), ys, soft)
        (l if w is None else l*w).mean().backward()
        learn.opt.step(); learn.opt.zero_grad()
    def train(now):
        *parts,w = zip(*now)
        w = None if w[0] is None else torch.stack(w)
        x,y,y1,lam = [torch.stack(o) for o in parts]
        if not after: x,(y,y1,lam) = blend(kind, x, y, soft)
        step(x, (y, y1, lam), w)
    for _ in range(n_epoch):
        wait = []
        for x,y in learn.dls.train:
            ys = y,y,torch.ones(len(x))
            if after: x,ys = blend(kind, x, y, soft)
            with torch.no_grad(): scores = mixed_loss(model(x), ys, soft).float()
            sel = pick(scores)
            idxs,w = sel.idxs,[None]*len(sel.idxs) if sel.weights is None else sel.weights
            if len(idxs)==len(x) and sel.weights is None: idxs = torch.arange(len(x))
            wait += list(zip(x[idxs], *[o[idxs] for o in ys], w))
            while len(wait)>=bs or (wait and not queue):
                now,wait = (wait[:bs],wait[bs:]) if queue else (wait,[])
                train(now)
        while wait:
            now,wait = wait[:bs],wait[bs:]
            train(now)
        for _ in learn.dls.valid: pass # draws from the random state, as fastai's validation does
    return learn

class Later(Some): n = 5 # with these numbers more is left at an epoch's end than a step takes
def weighted_more(scores): return weighted(scores, .7)

def mixer(kind):
    cb = kind()
    cb.distrib = torch.distributions.Beta(cb.distrib.concentration1.double(), cb.distrib.concentration0.double())
    return cb

def mixing_learner(kind, soft, cbs=None, **kwargs):
    train,valid = images()
    if soft: train,valid = [Rows(o.ts[0], F.one_hot(o.ts[1], 3).double()) for o in (train,valid)]
    return learner(cbs, dls=lambda: loaders(train, valid), model=image_net, loss_func=OneHot() if soft else CE(), **kwargs)

@pytest.mark.parametrize('soft', [False, True])
@pytest.mark.parametrize('queue', [False, True])
@pytest.mark.parametrize('pick', [Later, weighted_more])
@pytest.mark.parametrize('after', [False, True])
@pytest.mark.parametrize('kind', [MixUp, CutMix])
def test_mixing(kind, after, pick, queue, soft):
    "Selected before mixing by their own loss, or after it by the mixed one; images, both labels and shares stay together."
    learn = mixing_learner(kind, soft, [mixer(kind)])
    learn.add_cb(SelectiveTraining(selector=make(pick), after_mix=after, queue=queue, plain_every=3))
    lf,n = learn.loss_func,1 if after and queue else 2 # fastai's mixing draws once more where the queue is emptied
    learn.fit(n, .1)
    if queue: assert learn.selection.batches.n_trained.max()>16 # it was emptied in a step of its own
    assert learn.loss_func is lf and lf.reduction=='mean'
    close(learn, mixing_by_hand(kind, pick, after, queue, soft, n))
    with pytest.raises(AssertionError): close(learn, mixing_by_hand(kind, pick, not after, queue, soft, n))

@pytest.mark.parametrize('after', [False, True])
def test_mixing_where_one_is_kept(after):
    "fastai's MixUp cannot mix a single sample, so two are kept; mixed ones can be trained on alone."
    def one(scores): return Selection(scores.argmax()[None])
    torch.set_default_dtype(torch.float32)
    learn = mixing_learner(MixUp, False, [MixUp()]).add_cb(SelectiveTraining(selector=one, after_mix=after))
    learn.fit(1)
    assert set(learn.selection.batches.n_kept)=={1 if after else 2}
    learn.selection.queue = True
    learn.fit(1)
    assert learn.selection.batches.n_trained.tolist()==[0, 0, 0, 0, 5]

# ---- compiled models

class Graphs:
    "A backend for `torch.compile` that compiles nothing, and counts how often it was asked to."
    def __init__(self): self.n = 0
    def __call__(self, gm, example_inputs):
        self.n += 1
        return gm.forward

def compiled(how, graphs, seed=1, bs=16):
    torch._dynamo.reset()
    learn = learner(seed=seed, dls=lambda: loaders(*blobs(n=160), bs=bs))
    if how=='in place': learn.model.compile(backend=graphs)
    elif how=='wrapped': learn.model = torch.compile(learn.model, backend=graphs)
    return learn

def params(learn): return {k.replace('_orig_mod.', ''): v for k,v in learn.model.state_dict().items()}

class Sizes:
    "Keeps the given numbers of samples in turn."
    def __init__(self, sizes): self.sizes,self.i = sizes,0
    def __call__(self, scores):
        self.i += 1
        return Selection(scores.argsort(descending=True, stable=True)[:min(len(scores), self.sizes[self.i%len(self.sizes)])])

@pytest.mark.parametrize('how,kw', [('wrapped', dict(queue=True)), ('wrapped', dict(interrupt=3, warmup=1)),
                                    ('in place', dict(stale=1))])
def test_compiled_once_for_all_sizes(how, kw):
    "As many compilations for eight sizes as for two, and the result of the model that was not compiled."
    def run(sizes, how):
        graphs = Graphs()
        learn = compiled(how, graphs).add_cb(SelectiveTraining(selector=Sizes(sizes), plain_every=4, **kw))
        learn.fit(2, .1)
        b = learn.selection.batches
        return learn,graphs.n,b.n_trained.nunique()
    few,n_few,_ = run([5, 9], how)
    many,n_many,n_sizes = run([3, 14, 5, 12, 9, 7, 15, 11], how)
    assert 2<=n_many==n_few and (n_sizes>6 or 'queue' in kw)
    want,n,_ = run([3, 14, 5, 12, 9, 7, 15, 11], None)
    assert n==0
    for (k,a),b in zip(params(want).items(), params(many).values()): torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, msg=k)

@pytest.mark.parametrize('how', ['wrapped', 'in place'])
def test_compiled_before_and_one_is_kept(how):
    "Code that was compiled before does not notice a hook: that BatchNorm cannot train on one sample is seen all the same."
    learn = compiled(how, Graphs())
    for k in (8, 1):
        learn.add_cb(SelectiveTraining(selector=lambda scores: Selection(scores.argsort(descending=True)[:k])))
        learn.fit(1)
        if k>1: learn.remove_cb(SelectiveTraining)
    assert set(learn.selection.batches.n_kept)=={2}

@pytest.mark.parametrize('name', ['CoreSet', 'importance', 'SB', 'InfoBatch'])
def test_methods_on_a_compiled_model(name):
    "The same selections and the same weights as without the compiler, which had compiled the model for another method before."
    res = []
    for how in (None, 'in place'):
        learn = compiled(how, Graphs(), bs=20)
        reseed(learn)
        learn.add_cb(HardNegativeMining())
        learn.fit(1, .05)
        learn.remove_cb(SelectiveTraining)
        learn.add_cb(PRESETS[name]())
        learn.fit(2, .05)
        res.append(learn)
    a,b = res
    assert a.selection.batches.n_kept.tolist()==b.selection.batches.n_kept.tolist() and a.selection.batches.n_kept.sum()<320
    for (k,x),y in zip(params(a).items(), params(b).values()): torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-9, msg=k)

# ---- two processes

@pytest.fixture(scope='module')
def two(tmp_path_factory):
    "What two processes that trained together left behind: name -> one dict per process."
    folder,here = tmp_path_factory.mktemp('two'),Path(__file__).resolve().parent
    logs = [open(folder/f'log_{r}', 'w+') for r in (0,1)]
    env = os.environ | dict(OMP_NUM_THREADS='1', PYTHONPATH=str(here))
    ps = [subprocess.Popen([sys.executable, '-W', 'ignore', here/'two_processes.py', folder, str(r)], cwd=folder, env=env,
                           stdout=logs[r], stderr=logs[r]) for r in (0,1)]
    end = time.time()+240
    try:
        for p in ps: p.wait(max(1, end-time.time()))
    except subprocess.TimeoutExpired: pass
    finally:
        late = [p.poll() is None for p in ps]
        for p in ps: p.kill(); p.wait()
    said = ''
    for o in logs:
        o.seek(0); said += o.read()[-3000:]; o.close()
    assert not any(late), f'the processes wait for each other\n{said}'
    assert [p.returncode for p in ps]==[0, 0], said
    return lambda name: [torch.load(folder/f'{name}_{r}.pth') for r in (0,1)]

def together_by_hand(res, n_epoch, picks, queue=False, stale=0, on=lambda r, i: True):
    """One process that does what two did: each part of a batch is scored and selected from by itself, and one step follows the
    gradient of the mean over all samples that the two kept. With `queue`, it waits until both have a full batch."""
    learn = hand_learner(model=bare)
    model,bs,last,scored = learn.model,16,[{}, {}],[[], []]
    n_iter = len(res[0]['batches'])//n_epoch
    trained,shown = [],[]
    def step(now):
        trained.append([len(o) for o in now])
        now = [o for part in now for o in part]
        x,y,w = rows([(x, y, torch.ones(()) if w is None else w) for x,y,w in now])
        loss = (F.cross_entropy(model(x), y, reduction='none')*w).sum().div(len(x))
        loss.backward()
        shown.append(loss.item())
        learn.opt.step(); learn.opt.zero_grad()
    ends = []
    for epoch in range(n_epoch):
        wait = [[], []]
        for i in range(n_iter):
            for r in (0,1):
                e,x,y = res[r]['batches'][epoch*n_iter+i]
                assert e==epoch
                keys = [o[0].item() for o in x] # another in every sample
                with torch.no_grad(): fresh = F.cross_entropy(model(x), y, reduction='none').float()
                scores,n_new = [],0
                for k,s in zip(keys, fresh):
                    if stale and k in last[r] and epoch-last[r][k][1]<=stale: s = last[r][k][0]
                    else: last[r][k],n_new = (s, epoch),n_new+1
                    scores.append(s)
                if not on(r, i): idxs,w,n_new = range(len(x)),None,0
                else: idxs,w = picks[r](torch.stack(scores))
                scored[r].append(n_new)
                if len(idxs)==len(x) and w is None: idxs = range(len(x))
                wait[r] += [(x[o], y[o], None if w is None else w[j]) for j,o in enumerate(idxs)]
            if not queue: step(wait); wait = [[], []]
            elif i==n_iter-1:
                while wait[0] or wait[1]:
                    step([o[:bs] for o in wait])
                    wait = [o[bs:] for o in wait]
            elif min(map(len, wait))>=bs:
                step([o[:bs] for o in wait])
                wait = [o[bs:] for o in wait]
        ends.append(len(shown))
    return learn,trained,scored,[smooth(shown[:o]) for o in ends]

def smooth(losses, beta=.98):
    "fastai's running mean of the training loss."
    val = 0.
    for o in losses: val = beta*val + (1-beta)*o
    return val/(1-beta**len(losses))

@pytest.mark.parametrize('name', ['filter','weighted','queue','queue_weighted','stale','switch'])
def test_two_processes(two, name):
    "The averaged gradient weighs samples, not processes, whatever each of them kept."
    (kw,n_epoch),(kw1,_) = two_processes.cases(0)[name],two_processes.cases(1)[name]
    res = two(name)
    assert_same(res[0]['model'], res[1]['model'])
    on = (lambda r, i: i%2==r) if name=='switch' else (lambda r, i: True)
    ref,trained,scored,shown = together_by_hand(res, n_epoch, [kw['selector'], kw1['selector']], 'queue' in name,
                                                kw.get('stale', 0), on)
    for k,v in ref.model.state_dict().items(): torch.testing.assert_close(res[0]['model'][k], v, rtol=1e-9, atol=1e-9, msg=k)
    for r in (0,1):
        if 'queue' not in name: # fastai takes it down before the queue is emptied
            np.testing.assert_allclose(res[r]['train_loss'], shown, rtol=1e-6)
        assert sum(res[r]['n_trained'])==sum(o[r] for o in trained)==sum(res[r]['n_kept'])
        assert res[r]['n_scored']==scored[r]
    assert any(a!=b for a,b in trained) # they kept different numbers
    if 'queue' in name: assert 0 in res[0]['n_trained']
    if name=='stale': assert 0 in scored[0] or min(scored[0])<max(scored[0])
    seen = [{o[0].item() for e,x,_ in res[r]['batches'] if e==0 for o in x} for r in (0,1)]
    assert len(seen[0]|seen[1])==90 and len(seen[0]&seen[1])<=1 # each its own part

def test_two_processes_that_keep_all(two):
    "Bit for bit fastai's own training on two processes, BatchNorm included."
    for a,b in zip(two('fastai'), two('all')): assert_same(a['model'], b['model'])

def test_two_processes_one_sample(two):
    "One process has a sample more than two batches for a network with BatchNorm, the other two more than one: neither waits or fails."
    a,b = two('one')
    assert a['n_trained']==[0, 0, 33] and b['n_trained']==[0, 0, 18]
    assert_same(*[{k: v for k,v in o['model'].items() if 'running' not in k} for o in (a, b)])
    assert sum(a['n_trained'])==sum(a['n_kept']) and sum(b['n_trained'])==sum(b['n_kept'])

@pytest.mark.parametrize('name', PRESETS)
def test_two_processes_of_every_method(two, name):
    "They end with the same weights, whatever each drew; no sample is lost, and none waits for ever."
    a,b = two(name)
    assert_same(a['model'], b['model'])
    assert all(v.isfinite().all() for v in a['model'].values())
    if name=='plain': return
    for o in a,b: assert sum(o['n_trained'])==sum(o['n_kept'])<sum(o['n_seen'])==3*45
    if name in ('SB','InfoBatch'): assert a['n_kept']!=b['n_kept'] and a['n_kept'][:3]==a['n_seen'][:3] # after the warm-up

def test_two_processes_accumulation(two):
    "Each would count its own samples, step at another time, and have other weights from then on: refused, in a sentence."
    for o in two('message'): assert 'GradientAccumulation' in o

# ---- when and how, with every method

def six(batches): return [(e, i) for e in range(4) for i in batches]

@pytest.mark.parametrize('kw,on', [
    (dict(), six(range(6))),
    (dict(warmup=1), six(range(6))[6:]),
    (dict(warmup=4), []),
    (dict(start=.5, end=.75), [(2, i) for i in range(6)]), # batches 12 to 17 of 24
    (dict(start=.3, end=.8), [(1, 2), (1, 3), (1, 4), (1, 5), *[(2, i) for i in range(6)], (3, 0), (3, 1)]), # 7.2/24 and 19.2/24
    (dict(start=1/3, end=2/3), [(1, 2), (1, 3), (1, 4), (1, 5), *[(2, i) for i in range(4)]]), # 8 to 15
    (dict(interrupt=2), six([0, 2, 4])), (dict(interrupt=4), six([0, 1, 2, 4, 5])), (dict(interrupt=1), []),
    (dict(warmup=1, start=.1, end=.9, interrupt=3), [(e, i) for e,i in six([0, 1, 3, 4]) if (1, 0)<=(e, i)<(3, 4)])]) # 21.6/24
@pytest.mark.parametrize('queue', [False, True])
def test_when(kw, on, queue):
    "Which batches are selected from, listed by hand; the others train whole, and nothing was scored for them."
    learn = learner(SelectiveTraining(selector=top, queue=queue, plain_every=0, **kw))
    learn.fit(4, .05)
    b = learn.selection.batches
    assert [(e, i%6) for e,i,n in zip(b.epoch, b.batch, b.n_scored) if n]==on
    sizes = [10 if i==5 else 16 for _,i in six(range(6))]
    assert b.n_seen.tolist()==sizes and b.n_kept.tolist()==[round(n*.4) if o in on else n for n,o in zip(sizes, six(range(6)))]
    want = hand_learner(.05)
    which = iter(six(range(6)))
    pick = lambda scores: top(scores, .4 if next(which) in on else 1.)
    for x,y,w in steps_by_hand(want, 4, pick, queue):
        loss_of(want.model, x, y, w).backward()
        want.opt.step(); want.opt.zero_grad()
    close(learn, want)

@pytest.mark.parametrize('name', METHODS)
def test_when_of_every_method(name):
    learn = learner(PRESETS[name](warmup=1, start=.1, end=.9, interrupt=3, queue=False))
    learn.fit(4, .05)
    b = learn.selection.batches
    at = [(e, i%6) for e,i in zip(b.epoch, b.batch)]
    on = [(e, i) for e,i in six([0, 1, 3, 4]) if (1, 0)<=(e, i)<(3, 4)]
    assert all(k==n for k,n,o in zip(b.n_kept, b.n_seen, at) if o not in on)
    assert {o for o,n in zip(at, b.n_scored) if n}==(set() if name=='InfoBatch' else set(on))
    assert sum(k for k,o in zip(b.n_kept, at) if o in on) < sum(n for n,o in zip(b.n_seen, at) if o in on)

@pytest.mark.parametrize('queue', [False, True])
@pytest.mark.parametrize('name', METHODS)
def test_never_on_is_plain(name, queue):
    "Bit for bit, dropout and BatchNorm included, though every batch was watched."
    def run(cb):
        learn = make_learner(cbs=cb and [cb()], loss_func=CrossEntropyLossFlat())
        learn.fit_one_cycle(2, 1e-2)
        return state(learn)
    torch.set_default_dtype(torch.float32)
    assert_same(run(lambda: PRESETS[name](warmup=2, queue=queue, plain_every=2)), run(None))

COMBINED = dict(queue=dict(queue=True), no_queue=dict(queue=False), stale=dict(stale=1, queue=False),
                stale_queue=dict(stale=2, queue=True), small=dict(scale_factor=.5), after=dict(after_mix=True), after_queue=dict(after_mix=True, queue=True, stale=1),
                often=dict(interrupt=2, warmup=1, queue=True), switch=dict(switch='tau'))

@pytest.mark.parametrize('combined', COMBINED)
@pytest.mark.parametrize('name', METHODS)
def test_every_method_with_everything(name, combined):
    "Every method with every way of stepping: nothing is lost, no step is empty, and all ends with finite weights."
    kw = dict(COMBINED[combined])
    if 'switch' in kw: kw['switch'] = TauSwitch(tau_th=.5) # its running mean begins at 0
    torch.set_default_dtype(torch.float32)
    train,valid = images(90)
    learn = make_learner(cbs=[PRESETS[name](plain_every=3, **kw), Trained(), *([MixUp()] if combined.startswith('after') else [])],
                         dls=lambda: loaders(train, valid), model=image_net, loss_func=CE(), metrics=None)
    if name=='CoreSet' and kw.get('stale'): # its features are of one moment
        with pytest.raises(ValueError, match='stale=. is not accepted'): learn.fit(1)
        return
    learn.fit_one_cycle(3, 1e-2)
    b,bs = learn.selection.batches,16
    assert len(b)==18 and all(o.isfinite().all() for o in learn.model.state_dict().values())
    assert (b.n_kept>0).all() and (b.n_kept<=b.n_seen).all() and b.n_kept.sum()<b.n_seen.sum()
    steps = learn.trained.steps
    if not learn.selection.queue:
        assert [len(o) for o in steps]==b.n_trained.tolist()==b.n_kept.tolist()
    else:
        assert b.groupby('epoch').n_trained.sum().tolist()==b.groupby('epoch').n_kept.sum().tolist()
        assert set(b.n_trained[b.batch%6!=5])<={0, bs}
    if kw.get('stale') and name!='InfoBatch': assert b[b.epoch==1].n_scored.sum()<90
    if name=='InfoBatch': assert b.n_scored.sum()==0
    assert [o for m in learn.model.modules() for o in (*m._forward_hooks, *m._forward_pre_hooks)]==[]

@pytest.mark.parametrize('queue', [False, True])
def test_smaller_images_for_scoring(queue):
    "Scored on images of half the size, trained on whole ones."
    def learn_(cb=None): return learner(cb, dls=lambda: loaders(*images()), model=image_net)
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

# ---- the rest of the learner, with every method

def pair(name, **kwargs):
    "The same weights in a plain learner and in one that was trained with the method."
    torch.set_default_dtype(torch.float32)
    plain,sel = make_learner(**kwargs),make_learner(cbs=PRESETS[name](), **kwargs)
    sel.fit(2, 1e-2)
    plain.model.load_state_dict(sel.model.state_dict())
    return plain,sel

def tup(o): return [t.tolist() for t in o]

def reseed(learn, seed=4):
    random.seed(seed); torch.manual_seed(seed)
    learn.dls.train.rng = random.Random(seed)

@pytest.mark.parametrize('name', METHODS)
@pytest.mark.filterwarnings('ignore')
def test_the_rest_of_the_learner(tmp_path, name):
    "Validation, predictions, the learning-rate finder and exported files are the plain learner's; the record and memory stay."
    plain,sel = pair(name, path=tmp_path)
    record,memory = sel.selection.epochs,copy.deepcopy(sel.selection.memory)
    assert record.n_kept.sum()<180
    assert list(plain.validate())==list(sel.validate())
    assert tup(plain.get_preds(with_loss=True))==tup(sel.get_preds(with_loss=True)) and len(sel.get_preds(ds_idx=0)[0])==90
    found = []
    for learn in plain,sel:
        reseed(learn)
        learn.opt = None
        at = tuple(learn.lr_find(num_it=12, show_plot=False))
        found.append((at, [float(o) for o in learn.recorder.losses], list(learn.recorder.metric_names)))
    assert found[0]==found[1]
    pd.testing.assert_frame_equal(record, sel.selection.epochs)
    assert repr(memory)==repr(sel.selection.memory)
    want = tup(plain.get_preds())
    sel.export('learn.pkl')
    again = load_learner(tmp_path/'learn.pkl')
    assert tup(again.get_preds(dl=sel.dls.valid))==want
    assert again.selection.method==sel.selection.method
    sel.fit(1) # and an exported learner still trains
    assert len(sel.selection.epochs)==1

class Breaks(Callback):
    "Ctrl-C in the middle of a batch that was selected from: while scoring, in the forward, behind the loss, in the step."
    order = 99
    def __init__(self, where): self.where = where
    def before_fit(self):
        if self.where!='scoring': return
        def stop(*_):
            if not self.learn.model.training and self.epoch==2: raise KeyboardInterrupt
        self.hook = self.learn.model.register_forward_hook(stop)
    def _at(self, where):
        if self.where==where and self.training and self.epoch==2 and self.iter>=2: raise KeyboardInterrupt
    def after_pred(self): self._at('forward')
    def after_loss(self): self._at('loss')
    def before_step(self): self._at('step')

@pytest.mark.parametrize('name,where', [(o, w) for o in METHODS for w in ('scoring','forward','loss','step')
                                        if (o, w)!=('InfoBatch','scoring')]) # it scores nothing
def test_nothing_outlives_ctrl_c(name, where):
    "Interrupted in mid-batch, and the callback removed: the learner then trains as one that never had it."
    torch.set_default_dtype(torch.float32)
    def new(*cbs): return make_learner(cbs=[MixUp(), GradientClip(), *cbs], dls=lambda: loaders(*images(90)), model=image_net_bn,
                                       loss_func=CE())
    plain,sel = new(),new(PRESETS[name](plain_every=2))
    keys,cbs,lf = set(vars(plain)),[type(o) for o in plain.cbs],sel.loss_func
    breaks = Breaks(where)
    with pytest.raises(KeyboardInterrupt): sel.fit(4, 1e-2, cbs=breaks)
    if where=='scoring': breaks.hook.remove()
    assert all(o.training for o in sel.model.modules()) and torch.is_grad_enabled() and not torch.is_autocast_enabled('cpu')
    sel.mix_up.after_train() # which fastai leaves out when interrupted, with or without this callback
    assert sel.loss_func is lf and lf.reduction=='mean'
    sel.remove_cb(SelectiveTraining)
    assert [type(o) for o in sel.cbs]==cbs and not hasattr(sel, 'selection')
    assert [o for m in sel.model.modules() for o in (*m._forward_hooks, *m._forward_pre_hooks, *m._backward_hooks)]==[]
    sel.model.load_state_dict(new().model.state_dict())
    for learn in plain,sel:
        reseed(learn)
        learn.opt = None
        for p in learn.model.parameters(): p.grad = None
        learn.fit_one_cycle(2, 1e-2)
    assert_same(state(plain), state(sel))
    for o in 'metric_names','values': assert getattr(plain.recorder, o)==getattr(sel.recorder, o)

def image_net_bn():
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Dropout(.2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))
