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

def infobatch_loop(learn, n_epoch, prune, delta, queue, lr, bs=16):
    "InfoBatch without any callback, sample by sample: (numbers in each step, their weights)."
    g,N = gen(11),len(learn.dls.train_ds)
    last,steps,params = [None]*N,[],list(learn.model.parameters())
    xs,_,ys = learn.dls.train_ds.ts
    def train(rows, scale=1.):
        ids,w = [i for i,_ in rows],torch.tensor([w for _,w in rows])
        losses = F.cross_entropy(learn.model(xs[ids], None), ys[ids], reduction='none')
        (scale*(losses*w).sum()/len(ids)).backward()
        with torch.no_grad():
            for p in params: p -= lr*p.grad; p.grad = None
        for i,l in zip(ids, losses.tolist()): last[i] = l
        steps.append(ids)
    for epoch in range(n_epoch):
        known = [o for o in last if o is not None]
        mean = sum(known)/len(known) if known else None
        waiting = []
        batches = [i.tolist() for _,i,_ in learn.dls.train]
        for ids in batches:
            rows = [(i, 1.) for i in ids]
            low = [mean is not None and last[i] is not None and last[i]<mean for i in ids]
            if any(low) and epoch+1<=n_epoch*delta:
                r = torch.rand(len(ids), generator=g).tolist()
                rows = [(i, 1/(1-prune) if lo else 1.) for i,lo,o in zip(ids, low, r) if not lo or o>=prune]
                assert rows # these small sets never drop all
            if not queue: train(rows, len(rows)/len(ids))
            else:
                waiting += rows
                while len(waiting)>=bs: train(waiting[:bs]); waiting = waiting[bs:]
        while waiting: train(waiting[:bs]); waiting = waiting[bs:]
    return steps, last

@pytest.mark.parametrize('queue,drop_last,prune,delta', [(True, False, .5, .875), (True, True, .5, .6), (False, False, .5, .875), (False, True, .7, 1.), (True, True, .8, 1.)])
def test_infobatch_against_a_loop(queue, drop_last, prune, delta):
    "The same samples in the same steps; parameters and last losses equal to rounding."
    def new(cbs=None): return make_learner(dls=lambda: numbered_dls(drop_last), model=plain_net, opt_func=SGD, cbs=cbs)
    a,steps = new(Seeded(prune, delta, queue=queue)),[]
    class Note(Callback):
        order = 56
        def before_step(self): steps.append(self.learn.xb[1].tolist())
    a.fit(5, .1, cbs=Note())
    b = new()
    want,last = infobatch_loop(b, 5, prune, delta, queue, .1)
    assert steps==want
    for (k,p),q in zip(a.model.state_dict().items(), b.model.state_dict().values()): torch.testing.assert_close(p, q, atol=2e-6, rtol=1e-4)
    np.testing.assert_allclose(a.selection.known.scores, [math.nan if o is None else o for o in last], atol=1e-5)
    rec = a.selection.batches
    assert rec.n_trained.sum()==rec.n_kept.sum()==sum(map(len, want))
    assert rec.n_scored.sum()==0
    by_epoch = rec.groupby('epoch')[['n_kept','n_seen']].sum()
    assert (by_epoch.n_kept==by_epoch.n_seen).tolist()==[e==0 or e+1>5*delta for e in range(5)]
    if queue:
        for _,o in rec.groupby('epoch'):
            whole,rest = divmod(o.n_kept.sum(), 16)
            sizes = o.n_trained[o.n_trained>0].tolist()
            assert sum(sizes)==16*whole+rest and all(s==16 for s in sizes[:-1]) and 0<sizes[-1]<=31 # a last full step, and what is left
    else: assert len(steps)==len(rec)

def test_infobatch_weighs_an_epoch_as_a_plain_one():
    "The sum over an epoch's steps of the summed weights, each over its step's size and all over the plain number of steps, is about 1, with a queue and without."
    for queue in (True, False):
        total,n = 0.,0
        learn = make_learner(dls=lambda: numbered_dls(True, bs=20, n=400), model=plain_net, opt_func=SGD, cbs=Seeded(.6, 1., queue=queue, plain_every=0))
        class Note(Callback):
            order = 56
            def before_step(self):
                nonlocal total, n
                rows = self.learn.selection._fit.rows
                if self.epoch: total += 1. if rows is None or rows.weights is None else rows.weights.mean().item()
                n = max(n, self.epoch)
        learn.fit(9, .05, cbs=Note())
        # a low sample's weight has the variance prune/(1-prune) = 1.5; there are at most 8*400 draws
        assert abs(total/(n*20)-1) <= 5*math.sqrt(1.5/3200)
        assert learn.selection.batches.n_kept.sum()<.85*learn.selection.batches.n_seen.sum()

@pytest.mark.parametrize('kw', [dict(prune=0), dict(delta=0), dict(warmup=3), dict(prune=0, queue=False)])
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
    "Without a warm-up the first epoch is plain all the same: no loss is known. What the loader left out is kept when it comes."
    learn = make_learner(dls=lambda: numbered_dls(True, n=94), model=plain_net, cbs=Seeded(.95, 1., warmup=0))
    news = []
    class Note(Callback):
        order = 54 # before the selection
        def before_batch(self):
            if not self.training: return
            known = self.learn.selection.known
            ids = self.xb[1]
            self.new = set() if known is None else set(ids[known.scores[ids].isnan()].tolist())
            if self.epoch: news.append(len(self.new))
    class Then(Callback):
        order = 56
        def before_batch(self):
            if not self.training: return
            waiting = [i for o in self.learn.selection._fit.step.parts for i in o.ids.tolist()]
            assert self.learn.note.new <= set(self.xb[1].tolist()) | set(waiting)
    learn.fit(4, 1e-2, cbs=[Note(), Then()])
    b = learn.selection.batches
    assert b.n_kept[b.epoch==0].sum()==80 and sum(news)>0

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
            if self.training and self.epoch==2 and self.iter==0: self.learn.selection.set(prune=.9)
            if self.training and self.epoch==3 and self.iter==0: self.learn.selection.set(delta=.5)
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
