"Compiled and scripted models."
import pytest, torch
from blf_explore.all import Selection, SelectiveTraining
from blf_explore.hnm import HardNegativeMining
from core_tools import *

pytestmark = pytest.mark.slow

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('wrap', [torch.jit.script, lambda m: torch.compile(m, backend='eager')], ids=['script','compile'])
def test_all_kept_is_plain_training_wrapped(wrap):
    "Networks whose modules keep their mode elsewhere than `nn.Module` does."
    def model(): return wrap(bn_net())
    (plain,_),(blf,_) = trained(None, model=model),trained(dict(loss_perc=1., plain_every=2), model=model)
    assert_same(state(plain), state(blf))
    assert all('training' not in vars(o) or type(o).__module__.startswith('torch.nn') for o in blf.model.modules())
    assert not blf.model.training and not any(o.training for o in blf.model.modules()) # after validation, as fastai leaves it

# ---- compiled models

class Graphs:
    "A backend for `torch.compile` that compiles nothing, and counts how often it was asked to."
    def __init__(self): self.n = 0
    def __call__(self, gm, example_inputs):
        self.n += 1
        return gm.forward

def compiled(how, graphs, seed=1, bs=16):
    torch._dynamo.reset()
    learn = learner(seed=seed, dls=lambda: loaders(*blobs(n=160), bs=bs))
    if how=='in place': learn.model.compile(backend=graphs)
    elif how=='wrapped': learn.model = torch.compile(learn.model, backend=graphs)
    return learn

def params(learn): return {k.replace('_orig_mod.', ''): v for k,v in learn.model.state_dict().items()}

class Sizes:
    "Keeps the given numbers of samples in turn."
    def __init__(self, sizes): self.sizes,self.i = sizes,0
    def __call__(self, scores):
        self.i += 1
        return Selection(scores.argsort(descending=True, stable=True)[:min(len(scores), self.sizes[self.i%len(self.sizes)])])

@double
@pytest.mark.parametrize('how,kw', [('wrapped', dict(queue=True)), ('wrapped', dict(interrupt=3, warmup=1)),
                                    ('in place', dict(stale=1))])
def test_compiled_once_for_all_sizes(how, kw):
    "As many compilations for eight sizes as for two, and the result of the model that was not compiled."
    def run(sizes, how):
        graphs = Graphs()
        learn = compiled(how, graphs).add_cb(SelectiveTraining(selector=Sizes(sizes), plain_every=4, **kw))
        learn.fit(2, .1)
        b = learn.selection.batches
        return learn,graphs.n,b.n_trained.nunique()
    few,n_few,_ = run([5, 9], how)
    many,n_many,n_sizes = run([3, 14, 5, 12, 9, 7, 15, 11], how)
    assert 2<=n_many==n_few and (n_sizes>6 or 'queue' in kw)
    want,n,_ = run([3, 14, 5, 12, 9, 7, 15, 11], None)
    assert n==0
    for (k,a),b in zip(params(want).items(), params(many).values()): torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, msg=k)

@double
@pytest.mark.parametrize('how', ['wrapped', 'in place'])
def test_compiled_before_and_one_is_kept(how):
    "Code that was compiled before does not notice a hook: that BatchNorm cannot train on one sample is seen all the same."
    learn = compiled(how, Graphs())
    for k in (8, 1):
        learn.add_cb(SelectiveTraining(selector=lambda scores: Selection(scores.argsort(descending=True)[:k])))
        learn.fit(1)
        if k>1: learn.remove_cb(SelectiveTraining)
    assert set(learn.selection.batches.n_kept)=={2}

@double
@pytest.mark.parametrize('name', ['CoreSet', 'importance', 'SB', 'InfoBatch'])
def test_methods_on_a_compiled_model(name):
    "The same selections and the same weights as without the compiler, which had compiled the model for another method before."
    res = []
    for how in (None, 'in place'):
        learn = compiled(how, Graphs(), bs=20)
        reseed(learn)
        learn.add_cb(HardNegativeMining())
        learn.fit(1, .05)
        learn.remove_cb(SelectiveTraining)
        learn.add_cb(PRESETS[name]())
        learn.fit(2, .05)
        res.append(learn)
    a,b = res
    assert a.selection.batches.n_kept.tolist()==b.selection.batches.n_kept.tolist() and a.selection.batches.n_kept.sum()<320
    for (k,x),y in zip(params(a).items(), params(b).values()): torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-9, msg=k)
