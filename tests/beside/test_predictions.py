"What else a learner does, validation, predictions, the learning-rate finder, files, is that of the plain learner."
import copy, pickle, random
import pandas as pd, pytest, torch
from fastai.basics import load_learner
from blf_explore.all import SelectiveTraining
from core_tools import *

def tup(o): return [t.tolist() for t in o]

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

# ---- the rest of the learner, with every method

def plain_and(name, **kwargs):
    "The same weights in a plain learner and in one that was trained with the method."
    torch.set_default_dtype(torch.float32)
    plain,sel = make_learner(**kwargs),make_learner(cbs=PRESETS[name](), **kwargs)
    sel.fit(2, 1e-2)
    plain.model.load_state_dict(sel.model.state_dict())
    return plain,sel

@double
@pytest.mark.parametrize('name', METHODS)
@pytest.mark.filterwarnings('ignore')
def test_the_rest_of_the_learner(tmp_path, name):
    "Validation, predictions, the learning-rate finder and exported files are the plain learner's; the record and memory stay."
    plain,sel = plain_and(name, path=tmp_path)
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
