"Images of every kind against arithmetic on arrays, and `TensorDL`'s batches against indexing."
import io, random
import numpy as np, pytest, torch
from PIL import Image
from fastai.vision.all import Flip, Normalize, PILImage, RandTransform, Resize, TensorImage, aug_transforms, imagenet_stats
from blf_explore.engine.images import ImageTensors, ItemImage, ItemLabel, TensorDL, TensorLoaders, look_at, open_image, refuse_broken, set_like

rng = np.random.RandomState(0)
rgb,grey = rng.randint(0, 256, (6,9,3), dtype=np.uint8), rng.randint(0, 256, (6,9), dtype=np.uint8)

# ---- one image

@pytest.mark.parametrize('ext,dtype,scale', [('png', np.uint16, 257), ('tif', np.uint16, 257), ('tif', np.int32, 257), ('tif', np.int32, 1),
                                             ('tif', np.float32, 1/255), ('tif', np.float32, 1), ('tif', np.float32, 257)])
def test_more_than_eight_bits(tmp_path, ext, dtype, scale):
    a = grey.copy(); a[0,0] = 255 # the range of 32 bits is read off the values
    Image.fromarray((a*np.float64(scale)).astype(dtype)).save(tmp_path/f'x.{ext}')
    assert np.abs(np.asarray(open_image(tmp_path/f'x.{ext}', 'L')).astype(int)-a).max()<=1
    assert (np.asarray(open_image(tmp_path/f'x.{ext}'))==np.asarray(open_image(tmp_path/f'x.{ext}', 'L'))[...,None]).all()

def test_sixteen_bits_have_one_scale(): # a dark image stays dark
    assert np.asarray(open_image(np.full((2,2), 2570, np.uint16), 'L')).tolist()==[[10,10],[10,10]]

@pytest.mark.parametrize('mode', ['1','L','LA','P','PA','RGB','RGBA','CMYK','YCbCr','HSV'])
def test_as_pillow_converts(mode, recwarn):
    im = Image.fromarray(rgb).convert('P' if mode=='PA' else mode).convert(mode)
    assert (np.asarray(open_image(im))==np.asarray(im.convert('RGB'))).all()
    assert (np.asarray(open_image(im, 'L'))==np.asarray(im.convert('L'))).all() and not len(recwarn)

def test_palette_with_transparency(tmp_path, recwarn):
    im = Image.fromarray(rgb).convert('P')
    im.save(tmp_path/'p.png', transparency=bytes([0,128]+[255]*254))
    assert (np.asarray(open_image(tmp_path/'p.png'))==np.asarray(im.convert('RGB'))).all() and not len(recwarn)

turns = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.swapaxes(0,1), 6: lambda a: np.rot90(a, -1),
         7: lambda a: np.rot90(a, 2).swapaxes(0,1), 8: np.rot90}
@pytest.mark.parametrize('n', turns)
def test_orientation(tmp_path, n):
    exif = Image.Exif(); exif[0x0112] = n
    Image.fromarray(rgb).save(tmp_path/'x.png', exif=exif)
    Image.fromarray(rgb).resize((90,60)).save(tmp_path/'x.jpg', exif=exif)
    assert (np.asarray(open_image(tmp_path/'x.png'))==turns[n](rgb)).all()
    assert look_at([tmp_path/'x.png'])[0]==turns[n](rgb).shape[1::-1]
    assert look_at([tmp_path/'x.jpg'])[0]==open_image(tmp_path/'x.jpg').size

def buffer(a):
    b = io.BytesIO(); Image.fromarray(a).save(b, 'png')
    return b.getvalue()

def test_kinds_of_items(tmp_path):
    (tmp_path/'x.png').write_bytes(buffer(rgb))
    t = torch.tensor(rgb)
    for o in (tmp_path/'x.png', str(tmp_path/'x.png'), buffer(rgb), Image.fromarray(rgb), PILImage.create(rgb), rgb, rgb.transpose(2,0,1), t, t.permute(2,0,1),
              np.dstack([rgb, grey]), TensorImage(t).permute(2,0,1)):
        assert (np.asarray(open_image(o))==rgb).all()
        assert (np.asarray(ItemImage()(o))==rgb).all() and (np.asarray(ItemImage()((o,'cat')))==rgb).all()
    for o in (grey, grey[None], grey[...,None], torch.tensor(grey), torch.tensor(grey)[None]): assert (np.asarray(open_image(o, 'L'))==grey).all()

def test_channels_where_the_shape_leaves_it_open():
    a = rng.randint(0, 256, (3,5,3), dtype=np.uint8)
    assert (np.asarray(open_image(a))==a).all() and (np.asarray(open_image(torch.tensor(a)))==a.transpose(1,2,0)).all()

@pytest.mark.parametrize('o', [None, 3, [1,2], [rgb/255.], rgb/255., rgb.astype(np.int64), rgb[...,:2], np.zeros((2,2,2,3), np.uint8), np.zeros((0,5), np.uint8), grey[0],
                               Image.fromarray(np.float32([[float('nan'),1]])), Image.fromarray(np.float32([[-1,1]])), Image.fromarray(np.int32([[70000]]))])
def test_no_image(o):
    with pytest.raises(ValueError) as e: open_image(o)
    assert 'give' in str(e.value) and '\n' not in str(e.value)

# ---- files that cannot be read

def damaged(d):
    big = rng.randint(0, 256, (70,90,3), dtype=np.uint8)
    for ext in ('png','jpg','bmp','gif','webp'):
        Image.fromarray(big).save(d/f'whole.{ext}')
        b = (d/f'whole.{ext}').read_bytes()
        (d/f'cut.{ext}').write_bytes(b[:len(b)//2])
    (d/'empty.png').touch()
    (d/'text.jpg').write_text('<html>not found</html>')
    (d/'gone.png').symlink_to(d/'nowhere.png')
    return sorted(o for o in d.iterdir() if not o.name.startswith('whole')), sorted(d.glob('whole*'))

@pytest.mark.parametrize('whole', [None, True, False])
def test_damaged_files_are_found(tmp_path, whole):
    bad,good = damaged(tmp_path)
    size,grey,broken = look_at(good+bad, whole)
    assert sorted(broken)==bad and size==(90,70) and not grey
    assert (broken[tmp_path/'empty.png'], broken[tmp_path/'gone.png'])==('the file is empty', 'there is no such file')
    with pytest.raises(ValueError) as e: refuse_broken(tmp_path, broken)
    assert f"{str(next(iter(broken)))!r}" in str(e.value) and f'{len(bad)-1} more' in str(e.value) and 'skip_broken=True' in str(e.value)
    for f in bad:
        with pytest.raises(ValueError) as e: open_image(f)
        assert repr(str(f)) in str(e.value) and '\n' not in str(e.value)

def test_one_sentence_out_of_a_worker(tmp_path):
    from torch._utils import ExceptionWrapper # what PyTorch's workers send instead of the exception
    bad,_ = damaged(tmp_path)
    for f in bad:
        with pytest.raises(ValueError) as here: open_image(f)
        with pytest.raises(ValueError) as there:
            try: open_image(f)
            except ValueError: ExceptionWrapper(where='in DataLoader worker process 0').reraise()
        assert str(there.value)==str(here.value)

# ---- batches

def sets(n=40, c=3):
    g = torch.Generator().manual_seed(0)
    x,y = torch.randint(0, 256, (n,c,8,8), generator=g, dtype=torch.uint8), torch.randint(0, 3, (n,), generator=g)
    train = ImageTensors(x, y, ['a','b','c'], split_idx=0)
    return x, train, ImageTensors(x, y, ['a','b','c'], mean=train.mean, std=train.std, split_idx=1)

def loaders(c=3):
    x,train,valid = sets(c=c)
    return x, TensorLoaders(TensorDL(train, bs=10, shuffle=True), TensorDL(valid, bs=20))

def test_plain_batches_are_one_indexing():
    x,dls = loaders()
    dls.train.rng = random.Random(3)
    idxs = random.Random(random.Random(3).randint(0, 2**32-1)).sample(range(40), 40) # as fastai's loader uses its generator
    for b,i in zip(dls.train, range(0, 40, 10)):
        assert [type(o) for o in b]==[torch.Tensor]*2
        assert torch.equal(b[0], dls.train_ds.x[idxs[i:i+10]]) and torch.equal(b[1], dls.train_ds.y[idxs[i:i+10]])

@pytest.mark.parametrize('c', [1, 3])
def test_augmentation_changes_training_only(c):
    x,dls = loaders(c)
    want = [dls.train_ds.x.clone(), dls.valid_ds.x.clone()]
    dls.add_tfms([Flip(p=1., draw=1)], 'after_batch')
    in_order = dls.train.new(shuffle=False)
    torch.testing.assert_close(torch.cat([b[0] for b in in_order]), want[0].flip(-1), atol=1e-2, rtol=0)
    torch.testing.assert_close(torch.cat([b[0] for b in dls.valid]), want[1], atol=1e-4, rtol=0)
    assert all(type(o) is torch.Tensor for b in dls.train for o in b)
    assert torch.equal(dls.train_ds.x, want[0]) # the set itself is as it was

@pytest.mark.parametrize('how', ['dls', 'dl', 'pipeline', 'new', 'loader'])
def test_ways_to_add(how):
    _,dls = loaders()
    before = dls.train.new(shuffle=False).one_batch()[0]
    dl,tfms = dls.train,aug_transforms()
    if how=='dls': dls.add_tfms(tfms, 'after_batch', 'train')
    if how=='dl': dl.add_tfms(tfms, 'after_batch')
    if how=='pipeline': dl.after_batch.add(tfms)
    if how=='new': dl = dl.new(after_batch=tfms)
    if how=='loader': dl = TensorDL(dls.train_ds, bs=10, after_batch=tfms)
    a,b = (dl.new(shuffle=False).one_batch()[0] for _ in range(2))
    assert (a-before).abs().mean()>.05 and not torch.equal(a, b)
    assert torch.equal(dls.valid.one_batch()[0], dls.valid_ds.x[:20])

def test_new_has_transforms_of_its_own():
    _,dls = loaders()
    dls.train.new().add_tfms(aug_transforms())
    assert not dls.train.after_batch.fs and len(dls.valid.new().after_batch.fs)==0

def test_their_normalize_takes_the_place_of_ours():
    x,dls = loaders()
    dls.add_tfms([Normalize.from_stats(*imagenet_stats, cuda=False)], 'after_batch')
    mean,std = (torch.tensor(o)[:,None,None] for o in imagenet_stats)
    torch.testing.assert_close(dls.valid.one_batch()[0], (x[:20]/255-mean)/std, atol=1e-5, rtol=1e-5)
    shown = dls.valid.decode_batch(dls.valid.one_batch(), max_n=2)
    torch.testing.assert_close(torch.Tensor(shown[1][0]), x[1]/255, atol=1e-5, rtol=1e-5)
    dls.add_tfms([Normalize()], 'after_batch') # without statistics: asks for what is done already
    torch.testing.assert_close(dls.valid.one_batch()[0], (x[:20]/255-mean)/std, atol=1e-5, rtol=1e-5)

class Seen(RandTransform):
    "Keeps what a transform of a given place is shown."
    def __init__(self, order): super().__init__(order=order); self.seen = None
    def encodes(self, o:TensorImage):
        self.seen = o
        return o

def test_transforms_see_what_fastai_would_show_them():
    x,dls = loaders()
    early,late = Seen(30),Seen(100)
    dls.add_tfms([early,late], 'after_batch', 'train')
    got = dls.train.new(shuffle=False).one_batch()[0]
    torch.testing.assert_close(torch.Tensor(early.seen), x[:10]/255, atol=1e-5, rtol=0) # images from 0 to 1
    torch.testing.assert_close(torch.Tensor(late.seen), dls.train_ds.x[:10], atol=1e-5, rtol=1e-5) # as RandomErasing wants them: normalised
    torch.testing.assert_close(got, dls.train_ds.x[:10], atol=1e-5, rtol=1e-5)

@pytest.mark.parametrize('event', ['after_item', 'before_batch'])
def test_item_transforms_are_refused(event):
    _,dls = loaders()
    dls.add_tfms([Resize(4)], event)
    with pytest.raises(ValueError) as e: dls.train.one_batch()
    assert f"{event}=['Resize']" in str(e.value) and "'after_batch'" in str(e.value) and '\n' not in str(e.value)

def test_more_images_of_the_same_kind(tmp_path):
    x,dls = loaders()
    ds,im = dls.train_ds,x[5].permute(1,2,0).numpy()
    Image.fromarray(im).save(tmp_path/'x.png')
    (tmp_path/'b').mkdir(); Image.fromarray(im).save(tmp_path/'b/x.png')
    for o in (im, x[5], x[5].permute(1,2,0), Image.fromarray(im), tmp_path/'x.png', str(tmp_path/'x.png'), ds[5], ds[5][0], ds.image(ds[5][0])):
        got = set_like(ds, [o])
        torch.testing.assert_close(got.x[0], ds.x[5], atol=1e-5, rtol=1e-5)
        assert got.split_idx==1 and len(got)==1 and torch.equal(ds.x, sets()[1].x)
    assert set_like(ds, [ds[5]]).y.tolist()==[int(ds.y[5])] and set_like(ds, [ds[5],im]).y is None and set_like(ds, [ds[5]], False).y is None
    assert set_like(ds, [(im,'c'), (im,1), tmp_path/'b/x.png'], True).y.tolist()==[2,1,1]
    for items in ([], None, 'x.png', im.mean(), ds[5], Image.fromarray(im), [x[5]/255], [im/255]):
        with pytest.raises(ValueError, match='give') as e: set_like(ds, items)
        assert '\n' not in str(e.value)
    for items in ([im], [tmp_path/'x.png'], [(im,)], [(im,'lion')]):
        with pytest.raises(ValueError, match='with_labels=True'): dls.test_dl(items, with_labels=True)

def test_test_dl_is_never_augmented():
    x,dls = loaders()
    dls.add_tfms(aug_transforms(), 'after_batch')
    got, = dls.test_dl(list(x[:7])).one_batch()
    torch.testing.assert_close(got, dls.train_ds.x[:7], atol=1e-3, rtol=1e-3)

def test_labels_of_items(tmp_path):
    f = tmp_path/'cat'/'1.png'
    label = ItemLabel({f: 'dog'}, ['cat','dog']) # it was flipped
    assert [label(o) for o in (f, str(f), tmp_path/'cat'/'2.png', (None,'dog'), (None,0), (None,torch.tensor(1)))]==['dog','dog','cat','dog','cat','dog']
    for o in (rgb, tmp_path/'1.png', (rgb,'lion')):
        with pytest.raises(ValueError, match='is not known'): label(o)
