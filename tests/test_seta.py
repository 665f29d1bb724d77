"SeTa's window against the authors' own and by brute force, its groups, and its training against a loop."
import math
import pytest, torch
from fastai.callback.schedule import SchedLin
from blf_explore import seta
from blf_explore.seta import SeTa, seta_groups, seta_keep, seta_window
from core_tools import *

# first and last group in the epochs 0 to 7: what `slide_easy2hard` of mrazhou/SeTa (seta.py) gave for these settings
AUTHORS = {(5, .9): [(0, 4), (1, 4), (0, 3), (1, 4), (0, 3), (1, 4), (0, 3), (1, 4)],
           (10, .5): [(0, 9), (1, 5), (2, 6), (3, 7), (4, 8), (5, 9), (0, 4), (1, 5)],
           (5, .5): [(0, 4), (1, 2), (2, 3), (3, 4), (0, 1), (1, 2), (2, 3), (3, 4)],
           (4, 1.): [(0, 3)]*8, (1, 1.): [(0, 0)]*8}

@pytest.mark.parametrize('groups,window', AUTHORS)
def test_window_as_published(groups, window):
    assert [(o[0], o[-1]) for o in (seta_window(groups, window, i) for i in range(8))]==AUTHORS[groups, window]

@pytest.mark.parametrize('groups', [1, 2, 5, 8, 13])
def test_window_by_brute_force(groups):
    "All positions in turn, one step an epoch, and again from the easy end: listed, not computed with a remainder."
    for window in (.01, .3, .5, .9, 1.):
        n = max(1, round(groups*window))
        places = [list(range(a, a+n)) for a in range(groups) if a+n<=groups]
        at,want = 0,[list(range(groups))]
        for _ in range(30):
            at = at+1 if at+1<len(places) else 0
            want.append(places[at])
        assert [list(seta_window(groups, window, i)) for i in range(31)]==want

def test_groups_by_hand():
    l = torch.tensor([5.1, .1, 3., .2, 5., .15, 3.1])
    assert [o.tolist() for o in seta_groups(l, 3)]==[[1, 3, 5], [2, 6], [0, 4]]
    assert [o.tolist() for o in seta_groups(torch.ones(5), 2)]==[[0, 1, 2], [3, 4]] # equal losses: equal parts
    assert [o.tolist() for o in seta_groups(torch.tensor([1., 2., 1.]), 5)]==[[0, 2], [1]] # no more groups than losses
    assert seta_groups(torch.tensor([1.]), 5)[0].tolist()==[0]

@pytest.mark.parametrize('seed', range(4))
def test_groups_are_neighbours(seed):
    "Every sample is once in a group, groups follow each other by loss, and each sample is nearest to its own group's mean: what k-means ends with."
    l = torch.rand(400, generator=gen(seed)).pow(3)*4
    parts = seta_groups(l, 6)
    assert sorted(i for o in parts for i in o.tolist())==list(range(400)) and len(parts)==6
    assert all(l[a].max()<l[b].min() for a,b in zip(parts, parts[1:]))
    means = torch.stack([l[o].double().mean() for o in parts])
    for k,o in enumerate(parts): assert ((l[o,None].double()-means).abs().argmin(1)==k).all()

def brute(l, i, prune, groups, window, g):
    "By sets and lists."
    order = torch.randperm(len(l), generator=g).tolist()
    drawn = order[:max(1, math.floor(round(len(l)*(1-prune), 6)))]
    new = [o for o in drawn if math.isnan(l[o])]
    known = [o for o in drawn if not math.isnan(l[o])]
    if i is None or len(known)<=groups: return sorted(drawn)
    parts = [[known[j] for j in o.tolist()] for o in seta_groups(l[known], groups)]
    first,n = 0,len(parts)
    if i>0:
        n = max(1, round(len(parts)*window))
        for _ in range(i): first = first+1 if first+n<len(parts) else 0
    return sorted(new+sum(parts[first:first+n], []))

@pytest.mark.parametrize('prune,groups,window', [(.1, 5, .9), (0., 4, .5), (.5, 10, .3), (.9, 3, .34)])
def test_keep_by_brute_force(prune, groups, window):
    for n in (1, 7, 60):
        for i in (None, 0, 1, 2, 3, 8):
            l = torch.rand(n, generator=gen(n)).pow(2)*3
            l[::5] = math.nan
            sel = seta_keep(l, i, prune, groups, window, gen(4))
            assert sel.weights is None and sel.idxs.tolist()==brute(l, i, prune, groups, window, gen(4)) and len(sel.idxs)>=1
    before = random_states()
    seta_keep(torch.rand(9, generator=gen()), 1, gen=gen())
    assert random_states()==before

class Seeded(SeTa):
    def begin(self): self.gen.manual_seed(11)

@pytest.mark.parametrize('prune,groups,window,delta', [(.1, 5, .6, .8), (0., 3, .34, 1.), (.3, 4, .5, .5)])
def test_seta_against_a_loop(prune, groups, window, delta):
    "Without any callback: the same samples in the same steps, the same parameters to rounding; the last epochs take a random share."
    def new(cbs=None): return make_learner(dls=lambda: numbered_dls(), model=lambda: Ignores(bare()), opt_func=SGD, cbs=cbs)
    a,steps = new(Seeded(prune, groups, window, delta)),[]
    class Note(Callback):
        order,run_valid = 56,False
        def before_step(self): steps.append(self.learn.xb[1].tolist())
    a.fit(5, .1, cbs=Note())
    b,g,want,last = new(),gen(11),[],torch.full((90,), math.nan)
    xs,_,ys = b.dls.train_ds.ts
    kept = []
    for epoch in range(5):
        order = [i for _,ids,_ in b.dls.train for i in ids.tolist()]
        stays = set(brute(last, None if epoch+1>5*delta else epoch, prune, groups, window, g))
        kept.append(len(stays))
        ids = [i for i in order if i in stays]
        if len(ids)%16==1: ids.append(next(i for i in order if i not in stays))
        for k in range(0, len(ids), 16):
            part = ids[k:k+16]
            losses = F.cross_entropy(b.model(xs[part], None), ys[part], reduction='none')
            losses.mean().backward()
            with torch.no_grad():
                for p in b.model.parameters(): p -= .1*p.grad; p.grad = None
            last[part] = losses.detach()
            want.append(part)
    assert steps==want
    for (k,p),q in zip(a.model.state_dict().items(), b.model.state_dict().values()): torch.testing.assert_close(p, q, atol=2e-6, rtol=1e-4)
    e = a.selection.epochs
    assert e.n_seen.tolist()==[90]*5 and (e.n_kept-kept).between(0, 1).all() and a.selection.batches.n_scored.sum()==0
    assert kept[0]==math.floor(round(90*(1-prune), 6)) and min(kept)<90*(1-prune)-5

@pytest.mark.parametrize('kw', [dict(prune=0, window=1), dict(prune=0, delta=0), dict(warmup=3)])
def test_seta_of_all_is_plain(kw): assert_same(state(fitted(3, cbs=SeTa(**kw))), state(fitted(3)))

def test_settings():
    for bad in (1, -.1, None, 'x', True, SchedLin(0., 1.)): says(lambda: SeTa(bad), 'prune=', 'give')
    for bad in (0, 2.5, True, None): says(lambda: SeTa(groups=bad), 'groups=', 'give a whole number of at least 1')
    for bad in (0, 1.1, None): says(lambda: SeTa(window=bad), 'window=', 'give')
    for bad in (1.5, None): says(lambda: SeTa(delta=bad), 'delta=', 'give')
    says(lambda: seta_keep(torch.zeros(0), 1), 'losses is empty'); says(lambda: seta_keep(torch.ones(3), 1, 1.), 'prune=')
    learn = make_learner(cbs=SeTa())
    says(lambda: learn.selection.set(groups=0), 'groups=0'); says(lambda: learn.selection.set(beta=1), 'no setting of SeTa')
    class Set(Callback):
        run_valid = False
        def before_batch(self):
            if self.epoch==1 and self.iter==1: self.learn.selection.set(prune=.8)
    learn.fit(4, cbs=Set())
    b = learn.selection.batches
    assert b.groupby('epoch').prune.agg(['min','max']).to_numpy().tolist()==[[.1, .1]]*2+[[.8, .8]]*2 # from the next epoch on
    assert learn.selection.epochs.n_kept[2]<20

def test_export_and_load(tmp_path): exports_and_loads(SeTa, tmp_path)

def test_record(): has_a_record(SeTa, 'SeTa')

def test_all_has_them():
    import blf_explore.all as a
    for o in ('seta_window','seta_groups','seta_keep','SeTa'): assert getattr(a, o) is getattr(seta, o)
