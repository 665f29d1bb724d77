"""What BatchLossFilter costs: the plain step, BLF's step, the least that selecting could cost, and tsai's BatchLossFilter.

Four learners start from one partly trained net and take the same batches in turn, each through fastai's own `one_batch`:
- plain: the whole batch;
- BLF: `learn.batch_loss_filter(loss_perc=.9)`, recording as it does by default;
- least: a bare forward of the whole batch under `no_grad`, in eval mode, then the plain step on the rows that BLF keeps
  of this batch. Picking them, taking them and switching the mode are free here, so nothing that selects first can be faster;
- tsai: `tsai.callback.experimental.BatchLossFilter(loss_perc=.9)`.
The learning rate is 0 while the clock runs: all four do the work of a step, and stay the net that they were."""
import argparse, random, warnings
from contextlib import ExitStack, contextmanager
from copy import deepcopy
warnings.filterwarnings('ignore', category=FutureWarning) # of tsai's imports
from fastai.vision.all import *
from blf_explore.blf import select
from blf_explore.engine.data import get_dls, get_model
from blf_explore.engine.filtering import SelectiveTraining
from blf_explore.engine.losses import per_sample_loss
from blf_explore.engine.record import versions
from blf_explore.engine.timing import device_name, time_interleaved
from blf_explore.engine.traces import eval_mode
try: from tsai.callback.experimental import BatchLossFilter as TsaiFilter
except ImportError as e: TsaiFilter,why = None,e

loss_perc = .9
# data set: batch size and epochs of BLF that come before, so that some samples are easy
settings = dict(digits=dict(bs=64, epochs=2), fashion_mnist=dict(bs=128, epochs=1))

@contextmanager
def training(learn):
    "The learner as it is within the first epoch of a fit, up to the first batch; and out of it again."
    if not learn.opt: learn.create_opt()
    learn.opt.set_hypers(lr=0.)
    learn.n_epoch,learn.epoch,learn.dl,learn.n_iter = 1,0,learn.dls.train,len(learn.dls.train)
    with learn.no_bar(), learn.no_logging():
        for o in ('before_fit', 'before_epoch', 'before_train'): learn(o)
        try: yield learn
        finally:
            for o in ('after_train', 'after_epoch', 'after_fit'): learn(o)

def learners(dls, epochs, seed=0):
    "{name: learner}, all with the same net, which BLF has trained for some epochs."
    set_seed(seed)
    learn = Learner(dls, get_model('convnet', dls), path=Path.cwd())
    if epochs:
        learn.batch_loss_filter(loss_perc)
        with learn.no_bar(), learn.no_logging(): learn.fit(epochs, 3e-3)
        learn.remove_cb(SelectiveTraining)
    def new(*cbs): return Learner(dls, deepcopy(learn.model), cbs=cbs)
    res = dict(plain=new(), BLF=new().batch_loss_filter(loss_perc), least=new())
    if TsaiFilter: res['tsai'] = new(TsaiFilter(loss_perc=loss_perc))
    return res

class Kept(Callback):
    "Counts the samples that reach the model."
    order,n = 99,0
    def before_batch(self): self.n += len(self.learn.xb[0])

def batches(dl):
    while True: yield from dl

def shuffled(fs, seed):
    "In another order every round: what ran just before, and left its memory and caches behind, is anybody."
    return dict(random.Random(seed).sample(list(fs.items()), len(fs)))

def measure(dls, epochs, rounds, warmup=10):
    "({name: seconds of each round}, {name: kept share})"
    learns = learners(dls, epochs)
    counts = {k: Kept() for k in learns}
    for k,l in learns.items(): l.add_cb(counts[k])
    # the same weights in a shell that is always in eval mode
    m = learns['least'].model
    scorer = deepcopy(m, {id(o): o for o in [*m.parameters(), *m.buffers()]}).eval()
    times,n_seen = {o: [] for o in learns},0
    with ExitStack() as stack:
        for l in learns.values(): stack.enter_context(training(l))
        blf = learns['BLF']
        for i,(x,y) in zip(range(rounds+warmup), batches(dls.train)):
            if i==warmup:
                n_seen = 0
                for c in counts.values(): c.n = 0
            with eval_mode(blf.model), torch.no_grad(): losses = per_sample_loss(blf.loss_func, blf.model(x), y)
            n = max(2, len(select(losses, loss_perc).idxs)) # BatchNorm cannot train on one value per channel
            idxs = losses.argsort(descending=True, stable=True)[:n]
            kept = x[idxs],y[idxs]
            def least():
                with torch.no_grad(): scorer(x)
                learns['least'].one_batch(i, kept)
            fs = {k: partial(l.one_batch, i, (x,y)) for k,l in learns.items()} | dict(least=least)
            t = time_interleaved(shuffled(fs, i), n=1, warmup=0, device=dls.device)
            n_seen += len(x)
            if i>=warmup:
                for k,v in t.items(): times[k].append(v[0])
        assert counts['BLF'].n==counts['least'].n # the same rows, so the same work
    return {k: np.array(v) for k,v in times.items()}, {k: c.n/n_seen for k,c in counts.items()}

def report(name, times, kept):
    print(f"{'step':<8}{'kept':>7}{'ms, median':>12}{'5% to 95%':>18}")
    for k,t in times.items():
        lo,hi = np.percentile(t*1e3, (5,95))
        print(f"{k:<8}{kept[k]:>7.1%}{np.median(t)*1e3:>12.2f}{f'{lo:.2f} to {hi:.2f}':>18}")
    print(f"\n{'ratio, round by round':<24}{'median':>8}{'quartiles':>18}{'5% to 95%':>18}")
    for k in ('least','plain','tsai'):
        if k not in times: continue
        lo,a,med,b,hi = np.percentile(times['BLF']/times[k], (5,25,50,75,95))
        print(f"{f'BLF / {k}':<24}{med:>8.3f}{f'{a:.3f} to {b:.3f}':>18}{f'{lo:.3f} to {hi:.3f}':>18}")
    total = times['BLF'].sum()/times['least'].sum()
    print(f"All rounds together, those included in which BLF also times a plain step (1 in 50): BLF / least {total:.3f}\n")

def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--rounds', type=int, default=300, help='rounds that count, each of one batch for every step')
    p.add_argument('--data', help="folder with Fashion-MNIST's IDX files; without it torchvision downloads them")
    p.add_argument('--only', choices=list(settings), help='one setting alone')
    p.add_argument('--threads', type=int, help="torch's threads on a CPU")
    args = p.parse_args()
    if args.threads: torch.set_num_threads(args.threads)
    if TsaiFilter is None: print(f"Without tsai ({why}): benchmarks/README.md says how to get it")
    vs = versions(('blf_explore','torch','fastai','tsai'))
    for name,s in settings.items():
        if args.only not in (None, name): continue
        dls = get_dls(name, bs=s['bs'], path=args.data if name=='fashion_mnist' else None)
        print(f"{name}, batch {s['bs']}, convnet after {s['epochs']} epoch{'s'*(s['epochs']>1)} of BLF, loss_perc={loss_perc}: {args.rounds} rounds "
              f"on {device_name(dls.device)}; {', '.join(f'{k} {v}' for k,v in vs.items())}\n", flush=True)
        report(name, *measure(dls, s['epochs'], args.rounds))

if __name__=='__main__': main()
