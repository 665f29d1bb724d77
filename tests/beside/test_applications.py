"Learners as fastai's own applications build them: tables, images, texts, PyTorch's loaders; and what stands between model and loss."
import dataclasses
import numpy as np, pandas as pd, pytest, torch
from fastai.tabular.all import Categorify, FillMissing, Normalize, tabular_learner, TabularDataLoaders
from fastai.vision.all import Image, ImageDataLoaders, resnet18, vision_learner
from fastai.text.data import LMDataLoader, SortedDL
from fastai.text.learner import LMLearner, TextLearner
from fastai.text.models.awdlstm import awd_lstm_clas_config, awd_lstm_lm_config, AWD_LSTM
from fastai.text.models.core import get_language_model, get_text_classifier
from blf_explore.all import holdout_losses, RHOLoss
from blf_explore.gradients import GradientProbe
from core_tools import *
from references import hand_learner, top

def frame(n=80):
    g = np.random.RandomState(0)
    d = pd.DataFrame(dict(a=g.choice(list('xyz'), n), b=g.choice(list('pq'), n), u=g.randn(n), v=g.randn(n)))
    d['y'] = np.where((d.a=='x')&(d.u>0), 'yes', 'no')
    d['z'] = d.u*2+d.v
    return d

@quiet
@pytest.mark.parametrize('y', ['y', 'z'])
def test_tabular_learner(y):
    def run(kw, n=2):
        random.seed(0); torch.manual_seed(0); np.random.seed(0)
        dls = TabularDataLoaders.from_df(frame(), y_names=y, cat_names=['a','b'], cont_names=['u','v'], procs=[Categorify, FillMissing, Normalize], bs=16)
        learn = tabular_learner(dls, layers=[16])
        learn.logger = noop_log
        learn.remove_cb(learn.progress)
        if kw: learn.batch_loss_filter(**kw)
        learn.fit_one_cycle(n, 1e-2)
        return learn
    assert_same(state(run(None)), state(run(dict(loss_perc=1., plain_every=1))))
    learn = run(dict(loss_perc=.5))
    b = learn.selection.batches
    assert (b.n_kept>=2).all() and b.n_kept.sum()<.9*b.n_seen.sum()
    if y=='y': assert torch.isfinite(learn.predict(frame().iloc[0])[2]).all()
    learn = run(dict(loss_perc=0., sample_perc=1e-9), 1) # one sample at a time is not for BatchNorm
    assert (learn.selection.batches.n_kept==2).all()

@pytest.fixture(scope='module')
def images(tmp_path_factory):
    path = tmp_path_factory.mktemp('images')
    g = np.random.RandomState(0)
    for c in ('cat','dog'):
        (path/c).mkdir()
        for i in range(12): Image.fromarray((g.rand(32, 32, 3)*(128 if c=='cat' else 255)).astype(np.uint8)).save(path/c/f'{i}.png')
    return path

@quiet
def test_vision_learner(images, tmp_path):
    from fastai.vision.all import accuracy, load_learner
    def run(kw):
        random.seed(0); torch.manual_seed(0); np.random.seed(0)
        dls = ImageDataLoaders.from_folder(images, valid_pct=.25, seed=1, bs=8, num_workers=0)
        learn = vision_learner(dls, resnet18, pretrained=False, metrics=accuracy, path=tmp_path)
        learn.logger = noop_log
        learn.remove_cb(learn.progress)
        if kw: learn.batch_loss_filter(**kw)
        learn.fit_one_cycle(1, 1e-3)
        return learn
    plain,blf = run(None),run(dict(loss_perc=1., plain_every=1))
    assert_same(state(plain), state(blf))
    assert all(torch.equal(a, b) for a,b in zip(plain.get_preds(), blf.get_preds()))
    with plain.no_bar(), blf.no_bar():
        f = images/'cat'/'0.png'
        assert plain.predict(f)[0]==blf.predict(f)[0] and torch.equal(plain.predict(f)[2], blf.predict(f)[2])
        blf.show_results(max_n=2)
    blf.selection.set(loss_perc=.4)
    blf.fit(1)
    assert blf.selection.batches.n_kept.sum()<blf.selection.batches.n_seen.sum()
    blf.export('vision.pkl')
    again = load_learner(tmp_path/'vision.pkl')
    with again.no_bar(), blf.no_bar(): assert torch.equal(again.predict(f)[2], blf.predict(f)[2])

def test_pytorchs_own_loaders():
    train,valid = blobs()
    def dls(): return DataLoaders(torch.utils.data.DataLoader(train, 16, shuffle=True), torch.utils.data.DataLoader(valid, 16), device='cpu')
    def run(blf):
        learn = make_learner(dls=dls, cbs=GradientProbe(40) if blf else None)
        if blf: learn.batch_loss_filter(blf)
        learn.fit(2)
        return learn
    assert_same(state(run(None)), state(run(1.)))
    learn = run(.5)
    e = learn.selection.epochs
    assert learn.selection.record.info['bs']==16 and e.n_kept.max()<90 and e.sign_agreement.between(0, 1).all()

# ---- texts: outputs in tuples, hidden states, a penalty after the loss, a loader that yields its order and pads each batch

N_TEXT = 60

class Texts(torch.utils.data.Dataset):
    "Tokens of as many lengths; 0 is their number's place: every text begins with a token of its own."
    def __init__(self, n=N_TEXT, seed=0):
        g = gen(seed)
        self.x = [torch.cat([torch.tensor([20+i]), torch.randint(2, 20, (int(k),), generator=g)]) 
                  for i,k in enumerate(torch.randint(1, 12, (2, n), generator=g).prod(0)//6+1)]
        self.y = torch.tensor([int((o[1:]>10).float().mean()>.5) for o in self.x])
    def __len__(self): return len(self.x)
    def __getitem__(self, i): return self.x[i],self.y[i]

def padded(items):
    m = max(len(x) for x,_ in items)
    return [(F.pad(x, (m-len(x), 0), value=1), y) for x,y in items] # in front, as fastai does it for classifiers

def text_dls(bs=16): return DataLoaders(*[SortedDL(ds, bs=bs, shuffle=s, before_batch=padded, num_workers=0)
                                          for ds,s in ((Texts(), True), (Texts(12, 1), False))], device='cpu')

def text_learner(cbs=None, n=1, lr=1e-2, model=None):
    random.seed(0); np.random.seed(0); torch.manual_seed(0)
    config = dict(awd_lstm_clas_config, emb_sz=6, n_hid=8, n_layers=2)
    model = get_text_classifier(AWD_LSTM, 20+N_TEXT, 2, seq_len=8, config=config, max_len=16)
    learn = TextLearner(text_dls(), model, loss_func=CrossEntropyLossFlat(), metrics=accuracy_, cbs=cbs)
    learn.logger = noop_log
    learn.remove_cb(learn.progress)
    if n: learn.fit(n, lr)
    return learn

@pytest.mark.parametrize('name', METHODS)
def test_text_classifier(name):
    "Every method trains it, and knows its samples in the order that the loader yields: by number, and by the text's first token."
    kw = dict(sample_perc=.4) if name=='RHO' else dict(warmup=0) if name=='SB' else {}
    make = (lambda **kw: RHOLoss(HOLDOUT[:N_TEXT], **kw)) if name=='RHO' else PRESETS[name]
    class Knows(Callback):
        order,run_valid = 99,False
        def before_fit(self): self.checked = 0
        def before_batch(self):
            raw = self.learn.selection._fit.raw
            if (raw.ids<0).all(): return
            own = torch.tensor([next(o for o in x.tolist() if o!=1)-20 for x in raw.xb[0]])
            assert raw.ids.tolist()==own.tolist()
            self.checked += 1
    if name=='PFB': # the encoder runs once for each piece of a text
        return says(lambda: text_learner(make(), 3), 'is no place to block', 'give at a module through which')
    learn = text_learner([make(**kw), Knows()], 3)
    b = learn.selection.batches
    assert b.n_seen.sum()==3*N_TEXT and b.n_kept.sum()<b.n_seen.sum() and b.n_trained.sum()==b.n_kept.sum()
    assert learn.selection.epochs.accuracy_.between(0, 1).all() and learn.selection.epochs.valid_loss.notna().all()
    if learn.selection.by_id: assert learn.knows.checked

def test_text_classifier_all_kept_is_plain():
    "With plain steps timed and a probe: hidden states, dropout masks and the penalty's outputs are as without."
    assert_same(state(text_learner([], 2)), state(text_learner([*[PRESETS['BLF'](loss_perc=1., plain_every=2)], GradientProbe(32, every=2)], 2)))

def test_text_classifier_scores_are_those_of_eval_mode():
    learn = text_learner(PRESETS['BLF'](plain_every=0), 0)
    class First(Callback):
        order,run_valid = 54,False # before the selection
        def before_batch(self):
            if hasattr(self, 'want'): return
            with torch.random.fork_rng(), torch.no_grad():
                self.model.eval(); self.model.reset()
                self.want = F.cross_entropy(self.model(*self.xb)[0], self.yb[0], reduction='none')
                self.model.train(); self.model.reset()
    learn.add_cb(First())
    learn.fit(1)
    torch.testing.assert_close(torch.tensor(learn.selection.record.losses[0]), learn.first.want)

def test_text_classifier_probed_and_asked():
    "The probe measures, `would_keep` answers what the next batch will keep, plain steps are timed."
    class Asks(Callback):
        order,run_valid = 54,False
        def before_fit(self): self.said = []
        def before_batch(self): self.said.append(len(self.learn.selection.would_keep(self.xb, self.yb).idxs))
    learn = text_learner([PRESETS['BLF'](plain_every=2), GradientProbe(32), Asks()], 2)
    sel = learn.selection
    x,y = learn.gradient_probe.batch
    learn.model.eval()
    def grad(idxs):
        learn.model.reset()
        loss = F.cross_entropy(learn.model(x[idxs])[0], y[idxs])
        return torch.cat([o.flatten() for o in torch.autograd.grad(loss, list(learn.model.parameters()))])
    with torch.no_grad(): losses = F.cross_entropy(learn.model(x)[0], y, reduction='none')
    a,b = grad(brute_blf(losses.numpy(), .6, 0.)),grad(list(range(32)))
    np.testing.assert_allclose(sel.record.probes.cosine.iloc[-1], (a@b/a.norm()/b.norm()).item(), rtol=1e-3) # of the trained model
    assert sel.record.probes.sign_agreement.iloc[-1]==pytest.approx((a.sign()==b.sign())[b!=0].float().mean().item(), abs=.01)
    assert learn.asks.said==sel.batches.n_kept.tolist()
    assert sel.epochs.overhead_pct.notna().all()

def test_holdout_losses_of_a_text_classifier():
    "Of a Learner: through its callbacks, in the data set's order, though its loader sorts by length; of its bare model there is no loss."
    learn,texts = text_learner(),Texts()
    got,want = holdout_losses(learn, text_dls()),torch.zeros(N_TEXT)
    says(lambda: holdout_losses(learn.model, text_dls(), CrossEntropyLossFlat()), 'give the Learner that trained it')
    learn.model.eval()
    for i in range(0, N_TEXT, 16):
        idxs = range(N_TEXT)[i:i+16]
        x,y = zip(*padded([texts[j] for j in idxs]))
        learn.model.reset()
        with torch.no_grad(): want[idxs] = F.cross_entropy(learn.model(torch.stack(x))[0], torch.stack(y), reduction='none')
    torch.testing.assert_close(got, want)

def lm_learner(cbs=None, n=2):
    random.seed(0); np.random.seed(0); torch.manual_seed(0)
    config = dict(awd_lstm_lm_config, emb_sz=6, n_hid=8, n_layers=2)
    texts = [(o,) for o in Texts().x]
    dls = DataLoaders(*[LMDataLoader(texts, lens=[len(o[0]) for o in texts], bs=8, seq_len=6, shuffle=s) for s in (True, False)], device='cpu')
    learn = LMLearner(dls, get_language_model(AWD_LSTM, 20+N_TEXT, config=config), loss_func=CrossEntropyLossFlat(), cbs=cbs)
    learn.logger = noop_log
    learn.remove_cb(learn.progress)
    learn.fit(n, 1e-2)
    return learn

def test_a_language_model():
    "It carries its hidden state from batch to batch, row by row: all rows are trained on as ever, and some of them never."
    assert_same(state(lm_learner()), state(lm_learner([PRESETS['BLF'](loss_perc=1., plain_every=2), GradientProbe(8, every=2)])))
    says(lambda: lm_learner(PRESETS['BLF']()), 'carries something over from batch to batch', 'reset it')
    says(lambda: lm_learner(PRESETS['InfoBatch']()), 'LMDataLoader makes its items itself')

# ---- what stands between model and loss

@dataclasses.dataclass
class Output:
    logits:object
    hidden:object=None

class Transformer(nn.Module):
    "Answers with a dataclass, as models of the transformers kind do."
    def __init__(self): super().__init__(); self.net = bn_net()
    def forward(self, x): return Output(self.net(x), (x, x))

class Unpack(Callback):
    def after_pred(self): self.learn.pred = self.pred.logits

class LossInside(nn.Module):
    "Computes its loss itself, of labels among its inputs."
    def __init__(self): super().__init__(); self.net = bn_net()
    def forward(self, x, y):
        o = self.net(x)
        return dict(loss=F.cross_entropy(o, y), logits=o)

class TakeLoss(Callback):
    "As blurr does it: the labels go into the model, and its loss replaces the one that fastai computes."
    def before_batch(self): self.learn.xb = self.xb[0],self.yb[0]
    def after_pred(self): self.inner,self.learn.pred = self.pred['loss'],self.pred['logits']
    def after_loss(self):
        if self.training: self.learn.loss_grad,self.learn.loss = self.inner,self.inner.clone()

class Auxiliary(nn.Module):
    "A second output in training only."
    def __init__(self): super().__init__(); self.net,self.aux = bn_net(),nn.Linear(6, 3)
    def forward(self, x): return (self.net(x), self.aux(x)) if self.training else self.net(x)

def auxiliary_loss(p, y): return F.cross_entropy(p[0], y)+.3*F.cross_entropy(p[1], y) if isinstance(p, tuple) else F.cross_entropy(p, y)

class SoftInEval(nn.Module):
    "Probabilities in eval mode, logits in training."
    def __init__(self): super().__init__(); self.net = bn_net()
    def forward(self, x): return self.net(x) if self.training else self.net(x).softmax(1)

class CalledDropout(nn.Module):
    "Dropout that is no layer, and an answer of another kind in eval mode."
    def __init__(self): super().__init__(); self.net = bn_net()
    def forward(self, x):
        o = F.dropout(self.net(x), .5, self.training)
        return o if self.training else o.log_softmax(1).exp()

BETWEEN = dict( # model, callback, loss, and the losses of a batch by hand, of the model in eval mode
    unpacked=(Transformer, Unpack, None, lambda m, x, y: F.cross_entropy(m.net(x), y, reduction='none')),
    inside=(LossInside, TakeLoss, None, lambda m, x, y: F.cross_entropy(m.net(x), y, reduction='none')),
    auxiliary=(Auxiliary, None, auxiliary_loss, lambda m, x, y: F.cross_entropy(m.net(x), y, reduction='none')+.3*F.cross_entropy(m.aux(x), y, reduction='none')),
    soft=(SoftInEval, None, None, lambda m, x, y: F.cross_entropy(m.net(x), y, reduction='none')),
    called=(CalledDropout, None, None, lambda m, x, y: F.cross_entropy(m.net(x), y, reduction='none')))

def between(kind, cbs=(), n=2, **kwargs):
    model,cb,loss,_ = BETWEEN[kind]
    return fitted(n, model=model, loss_func=loss, cbs=[*([cb()] if cb else []), *cbs], metrics=None, **kwargs)

@pytest.mark.parametrize('name', METHODS)
@pytest.mark.parametrize('kind', BETWEEN)
def test_between_model_and_loss(kind, name):
    "Every method trains it; the samples' losses are those of the training's loss, without dropout."
    _,_,_,by_hand = BETWEEN[kind]
    class First(Callback):
        order,run_valid = 54,False
        def before_batch(self):
            if not hasattr(self, 'want'):
                self.model.eval()
                with torch.no_grad(): self.want = by_hand(self.model, self.xb[0], self.yb[0])
                self.model.train()
    first = First()
    if name=='PFB' and kind in ('inside','auxiliary'): # rows of the batch go on beside the block point
        return says(lambda: between(kind, [PRESETS[name]()]), 'is no place to block')
    learn = between(kind, [first, PRESETS[name](plain_every=2)])
    b,losses = learn.selection.batches,learn.selection.record.losses
    assert b.n_kept.sum()<b.n_seen.sum() and b.n_trained.sum()==b.n_kept.sum()
    if name in ('BLF','HNM','SB','CoreSet') and not learn.selection.warmup: torch.testing.assert_close(torch.tensor(losses[0]), first.want)
    assert learn.selection.epochs.overhead_pct.notna().any()

@pytest.mark.parametrize('kind', BETWEEN)
def test_between_model_and_loss_all_kept_is_plain(kind):
    probe = [PRESETS['BLF'](loss_perc=1., plain_every=2), GradientProbe(32, every=2)]
    learn = between(kind, probe)
    assert_same(state(between(kind)), state(learn))
    assert learn.selection.record.probes.sign_agreement.between(0, 1).all()

# ---- batches of one shape each, with a queue

class PadLast(DataLoader):
    def create_batch(self, b):
        xs,ys = zip(*b)
        m = max(map(len, xs))
        return torch.stack([F.pad(x, (0, m-len(x)), value=1) for x in xs]),torch.stack(ys)

class Bag(nn.Module):
    "The mean of the words' vectors: the same for a text however it is padded."
    def __init__(self): super().__init__(); self.emb,self.lin = nn.Embedding(20+N_TEXT, 6, padding_idx=1),nn.Linear(6, 2)
    def forward(self, x): return self.lin(self.emb(x).sum(1)/(x!=1).sum(1, keepdim=True))

class Resized(DataLoader):
    "Images whose size changes from batch to batch."
    def before_iter(self, *_): self.k = 0
    def create_batch(self, b):
        xs,ys = zip(*b)
        self.k += 1
        return F.interpolate(torch.stack(xs), size=(6, 8)[self.k//2%2]),torch.stack(ys)

def shapes_dls(kind):
    if kind=='texts': return DataLoaders(PadLast(Texts(), bs=16, shuffle=True), PadLast(Texts(12, 1), bs=16), device='cpu')
    train,valid = stripes(n=90)
    return DataLoaders(Resized(train, bs=16, shuffle=True), Resized(valid, bs=16), device='cpu')

SHAPES = dict(texts=Bag, images=lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)))

@pytest.mark.parametrize('name', QUEUING)
@pytest.mark.parametrize('kind', SHAPES)
def test_every_method_queues_batches_of_many_shapes(kind, name):
    "Each kept sample is trained on once, beside samples of its own shape."
    n = N_TEXT if kind=='texts' else 90
    kw = dict(queue=True) | (dict(warmup=0) if name=='SB' else {})
    make = (lambda **kw: RHOLoss(HOLDOUT[:n], .4, **kw)) if name=='RHO' else PRESETS[name]
    class Steps(Callback):
        order,run_valid = 99,False
        def before_fit(self): self.n = []
        def before_step(self): self.n.append(len(self.yb[0]))
    learn = make_learner(model=SHAPES[kind], dls=lambda: shapes_dls(kind), cbs=[make(**kw), Steps()])
    learn.fit(3, 1e-2)
    b = learn.selection.batches
    assert b.n_kept.sum()<b.n_seen.sum() and b.n_trained.sum()==b.n_kept.sum()==sum(learn.steps.n) and max(learn.steps.n)<=16

@double
@pytest.mark.parametrize('kind', SHAPES)
def test_a_queue_of_many_shapes_by_hand(kind):
    "What cannot be joined with the rows that wait lets them be trained on first: a loop of one's own gives the same parameters."
    kw = dict(model=SHAPES[kind], dls=lambda: shapes_dls(kind))
    learn = learner(PRESETS['plain'](selector=top, queue=True), **kw)
    learn.fit(3, .1)
    ref = hand_learner(**kw)
    def step(rows):
        F.cross_entropy(ref.model(torch.stack([x for x,_ in rows])), torch.stack([y for _,y in rows])).backward()
        ref.opt.step(); ref.opt.zero_grad()
        steps.append(len(rows))
    steps = []
    for _ in range(3):
        wait = []
        for x,y in ref.dls.train:
            with torch.no_grad(): idxs = top(F.cross_entropy(ref.model(x), y, reduction='none')).idxs
            if wait and wait[0][0].shape!=x.shape[1:]:
                step(wait)
                wait = []
            wait += list(zip(x[idxs], y[idxs]))
            if len(wait)>=16:
                step(wait[:16])
                wait = wait[16:]
        if wait: step(wait)
    close(learn, ref)
    assert len(set(steps))>2
