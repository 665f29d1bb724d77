"Two processes that train together, against a loop in one process."
import os, subprocess, sys
from pathlib import Path
import numpy as np, pytest, torch
import two_processes
from core_tools import *
from references import together_by_hand
from waits import wait_until

pytestmark = pytest.mark.slow

@pytest.fixture(scope='module')
def two(tmp_path_factory):
    "What two processes that trained together left behind: name -> one dict per process."
    folder,here = tmp_path_factory.mktemp('two'),Path(__file__).resolve().parent
    logs = [open(folder/f'log_{r}', 'w+') for r in (0,1)]
    env = os.environ | dict(OMP_NUM_THREADS='1', PYTHONPATH=os.pathsep.join(sys.path))
    ps = [subprocess.Popen([sys.executable, '-W', 'ignore', here/'two_processes.py', folder, str(r)], cwd=folder, env=env,
                           stdout=logs[r], stderr=logs[r]) for r in (0,1)]
    try: # one that fails takes the other with it: that would wait for ever
        wait_until(lambda: all(p.poll() is not None for p in ps) or any(p.poll() for p in ps), what='two processes that train together')
    finally:
        for p in ps: p.kill(); p.wait()
    said = ''
    for o in logs:
        o.seek(0); said += o.read()[-3000:]; o.close()
    assert [p.returncode for p in ps]==[0, 0], said
    return lambda name: [torch.load(folder/f'{name}_{r}.pth') for r in (0,1)]

@double
@pytest.mark.parametrize('name', ['filter','weighted','queue','queue_weighted','stale','switch'])
def test_two_processes(two, name):
    "The averaged gradient weighs samples, not processes, whatever each of them kept."
    (kw,n_epoch),(kw1,_) = two_processes.cases(0)[name],two_processes.cases(1)[name]
    res = two(name)
    assert_same(res[0]['model'], res[1]['model'])
    on = (lambda r, i: i%2==r) if name=='switch' else (lambda r, i: True)
    ref,trained,scored,shown = together_by_hand(res, n_epoch, [kw['selector'], kw1['selector']], 'queue' in name,
                                                kw.get('stale', 0), on)
    for k,v in ref.model.state_dict().items(): torch.testing.assert_close(res[0]['model'][k], v, rtol=1e-9, atol=1e-9, msg=k)
    for r in (0,1):
        if 'queue' not in name: # fastai takes it down before the queue is emptied
            np.testing.assert_allclose(res[r]['train_loss'], shown, rtol=1e-6)
        assert sum(res[r]['n_trained'])==sum(o[r] for o in trained)==sum(res[r]['n_kept'])
        assert res[r]['n_scored']==scored[r]
    assert any(a!=b for a,b in trained) # they kept different numbers
    if 'queue' in name: assert 0 in res[0]['n_trained']
    if name=='stale': assert 0 in scored[0] or min(scored[0])<max(scored[0])
    seen = [{o[0].item() for e,x,_ in res[r]['batches'] if e==0 for o in x} for r in (0,1)]
    assert len(seen[0]|seen[1])==90 and len(seen[0]&seen[1])<=1 # each its own part

@double
def test_two_processes_that_keep_all(two):
    "Bit for bit fastai's own training on two processes, BatchNorm included."
    for a,b in zip(two('fastai'), two('all')): assert_same(a['model'], b['model'])

@double
def test_two_processes_one_sample(two):
    "One process has a sample more than two batches for a network with BatchNorm, the other two more than one: neither waits or fails."
    a,b = two('one')
    assert a['n_trained']==[0, 0, 33] and b['n_trained']==[0, 0, 18]
    assert_same(*[{k: v for k,v in o['model'].items() if 'running' not in k} for o in (a, b)])
    assert sum(a['n_trained'])==sum(a['n_kept']) and sum(b['n_trained'])==sum(b['n_kept'])

@double
@pytest.mark.parametrize('name', PRESETS)
def test_two_processes_of_every_method(two, name):
    "They end with the same weights, whatever each drew; no sample is lost, and none waits for ever."
    a,b = two(name)
    assert_same(a['model'], b['model'])
    assert all(v.isfinite().all() for v in a['model'].values())
    if name=='plain': return
    for o in a,b: assert sum(o['n_trained'])==sum(o['n_kept'])<sum(o['n_seen'])==3*45
    if name=='SB': assert a['n_kept']!=b['n_kept'] and a['n_kept'][:3]==a['n_seen'][:3] # after the warm-up
    if name in BY_EPOCH: assert len(a['n_kept'])==len(b['n_kept'])<=9 and sum(a['n_kept'])==sum(b['n_kept']) # one choice for both

@double
def test_two_processes_accumulation(two):
    "Each would count its own samples, step at another time, and have other weights from then on: refused, in a sentence."
    for o in two('message'): assert 'GradientAccumulation' in o
