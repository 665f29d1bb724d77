"""Make the record behind the lesson on what would have happened: python benchmarks/make_what_if.py [--epochs 8] [--out FILE]

Trains the convnet on `fashion_small` plainly, and keeps every sample's loss batch by batch, what steps cost by their size, and the agreement
of signs at 20 cuts at the end of each epoch. Then trains at six settings for real, so that the lesson can say how far the what-if is off.
Times are what the one thread itself spends, so that other programs on the machine hardly change them. Some ten minutes on one core; the record
has half a megabyte at most, and no pickle."""
import argparse, itertools, time, warnings
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
import numpy as np, torch
from fastai.basics import *
from fastai.callback.schedule import *
from blf_explore.all import (BatchLossFilter, Record, SelectiveTraining, Selection, agreement_curve, get_dls, get_model, unit_costs)
from blf_explore.engine import timing

settings = [(.9, 0.), (.7, 0.), (.5, 0.), (0., .5), (0., .25), (.9, .5)] # (loss_perc, sample_perc) of the live runs

def learner(cb=None, seed=42):
    torch.manual_seed(seed)
    dls = get_dls('fashion_small', bs=128, seed=seed)
    return Learner(dls, get_model('convnet', dls), metrics=accuracy, cbs=cb)

class Curves(Callback):
    "The agreement of signs at 20 cuts of 1,024 training samples, at the end of each epoch."
    order,run_valid = 59,False
    def before_fit(self): self.found,(self.x,self.y) = [],[o[:1024] for o in self.probe()]
    def probe(self):
        xs,ys = zip(*itertools.islice(self.dls.train.new(shuffle=False), 8))
        return torch.cat(xs).as_subclass(Tensor),torch.cat(ys).as_subclass(Tensor)
    def after_train(self):
        with self.learn.selection._fit.log.timer.excluded():
            c = agreement_curve(self.model, self.loss_func, (self.x,), (self.y,), n_bins=20)
            self.found.append(dict(kept=c['kept'], top=c['top']['sign_agreement'], random=c['random']['sign_agreement']))

def fit(learn, epochs):
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, 1e-2)
    return learn.selection.record

def per_epoch(rec):
    "Samples kept, and seconds per epoch: medians of a batch, times the batches, which one neighbour's burst cannot move."
    b,p = rec.batches,rec.plain
    t = b.groupby('epoch')[['t_score_s','t_select_s','t_train_s']].median().sum(axis=1)*b.groupby('epoch').size()
    return dict(n_kept=b.groupby('epoch').n_kept.sum().tolist(), t_s=t.tolist(), plain_s=(p.groupby('epoch').t_train_s.median()*b.groupby('epoch').size()).tolist())

def live(loss_perc, sample_perc, epochs):
    rec = fit(learner(BatchLossFilter(loss_perc, sample_perc, plain_every=20, keep_losses=False)), epochs)
    return dict(loss_perc=loss_perc, sample_perc=sample_perc, accuracy=rec.epochs.accuracy.iloc[-1].item(), **per_epoch(rec))

def plainly(epochs):
    "A plain training whose samples are scored all the same, as a small record."
    curves = Curves()
    run = fit(learner([SelectiveTraining(selector=lambda scores: Selection(torch.arange(len(scores))), plain_every=0), curves]), epochs)
    rec = Record('plain', device=run.info['device'], seed=42, data='fashion_small', network='convnet', bs=128, lr=1e-2, agreement=curves.found)
    for r in run.rows['batches']: rec.add('batches', **{k: r[k] for k in ('epoch','batch','n_seen','n_kept')})
    for r in run.rows['epochs']: rec.add('epochs', **{k: r[k] for k in ('epoch','n_seen','n_kept','train_loss','valid_loss','accuracy')})
    rec.losses = [o.astype(np.float16) for o in run.losses]
    return rec

def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--epochs', type=int, default=8)
    p.add_argument('--out', default=Path(__file__).parent.parent/'blf_explore'/'records'/'what-if.npz')
    args = p.parse_args()
    warnings.simplefilter('ignore', FutureWarning) # torch's own
    torch.set_num_threads(1)
    timing.time = SimpleNamespace(perf_counter=time.thread_time) # the clock of the work itself
    rec = plainly(args.epochs)
    print('plain', rec.rows['epochs'][-1]['accuracy'], flush=True)
    rec.info['costs'] = asdict(unit_costs(learner, {'BLF': lambda learn: learn.batch_loss_filter()}))
    print(rec.info['costs'], flush=True)
    rec.info['live'] = []
    for o in settings:
        rec.info['live'].append(live(*o, args.epochs))
        rec.save(args.out)
        print({k: rec.info['live'][-1][k] for k in ('loss_perc','sample_perc','n_kept','accuracy')}, flush=True)

if __name__=='__main__': main()
