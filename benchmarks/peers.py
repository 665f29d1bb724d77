"""Each method beside an independent implementation of it: same network, data, schedule, optimizer, seeds; time, memory, accuracy.

A run is a process of its own (forked, so that nothing is imported twice). Within a seed the runs come in a drawn order. The peers are
loops in plain PyTorch around the published rules of `tests/peer_rules.py`, with fastai's optimizer and one-cycle schedule, so that
they differ from ours by the method's implementation and by fastai's events and the record, which a bare loop does not have: the
row *plain* tells what that alone costs, `x plain` takes it out. tsai's filter runs in a fastai `Learner`, as ours.

- s / epoch: wall-clock of the training part of an epoch, loading included; CPU s: what the process used of all cores meanwhile,
  which a neighbour on the machine changes less.
- MB: highest memory while training less that before it: the process's resident memory on a CPU (Linux alone), the allocator's on a GPU.
- ours / peer: of the same seed, from the second epoch on; the first has the trial of the learner before its first batch, and PyTorch's warming up.
- to plain's: training seconds until the end of the first epoch at which the run is as accurate as fastai's plain training of that seed ends."""
import argparse, multiprocessing, os, random, sys, time, warnings
from contextlib import ExitStack, suppress
from copy import deepcopy
from pathlib import Path
warnings.filterwarnings('ignore', category=FutureWarning) # of tsai's imports
sys.path.insert(0, str(Path(__file__).resolve().parent.parent/'tests'))
from fastai.vision.all import *
from fastai.callback.schedule import combined_cos
from blf_explore.all import *
import peer_rules as rules
try: from tsai.callback.experimental import BatchLossFilter as TsaiFilter
except ImportError: TsaiFilter = None

quiet = dict(plain_every=0)
ours = {
    'plain': lambda **_: SelectiveTraining(**quiet),
    'BLF .9': lambda **_: BatchLossFilter(.9, **quiet),
    'OHEM .25': lambda **_: HardNegativeMining(.25, **quiet),
    'SB beta=1': lambda **_: SelectiveBackprop(1., **quiet),
    'SB-rank .5': lambda **_: RankSelectiveBackprop(.5, **quiet),
    'importance 1/3': lambda **_: ImportanceSampling(1/3, **quiet),
    'InfoBatch .5': lambda **_: InfoBatch(.5, **quiet),
    'SeTa': lambda **_: SeTa(**quiet),
    'BLS .5': lambda **_: BLS(.5, **quiet),
    'RHO-LOSS .1': lambda holdout: RHOLoss(holdout, .1, **quiet),
    'PFB .6': lambda **_: PartialForwardBlocking(.6, **quiet)}

# ---- clocks and memory

def memory():
    "(MB now, highest MB since the last call of `forget`)"
    if torch.cuda.is_available(): return torch.cuda.memory_allocated()/2**20,torch.cuda.max_memory_allocated()/2**20
    try: lines = Path('/proc/self/status').read_text().splitlines()
    except OSError: return math.nan,math.nan
    return tuple(next(int(l.split()[1]) for l in lines if l.startswith(k))/1024 for k in ('VmRSS:','VmHWM:'))

def forget():
    if torch.cuda.is_available(): return torch.cuda.reset_peak_memory_stats()
    with suppress(OSError): Path('/proc/self/clear_refs').write_text('5')

def now():
    if torch.cuda.is_available(): torch.cuda.synchronize()
    return np.array([time.perf_counter(), time.process_time()])

class Clock(Callback):
    "Wall-clock and CPU time of each epoch's training, and the samples that were trained on."
    order,run_valid = 100,False
    def before_fit(self): self.times,self.n = [],0
    def before_train(self): self.t0 = now()
    def before_step(self): self.n += len(self.yb[0])
    def after_train(self): self.times.append(now()-self.t0)

# ---- peers: each a function (loop, x, y, ids) that trains on a batch

def scored(l, x, y):
    l.model.eval()
    with torch.no_grad(): z = l.model(x)
    l.model.train()
    return z,F.cross_entropy(z, y, reduction='none')

def plain(l, x, y, ids): return l.step(x, y)

def ohem(l, x, y, ids):
    i = rules.ohem(scored(l, x, y)[1], .25)
    l.step(x[i], y[i])

def sb(l, x, y, ids):
    if l.epoch==0:
        return l.chances(l.step(x, y))
    p = l.chances(scored(l, x, y)[1])
    i = torch.from_numpy(l.rng.random(len(p))<p).to(x.device)
    l.wait = [torch.cat(o) for o in zip(l.wait, (x[i], y[i]))] if l.wait else [x[i], y[i]]
    while len(l.wait[0])>=l.bs or (l.is_last and len(l.wait[0])>1):
        now_,l.wait = [o[:l.bs] for o in l.wait],[o[l.bs:] for o in l.wait]
        l.step(*now_)

def composer(l, x, y, ids):
    if not rules.composer_is_on(l.done, l.i): return l.step(x, y)
    i = torch.from_numpy(rules.composer_draw(scored(l, x, y)[1], .5, l.rng)).to(x.device)
    l.step(x[i], y[i])

def importance(l, x, y, ids):
    b = math.ceil(len(x)/3)
    if l.tau.is_on(len(x), b):
        s = rules.bound(scored(l, x, y)[0], y)
        l.tau.see(s.cpu())
        i,w = rules.kath_draw(s, b)
        return l.step(x[i], y[i], w)
    l.step(x, y)
    l.tau.see(rules.bound(l.z, y).cpu())

def sampled(l, x, y, ids):
    w = l.sampler.weights[ids]
    l.sampler.note(ids, l.step(x, y, w.to(x.device)).cpu())

def rho(l, x, y, ids):
    losses = scored(l, x, y)[1]
    i = rules.rho(losses, l.holdout[ids].to(losses), .1)
    l.step(x[i], y[i])

def pfb(l, x, y, ids):
    if not 16/300<=l.done<260/300: return l.step(x, y)
    f = l.model[0](x) # the rest is the deep part
    alpha = .01*torch.rand(len(x), generator=l.gen).to(x.device)
    i = l.density.keep(f.detach().flatten(2).mean(2)[:,:16], math.ceil(round(.6*len(x), 6)), alpha)
    l.finish(l.model[1:](f[i]), y[i])

peers = {'plain': plain, 'OHEM .25': ohem, 'SB beta=1': sb, 'SB-rank .5': composer, 'importance 1/3': importance, 'InfoBatch .5': sampled,
         'SeTa': sampled, 'BLS .5': sampled, 'RHO-LOSS .1': rho, 'PFB .6': pfb}
samplers = {'InfoBatch .5': rules.InfoBatchSampler, 'SeTa': rules.SeTaSampler, 'BLS .5': rules.BLSSampler}

class Loop:
    "A training loop without fastai's events."
    def __init__(self, model, dls, epochs, lr, seed, holdout, name='plain'):
        store_attr('model,dls,epochs,holdout')
        learn = Learner(dls, model)
        learn.create_opt()
        self.opt,self.bs,self.ds = learn.opt,dls.train.bs,dls.train_ds
        self.lr,self.mom = combined_cos(.25, lr/25, lr, lr/1e5),combined_cos(.25, .95, .85, .95) # as `fit_one_cycle`
        self.chances,self.tau,self.wait,self.density = rules.SBChances(),rules.Tau(),None,rules.PFBDensity()
        self.sampler = samplers[name](len(self.ds), epochs, seed=seed) if name in samplers else None
        self.rng,self.gen,self.n = np.random.default_rng(seed),torch.Generator().manual_seed(seed),0

    def finish(self, z, y, w=None):
        losses = F.cross_entropy(z, y, reduction='none')
        (losses.mean() if w is None else (losses*w).mean()).backward()
        self.opt.step(); self.opt.zero_grad()
        self.n += len(y)
        self.z = z.detach()
        return losses.detach()

    def step(self, x, y, w=None): return self.finish(self.model(x), y, w)

    def batches(self, e):
        "(positions, x, y), drawn anew, whole batches alone; a sampler leaves out what is dropped before it is loaded."
        ids = torch.randperm(len(self.ds)) if self.sampler is None else self.sampler.epoch(e)
        for i in ids.split(self.bs):
            if len(i)==self.bs: yield i,*self.ds[i.to(self.ds.x.device)]

    def accuracy(self):
        self.model.eval()
        with torch.no_grad(): return torch.cat([self.model(x).argmax(1)==y for x,y in self.dls.valid]).float().mean().item()

    def fit(self, method):
        times,accs,per = [],[],len(self.ds)//self.bs
        for self.epoch in range(self.epochs):
            self.model.train()
            t0 = now()
            for self.i,(ids,x,y) in enumerate(self.batches(self.epoch)):
                self.done = (self.epoch+self.i/per)/self.epochs
                self.is_last = self.i+1==per
                self.opt.set_hypers(lr=self.lr(self.done), mom=self.mom(self.done))
                method(self, x, y, ids)
            times.append(now()-t0)
            accs.append(self.accuracy())
        return times,accs

# ---- runs

def run(args, name, side, seed):
    "One run, in this process: what it took and reached."
    torch.set_num_threads(args.threads)
    dls = get_dls(args.name, bs=args.bs, path=args.path, seed=seed)
    dls.train.rng = random.Random(seed)
    set_seed(seed)
    holdout = None
    if name.startswith('RHO'): # of a small net, briefly trained on the validation set: the race is about what comes then
        small = Learner(DataLoaders(dls.valid.new(shuffle=True), dls.valid), get_model('mlp', dls), loss_func=CrossEntropyLossFlat())
        with small.no_bar(), small.no_logging(): small.fit(2, 1e-3)
        holdout = holdout_losses(small.model, dls)
    set_seed(seed)
    model = get_model('convnet', dls).to(dls.device)
    with torch.no_grad(): model.eval()(dls.one_batch()[0]) # the first forward of all allocates more than others
    forget()
    before = memory()[0]
    if side=='peer' and not name.startswith('BLF'):
        loop = Loop(model, dls, args.epochs, args.lr, seed, holdout, name)
        times,accs = loop.fit(peers[name])
        n = loop.n
    else:
        cb = TsaiFilter(loss_perc=.9) if side=='peer' else ours[name](holdout=holdout)
        learn = Learner(dls, model, metrics=accuracy, cbs=[cb, Clock()])
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(args.epochs, args.lr)
        times,n,accs = learn.clock.times,learn.clock.n,[v[-1] for v in learn.recorder.values]
    wall,cpu = np.array(times).T
    return dict(wall=wall.tolist(), cpu=cpu.tolist(), mb=memory()[1]-before, n=n/(args.epochs*len(dls.train)*args.bs), accs=accs)

def _child(pipe, *job):
    try: pipe.send(run(*job))
    except BaseException as e: pipe.send(repr(e)); raise

def in_child(*job):
    ctx = multiprocessing.get_context('fork' if hasattr(os, 'fork') else 'spawn')
    here,there = ctx.Pipe(False)
    p = ctx.Process(target=_child, args=(there, *job))
    p.start(); there.close()
    try: res = here.recv()
    except EOFError: res = 'the process ended'
    p.join()
    if isinstance(res, str): raise RuntimeError(f'{job[1:]}: {res}')
    return res

def alternating(args, n=100, warmup=8):
    """Both sides of a method train on every batch in turn, in one process: {method: (ours, peer)}, CPU milliseconds of each batch. A neighbour
    meets both alike. Methods whose step is a batch: no queue, no sampler, no numbers of samples. At a learning rate of 0, as `overhead.py` does."""
    from overhead import batches, training
    torch.set_num_threads(args.threads)
    dls = get_dls(args.name, bs=args.bs, path=args.path)
    set_seed(0)
    model,span = get_model('convnet', dls),dict(start=0., end=1., plain_every=0)
    cbs = {'plain': [], 'OHEM .25': [ours['OHEM .25']()], 'importance 1/3': [ImportanceSampling(1/3, tau_th=0, **quiet)], 'PFB .6': [PartialForwardBlocking(.6, **span)]}
    fs = {}
    with ExitStack() as stack:
        for k,cb in cbs.items():
            learn,loop = Learner(dls, deepcopy(model), cbs=cb),Loop(deepcopy(model), dls, 1, 0., 0, None)
            stack.enter_context(training(learn))
            loop.opt.set_hypers(lr=0.)
            loop.done,loop.tau.is_on = .5,lambda *_: True
            loop.model.train()
            fs |= {(k, 'ours'): lambda i, x, y, learn=learn: learn.one_batch(i, (x, y)), (k, 'peer'): lambda i, x, y, l=loop, f=peers[k]: f(l, x, y, None)}
        res = {k: [] for k in fs}
        for i,(x,y) in zip(range(n+warmup), batches(dls.train)):
            for k in random.sample(list(fs), len(fs)):
                t = now()
                fs[k](i, x, y)
                if i>=warmup: res[k].append(1e3*(now()-t)[1])
    return {k: tuple(np.array(res[k, s]) for s in ('ours','peer')) for k in cbs}

def show_alternating(res):
    print('| method | ours, CPU ms / batch | peer | ours / peer, median (quartiles) |\n|---|---|---|---|')
    for k,(a,b) in res.items():
        lo,mid,hi = np.percentile(a/b, (25,50,75))
        print(f"| {k} | {np.median(a):.2f} | {np.median(b):.2f} | {mid:.2f} ({lo:.2f} to {hi:.2f}) |")

def to_target(r, target):
    "Training seconds until an epoch ends at `target` or above; NaN: never."
    return next((float(np.cumsum(r['wall'])[i]) for i,a in enumerate(r['accs']) if a>=target), math.nan)

def reached(rs, targets):
    t = [to_target(r, o) for r,o in zip(rs, targets)]
    some = [o for o in t if not math.isnan(o)]
    return f"{np.median(some):.1f} s ({len(some)} of {len(t)})" if some else f'never (0 of {len(t)})'

def med(o): return f'{np.median(o):.2f} ({min(o):.2f} to {max(o):.2f})'

def table(res, names):
    base = {s: [sum(r['wall'][1:]) for r in res['plain', s]] for s in ('ours','peer')}
    targets = [r['accs'][-1] for r in res['plain','ours']]
    print('| method | | s / epoch | CPU s / epoch | MB | samples trained on | accuracy, % | to plain’s | ours / peer, wall | ours / peer, CPU | x plain |')
    print('|---|---|---|---|---|---|---|---|---|---|---|')
    for k in names:
        for s in ('ours','peer'):
            if (k, s) not in res: continue
            rs,both = res[k, s],(k, 'peer') in res and s=='ours'
            def ratio(what): return med([sum(a[what][1:])/sum(b[what][1:]) for a,b in zip(rs, res[k, 'peer'])]) if both else ''
            own = 'peer' if s=='peer' and not k.startswith('BLF') else 'ours' # tsai's learner is fastai's
            print(f"| {k if s=='ours' else ''} | {'ours' if s=='ours' else 'tsai' if k.startswith('BLF') else 'peer'} | {np.median([np.median(r['wall']) for r in rs]):.2f} | "
                  f"{np.median([np.median(r['cpu']) for r in rs]):.2f} | {np.median([r['mb'] for r in rs]):.0f} | {np.median([r['n'] for r in rs]):.0%} | "
                  f"{100*np.median([r['accs'][-1] for r in rs]):.2f} | {reached(rs, targets)} | {ratio('wall')} | {ratio('cpu')} | "
                  f"{np.median([sum(r['wall'][1:])/b for r,b in zip(rs, base[own])]):.2f} |")

def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--quick', action='store_true', help='the digits, in about a minute')
    p.add_argument('--data', help="folder with Fashion-MNIST's IDX files; without it they are downloaded")
    p.add_argument('--epochs', type=int, help='of each run')
    p.add_argument('--seeds', type=int, help='runs of each')
    p.add_argument('--lr', type=float, default=1e-2, help="highest learning rate of the one-cycle schedule")
    p.add_argument('--threads', type=int, default=1, help="torch's threads on a CPU")
    p.add_argument('--batches', action='store_true', help='instead of whole runs: both sides on the same batches in turn, CPU time of each')
    p.add_argument('--only', nargs='*', default=list(ours), help='some of: '+', '.join(ours))
    args = p.parse_args()
    args.name,args.bs,args.path = ('digits',64,None) if args.quick else ('fashion_mnist',128,args.data)
    args.epochs,args.seeds = args.epochs or (4 if args.quick else 5),args.seeds or (2 if args.quick else 3)
    if TsaiFilter is None: print("Without tsai: benchmarks/README.md says how to get it")
    names = ['plain', *(o for o in ours if o in args.only and o!='plain')]
    jobs = [(k, s) for k in names for s in ('ours','peer') if s=='ours' or k in peers or TsaiFilter]
    device = 'CUDA' if torch.cuda.is_available() else f'CPU, {args.threads} thread{"s"*(args.threads>1)}'
    print(f"{args.name}, batch {args.bs}, convnet, {args.epochs} epochs, lr {args.lr}, {args.seeds} seeds, on {device}; "
          f"{', '.join(f'{k} {v}' for k,v in versions(('blf_explore','torch','fastai','tsai')).items())}\n", flush=True)
    if args.batches: return show_alternating(alternating(args, 100 if args.quick else 30))
    res = {}
    for seed in range(args.seeds):
        for k,s in random.Random(seed).sample(jobs, len(jobs)):
            r = in_child(args, k, s, seed)
            res.setdefault((k, s), []).append(r)
            print(f"  seed {seed}, {k}, {s}: {sum(r['wall']):.1f} s, accuracy {r['accs'][-1]:.4f}", file=sys.stderr, flush=True)
    table(res, names)

if __name__=='__main__': main()
