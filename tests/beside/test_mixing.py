"MixUp and CutMix: selected before mixing or after it, against loops without any callback."
import copy
import pytest, torch
from fastai.callback.mixup import CutMix, MixUp
from blf_explore.all import Selection, SelectiveTraining
from core_tools import *
from references import make, mixing_by_hand, Some, weighted

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

class Later(Some): n = 5 # with these numbers more is left at an epoch's end than a step takes
def weighted_more(scores): return weighted(scores, .7)

def mixer(kind):
    cb = kind()
    cb.distrib = torch.distributions.Beta(cb.distrib.concentration1.double(), cb.distrib.concentration0.double())
    return cb

@double
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

@double
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
