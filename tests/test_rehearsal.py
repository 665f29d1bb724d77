"The learner is tried on its first batch: what a selection could not get right is refused in one sentence, before a step, and the trial leaves no trace."
import numpy as np, pytest, torch
from torch import nn
from blf_explore.all import BatchLossFilter, HardNegativeMining, ImportanceSampling, SelectiveTraining
from blf_explore.engine.looking import Look
from blf_explore.engine.losses import per_sample_loss
from blf_explore.engine.rehearsal import answers_otherwise, cannot_select, check_no_trace, check_scores, movers, rehearse
from blf_explore.engine.rows import Rows as Samples
from core_tools import *

class OnlyLoss(nn.Module):
    "Answers with its loss and nothing else."
    def __init__(self): super().__init__(); self.net = bn_net()
    def forward(self, x, y): return dict(loss=F.cross_entropy(self.net(x), y))

class LossAndLogits(OnlyLoss):
    def forward(self, x, y): return dict(loss=F.cross_entropy(o := self.net(x), y), logits=o)

class Labels(Callback):
    def before_batch(self): self.learn.xb = self.xb[0],self.yb[0]

class Replace(Callback):
    "The output is the logits, and the loss comes from elsewhere."
    def before_batch(self): self.learn.xb = self.xb[0],self.yb[0]
    def after_pred(self): self.inner,self.learn.pred = self.pred['loss'],self.pred['logits']
    def after_loss(self): self.learn.loss_grad,self.learn.loss = self.inner,self.inner.clone()

class SixteenOnly(nn.Module):
    def __init__(self): super().__init__(); self.net = bn_net()
    def forward(self, x): return self.net(x.view(16, 6))

class Secret:
    "An object of a class of one's own: nobody looks into it."
    def __init__(self): self.n = 0

class KeepsElsewhere(nn.Module):
    def __init__(self): super().__init__(); self.net,self.secret = bn_net(),Secret()
    def forward(self, x):
        self.secret.n += 1
        return self.net(x)*(1+self.secret.n)

class Opaque:
    def __init__(self, o): self.o = o
    def __len__(self): return len(self.o)

class Opens(nn.Module):
    def __init__(self): super().__init__(); self.net = bn_net()
    def forward(self, x): return self.net(x.o)

class InBatch(nn.Module):
    "A state kept row by row."
    def __init__(self): super().__init__(); self.net,self.last = bn_net(),None
    def forward(self, x):
        o = self.net(x)
        if self.last is not None and len(self.last)==len(o): o = o+.5*self.last
        self.last = o.detach()
        return o

def three(lf, p, *y): return torch.zeros(3)
def one_number(lf, p, *y): return torch.zeros(())
def fails(lf, p, *y): raise KeyError('no such thing')

REFUSED = dict(
    only_loss=(dict(model=OnlyLoss, loss_func=lambda p, y: p['loss'], cbs=[Labels]),
               ['model=OnlyLoss gives nothing with a row for each of the 16 samples', 'give a model']),
    loss_of_the_model=(dict(model=LossAndLogits, loss_func=lambda p, y: p['loss'], cbs=[Labels]),
                       ['does not depend on the rows of the model', 'give a loss_func that is']),
    loss_of_a_callback=(dict(model=LossAndLogits, loss_func=lambda p, y: torch.tensor(0.), cbs=[Replace]),
                        ['does not depend on the rows', 'in the model or in a callback']),
    one_size=(dict(model=SixteenOnly, dls=lambda: loaders(*blobs(n=96, n_valid=32))),
              ['model=SixteenOnly takes a batch of 16 and no part of it', 'give one that takes batches of any size']),
    elsewhere=(dict(model=KeepsElsewhere),
               ['model=KeepsElsewhere (or the loss) keeps something where it cannot be put back', 'keep it in attributes']),
    opaque=(dict(model=Opens, dls=lambda: wrapped_dls(Opaque)), ['the batch holds a Opaque, which cannot be split into its 16 samples', 'give tensors']),
    row_state=(dict(model=InBatch, dls=full_batches), ['model=InBatch carries something over', 'for each row']),
    scores=(dict(score=three), ["score='three' gives shape (3,) for a batch of 16", 'give a function that returns one number per sample']),
    scalar=(dict(score=one_number), ["score='one_number' gives shape () for a batch of 16"]),
    no_score=(dict(score=fails), ["score='fails' cannot be computed sample by sample", 'KeyError', 'give another']))

@quiet
@pytest.mark.parametrize('name', REFUSED)
def test_refused_before_a_step(name):
    kw,words = REFUSED[name]
    cbs,kw = [o() for o in kw.get('cbs', [])],{k: v for k,v in kw.items() if k!='cbs'}
    cb = SelectiveTraining(kw.pop('score'), selector=lambda scores: scores) if 'score' in kw else BatchLossFilter(.5)
    learn = make_learner(metrics=None, cbs=[*cbs, cb, Trained()], **kw)
    before = state(learn)
    says(lambda: learn.fit(1), *words)
    assert learn.trained.steps==[]
    assert all(torch.equal(v, before[k]) for k,v in learn.model.state_dict().items())

@quiet
@pytest.mark.parametrize('name', ['one_size','opaque','row_state'])
def test_all_kept_needs_no_parts(name):
    "What only stands against a part of a batch does not stand against the whole: bit for bit the plain run."
    kw,_ = REFUSED[name]
    a,b = [fitted(2, metrics=None, cbs=cbs, **kw) for cbs in ([], [BatchLossFilter(1., plain_every=2)])]
    assert_same(state(a), state(b))

def test_refused_when_a_setting_first_asks_for_it():
    "All are kept at first; from the moment when some are left out it cannot go on."
    class Later(Callback):
        order = 99
        def after_batch(self):
            if self.training and self.iter==2: self.learn.selection.set(loss_perc=.5)
    learn = make_learner(model=InBatch, dls=full_batches, metrics=None, cbs=[BatchLossFilter(1.), Later(), Trained()])
    says(lambda: learn.fit(1), 'model=InBatch carries something over')
    assert len(learn.trained.steps)==3

# ---- the user's own errors arrive as they are

class Broken(nn.Module):
    def __init__(self): super().__init__(); self.lin = nn.Linear(5, 3)
    def forward(self, x): return self.lin(x)

def wrong(p, y): return F.cross_entropy(p, y.float().view(-1, 1, 1))

@pytest.mark.parametrize('kw', [dict(model=Broken), dict(loss_func=wrong)], ids=['model','loss'])
def test_what_training_would_meet_as_well_arrives_as_it_is(kw):
    def error(cbs):
        with pytest.raises(Exception) as e: make_learner(metrics=None, cbs=cbs, **kw).fit(1)
        return type(e.value),str(e.value).split('\n\t')[-1]
    plain = error([])
    for cb in BatchLossFilter(.5),ImportanceSampling(.5, tau_th=0.): assert error([cb])==plain

# ---- no trace of it

@pytest.mark.parametrize('name', METHODS)
def test_a_trial_leaves_no_trace(name):
    "After the first batch was tried and all of it kept the model, its gradients and the random numbers are as they were."
    learn = make_learner(cbs=PRESETS[name]())
    seen = {}
    class Before(Callback):
        order,run_valid = 54,False
        def before_batch(self):
            seen.setdefault('before', (state(self.learn), random_states(), np.random.get_state()[1].tolist()))
    class After(Callback):
        order,run_valid = 56,False
        def before_batch(self):
            seen.setdefault('after', (state(self.learn), random_states(), np.random.get_state()[1].tolist()))
            assert all(o.grad is None for o in self.model.parameters()) or self.iter or self.epoch
            assert self.model.training and not any(o._forward_pre_hooks for o in self.model.modules())
    learn.add_cbs([Before(), After()])
    learn.fit(1)
    assert_same(seen['before'][0], seen['after'][0])
    assert seen['before'][1:]==seen['after'][1:]

# ---- the questions, alone

def tried(model, loss_func=None, n=8):
    learn = make_learner(model=model, loss_func=loss_func, metrics=None)
    learn.create_opt()
    train = learn.dls.train.dataset
    return Look(learn),Samples((train.ts[0][:n],), (train.ts[1][:n],), torch.arange(n))

class Soft(nn.Module):
    def __init__(self): super().__init__(); self.net = bn_net()
    def forward(self, x): return self.net(x) if self.training else self.net(x).softmax(1)

class Drops(nn.Module):
    "Noise that it draws itself, in training only."
    def __init__(self): super().__init__(); self.net = bn_net()
    def forward(self, x): return self.net(x)+(torch.randn(len(x), 3) if self.training else 0.)

class Needs(nn.Module):
    "Wants nothing to do with eval mode."
    def __init__(self): super().__init__(); self.net = bn_net()
    def forward(self, x):
        if not self.training: raise RuntimeError('only in training')
        return self.net(x)

@pytest.mark.parametrize('model,otherwise', [(bn_net, False), (Soft, True), (Drops, False), (Needs, True), (lambda: nn.Sequential(bn_net(), nn.Dropout(.9)), False)])
def test_who_answers_otherwise_in_eval_mode(model, otherwise):
    "Another kind of answer, not the same one without noise or by running statistics."
    assert answers_otherwise(*tried(model))==otherwise

def test_who_moves():
    look,rows = tried(lambda: (net := nn.Sequential(nn.Linear(6, 3)), net[0].register_forward_hook(lambda m, i, o: setattr(m, 'n', getattr(m, 'n', 0)+1)))[0])
    assert movers(look, rows)==[look.model[0]] and not hasattr(look.model[0], 'n')
    assert movers(*tried(bn_net))==[]

def test_whether_rows_can_go_alone():
    assert cannot_select(*tried(bn_net))=='' and cannot_select(*tried(Noisy))==''
    assert 'for each row' in cannot_select(*tried(InBatch))
    assert cannot_select(*tried(InBatch, n=1))=='' # nothing to select from

def test_checks_that_pass_say_nothing():
    for model in bn_net,Noisy,Soft:
        look,rows = tried(model)
        assert check_no_trace(look, rows, per_sample_loss) is None and check_scores(look, rows, per_sample_loss) is None
        rehearse(look, rows, per_sample_loss)
        assert look.found.calm==(model is Soft) and look.found.single_value and not look.found.cannot_select

def test_methods_meet_it_alike():
    learn = make_learner(model=InBatch, dls=full_batches, metrics=None, cbs=HardNegativeMining(.5, queue=True))
    says(lambda: learn.fit(1), 'for each row')
