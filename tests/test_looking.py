"Looking at a batch: scoring forwards leave no trace, on smaller images too, and old scores are reused only where they belong."
import pytest, torch
from fastai.callback.core import Callback
from torch import nn
from blf_explore.all import SelectiveTraining
from blf_explore.sb import RankSelectiveBackprop, SelectiveBackprop
from core_tools import *
from references import loss_of, steps_by_hand, top

def test_random_state_during_scoring():
    "A model that draws in eval mode: a loop that puts the random state back after scoring gives the same numbers."
    ref = make_learner(model=Noisy)
    reference_fit(ref, 2, lambda l, pct: brute_blf(l, .6, .2))
    end = random_states()
    blf = make_learner(model=Noisy).batch_loss_filter(.6, .2, plain_every=2)
    blf.fit(2)
    assert_same(state(ref), state(blf))
    assert end==random_states() and blf.selection.batches.n_kept.sum()<180

def test_gradients_seen_by_nobody_else():
    "`.grad` from before a batch survives scoring and the timing of a plain step."
    class Watch(Callback):
        order,run_valid = 56,False # right after the selection
        def before_batch(self):
            for p,g in zip(self.model.parameters(), grads): assert p.grad is g and (g==7).all()
        def after_pred(self):
            for p in self.model.parameters(): p.grad = None
        def after_batch(self):
            grads[:] = [torch.full_like(p, 7) for p in self.model.parameters()]
            for p,g in zip(self.model.parameters(), grads): p.grad = g
    grads = []
    make_learner(cbs=Watch()).batch_loss_filter(.5, plain_every=1).fit(1)
    assert grads

def test_scoring_sees_eval_mode_and_no_grad():
    seen = []
    class Spy(nn.Linear):
        def forward(self, x):
            if not tries_out(learn): seen.append((self.training, torch.is_grad_enabled(), len(x)))
            return super().forward(x)
    learn = None
    learn = make_learner(model=nn.Sequential(Spy(6, 3))).batch_loss_filter(.5, plain_every=0)
    learn.fit(1)
    train = [o for o in seen if o[0]]
    assert len(train)==6 and all(o[1] for o in train) and sum(o[2] for o in train)<90
    assert seen[0]==(False, False, 16) and seen[2]==(False, False, 16)

@pytest.mark.parametrize('share,size', [(.5, None), (.01, 8)])
def test_a_scale_that_the_model_cannot_score_is_told_before_a_step(share, size):
    stepped = []
    class Steps(Callback):
        def after_step(self): stepped.append(1)
    def dls(): return loaders(*blobs(n=96)) if size is None else loaders(*[Rows(torch.rand(n, 1, size, size), torch.randint(0, 3, (n,))) for n in (96, 16)])
    model = None if size is None else lambda: nn.Sequential(nn.Flatten(), nn.Linear(size*size, 3))
    learn = make_learner(dls=dls, model=model, cbs=[RankSelectiveBackprop(scale_factor=share), Steps()])
    with pytest.raises(ValueError, match=f'scale_factor={share}'): fit_quietly(learn)
    assert stepped==[]

def test_a_fixed_input_size_is_told_before_a_step():
    def dls(): return loaders(*[Rows(torch.rand(n, 1, 8, 8), torch.randint(0, 3, (n,))) for n in (96, 16)])
    learn = make_learner(dls=dls, model=lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), cbs=RankSelectiveBackprop(scale_factor=.5))
    with pytest.raises(ValueError, match='scale_factor=0.5 is not accepted'): fit_quietly(learn)

def test_a_staleness_set_in_mid_epoch_marks_no_other_samples():
    "In the first batches nobody asked for the samples' numbers; what of them waits in the queue must not be noted as samples 0, 1, 2."
    seen = set()
    class Set(Callback):
        order = 56
        def after_batch(self):
            if not self.training: return
            if self.iter==2 and self.epoch==0: self.learn.selection.set(stale=1)
            if self.learn.selection.ids is not None: seen.update(self.learn.selection.ids.tolist())
            m = self.learn.selection.memory
            if 'when' in m and self.epoch==0: assert set((m['when']>=0).nonzero()[:,0].tolist())<=seen
    fit_quietly(make_learner(dls=full_batches, cbs=[SelectiveBackprop(1., interrupt=2, warmup=0), Set()]), 2)

@double
@pytest.mark.parametrize('queue', [False, True])
def test_smaller_images_for_scoring(queue):
    "Scored on images of half the size, trained on whole ones."
    def learn_(cb=None): return learner(cb, dls=lambda: loaders(*stripes()), model=image_net)
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
