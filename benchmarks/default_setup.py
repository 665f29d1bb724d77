"""Does BatchLossFilter pay in a set-up of the dashboard? Its two runs as the page trains them, batch by batch in turn, several seeds:

    python benchmarks/default_setup.py                                 # the page's two set-ups
    python benchmarks/default_setup.py 'bs=256' 'bs=256&redundancy=.9' # others: what follows '?' in the page's address

Per seed: how long the page takes from Run to done, BLF's training time (scoring, selecting, training) over plain training's, both
accuracies and the share of samples that BLF trained on, in all and in each epoch. Times are, in each epoch, the median batch times the
number of batches, so that a batch during which the machine did something else does not decide; the ratio of plain sums stands beside it."""
import argparse, time
import numpy as np
from blf_explore.page.widgets import LiveDashboard, dashboard_presets, from_query

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

def row(name, seed, o, by_epoch=''):
    return (f"| {name} | {seed} | {o['wall']:.0f} | {o['ratio']:.2f} | {o['sums']:.2f} | {o['blf_s']:.1f} | {o['plain_s']:.1f} | "
            f"{o['blf']:.2f} | {o['plain']:.2f} | {o['kept']:.0f} | {by_epoch} |")

def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('setups', nargs='*', help="settings that differ from the page's, as in its address; none: the page's two set-ups")
    p.add_argument('--seeds', type=int, nargs='+', default=[42, 1, 2])
    args = p.parse_args()
    setups = {o: from_query(o) for o in args.setups} or dashboard_presets
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
