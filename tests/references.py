"What the tests are compared with: rules by brute force, training loops written by hand, peers' rules."
import contextlib, copy, itertools, math, random
import torch
import torch.nn.functional as F
from fastai.callback.mixup import MixUp
from fastai.callback.schedule import SchedCos
from torch import nn
from blf_explore.all import Selection
from blf_explore.engine.losses import per_sample_loss

def brute_blf(losses, loss_perc, sample_perc):
    "FACTS' rule in plain Python: positions, hardest first."
    losses = [float(o) for o in losses]
    order = sorted(range(len(losses)), key=lambda i: -losses[i]) # stable
    total = 0.
    for i in order: total += losses[i]
    if loss_perc==1: m = len(losses)
    else:
        m,mass = 0,0.
        while mass < loss_perc*total:
            mass += losses[order[m]]
            m += 1
    return order[:max(1, m, math.ceil(len(losses)*sample_perc))]

def reference_fit(learn, n_epoch, pick, lr=None, loss_one=None):
    """Train `learn`'s model by a hand-written loop: score in eval mode without gradients, `pick(losses, pct)` the rows, train on them.
    Returns the positions picked, batch by batch."""
    model,lf = learn.model,learn.loss_func
    loss_one = loss_one or (lambda p, y: torch.stack([lf(p[i:i+1], y[i:i+1]) for i in range(len(y))]))
    if learn.opt is None: learn.create_opt()
    if learn.wd is not None: learn.opt.set_hypers(wd=learn.wd)
    learn.opt.set_hypers(lr=learn.lr if lr is None else lr)
    picked,pct = [],0.
    for epoch in range(n_epoch):
        pct = epoch/n_epoch
        model.train()
        for x,y in learn.dls.train:
            before = torch.get_rng_state(),random.getstate()
            model.eval()
            with torch.no_grad(): losses = loss_one(model(x), y)
            model.train()
            torch.set_rng_state(before[0]); random.setstate(before[1])
            idxs = pick(losses, pct)
            picked.append(idxs)
            if len(idxs)<len(y): x,y = x[idxs],y[idxs]
            lf(model(x), y).backward()
            learn.opt.step()
            learn.opt.zero_grad()
            pct += 1/(len(learn.dls.train)*n_epoch)
        model.eval()
        with torch.no_grad():
            for x,_ in learn.dls.valid: model(x)
    return picked

def hardest_by_hand(losses, k):
    "Take the largest that is left, the first of equal ones, until there are enough; no sorting."
    left,bag = list(enumerate(float(o) for o in losses)),[]
    while left and (not bag or len(bag)<len(losses)*k):
        i = max(range(len(left)), key=lambda j: left[j][1]) # the first of equal ones
        bag.append(left.pop(i)[0])
    return bag

# ---- Selective-Backprop

def subset_chances(w, k):
    "Chance of each subset of size k under draws one after the other, each by its weight among those left: by listing them."
    res = {}
    for o in itertools.permutations(range(len(w)), k):
        p,left = 1.,sum(w)
        for i in o: p,left = p*w[i]/left,left-w[i]
        res[frozenset(o)] = res.get(frozenset(o), 0)+p
    return res

def numbers(x): return [int(o) for o in x[:,-1]]

sb_bs,sb_lr = 16,.2
def sb_rate(pct): return SchedCos(sb_lr, sb_lr/20)(pct)

def sb_by_hand(learn, n_epoch=4, beta=1., history=1024, warmup=1, queue=True, stale=0, needs_two=True):
    """Selective-Backprop without a callback: plain Python lists for the history, the queue and the last losses by sample. Returns
    the steps, each (epoch, batch, [numbers of its samples]), and the samples scored, in the same form."""
    model,dls = learn.model,learn.dls
    opt = torch.optim.SGD(model.parameters(), lr=sb_lr, momentum=.9)
    before = torch.get_rng_state() # the draws have a generator of their own, whose seed moves nothing
    gen = torch.Generator().manual_seed(int(torch.randint(2**62, (1,))))
    torch.set_rng_state(before)
    hist,last,steps,scored = [],{},[],[]
    def step(x, y):
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        opt.step()
        opt.zero_grad()
    for epoch in range(n_epoch):
        pct,n_iter = epoch/n_epoch,len(dls.train)
        model.train()
        wait = []
        for i,(x,y) in enumerate(dls.train):
            ids,n = numbers(x),len(x)
            for g in opt.param_groups: g['lr'] = sb_rate(pct)
            pct += 1/(n_iter*n_epoch)
            if epoch<warmup: # plain; the losses of the training forward are noted
                p = model(x)
                F.cross_entropy(p, y).backward()
                opt.step(); opt.zero_grad()
                losses = F.cross_entropy(p.detach(), y, reduction='none').tolist()
                steps.append((epoch, i, ids))
                for o,l in zip(ids, losses): last[o] = l,epoch
                hist = (hist+losses)[-history:]
                continue
            rows = [j for j,o in enumerate(ids) if o not in last or epoch-last[o][1]>stale]
            if rows:
                before = torch.get_rng_state()
                model.eval()
                with torch.no_grad(): fresh = F.cross_entropy(model(x[rows]), y[rows], reduction='none').tolist()
                model.train()
                torch.set_rng_state(before)
                for j,l in zip(rows, fresh): last[ids[j]] = l,epoch
                scored.append((epoch, i, [ids[j] for j in rows]))
            losses = [last[o][0] for o in ids]
            hist = (hist+losses)[-history:]
            chance = [(sum(h<l for h in hist)/len(hist))**beta for l in losses]
            u = torch.rand(n, generator=gen, dtype=torch.float64).tolist()
            hardest = sorted(range(n), key=lambda j: -losses[j]) # stable
            kept = [j for j in hardest if u[j]<chance[j]] or hardest[:not queue] # a queue waits for more
            end = i==n_iter-1
            if needs_two and n>1 and len(kept)==1 and (not queue or (end and not wait)): # a BatchNorm cannot train on one sample
                kept += [j for j in hardest if j not in kept][:1]
            if len(kept)==n: kept = range(n) # all of a batch stay in their order, as in plain training
            wait += [(x[j], y[j], ids[j]) for j in kept]
            while wait and (not queue or end or len(wait)>=sb_bs):
                k = sb_bs+1 if needs_two and queue and end and len(wait)==sb_bs+1 else sb_bs if queue else len(wait)
                now,wait = wait[:k],wait[k:]
                step(torch.stack([o[0] for o in now]), torch.stack([o[1] for o in now]))
                steps.append((epoch, i, [o[2] for o in now]))
        for _ in dls.valid: pass # it draws a number, too
    return steps,scored

def composer_is_on(done, i, start, end, interrupt):
    "When mosaicml/composer selects: within the interval, and not at every interrupt-th batch of an epoch."
    return start<=done<end and (interrupt==0 or (i+1)%interrupt!=0)

# ---- importance sampling

def loop_norms(model, f, xb, yb):
    "A backward pass per sample, in eval mode."
    model = copy.deepcopy(model).eval()
    res = []
    for i in range(len(yb[0])):
        model.zero_grad()
        x,y = ([{k: v[i:i+1] for k,v in o.items()} if isinstance(o, dict) else o[i:i+1] for o in b] for b in (xb, yb))
        per_sample_loss(f, model(*x), *y).sum().backward()
        res.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm())
    return torch.stack(res)

def hand_tau(s):
    g = [float(o)/sum(map(float, s)) for o in s]
    return 1/math.sqrt(1-sum((o-1/len(g))**2 for o in g)/sum(o*o for o in g))

def hand_bound(p, y): return (p.softmax(1)-F.one_hot(y, p.shape[1])).norm(dim=1)

def hand_fit(learn, n_epoch, lr, choose, threshold):
    """Train by a loop: while the running mean of tau is at or below `threshold(n)` plainly, else on the rows and weights of
    `choose(losses, bounds)`. Tau is taken of the bounds of whatever forward the batch had. Returns the rows trained on, and the
    running means before each batch."""
    model = learn.model
    learn.create_opt()
    if learn.wd is not None: learn.opt.set_hypers(wd=learn.wd)
    learn.opt.set_hypers(lr=lr)
    mean,used,means = 0.,[],[]
    for _ in range(n_epoch):
        model.train()
        for x,y in learn.dls.train:
            means.append(mean)
            th = threshold(len(y))
            if th==0 or mean>th:
                before = torch.get_rng_state()
                model.eval()
                with torch.no_grad(): p = model(x)
                model.train()
                torch.set_rng_state(before)
                bounds = hand_bound(p, y)
                idxs,w = choose(F.cross_entropy(p, y, reduction='none'), bounds)
                (F.cross_entropy(model(x[idxs]), y[idxs], reduction='none')*w).mean().backward()
            else:
                idxs = list(range(len(y)))
                p = model(x)
                bounds = hand_bound(p.detach(), y)
                F.cross_entropy(p, y).backward()
            mean = .9*mean + .1*hand_tau(bounds)
            used.append(idxs)
            learn.opt.step(); learn.opt.zero_grad()
        model.eval()
        with torch.no_grad():
            for x,_ in learn.dls.valid: model(x)
    return used,means

# ---- selectors that a loop without callback can follow: they depend on the scores alone

def top(scores, share=.4):
    return Selection(scores.argsort(descending=True, stable=True)[:max(1, round(len(scores)*share))])

class Some:
    "Another number of samples each time, so that a queue is never in step with the batches."
    n = 0
    def __call__(self, scores):
        self.n += 1
        return top(scores, (.1, .5, 1., .7, .3, .9, .2)[self.n%7])

def weighted(scores, share=.4):
    "Weights as sampling gives them: large for a sample that had little chance."
    i = top(scores, share).idxs
    return Selection(i, 1/(len(scores)*scores[i].double()/scores.double().sum()))

def make(pick): return pick() if isinstance(pick, type) else pick

# ---- loops in which rows wait, gradients add up, casts hold

def steps_by_hand(learn, n_epoch, pick, queue=False, ce=F.cross_entropy, ctx=contextlib.nullcontext,
                  n_batch=99, carry=False, see=lambda x: x):
    """A loop without callback: scores in eval mode, picks, and yields the rows of each optimizer step, (x, y, weights).
    With `queue`, rows wait until there are as many as a batch has; what is left comes at the epoch's end, or is carried over.
    An epoch ends after `n_batch` batches."""
    bs,model,pick = learn.dls.train.bs,learn.model,make(pick)
    wait = []
    for _ in range(n_epoch):
        for i,(x,y) in enumerate(learn.dls.train):
            if i==n_batch: break
            model.eval()
            with torch.no_grad(), ctx(): scores = ce(model(see(x)), y, reduction='none').float()
            model.train()
            sel = pick(scores)
            idxs,w = sel.idxs,[None]*len(sel.idxs) if sel.weights is None else sel.weights.tolist()
            if len(idxs)==len(x) and sel.weights is None: idxs = torch.arange(len(x)) # a whole batch stays as it is
            wait += list(zip(x[idxs], y[idxs], w))
            while len(wait)>=bs or (wait and not queue):
                now,wait = (wait[:bs],wait[bs:]) if queue else (wait,[])
                yield stacked(now)
        while wait and not carry:
            now,wait = wait[:bs],wait[bs:]
            yield stacked(now)

def stacked(now):
    x,y,w = zip(*now)
    return torch.stack(x), torch.stack(y), None if w[0] is None else torch.tensor(w)

def loss_of(model, x, y, w, ce=F.cross_entropy):
    l = ce(model(x), y, reduction='none')
    return l.mean() if w is None else (l*w).mean()

def hand_learner(lr=.1, **kwargs):
    from core_tools import learner # which imports the rules above
    learn = learner(**kwargs)
    learn.create_opt()
    learn.opt.set_hypers(lr=lr)
    learn.model.train()
    return learn

def fit_by_hand(n_epoch, pick, queue=False, lr=.1, **kwargs):
    learn = hand_learner(lr, **kwargs)
    for x,y,w in steps_by_hand(learn, n_epoch, pick, queue):
        loss_of(learn.model, x, y, w).backward()
        learn.opt.step(); learn.opt.zero_grad()
    return learn

def precise_by_hand(dtype, pick, queue=False, loss=F.cross_entropy, n_epoch=2):
    "PyTorch's own recipe for mixed precision, with PyTorch's optimizer."
    from core_tools import bare
    learn = hand_learner(model=bare)
    opt = torch.optim.SGD(learn.model.parameters(), .1)
    scaler = torch.amp.GradScaler('cpu', enabled=dtype is torch.float16)
    def cast(): return torch.autocast('cpu', dtype=dtype)
    def each(p, y, reduction): return F.cross_entropy(p.float(), y, reduction=reduction)
    seen,pick = [],make(pick)
    for x,y,w in steps_by_hand(learn, n_epoch, lambda s: seen.append(s) or pick(s), queue, ce=each, ctx=cast):
        with cast():
            pred = learn.model(x).float()
            l = F.cross_entropy(pred, y, reduction='none')
        (scaler.scale(l.mean() if w is None else (l*w).mean())).backward()
        scaler.step(opt); scaler.update(); opt.zero_grad()
    return learn,seen

def accumulated_by_hand(n_epoch, pick, n_acc, queue=False, clip=None, lr=.1):
    "The gradient of the sum over rows, divided by `n_acc`, each time that so many rows were seen; the rest waits for the next epoch."
    learn,count = hand_learner(lr),0
    for x,y,w in steps_by_hand(learn, n_epoch, pick, queue):
        (loss_of(learn.model, x, y, w)*len(x)/n_acc).backward()
        count += len(x)
        if count<n_acc: continue
        count = 0
        if clip: nn.utils.clip_grad_norm_(learn.model.parameters(), clip)
        learn.opt.step(); learn.opt.zero_grad()
    return learn

def clipped_by_hand(n_epoch, pick, queue, clip, lr):
    learn = hand_learner(lr)
    for x,y,w in steps_by_hand(learn, n_epoch, pick, queue):
        loss_of(learn.model, x, y, w).backward()
        nn.utils.clip_grad_norm_(learn.model.parameters(), clip)
        learn.opt.step(); learn.opt.zero_grad()
    return learn

def epochs_by_hand(n_epoch, pick, queue=False, lr=.1, **kwargs):
    "The learner after each epoch."
    return [fit_by_hand(i+1, pick, queue, lr, **kwargs) for i in range(n_epoch)]

def blend(kind, x, y, soft):
    "What MixUp and CutMix do to a batch, written anew: mixed images, both labels (or soft ones), each sample's share of its own."
    n,alpha = len(x),torch.tensor(.4, dtype=torch.float32).double() # as fastai stores it
    if kind is MixUp:
        lam = torch.distributions.Beta(alpha, alpha).sample((n,))
        lam = torch.maximum(lam, 1-lam)
        perm = torch.randperm(n)
        x = lam[:,None,None,None]*x + (1-lam)[:,None,None,None]*x[perm]
    else:
        lam = torch.distributions.Beta(torch.tensor(1.), torch.tensor(1.)).sample((1,))
        perm = torch.randperm(n)
        h,w = x.shape[2:]
        side_w,side_h = [torch.round(o*torch.sqrt(1-lam)).long() for o in (w, h)]
        cx,cy = torch.randint(0, w, (1,)),torch.randint(0, h, (1,))
        x1,x2 = (cx-side_w//2).clamp(0, w),(cx+side_w//2).clamp(0, w)
        y1,y2 = (cy-side_h//2).clamp(0, h),(cy+side_h//2).clamp(0, h)
        mask = torch.zeros(h, w, dtype=torch.bool)
        mask[y1:y2,x1:x2] = True
        x = torch.where(mask, x[perm], x)
        lam = (1-mask.double().mean()).expand(n)
    if soft:
        y = lam[:,None]*y + (1-lam)[:,None]*y[perm]
        return x, (y, y, lam)
    return x, (y, y[perm], lam)

def mixed_loss(p, ys, soft):
    y,y1,lam = ys
    if soft: return -(p.log_softmax(1)*y).sum(1)
    return lam*F.cross_entropy(p, y, reduction='none') + (1-lam)*F.cross_entropy(p, y1, reduction='none')

def mixing_by_hand(kind, pick, after, queue, soft, n_epoch=2, lr=.1):
    from core_tools import mixing_learner
    learn = mixing_learner(kind, soft)
    learn.create_opt(); learn.opt.set_hypers(lr=lr)
    model,bs,pick = learn.model,learn.dls.train.bs,make(pick)
    def step(x, ys, w):
        l = mixed_loss(model(x), ys, soft)
        (l if w is None else l*w).mean().backward()
        learn.opt.step(); learn.opt.zero_grad()
    def train(now):
        *parts,w = zip(*now)
        w = None if w[0] is None else torch.stack(w)
        x,y,y1,lam = [torch.stack(o) for o in parts]
        if not after: x,(y,y1,lam) = blend(kind, x, y, soft)
        step(x, (y, y1, lam), w)
    for _ in range(n_epoch):
        wait = []
        for x,y in learn.dls.train:
            ys = y,y,torch.ones(len(x))
            if after: x,ys = blend(kind, x, y, soft)
            with torch.no_grad(): scores = mixed_loss(model(x), ys, soft).float()
            sel = pick(scores)
            idxs,w = sel.idxs,[None]*len(sel.idxs) if sel.weights is None else sel.weights
            if len(idxs)==len(x) and sel.weights is None: idxs = torch.arange(len(x))
            wait += list(zip(x[idxs], *[o[idxs] for o in ys], w))
            while len(wait)>=bs or (wait and not queue):
                now,wait = (wait[:bs],wait[bs:]) if queue else (wait,[])
                train(now)
        while wait:
            now,wait = wait[:bs],wait[bs:]
            train(now)
        for _ in learn.dls.valid: pass # draws from the random state, as fastai's validation does
    return learn

def together_by_hand(res, n_epoch, picks, queue=False, stale=0, on=lambda r, i: True):
    """One process that does what two did: each part of a batch is scored and selected from by itself, and one step follows the
    gradient of the mean over all samples that the two kept. With `queue`, it waits until both have a full batch."""
    from core_tools import bare
    learn = hand_learner(model=bare)
    model,bs,last,scored = learn.model,16,[{}, {}],[[], []]
    n_iter = len(res[0]['batches'])//n_epoch
    trained,shown = [],[]
    def step(now):
        trained.append([len(o) for o in now])
        now = [o for part in now for o in part]
        x,y,w = stacked([(x, y, torch.ones(()) if w is None else w) for x,y,w in now])
        loss = (F.cross_entropy(model(x), y, reduction='none')*w).sum().div(len(x))
        loss.backward()
        shown.append(loss.item())
        learn.opt.step(); learn.opt.zero_grad()
    ends = []
    for epoch in range(n_epoch):
        wait = [[], []]
        for i in range(n_iter):
            for r in (0,1):
                e,x,y = res[r]['batches'][epoch*n_iter+i]
                assert e==epoch
                keys = [o[0].item() for o in x] # another in every sample
                with torch.no_grad(): fresh = F.cross_entropy(model(x), y, reduction='none').float()
                scores,n_new = [],0
                for k,s in zip(keys, fresh):
                    if stale and k in last[r] and epoch-last[r][k][1]<=stale: s = last[r][k][0]
                    else: last[r][k],n_new = (s, epoch),n_new+1
                    scores.append(s)
                if not on(r, i): idxs,w,n_new = range(len(x)),None,0
                else: idxs,w = picks[r](torch.stack(scores))
                scored[r].append(n_new)
                if len(idxs)==len(x) and w is None: idxs = range(len(x))
                wait[r] += [(x[o], y[o], None if w is None else w[j]) for j,o in enumerate(idxs)]
            if not queue: step(wait); wait = [[], []]
            elif i==n_iter-1:
                while wait[0] or wait[1]:
                    step([o[:bs] for o in wait])
                    wait = [o[bs:] for o in wait]
            elif min(map(len, wait))>=bs:
                step([o[:bs] for o in wait])
                wait = [o[bs:] for o in wait]
        ends.append(len(shown))
    return learn,trained,scored,[smooth(shown[:o]) for o in ends]

def smooth(losses, beta=.98):
    "fastai's running mean of the training loss."
    val = 0.
    for o in losses: val = beta*val + (1-beta)*o
    return val/(1-beta**len(losses))
