"What a fit writes down: rows of batches and epochs, fastai's table, and what is missing when fastai measured nothing."
import numpy as np, pandas as pd, torch
from fastai.callback.core import CancelEpochException, CancelFitException, CancelTrainException, CancelValidException
from fastai.learner import Recorder
from blf_explore.blf import BatchLossFilter
from core_tools import *

def test_cancelled_batches_in_the_record():
    "A cancelled epoch or train phase keeps the rows of the batches that trained, the last one too."
    for exc,n in (CancelTrainException, 3),(CancelEpochException, 3),(CancelFitException, 3):
        learn = make_learner(cbs=FailingCallback(exc(), 'after_batch', at=3)).batch_loss_filter(.5)
        learn.fit(1)
        assert len(learn.selection.batches)==n and learn.selection.batches.n_seen.tolist()==[16]*3
    for event in 'before_batch','after_pred','after_loss':
        learn = make_learner(cbs=FailingCallback(CancelTrainException(), event, at=3, order=58)).batch_loss_filter(.5)
        learn.fit(1)
        assert len(learn.selection.batches)==2

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
