"`folder_split`: layouts as people make them, each written down here as the files that should train and validate."
import pytest
from PIL import Image
from blf_explore.engine.folders import class_of, folder_split, image_files, parts_of

def write(d, *names):
    for nm in names:
        (d/nm).parent.mkdir(parents=True, exist_ok=True)
        Image.new('L', (4,4)).save(d/nm)
    return d

def of(part, classes=('cat','dog'), n=2): return [f'{part}/{c}/{i}.png' for c in classes for i in range(n)]

def split(d, **kw):
    s = folder_split(d, image_files(d), **kw)
    return [o.relative_to(d).as_posix() for o in s.train], [o.relative_to(d).as_posix() for o in s.valid], s

def one_sentence(e, *parts):
    msg = str(e.value)
    assert '\n' not in msg and '. ' not in msg, msg
    for o in parts: assert o in msg, msg

splits = [('train','valid'), ('train','val'), ('train','test'), ('training','testing'), ('Train','Test'), ('TRAIN','TEST'), ('train','validation'),
          ('Training','Validation'), ('train','eval'), ('train','dev'), ('training_set','test_set'), ('trainset','testset'), ('TrainData','TestData'),
          ('train_images','val_images'), ('images-train','images-val'), ('seg_train','seg_test'), ('train2017','val2017'), ('fruits_train','fruits_test'),
          ('train','holdout'), ('01_train','02_valid')]

@pytest.mark.parametrize('wrap', ['', 'data/', 'data/v2/'])
@pytest.mark.parametrize('a,b', splits)
def test_names_of_splits(tmp_path, a, b, wrap):
    write(tmp_path, *of(wrap+a), *of(wrap+b, n=1))
    train,valid,s = split(tmp_path)
    assert (train, valid, s.left_out, s.notes)==(of(wrap+a), of(wrap+b, n=1), {}, [])

def test_each_part_wrapped_once_more(tmp_path):
    write(tmp_path, *of('seg_train/seg_train'), *of('seg_test/seg_test'), 'seg_pred/seg_pred/1.png')
    train,valid,s = split(tmp_path)
    assert train==of('seg_train/seg_train') and valid==of('seg_test/seg_test') and s.left_out=={'seg_pred': 1}

@pytest.mark.parametrize('a,b,c', [('train','valid','test'), ('Train','Val','Test'), ('training','dev','testing')])
def test_test_is_left_out_beside_valid(tmp_path, a, b, c):
    train,valid,s = split(write(tmp_path, *of(a), *of(b), *of(c, n=3)))
    assert train==of(a) and valid==of(b) and s.left_out=={c: 6}
    assert len(s.notes)==1 and f'6 images in {c}/ left out' in s.notes[0]

@pytest.mark.parametrize('flat', ['test', 'Test', 'testing', 'val', 'test/unknown', 'test/test', 'test1', 'test/images'])
def test_unlabelled_images_are_no_class(tmp_path, flat):
    for names in of('train', n=10),[o[2:] for o in of('.', n=10)]: # beside train/, and beside the classes themselves
        d = write(tmp_path/str(len(names[0])), *names, f'{flat}/1.png', f'{flat}/2.png')
        train,valid,s = split(d, seed=1)
        assert sorted(train+valid)==sorted(names) and len(valid)==4
        assert {class_of(f) for f in s.train+s.valid}=={'cat','dog'}
        assert s.left_out=={flat.split('/')[0]: 2} and 'unlabelled' in s.notes[0] and 'was drawn for validation' in s.notes[1]

def test_test_folder_beside_the_classes_validates(tmp_path):
    names = ['cat/1.png','cat/2.png','dog/1.png','dog/2.png']
    train,valid,_ = split(write(tmp_path, *names, *of('test', n=1)))
    assert train==names and valid==of('test', n=1)

def test_images_beside_the_classes(tmp_path):
    train,valid,s = split(write(tmp_path, *of('train'), *of('val'), 'overview.png', 'train/sheet.png', 'val/sheet.png', 'extra/1.png'))
    assert train==of('train') and valid==of('val')
    assert s.left_out=={'.': 1, 'extra': 1, 'train': 1, 'val': 1}

@pytest.mark.parametrize('part', ['val', 'test', 'Validation'])
def test_empty_folder_for_validation(tmp_path, part):
    write(tmp_path, *of('train', n=10))
    (tmp_path/part/'cat').mkdir(parents=True)
    train,valid,s = split(tmp_path)
    assert sorted(train+valid)==of('train', n=10) and len(valid)==4 and f'{part}/ holds no images' in s.notes[0]

def test_empty_val_beside_test(tmp_path):
    write(tmp_path, *of('train'), *of('test'))
    (tmp_path/'val').mkdir()
    assert split(tmp_path)[:2]==(of('train'), of('test'))

def test_class_that_is_only_in_train(tmp_path):
    train,valid,s = split(write(tmp_path, *of('train', ['cat','dog','lion']), *of('val')))
    assert train==of('train', ['cat','dog','lion']) and valid==of('val')

@pytest.mark.parametrize('classes', [('train','bus','car'), ('valid','invalid'), ('test tube','bullet train'), ('developer','contest')])
def test_classes_that_sound_like_parts(tmp_path, classes):
    train,valid,s = split(write(tmp_path, *[f'{c}/{i}.png' for c in classes for i in range(5)]))
    assert {class_of(f) for f in s.train}==set(classes) and len(train+valid)==5*len(classes) and not s.left_out

@pytest.mark.parametrize('seed', range(5))
def test_drawn_split(tmp_path, seed):
    import torch
    names = [f'{c}/{i:02}.png' for c in 'ab' for i in range(25)]
    train,valid,_ = split(write(tmp_path, *names), seed=seed)
    idxs = torch.randperm(50, generator=torch.Generator().manual_seed(seed)).tolist()
    assert train==[names[i] for i in idxs[:40]] and valid==[names[i] for i in idxs[40:]]

def test_rare_class_is_trained_on(tmp_path):
    names = [f'a/{i}.png' for i in range(30)]+['rare/1.png']
    write(tmp_path, *names)
    for seed in range(10):
        train,valid,_ = split(tmp_path, seed=seed)
        assert 'rare/1.png' in train and sorted(train+valid)==sorted(names)

def test_hidden_files_links_and_extensions(tmp_path):
    write(tmp_path, 'cat/1.PNG', 'cat/2.Jpg', 'dog/1.png', 'dog/.hidden.png', 'dog/._1.png', '.ipynb_checkpoints/1.png', '__MACOSX/cat/1.png', 'cat/.thumbs/1.png')
    (tmp_path/'cat/labels.csv').write_text('no image')
    (tmp_path/'dog/Thumbs.db').write_text('no image')
    (tmp_path/'dog/link.png').symlink_to(tmp_path/'dog/1.png')
    (tmp_path/'dog/up').symlink_to(tmp_path, target_is_directory=True)
    (tmp_path/'wolf').symlink_to(tmp_path/'dog', target_is_directory=True)
    got = [o.relative_to(tmp_path).as_posix() for o in image_files(tmp_path)]
    assert got==['cat/1.PNG', 'cat/2.Jpg', 'dog/1.png', 'dog/link.png', 'wolf/1.png', 'wolf/link.png']

refused = {
    'labels in file names': (['cat.1.png','cat.2.png','dog.1.png'], ['3 images', 'names of files are not read']),
    'flat train and test': (['train/1.png','train/2.png','test/3.png'], ['train/', 'no sub-folders']),
    'flat train beside test': (['train/1.png','train/2.png',*of('test')], ['train/', 'no sub-folders']),
    'one class': (['cat/1.png','cat/2.png'], ['2 images of 1 class', 'at least two']),
    'nothing': ([], ['0 images of 0 classes']),
    'a class only in val': ([*of('train'), *of('val', ['cat','lion'])], ["'lion'", 'none to train on']),
    'other classes in test': ([*of('train'), *of('test', ['lion','wolf'])], ["'lion'", '1 more', 'none to train on']),
    'only test': (of('test'), ['test/ only']),
    'only val, wrapped': (of('data/val'), ['val/ only']),
    'two for training': ([*of('train'), *of('training'), *of('val')], ['train, training', 'one of each']),
    'two for validation': ([*of('train'), *of('val'), *of('dev')], ['dev, val', 'one of each']),
    'a split in each class': (['cat/train/1.png','cat/test/1.png','dog/train/1.png','dog/test/1.png'], ['cat/test/']),
    'a split for each year': ([*of('2019/train'), *of('2019/test'), *of('2020/train'), *of('2020/test')], ['2019/test/cat/']),
    'a test set within train': ([*of('train'), *of('train/test'), *of('val')], ['train/test/cat/']),
    'nothing to spare': (['a/1.png','b/1.png'], ['2 images', 'spared'])}

@pytest.mark.parametrize('case', refused)
def test_what_can_be_read_in_two_ways(tmp_path, case):
    names,parts = refused[case]
    write(tmp_path, *names)
    with pytest.raises(ValueError) as e: split(tmp_path)
    one_sentence(e, f'path={str(tmp_path)!r}', *parts)

@pytest.mark.parametrize('names,part', [(['cifar-10-batches-py/data_batch_1','cifar-10-batches-py/test_batch','cifar-10-batches-py/batches.meta'], 'data_batch_1'),
    (['train','test','meta'], "CIFAR's pickled"), (['cifar-10-python.tar.gz'], 'unpack'), (['a/digits.zip'], 'unpack'), (['t10k-labels-idx1-ubyte.gz'], 'IDX'),
    (['x.npy','y.csv'], 'x.npy, y.csv')])
def test_what_is_there_instead_of_images(tmp_path, names, part):
    for o in names:
        (tmp_path/o).parent.mkdir(exist_ok=True)
        (tmp_path/o).touch()
    with pytest.raises(ValueError) as e: split(tmp_path)
    one_sentence(e, part, '0 images', 'give a folder')

def test_names_that_say_nothing():
    assert parts_of(['cat', 'dog', '2017', 'images', 'latest', 'contest', 'evaluate me', ''])=={}
