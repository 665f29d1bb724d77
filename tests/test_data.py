"`get_dls` and `get_model`: what they serve, against the sources, and what they say when they cannot."
import gzip, os, pickle, socket, struct
import numpy as np, pytest, torch
from PIL import Image
from blf_explore.engine.data import flip_labels, get_dls, get_model

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

# ---- what cannot be served

def one_sentence(e, *parts):
    msg = str(e.value)
    assert '\n' not in msg and '. ' not in msg, msg
    for o in parts: assert o in msg, msg

@pytest.mark.parametrize('name', ['mnist', '', None, 5, 'DIGITS', ['digits']])
def test_unknown_data_set(name):
    with pytest.raises(ValueError) as e: get_dls(name)
    one_sentence(e, f'name={name!r}', 'digits', 'fashion_mnist', 'cifar10', 'imagenette', 'imagewoof')

def test_unknown_network():
    with pytest.raises(ValueError) as e: get_model('vgg', get_dls())
    one_sentence(e, "'vgg'", 'convnet', 'resnet', 'mlp')

@pytest.mark.parametrize('name', ['cifar10', 'fashion_mnist', 'imagewoof', 'digits', 'folder'])
def test_missing_folder(name, tmp_path):
    with pytest.raises(FileNotFoundError) as e: get_dls(name, path=tmp_path/'none')
    one_sentence(e, 'path=', 'none', 'give')
    with pytest.raises(FileNotFoundError) as e: get_dls(str(tmp_path/'none'))
    one_sentence(e, 'none', 'folder')

@pytest.mark.parametrize('kw', [dict(bs=0), dict(bs=-3), dict(bs=1.5), dict(bs='64'), dict(bs=None), dict(bs=True), dict(label_noise=1.5), dict(label_noise=-.1),
                                dict(label_noise='x'), dict(label_noise=float('nan')), dict(label_noise=None)])
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
