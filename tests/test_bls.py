"The Batch Loss Score by hand, and its training with losses that have no samples."
import math
import numpy as np, pytest, torch
from blf_explore import bls
from blf_explore.bls import BatchLossScore, BLS, bls_update
from core_tools import *

def test_update_by_hand():
    s = torch.tensor([math.nan, 0., 2.])
    assert bls_update(s, 1., .75).tolist()==[.25, .25, 1.75] and bls_update(s, torch.tensor(1.), 0.).tolist()==[1., 1., 1.]
    assert s[2]==2 # a new tensor

def test_update_as_published():
    "Ten samples, six batches of four: what `BLS.update` of mrazhou/BLS (seta.py) made of them at alpha .7."
    s = torch.full((10,), math.nan)
    for ids,loss in BATCHES: s[ids] = bls_update(s[ids], loss, .7)
    np.testing.assert_allclose(s.nan_to_num(0.), SCORES, atol=1e-5)

BATCHES = [([2, 6, 1, 8], 1.4688), ([4, 2, 5, 9], .6108), ([0, 4, 9, 7], 2.2), ([6, 8, 3, 0], .5), ([1, 3, 2, 5], 1.75), ([9, 0, 6, 1], .875)]
SCORES = [0.6909, 0.845914, 0.869182, 0.63, 0.788268, 0.653268, 0.583414, 0.66, 0.458448, 0.814288]

def dice(p, y):
    "A quotient over the whole batch: it is no sum of anything that belongs to a sample."
    p,y = p.softmax(1),F.one_hot(y, p.shape[1])
    return 1-2*(p*y).sum()/(p.square().sum()+y.sum())

class Shares:
    "A loss without `reduction` that compares what a batch holds with what is predicted of it, as a whole."
    def __call__(self, p, y): return (p.softmax(1).mean(0)-F.one_hot(y, p.shape[1]).float().mean(0)).square().sum().sqrt()+dice(p, y)

class Seeded(BLS):
    def begin(self): self.gen.manual_seed(11)

@pytest.mark.parametrize('loss', [dice, Shares(), nn.CrossEntropyLoss(reduction='sum')], ids=['dice','shares','sum'])
def test_a_loss_that_has_no_samples(loss):
    "Against a loop without any callback: scores, who stays, and steps along the batch's gradient times the mean of the weights."
    prune,alpha,N = .5,.7,90
    def new(cbs=None): return make_learner(dls=lambda: numbered_dls(), model=lambda: Ignores(bare()), opt_func=SGD, cbs=cbs, loss_func=loss, metrics=None)
    lr = .001 if getattr(loss, 'reduction', '')=='sum' else .1
    a,steps,shown = new(Seeded(prune, 1., alpha)),[],[]
    class Note(Callback):
        order,run_valid = 99,False
        def before_step(self): steps.append(self.learn.xb[1].tolist()); shown.append(self.learn.loss.item())
    a.fit(4, lr, cbs=Note())
    b,g,want,losses,score = new(),gen(11),[],[],[None]*N
    xs,_,ys = b.dls.train_ds.ts
    for epoch in range(4):
        order = [i for _,ids,_ in b.dls.train for i in ids.tolist()]
        known = [o for o in score if o is not None]
        low = [o is not None and o<sum(known)/len(known) for o in score]
        rows = [(i, 1.) for i in order]
        if epoch:
            r = torch.rand(N, generator=g).tolist()
            rows = [(i, 1/(1-prune) if low[i] else 1.) for i in order if not low[i] or r[i]>=prune]
            if len(rows)%16==1: rows.append(next((i, 0.) for i in order if low[i] and r[i]<prune))
        for k in range(0, len(rows), 16):
            ids,w = [i for i,_ in rows[k:k+16]],sum(w for _,w in rows[k:k+16])/len(rows[k:k+16])
            l = loss(b.model(xs[ids], None), ys[ids])
            (l*w).backward()
            with torch.no_grad():
                for p in b.model.parameters(): p -= lr*p.grad; p.grad = None
            for i in ids: score[i] = alpha*(score[i] or 0.)+(1-alpha)*l.item()
            want.append(ids); losses.append(l.item()*w)
    assert steps==want and sum(map(len, want))<4*90
    np.testing.assert_allclose(shown, losses, rtol=1e-4)
    for (k,p),q in zip(a.model.state_dict().items(), b.model.state_dict().values()): torch.testing.assert_close(p, q, atol=1e-5, rtol=1e-4)
    np.testing.assert_allclose(a.selection.known.scores, score, rtol=1e-4)
    assert a.selection.batches.n_scored.sum()==0

@pytest.mark.parametrize('make', [lambda: InfoBatch(delta=1., score=BatchLossScore(.5)), lambda: SeTa(.1, 4, .5, 1., score=BatchLossScore())], ids=['InfoBatch','SeTa'])
def test_in_front_of_others(make):
    "A loss of the batch as a whole is refused without it (weights could not be right, nor is there a loss per sample), and trains with it."
    dls = lambda: numbered_dls()
    learn = make_learner(dls=dls, model=lambda: Ignores(bn_net()), loss_func=Shares(), metrics=None, cbs=[make(), Trained()])
    learn.fit(4, 1e-2)
    e = learn.selection.epochs
    assert (e.n_kept[1:]<90).all() and e.n_seen.tolist()==[90]*4 and learn.selection.known.scores.isfinite().all()
    whole = InfoBatch(delta=1.)
    says(lambda: make_learner(dls=dls, model=lambda: Ignores(bn_net()), loss_func=dice, metrics=None, cbs=whole).fit(1), 'neither the mean nor the sum')

@quiet
def test_a_divergence_makes_no_score():
    class Breaks(Callback):
        order,run_valid = 90,False
        def before_batch(self):
            if self.epoch==1 and self.iter==1:
                with torch.no_grad(): next(self.model.parameters()).fill_(math.nan)
    learn = make_learner(cbs=[BLS(delta=1.), Breaks()])
    learn.fit(3)
    e,b = learn.selection.epochs,learn.selection.batches
    assert learn.selection.known.scores.isfinite().all() and e.n_kept.tolist()[0]==90==e.n_kept.tolist()[2] and e.n_kept[1]<90
    assert b.finite[:6].all() and not b.finite[b.epoch==2].any()

@pytest.mark.parametrize('kw', [dict(prune=0), dict(delta=0), dict(warmup=3)])
def test_all_kept_is_plain(kw): assert_same(state(fitted(3, cbs=BLS(**kw))), state(fitted(3)))

def test_settings():
    for bad in (1, 1.5, -.1, None, True, 'x', lambda p: .5): says(lambda: BatchLossScore(bad), 'alpha=', 'give'); says(lambda: BLS(alpha=bad), 'alpha=', 'give')
    says(lambda: BLS(1), 'prune=1')
    learn = make_learner(cbs=BLS(alpha=.9))
    assert learn.selection.values()==dict(prune=.5, delta=.875, alpha=.9) and repr(learn.selection.score)=='BatchLossScore(0.9)'
    says(lambda: learn.selection.set(alpha=1), 'alpha=1')
    learn.selection.set(alpha=.2)
    assert learn.selection.score.alpha==.2==learn.selection.alpha

def test_export_and_load(tmp_path): exports_and_loads(BLS, tmp_path)

def test_record(): has_a_record(BLS, 'BLS')

def test_all_has_them():
    import blf_explore.all as a
    for o in ('bls_update','BatchLossScore','BLS'): assert getattr(a, o) is getattr(bls, o)
