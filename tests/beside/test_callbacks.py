"Selection beside fastai's other callbacks: trackers, loggers, short epochs, clipping."
import contextlib, copy, warnings
import numpy as np, pytest, torch
from fastai.callback.core import CancelEpochException, FetchPredsCallback
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.mixup import MixUp
from fastai.callback.progress import CSVLogger
from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback, TerminateOnNaNCallback
from fastai.callback.training import GradientAccumulation, GradientClip, ShortEpochCallback
from blf_explore.all import SelectiveTraining
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
