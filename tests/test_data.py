"`get_dls` and `get_model`: what they serve, against the sources, and what they say when they cannot."
import gzip, os, pickle, socket, struct
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from fastai.vision.all import (Brightness, ClassificationInterpretation, Interpretation, Learner, PILImage, accuracy, aug_transforms, load_learner,
                               plt)
from blf_explore.engine.data import flip_labels, get_dls, get_model
from blf_explore.engine.small import read_fashion_small, repeat_shifted

# ---- what is served

def labels(dl): return torch.cat([y for _,y in dl]).tolist()

def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits
    x,y = load_digits(return_X_y=True)
    dls = get_dls(bs=32)
    ims = [(dls.train_ds.image(o)[0]*16).round().flatten().tolist() for o in dls.train_ds.x] + [(dls.valid_ds.image(o)[0]*16).round().flatten().tolist() for o in dls.valid_ds.x]
    got = sorted(zip(ims, dls.train_ds.y.tolist()+dls.valid_ds.y.tolist()))
    assert got==sorted(zip(x.tolist(), y.tolist())) # every digit once, with its label, in one of the two sets
    xs = torch.cat([o for o,_ in dls.train])
    assert xs.shape[1:]==(1, 8, 8) and abs(xs.mean())<.02 and abs(xs.std()-1)<.02
    assert dls.c==10 and dls.one_batch()[0].shape==(32, 1, 8, 8)
    assert set(labels(dls.valid))==set(range(10))

def test_seed_fixes_everything():
    def first(seed, **kw):
        dls = get_dls(bs=64, seed=seed, **kw)
        return [labels(dls.train), labels(dls.train), dls.valid_ds.y.tolist(), dls.flipped.tolist()]
    a,b,c = first(1, label_noise=.1),first(1, label_noise=.1),first(2, label_noise=.1)
    assert a==b and all(x!=y for x,y in zip(a, c))
    assert a[0]!=a[1] # shuffled anew in the next epoch

@pytest.mark.parametrize('share', [0., .25, 1.])
def test_label_noise(share):
    clean,noisy = get_dls(seed=3),get_dls(seed=3, label_noise=share)
    changed = (clean.train_ds.y!=noisy.train_ds.y).nonzero()[:,0]
    assert torch.equal(changed.cpu(), noisy.flipped) and len(changed)==round(share*len(clean.train_ds))
    assert torch.equal(clean.train_ds.x, noisy.train_ds.x) and torch.equal(clean.valid_ds.y, noisy.valid_ds.y)

def test_flips_are_even():
    y,idxs = flip_labels(torch.full((60000,), 2), 4, .5, seed=1)
    n = y.bincount(minlength=4)
    assert n[2]==30000 and (n[[0,1,3]]-10000).abs().max()<4*82 # four standard deviations of such a count

def idx(t): return bytes([0, 0, 8, t.ndim]) + struct.pack(f'>{t.ndim}i', *t.shape) + t.numpy().tobytes()

@pytest.mark.parametrize('sub,ext', [('', ''), ('', '.gz'), ('FashionMNIST/raw', '')])
def test_fashion_mnist_from_idx_files(tmp_path, sub, ext):
    g = torch.Generator().manual_seed(0)
    (tmp_path/sub).mkdir(parents=True, exist_ok=True)
    data = {}
    for part,n in ('train', 40),('t10k', 12):
        data[part] = torch.randint(0, 256, (n, 28, 28), generator=g, dtype=torch.uint8),torch.randint(0, 10, (n,), generator=g, dtype=torch.uint8)
        for t,nm in zip(data[part], ('images-idx3', 'labels-idx1')):
            (tmp_path/sub/f'{part}-{nm}-ubyte{ext}').write_bytes(gzip.compress(idx(t)) if ext else idx(t))
    dls = get_dls('fashion_mnist', bs=10, path=tmp_path)
    assert torch.equal((dls.valid_ds.image(dls.valid_ds.x[5])[0]*255).round().byte(), data['t10k'][0][5])
    assert dls.valid_ds.y.tolist()==data['t10k'][1].tolist() and dls.train_ds.y.tolist()==data['train'][1].tolist()
    assert dls.c==10 and len(dls.train)==4

def read_idx(path): # as yann.lecun.com described the format
    d = gzip.open(path).read() if path.suffix=='.gz' else path.read_bytes()
    return np.frombuffer(d, np.uint8, offset=4+4*d[3]).reshape(struct.unpack_from(f'>{d[3]}i', d, 4))

def test_fashion_small_is_the_beginning_of_fashion_mnist():
    dls = get_dls('fashion_small', bs=128)
    train,valid = dls.train_ds,dls.valid_ds
    assert (train.x.shape, valid.x.shape, len(dls.train))==((12000, 1, 28, 28), (4000, 1, 28, 28), 93)
    assert train.y[:10].tolist()==[9, 0, 0, 3, 0, 2, 7, 2, 5, 5] and valid.y[:10].tolist()==[9, 2, 1, 1, 6, 1, 4, 6, 5, 7] # as in every tutorial
    assert [train.vocab[o] for o in (9, 0, 1)]==['ankle boot', 'T-shirt', 'trouser']
    assert abs(train.x.mean())<1e-3 and abs(train.x.std()-1)<1e-3
    levels = (train.image(train.x[:50])*255).unique()
    assert len(levels)==16 and torch.allclose(levels, 17.*torch.arange(16), atol=1e-2)

@pytest.mark.skipif('BLF_FASHION_MNIST' not in os.environ, reason='BLF_FASHION_MNIST names no folder with the IDX files of Fashion-MNIST')
def test_fashion_small_beside_the_real_files():
    for (x,y),part in zip(read_fashion_small(), ('train','t10k')):
        want = [read_idx(next(Path(os.environ['BLF_FASHION_MNIST']).glob(f'{part}-{o}-ubyte*')))[:len(y)] for o in ('images-idx3','labels-idx1')]
        assert (abs(x[:,0].numpy().astype(int)-want[0])<=8).all() and (x%17==0).all() and (y.numpy()==want[1]).all() # the nearest of 16 levels

def test_a_damaged_fashion_small_is_one_sentence(monkeypatch, tmp_path):
    import blf_explore.engine.small as small
    real = small.files('blf_explore.engine').joinpath('fashion_small.xz').read_bytes()
    monkeypatch.setattr(small, 'files', lambda _: tmp_path)
    for d in (None, b'', real[:-1], real[:100_000], real[:1000]+bytes([real[1000]^1])+real[1001:]):
        if d is not None: (tmp_path/'fashion_small.xz').write_bytes(d)
        with pytest.raises(ValueError) as e: get_dls('fashion_small')
        one_sentence(e, "name='fashion_small'", 'fashion_small.xz is damaged', 'install blf_explore again')

# ---- repeats

def images(n, shape, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, *shape), generator=g, dtype=torch.uint8),torch.arange(n)%7

@pytest.mark.parametrize('n,redundancy,shape', [(40, .5, (1, 5, 4)), (201, .9, (3, 4, 6)), (30, .25, (1, 3, 3)), (7, .99, (2, 4, 4)), (50, 1e-3, (1, 4, 4))])
def test_repeats_by_brute_force(n, redundancy, shape):
    x,y = images(n, shape)
    was = x.clone()
    got,labels,originals = repeat_shifted(x, y, redundancy, seed=n)
    assert torch.equal(x, was) # what was given is left alone
    stay = [i for i in range(n) if originals[i]==i]
    assert len(stay)==max(1, n-round(redundancy*n))
    times = [sum(int(o)==i for o in originals)-1 for i in stay]
    assert sum(times)==n-len(stay) and max(times)-min(times)<=1
    moves = set()
    for i in range(n):
        o = int(originals[i])
        assert o in stay and labels[i]==y[o]
        if o==i: assert torch.equal(got[i], x[i])
        else:
            wide = np.pad(x[o].numpy(), ((0,0),(1,1),(1,1)), mode='edge')
            cut = {(dx,dy): wide[:,1-dy:1-dy+shape[1],1-dx:1-dx+shape[2]] for dx in (-1,0,1) for dy in (-1,0,1)}
            found, = [k for k,v in cut.items() if (v==got[i].numpy()).all()]
            moves.add(found)
    assert (0,0) not in moves and (n<200 or len(moves)==8)

def test_repeats_in_a_data_set():
    plain,dls,again,other = get_dls(seed=3),get_dls(seed=3, redundancy=.8),get_dls(seed=3, redundancy=.8),get_dls(seed=4, redundancy=.8)
    o,n = dls.originals,len(plain.train_ds)
    assert len(dls.train_ds)==n and len(o.unique())==n-round(.8*n) and torch.equal(plain.originals, torch.arange(n))
    assert torch.equal(dls.train_ds.y.cpu(), plain.train_ds.y.cpu()[o]) and torch.equal(dls.valid_ds.y, plain.valid_ds.y)
    stay = o==torch.arange(n)
    def image(d, i): return (d.image(d.x[i])*255).round()
    assert torch.equal(image(dls.train_ds, stay), image(plain.train_ds, stay)) and torch.equal(image(dls.valid_ds, slice(None)), image(plain.valid_ds, slice(None)))
    assert abs(dls.train_ds.x.mean())<1e-4 and abs(dls.train_ds.x.std()-1)<1e-4 # the statistics are those of what is trained on
    assert torch.equal(dls.train_ds.x, again.train_ds.x) and torch.equal(o, again.originals) and not torch.equal(o, other.originals)

def test_wrong_labels_come_after_repeats_and_know_nothing_of_them():
    clean,noisy = get_dls('fashion_small', seed=3, redundancy=.5),get_dls('fashion_small', seed=3, redundancy=.5, label_noise=.5)
    assert torch.equal(clean.originals, noisy.originals) and torch.equal(clean.train_ds.x, noisy.train_ds.x)
    assert torch.equal((clean.train_ds.y!=noisy.train_ds.y).nonzero()[:,0].cpu(), noisy.flipped) and len(noisy.flipped)==6000
    stay = noisy.originals==torch.arange(12000)
    assert abs(int(stay[noisy.flipped].sum())-3000)<4*39 # half of those that stay, give or take four standard deviations of a draw without replacement

def test_repeats_of_images_in_folders(tmp_path):
    small = write_images(tmp_path/'small', ['a','b','c'], n=10)
    dls = get_dls(small, bs=4, redundancy=.75)
    assert len(dls.train_ds)==24 and len(dls.originals.unique())==6
    large = write_images(tmp_path/'large', ['a','b'], n=2, size=(90, 70), parts=('train','val'))
    for args,name in (((large,), f'path={str(large)!r}'), (('imagenette',), "name='imagenette'")): # not even downloaded
        with pytest.raises(ValueError) as e: get_dls(*args, redundancy=.5)
        one_sentence(e, 'redundancy=0.5', name, '64 pixels')
    assert torch.equal(get_dls(large, bs=2).originals, torch.arange(4))

def write_images(path, classes, n=6, size=(12, 10), mode='RGB', parts=('',)):
    g = np.random.RandomState(0)
    for part in parts:
        for c in classes:
            (path/part/c).mkdir(parents=True, exist_ok=True)
            for i in range(n): Image.fromarray(g.randint(0, 255, (size[1], size[0], 3), dtype=np.uint8)).convert(mode).save(path/part/c/f'{c}{i}.png')
    return path

@pytest.mark.parametrize('parts', [('train','test'), ('train','val'), ('train','valid')])
def test_folders_with_a_split(tmp_path, parts):
    write_images(tmp_path, ['n01440764','n03888257'], parts=parts)
    for dls in get_dls('cifar10', path=tmp_path, bs=4),get_dls('imagenette', path=str(tmp_path), bs=4),get_dls(tmp_path, bs=4),get_dls(str(tmp_path), bs=4),get_dls('folder', path=tmp_path, bs=4):
        assert list(dls.vocab)==['parachute','tench'] if hasattr(dls, 'vocab') else list(dls.train_ds.vocab)==['parachute','tench']
        assert len(dls.train_ds)==len(dls.valid_ds)==12 and dls.one_batch()[0].shape==(4, 3, 10, 12)
    f = tmp_path/parts[1]/'n01440764'/'n014407643.png'
    want = torch.tensor(np.array(Image.open(f))).permute(2, 0, 1)
    assert any(torch.equal((dls.valid_ds.image(x)*255).round().byte(), want) and dls.valid_ds.vocab[y]=='tench' for x,y in zip(dls.valid_ds.x, dls.valid_ds.y))

def test_folder_without_a_split(tmp_path):
    dls = get_dls(write_images(tmp_path, ['a','b','c'], n=5, mode='L'), bs=64, seed=1)
    assert (len(dls.train_ds), len(dls.valid_ds))==(12, 3) and dls.one_batch()[0].shape==(12, 1, 10, 12) # fewer images than a batch: all of them

@pytest.mark.filterwarnings('ignore')
def test_large_images_go_the_usual_way(tmp_path):
    write_images(tmp_path, ['a','b'], n=6, size=(90, 70), parts=('train','val'))
    dls = get_dls(tmp_path, bs=4, label_noise=.5, seed=1)
    x,y = dls.one_batch()
    assert x.shape==(4, 3, 128, 128) and len(dls.flipped)==6
    got = [dls.vocab[int(o[1])]!=f.parent.name for o,f in zip(dls.train_ds, dls.train_ds.items)]
    assert np.flatnonzero(got).tolist()==dls.flipped.tolist()
    assert [dls.vocab[int(o[1])] for o in dls.valid_ds]==[f.parent.name for f in dls.valid_ds.items]
    assert len(pickle.loads(pickle.dumps(dls.new_empty())).train_ds)==0

@pytest.mark.parametrize('name', ['convnet', 'resnet', 'mlp'])
def test_networks(name, tmp_path):
    for dls in get_dls(bs=8),get_dls(write_images(tmp_path, ['a','b','c']), bs=8):
        torch.manual_seed(0); a = get_model(name, dls)
        torch.manual_seed(0); b = get_model(name, dls)
        x,_ = dls.one_batch()
        assert torch.equal(a.eval()(x), b.eval()(x)) and a.train()(x).shape==(8, dls.c)

# ---- what fastai's users know

def small(d): return get_dls(write_images(d, ['a','b','c'], n=12), bs=8)
def large(d): return in_process(get_dls(write_images(d, ['a','b'], n=6, size=(90, 70), parts=('train','val')), bs=4))
def digits(d): return get_dls()

def in_process(dls): # worker processes add nothing here but time
    for dl in dls.loaders: dl.fake_l.num_workers = 0
    return dls

kinds = pytest.mark.parametrize('make', [digits, small, large])

def trained(dls, path):
    torch.manual_seed(0)
    learn = Learner(dls, get_model('convnet', dls), metrics=accuracy, path=path)
    learn.remove_cbs(learn.cbs.filter(lambda o: o.name=='progress'))
    with learn.no_logging(): learn.fit(1)
    return learn

def pixels(dls, x): # an item of `train_ds` as bytes
    return (dls.train_ds.image(x)*255).round().byte().permute(1,2,0).numpy() if hasattr(dls.train_ds, 'image') else np.asarray(x)

def probs(learn, x): # by hand: what the network says to one row of a batch
    with torch.no_grad(): return learn.model.eval()(x[None].as_subclass(torch.Tensor))[0].softmax(-1)

@kinds
def test_predict(tmp_path, make):
    learn = trained(dls := make(tmp_path), tmp_path)
    x,y = dls.valid_ds[3]
    im = pixels(dls, x)
    want = probs(learn, next(iter(dls.valid))[0][3])
    if im.shape[-1]==1: im = im[...,0]
    t = torch.tensor(im)
    Image.fromarray(im).save(tmp_path/'one.png')
    items = [dls.valid_ds[3], im, t, Image.fromarray(im), PILImage.create(im), tmp_path/'one.png', str(tmp_path/'one.png')]
    items += [t[None], im[None], im[...,None]] if im.ndim==2 else [im.transpose(2,0,1), t.permute(2,0,1)]
    for o in items:
        label,i,p = learn.predict(o)
        torch.testing.assert_close(torch.Tensor(p), want, atol=1e-4, rtol=1e-4)
        assert int(i)==int(want.argmax()) and str(label)==dls.vocab[int(i)]
    shown,*_ = learn.predict(im, with_input=True)
    if make is not large: torch.testing.assert_close((shown*255).round().byte().permute(1,2,0).squeeze(-1).numpy(), im)
    for o in (None, im/255., str(tmp_path/'none.png')):
        with pytest.raises(ValueError) as e: learn.predict(o)
        one_sentence(e, 'give')

@kinds
def test_test_dl(tmp_path, make):
    learn = trained(dls := make(tmp_path), tmp_path)
    items = [dls.valid_ds[i] for i in range(4)]
    want = torch.stack([probs(learn, o) for o in next(iter(dls.valid))[0][:4]])
    for o in (items, [a for a,_ in items]):
        p,targs = learn.get_preds(dl=dls.test_dl(o, num_workers=0))
        torch.testing.assert_close(torch.Tensor(p), want, atol=1e-4, rtol=1e-4)
        assert targs is None
    p,targs = learn.get_preds(dl=dls.test_dl(items, with_labels=True, num_workers=0, bs=2))
    torch.testing.assert_close(torch.Tensor(p), want, atol=1e-4, rtol=1e-4)
    assert targs.tolist()==[int(o[1]) for o in items]

@kinds
def test_interpretation_and_pictures(tmp_path, make):
    learn = trained(dls := make(tmp_path), tmp_path)
    for ds_idx in (0,1):
        interp = ClassificationInterpretation.from_learner(learn, ds_idx=ds_idx)
        interp.plot_top_losses(4)
        titles = [ax.get_title() for ax in plt.gcf().axes[:4]]
        losses,idxs = interp.top_losses(4)
        ds = dls.loaders[ds_idx].dataset
        assert [o.split('/')[1].split()[0] for o in titles]==[dls.vocab[int(ds[int(i)][1])] for i in idxs] # the labels of these very items
        assert [o.split(' / ')[1] for o in titles]==[f'{o:.2f}' for o in losses.tolist()]
    assert interp.confusion_matrix().sum()==len(dls.valid_ds)
    Interpretation.from_learner(learn).show_results([0,1])
    for o in (dls, dls.valid, dls.test_dl([dls.valid_ds[0]], num_workers=0)): o.show_batch(max_n=2)
    dls.train.show_batch(unique=True, max_n=2)
    learn.show_results(max_n=3)
    plt.close('all')

@kinds
def test_augmentation(tmp_path, make):
    dls = make(tmp_path)
    learn = trained(dls, tmp_path)
    held,before = next(iter(dls.valid))[0],learn.get_preds()[0]
    plain = [dls.train.new(shuffle=False).one_batch()[0] for _ in range(2)]
    assert torch.equal(*plain) or make is large # fastai's `Resize` crops at random
    if make is not large: torch.testing.assert_close(learn.tta()[0], before) # nothing to augment by
    dls.train.add_tfms([*aug_transforms(max_lighting=0.), Brightness(p=1., draw=.95)], 'after_batch')
    dls.add_tfms(aug_transforms(), 'after_batch', 'valid')
    a,b = (dls.train.new(shuffle=False).one_batch()[0] for _ in range(2))
    assert min(a.mean(), b.mean())>plain[0].mean()+.5 and (a-b).abs().mean()>.1 # brighter, and never the same
    torch.testing.assert_close(torch.Tensor(next(iter(dls.valid))[0]), torch.Tensor(held), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(learn.get_preds()[0], before, atol=1e-3, rtol=1e-3)
    assert (learn.tta()[0]-before).abs().max()>1e-3 # the validation set, augmented
    torch.testing.assert_close(learn.get_preds()[0], before, atol=1e-3, rtol=1e-3) # and not any more
    with learn.no_logging(): learn.fit(1)
    assert dls.new(bs=3).one_batch()[0].shape[0]==3
    learn.show_results(max_n=2)
    plt.close('all')

@kinds
@pytest.mark.parametrize('augmented', [False, True])
def test_export(tmp_path, make, augmented):
    dls = make(tmp_path)
    if augmented: dls.add_tfms(aug_transforms(), 'after_batch')
    learn = trained(dls, tmp_path)
    im = pixels(dls, dls.valid_ds[0][0])
    learn.export(tmp_path/'export.pkl')
    back = load_learner(tmp_path/'export.pkl')
    assert len(back.dls.train_ds)==0
    torch.testing.assert_close(back.predict(im)[2], learn.predict(im)[2])
    p,_ = back.get_preds(dl=back.dls.test_dl([im]*3, num_workers=0))
    torch.testing.assert_close(p, learn.predict(im)[2].expand(3, -1), atol=1e-5, rtol=1e-5)
    assert os.path.getsize(tmp_path/'export.pkl')<3e6 # the images are not in it

# ---- folders as people have them

def test_loaders_of_any_split(tmp_path):
    for size in (12,10),(90,70):
        d = write_images(tmp_path/str(size[0]), ['a','b'], n=3, size=size, parts=('Training','Testing'))
        dls = get_dls(d, bs=2)
        assert (len(dls.train_ds), len(dls.valid_ds), list(dls.vocab), dls.left_out, dls.skipped)==(6, 6, ['a','b'], {}, {})

@pytest.mark.parametrize('size', [(12,10), (90,70)])
def test_left_out_is_said(tmp_path, size):
    write_images(tmp_path, ['a','b'], n=5, size=size, parts=('train','val','test'))
    with pytest.warns(UserWarning, match='10 images in test/ left out') as w: dls = get_dls(tmp_path, bs=2)
    assert dls.left_out=={'test': 10} and (len(dls.train_ds), len(dls.valid_ds))==(10, 10) and len(w)==1 and w[0].filename==__file__

def test_sixteen_bits(tmp_path):
    g = np.random.RandomState(0)
    deep = [g.randint(0, 65536, (9,9)).astype(np.uint16) for _ in range(20)]
    for i,a in enumerate(deep):
        (tmp_path/'ab'[i%2]).mkdir(exist_ok=True)
        Image.fromarray(a).save(tmp_path/'ab'[i%2]/f'{i:02}.png')
    dls = get_dls(tmp_path, seed=1)
    ims = torch.stack([ds.image(x)[0] for ds in (dls.train_ds, dls.valid_ds) for x in ds.x]).numpy()
    for a in deep: assert np.abs(ims-a/65535).max((1,2)).min()<=.5/255+1e-6

def test_grey_and_colour(tmp_path):
    write_images(tmp_path/'grey', ['a','b'], mode='L')
    assert get_dls(tmp_path/'grey').one_batch()[0].shape[1]==1
    write_images(tmp_path/'grey', ['b','c'], mode='RGB', n=2) # two of each are in colour: all are loaded so
    assert get_dls(tmp_path/'grey').one_batch()[0].shape[1]==3

@pytest.mark.parametrize('mode', ['1', 'P', 'RGBA', 'LA', 'CMYK'])
@pytest.mark.parametrize('size', [(12,10), (90,70)])
def test_modes(tmp_path, mode, size):
    ext = 'tif' if mode=='CMYK' else 'png'
    want = {}
    for i in range(10):
        f = tmp_path/'ab'[i%2]/f'{i}.{ext}'
        f.parent.mkdir(exist_ok=True)
        im = Image.fromarray(np.random.RandomState(i).randint(0, 256, (*size[::-1],3), dtype=np.uint8)).convert(mode)
        im.save(f)
        want[f] = np.asarray(Image.open(f).convert('RGB'))
    dls = get_dls(tmp_path, bs=4)
    if hasattr(dls.train_ds, 'image'):
        got = [pixels(dls, x) for ds in (dls.train_ds, dls.valid_ds) for x in ds.x]
        for w in want.values(): assert any((g==w).all() for g in got) # grey ones by broadcasting
    else:
        for f,(x,_) in zip(dls.train_ds.items, dls.train_ds): assert (np.asarray(x)==want[f]).all()

def test_sizes_that_differ(tmp_path):
    for i,size in enumerate([(8,8)]*7 + [(20,30), (9,7), (300,200)]):
        (tmp_path/'ab'[i%2]).mkdir(exist_ok=True)
        Image.new('RGB', size, i).save(tmp_path/'ab'[i%2]/f'{i}.png')
    assert get_dls(tmp_path).one_batch()[0].shape[1:]==(3, 8, 8) # one of 300 pixels makes no data set of photographs
    for i in range(10, 30): Image.new('RGB', (80,70+i), i).save(tmp_path/'ab'[i%2]/f'{i}.png')
    assert in_process(get_dls(tmp_path, bs=5)).one_batch()[0].shape==(5, 3, 128, 128)

def test_orientation_of_large_and_small(tmp_path):
    exif = Image.Exif(); exif[0x0112] = 6
    for size in (12,10),(90,70):
        d = tmp_path/str(size[0])
        ims = {}
        for i in range(6):
            f = d/'ab'[i%2]/f'{i}.png'
            f.parent.mkdir(parents=True, exist_ok=True)
            ims[f] = np.random.RandomState(i).randint(0, 256, (*size[::-1],3), dtype=np.uint8)
            Image.fromarray(ims[f]).save(f, exif=exif)
        dls = get_dls(d, bs=2)
        for x,_ in dls.train_ds: assert any((pixels(dls, x)==np.rot90(a, -1)).all() for a in ims.values() if pixels(dls, x).shape==(size[0],size[1],3))

def spoil(f, how):
    b = f.read_bytes()
    f.write_bytes({'empty': b'', 'cut': b[:len(b)//2], 'no image': b'<html></html>'}[how])
    return f

@pytest.mark.parametrize('how', ['empty', 'cut', 'no image'])
@pytest.mark.parametrize('size', [(12,10), (90,70)])
def test_broken_images(tmp_path, size, how):
    d = write_images(tmp_path, ['a','b'], n=6, size=size, parts=('train','val'))
    bad = [spoil(d/'train'/'a'/'a2.png', how), spoil(d/'val'/'b'/'b5.png', how)]
    with pytest.raises(ValueError) as e: get_dls(d, bs=4)
    one_sentence(e, f'path={str(d)!r}', repr(str(bad[0])), 'and 1 more', 'skip_broken=True')
    dls = get_dls(d, bs=4, skip_broken=True)
    assert list(dls.skipped)==bad and all(isinstance(o, str) and o for o in dls.skipped.values())
    assert (len(dls.train_ds), len(dls.valid_ds))==(11, 11)
    for f in bad: f.unlink()
    again = get_dls(d, bs=4) # as if they had never been there
    assert [int(o[1]) for o in again.train_ds.items]==[int(o[1]) for o in dls.train_ds.items] if size==(12,10) else again.train_ds.items==dls.train_ds.items
    with pytest.raises(ValueError) as e: get_dls(d, skip_broken=1)
    one_sentence(e, 'skip_broken=1', 'True or False')

def test_broken_images_of_what_is_left_out(tmp_path):
    write_images(tmp_path, ['a','b'], n=3, parts=('train','val','test'))
    spoil(tmp_path/'test'/'a'/'a0.png', 'empty')
    with pytest.warns(UserWarning, match='left out'): assert get_dls(tmp_path).skipped=={}

def test_all_broken(tmp_path):
    d = write_images(tmp_path, ['a','b'], n=3)
    for f in d.rglob('*.png'): spoil(f, 'cut')
    with pytest.raises(ValueError) as e: get_dls(d)
    one_sentence(e, 'and 5 more')
    with pytest.raises(ValueError) as e: get_dls(d, skip_broken=True)
    one_sentence(e, '0 images of 0 classes')

def test_a_name_and_a_folder(tmp_path):
    d = write_images(tmp_path/'ims', ['a','b'], n=3)
    with pytest.raises(ValueError) as e: get_dls('digits', path=d)
    one_sentence(e, f'path={str(d)!r}', "name='digits'", "name='folder'")
    with pytest.raises(ValueError) as e: get_dls(d, path=tmp_path)
    one_sentence(e, f'name={str(d)!r}', f'path={str(tmp_path)!r}')

@pytest.mark.parametrize('name', ['folder', 'cifar10'])
def test_torchvisions_cifar(tmp_path, name):
    d = tmp_path/'cifar-10-batches-py'
    d.mkdir()
    for o in ('data_batch_1','test_batch'): (d/o).write_bytes(pickle.dumps({b'labels': [0]}))
    for path in (tmp_path, d):
        with pytest.raises(ValueError) as e: get_dls(name, path=path)
        one_sentence(e, f'path={str(path)!r}', 'data_batch_1', "name='cifar10'")

# ---- what cannot be served

def one_sentence(e, *parts):
    msg = str(e.value)
    assert '\n' not in msg and '. ' not in msg, msg
    for o in parts: assert o in msg, msg

@pytest.mark.parametrize('name', ['mnist', '', None, 5, 'DIGITS', ['digits']])
def test_unknown_data_set(name):
    with pytest.raises(ValueError) as e: get_dls(name)
    one_sentence(e, f'name={name!r}', 'digits', 'fashion_small', 'fashion_mnist', 'cifar10', 'imagenette', 'imagewoof')

def test_unknown_network():
    with pytest.raises(ValueError) as e: get_model('vgg', get_dls())
    one_sentence(e, "'vgg'", 'convnet', 'resnet', 'mlp')

@pytest.mark.parametrize('name', ['digits', 'fashion_small'])
def test_what_ships_takes_no_path(name, tmp_path):
    with pytest.raises(ValueError) as e: get_dls(name, path=tmp_path)
    one_sentence(e, f'path={str(tmp_path)!r}', f'name={name!r}', "name='folder'")

@pytest.mark.parametrize('name', ['cifar10', 'fashion_mnist', 'fashion_small', 'imagewoof', 'digits', 'folder'])
def test_missing_folder(name, tmp_path):
    with pytest.raises(FileNotFoundError) as e: get_dls(name, path=tmp_path/'none')
    one_sentence(e, 'path=', 'none', 'give')
    with pytest.raises(FileNotFoundError) as e: get_dls(str(tmp_path/'none'))
    one_sentence(e, 'none', 'folder')

@pytest.mark.parametrize('kw', [dict(bs=0), dict(bs=-3), dict(bs=1.5), dict(bs='64'), dict(bs=None), dict(bs=True), dict(label_noise=1.5), dict(label_noise=-.1),
                                dict(label_noise='x'), dict(label_noise=float('nan')), dict(label_noise=None),
                                dict(redundancy=1), dict(redundancy=1.), dict(redundancy=-.1), dict(redundancy='x'), dict(redundancy=float('nan')),
                                dict(redundancy=None), dict(redundancy=True)])
def test_bad_numbers(kw, tmp_path):
    (k,v), = kw.items()
    for more in dict(),dict(name='cifar10', path=write_images(tmp_path, ['a','b'], n=2)):
        with pytest.raises(ValueError) as e: get_dls(**kw, **more)
        one_sentence(e, f'{k}={v!r}', '1')

@pytest.mark.parametrize('classes', [[], ['a']])
def test_too_few_classes(tmp_path, classes):
    for path in write_images(tmp_path/'x', classes),write_images(tmp_path/'y', classes, parts=('train','val')):
        path.mkdir(exist_ok=True)
        with pytest.raises(ValueError) as e: get_dls(path)
        one_sentence(e, 'path=', f"{len(classes)} class", 'two')

def test_missing_and_truncated_idx(tmp_path):
    with pytest.raises(FileNotFoundError) as e: get_dls('fashion_mnist', path=tmp_path)
    one_sentence(e, 'path=', 'IDX')
    for o in 'train','t10k':
        (tmp_path/f'{o}-images-idx3-ubyte').write_bytes(idx(torch.zeros(9, 28, 28, dtype=torch.uint8))[:-5])
        (tmp_path/f'{o}-labels-idx1-ubyte').write_bytes(idx(torch.zeros(9, dtype=torch.uint8)))
    with pytest.raises(ValueError) as e: get_dls('fashion_mnist', path=tmp_path)
    one_sentence(e, 'path=', 'IDX')

@pytest.mark.parametrize('name', ['fashion_mnist', 'cifar10', 'imagenette', 'imagewoof'])
def test_no_network(name, tmp_path, monkeypatch):
    from fastai.data import external
    import blf_explore.engine.data as data
    class Nowhere:
        def path(self, *_): return tmp_path
        def __getitem__(self, _): return str(tmp_path)
    for o in data, external: monkeypatch.setattr(o, 'fastai_cfg', Nowhere) # nothing that was fetched before is found
    def no_net(*a, **k): raise socket.gaierror(-3, 'Temporary failure in name resolution')
    monkeypatch.setattr(socket, 'getaddrinfo', no_net)
    with pytest.raises(ConnectionError) as e: get_dls(name)
    one_sentence(e, f"name={name!r}", 'download', 'path=')
