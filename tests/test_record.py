"The record: its columns, its sums, its clock, and its files."
import json, math, os, pickle, subprocess, sys, zipfile
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple
import numpy as np, pandas as pd, pytest, torch
from fastai.basics import AccumMetric, CancelTrainException, CancelValidException
from blf_explore.engine.record import Record, joined, load, metric_columns
from blf_explore.engine.filtering import SelectiveTraining
from blf_explore.gradients import GradientProbe, agreement_curve
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

# ---- what metrics return

def old_file(path, tables, losses, **info):
    "A file of format 1, written by none of our code: one array a column, of NumPy's own types."
    info = dict(method='BLF', settings={}, device='cpu', seed=None, versions={}) | info
    head = dict(format='blf_explore record 1', info=info)
    arrays = {f'{t}.{c}': np.array(v) for t,cols in tables.items() for c,v in cols.items()}
    lens = np.array([len(o) for o in losses])
    np.savez_compressed(path, head=np.array(json.dumps(head)), losses=np.concatenate(losses), lens=lens, **arrays)

def test_old_files_load(tmp_path):
    tables = {t: dict(epoch=np.zeros(0)) for t in ('plain','probes','changes')}
    tables['batches'] = dict(epoch=[0], batch=[0], finite=[True])
    tables['epochs'] = dict(epoch=[0, 1], n_kept=[5, 6], valid_loss=[.5, np.nan], note=['', 'two'])
    tables['epochs']['with a/slash'] = [np.nan, 1.5]
    old_file(tmp_path/'old.npz', tables, [np.float32([1, 2])], n_iter=1)
    r = load(tmp_path/'old.npz')
    e = r.epochs
    assert e.n_kept.tolist()==[5, 6] and e.note.tolist()==['','two']
    assert e['with a/slash'][1]==1.5 and np.isnan(e.valid_loss[1])
    assert r.batches.finite.tolist()==[True] and r.losses[0].tolist()==[1, 2] and r.info['n_iter']==1
    same(load(r.save(tmp_path/'new')), r)

class Stats(NamedTuple):
    hits: int
    rate: float

@dataclass
class Counts:
    tp: object
    by_class: object

def test_any_value(tmp_path):
    "What a metric may return, beside what a person would write down."
    t = torch.tensor
    values = [(None, None), (True, True), (np.bool_(False), False), (np.float32(.5), .5), (np.int64(7), 7), (t(3), 3),
              (t(.5).requires_grad_(), .5), (t([.25, .75], dtype=torch.bfloat16), [.25, .75]), (np.zeros((0, 2)), []),
              (np.array([[3, 1], [0, 4]]), [[3, 1], [0, 4]]), (t([[True], [False]]), [[True], [False]]),
              (2**60+1, 2**60+1), (np.uint64(2**63+1), 2**63+1), (2**80, 2**80), (float('inf'), float('inf')),
              ('good', 'good'), ('', ''), ('ends in \0', 'ends in \0'), ('Ünï "code"\n', 'Ünï "code"\n'),
              (1+2j, '(1+2j)'), (Fraction(1, 4), .25), (Decimal('.5'), .5), ({2, 1}, [1, 2]),
              (L(t(1), None), [1, None]),
              (dict(a=t(1.), b={2: [np.float64(3)]}), dict(a=1., b={'2': [3.]})),
              ({1: 'x', '1': 'y'}, {'1': 'x', '1 (2)': 'y'}), (Stats(3, t(.5)), dict(hits=3, rate=.5)),
              (Counts(t(3), np.ones(2)), dict(tp=3, by_class=[1., 1.])), (b'raw', "b'raw'"), (float, "<class 'float'>"),
              (pd.Series([1, 2], index=['a','b']), dict(a=1, b=2)), (torch.eye(2).to_sparse(), None)]
    r,names = Record(),[f'm{i}' for i in range(len(values))]
    r.add('epochs', epoch=0, **metric_columns(names, [v for v,_ in values]))
    loaded = load(r.save(tmp_path/'r.npz'))
    same(loaded, r)
    for nm,(v,right) in list(zip(names, values))[:-1]:
        for got in r.epochs[nm][0],loaded.epochs[nm][0]:
            if right is None: assert np.isnan(got)
            else:
                got = got.item() if isinstance(got, np.generic) else got
                assert got==right and type(got) is type(right), v
    assert isinstance(loaded.epochs[names[-1]][0], (str,list)) # a sparse tensor: to be read, at least

def test_a_column_keeps_its_type():
    def kind(*vals):
        r = Record()
        for v in vals: r.add('epochs', **({} if v is None else dict(m=v)))
        return r.columns('epochs').get('m', np.zeros(0)).dtype.kind
    assert (kind(1, 2), kind(.5, 1), kind(True, False), kind('a', None))==('i','f','b','U')
    assert (kind(1, None), kind(2**53, None), kind(2**62, 1))==('f','f','i')
    for o in (2**62, None), (2**62, .5), ('a', 1), ([1], [2]), ([1], .5), ({}, {}): assert kind(*o)=='O'

def test_a_metric_that_changes(tmp_path):
    "Another shape, another kind, or nothing, from epoch to epoch."
    r,vals = Record(),[np.ones(2), None, np.ones((2, 3)), .5, 'failed', float('nan'), [], 2**70]
    for i,v in enumerate(vals): r.add('epochs', epoch=i, **metric_columns(['m'], [v]))
    right = [[1., 1.], math.nan, [[1.]*3]*2, .5, 'failed', math.nan, [], 2**70]
    for o in r,load(r.save(tmp_path/'r.npz')):
        for a,b in zip(o.epochs.m, right): assert a==b or a!=a and b!=b
        assert o.epochs.m.isna().tolist()==[False, True, False, False, False, True, False, False]

def test_a_large_matrix(tmp_path):
    r,m = Record(),np.random.RandomState(0).rand(500, 400)
    for i in range(3): r.add('epochs', epoch=i, **metric_columns(['confusion'], [m+i]))
    assert np.array_equal(np.array(load(r.save(tmp_path/'r.npz')).epochs.confusion[2]), m+2)

NAMES = [(['accuracy']*3, ['accuracy','accuracy (2)','accuracy (3)']),
         (['a','a','a (2)'], ['a','a (3)','a (2)']), # a name of one's own stays
         (['cosine','n_kept','epoch','fit'], ['cosine (metric)','n_kept (metric)','epoch (metric)','fit (metric)']),
         (['cosine','cosine','cosine (metric)'], ['cosine (metric) (2)','cosine (metric) (3)','cosine (metric)']),
         (['train_loss','valid_loss']*2, ['train_loss','valid_loss','train_loss (metric)','valid_loss (metric)']),
         (['', 'a', '  ', None, 'metric'], ['metric','a','metric (2)','metric (3)','metric (4)']),
         (['a.b','a/b','../a','a\0','größe','a\nb','.npy','a.npy','a','x'*70000,'\ud800','self','table','time'],)*2]

@pytest.mark.parametrize('names,cols', NAMES)
def test_names_told_apart(tmp_path, names, cols):
    got = metric_columns(names, range(len(names)))
    assert got==dict(zip(cols, range(len(names)))) and list(got)==cols
    r = Record()
    r.add('epochs', epoch=5, n_kept=6, **got)
    r.add('epochs', epoch=6, n_kept=7)
    for o in r,load(r.save(tmp_path/'r.npz')):
        assert o.epochs.epoch.tolist()==[5, 6] and o.epochs.n_kept.tolist()==[6, 7]
        assert [o.epochs[c][0] for c in cols]==list(range(len(cols)))
        assert list(o.epochs.columns)==list(r.epochs.columns)

def test_parts_that_were_cancelled():
    names = ['train_loss','valid_loss','m']
    assert metric_columns(names, [1.])==dict(train_loss=1., valid_loss=None, m=None)
    assert metric_columns(names, [2., 3.], no_train=True)==dict(train_loss=None, valid_loss=2., m=3.)
    assert metric_columns(names, [])==dict.fromkeys(names)
    assert metric_columns(names, [1, 2, 3, 4])==dict(train_loss=1, valid_loss=2, m=3, metric=4) # not lost

class Note(Callback):
    "Puts what fastai logged into a record, as `SelectiveTraining` does."
    order,run_valid = 60,True
    def __init__(self): self.record = Record()
    def after_epoch(self):
        r = self.recorder
        n = 1+r.train_metrics*len(r.metrics)+r.valid_metrics*(1+len(r.metrics))
        log = list(r.log)[1:]
        cols = metric_columns(r.metric_names[1:1+n], log[:len(log)-r.add_time], no_train=r.cancel_train)
        self.record.add('epochs', epoch=self.epoch, **cols)

def per_class(p, y): return torch.stack([(p.argmax(1)[y==c]==c).float().mean().nan_to_num() for c in range(3)])
def cosine_(p, y): return F.cosine_similarity(p, F.one_hot(y, 3).float()).mean()
cosine_.__name__ = 'cosine'

class EverySecond(Callback):
    def before_validate(self):
        if self.epoch%2==0: raise CancelValidException()
    def before_batch(self):
        if self.training and self.epoch==3: raise CancelTrainException()

def test_with_fastai(tmp_path):
    "Against fastai's own table."
    last = AccumMetric(lambda p,y: confusion(p.argmax(1), y), flatten=False)
    note,table = Note(),[]
    learn = make_learner(metrics=[accuracy_, accuracy_, cosine_, per_class, last], cbs=[note, EverySecond()])
    learn.logger = lambda o: table.append(list(o))
    learn.fit(4, 1e-2)
    e = load(note.record.save(tmp_path/'r.npz')).epochs
    assert list(e.columns)==EPOCHS+['accuracy_','accuracy_ (2)','cosine (metric)','per_class','<lambda>']
    assert e.cosine.isna().all() and e.train_loss.isna().tolist()==[False]*3+[True]
    assert e.valid_loss.isna().tolist()==[True, False]*2
    for i,skip in ((1, 2), (3, 1)): # of the last epoch fastai logs validation alone
        loss,*mets = table[i][skip:-1]
        assert e.valid_loss[i]==loss and e.accuracy_[i]==e['accuracy_ (2)'][i]==mets[0]
        assert e['cosine (metric)'][i]==mets[2]
        assert e.per_class[i]==mets[3].tolist() and e['<lambda>'][i]==mets[4].tolist() and np.sum(e['<lambda>'][i])==20

def confusion(p, y): return torch.zeros(3, 3, dtype=torch.int64).index_put_((y, p), torch.tensor(1), accumulate=True)

# ---- several fits

def one_fit(n_epoch, n_iter=2, planned=None, start=0, method='BLF', **info):
    r = Record(method, dict(loss_perc=.9), n_epoch=planned or n_epoch, n_iter=n_iter, bs=4, **info)
    r.add('probes', epoch=start, batch=0, n=9, sign_agreement=.5)
    for i in range(n_epoch*n_iter):
        r.add('batches', epoch=start+i//n_iter, batch=i, n_seen=4, n_kept=i%4+1, t_train_s=1., finite=True)
        r.losses.append(np.full(4, i, np.float32))
        if i%2: r.add('plain', epoch=start+i//n_iter, batch=i, t_train_s=2.)
    for e in range(start, start+n_epoch): r.add('epochs', epoch=e, n_seen=4*n_iter, n_kept=3, t_train_s=1., accuracy=.5)
    r.add('changes', epoch=start, batch=1, setting='loss_perc', old=.9, new=.5)
    return r

def test_joined(tmp_path):
    a,b = one_fit(1, note='head'),one_fit(2, note='all')
    r = joined([a, b])
    assert r.epochs.epoch.tolist()==[0, 1, 2] and r.epochs.fit.tolist()==[0, 1, 1]
    assert r.batches.batch.tolist()==[0, 1, 2, 3, 4, 5] and r.batches.epoch.tolist()==[0, 0, 1, 1, 2, 2]
    assert r.plain.batch.tolist()==[1, 3, 5]
    assert r.probes[['epoch','batch','fit']].values.tolist()==[[0, 0, 0], [1, 2, 1]]
    assert r.changes[['epoch','batch','fit']].values.tolist()==[[0, 1, 0], [1, 3, 1]]
    assert [o[0] for o in r.losses]==[0, 1, 0, 1, 2, 3] and r.info['n_epoch']==3 and r.info['n_iter']==2
    assert r.info['fits']==[a.info, b.info] and [o['note'] for o in r.info['fits']]==['head','all']
    assert 'fit' not in a.epochs and a.batches.batch.tolist()==[0, 1] # the fits are as they were
    same(load(r.save(tmp_path/'r.npz')), r)
    again = joined([r, one_fit(1)]) # of what is joined already
    assert again.epochs.fit.tolist()==[0, 1, 1, 2] and again.epochs.epoch.tolist()==[0, 1, 2, 3]
    assert len(again.info['fits'])==3
    same(joined([load(r.save(tmp_path/'r.npz')), one_fit(1)]), again)
    assert joined([a]).epochs.drop(columns='fit').equals(a.epochs)

def test_joined_odd_fits():
    resumed = joined([one_fit(2, planned=5), one_fit(3, planned=5, start=2)]) # `fit(5, start_epoch=2)`
    assert resumed.epochs.epoch.tolist()==list(range(5)) and resumed.batches.batch.tolist()==list(range(10))
    assert resumed.info['n_epoch']==5
    stopped = joined([one_fit(2, planned=5), one_fit(1)]) # Ctrl-C, and another fit
    assert stopped.epochs.epoch.tolist()==[0, 1, 2] and stopped.info['n_epoch']==3
    growing = joined([one_fit(1), Record('BLF', n_epoch=4, n_iter=2)])
    assert growing.info['n_epoch']==5 and growing.epochs.epoch.tolist()==[0]
    cut = one_fit(2)
    cut.rows['epochs'].pop() # stopped in its second epoch, which has batches but no sum
    assert joined([cut, one_fit(1)]).epochs.epoch.tolist()==[0, 2]
    quiet = one_fit(1)
    quiet.losses = [] # keep_losses=False: the next fit's losses still stand where its batches do
    r = joined([quiet, one_fit(1)])
    assert [len(o) for o in r.losses]==[0, 0, 4, 4] and joined([quiet]).losses==[]
    assert [len(o) for o in joined([one_fit(1), quiet]).losses]==[4, 4, 0, 0]
    named = one_fit(1)
    named.rows['epochs'][0]['fit'] = 7. # a metric, in a record of an older version
    assert joined([named]).epochs[['fit','fit (metric)']].values.tolist()==[[0, 7]]

@pytest.mark.parametrize('records,says', [([], 'records=[] is not accepted'), (Record(), 'records=Record(plain'),
    ('ab', "records='ab'"), (None, 'records=None'), ([Record(), 3], 'records[1]=3 is not a Record'),
    ([Record('BLF'), Record('HNM')], 'records[1] is of HNM and records[0] of BLF')])
def test_joined_refuses(records, says):
    with pytest.raises(ValueError) as e: joined(records)
    assert says in str(e.value) and 'learn.selection.fits' in str(e.value) and '\n' not in str(e.value)

def test_joined_refuses_one_twice():
    r = one_fit(1)
    with pytest.raises(ValueError, match=r'records\[1\] is there already'): joined([r, r])

# ---- what is imported

def fresh(code):
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent).stdout

def test_imports():
    "`import blf_explore` is light; a record is read without torch."
    heavy = "print([o for o in ('torch','fastai','numpy','pandas','plotly','matplotlib','IPython') if o in sys.modules])"
    assert fresh(f"import sys, blf_explore; blf_explore.__version__; {heavy}").strip()=='[]'
    assert "'torch'" not in fresh(f"import sys, blf_explore.engine.record; {heavy}") and "'fastai'" not in fresh(f"import sys, blf_explore.engine.record; {heavy}")
