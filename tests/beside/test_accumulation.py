"Accumulated and clipped gradients, against loops without any callback."
import pytest, torch
from fastai.callback.training import GradientAccumulation, GradientClip
from blf_explore.all import SelectiveTraining
from core_tools import *
from references import accumulated_by_hand, clipped_by_hand, fit_by_hand, make, Some, top, weighted

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

@double
@pytest.mark.parametrize('queue', [False, True])
@pytest.mark.parametrize('pick', [top, Some, weighted])
def test_gradient_accumulation(pick, queue):
    kw = dict(queue=True) if queue else {}
    learn = learner(GradientAccumulation(20)).add_cb(SelectiveTraining(selector=make(pick), plain_every=2, **kw))
    learn.fit(3, .1)
    close(learn, accumulated_by_hand(3, pick, 20, queue))
    with pytest.raises(AssertionError): close(learn, fit_by_hand(3, pick, queue))

@double
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
