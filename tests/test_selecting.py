"From scores to the rows that are trained on: weights that are right on average, whatever the loss, and what is refused."
import numpy as np, pytest, torch
from torch import nn
from blf_explore.all import ImportanceSampling, InfoBatch, Selection, SelectiveTraining
from blf_explore.engine.rows import Rows as Samples
from blf_explore.engine.selecting import with_company, with_hardest
from core_tools import *

# ---- weights: the mean gradient of many draws is the plain one

sigmas = 5 # a mean further off than this many standard errors has a chance below 6e-7

class Gradients(Callback):
    order,run_valid = 99,False
    def before_fit(self): self.seen,self.losses,self.n = [],[],[]
    def before_step(self):
        self.seen.append(self.learn.model.weight.grad.flatten().clone())
        self.losses.append(self.learn.loss.item())
        self.n.append(len(self.yb[0]))

def times_three(p, y): return 3*F.cross_entropy(p, y)
def dice(p, y):
    p,y = p.sigmoid(),F.one_hot(y, p.shape[1])
    return 1-2*(p*y).sum()/(p+y).sum() # a quotient over the whole batch
def scaled_sum(p, y): return .1*F.cross_entropy(p, y, reduction='sum')

WEIGHTED = dict(importance=lambda: ImportanceSampling(.5, tau_th=0., plain_every=0),
                InfoBatch=lambda: InfoBatch(.6, delta=1.)) # whose epochs are right on average: test_infobatch.py
LOSSES = dict(mean=nn.CrossEntropyLoss(), sum=nn.CrossEntropyLoss(reduction='sum'),
              times_three=times_three, scaled_sum=scaled_sum)

@pytest.mark.parametrize('loss', LOSSES)
def test_the_mean_gradient_is_the_plain_one(loss):
    "At a learning rate of 0, over 150 draws from one batch of 12, within the standard error of those draws; the reported loss likewise."
    g,loss,n = gen(5),LOSSES[loss],150
    ds = Rows(torch.randn(12, 6, generator=g), torch.randint(0, 3, (12,), generator=g))
    torch.manual_seed(0)
    net,many = nn.Linear(6, 3),Rows(ds.ts[0].repeat(n, 1), ds.ts[1].repeat(n))
    learn = make_learner(dls=loaders(many, ds, bs=12, shuffle=False), model=net, cbs=[WEIGHTED['importance'](), Gradients()], loss_func=loss, metrics=None, opt_func=SGD)
    learn.fit(1, 0.)
    seen = torch.stack(learn.gradients.seen[-n:]).double()
    plain = loss(net(ds.ts[0]), ds.ts[1])
    want = torch.autograd.grad(plain, net.weight)[0].flatten().double()
    se = seen.std(0)/len(seen)**.5
    assert (seen.mean(0)-want).abs().le(sigmas*se+1e-6).all()
    assert se.norm()<.2*want.norm() # the draws are many enough to tell
    assert len(seen)==n and max(learn.gradients.n[-n:])<=12 and min(learn.gradients.n[-n:])<12
    losses = torch.tensor(learn.gradients.losses[-n:]).double()
    assert abs(losses.mean()-plain.item())<=sigmas*losses.std()/len(losses)**.5+1e-6

@pytest.mark.parametrize('loss', ['mean','sum'])
def test_a_weighted_step_by_hand(loss):
    "Of two samples with weights 2 and .5: the mean of the weighted losses, or n/2 times their sum where the loss is a sum."
    g,lf = gen(5),LOSSES[loss]
    ds = Rows(torch.randn(8, 6, generator=g), torch.randint(0, 3, (8,), generator=g))
    sel = Selection(torch.tensor([6, 1]), torch.tensor([2., .5]))
    learn = make_learner(dls=loaders(ds, ds, bs=8, shuffle=False), model=nn.Linear(6, 3), loss_func=lf, metrics=None, opt_func=SGD,
                         cbs=[SelectiveTraining(selector=lambda scores: sel), Gradients()])
    learn.fit(1, 0.)
    losses = F.cross_entropy(learn.model(ds.ts[0]), ds.ts[1], reduction='none')[sel.idxs]*sel.weights
    want = losses.mean() if loss=='mean' else losses.mean()*8
    torch.testing.assert_close(learn.gradients.seen[0], torch.autograd.grad(want, learn.model.weight)[0].flatten())
    assert learn.gradients.losses[0]==pytest.approx(want.item(), rel=1e-5)

@pytest.mark.parametrize('name', WEIGHTED)
@pytest.mark.parametrize('loss', [nn.CrossEntropyLoss(ignore_index=1), nn.CrossEntropyLoss(weight=torch.tensor([1., 2., 5.])), dice],
                         ids=['ignored','class_weights','dice'])
def test_weights_that_could_not_be_right_are_refused_before_a_step(name, loss):
    learn = make_learner(model=lambda: nn.Linear(6, 3), loss_func=loss, metrics=None, cbs=[WEIGHTED[name](), Trained()])
    says(lambda: learn.fit(1), 'neither the mean nor the sum')
    assert learn.trained.steps==[]
    learn = make_learner(model=lambda: nn.Linear(6, 3), loss_func=loss, metrics=None, cbs=PRESETS['BLF']())
    learn.fit(1) # without weights it trains
    assert learn.selection.batches.n_kept.sum()<90

def test_labels_that_are_ignored_later_are_refused_then():
    class Ignore(Callback):
        order,run_valid = -5,False
        def before_batch(self):
            if self.iter==3: self.learn.yb = (torch.where(torch.arange(len(self.yb[0]))%2==0, -100, self.yb[0]),)
    learn = make_learner(cbs=[WEIGHTED['importance'](), Ignore(), Trained()], loss_func=nn.CrossEntropyLoss(), metrics=None)
    says(lambda: learn.fit(1), 'did not before')
    assert len(learn.trained.steps)==3

def test_what_other_callbacks_add_to_the_loss_stays():
    class Penalty(Callback):
        run_valid = False
        def after_loss(self): self.learn.loss_grad,self.learn.loss = self.loss_grad+.25,self.loss+.25
    a,b = [fitted(1, 0., model=lambda: nn.Linear(6, 3), metrics=None, cbs=[WEIGHTED['importance'](), *more]) for more in ([], [Penalty()])]
    np.testing.assert_allclose(b.selection.batches.train_loss, a.selection.batches.train_loss+.25, rtol=1e-5)

# ---- outputs of every kind

@pytest.mark.parametrize('name', ['BLF','importance'])
@pytest.mark.parametrize('kind', WRAPS)
def test_wrapped_outputs_train_as_plain_ones(kind, name):
    "Bit for bit as the same network that answers with a tensor."
    wrap,get = WRAPS[kind]
    def run(wrap, get): return fitted(2, model=lambda: Wrapping(after=wrap), loss_func=lambda p, y: F.cross_entropy(get(p), y), metrics=None, cbs=PRESETS[name]())
    a,b = run(lambda o: o, lambda o: o),run(wrap, get)
    for (k,v),w in zip(state(a).items(), state(b).values()): torch.testing.assert_close(v, w, rtol=1e-5, atol=1e-6, msg=k)
    assert a.selection.batches.n_kept.tolist()==b.selection.batches.n_kept.tolist()

@pytest.mark.parametrize('name', METHODS)
def test_a_loss_that_squeezes_trains_with_every_method(name):
    train,valid = [Rows(o.ts[0], (o.ts[1]>0).float()) for o in blobs()]
    def loss(p, y): return F.binary_cross_entropy_with_logits(p.squeeze(), y)
    def flat(p, y): return F.binary_cross_entropy_with_logits(p[:,0], y)
    a,b = [fitted(2, dls=lambda: loaders(train, valid), model=lambda: bn_net(6, 1), loss_func=lf, metrics=None, opt_func=SGD,
                  cbs=PRESETS[name]()) for lf in (loss, flat)]
    assert b.selection.batches.n_kept.sum()<180
    for (k,v),w in zip(state(a).items(), state(b).values()): torch.testing.assert_close(v, w, rtol=1e-5, atol=1e-6, msg=k)

# ---- company

def rows(*ids): return Samples((torch.tensor(ids)[:,None].float(),), (torch.tensor(ids),), torch.tensor(ids))

def test_with_hardest():
    scores = torch.tensor([1., 5., 3., 5.])
    assert with_hardest(Selection(torch.tensor([2])), scores).idxs.tolist()==[2, 1]
    assert with_hardest(Selection(torch.tensor([1])), scores).idxs.tolist()==[1, 3] # the next hardest
    sel = with_hardest(Selection(torch.tensor([2]), torch.tensor([.5])), scores)
    assert sel.idxs.tolist()==[2, 1] and sel.weights.tolist()==[1., 0.] # of a mean over two

def test_with_company():
    raw = rows(7, 8, 9)
    r = with_company(rows(5), raw, 'cpu')
    assert r.ids.tolist()==[5, 7] and r.weights.tolist()==[2, 0]
    assert with_company(rows(5), raw, 'cpu', is_sum=True).weights.tolist()==[1, 0]
    r = with_company(None, raw, 'cpu')
    assert r.ids.tolist()==[7, 8] and r.weights.tolist()==[0, 0]
    assert with_company(None, rows(7), 'cpu').ids.tolist()==[7]

def test_nothing_kept_without_a_queue_is_refused():
    learn = make_learner(cbs=SelectiveTraining(selector=lambda scores: Selection(torch.tensor([], dtype=torch.long))))
    says(lambda: learn.fit(1), 'kept none of 16 samples', 'give one that keeps at least one')
