"Learners as fastai's own applications build them: tables, images, PyTorch's loaders."
import numpy as np, pandas as pd, pytest, torch
from fastai.tabular.all import Categorify, FillMissing, Normalize, tabular_learner, TabularDataLoaders
from fastai.vision.all import Image, ImageDataLoaders, resnet18, vision_learner
from blf_explore.gradients import GradientProbe
from core_tools import *

def frame(n=80):
    g = np.random.RandomState(0)
    d = pd.DataFrame(dict(a=g.choice(list('xyz'), n), b=g.choice(list('pq'), n), u=g.randn(n), v=g.randn(n)))
    d['y'] = np.where((d.a=='x')&(d.u>0), 'yes', 'no')
    d['z'] = d.u*2+d.v
    return d

@quiet
@pytest.mark.parametrize('y', ['y', 'z'])
def test_tabular_learner(y):
    def run(kw, n=2):
        random.seed(0); torch.manual_seed(0); np.random.seed(0)
        dls = TabularDataLoaders.from_df(frame(), y_names=y, cat_names=['a','b'], cont_names=['u','v'], procs=[Categorify, FillMissing, Normalize], bs=16)
        learn = tabular_learner(dls, layers=[16])
        learn.logger = noop_log
        learn.remove_cb(learn.progress)
        if kw: learn.batch_loss_filter(**kw)
        learn.fit_one_cycle(n, 1e-2)
        return learn
    assert_same(state(run(None)), state(run(dict(loss_perc=1., plain_every=1))))
    learn = run(dict(loss_perc=.5))
    b = learn.selection.batches
    assert (b.n_kept>=2).all() and b.n_kept.sum()<.9*b.n_seen.sum()
    if y=='y': assert torch.isfinite(learn.predict(frame().iloc[0])[2]).all()
    learn = run(dict(loss_perc=0., sample_perc=1e-9), 1) # one sample at a time is not for BatchNorm
    assert (learn.selection.batches.n_kept==2).all()

@pytest.fixture(scope='module')
def images(tmp_path_factory):
    path = tmp_path_factory.mktemp('images')
    g = np.random.RandomState(0)
    for c in ('cat','dog'):
        (path/c).mkdir()
        for i in range(12): Image.fromarray((g.rand(32, 32, 3)*(128 if c=='cat' else 255)).astype(np.uint8)).save(path/c/f'{i}.png')
    return path

@quiet
def test_vision_learner(images, tmp_path):
    from fastai.vision.all import accuracy, load_learner
    def run(kw):
        random.seed(0); torch.manual_seed(0); np.random.seed(0)
        dls = ImageDataLoaders.from_folder(images, valid_pct=.25, seed=1, bs=8, num_workers=0)
        learn = vision_learner(dls, resnet18, pretrained=False, metrics=accuracy, path=tmp_path)
        learn.logger = noop_log
        learn.remove_cb(learn.progress)
        if kw: learn.batch_loss_filter(**kw)
        learn.fit_one_cycle(1, 1e-3)
        return learn
    plain,blf = run(None),run(dict(loss_perc=1., plain_every=1))
    assert_same(state(plain), state(blf))
    assert all(torch.equal(a, b) for a,b in zip(plain.get_preds(), blf.get_preds()))
    with plain.no_bar(), blf.no_bar():
        f = images/'cat'/'0.png'
        assert plain.predict(f)[0]==blf.predict(f)[0] and torch.equal(plain.predict(f)[2], blf.predict(f)[2])
        blf.show_results(max_n=2)
    blf.selection.set(loss_perc=.4)
    blf.fit(1)
    assert blf.selection.batches.n_kept.sum()<blf.selection.batches.n_seen.sum()
    blf.export('vision.pkl')
    again = load_learner(tmp_path/'vision.pkl')
    with again.no_bar(), blf.no_bar(): assert torch.equal(again.predict(f)[2], blf.predict(f)[2])

def test_pytorchs_own_loaders():
    train,valid = blobs()
    def dls(): return DataLoaders(torch.utils.data.DataLoader(train, 16, shuffle=True), torch.utils.data.DataLoader(valid, 16), device='cpu')
    def run(blf):
        learn = make_learner(dls=dls, cbs=GradientProbe(40) if blf else None)
        if blf: learn.batch_loss_filter(blf)
        learn.fit(2)
        return learn
    assert_same(state(run(None)), state(run(1.)))
    learn = run(.5)
    e = learn.selection.epochs
    assert learn.selection.record.info['bs']==16 and e.n_kept.max()<90 and e.sign_agreement.between(0, 1).all()
