"The package's rules beside independent ones: the same samples, or the same chances."
import numpy as np
import pytest, torch
from torch import nn
from blf_explore.all import (grad_norm_bound, hardest, ImportanceSampling, infobatch_keep, keep_probability, rank_draw, RHOLoss, select, seta_keep, tau, tau_threshold,
                             TauSwitch, When)
from blf_explore.pfb import Centres, rarity
from core_tools import gen
import peer_rules as peer

SEEDS = range(20)
def losses_of(seed, n=48): return torch.distributions.Exponential(1.).sample((n,)) if seed is None else -torch.rand(n, generator=gen(seed)).log()

@pytest.mark.parametrize('loss_perc', [.3, .7, .9, .99])
def test_blf_and_tsai(loss_perc):
    "tsai leaves out the sample that crosses the line; ours has it. So ours is theirs and one more."
    for seed in SEEDS:
        l = losses_of(seed)
        a,b = select(l, loss_perc).idxs.tolist(),peer.tsai_blf(l, loss_perc).tolist()
        assert a[:-1]==b or (len(b)==1 and a==b) # where the first crosses it, theirs keeps that one all the same

@pytest.mark.parametrize('share', [.02, .1, .25, .5, 1.])
def test_hardest_and_rho(share):
    for seed in SEEDS:
        l,h = losses_of(seed),losses_of(seed+100)
        assert hardest(l, share).idxs.tolist()==peer.ohem(l, share).tolist()
        cb = RHOLoss(h, share)
        cb.ids = torch.arange(len(l))
        ours = cb.selector(cb.adjust(l), sample_perc=share).idxs
        assert set(ours.tolist())==set(peer.rho(l, h, share).tolist())

@pytest.mark.parametrize('beta', [0., 1., 2., 3.3])
def test_selective_backprop_chances(beta):
    "Batch after batch, with a history that runs over."
    theirs,history = peer.SBChances(beta, 100),torch.zeros(0)
    for seed in SEEDS:
        l = losses_of(seed)
        history = torch.cat([history, l])[-100:]
        np.testing.assert_allclose(keep_probability(l, history, beta).numpy(), theirs(l), rtol=1e-6)

def same_chances(a, b, n):
    "Counts of n draws each: apart by less than 5 standard errors, in every place; by chance once in 10,000 tests of 16 places."
    p = (a+b)/(2*n)
    assert ((a-b).abs()<=5*(2*n*p*(1-p)).sqrt()+1).all(), (a, b)

@pytest.mark.parametrize('keep', [.25, .5])
def test_composer(keep):
    l,n,rng,g = losses_of(3, 16),1500,np.random.default_rng(0),gen(0)
    a,b = torch.zeros(16),torch.zeros(16)
    for _ in range(n):
        a[rank_draw(l, keep, g).idxs] += 1
        b[torch.from_numpy(peer.composer_draw(l, keep, rng))] += 1
    same_chances(a, b, n)
    assert a.sum()==b.sum()==n*16*keep and a[l.argmax()]>1.5*a[l.argmin()]

def test_composer_when():
    w = When(start=.5, end=.9, interrupt=2)
    for e in range(4):
        for i in range(7): assert w(e, i, 4, 7)==peer.composer_is_on((e*7+i)/28, i)

def test_importance():
    z,y = torch.randn(16, 5, generator=gen()),torch.randint(0, 5, (16,), generator=gen(1))
    s = grad_norm_bound(nn.CrossEntropyLoss(), z, y)
    torch.testing.assert_close(s, peer.bound(z, y))
    assert tau(s)==pytest.approx(peer.Tau.of(s), rel=1e-6)
    cb,n = ImportanceSampling(.5),1500
    cb.gen.manual_seed(0); torch.manual_seed(0)
    a,b = torch.zeros(16),torch.zeros(16)
    for _ in range(n):
        sel,(i,w) = cb.draw(s, .5),peer.kath_draw(s, 8)
        a.index_add_(0, sel.idxs, torch.ones(8)); b.index_add_(0, i, torch.ones(8))
    same_chances(a/8, b/8, n) # of 8 draws each
    order = sel.idxs.argsort()
    torch.testing.assert_close(sel.weights[order].float(), (s.mean()/s[sel.idxs[order]]).float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(w, s.mean()/s[i])

def test_tau_switch():
    ours,theirs = TauSwitch(),peer.Tau()
    cb = ImportanceSampling(1/3)
    state,th = ours.start(),[]
    for seed in SEEDS:
        s = losses_of(seed)**3
        state = ours.update(state, s, cb)
        theirs.see(s)
        assert state==pytest.approx(theirs.mean, rel=1e-5)
        th.append((state>tau_threshold(48, 16), theirs.is_on(48, 16)))
    assert all(a==b for a,b in th) and len(set(th))==2 # and it switches

@pytest.mark.parametrize('r', [.2, .5, .8])
def test_infobatch(r):
    "Ours draws sample by sample, the authors an exact share: the same samples may go, the same weights, the same chances."
    n = 500
    theirs,l,g = peer.InfoBatchSampler(32, 10, r),losses_of(5, 32),gen(0)
    theirs.note(torch.arange(32), l)
    a,b = torch.zeros(32),torch.zeros(32)
    for _ in range(n):
        sel = infobatch_keep(l, l.double().mean().item(), r, g)
        i = theirs.epoch(2)
        a[sel.idxs] += 1; b[i] += 1
        w = torch.zeros(32); w[sel.idxs] = sel.weights.float()
        both = [o for o in i.tolist() if w[o]>0]
        torch.testing.assert_close(w[both], theirs.weights[both])
    low = l<l.mean()
    low_n = int(low.sum())
    assert (a[~low]==n).all() and (b[~low]==n).all()
    exact = round(low_n*(1-r))/low_n # theirs is rounded to whole samples, which ours need not be
    same_chances(a[low]*exact/(1-r), b[low], n)
    assert [len(theirs.epoch(e))==32 for e in (7, 8, 9)]==[False, True, True] # 10 epochs: the last two, as e+1 > 8.75

@pytest.mark.parametrize('window', [.4, .9])
def test_seta(window):
    "Losses in five heaps, each wider apart than wide: both find the heaps, and the same window of them, epoch after epoch; of each heap a like share."
    l = torch.cat([3.*k+torch.rand(20, generator=gen(k)) for k in range(5)])
    heap = torch.arange(5).repeat_interleave(20)
    theirs,g = peer.SeTaSampler(100, 20, .1, 5, window),gen(0)
    assert len(theirs.epoch(0))==90
    theirs.note(torch.arange(100), l)
    for e in range(1, 17):
        ours,i = seta_keep(l, e, .1, 5, window, g).idxs,theirs.epoch(e)
        assert set(heap[ours].tolist())==set(heap[i].tolist()) and len(i.unique())==len(i)
        assert abs(len(ours)-len(i))<=20 # each leaves out 10 of all 100 at random: apart by 20 at the most
    assert len(theirs.epoch(17))==90 # 20 epochs: no window in the last ones, as e+1 > 17.5

def test_bls():
    "The running mean of the batch losses, by hand: .3 of the old and .7 of the new; the first one counts whole."
    theirs = peer.BLSSampler(6, 10)
    theirs.note(torch.tensor([0,1,2]), torch.tensor([1.,2,3]))
    theirs.note(torch.tensor([2,3]), torch.tensor([5.,7]))
    torch.testing.assert_close(theirs.scores[:4], torch.tensor([2.,2,.3*2+.7*6,6]))

@pytest.mark.parametrize('most', [10, 40])
def test_pfb(most):
    "The same samples, batch after batch, from centres that moved the same way."
    theirs,c = peer.PFBDensity(most),None
    for seed in SEEDS:
        x,alpha = torch.randn(32, 6, generator=gen(seed)).double(),.01*torch.rand(32, generator=gen(seed+50)).double()
        first = c is None
        if first: c = Centres.of(x, most)
        ours = rarity(c.log_density(x), alpha).argsort(descending=True)[:13]
        c = Centres.of(x[ours], most) if first else c.updated(x[ours], most)
        assert ours.tolist()==theirs.keep(x, 13, alpha).tolist()
        torch.testing.assert_close(c.at, theirs.c); torch.testing.assert_close(c.counts.float(), theirs.w.float())
    assert len(c.at)==most and c.counts.sum()>most
