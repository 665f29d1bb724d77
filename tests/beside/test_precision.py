"Mixed precision: scored and trained in the learner's own casts."
import numpy as np, pytest, torch
from fastai.callback.fp16 import MixedPrecision
from blf_explore.all import SelectiveTraining
from core_tools import *
from references import fit_by_hand, make, precise_by_hand, Some, top, weighted

class CPUPrecision(MixedPrecision):
    "fastai's casts on CUDA only; this is the same on the CPU."
    name = 'mixed_precision'
    def before_fit(self):
        super().before_fit()
        self.autocast = torch.autocast('cpu', dtype=torch.bfloat16)

@pytest.mark.filterwarnings('ignore')
def test_scores_come_out_of_the_same_casts():
    "Scores come out of the same casts as training, and every weight still learns."
    dtypes = []
    class Spy(nn.Linear):
        def forward(self, x):
            out = super().forward(x)
            dtypes.append((self.training, out.dtype))
            return out
    learn = make_learner(model=lambda: nn.Sequential(Spy(6, 8), nn.ReLU(), Spy(8, 3)), cbs=CPUPrecision('bf16')).batch_loss_filter(.6, plain_every=2)
    before = state(learn)
    learn.fit(1, 1e-2)
    assert all(t is torch.bfloat16 for train,t in dtypes) and {o for o,_ in dtypes}=={True, False}
    assert all(not torch.equal(v, before[k]) for k,v in learn.model.state_dict().items())
    for o in make_learner().to_fp16(),make_learner().to_bf16(): o.batch_loss_filter(.5).fit(1)

@pytest.fixture
def on_cpu(monkeypatch):
    "fastai's mixed precision is CUDA's; the same casts and the same scaler exist for the CPU, too."
    torch.set_default_dtype(torch.float32)
    monkeypatch.setattr('fastai.callback.fp16.autocast', lambda device, **kwargs: torch.autocast('cpu', **kwargs))
    monkeypatch.setattr('fastai.callback.fp16.GradScaler', lambda device, **kwargs: torch.amp.GradScaler('cpu', **kwargs))

def nesting():
    "How many autocasts are open."
    n = torch.autocast_increment_nesting()-1
    torch.autocast_decrement_nesting()
    return n

class Clean(Callback):
    "After each batch no autocast is open, in training and in validation, at whatever order one looks."
    order,n = 98,0
    def look(self):
        assert not torch.is_autocast_enabled('cpu') and nesting()==0
        self.n += 1
    def before_train(self): self.look()
    def after_batch(self): self.look()
    def after_train(self): self.look()
    def after_fit(self): self.look()

def plain_ce(preds, y):
    "A loss that autocast does not know, so that it is computed in the precision of `preds`, which fastai's training makes float32."
    return (preds.logsumexp(1) - preds[torch.arange(len(y)),y]).mean()

DTYPES = {torch.float16: Learner.to_fp16, torch.bfloat16: Learner.to_bf16}

@double
@pytest.mark.parametrize('loss', [CE(), plain_ce])
@pytest.mark.parametrize('pick', [top, weighted])
@pytest.mark.parametrize('dtype', DTYPES)
def test_mixed_precision(on_cpu, dtype, pick, loss):
    "Scored and trained in the learner's casts, losses in float32; the scaler's factor is gone from every gradient."
    learn = DTYPES[dtype](learner(Clean(), model=bare, loss_func=loss))
    learn.add_cb(SelectiveTraining(selector=make(pick), plain_every=3))
    learn.fit(2, .1)
    ref,seen = precise_by_hand(dtype, pick)
    for a,b in zip(learn.selection.record.losses, seen): np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5)
    close(learn, ref, 1e-5)
    assert learn.clean.n==2*8+2*2+1 # 6 training batches, 2 of validation
    with pytest.raises(AssertionError): # a step in full precision is something else
        close(learn, fit_by_hand(2, pick, model=bare), 1e-5)

@double
@pytest.mark.parametrize('name', METHODS)
@pytest.mark.parametrize('dtype', DTYPES)
def test_mixed_precision_of_every_method(on_cpu, dtype, name):
    "Every score can be had from what the casts give, and tells the samples apart as it does in full precision."
    def run(amp):
        learn = learner(Clean(), model=net)
        if amp: learn = DTYPES[dtype](learn)
        learn.add_cb(PRESETS[name](plain_every=2))
        learn.fit(2, .05)
        return learn.selection
    a,b = run(True),run(False)
    assert a.batches.finite.all() and a.batches.n_kept.sum()<180
    first = next(i for i,o in enumerate(b.record.losses) if len(o))
    a,b = a.record.losses[first],b.record.losses[first]
    if name=='BLS': np.testing.assert_allclose(a, b, rtol=.02) # one score for all of a first batch
    else: assert np.corrcoef(a, b)[0,1]>.99

@double
@pytest.mark.parametrize('pick', [Some, weighted])
@pytest.mark.parametrize('dtype', DTYPES)
def test_mixed_precision_with_a_queue(on_cpu, dtype, pick):
    "A batch that only fills the queue is skipped before fastai's own callback would close its autocast."
    learn = DTYPES[dtype](learner(Clean(), model=bare)).add_cb(SelectiveTraining(selector=make(pick), queue=True, plain_every=4))
    learn.fit(2, .1)
    assert 0 in set(learn.selection.batches.n_trained) and learn.clean.n>=2*8+2*2+1
    close(learn, precise_by_hand(dtype, pick, queue=True)[0], 1e-5)
