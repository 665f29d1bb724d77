"The record: its columns, its sums, its clock, and its files."
import json, os, pickle, subprocess, sys, zipfile
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from blf_explore.engine.record import Record, load
from blf_explore.blf import BatchLossFilter
from blf_explore.engine.filtering import SelectiveTraining
from blf_explore.gradients import GradientProbe, agreement_curve, cosine, sign_agreement, subset_grad
from core_tools import *

EPOCHS = 'epoch n_seen n_kept kept_pct t_score_s t_select_s t_train_s t_epoch_s overhead_pct sign_agreement cosine train_loss valid_loss'.split() # DESIGN.md

@pytest.fixture(scope='module')
def learn():
    learn = make_learner(metrics=[accuracy_, error_], cbs=GradientProbe(n=40)).batch_loss_filter(.7, .1, plain_every=3)
    class Move(Callback):
        def after_batch(self):
            if self.training and (self.epoch, self.iter)==(1, 2): self.learn.selection.set(loss_perc=.3)
    rows = []
    learn.logger = rows.append
    learn.fit(3, 1e-2, cbs=Move())
    learn.rows = rows
    return learn

def error_(p, y): return 1-accuracy_(p, y)

def test_columns(learn):
    assert list(learn.selection.epochs.columns)==EPOCHS+['accuracy_','error_']
    for o in learn.selection.epochs,learn.selection.batches: assert isinstance(o, pd.DataFrame)
    assert {'epoch','batch','n_seen','n_kept','kept_pct','t_score_s','t_select_s','t_train_s','train_loss','loss_perc','sample_perc'}<=set(learn.selection.batches.columns)
    assert learn.selection.epochs.equals(learn.selection.record.epochs) and learn.selection.batches.equals(learn.selection.record.batches)

def test_sums(learn):
    e,b = learn.selection.epochs,learn.selection.batches
    assert e.epoch.tolist()==[0, 1, 2] and b.batch.tolist()==list(range(18)) and b.epoch.tolist()==[0]*6+[1]*6+[2]*6
    sums = b.groupby('epoch')[['n_seen','n_kept','t_score_s','t_select_s','t_train_s']].sum().reset_index()
    np.testing.assert_allclose(e[sums.columns].astype(float), sums.astype(float))
    assert e.n_seen.tolist()==[90]*3 and (e.n_kept<90).all()
    np.testing.assert_allclose(e.kept_pct, e.n_kept/.9)
    np.testing.assert_allclose(b.kept_pct, 100*b.n_kept/b.n_seen)
    assert (e.t_score_s+e.t_select_s+e.t_train_s<=e.t_epoch_s).all() and (b[['t_score_s','t_select_s','t_train_s']]>0).all().all()

def test_fastais_numbers(learn):
    "Losses and metrics are those of fastai's own table."
    e = learn.selection.epochs
    for i,row in enumerate(learn.rows):
        np.testing.assert_allclose(list(row)[1:5], e.loc[i, ['train_loss','valid_loss','accuracy_','error_']].astype(float))
        assert list(row)[5]==e.n_kept[i]

def test_scores_of_every_sample(learn):
    r = learn.selection.record
    assert [len(o) for o in r.losses]==r.batches.n_seen.tolist() and all(o.dtype==np.float32 for o in r.losses)
    for o,row in zip(r.losses, r.batches.itertuples()): assert row.n_kept==max(2, len(brute_blf(o, row.loss_perc, row.sample_perc)))

def test_overhead():
    "100 (scoring + selecting) over what plain steps would have taken: here the clock is ours."
    import blf_explore.engine.timing as timing
    class Clock:
        now = 0.
        def perf_counter(self): return self.now
    clock = Clock()
    class Net(nn.Linear):
        def forward(self, x):
            clock.now += 2. if not self.training else len(x)/8 # scoring 2 s; a forward 1/8 s a sample
            return super().forward(x)
    class Spend(Callback):
        order = 0
        def before_step(self): clock.now += 1.
    old = timing.time
    timing.time = clock
    try:
        train,_ = blobs(96)
        learn = make_learner(dls=loaders(train, train), model=lambda: Net(6, 3), cbs=Spend(), metrics=None).batch_loss_filter(0., .5, plain_every=2)
        learn.fit(2)
    finally: timing.time = old
    e = learn.selection.epochs
    assert e.t_score_s.tolist()==[12.]*2 and e.t_select_s.tolist()==[0.]*2
    assert e.t_train_s.tolist()==[6*(1+1.)]*2 # 8 of 16 samples forward, and the optimizer's step
    np.testing.assert_allclose(e.overhead_pct, 100*12/(6*(2+1))) # a plain step: 16 samples and the optimizer
    assert len(learn.selection.record.plain)==6

def test_short_fits_have_an_overhead():
    train,_ = blobs(40)
    for n in 1,2,3: # batches in all
        learn = make_learner(dls=loaders(Rows(*[o[:16*n] for o in train.ts]), train)).batch_loss_filter(.5)
        learn.fit(1)
        assert np.isfinite(learn.selection.epochs.overhead_pct).all(), n

def test_plain_baseline():
    "`SelectiveTraining()` without a selector only measures."
    plain = make_learner()
    plain.fit(2, 1e-2)
    measured = make_learner(cbs=SelectiveTraining())
    measured.fit(2, 1e-2)
    assert_same(state(plain), state(measured))
    e = measured.selection.epochs
    assert e.n_kept.tolist()==[90, 90] and (e.overhead_pct==0).all() and (e.t_score_s==0).all()

def test_what_it_says(learn):
    info = learn.selection.record.info
    assert info['settings']==dict(loss_perc=.7, sample_perc=.1) and info['method']=='BLF' and info['seed']==1
    assert 'CPU' in info['device'] and info['versions']['torch'] and {'fastai','numpy','python','blf_explore'}<=set(info['versions'])
    assert learn.selection.record.changes.values.tolist()==[[1, 9, 'loss_perc', .7, .3]]
    json.dumps(info)

# ---- gradients

def flat(grads): return torch.cat([o.flatten() for o in grads])

def test_probe_against_brute_force():
    "Before training and at each epoch's end, beside a random pick of the same size."
    train,valid = blobs()
    nets = []
    class Keep(Callback):
        run_valid = False
        def after_train(self): nets.append(copy_of(self.model))
    probe = GradientProbe(n=90)
    learn = make_learner(dls=loaders(train, valid), cbs=[probe, Keep()]).batch_loss_filter(.6)
    learn.fit(2, 1e-2)
    p,e = learn.selection.record.probes,learn.selection.epochs
    assert p.n.tolist()==[90]*3 and p.epoch.tolist()==[0, 0, 1]
    x,y = train.ts # all of it: in whatever order the probe holds it
    for net,row,ep in zip(nets, p.iloc[1:].itertuples(), e.itertuples()):
        net.eval()
        losses = F.cross_entropy(net(x), y, reduction='none').detach()
        idxs = brute_blf(losses, .6, 0)
        ref,kept = [flat(torch.autograd.grad(F.cross_entropy(net(x[i]), y[i]), list(net.parameters()))) for i in (slice(None), idxs)]
        agree = ((ref.sign()==kept.sign())&(ref!=0)).sum()/(ref!=0).sum()
        assert row.n_kept==len(idxs) and row.sign_agreement==pytest.approx(float(agree), abs=.02)
        assert row.cosine==pytest.approx(float(F.cosine_similarity(ref, kept, dim=0)), abs=1e-3)
        assert ep.sign_agreement==row.sign_agreement and ep.cosine==row.cosine
    assert p.random_sign_agreement.between(0, 1).all() and p.random_cosine.between(-1, 1).all()

def copy_of(m):
    res = bn_net()
    res.load_state_dict(m.state_dict())
    return res

def test_probe_changes_nothing():
    a = make_learner().batch_loss_filter(.6); a.fit(2, 1e-2)
    b = make_learner(cbs=GradientProbe(n=32, every=2)).batch_loss_filter(.6); b.fit(2, 1e-2)
    assert_same(state(a), state(b))
    assert a.selection.batches.n_kept.tolist()==b.selection.batches.n_kept.tolist()

def test_probe_alone():
    with pytest.raises(ValueError, match='batch_loss_filter'): make_learner(cbs=GradientProbe()).fit(1)

def test_agreement_curve():
    torch.manual_seed(0)
    net = bn_net()
    x,y = blobs()[0].ts
    before = {k: v.clone() for k,v in net.state_dict().items()}
    c = agreement_curve(net, nn.CrossEntropyLoss(), (x,), (y,), n_bins=9)
    assert_same(before, net.state_dict()) and all(o.grad is None for o in net.parameters()) and net.training
    net.eval()
    order = F.cross_entropy(net(x), y, reduction='none').argsort(descending=True, stable=True)
    ref = flat(torch.autograd.grad(F.cross_entropy(net(x), y), list(net.parameters())))
    for i in range(9):
        k = 10*(i+1)
        g = flat(torch.autograd.grad(F.cross_entropy(net(x[order[:k]]), y[order[:k]]), list(net.parameters())))
        assert c['kept'][i]==pytest.approx(k/90)
        assert c['top']['sign_agreement'][i]==pytest.approx(float((g.sign()==ref.sign())[ref!=0].float().mean()), abs=.02)
        assert c['top']['cosine'][i]==pytest.approx(float(F.cosine_similarity(g, ref, dim=0)), abs=1e-3)
    assert c['top']['sign_agreement'][-1]==c['random']['sign_agreement'][-1]==1

# ---- files

def same(a, b):
    assert a.info==b.info and a.method==b.method
    for t in 'epochs','batches','plain','probes','changes': pd.testing.assert_frame_equal(getattr(a, t), getattr(b, t), check_dtype=False)
    assert len(a.losses)==len(b.losses) and all(np.array_equal(x, y, equal_nan=True) for x,y in zip(a.losses, b.losses))

def test_save_and_load(learn, tmp_path):
    r = learn.selection.record
    path = r.save(tmp_path/'run.npz')
    same(r, load(path)); same(r, Record.load(str(path)))
    assert os.listdir(tmp_path)==['run.npz'] # no temporary file stays
    r.save(path) # over itself
    same(load(path), r)
    empty = Record()
    same(load(empty.save(tmp_path/'empty.npz')), empty)
    assert (tmp_path/'odd.name') == r.save(tmp_path/'odd.name') and load(tmp_path/'odd.name').method=='BLF'

def test_no_pickle_inside(learn, tmp_path):
    path = learn.selection.record.save(tmp_path/'run.npz')
    with np.load(path, allow_pickle=False) as z:
        for k in z.files: assert z[k].dtype.kind in 'biufU' # read without pickle, or this raises

def test_truncated_anywhere(learn, tmp_path):
    data = learn.selection.record.save(tmp_path/'run.npz').read_bytes()
    for n in [0, 1, 10, 100, len(data)//3, len(data)//2, len(data)-100, len(data)-1]:
        (tmp_path/'cut.npz').write_bytes(data[:n])
        with pytest.raises(ValueError) as e: load(tmp_path/'cut.npz')
        assert 'cut.npz' in str(e.value) and 'Record.save' in str(e.value) and '\n' not in str(e.value)

def test_flipped_bytes(learn, tmp_path):
    "Never anything but the record or one sentence."
    data = bytearray(learn.selection.record.save(tmp_path/'run.npz').read_bytes())
    g = np.random.RandomState(0)
    refused = 0
    for i in g.choice(len(data), 60, replace=False):
        bad = bytearray(data); bad[i] ^= 0xff
        (tmp_path/'bad.npz').write_bytes(bad)
        try: same(learn.selection.record, load(tmp_path/'bad.npz'))
        except ValueError as e: assert 'bad.npz' in str(e); refused += 1
    assert refused>30

def test_foreign_files(tmp_path):
    (tmp_path/'text').write_text('epoch,n_kept\n0,3\n')
    (tmp_path/'pickle').write_bytes(pickle.dumps(dict(a=1)))
    np.save(tmp_path/'plain.npy', np.arange(4))
    np.savez(tmp_path/'other.npz', a=np.arange(3))
    np.savez(tmp_path/'objects.npz', head=np.array([dict(a=1)], dtype=object))
    np.savez(tmp_path/'head.npz', head=np.array(json.dumps(dict(format='something else', info={}))))
    np.savez(tmp_path/'nojson.npz', head=np.array('{'))
    np.savez(tmp_path/'list.npz', head=np.array('[1]'))
    np.savez(tmp_path/'half.npz', head=np.array(json.dumps(dict(format='blf_explore record 1', info=dict(method='BLF')))))
    with zipfile.ZipFile(tmp_path/'zip.zip', 'w') as z: z.writestr('a.txt', 'hello')
    torch.save(dict(a=torch.ones(2)), tmp_path/'model.pth')
    for f in tmp_path.iterdir():
        with pytest.raises(ValueError) as e: load(f)
        assert f.name in str(e.value) and 'Record.save' in str(e.value) and '\n' not in str(e.value), f
    with pytest.raises(FileNotFoundError, match='none.npz'): load(tmp_path/'none.npz')
    with pytest.raises(FileNotFoundError): load(tmp_path)

def test_whole_or_not_at_all(learn, tmp_path, monkeypatch):
    "A write that fails half-way leaves the old file as it was and nothing else."
    path = Record('plain').save(tmp_path/'run.npz')
    old = path.read_bytes()
    def full(f, **kw):
        f.write(b'half of it')
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(np, 'savez_compressed', full)
    with pytest.raises(OSError): learn.selection.record.save(path)
    with pytest.raises(OSError): learn.selection.record.save(tmp_path/'new.npz')
    assert path.read_bytes()==old and os.listdir(tmp_path)==['run.npz']
    with pytest.raises(OSError): learn.selection.record.save(tmp_path/'no'/'where.npz')

def test_an_open_file_stays_whole(learn, tmp_path):
    "Saving puts a new file in the old one's place: whoever is reading the old one reads on."
    path = Record('plain').save(tmp_path/'run.npz')
    with open(path, 'rb') as f:
        start = f.read(20)
        learn.selection.record.save(path)
        (tmp_path/'seen.npz').write_bytes(start+f.read())
    assert load(tmp_path/'seen.npz').method=='plain' and load(path).method=='BLF'

def test_not_finite_numbers_survive(tmp_path):
    r = Record('BLF', dict(loss_perc='SchedCos'))
    r.add('batches', epoch=0, batch=0, n_seen=4, n_kept=4, train_loss=float('nan'), finite=False)
    r.add('epochs', epoch=0, n_seen=4, n_kept=4, train_loss=float('inf'), valid_loss=None, note='text')
    r.losses.append(np.array([1, np.inf, np.nan, 0], np.float32))
    same(r, load(r.save(tmp_path/'r.npz')))
    assert load(tmp_path/'r.npz').epochs.train_loss[0]==float('inf')

# ---- what is imported

def fresh(code):
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent).stdout

def test_imports():
    "`import blf_explore` is light; a record is read without torch."
    heavy = "print([o for o in ('torch','fastai','numpy','pandas','plotly','matplotlib','IPython') if o in sys.modules])"
    assert fresh(f"import sys, blf_explore; blf_explore.__version__; {heavy}").strip()=='[]'
    assert "'torch'" not in fresh(f"import sys, blf_explore.engine.record; {heavy}") and "'fastai'" not in fresh(f"import sys, blf_explore.engine.record; {heavy}")
