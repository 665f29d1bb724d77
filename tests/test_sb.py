"Selective-Backprop: its probabilities against brute force and statistics, its training against a loop without any callback."
import math, warnings
import numpy as np, pytest, torch
from fastai.callback.core import CancelFitException
from fastai.callback.schedule import ParamScheduler, SchedCos, SchedLin
from fastai.optimizer import OptimWrapper
from blf_explore.sb import (independent_draw, keep_probability, percentiles, rank_draw, RankSelectiveBackprop,
                            SelectiveBackprop)
from core_tools import *
from references import composer_is_on, numbers, sb_bs, sb_by_hand, sb_lr, sb_rate, subset_chances

sigmas = 5 # a count further off than this has a chance below 6e-7, if the probability is right

def gen(seed=0): return torch.Generator().manual_seed(seed)

# ---- percentiles and probabilities

makers = dict(spread=lambda n, g: torch.rand(n, generator=g).log().neg()**3, ties=lambda n, g: torch.randint(0, 4, (n,), generator=g).float(),
              zeros=lambda n, g: torch.zeros(n), tiny=lambda n, g: torch.rand(n, generator=g)*1e-42, signed=lambda n, g: torch.randn(n, generator=g))

@pytest.mark.parametrize('maker', makers)
def test_percentiles_against_counting(maker):
    g = gen()
    for n,m in (1,1),(1,7),(7,1),(64,64),(64,1000):
        losses,history = makers[maker](n, g),makers[maker](m, g)
        want = [sum(h<l for h in history.tolist())/m for l in losses.tolist()]
        assert percentiles(losses, history).tolist()==want
        assert percentiles(losses, history.flip(0)).tolist()==want # their order in the history is nothing to it
        for beta in (0, .5, 1, 2.5): assert keep_probability(losses, history, beta).tolist()==pytest.approx([u**beta for u in want], abs=1e-12)

def test_probability_edges():
    one = torch.ones(3)
    assert keep_probability(one, one, 0).tolist()==[1, 1, 1] # 0**0
    assert keep_probability(one, one, .1).tolist()==[0, 0, 0]
    assert independent_draw(one, torch.zeros(3)).idxs.tolist()==[0] # at least one, the first of equals
    assert independent_draw(torch.tensor([1., 3., 2.]), torch.zeros(3)).idxs.tolist()==[1]
    assert independent_draw(torch.tensor([1., 3., 2.]), torch.ones(3)).idxs.tolist()==[1, 2, 0]
    before = random_states()
    independent_draw(one, one, gen()); rank_draw(one, .5, gen())
    assert random_states()==before # a generator of one's own

def test_draw_is_independent_with_these_chances():
    "Counts of each sample and of each pair, against n p and n p q, within 5 standard deviations of a binomial count."
    n,g = 20_000,gen(1)
    losses = torch.tensor([.3, 5., 0., 1., .3, 2.])
    p = np.array([0., .02, .3, .5, .9, 1.])
    hits = np.zeros((n, 6))
    for row in hits: row[independent_draw(losses, torch.tensor(p), g).idxs] = 1
    assert hits[:,0].sum()==0 and hits[:,5].sum()==n
    pair = np.outer(p, p)
    np.fill_diagonal(pair, p)
    assert (abs(hits.T@hits-n*pair) <= sigmas*np.sqrt(n*pair*(1-pair))+1e-9).all()

@pytest.mark.parametrize('beta', [.5, 1., 2., 4.])
def test_share_kept_is_one_in_beta_plus_one(beta):
    "Fresh losses in a history of the same kind: the mean of u**beta over [0,1], less what the finite history makes of it."
    g,m = gen(2),1024
    kept,n = 0,0
    history = torch.randn(m, generator=g).exp()
    for _ in range(400):
        losses = torch.randn(64, generator=g).exp()
        history = torch.cat([history, losses])[-m:]
        kept += len(independent_draw(losses, keep_probability(losses, history, beta), g).idxs)
        n += 64
    # with m losses of which one is its own, the percentile is one of 0..m-1 over m, each as likely; a batch's percentiles
    # are all but independent, as 960 of the 1,024 are older losses: twice the binomial's deviation is generous
    want = np.mean((np.arange(m)/m)**beta)
    assert abs(kept/n-want) < 2*sigmas*math.sqrt(want*(1-want)/n)
    assert abs(want-1/(beta+1)) < 1/m

@pytest.mark.parametrize('k', [1, 2, 3, 4])
def test_rank_draw_against_all_draws_listed(k):
    n,reps,g = 5,6000,gen(k)
    share = (k-.3)/n # ceil
    losses = torch.tensor([.4, 0., 9., .1, 2.])
    rank = [2, 0, 4, 1, 3]
    chances = subset_chances([((r+.5)/n)**(1/share-1) for r in rank], k)
    counts = dict.fromkeys(chances, 0)
    for _ in range(reps):
        idxs = rank_draw(losses, share, g).idxs.tolist()
        assert idxs==sorted(idxs, key=lambda i: -losses[i]) and len(set(idxs))==k
        counts[frozenset(idxs)] += 1
    assert sum(chances.values())==pytest.approx(1)
    for o,p in chances.items(): assert abs(counts[o]-reps*p) <= sigmas*math.sqrt(reps*p*(1-p)), (o, counts[o]/reps, p)

@pytest.mark.parametrize('share', [.1, .5, .8])
def test_rank_draw_against_numpy(share):
    "How often each rank is drawn, by NumPy's choice without replacement: two counts differ by at most 5 sqrt(2 n p q)."
    n,reps,g,rng = 24,4000,gen(3),np.random.default_rng(3)
    losses = torch.rand(n, generator=g)
    rank,k = losses.argsort().argsort().numpy(),math.ceil(n*share)
    w = ((np.arange(n)+.5)/n)**(1/share-1)
    ours,theirs = np.zeros(n),np.zeros(n)
    for _ in range(reps):
        ours[rank[rank_draw(losses, share, g).idxs.numpy()]] += 1
        theirs[rng.choice(n, k, replace=False, p=w/w.sum())] += 1
    assert ours.sum()==theirs.sum()==reps*k
    p = (ours+theirs)/(2*reps)
    assert (abs(ours-theirs) <= sigmas*np.sqrt(2*reps*p*(1-p))+1).all() # 1: where p is so small that the count is 0 or 1

def test_rank_draw_edges():
    losses = torch.tensor([1., 3., 2.])
    for share in (1e-300, 1e-9, .01): assert rank_draw(losses, share, gen()).idxs.tolist()==[1] # a huge exponent leaves the hardest
    assert rank_draw(losses, 0).idxs.tolist()==[1]
    assert rank_draw(losses, 1).idxs.tolist()==[1, 2, 0]
    assert rank_draw(losses[:1], .5).idxs.tolist()==[0]
    for n in (1, 2, 3, 64, 1000):
        for share in (.001, 1/3, .5, .999, 1.): assert len(rank_draw(torch.rand(n), share, gen()).idxs)==math.ceil(n*share)
    with pytest.raises(ValueError, match='losses is empty'): rank_draw(torch.zeros(0))
    with pytest.raises(ValueError, match='history is empty'): percentiles(losses, torch.zeros(0))

# ---- training, against a loop without any callback

class Known(nn.Module):
    "A network for rows whose last column is the sample's own number; it does not look at it."
    def __init__(self, net):
        super().__init__()
        self.net = net
    def forward(self, x): return self.net(x[:,:-1])

def numbered(n=70, n_valid=16):
    "Data sets that return each sample's number as its last feature: the reference recognises samples by it, the callback may not."
    train,valid = blobs(n, n_valid)
    def add(o): return Rows(torch.cat([o.ts[0], torch.arange(len(o.ts[0]))[:,None].float()], 1), o.ts[1])
    return add(train),add(valid)
def sgd(params, lr=sb_lr, **kwargs): return OptimWrapper(params, torch.optim.SGD, lr=lr, momentum=.9)

def sb_learner(cbs=None, n=70, model=bn_net, seed=1, **kwargs):
    def dls():
        train,valid = numbered(n)
        kw = dict(shuffle=True, drop_last=False, num_workers=0) | kwargs
        return DataLoaders(DataLoader(train, bs=sb_bs, **kw), DataLoader(valid, bs=sb_bs, num_workers=0), device='cpu')
    return make_learner(seed, cbs, model=lambda: Known(model()), dls=dls, opt_func=sgd, metrics=None)

def fit(learn, n_epoch=4, **kwargs):
    learn.fit(n_epoch, sb_lr, cbs=ParamScheduler({'lr': sb_rate}), **kwargs)
    return learn

class Steps(Callback):
    "The rows of each optimizer step, by a hook on the training forward; what was selected; rows of scoring forwards; learning rates."
    order,run_valid = 99,False
    def before_fit(self):
        self.trained,self.scored,self.lrs,self.picked,self.batch = [],[],[],[],-1
        self.hook = self.learn.model.register_forward_pre_hook(self.look)
        self.step = self.learn.opt.opt.step
        self.learn.opt.opt.step = self.stepped
        if (cb := getattr(self.learn, 'selection', None)) is not None and cb.selector is not None:
            cb.by_id,old = True,cb.selector # numbers of the samples, to be compared with those in the rows
            def spy(scores, **kw):
                sel = old(scores, **kw)
                self.picked.append([int(cb.ids[i]) for i in sel.idxs])
                return sel
            cb.selector = spy
    def look(self, model, args):
        if not self.learn.training or tries_out(self.learn): return # validation; the selection's own look before the first batch
        (self.trained if model.training else self.scored).append((self.learn.epoch, self.learn.iter, numbers(args[0])))
    def stepped(self, *args, **kwargs):
        self.lrs.append((self.learn.epoch, self.learn.iter, self.learn.opt.opt.param_groups[0]['lr']))
        return self.step(*args, **kwargs)
    def after_fit(self):
        self.hook.remove()
        self.learn.opt.opt.step = self.step

def bare_net(d=6, c=3): return nn.Sequential(nn.Linear(d, 12), nn.ReLU(), nn.Dropout(.3), nn.Linear(12, c))

cases = [dict(), dict(stale=1), dict(stale=2), dict(queue=False), dict(queue=False, stale=1), dict(queue=False, stale=2), dict(warmup=0),
         dict(warmup=0, stale=1), dict(warmup=0, stale=2, queue=False), dict(warmup=2, stale=1), dict(beta=3.), dict(beta=.4, history=30),
         dict(beta=2., history=7, stale=1), dict(beta=8., stale=2), dict(beta=0.), dict(beta=0., stale=1)]

@pytest.mark.parametrize('kw', cases, ids=case)
@pytest.mark.parametrize('data', [dict(), dict(drop_last=True), dict(shuffle=False, n=64), dict(n=65, model=bare_net)], ids=case)
def test_against_a_loop_without_callback(kw, data):
    "Exactly equal parameters, buffers and steps, after several epochs, whatever the last batch is like."
    learn = sb_learner(cbs=[SelectiveBackprop(**kw, plain_every=0), Steps()], **data)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        fit(learn)
    ref = sb_learner(**data) # made when it is trained: to make it sets the seed
    steps,scored = sb_by_hand(ref, **kw, needs_two='model' not in data)
    assert learn.steps.trained==steps and learn.steps.scored==scored
    a,b = ref.model.state_dict(),learn.model.state_dict()
    for k in a: assert torch.equal(a[k], b[k]), k

    warmup,queue,cb = kw.get('warmup', 1),kw.get('queue', True),learn.selection
    n_iter = len(learn.dls.train)
    last_step = {e: max(i for i,o in enumerate(steps) if o[0]==e) for e in range(4)}
    if queue: # every optimizer step but an epoch's last has exactly sb_bs samples
        assert all(len(o[2])==sb_bs for i,o in enumerate(steps) if i!=last_step[o[0]])
        assert not cb.waiting
    for e in range(warmup, 4): # every selected sample is trained on exactly once, in its epoch
        picked = sum(learn.steps.picked[(e-warmup)*n_iter:(e-warmup+1)*n_iter], [])
        trained = sum((o[2] for o in steps if o[0]==e), [])
        assert len(set(trained))==len(trained) and set(picked)<=set(trained)
        assert len(set(trained)-set(picked)) <= (1 if queue else n_iter) # the second of a pair for BatchNorm
        if 'model' in data: assert sorted(picked)==sorted(trained)
    r = cb.batches
    assert r.n_trained.groupby(r.epoch).sum().tolist()==[sum(len(o[2]) for o in steps if o[0]==e) for e in range(4)]
    assert r.n_kept.groupby(r.epoch).sum().tolist()==r.n_trained.groupby(r.epoch).sum().tolist()
    assert r.n_scored.sum()==sum(len(o[2]) for o in scored)

def test_timing_plain_steps_changes_nothing():
    a,b = (fit(sb_learner(cbs=SelectiveBackprop(stale=1, plain_every=n))) for n in (0, 2))
    assert_same(a.model.state_dict(), b.model.state_dict())
    assert len(a.selection.record.plain)==0<len(b.selection.record.plain)

def test_the_reference_can_differ():
    "Another seed, selectivity or staleness does end elsewhere."
    base = sb_by_hand(sb_learner())[0]
    assert base==sb_by_hand(sb_learner())[0]
    for kw in dict(beta=1.1),dict(stale=1),dict(history=20),dict(queue=False),dict(warmup=0): assert sb_by_hand(sb_learner(), **kw)[0]!=base

@pytest.mark.parametrize('stale', [1, 2, 3])
def test_no_scoring_forward_for_a_reused_loss(stale):
    "Every sample is seen in every epoch here, so its loss is made anew every stale+1 epochs, and not once more."
    learn = fit(sb_learner(cbs=[SelectiveBackprop(2., stale=stale), Steps(), Told()]), 7)
    per_epoch = [sum(len(ids) for e,_,ids in learn.steps.scored if e==epoch) for epoch in range(7)]
    assert per_epoch==[70 if e and e%(stale+1)==0 else 0 for e in range(7)]
    assert learn.selection.batches.groupby('epoch').n_scored.sum().tolist()==per_epoch
    for i in range(0, 7, stale+1): # and the loss is used again as it was
        then = {}
        for e in range(i, min(7, i+stale+1)):
            for b in range(5*e, 5*e+5):
                for (o,l) in zip(learn.told.seen[b][0], learn.selection.record.losses[b]): assert then.setdefault(o, l)==l

class Told(Callback):
    "The numbers that the callback knows a batch's samples by, beside those that the samples carry."
    order,run_valid = 54,False # before it selects
    def before_fit(self): self.all = {}
    def before_batch(self): self.own = numbers(self.xb[0])
    def after_batch(self): # what is left in the queue at an epoch's end makes another step of the last batch
        self.all.setdefault((self.epoch, self.iter), (self.own, self.learn.selection.ids.tolist()))
    @property
    def seen(self): return list(self.all.values())

@pytest.mark.parametrize('kw', [dict(), dict(drop_last=True), dict(shuffle=False)], ids=case)
def test_samples_are_recognised_with_several_workers(kw):
    "Items are fetched in two other processes: the same samples under the same numbers, and the same training."
    learns = [fit(sb_learner(cbs=[SelectiveBackprop(1.5, stale=1), Told()], num_workers=n, **kw), 3) for n in (0, 2)]
    for learn in learns:
        assert all(own==ids for own,ids in learn.told.seen) and len(learn.told.seen)==3*len(learn.dls.train)
        assert kw.get('shuffle', True)==(sorted(learn.told.seen[0][0])!=learn.told.seen[0][0])
    assert learns[0].told.seen==learns[1].told.seen
    assert_same(learns[0].model.state_dict(), learns[1].model.state_dict())

def test_beta_zero_is_plain():
    for kw in dict(),dict(queue=False),dict(stale=2),dict(warmup=0),dict(interrupt=2):
        a,b = fit(sb_learner()),fit(sb_learner(cbs=SelectiveBackprop(0., **kw)))
        for (k,x),y in zip(a.model.state_dict().items(), b.model.state_dict().values()): assert torch.equal(x, y), k
        assert a.recorder.lrs==b.recorder.lrs

@pytest.mark.parametrize('kw', [dict(), dict(stale=1), dict(queue=False)], ids=case)
def test_learning_rate_follows_the_batches_seen(kw):
    "Each step has the learning rate that a plain run has at that batch, steps or no steps between."
    plain,learn = fit(sb_learner(cbs=Steps())),fit(sb_learner(cbs=[SelectiveBackprop(2., **kw), Steps()]))
    want = {(e, i): lr for e,i,lr in plain.steps.lrs}
    assert len(want)==4*5 and len(set(want.values()))==20
    got = learn.steps.lrs
    assert all(want[e,i]==lr for e,i,lr in got)
    assert {e for e,_,_ in got}=={0, 1, 2, 3} and (len(got)<20)==kw.get('queue', True)

def test_history_is_the_last_losses():
    for history in 1,30,1000:
        cb = SelectiveBackprop(1., history=history)
        fit(sb_learner(cbs=cb))
        flat = np.concatenate(cb.record.losses)
        assert len(flat)==4*70 and cb.memory['history'].tolist()==flat[-history:].tolist()

def test_losses_that_are_not_finite_do_not_enter_the_history():
    def lf(p, y, reduction='mean'):
        l = F.cross_entropy(p, y, reduction='none')
        l = torch.where(torch.arange(len(l))==3, l.detach()*math.nan if len(l)==6 else l, l) # the last batch of 70 has 6
        return l.mean() if reduction=='mean' else l
    learn = make_learner(dls=lambda: loaders(*numbered()), model=lambda: Known(bn_net()), loss_func=lf, metrics=None, cbs=SelectiveBackprop(queue=False))
    with warnings.catch_warnings(record=True):
        warnings.simplefilter('always')
        learn.fit(2, 0.)
    b = learn.selection.batches
    assert b.finite.astype(bool).tolist()==[True]*4+[False]+[True]*4+[False] and b.n_kept.iloc[-1]==6 # whole; the first of them trained plainly
    assert len(learn.selection.memory['history'])==2*64 and learn.selection.memory['history'].isfinite().all()

@pytest.mark.parametrize('kw', [dict(), dict(stale=1), dict(beta=SchedCos(.5, 3.))], ids=case)
def test_resumed_training_is_the_uninterrupted_one(kw):
    "History, last losses, generator and all: two epochs, a new learner, and two more."
    whole = fit(sb_learner(cbs=SelectiveBackprop(**kw)))
    class Stop(Callback):
        def before_epoch(self):
            if self.epoch==2: raise CancelFitException
    first = fit(sb_learner(cbs=[SelectiveBackprop(**kw), Stop()]))
    saved = first.selection.state_dict()
    second = sb_learner(cbs=SelectiveBackprop(**kw), seed=5)
    second.create_opt()
    second.model.load_state_dict(first.model.state_dict())
    second.opt.opt.load_state_dict(first.opt.opt.state_dict())
    second.selection.load_state_dict(saved)
    fit(second, start_epoch=2)
    for (k,x),y in zip(whole.model.state_dict().items(), second.model.state_dict().values()): assert torch.equal(x, y), k
    assert second.selection.memory['history'].tolist()==whole.selection.memory['history'].tolist()

def test_settings_move_in_mid_training():
    class Move(Callback):
        order,run_valid = 99,False
        def after_batch(self):
            if (self.epoch, self.iter)==(1, 2): self.learn.selection.set(beta=0.)
            if (self.epoch, self.iter)==(2, 4): self.learn.selection.set(stale=1)
    learn = fit(sb_learner(cbs=[SelectiveBackprop(50., queue=False), Move()]), 5)
    b = learn.selection.batches
    assert b.beta.tolist()==[50.]*8+[0.]*17 and b.stale.tolist()==[0]*15+[1]*10
    assert (b.n_kept[5:8]<b.n_seen[5:8]).all() and (b.n_kept[8:]==b.n_seen[8:]).all()
    # losses are noted while stale is set, so the fourth epoch scores, and the fifth reuses
    assert b.groupby('epoch').n_scored.sum().tolist()==[0, 70, 70, 70, 0]
    assert learn.selection.record.changes[['epoch','batch','setting','old','new']].values.tolist()==[[1, 8, 'beta', 50., 0.], [2, 15, 'stale', 0., 1.]]

def test_plain_batches_between_keep_the_steps_full():
    "With `interrupt`, every other batch is kept whole; it passes through the queue, too."
    learn = fit(sb_learner(cbs=[SelectiveBackprop(2., interrupt=2), Steps(), Told()]))
    for e in range(1, 4):
        sizes = [len(ids) for epoch,_,ids in learn.steps.trained if epoch==e]
        assert set(sizes[:-1])<={sb_bs} and 0<sizes[-1]<=sb_bs+1
        trained = sum((ids for epoch,_,ids in learn.steps.trained if epoch==e), [])
        seen = [learn.told.all[e,i][0] for i in range(5)]
        picked = learn.steps.picked[3*(e-1):3*e] # of the first, third and fifth batch
        assert sorted(trained)==sorted(sum(picked, [])+seen[1]+seen[3])

@pytest.mark.parametrize('kw', [dict(), dict(sample_perc=.3, start=0., end=1., interrupt=0), dict(start=.25, end=.75, interrupt=3), dict(sample_perc=1., start=0.)], ids=case)
def test_rank_variant_against_a_loop_without_callback(kw):
    learn = fit(sb_learner(cbs=[RankSelectiveBackprop(**kw, plain_every=0), Steps()]))
    ref = sb_learner()
    share,start,end,interrupt = (kw.get(k, v) for k,v in dict(sample_perc=.5, start=.5, end=.9, interrupt=2).items())
    model,opt = ref.model,torch.optim.SGD(ref.model.parameters(), lr=sb_lr, momentum=.9)
    before = torch.get_rng_state()
    g = torch.Generator().manual_seed(int(torch.randint(2**62, (1,))))
    torch.set_rng_state(before)
    steps = []
    for epoch in range(4):
        pct = epoch/4
        model.train()
        for i,(x,y) in enumerate(ref.dls.train):
            for o in opt.param_groups: o['lr'] = sb_rate(pct)
            pct += 1/20
            if composer_is_on((5*epoch+i)/20, i, start, end, interrupt):
                before = torch.get_rng_state()
                model.eval()
                with torch.no_grad(): losses = F.cross_entropy(model(x), y, reduction='none')
                model.train()
                torch.set_rng_state(before)
                if share<1:
                    idxs = rank_draw(losses, share, g).idxs # its chances are tested above
                    assert len(idxs)==math.ceil(len(x)*share)
                    x,y = x[idxs],y[idxs]
            F.cross_entropy(model(x), y).backward()
            opt.step(); opt.zero_grad()
            steps.append((epoch, i, numbers(x)))
        for _ in ref.dls.valid: pass
    assert learn.steps.trained==steps
    for (k,x),y in zip(ref.model.state_dict().items(), learn.model.state_dict().values()): assert torch.equal(x, y), k

@pytest.mark.parametrize('factor', [.5, .75, 1.])
def test_smaller_images_for_scoring_only(factor):
    g = torch.Generator().manual_seed(0)
    ds = Rows(torch.randn(48, 1, 8, 8, generator=g), torch.randint(0, 3, (48,), generator=g))
    shapes = set()
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
        def forward(self, x):
            if not tries_out(learn): shapes.add((self.training, x.shape[-1]))
            return self.body(x)
    learn = None
    learn = make_learner(dls=lambda: loaders(ds, Rows(*(o[:0] for o in ds.ts))), model=Net, metrics=None, cbs=RankSelectiveBackprop(start=0., interrupt=0, end=1., scale_factor=factor))
    with learn.no_logging(): learn.fit(1)
    assert shapes=={(True, 8), (False, int(8*factor))}
    assert (learn.selection.batches.n_kept==8).all()

# ---- bad input

def one_sentence(e, *parts):
    msg = str(e.value)
    assert '\n' not in msg and '. ' not in msg and all(o in msg for o in parts), msg

@pytest.mark.parametrize('name,val', [('beta', -.1), ('beta', float('nan')), ('beta', float('inf')), ('beta', 'two'), ('beta', None), ('beta', True),
    ('beta', SchedLin(1., -1.)), ('beta', lambda pct: 'no'), ('history', 0), ('history', 2.5), ('history', True), ('history', None), ('stale', -1),
    ('stale', .5), ('stale', True), ('stale', None), ('stale', SchedLin(0., 1.)), ('warmup', -1), ('warmup', 'one'), ('queue', 1)])
def test_bad_settings(name, val):
    with pytest.raises(ValueError) as e: SelectiveBackprop(**{name: val})
    one_sentence(e, name, 'give')
    if not callable(val): assert repr(val) in str(e.value)
    learn = sb_learner(cbs=SelectiveBackprop())
    if name in ('beta','stale'):
        with pytest.raises(ValueError) as e: learn.selection.set(**{name: val})
        one_sentence(e, name, 'give')
        assert (learn.selection.beta, learn.selection.stale)==(1., 0)
    before = state(learn)
    setattr(learn.selection, name, val) # past every check: the fit asks again
    if name!='history':
        with pytest.raises(ValueError) as e: fit(learn, 1)
        assert all(torch.equal(v, state(learn)[k]) for k,v in before.items()) and len(learn.selection.batches)==0

@pytest.mark.parametrize('name,val', [('sample_perc', 0), ('sample_perc', 0.), ('sample_perc', 1.1), ('sample_perc', 'half'), ('sample_perc', None), ('sample_perc', True),
    ('start', -1), ('start', 2), ('start', .95), ('end', 1.5), ('end', .3), ('interrupt', -1), ('interrupt', 1.5), ('scale_factor', 0), ('scale_factor', 1.5), ('scale_factor', 'x')])
def test_bad_settings_of_the_rank_variant(name, val):
    with pytest.raises(ValueError) as e: RankSelectiveBackprop(**{name: val})
    one_sentence(e, name, 'give', repr(val))
    learn = sb_learner(cbs=RankSelectiveBackprop())
    if name=='sample_perc':
        with pytest.raises(ValueError): learn.selection.set(sample_perc=val)
        assert learn.selection.sample_perc==.5
    learn.selection.set(sample_perc=SchedLin(1., 0.)) # a schedule may touch 0
    fit(learn, 1)

def test_unknown_setting():
    with pytest.raises(ValueError, match='beta=2 is no setting of SB-rank: it has sample_perc'): RankSelectiveBackprop().set(beta=2)
    with pytest.raises(ValueError, match='sample_perc=0.2 is no setting of SB: it has beta, stale'): SelectiveBackprop().set(sample_perc=.2)

def test_a_loader_that_does_not_tell():
    "With stale, samples have to be recognised; PyTorch's own loader does not say which they are."
    train,valid = numbered()
    def dls(): return DataLoaders(torch.utils.data.DataLoader(train, sb_bs, shuffle=True), torch.utils.data.DataLoader(valid, sb_bs), device='cpu')
    learn = make_learner(dls=dls, model=lambda: Known(bn_net()), metrics=None, cbs=SelectiveBackprop(stale=1))
    with pytest.raises(ValueError, match='tell which samples'): learn.fit(1)
    learn = make_learner(dls=dls, model=lambda: Known(bn_net()), metrics=None, cbs=SelectiveBackprop()) # without, nobody asks
    learn.fit(2)
    assert learn.selection.epochs.n_kept[1]<70

# ---- small batches: each sample by its own chance

@pytest.mark.parametrize('bs', [1, 3])
def test_small_batches_keep_each_sample_by_its_own_chance(bs):
    """At a learning rate of 0 the losses stay, and a history of one epoch holds each of them once: the sample of rank r of n is kept with
    probability (r/n)^beta, in batches of any size. Counted over 40 epochs, against the binomial distribution."""
    n,epochs,beta = 16,40,1.
    train,_ = blobs(n)
    torch.manual_seed(0)
    net = nn.Linear(6, 3)
    losses = F.cross_entropy(net(train.ts[0]), train.ts[1], reduction='none').detach()
    p = np.array([(losses<o).sum().item()/n for o in losses])**beta
    learn = make_learner(dls=loaders(train, Rows(*[o[:1] for o in train.ts]), bs=bs, shuffle=False), model=net, metrics=None, opt_func=SGD,
                         cbs=[SelectiveBackprop(beta, history=n, warmup=1, plain_every=0), Trained()])
    learn.fit(epochs+1, 0.) # in the first epoch the history fills
    number = {x.item(): i for i,x in enumerate(train.ts[0][:,0])}
    steps = [number[o] for s in learn.trained.steps for o in s][n:]
    hits = np.bincount(steps, minlength=n)
    assert (abs(hits-epochs*p)<=sigmas*np.sqrt(epochs*p*(1-p))).all()
    assert hits[losses.argmin()]==0 # no loss is lower: it is never kept
    total,var = epochs*p.sum(),epochs*(p*(1-p)).sum()
    assert abs(len(steps)-total)<=sigmas*var**.5 and abs(total/(epochs*n)-.5)<.04
    assert learn.selection.batches.n_kept.sum()==n+len(steps)

def test_a_batch_that_keeps_none():
    "Takes no step, and is in the record with none kept; without a queue one is always kept."
    class Never(SelectiveBackprop):
        def draw(self, scores, beta, **_): return independent_draw(scores, torch.zeros(len(scores)), self.gen, least=0 if self.queue else 1)
    for queue in (True, False):
        learn = make_learner(cbs=[Never(warmup=0, queue=queue), Trained()], model=lambda: nn.Linear(6, 3))
        before = state(learn)
        learn.fit(2)
        assert learn.selection.batches.n_kept.tolist()==[0 if queue else 1]*12 and len(learn.trained.steps)==(0 if queue else 12)
        if queue: assert all(torch.equal(v, before[k]) for k,v in learn.model.state_dict().items())
