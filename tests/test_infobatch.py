"InfoBatch's draws by hand and by chance, its training against a loop without any callback."
import math
import numpy as np, pytest, torch
from fastai.callback.core import CancelFitException
from fastai.callback.schedule import SchedCos, SchedLin
from blf_explore import infobatch
from blf_explore.infobatch import InfoBatch, infobatch_keep
from core_tools import *

# ---- InfoBatch: the draw

def test_infobatch_by_hand():
    l = torch.tensor([.5, 3., 1., .2, math.nan, 1.5])
    for seed in range(20):
        r,sel = torch.rand(6, generator=gen(seed)),infobatch_keep(l, 1., .6, gen(seed))
        want = [i for i in range(6) if i in (1, 2, 4, 5) or r[i]>=.6] # 1 is not strictly below 1; what is not known is kept
        assert sel.idxs.tolist()==want
        assert sel.weights.tolist()==pytest.approx([2.5 if i in (0, 3) else 1. for i in want])
    for kw in (dict(prune=0), dict(mean=.2), dict(mean=math.nan)):
        sel = infobatch_keep(**(dict(losses=l[~l.isnan()], mean=1., prune=.6) | kw))
        assert sel.weights is None and sel.idxs.tolist()==list(range(5))
    third = torch.full((7,), .1) # the mean of equal losses is that loss, and none of them is below it
    assert infobatch_keep(third, third.double().mean().item()).weights is None
    assert infobatch_keep(third, third[0].item()+1e-12).weights is not None # below, if only in double precision
    before = random_states()
    infobatch_keep(l, 1., .5, gen())
    assert random_states()==before # a generator of one's own

@pytest.mark.parametrize('prune', [.1, .5, .9])
@pytest.mark.parametrize('n', [1, 2, 40])
def test_infobatch_is_unbiased(prune, n):
    """The weighted sum is on average that of all, and so is each sample's own weight, within 5 standard errors. With one or two samples all
    are often dropped: what is kept instead may not bias the sum."""
    g = gen(n)
    l = torch.rand(n, generator=g).double()+.1
    if n>2: l[:7] *= 20
    mean = 1.5 if n>2 else 5.
    low,draws = l<mean,8000 if n<3 else 3000
    w = torch.zeros(draws, n, dtype=torch.double)
    for row in w:
        sel = infobatch_keep(l, mean, prune, g)
        row[sel.idxs] = sel.weights.double()
    # of a weight that is 1/(1-prune) or 0 the variance is prune/(1-prune); all samples are independent
    assert (w[:,~low]==1).all()
    assert ((w.mean(0)-1).abs() <= 5*torch.where(low, prune/(1-prune), 0.).div(draws).sqrt()+1e-6).all()
    se = ((l[low]**2).sum()*prune/(1-prune)/draws).sqrt()
    assert abs((w@l).mean()-l.sum()) <= 5*se
    unweighted = ((w>0).double()@l).mean()
    assert abs(unweighted-l.sum())>5*se # which the sum without weights does not pass
    kept = (w>0)[:,low].double().mean()
    assert abs(kept-(1-prune)) <= 5*math.sqrt(prune*(1-prune)/(draws*low.sum()))

def test_infobatch_gradient_is_unbiased():
    "The same for the gradient of a network: the mean of many weighted gradients against that of the whole set."
    torch.manual_seed(0)
    net,(x,y) = nn.Linear(6, 3),blobs(30)[0].ts
    losses = F.cross_entropy(net(x), y, reduction='none')
    per = torch.stack([torch.cat([o.flatten() for o in torch.autograd.grad(l, net.parameters(), retain_graph=True)]) for l in losses])
    mean,g,n = losses.mean().item(),gen(),3000
    low = losses<mean
    got = torch.stack([(s.weights[:,None]*per[s.idxs]).sum(0) for s in (infobatch_keep(losses.detach(), mean, .5, g) for _ in range(n))])
    se = (per[low]**2).sum(0).div(n).sqrt() # prune/(1-prune) is 1
    assert ((got.mean(0)-per.sum(0)).abs() <= 5*se+1e-5).all()

# ---- InfoBatch: the training

class Seeded(InfoBatch):
    "The draws of the loop below."
    def begin(self): self.gen.manual_seed(11)

def plain_net(): return Ignores(nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)))

def infobatch_loop(learn, n_epoch, prune, delta, drop_last, lr, bs=16):
    """InfoBatch without any callback, sample by sample: (numbers in each step, last losses). The learner's loader gives the order of the whole
    epoch; only what is kept of it goes through."""
    g,N = gen(11),len(learn.dls.train_ds)
    last,steps,params = [None]*N,[],list(learn.model.parameters())
    xs,_,ys = learn.dls.train_ds.ts
    for epoch in range(n_epoch):
        known = [o for o in last if o is not None]
        mean = sum(known)/len(known) if known else None
        low = [mean is not None and o is not None and o<mean for o in last]
        rows = [(i, 1.) for _,ids,_ in learn.dls.train for i in ids.tolist()]
        if any(low) and epoch+1<=n_epoch*delta:
            r = torch.rand(N, generator=g).tolist()
            order,rows = rows,[(i, 1/(1-prune) if low[i] else 1.) for i,_ in rows if not low[i] or r[i]>=prune]
            if len(rows)%bs==1: rows.append(next((i, 0.) for i,_ in order if low[i] and r[i]<prune)) # company, which weighs nothing
        if drop_last: rows = rows[:len(rows)//bs*bs]
        for k in range(0, len(rows), bs):
            ids,w = [i for i,_ in rows[k:k+bs]],torch.tensor([w for _,w in rows[k:k+bs]])
            losses = F.cross_entropy(learn.model(xs[ids], None), ys[ids], reduction='none')
            ((losses*w).sum()/len(ids)).backward()
            with torch.no_grad():
                for p in params: p -= lr*p.grad; p.grad = None
            for i,l in zip(ids, losses.tolist()): last[i] = l
            steps.append(ids)
    return steps, last

@pytest.mark.parametrize('drop_last,prune,delta', [(False, .5, .875), (True, .5, .6), (False, .7, 1.), (True, .7, 1.), (False, .8, 1.)])
def test_infobatch_against_a_loop(drop_last, prune, delta):
    "The same samples in the same steps; parameters and last losses equal to rounding; and nothing else was loaded."
    def new(cbs=None, drop_last=False): return make_learner(dls=lambda: numbered_dls(drop_last), model=plain_net, opt_func=SGD, cbs=cbs)
    a,steps,loaded = new(Seeded(prune, delta), drop_last),[],[]
    class Note(Callback):
        order = 56
        def before_step(self): steps.append(self.learn.xb[1].tolist())
    ds = a.dls.train_ds
    class Counted(type(ds)):
        def __getitem__(self, i):
            loaded.append(i)
            return super().__getitem__(i)
    ds.__class__ = Counted
    a.fit(5, .1, cbs=Note())
    b = new()
    want,last = infobatch_loop(b, 5, prune, delta, drop_last, .1)
    assert steps==want
    if not drop_last: assert loaded==sum(want, []) # the loader makes the last, incomplete batch of drop_last before it drops it
    for (k,p),q in zip(a.model.state_dict().items(), b.model.state_dict().values()): torch.testing.assert_close(p, q, atol=2e-6, rtol=1e-4)
    np.testing.assert_allclose(a.selection.known.scores, [math.nan if o is None else o for o in last], atol=1e-5)
    rec = a.selection.batches
    assert rec.n_trained.tolist()==rec.n_kept.tolist()==[len(o) for o in want] and rec.n_scored.sum()==0
    e = a.selection.epochs
    assert (e.n_kept==e.n_seen).tolist()==[e==0 or e+1>5*delta for e in range(5)]
    if not drop_last: assert e.n_seen.tolist()==[90]*5
    assert all(len(o)==16 for o in want) if drop_last else all(len(o)==16 for o in want[:5])
    np.testing.assert_allclose(e.kept_pct, 100*e.n_kept/e.n_seen)

@pytest.mark.parametrize('loss', [nn.CrossEntropyLoss(), nn.CrossEntropyLoss(reduction='sum')], ids=['mean','sum'])
def test_infobatch_weighs_an_epoch_as_a_plain_one(loss):
    """At a learning rate of 0: the sum of an epoch's step gradients is on average that of the plain epoch. One epoch draws for 3,000 samples
    independently, so the standard error follows from their gradients: a low one's weight has the variance prune/(1-prune)."""
    prune = .6
    train,valid = blobs(3000)
    torch.manual_seed(0)
    net = nn.Linear(6, 3)
    net.weight.data *= 3 # some losses far above the others
    learn = make_learner(dls=lambda: loaders(train, valid, bs=20), model=net, cbs=[InfoBatch(prune, 1., plain_every=0), Sums()], loss_func=loss, metrics=None, opt_func=SGD)
    learn.fit(2, 0.)
    plain,got = learn.sums.total
    losses = F.cross_entropy(net(train.ts[0]), train.ts[1], reduction='none')
    low = losses.detach().double()<losses.detach().double().mean()
    p = net(train.ts[0]).softmax(1)-F.one_hot(train.ts[1], 3) # of cross-entropy by the output
    per = (p[:,:,None]*train.ts[0][:,None]).flatten(1).detach().double()*(1 if loss.reduction=='sum' else 1/20)
    torch.testing.assert_close(plain, per.sum(0), rtol=1e-3, atol=1e-3)
    se = (per[low].square().sum(0)*prune/(1-prune)).sqrt()
    assert ((got-plain).abs()<=5*se+1e-3).all() and se.norm()<.5*plain.norm()
    b = learn.selection.batches
    assert learn.selection.epochs.n_kept[1]<.75*3000 and b.n_trained[b.epoch==1].iloc[:-1].eq(20).all()
    assert abs(learn.sums.weights[1]-3000) <= 5*math.sqrt(low.sum()*prune/(1-prune)) # and the weights add up to the number of samples

class Sums(Callback):
    order,run_valid = 99,False
    def before_fit(self): self.total,self.weights = [],[]
    def before_train(self): self.total.append(0.); self.weights.append(0.)
    def before_step(self):
        self.total[-1] = self.total[-1]+self.learn.model.weight.grad.flatten().double()
        w = self.learn.selection._fit.rows.weights
        self.weights[-1] += len(self.yb[0]) if w is None else w.sum().item()

@pytest.mark.parametrize('kw', [dict(prune=0), dict(delta=0), dict(warmup=3)])
def test_infobatch_of_all_is_plain(kw):
    assert_same(state(fitted(3, cbs=InfoBatch(**kw))), state(fitted(3)))

def test_infobatch_scores_nothing():
    calls = []
    class Counted(nn.Sequential):
        def forward(self, x):
            if not tries_out(learn): calls.append((self.training, len(x)))
            return super().forward(x)
    learn = None
    learn = make_learner(model=lambda: Counted(*bn_net()), cbs=InfoBatch(plain_every=0))
    learn.fit(3)
    train = [n for training,n in calls if training]
    b = learn.selection.batches
    assert sum(train)==b.n_trained.sum()<b.n_seen.sum()
    assert len(calls)-len(train)<=3*2+1 # validation's batches, and one look for a BatchNorm that cannot train on one sample

def test_infobatch_warmup_zero_and_unseen_samples():
    "Without a warm-up the first epoch is plain all the same: no loss is known. What the loader left out stays in the next epoch, at weight 1."
    learn = make_learner(dls=lambda: numbered_dls(True, n=94), model=plain_net, cbs=Seeded(.95, 1., warmup=0))
    class Note(Callback):
        run_valid = False
        def before_fit(self): self.unseen = []
        def after_train(self):
            new = self.learn.selection.known.scores.isnan()
            self.unseen.append(new.sum().item())
        order = 56
        def before_batch(self):
            f = self.learn.selection._fit
            if f.keep is None: return
            new = self.learn.selection.known.scores.isnan()
            if self.iter==0: assert f.keep[new].all() and (f.weights[new]==1).all()
    learn.fit(4, 1e-2, cbs=(note := Note()))
    b = learn.selection.batches
    assert b.n_kept[b.epoch==0].sum()==80 and note.unseen[0]==14 and note.unseen[-1]<14

def test_infobatch_settings():
    for bad in (1, 1.5, -.1, None, 'x', True, math.nan, SchedLin(0., 1.), SchedLin(-.5, .5)):
        says(lambda: InfoBatch(bad), 'prune=', 'give'); says(lambda: infobatch_keep(torch.ones(3), 1., bad), 'prune=', 'give')
    for bad in (1.5, -.1, None, True): says(lambda: InfoBatch(delta=bad), 'delta=', 'give')
    says(lambda: infobatch_keep(torch.zeros(0), 1., .5), 'losses is empty')
    learn = make_learner(cbs=InfoBatch())
    says(lambda: learn.selection.set(prune=1), 'prune=1')
    says(lambda: learn.selection.set(sample_perc=.5), 'no setting of InfoBatch')
    assert (learn.selection.prune, learn.selection.delta)==(.5, .875)
    class Set(Callback):
        def before_batch(self):
            if self.training and self.epoch==1 and self.iter==1: self.learn.selection.set(prune=.9) # from epoch 2 on
            if self.training and self.epoch==2 and self.iter==0: self.learn.selection.set(delta=.5)
    learn.fit(5, 1e-2, cbs=Set())
    b = learn.selection.batches
    kept = b.groupby('epoch').n_kept.sum().tolist()
    assert kept[0]==90>kept[1]>kept[2] and kept[3:]==[90, 90]
    assert b.groupby('epoch').prune.last().tolist()==[.5, .5, .9, .9, .9]
    assert learn.selection.record.changes.setting.tolist()==['prune', 'delta']
    sched = make_learner(cbs=InfoBatch(SchedCos(.9, 0.), 1.))
    sched.fit(4)
    assert sched.selection.batches.prune.is_monotonic_decreasing

def test_infobatch_resumed_is_uninterrupted(tmp_path):
    def new(seed): return make_learner(seed, model=bn_net, cbs=InfoBatch(.5, 1.), path=tmp_path)
    whole = new(1)
    whole.fit_one_cycle(4, 1e-2)
    want = state(whole)
    class Keep(Callback):
        order = 99
        def before_epoch(self):
            if self.epoch==2: raise CancelFitException
    first = new(1)
    first.fit_one_cycle(4, 1e-2, cbs=Keep())
    first.save('half', with_opt=True)
    torch.save(first.selection.state_dict(), tmp_path/'selection.pth')
    second = new(7)
    second.load('half', with_opt=True)
    second.selection.load_state_dict(torch.load(tmp_path/'selection.pth', weights_only=True))
    second.fit_one_cycle(4, 1e-2, start_epoch=2)
    assert_same(state(second), want)

# ---- with the rest

def test_export_and_load(tmp_path): exports_and_loads(InfoBatch, tmp_path)

def test_record(): has_a_record(InfoBatch, 'InfoBatch')

def test_all_has_them():
    import blf_explore.all as a
    for o in ('infobatch_keep', 'InfoBatch'): assert getattr(a, o) is getattr(infobatch, o)
