"Selection beside fastai's other callbacks: trackers, loggers, short epochs, clipping."
import contextlib, copy, importlib, importlib.machinery, sys, types, warnings
import numpy as np, pytest, torch
from fastai.callback.core import CancelEpochException, FetchPredsCallback
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.hook import ActivationStats
from fastai.callback.mixup import MixUp
from fastai.callback.progress import CSVLogger, ShowGraphCallback
from fastai.callback.tracker import EarlyStoppingCallback, ReduceLROnPlateau, SaveModelCallback, TerminateOnNaNCallback
from fastai.callback.training import GradientAccumulation, GradientClip, ShortEpochCallback
from fastai.callback.data import CollectDataCallback
from blf_explore.all import BatchLossFilter, HardNegativeMining, SelectiveBackprop, SelectiveTraining
from core_tools import *
from references import epochs_by_hand, hand_learner, loss_of, Some, steps_by_hand

@pytest.mark.parametrize('cbs', [lambda: GradientClip(.05), lambda: GradientAccumulation(40), lambda: MixUp(), lambda: ShortEpochCallback(.5, False),
                                 lambda: MixedPrecision('bf16'), lambda: [GradientClip(.1), GradientAccumulation(32)]])
@pytest.mark.filterwarnings('ignore')
def test_all_kept_beside_other_callbacks(cbs):
    def run(blf):
        learn = make_learner(cbs=cbs())
        if blf: learn.batch_loss_filter(1., plain_every=2)
        lf = learn.loss_func
        learn.fit_one_cycle(2, 1e-2)
        assert learn.loss_func is lf
        return state(learn)
    assert_same(run(False), run(True))

def test_fetch_preds():
    learn = make_learner(cbs=FetchPredsCallback()).batch_loss_filter(.5)
    cb = learn.selection
    learn.fit(2)
    assert len(learn.fetch_preds.preds[0])==20
    assert learn.selection is cb and len(cb.epochs)==2 and cb.epochs.accuracy_.notna().all()
    assert [len(o) for o in learn.recorder.values]==[4, 4]

def test_terminate_on_nan():
    learn = make_learner(loss_func=lambda p, y: p.sum()*float('nan'), cbs=TerminateOnNaNCallback())
    with warnings.catch_warnings(record=True):
        warnings.simplefilter('always')
        learn.batch_loss_filter(.5).fit(2)
    assert learn.selection.batches.finite.tolist()==[False]

@pytest.mark.parametrize('kw', [dict(), dict(metrics=None), dict(metrics=[accuracy_, CrossEntropyLossFlat()])])
def test_csv_logger(tmp_path, kw):
    kw = {k: [accuracy_, accuracy2] if k=='metrics' and v else v for k,v in kw.items()}
    learn = make_learner(path=tmp_path, cbs=CSVLogger(), **kw).batch_loss_filter(.5)
    learn.fit(2)
    d = learn.csv_logger.read_log()
    assert d.n_kept.tolist()==learn.selection.epochs.n_kept.tolist()
    np.testing.assert_allclose(d.valid_loss, learn.selection.epochs.valid_loss, rtol=1e-6)
    for o in [o.name for o in learn.metrics]: np.testing.assert_allclose(d[o], learn.selection.epochs[o], rtol=1e-6)

def accuracy2(p, y): return accuracy_(p, y)*2

@pytest.mark.parametrize('monitor', ['valid_loss', 'accuracy_', 'train_loss'])
def test_trackers_follow_their_column(tmp_path, monitor):
    learn = make_learner(path=tmp_path, cbs=[SaveModelCallback(monitor=monitor), EarlyStoppingCallback(monitor=monitor, patience=2)]).batch_loss_filter(.5)
    with contextlib.redirect_stdout(None): learn.fit(5, .05)
    vals = learn.selection.epochs[monitor].tolist()
    assert learn.save_model.best==pytest.approx((max if 'accuracy' in monitor else min)(vals))

# ---- trackers, loggers, short epochs

def epoch_of(learn):
    "Validation loss of a learner, computed by hand."
    learn.model.eval()
    with torch.no_grad(): res = F.cross_entropy(learn.model(learn.dls.valid_ds.ts[0]), learn.dls.valid_ds.ts[1]).item()
    learn.model.train()
    return res

@double
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

@double
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

@double
def test_csv_logger_with_a_queue(tmp_path):
    learn = learner(CSVLogger(), path=tmp_path).add_cb(SelectiveTraining(selector=Some(), queue=True))
    learn.fit(3, .1)
    d,e = learn.csv_logger.read_log(),learn.selection.epochs
    assert list(d.columns)==['epoch','train_loss','valid_loss','n_kept','time'] and d.n_kept.tolist()==e.n_kept.tolist()
    np.testing.assert_allclose(d.valid_loss, [epoch_of(o) for o in epochs_by_hand(3, Some, True)], rtol=1e-5)
    assert np.isfinite(d.train_loss).all()

@double
def test_the_learning_rate_follows_the_batches():
    "One cycle over the batches seen, whether a step was taken or not; what is left in the queue is trained on at the last batch's rate."
    learn = learner(SelectiveTraining(selector=Some(), queue=True))
    class Rates(Callback):
        order,run_valid = 99,False
        def before_step(self): seen.append((self.learn.selection._fit.log.n_batch, self.opt.hypers[-1]['lr']))
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

@double
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

class Kept(Some):
    "Counts what it gives."
    def __init__(self): self.kept = []
    def __call__(self, scores):
        sel = super().__call__(scores)
        self.kept.append(len(sel.idxs))
        return sel

# ---- batches without a step: fastai's loggers all the same

WAITS = dict( # the first batches only fill the queue; of the last method nothing may be kept of them
    HNM=lambda: HardNegativeMining(.25, queue=True), few=lambda: HardNegativeMining(.01, queue=True), SB=lambda: SelectiveBackprop(4., warmup=0),
 BLF=lambda: BatchLossFilter(.1, queue=True))
waiting = pytest.mark.parametrize('name', WAITS)

def logged(name, cbs, n=2, **kwargs):
    learn = make_learner(cbs=[*cbs, WAITS[name]()], **kwargs)
    with contextlib.redirect_stdout(None): learn.fit(n, 1e-2)
    assert (learn.selection.batches.n_trained==0).any()
    return learn

def stubbed(monkeypatch, module, **stubs):
    "fastai's logging callback, imported anew with modules in the place of those that it logs to."
    for name,o in stubs.items():
        o.__spec__ = importlib.machinery.ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name.replace('__', '.'), o)
    monkeypatch.delitem(sys.modules, module, raising=False)
    return importlib.import_module(module)

class Writer:
    "As TensorBoard's, in memory."
    def __init__(self, log_dir=None): self.rows,self.closed = [],False
    def add_scalar(self, name, val, step): self.rows.append((name, float(val), step))
    def close(self): self.closed = True

@pytest.fixture
def tensorboard(monkeypatch):
    fake = types.ModuleType('torch.utils.tensorboard')
    fake.SummaryWriter = Writer
    yield stubbed(monkeypatch, 'fastai.callback.tensorboard', tensorboard=types.ModuleType('tensorboard'), torch__utils__tensorboard=fake)
    sys.modules.pop('fastai.callback.tensorboard', None) # the next one imports the real one

@waiting
def test_tensorboard(tensorboard, name):
    cb = tensorboard.TensorBoardCallback(trace_model=False, log_preds=False)
    learn = logged(name, [cb])
    got = [(v, i) for k,v,i in cb.writer.rows if k=='train_loss']
    b = learn.selection.batches
    steps = int((b.n_trained>0).sum())
    assert all(np.isfinite(v) for v,_ in got) and steps<=len(got)<=2*len(b)+2 and cb.writer.closed
    assert [v for k,v,_ in cb.writer.rows if k=='accuracy_']==pytest.approx(learn.selection.epochs.accuracy_.tolist())

@pytest.fixture
def wandb(monkeypatch):
    w = types.ModuleType('wandb')
    w.rows = []
    w.run,w.config = types.SimpleNamespace(step=0, dir='.', config={}),types.SimpleNamespace(update=lambda *a, **k: None)
    w.log = lambda d, step=None: w.rows.append((d, step))
    w.watch = w.unwatch = w.define_metric = lambda *a, **k: None
    w.Image = w.Table = object
    yield w,stubbed(monkeypatch, 'fastai.callback.wandb', wandb=w)
    sys.modules.pop('fastai.callback.wandb', None)

@waiting
def test_wandb(wandb, name):
    w,module = wandb
    learn = make_learner(cbs=[module.WandbCallback(log_preds=False), WAITS[name]()])
    learn.gather_args = dict # today's fastcore stumbles over what fastai finds here, with a selection or without
    learn.fit(2, 1e-2)
    got = [float(d['train_loss']) for d,_ in w.rows if 'train_loss' in d]
    assert got and np.isfinite(got).all()
    assert [d['accuracy_'] for d,_ in w.rows if 'accuracy_' in d]==pytest.approx(learn.selection.epochs.accuracy_.tolist())

@waiting
def test_collected_data(name):
    "One entry for each batch, 6 and 2 an epoch, and for a last one that the queue still held."
    learn = logged(name, [CollectDataCallback()])
    rest = sum(n>16 for n in learn.selection.batches.n_trained)
    assert len(learn.collect_data.data)==2*(6+2)+rest and all(np.isfinite(float(o[-1])) for o in learn.collect_data.data)

@waiting
@pytest.mark.parametrize('every', [None, 2])
def test_activation_stats(name, every):
    learn = logged(name, [ActivationStats(with_hist=True, every=every)])
    assert len(learn.activation_stats.stats) and np.isfinite([o['mean'] for o in learn.activation_stats.stats[-1] if o]).all()

@waiting
def test_tables_bars_and_graphs(name, tmp_path):
    learn = logged(name, [CSVLogger(), ShowGraphCallback(), TerminateOnNaNCallback()], path=tmp_path, bar=True)
    d = learn.csv_logger.read_log()
    assert d.n_kept.tolist()==learn.selection.epochs.n_kept.tolist() and np.isfinite(d.train_loss).all()

@waiting
def test_trackers_with_a_queue(name, tmp_path):
    learn = logged(name, [EarlyStoppingCallback(patience=3), SaveModelCallback(), ReduceLROnPlateau(), GradientClip()], path=tmp_path, n=3)
    assert len(learn.selection.epochs)==3 and learn.save_model.best==pytest.approx(learn.selection.epochs.valid_loss.min())
