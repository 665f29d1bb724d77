"""Does BatchLossFilter pay in a set-up of the dashboard? Its two runs as the page trains them, batch by batch in turn, several seeds:

    python benchmarks/default_setup.py                                 # the page's two set-ups
    python benchmarks/default_setup.py 'bs=256' 'bs=256&redundancy=.9' # others: what follows '?' in the page's address
    python benchmarks/default_setup.py --step .41 .79                  # on a busy machine: a thread's own seconds of one step

Per seed: how long the page takes from Run to done, BLF's training time (scoring, selecting, training) over plain training's, both
accuracies and the share of samples that BLF trained on, in all and in each epoch. Times are, in each epoch, the median batch times the
number of batches, so that a batch during which the machine did something else does not decide; the ratio of plain sums stands beside it."""
import argparse, time
import numpy as np
from blf_explore.page.sessions import dashboard_presets, from_query
from blf_explore.page.widgets import LiveDashboard

def seconds(record):
    "(Sum over epochs of the median batch times the number of batches, plain sum), in seconds."
    b = record.batches
    t = b[['t_score_s','t_select_s','t_train_s']].fillna(0).sum(axis=1)
    by = t.groupby(b['epoch'])
    return (by.median()*by.count()).sum(),t.sum()

def run(settings):
    dash = LiveDashboard(**settings)
    try:
        dash.wait()
        t0 = time.perf_counter()
        dash.run()
        if dash.wait(('done','error'))=='error': raise RuntimeError(dash._error())
        wall,(blf,plain) = time.perf_counter()-t0,dash.records.values()
        (a,a_sum),(b,b_sum),e = seconds(blf),seconds(plain),blf.epochs
        return dict(wall=wall, ratio=a/b, sums=a_sum/b_sum, blf_s=a, plain_s=b, blf=100*e.accuracy.iloc[-1], plain=100*plain.epochs.accuracy.iloc[-1],
                    kept=100*e.n_kept.sum()/e.n_seen.sum()), e.kept_pct.round().astype(int).tolist()
    finally: dash.close()

def step_costs(kept, rounds=40):
    "{share kept: a look at the batch and a step on that share, over the plain step}: a thread's own time, which other programs hardly change."
    import torch, torch.nn.functional as F
    from blf_explore.engine.data import get_dls, get_model
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dls = get_dls('fashion_small', bs=128)
    model = get_model('convnet', dls)
    opt,(x,y) = torch.optim.Adam(model.parameters()),dls.one_batch()
    def step(share):
        n = round(share*len(y))
        F.cross_entropy(model(x[:n]), y[:n]).backward()
        opt.step()
        opt.zero_grad()
    @torch.no_grad()
    def look(_):
        model.eval()
        F.cross_entropy(model(x), y, reduction='none')
        model.train()
    def timed(f, share):
        t = time.thread_time()
        f(share)
        return time.thread_time()-t
    for _ in range(3): step(1.), look(1.)
    t = np.median([[timed(look, 1.), *(timed(step, o) for o in (1., *kept))] for _ in range(rounds)], axis=0)
    return {k: (t[0]+o)/t[1] for k,o in zip(kept, t[2:])}

def row(name, seed, o, by_epoch=''):
    return (f"| {name} | {seed} | {o['wall']:.0f} | {o['ratio']:.2f} | {o['sums']:.2f} | {o['blf_s']:.1f} | {o['plain_s']:.1f} | "
            f"{o['blf']:.2f} | {o['plain']:.2f} | {o['kept']:.0f} | {by_epoch} |")

def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('setups', nargs='*', help="settings that differ from the page's, as in its address; none: the page's two set-ups")
    p.add_argument('--seeds', type=int, nargs='+', default=[42, 1, 2])
    p.add_argument('--step', type=float, nargs='+', metavar='KEPT', help='only what a step costs at these shares kept')
    args = p.parse_args()
    if args.step: return print('; '.join(f'{k:.0%} kept: {r:.2f} of a plain step' for k,r in step_costs(args.step).items()))
    setups = {o: from_query(o)[0] for o in args.setups} or dashboard_presets
    cols = 'set-up','seed','both runs, s','BLF / plain, time','of plain sums','BLF, s','plain, s','BLF, %','plain, %','kept, %','in each epoch'
    print(f"| {' | '.join(cols)} |\n{'|---'*len(cols)}|", flush=True)
    for name,settings in setups.items():
        res = []
        for seed in args.seeds:
            o,by_epoch = run(settings | dict(seed=seed))
            res.append(o)
            print(row(name, seed, o, ' '.join(map(str, by_epoch))), flush=True)
        if len(res)>1: print(row(name, 'median', {k: np.median([o[k] for o in res]) for k in res[0]}), flush=True)

if __name__=='__main__': main()
