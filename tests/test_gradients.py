"`GradientProbe` beside a fit (its sums against brute force are in test_record.py)."
from blf_explore.gradients import GradientProbe
from core_tools import *

def test_probe_of_typed_tensors():
    "A loss that does not know fastai's tensor types: training never shows them to it, so the probe must not, either."
    from fastai.torch_core import TensorCategory, TensorImage
    train,valid = blobs()
    train = Rows(TensorImage(train.ts[0]), TensorCategory(train.ts[1]))
    learn = make_learner(dls=loaders(train, valid), loss_func=lambda p, y: F.cross_entropy(p, y), cbs=GradientProbe(40)).batch_loss_filter(.5)
    learn.fit(1)
    assert 0<learn.selection.epochs.sign_agreement[0]<=1
