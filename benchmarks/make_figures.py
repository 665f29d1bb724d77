"""Make blf_explore/records/figures.json.xz anew, what the figures of page.figures show: `python benchmarks/make_figures.py`, under a minute on one core.

Two trainings on the digits, plain, and one with a fifth of the labels flipped; what one batch was like before and after each epoch. The same
on the same machine and libraries, whoever runs it, but for the times of steps, which are kept as they are unless `--times` measures them anew."""
import argparse, json, lzma
from pathlib import Path
import torch.nn.functional as F
from fastai.basics import *
from fastai.callback.schedule import *
from torch.func import functional_call, grad, vmap
from blf_explore.engine.data import get_dls, get_model
from blf_explore.engine.losses import per_sample_loss
from blf_explore.engine.timing import device_name, step_costs
from blf_explore.engine.traces import eval_mode, rng_untouched
from blf_explore.gradients import agreement_curve
from blf_explore.importance import grad_norm_bound
from blf_explore.rho import half_losses
from blf_explore.sb import percentiles

path = Path(__file__).resolve().parent.parent/'blf_explore'/'records'/'figures.json.xz'
n_epoch,n_long,bs,lr,seed = 8,16,64,1e-2,42

def rounded(o, digits=4):
    "Numbers of a tensor or of lists to so many significant digits, so that the file is small."
    if isinstance(o, Tensor): o = o.tolist()
    return [rounded(v, digits) for v in o] if isinstance(o, list) else float(f'{o:.{digits}g}') if isinstance(o, float) else o

class Watch(Callback):
    "`state(learn, epoch)` before training and after each epoch; each batch's losses before the step that it is trained in, and in it."
    run_valid = False
    def __init__(self, state): self.state,self.states,self.before,self.during = state,[],[],[]
    def _look(self):
        with rng_untouched('cpu'), eval_mode(self.model): self.states.append(self.state(self.model, self.epoch, self.before))
    def before_train(self):
        if not self.epoch: self._look()
    def before_batch(self):
        with rng_untouched('cpu'), eval_mode(self.model), torch.no_grad(): self.before.append(per_sample_loss(self.loss_func, self.model(*self.xb), *self.yb))
    def after_pred(self):
        with torch.no_grad(): self.during.append(per_sample_loss(self.loss_func, self.pred.detach(), *self.yb))
    def after_train(self): self._look()

def trained(dls, state, n_epoch):
    set_seed(seed)
    dls.train.rng = random.Random(seed)
    watch = Watch(state)
    learn = Learner(dls, get_model('convnet', dls), cbs=watch)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(n_epoch, lr)
    return learn,watch

def drawn(dls, n):
    "Positions in the training set; by another seed than that of the flipped labels, which are a permutation's first ones, too."
    return torch.randperm(len(dls.train_ds), generator=torch.Generator().manual_seed(seed+1))[:n]

def losses_of(model, x, y):
    with torch.no_grad(): return F.cross_entropy(model(x), y, reduction='none')

def gradients(model, x, y):
    "Of each sample: the bound of its gradient's norm, the norm, and the gradient's length along the batch's own gradient."
    params = {k: o.detach() for k,o in model.named_parameters()}
    gs = vmap(grad(lambda p, x, y: F.cross_entropy(functional_call(model, p, (x[None],)), y[None])), (None,0,0))(params, x, y)
    g = torch.cat([o.reshape(len(x), -1) for o in gs.values()], 1).double()
    mean = g.mean(0)
    with torch.no_grad(): bound = grad_norm_bound(F.cross_entropy, model(x), y)
    return dict(bound=rounded(bound), norm=rounded(g.norm(dim=1), 6), along=rounded(g@mean/mean.norm(), 6), mean=mean.norm().item())

def agreement(model, x, y):
    "`agreement_curve` of a larger batch, at random the mean of five orders."
    runs = [agreement_curve(model, nn.CrossEntropyLoss(), (x,), (y,), seed=seed+i) for i in range(5)]
    return dict(kept=rounded(runs[0]['kept']), top=rounded(runs[0]['top']['sign_agreement']),
                random=rounded(np.mean([o['random']['sign_agreement'] for o in runs], 0).tolist()))

def plain():
    dls = get_dls('digits', bs=bs, seed=seed)
    ds = dls.train_ds
    here,many = drawn(dls, bs),drawn(dls, 512)
    x,y = ds[here]
    def state(model, epoch, seen):
        losses = losses_of(model, x, y)
        history = torch.cat([*seen, losses])[-1024:]
        return dict(losses=rounded(losses), percentiles=rounded(percentiles(losses, history)), gradients=gradients(model, x, y), agreement=agreement(model, *ds[many]))
    learn,watch = trained(dls, state, n_epoch)
    with torch.no_grad(), eval_mode(learn.model): f = learn.model[:-1](x).double()
    u,s,_ = torch.linalg.svd(f-f.mean(0), full_matrices=False) # principal components
    n_iter = len(dls.train)
    res = {k: [o[k] for o in watch.states] for k in watch.states[0]}
    images = (ds.image(x)*255).round().byte()[:,0].flatten(1).tolist()
    return res | dict(images=images, labels=y.tolist(), features=rounded(u[:,:2]*s[:2]), explained=((s[:2]**2).sum()/(s**2).sum()).item(),
                      order=torch.randperm(bs, generator=torch.Generator().manual_seed(seed)).tolist(),
                      training=[rounded(torch.stack(watch.before[i*n_iter:(i+1)*n_iter])) for i in range(n_epoch)])

def below_mean():
    "A longer plain training: the share of the samples whose training loss was below the epoch's mean, epoch by epoch."
    dls = get_dls('digits', bs=bs, seed=seed)
    _,watch = trained(dls, lambda *args: None, n_long)
    n_iter = len(dls.train)
    epochs = [torch.cat(watch.during[i*n_iter:(i+1)*n_iter]).double() for i in range(n_long)]
    return dict(below=[(o<o.mean()).double().mean().item() for o in epochs], n=n_iter*bs)

def wrong_labels(n=128):
    dls = get_dls('digits', bs=bs, label_noise=.2, seed=seed)
    holdout,here = half_losses(dls, seed),drawn(dls, n)
    x,y = dls.train_ds[here]
    _,watch = trained(dls, lambda model, *_: rounded(losses_of(model, x, y)), n_epoch)
    return dict(losses=watch.states, holdout=rounded(holdout[here]), wrong=torch.isin(here, dls.flipped).int().tolist())

def times():
    "Milliseconds of F, F' and B, medians of 40 rounds, of the small convnet."
    res = {}
    for name,n in (('digits', 64),('fashion_small', 128)):
        dls = get_dls(name, bs=n, seed=seed)
        x,y = (o.as_subclass(Tensor) for o in dls.train_ds[torch.arange(n)])
        t = {k: 1000*np.median(v) for k,v in step_costs(get_model('convnet', dls), F.cross_entropy, x, y, n=40).items()}
        res[name] = {k: rounded(float(v), 3) for k,v in dict(F=t['forward'], score=t['scoring'], B=t[1.]-t['forward']).items()}
    return res | dict(device=device_name('cpu'))

def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--times', action='store_true', help='measure the times of steps on this machine anew')
    p.add_argument('--out', type=Path, default=path)
    args = p.parse_args()
    torch.set_num_threads(1)
    was = json.loads(lzma.decompress(path.read_bytes())) if path.is_file() else {}
    gen = torch.Generator().manual_seed(seed)
    res = dict(about='the digits, convnet, batches of 64, one-cycle, lr .01, seed 42', plain=plain(), uniforms=rounded(torch.rand(40, 32, generator=gen)),
               infobatch=below_mean(), noisy=wrong_labels(), times=times() if args.times or not was else was['times'])
    args.out.write_bytes(lzma.compress(json.dumps(res, separators=(',',':')).encode(), preset=9|lzma.PRESET_EXTREME))
    print(f'{args.out.name}: {args.out.stat().st_size} bytes')

if __name__=='__main__': main()
