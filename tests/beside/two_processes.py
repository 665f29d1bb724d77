"""One of two processes that train together on a CPU: python two_processes.py FOLDER RANK

test_processes.py starts both, and compares what they leave in FOLDER with a loop in one process."""
import datetime, os, random, sys
from pathlib import Path

class OfRank:
    "Keeps another share of each batch, and on each process another one."
    def __init__(self, rank, weights=False): self.n,self.weights = 3*rank,weights
    def __call__(self, scores):
        from blf_explore.all import Selection
        self.n += 1
        k = max(1, round(len(scores)*(.1, .5, 1., .7, .3, .9, .2)[self.n%7]))
        i = scores.argsort(descending=True, stable=True)[:k]
        return Selection(i, 1/(len(scores)*scores[i].double()/scores.double().sum()) if self.weights else None)

class OneProcessFirst:
    "A switch that is on in turn, on one process while it is off on the other."
    score = None
    def __init__(self, rank): self.rank = rank
    def start(self): return 0
    def update(self, state, scores, cb): return state+1
    def is_on(self, state, n, cb): return cb.iter%2==self.rank
    def check(self, cb): pass

def cases(rank):
    "name: (keyword arguments of the callback, epochs)"
    from blf_explore.engine.losses import per_sample_loss
    switch = OneProcessFirst(rank)
    switch.score = per_sample_loss
    return dict(filter=(dict(selector=OfRank(rank), plain_every=2), 2),
                weighted=(dict(selector=OfRank(rank, True)), 2),
                queue=(dict(selector=OfRank(rank), queue=True), 3),
                queue_weighted=(dict(selector=OfRank(rank, True), queue=True), 2),
                stale=(dict(selector=OfRank(rank), stale=1), 4),
                switch=(dict(selector=OfRank(rank), switch=switch, plain_every=1), 2))

def main(folder, rank):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2', LOCAL_WORLD_SIZE='2', OMP_NUM_THREADS='1')
    import torch, torch.distributed as dist
    from fastai.callback.training import GradientAccumulation
    from fastai.distributed import DistributedDL
    from blf_explore.all import Selection, SelectiveTraining
    from core_tools import Callback, PRESETS, bare, learner, net
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    dist.init_process_group('gloo', init_method=f'file://{folder}/meeting', rank=rank, world_size=2,
                            timeout=datetime.timedelta(days=1)) # the test sees when one has ended, and ends the other

    def broadcast(self, t, rank): # fastai's own sends the order through the GPU
        t = torch.LongTensor(t)
        dist.broadcast(t, rank)
        return t.tolist()
    DistributedDL._broadcast = broadcast

    class Watch(Callback):
        "The batches as they come, and the samples that are trained on."
        order,run_valid = 54,False
        def before_fit(self): self.batches = []
        def before_batch(self):
            if self.learn.selection is None or self.learn.selection._fit is None or self.learn.selection._fit.rest is None:
                self.batches.append((self.epoch, self.xb[0].clone(), self.yb[0].clone()))

    def run(name, n, cb, model=bare, cbs=(), lr=.1):
        random.seed(rank) # each process has its own random numbers
        learn = learner([Watch(), *cbs], model=model)
        torch.manual_seed(rank)
        if cb is not None: learn.add_cb(cb)
        else: learn.selection = None
        with learn.distrib_ctx(sync_bn=False, cpu=True): learn.fit(n, lr)
        res = dict(model=learn.model.state_dict(), batches=learn.watch.batches,
                   train_loss=[float(o[0]) for o in learn.recorder.values])
        if cb is not None:
            b = cb.batches
            res |= {o: b[o].tolist() for o in ('n_seen','n_kept','n_trained','n_scored')}
        torch.save(res, f'{folder}/{name}_{rank}.pth')

    for name,(kw,n) in cases(rank).items(): run(name, n, SelectiveTraining(**kw))
    run('fastai', 2, None, net)
    run('all', 2, SelectiveTraining(selector=lambda s: Selection(torch.arange(len(s))), plain_every=2), net)
    def one(scores): return Selection(torch.arange(6 if rank else 16 if len(scores)==16 else 1)) # 18 of 45, or 33: two batches and one
    run('one', 1, SelectiveTraining(selector=one, queue=True), net)
    # every method: the draws, the switch and the memory are each process's own
    for name,make in PRESETS.items(): run(name, 3, make(plain_every=2, **(dict(tau_th=.4) if name=='importance' else {})))
    try: run('accumulation', 1, SelectiveTraining(selector=OfRank(rank)), cbs=[GradientAccumulation(20)])
    except ValueError as e: message = str(e)
    torch.save(message, f'{folder}/message_{rank}.pth')
    dist.barrier()
    dist.destroy_process_group()

if __name__=='__main__': main(Path(sys.argv[1]), int(sys.argv[2]))
