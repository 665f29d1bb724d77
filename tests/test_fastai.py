"BatchLossFilter beside the rest of fastai: its methods, its other callbacks, its table and its files."
import contextlib, copy, pickle, warnings
import numpy as np, pandas as pd, pytest, torch
from fastai.basics import load_learner
from fastai.callback.core import CancelBatchException, CancelTrainException, CancelValidException, FetchPredsCallback
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.mixup import CutMix, MixUp
from fastai.callback.progress import CSVLogger
from fastai.callback.schedule import SchedCos, SchedLin, combine_scheds
from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback, TerminateOnNaNCallback
from fastai.callback.training import GradientAccumulation, GradientClip, ShortEpochCallback
from fastai.learner import Metric, Recorder
from blf_explore.blf import BatchLossFilter
from blf_explore.engine.filtering import SelectiveTraining, Selection
from blf_explore.gradients import GradientProbe
from core_tools import *

def tup(o): return [t.tolist() for t in o]

# ---- attaching, replacing, removing

def test_batch_loss_filter_returns_the_learner_and_replaces():
    learn = make_learner()
    n = len(learn.cbs)
    assert learn.batch_loss_filter() is learn
    assert learn.selection.loss_perc==.9 and learn.selection.sample_perc==0
    first = learn.selection
    assert learn.batch_loss_filter(.5, .1) is learn and learn.selection is not first
    assert len(learn.cbs)==n+1 and learn.selection.loss_perc==.5 and learn.selection.sample_perc==.1
    assert learn.batch_loss_filter(loss_perc=.4, sample_perc=.2).selection.loss_perc==.4
    learn.fit(1)
    assert learn.remove_cb(BatchLossFilter) is learn and len(learn.cbs)==n and not hasattr(learn, 'selection')
    assert callable(learn.batch_loss_filter) and learn.batch_loss_filter().selection is not first

def test_by_cbs():
    a = make_learner(cbs=BatchLossFilter(.5))
    b = make_learner(); b.batch_loss_filter(.5)
    c = make_learner()
    for learn in a,b: # made in turn from the same seed, trained in turn from another
        random.seed(4); torch.manual_seed(4); learn.dls.train.rng = random.Random(4)
        learn.fit(2)
    random.seed(4); torch.manual_seed(4); c.dls.train.rng = random.Random(4)
    cb = BatchLossFilter(.5)
    c.fit(2, cbs=cb)
    assert_same(state(a), state(b)); assert_same(state(a), state(c))
    assert a.selection.batches.n_kept.tolist()==cb.batches.n_kept.tolist()
    assert not hasattr(c, 'selection') and callable(c.batch_loss_filter)
    assert make_learner(cbs=BatchLossFilter).selection.loss_perc==.9 # fastai takes the class, too

def test_removed_is_as_if_never_there():
    def run(blf):
        learn = make_learner(cbs=GradientClip())
        if blf: learn.batch_loss_filter(.3).fit(1); learn.remove_cb(BatchLossFilter)
        else: learn.fit(1)
        learn.model.load_state_dict(make_learner().model.state_dict())
        random.seed(9); torch.manual_seed(9); learn.dls.train.rng = random.Random(9)
        learn.fit_one_cycle(2, 1e-2, reset_opt=True)
        return learn
    a,b = run(False),run(True)
    assert_same(state(a), state(b))
    assert a.recorder.values==b.recorder.values and a.recorder.metric_names==b.recorder.metric_names
    assert [type(o) for o in a.cbs]==[type(o) for o in b.cbs]

@pytest.mark.parametrize('kw', [dict(loss_perc=1.5), dict(loss_perc=-1), dict(sample_perc=2), dict(loss_perc='x'), dict(loss_perc=None), dict(loss_perc=float('nan')),
                                dict(loss_perc=0, sample_perc=0), dict(loss_perc=SchedLin(.5, 1.5)), dict(sample_perc=lambda pct: 'no'), dict(loss_perc=True)])
def test_bad_settings_change_nothing(kw):
    "One sentence that names the argument and what is accepted, at once; the learner keeps what it had."
    learn = make_learner().batch_loss_filter(.7)
    old,cbs = learn.selection,list(learn.cbs)
    for f in (lambda: learn.batch_loss_filter(**kw), lambda: BatchLossFilter(**kw), lambda: learn.selection.set(**kw)):
        with pytest.raises(ValueError) as e: f()
        msg = str(e.value)
        assert next(iter(kw)) in msg and '1' in msg and '0' in msg and '\n' not in msg and '. ' not in msg
        val = next(iter(kw.values()))
        if not callable(val): assert repr(val) in msg
    assert learn.selection is old and list(learn.cbs)==cbs and old.loss_perc==.7 and old.sample_perc==0
    learn.fit(1)

def test_bad_assignment_stops_before_training():
    learn = make_learner().batch_loss_filter()
    before = state(learn)
    learn.selection.loss_perc = 1.5
    with pytest.raises(ValueError, match='loss_perc=1.5 is not accepted'): learn.fit(1)
    now = state(learn)
    assert all(torch.equal(before[k], now[k]) for k in before)
    learn.selection.loss_perc = .5
    learn.fit(1)
    class Bad(Callback):
        def after_batch(self):
            if self.training and self.iter==2: self.learn.selection.sample_perc = 'half'
    with pytest.raises(ValueError, match="sample_perc='half'"): learn.fit(1, cbs=Bad())
    assert len(learn.selection.batches)==3

def test_unknown_setting():
    with pytest.raises(ValueError, match='beta=2'): make_learner().batch_loss_filter().selection.set(beta=2)

def test_two_selections_are_refused():
    learn = make_learner().batch_loss_filter(.5)
    first,before = learn.selection,state(learn)
    with pytest.raises(ValueError, match='two'): learn.fit(1, cbs=BatchLossFilter(.1))
    assert_same(before, {k: v for k,v in state(learn).items() if k in before})
    learn.fit(1)
    assert learn.selection is first and len(first.epochs)==1

# ---- settings that move

def test_schedules():
    sched = combine_scheds([.25,.75], [SchedLin(1., .5), SchedCos(.5, .2)])
    learn = make_learner().batch_loss_filter(sched, sample_perc=SchedLin(.3, .1))
    learn.fit(3)
    b = learn.selection.batches
    pcts = np.arange(18)/18
    np.testing.assert_allclose(b.loss_perc, [sched(o) for o in pcts], atol=1e-6)
    np.testing.assert_allclose(b.sample_perc, .3-.2*pcts, atol=1e-6)
    for losses,row in zip(learn.selection.record.losses, b.itertuples()):
        assert max(2, len(brute_blf(losses, row.loss_perc, row.sample_perc)))==row.n_kept
    assert len(learn.selection.record.changes)==0 # a schedule that runs is no change
    assert learn.selection.record.info['settings']==dict(loss_perc='schedule from 1 to 0.2', sample_perc='schedule from 0.3 to 0.1')

@pytest.mark.parametrize('by', ['set', 'assign'])
def test_changes_in_mid_training(by):
    class Move(Callback):
        order = 99
        def after_batch(self):
            if not self.training: return
            def put(**kw): self.learn.selection.set(**kw) if by=='set' else [setattr(self.learn.selection, k, v) for k,v in kw.items()]
            if (self.epoch, self.iter)==(0, 1): put(loss_perc=.2)
            if (self.epoch, self.iter)==(1, 3): put(loss_perc=0., sample_perc=.75)
            if (self.epoch, self.iter)==(1, 4): put(loss_perc=0.) # no change
            if (self.epoch, self.iter)==(2, 0): put(loss_perc=SchedLin(1., 1.))
    learn = make_learner(cbs=Move()).batch_loss_filter(.9)
    learn.fit(3)
    b,c = learn.selection.batches,learn.selection.record.changes
    assert b.loss_perc.tolist()==[.9]*2 + [.2]*4 + [.2]*4 + [0.]*2 + [0.] + [1.]*5
    assert b.sample_perc.tolist()==[0.]*10 + [.75]*8
    for losses,row in zip(learn.selection.record.losses, b.itertuples()):
        assert max(2, len(brute_blf(losses, row.loss_perc, row.sample_perc)))==row.n_kept
    assert list(c.columns)==['epoch','batch','setting','old','new']
    assert c.values.tolist()==[[0, 2, 'loss_perc', .9, .2], [1, 10, 'loss_perc', .2, 0.], [1, 10, 'sample_perc', 0., .75], [2, 13, 'loss_perc', 0., 1.]]
    assert learn.selection.record.info['settings']==dict(loss_perc=.9, sample_perc=0.) # as the run began

# ---- the rest of the learner

def both(**kwargs):
    "The same trained weights in a learner with BatchLossFilter and in one without."
    plain,blf = make_learner(**kwargs),make_learner(**kwargs).batch_loss_filter(.3)
    blf.fit(1)
    plain.model.load_state_dict(blf.model.state_dict())
    return plain,blf

def test_validation_and_predictions():
    plain,blf = both()
    kept = blf.selection.epochs
    assert list(plain.validate())==list(blf.validate()) and list(plain.validate(ds_idx=0))!=[] and len(blf.validate())==2
    assert tup(plain.get_preds())==tup(blf.get_preds())
    assert tup(plain.get_preds(with_loss=True))==tup(blf.get_preds(with_loss=True))
    assert len(blf.get_preds(ds_idx=0)[0])==90
    pd.testing.assert_frame_equal(kept, blf.selection.epochs) # looking does not touch the record
    assert blf.loss_func.reduction=='mean'

def test_lr_find_is_plain(tmp_path):
    def run(blf):
        learn = make_learner(path=tmp_path)
        if blf: learn.batch_loss_filter(.3)
        res = learn.lr_find(num_it=30, show_plot=False)
        rest = learn.recorder.losses,learn.recorder.lrs,list(learn.recorder.metric_names)
        learn.remove_cb(SelectiveTraining)
        learn.fit(1)
        return tuple(res),[float(o) for o in rest[0]],*rest[1:],state(learn)
    a,b = run(False),run(True)
    assert a[:4]==b[:4] and len(a[1])>5
    assert_same(a[4], b[4])
    learn = make_learner(path=tmp_path).batch_loss_filter(.3)
    learn.fit(1)
    before = learn.selection.epochs
    learn.lr_find(num_it=10, show_plot=False)
    pd.testing.assert_frame_equal(before, learn.selection.epochs)

@pytest.mark.filterwarnings('ignore')
def test_files(tmp_path):
    plain,blf = both(path=tmp_path)
    want = tup(plain.get_preds(dl=plain.dls.valid))
    blf.save('model'); other = make_learner(seed=7, path=tmp_path).load('model')
    assert_same(state(blf), state(other))
    dl = blf.dls.valid
    for again in copy.deepcopy(blf),pickle.loads(pickle.dumps(blf)):
        assert tup(again.get_preds(dl=dl))==want
        assert again.selection.loss_perc==.3 and again.selection.learn is again
        random.seed(0); torch.manual_seed(0); again.dls.train.rng = random.Random(0)
        again.fit(1)
        assert again.selection.batches.n_kept.sum()<90
    assert len(blf.selection.epochs)==1 # a copy's training is its own
    blf.export('learn.pkl')
    again = load_learner(tmp_path/'learn.pkl')
    assert tup(again.get_preds(dl=dl))==want
    assert callable(again.batch_loss_filter)
    blf.fit(1) # and exporting leaves a learner that trains
    assert blf.selection.epochs.n_kept[0]<90

# ---- other callbacks

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

def test_gradient_accumulation_counts_what_was_kept():
    "The optimizer steps when enough kept samples were seen, on the mean of their gradients."
    ref = make_learner(opt_func=SGD)
    ref.create_opt(); ref.opt.set_hypers(lr=.1)
    count = 0
    model = ref.model.train()
    for x,y in ref.dls.train:
        rng = torch.get_rng_state()
        model.eval()
        with torch.no_grad(): idxs = brute_blf(F.cross_entropy(model(x), y, reduction='none'), .5, .3)
        model.train()
        torch.set_rng_state(rng)
        loss = F.cross_entropy(model(x[idxs]), y[idxs])
        (loss/(20/len(idxs))).backward()
        count += len(idxs)
        if count<20: continue
        count = 0
        ref.opt.step(); ref.opt.zero_grad()
    blf = make_learner(opt_func=SGD, cbs=GradientAccumulation(20)).batch_loss_filter(.5, .3, plain_every=0)
    blf.fit(1, .1)
    for (k,a),b in zip(ref.model.state_dict().items(), blf.model.state_dict().values()): torch.testing.assert_close(a, b, msg=k)
    assert len(blf.selection.batches)==6 and blf.selection.batches.train_loss.notna().all()

class CPUPrecision(MixedPrecision):
    "fastai's casts on CUDA only; this is the same on the CPU."
    name = 'mixed_precision'
    def before_fit(self):
        super().before_fit()
        self.autocast = torch.autocast('cpu', dtype=torch.bfloat16)

@pytest.mark.filterwarnings('ignore')
def test_mixed_precision():
    "Scores come out of the same casts as training, and every weight still learns."
    dtypes = []
    class Spy(nn.Linear):
        def forward(self, x):
            out = super().forward(x)
            dtypes.append((self.training, out.dtype))
            return out
    learn = make_learner(model=lambda: nn.Sequential(Spy(6, 8), nn.ReLU(), Spy(8, 3)), cbs=CPUPrecision('bf16')).batch_loss_filter(.6, plain_every=2)
    before = state(learn)
    learn.fit(1, 1e-2)
    assert all(t is torch.bfloat16 for train,t in dtypes) and {o for o,_ in dtypes}=={True, False}
    assert all(not torch.equal(v, before[k]) for k,v in learn.model.state_dict().items())
    for o in make_learner().to_fp16(),make_learner().to_bf16(): o.batch_loss_filter(.5).fit(1)

def mix_case(mixer, blf=None, n=1):
    g = torch.Generator().manual_seed(0)
    ds = Rows(torch.randn(64, 3, 6, 6, generator=g), torch.randint(0, 3, (64,), generator=g))
    class Watch(Callback):
        order,run_valid = 99,False
        def before_fit(self): self.seen = []
        def before_batch(self): self.seen.append((self.xb[0].clone(), self.yb[0].clone(), self.learn.loss_func))
    learn = make_learner(dls=loaders(ds, ds, bs=16), model=lambda: nn.Sequential(nn.Flatten(), nn.Linear(108, 3)), cbs=[mixer(), Watch()], metrics=None)
    if blf: learn.batch_loss_filter(**blf)
    return learn,ds

@pytest.mark.parametrize('mixer', [MixUp, CutMix])
def test_selects_before_mixing(mixer):
    "Scored with the loss that the learner was given, on the samples as they are; then the kept ones are mixed with each other."
    learn,ds = mix_case(mixer, dict(loss_perc=.5))
    lf = learn.loss_func
    net = copy.deepcopy(learn.model)
    learn.fit(2, 0.)
    assert learn.loss_func is lf and lf.reduction=='mean'
    with torch.no_grad(): all_losses = F.cross_entropy(net(ds.ts[0]), ds.ts[1], reduction='none')
    for i,(x,y,f) in enumerate(learn.watch.seen):
        scores = torch.as_tensor(learn.selection.record.losses[i])
        assert all((all_losses-o).abs().min()<1e-5 for o in scores) # the losses of unmixed samples
        assert len(x)==len(y)==learn.selection.batches.n_kept[i]==len(brute_blf(scores, .5, 0))
        own = [(x[j]-ds.ts[0]).flatten(1).norm(dim=1).min() for j in range(len(x))]
        assert f is not lf
    assert any(o>1e-3 for o in own) # they were mixed
    plain,_ = mix_case(mixer)
    plain.fit(1, .1)
    kept,_ = mix_case(mixer, dict(loss_perc=1.))
    kept.fit(1, .1)
    assert_same(state(plain), state(kept))

def test_fetch_preds():
    learn = make_learner(cbs=FetchPredsCallback()).batch_loss_filter(.5)
    cb = learn.selection
    learn.fit(2)
    assert len(learn.fetch_preds.preds[0])==20
    assert learn.selection is cb and len(cb.epochs)==2 and cb.epochs.accuracy_.notna().all()
    assert [len(o) for o in learn.recorder.values]==[4, 4]

def test_cancelled_parts_keep_their_columns():
    "What fastai did not measure is missing; what it measured is under its own name."
    class Cut(Callback):
        def __init__(self, train, valid): self.train,self.valid = train,valid
        def after_batch(self):
            if self.training and self.train and self.iter==2: raise CancelTrainException
            if not self.training and self.valid: raise CancelValidException
    for train in (False, True):
        for valid in (False, True):
            learn = make_learner(cbs=Cut(train, valid)).batch_loss_filter(.5)
            learn.fit(1)
            row = learn.selection.epochs.iloc[0]
            assert np.isnan(row.train_loss)==train and row.n_seen==(48 if train else 90)
            for o in 'valid_loss','accuracy_': assert pd.isna(row.get(o, np.nan))==valid
            if not valid: assert row.valid_loss==learn.validate()[0] and row.accuracy_==learn.validate()[1]

def test_terminate_on_nan():
    learn = make_learner(loss_func=lambda p, y: p.sum()*float('nan'), cbs=TerminateOnNaNCallback())
    with warnings.catch_warnings(record=True):
        warnings.simplefilter('always')
        learn.batch_loss_filter(.5).fit(2)
    assert learn.selection.batches.finite.tolist()==[False]

# ---- the table

def rows_of(learn, n_epoch=2):
    rows = []
    learn.logger = rows.append
    learn.fit(n_epoch)
    return [list(o) for o in rows]

def test_table_column():
    learn = make_learner().batch_loss_filter(.5)
    rows = rows_of(learn)
    assert list(learn.recorder.metric_names)==['epoch','train_loss','valid_loss','accuracy_','n_kept','time']
    assert all(len(o)==6 for o in rows)
    assert [o[4] for o in rows]==learn.selection.epochs.n_kept.tolist()==learn.selection.batches.groupby('epoch').n_kept.sum().tolist()
    plain = make_learner()
    rows_of(plain)
    assert list(plain.recorder.metric_names)==['epoch','train_loss','valid_loss','accuracy_','time']

def test_printed_table(capsys):
    learn = make_learner(bar=True).batch_loss_filter(.5)
    learn.logger = print
    learn.fit(2)
    lines = [o.split() for o in capsys.readouterr().out.splitlines() if o.strip()]
    head = next(o for o in lines if o[0]=='epoch')
    assert head==['epoch','train_loss','valid_loss','accuracy_','n_kept','time']
    body = [o for o in lines if o[0] in ('0','1') and len(o)==6]
    assert [int(o[4]) for o in body]==learn.selection.epochs.n_kept.tolist()

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

# ---- odd learners

def test_without_recorder():
    learn = make_learner().batch_loss_filter(.5)
    learn.remove_cb(Recorder)
    learn.fit(2)
    e = learn.selection.epochs
    assert len(e)==2 and (e.n_kept<90).all() and e.valid_loss.isna().all()

def test_without_validation():
    train,_ = blobs()
    learn = make_learner(dls=loaders(train, Rows(torch.zeros(0, 6), torch.zeros(0, dtype=torch.long)))).batch_loss_filter(.5)
    learn.fit(1)
    row = learn.selection.epochs.iloc[0]
    assert np.isfinite(row.train_loss) and pd.isna(row.valid_loss) and pd.isna(row.accuracy_)
    assert learn.recorder.metric_names[4]=='n_kept' and learn.recorder.values[0][3]==row.n_kept

def test_train_metrics():
    learn = make_learner().batch_loss_filter(.5)
    learn.recorder.train_metrics = True
    rows = rows_of(learn, 1)
    assert list(learn.recorder.metric_names)==['epoch','train_loss','train_accuracy_','valid_loss','valid_accuracy_','n_kept','time'] and len(rows[0])==7
    row = learn.selection.epochs.iloc[0]
    assert row.valid_accuracy_==learn.recorder.values[0][3] and row.train_accuracy_==learn.recorder.values[0][1]

def test_no_time_column():
    learn = make_learner().batch_loss_filter(.5)
    learn.recorder.add_time = False
    rows = rows_of(learn, 1)
    assert list(learn.recorder.metric_names)==['epoch','train_loss','valid_loss','accuracy_','n_kept'] and len(rows[0])==5

def test_no_logging_keeps_the_record():
    learn = make_learner().batch_loss_filter(.5)
    with learn.no_logging(): learn.fit(2)
    e = learn.selection.epochs
    assert len(e)==2 and e.accuracy_.notna().all() and e.accuracy_.iloc[-1]==learn.validate()[1]

def test_pytorchs_own_loaders():
    train,valid = blobs()
    def dls(): return DataLoaders(torch.utils.data.DataLoader(train, 16, shuffle=True), torch.utils.data.DataLoader(valid, 16), device='cpu')
    def run(blf):
        learn = make_learner(dls=dls, cbs=GradientProbe(40) if blf else None)
        if blf: learn.batch_loss_filter(blf)
        learn.fit(2)
        return learn
    assert_same(state(run(None)), state(run(1.)))
    learn = run(.5)
    e = learn.selection.epochs
    assert learn.selection.record.info['bs']==16 and e.n_kept.max()<90 and e.sign_agreement.between(0, 1).all()

def test_probe_of_typed_tensors():
    "A loss that does not know fastai's tensor types: training never shows them to it, so the probe must not, either."
    from fastai.torch_core import TensorCategory, TensorImage
    train,valid = blobs()
    train = Rows(TensorImage(train.ts[0]), TensorCategory(train.ts[1]))
    learn = make_learner(dls=loaders(train, valid), loss_func=lambda p, y: F.cross_entropy(p, y), cbs=GradientProbe(40)).batch_loss_filter(.5)
    learn.fit(1)
    assert 0<learn.selection.epochs.sign_agreement[0]<=1

def test_before_and_without_training():
    cb = BatchLossFilter()
    assert len(cb.epochs)==len(cb.batches)==0 and list(cb.epochs.columns)[:3]==['epoch','n_seen','n_kept']
    learn = make_learner().batch_loss_filter()
    learn.validate(); learn.fit(0)
    assert len(learn.selection.epochs)==0

def test_skipped_epochs():
    learn = make_learner().batch_loss_filter(.5)
    learn.fit(3, start_epoch=1)
    assert learn.selection.epochs.epoch.tolist()==[1, 2] and learn.selection.batches.epoch.tolist()==[1]*6+[2]*6
