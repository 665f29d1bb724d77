"""The published rules, written from the papers and from what the authors' code is known to do, in plain PyTorch and NumPy.

Nothing here calls `blf_explore`: `test_peers.py` compares the package's rules with these, `benchmarks/peers.py` trains with both."""
import math
from collections import deque
import numpy as np
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

def tsai_blf(losses, loss_perc):
    "tsai 1.0.1, tsai/callback/experimental.py: up to the sample that crosses the line, without it, but at least one."
    share = (losses/losses.sum()).sort(descending=True)
    cut = int((share.values.cumsum(0)>loss_perc).float().argmax())
    return share.indices[:max(1, cut)]

def ohem(losses, share):
    "Shrivastava et al. 2016: the highest losses of the batch."
    return losses.topk(math.ceil(round(len(losses)*share, 6))).indices

class SBChances:
    "Jiang et al. 2019: (share of the last losses below this one)^beta, the batch's own among them."
    def __init__(self, beta=1., history=1024): self.beta,self.seen = beta,deque(maxlen=history)
    def __call__(self, losses):
        losses = losses.cpu().numpy()
        self.seen.extend(losses.tolist())
        past = np.sort(np.fromiter(self.seen, np.float32))
        return (np.searchsorted(past, losses)/len(past))**self.beta

def composer_draw(losses, keep, rng):
    "mosaicml/composer, `select_using_loss`: by rank, without replacement."
    n = len(losses)
    order = losses.argsort().cpu().numpy() # easiest first
    p = (np.arange(.5, n)/n)**(1/keep-1)
    return order[rng.choice(n, int(keep*n), replace=False, p=p/p.sum())]

def composer_is_on(done, i, start=.5, end=.9, interrupt=2):
    "When it selects: within the interval, and not at every `interrupt`-th batch of an epoch."
    return start<=done<end and (not interrupt or (i+1)%interrupt!=0)

def bound(z, y):
    "Katharopoulos and Fleuret 2018, eq. 20, for cross-entropy: the norm of softmax(z) - onehot(y)."
    p = z.softmax(1)
    p[torch.arange(len(y)), y] -= 1
    return p.norm(dim=1)

def kath_draw(scores, b):
    "With replacement, in proportion to the scores; the weights make the weighted mean right on average."
    p = scores/scores.sum()
    i = torch.multinomial(p, b, replacement=True)
    return i,1/(len(p)*p[i])

class Tau:
    "Eq. 26 as a running mean, and the threshold of eq. 29."
    def __init__(self, momentum=.9): self.mean,self.momentum = 0.,momentum
    @staticmethod
    def of(scores):
        g = scores.double()/scores.double().sum()
        u = 1/len(g)
        return float(1/(1-((g-u)**2).sum()/(g**2).sum()).sqrt())
    def see(self, scores): self.mean = self.momentum*self.mean + (1-self.momentum)*self.of(scores)
    def is_on(self, n, b): return self.mean>(n+3*b)/(3*b)

class InfoBatchSampler:
    """NUS-HPC-AI-Lab/InfoBatch: at the start of an epoch an exact share `r` of the samples below the mean of the last losses is left out;
    those kept of them weigh 1/(1-r); all are back for the last 1-delta of the epochs."""
    def __init__(self, n, n_epoch, r=.5, delta=.875, seed=0):
        self.scores,self.weights = torch.full((n,), 3.),torch.ones(n)
        self.stop,self.r,self.rng = n_epoch*delta,r,np.random.default_rng(seed)
    def epoch(self, e):
        "Positions to train on, shuffled; e counts from 0."
        self.weights.fill_(1.)
        s = self.scores.numpy()
        low = s<s.mean(dtype=np.float64)
        if e+1>self.stop or not low.any(): return torch.from_numpy(self.rng.permutation(len(s)))
        easy = low.nonzero()[0]
        some = self.rng.choice(easy, int(round(len(easy)*(1-self.r))), replace=False)
        self.weights[some] = 1/(1-self.r)
        return torch.from_numpy(self.rng.permutation(np.concatenate([(~low).nonzero()[0], some])))
    def note(self, ids, losses): self.scores[ids] = losses.float()

class BLSSampler(InfoBatchSampler):
    "Batch Loss Score: the same, of a running mean of the losses of the batches that a sample was in."
    def __init__(self, n, n_epoch, r=.5, delta=.875, alpha=.7, seed=0):
        super().__init__(n, n_epoch, r, delta, seed)
        self.alpha,self.seen = alpha,torch.zeros(n, dtype=torch.bool)
    def note(self, ids, losses):
        m = losses.float().mean()
        self.scores[ids] = torch.where(self.seen[ids], (1-self.alpha)*self.scores[ids]+self.alpha*m, m)
        self.seen[ids] = True

class SeTaSampler:
    """mrazhou/SeTa: a share `prune` is left out at random; the rest is grouped by its last losses (k-means, here by Lloyd's steps from
    quantiles); a window of round(groups*window) groups moves from easy to hard by one an epoch; the last 1-delta of the epochs have no window."""
    def __init__(self, n, n_epoch, prune=.1, groups=5, window=.9, delta=.875, seed=0):
        self.scores,self.stop,self.rng = torch.full((n,), math.nan),n_epoch*delta,np.random.default_rng(seed)
        self.weights,self.prune,self.groups,self.wide = torch.ones(n),prune,groups,max(1, round(groups*window))
    def labels(self, x):
        "The group of each, from 0 for the easiest."
        c = np.quantile(x, (np.arange(self.groups)+.5)/self.groups)
        for _ in range(100):
            near = np.abs(x[:,None]-c).argmin(1)
            new = np.array([x[near==k].mean() if (near==k).any() else c[k] for k in range(self.groups)])
            if np.allclose(new, c, rtol=0, atol=1e-9): break
            c = new
        return np.argsort(np.argsort(c))[near]
    def epoch(self, e):
        "Positions to train on, shuffled; e counts from 0."
        n = len(self.scores)
        some = self.rng.permutation(n)[:int(round(n*(1-self.prune)))]
        if e==0 or e+1>self.stop: return torch.from_numpy(some)
        known = some[~np.isnan(self.scores.numpy()[some])]
        new,label = np.setdiff1d(some, known),self.labels(self.scores.numpy()[known].astype(np.float64))
        first = e%(self.groups-self.wide+1)
        return torch.from_numpy(self.rng.permutation(np.concatenate([new, known[(label>=first)&(label<first+self.wide)]])))
    def note(self, ids, losses): self.scores[ids] = losses.float()

def rho(losses, holdout, share):
    "Mindermann et al. 2022: the highest of loss less holdout loss."
    return (losses-holdout).topk(math.ceil(round(len(losses)*share, 6))).indices

class PFBDensity:
    """Wu et al. 2025 as a published summary gives it: 100 weighted Gaussian kernels with Silverman's bandwidth, moved by what was kept;
    importance 1/(f + alpha max f), alpha up to .01, here one for each sample."""
    def __init__(self, n_centres=100, beta=.01): self.n,self.beta,self.c = n_centres,beta,None
    def h(self): return self.c.std(0)*(4/((self.c.shape[1]+2)*len(self.c)))**(1/(self.c.shape[1]+4))
    def log_f(self, x):
        if self.c is None: self.c,self.w = x[:self.n],torch.ones(min(len(x), self.n), device=x.device)
        bells = Independent(Normal(self.c, self.h().clamp(min=1e-6).expand_as(self.c)), 1)
        return MixtureSameFamily(Categorical(self.w), bells, validate_args=False).log_prob(x)
    def keep(self, x, k, alpha):
        self.new = self.c is None
        f = self.log_f(x).double().exp()
        i = (1/(f+alpha.to(f)*f.max())).topk(k).indices
        self.move(x[i])
        return i
    def move(self, x):
        if self.new: self.c,self.w = x[:self.n],torch.ones(min(len(x), self.n), device=x.device); return
        room = self.n-len(self.c)
        self.c,self.w = torch.cat([self.c, x[:room]]),torch.cat([self.w, self.w.new_ones(len(x[:room]))])
        x,h = x[room:],self.h().clamp(min=1e-6)
        if not len(x): return
        near = torch.cdist(x/h, self.c/h).argmin(1)
        for j in near.unique():
            mine = x[near==j]
            self.c[j] += self.beta*(mine.mean(0)-self.c[j])
            self.w[j] += len(mine)
