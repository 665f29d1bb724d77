"Faults that a review found in RHO-LOSS and InfoBatch."
import pytest, torch
from blf_explore.all import InfoBatch, RHOLoss
from core_tools import *

def test_every_score_of_rho_loss_is_a_difference():
    s = fit_quietly(make_learner(dls=full_batches, cbs=RHOLoss(torch.full((96,), 100.), .3, warmup=1)), 2)
    assert all((o<-50).all() for o in s.record.losses)

@pytest.mark.parametrize('n_epoch,plain', [(2,1), (3,1), (4,1), (5,1), (7,1), (8,1), (10,2), (16,2), (20,3)])
def test_the_end_of_infobatch_is_plain_as_published(n_epoch, plain):
    "Epochs at the end without pruning, worked by hand: those e, counted from 1, above .875 n (NUS-HPC-AI-Lab/InfoBatch, infobatch.py)."
    whole = (fit_quietly(make_learner(dls=full_batches, cbs=InfoBatch()), n_epoch).epochs.n_kept==96).tolist()[1:] # the first knows no losses
    assert whole==[False]*(n_epoch-1-plain)+[True]*plain
