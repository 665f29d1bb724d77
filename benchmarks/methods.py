"""Every method beside plain training of the same duration: whole runs on a data set, several seeds.

Plain training runs with several budgets of epochs, each with a one-cycle schedule of its own that ends where the budget ends. A
method's run (its own schedule, too) is compared with what plain training reaches in the same time, read off the line between
the two plain runs of that seed whose times lie around it. Within a seed the runs come in random order, so that a
drift of the machine's speed meets all alike. Times are those of scoring, selecting and training, without validation."""
import argparse, random
from fastai.vision.all import *
from blf_explore.all import *

methods = {
    'BLF .9': lambda **kw: BatchLossFilter(.9, **kw),
    'HNM .25': lambda **kw: HardNegativeMining(.25, **kw),
    'SB beta=1': lambda **kw: SelectiveBackprop(1., **kw),
    'SB beta=2': lambda **kw: SelectiveBackprop(2., **kw),
    'SB beta=2, stale=2': lambda **kw: SelectiveBackprop(2., stale=2, **kw),
    'SB beta=2, bound': lambda **kw: SelectiveBackprop(2., score=grad_norm_bound, **kw),
    'SB-rank .5': lambda **kw: RankSelectiveBackprop(.5, **kw),
    'importance 1/3': lambda **kw: ImportanceSampling(1/3, **kw),
    'core-set .5': lambda **kw: CoreSet(.5, **kw),
    'InfoBatch .5': lambda **kw: InfoBatch(.5, **kw)}

def run(dls, net, seed, epochs, lr, cb):
    "One run from a seed: {'s', 'accuracy', 'kept'}."
    set_seed(seed)
    dls.train.rng = random.Random(seed)
    learn = Learner(dls, get_model(net, dls), metrics=accuracy, cbs=cb)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, lr)
    e,b = learn.selection.epochs,learn.selection.batches
    return dict(s=b[['t_score_s','t_select_s','t_train_s']].to_numpy().sum(), accuracy=e.accuracy.iloc[-1], kept=e.n_kept.sum()/e.n_seen.sum())

def spread(o, fmt): return f"{np.median(o):{fmt}} ({min(o):{fmt}} to {max(o):{fmt}})"

def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--name', default='fashion_mnist', help='data set of get_dls')
    p.add_argument('--data', help='its folder; without it, it is downloaded')
    p.add_argument('--network', default='convnet', help='convnet, resnet or mlp')
    p.add_argument('--bs', type=int, default=128, help='batch size')
    p.add_argument('--lr', type=float, default=1e-2, help="highest learning rate of each run's one-cycle schedule")
    p.add_argument('--epochs', type=int, default=5, help='of each method; plain also runs with fewer')
    p.add_argument('--seeds', type=int, default=3)
    p.add_argument('--only', nargs='*', help='some of: '+', '.join(methods))
    args = p.parse_args()
    dls = get_dls(args.name, bs=args.bs, path=args.data)
    some = {k: v for k,v in methods.items() if not args.only or k in args.only}
    print(f"{args.name}, batch {args.bs}, {args.network}, {args.epochs} epochs, lr {args.lr}, {args.seeds} seeds, on {device_name(dls.device)}; "
          f"{', '.join(f'{k} {v}' for k,v in versions().items())}\n", flush=True)
    res = {k: [] for k in some}
    plain = {n: [] for n in range(max(1, args.epochs//2-1), args.epochs+2)} # methods may take longer than plain training, too
    for seed in range(args.seeds):
        jobs = [(k, args.epochs, f) for k,f in some.items()] + [(n, n, lambda **kw: SelectiveTraining(**kw)) for n in plain]
        for k,n,f in random.Random(seed).sample(jobs, len(jobs)):
            r = run(dls, args.network, seed, n, args.lr, f(plain_every=0, keep_losses=False))
            (plain if k in plain else res)[k].append(r)
            print(f"  seed {seed}, {f'plain, {n} epochs' if k in plain else k}: {r['s']:.1f} s, accuracy {r['accuracy']:.4f}", file=sys.stderr, flush=True)
    for rows in res.values():
        for seed,r in enumerate(rows):
            s,a = zip(*sorted((o[seed]['s'], o[seed]['accuracy']) for o in plain.values()))
            r['less'] = 100*(r['accuracy']-np.interp(r['s'], s, a)) if s[0]<=r['s']<=s[-1] else np.nan # not beyond what was run
    print('| run | samples trained on | training time, s | accuracy, % | accuracy less plain at that time, points |\n|---|---|---|---|---|')
    for n,rows in plain.items():
        print(f"| plain, {n} epochs | 100% | {spread([r['s'] for r in rows], '.1f')} | {spread([100*r['accuracy'] for r in rows], '.2f')} | |")
    for k,rows in res.items():
        d = [r['less'] for r in rows]
        less = spread(d, '+.2f') if np.isfinite(d).all() else 'outside of the plain runs'
        print(f"| {k} | {np.median([r['kept'] for r in rows]):.0%} | {spread([r['s'] for r in rows], '.1f')} | "
              f"{spread([100*r['accuracy'] for r in rows], '.2f')} | {less} |")

if __name__=='__main__': main()
