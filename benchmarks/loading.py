"""What leaving samples out saves where loading takes most of the time: methods that choose whole epochs do not load what they drop.

The data set holds JPEG files in memory (scikit-learn's digits, enlarged), and decodes and shrinks one for every sample that is asked
for. The files' size is chosen so that loading takes `--share` of a plain epoch on this machine. In each round all methods train once, in
an order drawn anew, and a round's times are compared with each other: a machine that slows down meets all alike. CPU time is that of
this process, which others on the machine disturb less."""
import argparse, io, random
from PIL import Image
from sklearn.datasets import load_digits
from fastai.vision.all import *
from blf_explore.all import *

methods = {
    'plain': lambda **kw: SelectiveTraining(**kw),
    'InfoBatch .5': lambda **kw: InfoBatch(.5, **kw),
    'SeTa .1, 5, .9': lambda **kw: SeTa(**kw),
    'SeTa .1, 5, .4': lambda **kw: SeTa(window=.4, **kw),
    'BLS .5': lambda **kw: BLS(.5, **kw),
    'BLF .9': lambda **kw: BatchLossFilter(.9, **kw)}

class Files:
    "JPEG files in memory; each is decoded and shrunk to 32 by 32 whenever it is asked for, and counted."
    def __init__(self, x, y, size): self.y,self.n,self.files = y,0,[self.jpeg(o, size) for o in x]
    def jpeg(self, o, size):
        f = io.BytesIO()
        Image.fromarray((o*15).astype(np.uint8)).resize((size, size), Image.BICUBIC).save(f, 'JPEG', quality=90)
        return f.getvalue()
    def __len__(self): return len(self.y)
    def __getitem__(self, i):
        self.n += 1
        im = Image.open(io.BytesIO(self.files[i])).convert('L').resize((32, 32), Image.BILINEAR)
        return torch.from_numpy(np.asarray(im).copy())[None].float()/255-.5, self.y[i]

def loaders(size, bs, workers, n=None):
    d = load_digits()
    order = np.random.RandomState(0).permutation(len(d.target))[:n]
    k = len(order)*4//5
    sets = [Files(d.images[o], torch.from_numpy(d.target[o]), size) for o in (order[:k], order[k:])]
    return DataLoaders(*[DataLoader(o, bs=bs, shuffle=o is sets[0], num_workers=workers) for o in sets], device='cpu')

def net():
    def block(a, b): return [nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
    return nn.Sequential(*block(1, 16), *block(16, 32), *block(32, 64), nn.AdaptiveAvgPool2d(1), Flatten(), nn.Linear(64, 10))

def share_of(size, bs):
    "Which share of a plain epoch is spent in loading, with files of this size."
    dls = loaders(size, bs, 0, 400)
    learn = Learner(dls, net(), loss_func=CrossEntropyLossFlat())
    def timed(f):
        t = time.process_time()
        f()
        return time.process_time()-t
    batches = list(dls.train)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    def steps():
        learn.model.train()
        for x,y in batches:
            learn.loss_func(learn.model(x), y).backward()
            learn.opt.step(); learn.opt.zero_grad()
    load,step = (min(timed(f) for _ in range(3)) for f in (lambda: list(dls.train), steps))
    return load/(load+step)

class CPU(Callback):
    "CPU seconds of this process in the training part of the epochs."
    order,run_valid = -99,False # before the selection chooses an epoch's samples
    def before_fit(self): self.s = 0.
    def before_train(self): self.t = time.process_time()
    def after_train(self): self.s += time.process_time()-self.t

def spread(o, fmt): return f'{np.median(o):{fmt}} ({min(o):{fmt}} to {max(o):{fmt}})'

def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--share', type=float, default=.8, help='of a plain epoch, to be spent in loading')
    p.add_argument('--size', type=int, help='of the files, in pixels; without it, it is searched')
    p.add_argument('--bs', type=int, default=32, help='batch size')
    p.add_argument('--epochs', type=int, default=8, help='of each run')
    p.add_argument('--rounds', type=int, default=3)
    p.add_argument('--workers', type=int, default=0, help='processes that load')
    args = p.parse_args()
    for size in [args.size] if args.size else range(32, 1025, 16):
        if (share := share_of(size, args.bs))>=args.share: break
    dls = loaders(size, args.bs, args.workers)
    print(f"{len(dls.train_ds)} files of {size}x{size}, loading {share:.0%} of a plain epoch; batch {args.bs}, {args.epochs} epochs, {args.rounds} rounds, "
          f"{args.workers} workers, on {device_name('cpu')}; {', '.join(f'{k} {v}' for k,v in versions().items())}\n", flush=True)
    rows = {k: [] for k in methods}
    for i in range(args.rounds):
        for k in random.Random(i).sample(list(methods), len(methods)):
            set_seed(i)
            dls.train.rng,dls.train_ds.n = random.Random(i),0
            learn = Learner(dls, net(), loss_func=CrossEntropyLossFlat(), metrics=accuracy, cbs=[methods[k](plain_every=0, keep_losses=False), cpu := CPU()])
            with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(args.epochs, 1e-2)
            e = learn.selection.epochs
            rows[k].append(dict(s=e.t_epoch_s.mean(), cpu=cpu.s/args.epochs, kept=100*e.n_kept.sum()/e.n_seen.sum(), accuracy=e.accuracy.iloc[-1],
                                loaded=100*dls.train_ds.n/(args.epochs*len(dls.train_ds))))
            print(f"  round {i}, {k}: {rows[k][-1]['s']:.2f} s an epoch", file=sys.stderr, flush=True)
    print('| | loaded, if in this process | trained on | seconds an epoch | time / plain | CPU time / plain | accuracy |\n|---|---|---|---|---|---|---|')
    for k,v in rows.items():
        ratio,cpu = [[a[c]/b[c] for a,b in zip(v, rows['plain'])] for c in ('s','cpu')]
        mean = {c: np.mean([o[c] for o in v]) for c in v[0]}
        loaded = f"{mean['loaded']:.0f}%" if not args.workers else ''
        print(f"| {k} | {loaded} | {mean['kept']:.0f}% | {np.median([o['s'] for o in v]):.2f} | {spread(ratio, '.2f')} | {spread(cpu, '.2f')} | {spread([o['accuracy'] for o in v], '.3f')} |")

if __name__=='__main__': main()
