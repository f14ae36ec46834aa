"datasets: readers of folders, CSVs and archives, what they refuse and name, parts, loaders, export; real data where there is some."
import os, shutil, threading, warnings, zipfile
from collections import Counter
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from sklearn.datasets import load_digits
from fastai.basics import CrossEntropyLossFlat, Learner, load_learner, nn
from fastai.layers import Flatten
from fastai.vision.augment import Flip, RandomCrop, Resize
from balmix_fastai.datasets import ImageSet, digits_lt, find_images, from_csv, from_folder, from_npz, open_image, read_images, split_of

def _pic(i, size=(6,8)): return np.random.default_rng(i).integers(0, 256, (*size,3), dtype=np.uint8)

def _draw(folder, n, ext='png', start=0):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(start, start+n): Image.fromarray(_pic(i)).save(folder/f'{i}.{ext}')

def _csv(tmp_path, rows, head='image,label', n=8, name='t.csv'):
    _draw(tmp_path/'ims', n)
    (tmp_path/name).write_text('\n'.join([head, *rows])+'\n')
    return tmp_path/name

def _arrays(counts, seed=0):
    labels = np.repeat(np.arange(len(counts)), counts)
    return ImageSet([_pic(i) for i in range(len(labels))], labels, [f'c{i}' for i in range(len(counts))])

# Folders

@pytest.fixture
def tree(tmp_path):
    for part,ns in dict(train=(4,2,3), val=(1,1,0), test=(2,0,1)).items():
        for c,n in zip('bac', ns):
            if n: _draw(tmp_path/'d'/part/c, n)
    return tmp_path/'d'

@pytest.mark.parametrize('val', ['val', 'valid'])
def test_folder_with_parts(tree, val):
    (tree/'val').rename(tree/val)
    ims = from_folder(tree).check(progress=False)
    assert ims.vocab==['a', 'b', 'c'] and not ims.ordinal
    assert {k: ims.counts(k).tolist() for k in ims.splits}==dict(train=[2,4,3], valid=[1,1,0], test=[0,2,1])
    for i,n in enumerate(ims.names):
        part,c,_ = n.split('/')
        assert ims.items[i]==tree/n and ims.vocab[ims.labels[i]]==c and i in ims.splits['valid' if part==val else part]

def test_folder_of_classes_nested_hidden_and_other_files(tree):
    flat = tree/'train'
    _draw(flat/'a/deeper', 1, 'jpg', start=9)
    _draw(flat/'.cache', 2)
    for f in ('a/.hidden.png', 'a/notes.txt', 'readme.png'): (flat/f).write_bytes(b'no image')
    ims = from_folder(flat, ordinal=True).check(progress=False)
    assert list(ims.splits)==['train'] and ims.counts().tolist()==[3,4,3] and ims.ordinal
    assert 'a/deeper/9.jpg' in ims.names and ims.names==sorted(ims.names)

def _empty(d): (d/'train/zebra').mkdir()
def _unseen(d): _draw(d/'test/zebra', 2)
def _both(d): (d/'valid').mkdir()
def _no_train(d): (d/'train').rename(d/'learning')
def _one_class(d): [shutil.rmtree(o) for o in (d/'train/b', d/'train/c', d/'val', d/'test')]
def _no_classes(d): [(d/'val'/c).rename(d.parent/c) for c in 'ab']
@pytest.mark.parametrize('spoil,msg', [(_empty, 'without an image: train/zebra'), (_unseen, "training never has: 'zebra' of test/zebra/0.png, 'zebra' of test/zebra/1.png"),
    (_both, r'both valid/ and val/'), (_no_train, r'has the folder val/ but no train/'), (_one_class, "at least two classes, but has only 'a'"),
    (_no_classes, 'no images found.*valid')])
def test_folder_errors(tree, spoil, msg):
    spoil(tree)
    with pytest.raises(ValueError, match=msg): from_folder(tree)

def test_folder_without_classes_or_no_folder(tmp_path):
    _draw(tmp_path, 2)
    with pytest.raises(ValueError, match='no images found'): from_folder(tmp_path)
    with pytest.raises(ValueError, match='0.png.*is not a folder'): from_folder(tmp_path/'0.png')


def _tree(root, **counts):
    for d,n in counts.items(): _draw(root/d.replace('__', '/'), n)
    return root

@pytest.mark.parametrize('train,valid,test', [('train', 'validation', 'test'), ('Training', 'Val', 'Testing'), ('TRAIN', 'dev', 'TEST'),
    ('train_images', 'val_images', 'test_images'),
    ('TrainingSet', 'ValidationSet', 'TestSet'), ('images-train', 'images-valid', 'images-test')])
def test_usual_names_of_splits(tmp_path, train, valid, test):
    ims = from_folder(_tree(tmp_path/'d', **{f'{train}__a':3, f'{train}__b':2, f'{valid}__b':1, f'{test}__a':2}))
    assert ims.vocab==['a', 'b'] and {k: ims.counts(k).tolist() for k in ims.splits}==dict(train=[3,2], valid=[0,1], test=[2,0])
    assert f'train from {train}/, valid from {valid}/, test from {test}/' in ims.describe()

@pytest.mark.parametrize('folders,says', [(['fold1__a', 'fold1__b', 'fold2__a', 'fold2__b'], 'fold1/, fold2/'),
    (['train_cats', 'train_dogs', 'test_cats', 'test_dogs'], 'test_cats/, test_dogs/, train_cats/'),
    (['train__a', 'train__b', 'test2__a'], 'test2/'), (['train__a', 'train__b', 'extra__a', 'extra__b'], 'extra/'),
    (['train1__a', 'train2__b'], 'train1/, train2/'), (['images', 'masks'], 'images/'),
    (['train__a', 'train__b', 'val__a', 'validation__b'], 'both validation/ and val/'),
    (['Train__a', 'training__b'], 'both training/ and Train/'), (['images_001', 'images_002'], 'images_001/'),
    (['cat__train', 'cat__test', 'dog__train', 'dog__test'], 'cat/test/, cat/train/'),
    (['train__a__test', 'train__b'], 'train/a/test/'), (['my_train__a', 'b'], 'my_train/'),
    (['Testing__a', 'Validation__a'], 'but no train/'),
    (['eval__a', 'b'], 'eval/'), (['data__a', 'data__b'], 'single folder data/; pass .*d/data'),
    (['train', 'bus', 'car'], 'no class folders')])
def test_what_looks_like_a_split_is_no_class(tmp_path, folders, says):
    with pytest.raises(ValueError, match=says): from_folder(_tree(tmp_path/'d', **dict.fromkeys(folders, 2)))

def test_classes_that_have_a_word_of_splits(tmp_path):
    assert from_folder(_tree(tmp_path/'d', train_station=2, valley=2, bus=2)).vocab==['bus', 'train_station', 'valley']
    assert from_folder(_tree(tmp_path/'e', train__train=2, train__bus=2, test__train=1)).vocab==['bus', 'train']
    assert [split_of(o) for o in ('fold1', 'train2', 'tests_passed', '', 'unlabeled', '1')]==[None]*6

def test_what_a_folder_leaves_out_is_named(tmp_path):
    d = _tree(tmp_path/'d', train__a=3, train__b=3, unlabeled=4, __MACOSX__a=1)
    _tree(d/'.git', x=1)
    for f in ('train/a/notes.txt', 'train/a/Thumbs.db', 'train/b/._0.png', 'train/b/.hidden.png', 'train/stray.png', 'top.csv'):
        (d/f).write_bytes(b'x')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        ims = from_folder(d).check(progress=False)
    assert len(ims)==6
    for text in (repr(ims), ims.describe()):
        assert all(o in text for o in ('unlabeled/', '1 .txt', '3 hidden', '1 .png beside class folders',
            '1 .csv beside split folders', '.git/'))

def test_files_that_may_be_images_are_warned_of(tmp_path):
    d = _tree(tmp_path/'d', a=3, b=3)
    for f in ('a/1.dcm', 'a/2.DCM', 'a/3.nii.gz', 'b/scan', 'b/x.heic', 'b/y.npy'): (d/f).write_bytes(b'x')
    with pytest.warns(UserWarning, match='may be images are not read: 2 .dcm, 1 .heic, 1 .nii.gz, 1 .npy, 1 no ending') as said:
        ims = from_folder(d)
    assert len(ims)==6 and '2 .dcm' in repr(ims) and said[0].filename==__file__
    shutil.rmtree(d/'b')
    (d/'b').mkdir()
    (d/'b/1.dcm').write_bytes(b'x')
    with pytest.raises(ValueError, match=r'without an image: b \(holds 1 .dcm\)'): from_folder(d)

def test_endings_do_not_depend_on_the_machine(tmp_path, monkeypatch):
    import mimetypes
    monkeypatch.setattr(mimetypes, 'types_map', {})
    for e in ('PNG', 'jpg', 'JPEG', 'tif', 'webp', 'bmp', 'jfif', 'ppm', 'jp2'):
        for c in 'ab': _draw(tmp_path/'d'/c, 1, 'png' if e=='PNG' else e)
        if e=='PNG': [(tmp_path/f'd/{c}/0.png').rename(tmp_path/f'd/{c}/big.PNG') for c in 'ab']
    assert from_folder(tmp_path/'d').check(progress=False).counts().tolist()==[9,9]

def test_links(tmp_path):
    d = _tree(tmp_path/'d', a=3, b=2)
    _tree(tmp_path, store=2, other__x=2)
    (d/'a/up').symlink_to('..')                         # to the set
    (d/'a/self').symlink_to('.')
    (d/'b/more').symlink_to(tmp_path/'other')           # to images elsewhere
    (d/'c').symlink_to(tmp_path/'store')                # a class
    (d/'a/again.png').symlink_to(d/'a/0.png')           # to an image of the class
    ims = from_folder(d).check(progress=False)
    assert ims.counts().tolist()==[3,4,2] and len({os.path.realpath(o) for o in ims.items})==9
    assert '2 link to a folder above' in repr(ims) and '1 link to an image that is there' in repr(ims)
    (d/'b/wrong.png').symlink_to(d/'a/0.png')
    with pytest.raises(ValueError, match='into two classes or splits: b/wrong.png is a/0.png'): from_folder(d)
    (d/'b/wrong.png').unlink()
    (d/'top').symlink_to(tmp_path)
    with pytest.raises(ValueError, match=r'without an image: top \(holds 1 link to a folder above\)'): from_folder(d)
    assert len(find_images(tmp_path)[0])==9

def test_a_link_cannot_bring_test_images_into_training(tmp_path):
    d = _tree(tmp_path/'d', train__a=3, train__b=3, test__a=2)
    (d/'train/a/more').symlink_to(d/'test/a')
    with pytest.raises(ValueError, match='into two classes or splits'): from_folder(d)

@pytest.mark.parametrize('names,order', [(['5','10','20','100'],)*2, (['0','1','2','10'],)*2, (['-1','0','1.5','1e1'],)*2,
    (['grade_2','grade_10','grade_1'], ['grade_1','grade_2','grade_10']),
    (['T10','T9'], ['T9','T10']), (['b','a','10'], ['10','a','b']), (['1_0','10','9'], ['10','1_0','9']),
    (['9007199254740993','9007199254740992'], ['9007199254740992','9007199254740993']),
    (['a1','b2','a10'], ['a1','a10','b2']), (['inf','1'], ['1','inf'])])
def test_classes_of_folders_and_csvs_have_one_order(tmp_path, names, order):
    d = _tree(tmp_path/'d', **dict.fromkeys(names, 2))
    f = tmp_path/'t.csv'
    f.write_text('image,label\n'+'\n'.join(f'd/{n}/{i}.png,{n}' for n in names for i in range(2)))
    for ims in (from_folder(d), from_csv(f)):
        assert ims.vocab==order and all(ims.vocab[l]==o.parent.name for o,l in zip(ims.items, ims.labels))

def test_grades_by_name_need_an_order(tmp_path):
    grades = ['none', 'mild', 'moderate', 'severe, late']
    d = _tree(tmp_path/'d', **dict.fromkeys(grades, 2))
    f = tmp_path/'t.csv'
    f.write_text('image,label\n'+'\n'.join(f'"d/{n}/{i}.png","{n}"' for n in grades for i in range(2)))
    for read,path in ((from_folder, d), (from_csv, f)):
        with pytest.raises(ValueError, match='ordinal=True needs the order.*mild, moderate, none, severe, late.*vocab='):
            read(path, ordinal=True)
        ims = read(path, ordinal=True, vocab=grades)
        assert ims.vocab==grades and ims.ordinal and [Path(o).parent.name for o in ims.items]==[grades[l] for l in ims.labels]
        with pytest.raises(ValueError, match="vocab does not have.*severe, late"): read(path, vocab=grades[:3])
        assert read(path, ordinal=False).vocab==sorted(grades)
    assert from_folder(_tree(tmp_path/'e', grade_2=2, grade_10=2), ordinal=True).vocab==['grade_2', 'grade_10']

# Reading images

@pytest.mark.parametrize('ext', ['png', 'jpg', 'bmp', 'gif'])
def test_truncated_and_broken_images_are_named(tree, ext):
    _draw(tree/'train/a', 8, ext, start=20)
    ims = from_folder(tree)
    assert ims.check(progress=False) is ims
    for i in range(20, 27):
        f = tree/f'train/a/{i}.{ext}'
        f.write_bytes(f.read_bytes()[:-len(f.read_bytes())//3] if i<24 else b'<html>not found</html>' if i<26 else b'')
    with pytest.raises(ValueError, match=rf'train/a/20.{ext} \(.*train/a/24.{ext} \(.*\.\.\. and 2 more') as e: ims.check(progress=False)
    assert f'27.{ext}' not in str(e.value) and f'26.{ext}' not in str(e.value)

def test_deep_and_vanished_images_are_named(tree):
    ims = from_folder(tree)
    Image.fromarray(np.full((4,4), 4000, np.uint16)).save(tree/'train/a/0.png')
    (tree/'train/b/1.png').unlink()
    with pytest.raises(ValueError, match=r'train/a/0.png \(has pixels of mode I;16.*train/b/1.png \(FileNotFoundError'): ims.check(progress=False)

def test_images_are_read_in_threads(tree, monkeypatch):
    seen,barrier = [],threading.Barrier(3, timeout=20)
    import balmix_fastai.datasets as m
    def read(path):
        seen.append(path)
        if len(seen)<=3: barrier.wait() # passes only if three calls run at once
    monkeypatch.setattr(m, '_image_error', read)
    ims = from_folder(tree)
    ims.check(workers=3, progress=False)
    assert sorted(seen)==sorted(ims.items)

@pytest.mark.parametrize('bad,msg', [(np.zeros((4,4)), 'float64'), (np.zeros((4,4,2), np.uint8), r'shape \(4, 4, 2\)'), (np.zeros(4, np.uint8), r'shape \(4,\)')])
def test_arrays_that_are_no_images(bad, msg):
    with pytest.raises(ValueError, match=msg): ImageSet([np.zeros((4,4), np.uint8), bad], [0,1], 'ab').check(progress=False)


# Pixels

def _save(path, a, **kw):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(a).save(path, **kw)
    return path

def _wide_set(tmp_path, a, ext='png'):
    for c in 'ab':
        for i in range(4): _save(tmp_path/f'd/{c}/{i}.{ext}', a)
    return tmp_path/'d'

wide16,wide32,floats = np.full((8,8), 4000, np.uint16),np.full((8,8), 70000, np.int32),np.full((8,8), .5, np.float32)

@pytest.mark.parametrize('a,ext', [(wide16, 'png'), (wide16, 'tif'), (wide32, 'tif'), (floats, 'tif'), (wide16, 'jp2')])
def test_wide_pixels_are_refused_where_they_are_loaded(tmp_path, a, ext):
    ims = from_folder(_wide_set(tmp_path, a, ext)).with_valid(.5)
    with pytest.raises(ValueError, match=rf'd/a/\d.{ext} has pixels of mode [IF].*window='): ims.dataloaders(bs=2, device='cpu')
    other = ImageSet([_pic(i) for i in range(8)], [0,1]*4, 'ab').with_valid(.5).dataloaders(size=8, bs=2, device='cpu')
    with pytest.raises(ValueError, match=r'has pixels of mode'): ims.test_dl(other, 'valid').one_batch()
    with pytest.raises(ValueError, match=r'd/a/0|a/0'): ims.check(progress=False)

@pytest.mark.parametrize('workers', [0, 1])
def test_one_wide_image_among_others(tmp_path, workers):
    for c in 'ab': _draw(tmp_path/'d'/c, 6)
    ims = from_folder(tmp_path/'d').with_valid(.3)
    _save(ims.items[ims.splits['train'][-1]], wide16[:6])
    dls = ims.dataloaders(bs=8, workers=workers, device='cpu')
    with pytest.raises(ValueError, match='would be cut off'): list(dls.train)

@pytest.mark.parametrize('a,ext', [(wide16, 'png'), (wide32, 'tif'), (floats, 'tif')])
def test_a_window_scales_wide_pixels(tmp_path, a, ext):
    v = float(a[0,0])
    assert 'become 0 to 255' in from_folder(_wide_set(tmp_path, a, ext), window=(0, v)).describe()
    ims = from_folder(_wide_set(tmp_path, a, ext), window=(v/2, v*3/2)).check(progress=False).with_valid(.5)
    dls = ims.dataloaders(bs=2, normalize=False, device='cpu')
    assert dls.one_batch()[0].unique().tolist()==pytest.approx([128/255]) and dls.one_batch()[0].shape==(2,3,8,8)
    (tmp_path/'t.csv').write_text(f'image,label\na/0.{ext},a\nb/0.{ext},b')
    assert np.asarray(open_image(from_csv(tmp_path/'t.csv', images=tmp_path/'d', window=(0, v)).items[0], (0, v)))[0,0].tolist()==[255]*3
    with pytest.raises(ValueError, match='8 bits per pixel'):
        from_folder(_wide_set(tmp_path/'e', np.full((8,8), 9, np.uint8)), window=(0, 9)).check(progress=False)

@pytest.mark.parametrize('window', [(1,1), (2,1), 5, ('a','b'), (0, float('nan')), (0,1,2)])
def test_windows_that_are_none(tmp_path, window):
    with pytest.raises(ValueError, match='window='): from_folder(_wide_set(tmp_path, wide16), window=window)
    with pytest.raises(ValueError, match='window='): ImageSet([_pic(0), _pic(1)], [0,1], 'ab', window=(0, 255))

@pytest.mark.parametrize('mode,ext', [('1','png'), ('L','png'), ('LA','png'), ('P','png'), ('RGBA','png'), ('CMYK','jpg'),
    ('CMYK','tif'), ('L','jpg'), ('YCbCr','jpg'), ('P','gif')])
def test_modes_that_are_converted(tmp_path, mode, ext):
    im = Image.fromarray(np.kron(np.array([[0,255],[255,0]], np.uint8), np.ones((8,8), np.uint8))).convert('RGB').convert(mode)
    im.save(tmp_path/f'x.{ext}')
    got = np.asarray(open_image(tmp_path/f'x.{ext}')).astype(int)
    assert got.shape==(16,16,3) and abs(got[4,4]-0).max()<4 and abs(got[4,12]-255).max()<4

def _pages(p): Image.new('L', (4,4)).save(p, save_all=True, append_images=[Image.new('L', (4,4), 9)])
def _lab(p): Image.new('LAB', (4,4)).save(p)
def _deep_colour(p):
    "A PNG of 16-bit RGB, which Pillow cannot write"
    import struct, zlib
    chunk = lambda k,d: struct.pack('>I', len(d))+k+d+struct.pack('>I', zlib.crc32(k+d))
    p.write_bytes(b'\x89PNG\r\n\x1a\n'+chunk(b'IHDR', struct.pack('>IIBBBBB', 4, 4, 16, 2, 0, 0, 0))+chunk(b'IDAT',
        zlib.compress((b'\0'+struct.pack('>12H', *[4000]*12))*4))+chunk(b'IEND', b''))
@pytest.mark.parametrize('write,ext,msg', [(_pages,'tif','several pages'), (_pages,'gif','several pages'),
    (_pages,'png','several pages'), (_pages,'webp','several pages'), (_lab,'tif','mode LAB'), (_deep_colour,'png','16 bits per channel')])
def test_files_of_which_something_would_be_lost(tmp_path, write, ext, msg):
    (tmp_path/'d/b').mkdir(parents=True)
    _draw(tmp_path/'d/a', 2)
    write(tmp_path/f'd/b/x.{ext}')
    with pytest.raises(ValueError, match=msg): open_image(tmp_path/f'd/b/x.{ext}')
    with pytest.raises(ValueError, match=rf'b/x.{ext} \(.*{msg}'): from_folder(tmp_path/'d').check(progress=False)

@pytest.mark.parametrize('ext', ['jpg', 'png', 'tif', 'webp'])
@pytest.mark.parametrize('turn', range(1, 9))
def test_photographs_are_turned_as_exif_says(tmp_path, ext, turn):
    a = np.zeros((24,40), np.uint8)
    a[:8,:8] = 255 # the corner that was up and left on the sensor
    exif = Image.Exif()
    exif[0x0112] = turn
    got = np.asarray(open_image(_save(tmp_path/f'x.{ext}', a, exif=exif)))[...,0]>127
    # EXIF 2.3, table 6
    flip = {1: a, 2: a[:,::-1], 3: a[::-1,::-1], 4: a[::-1], 5: a.T, 6: a[::-1].T, 7: a[::-1,::-1].T, 8: a.T[::-1]}[turn]
    assert got.shape==flip.shape and (got==(flip>127)).mean()>.97

def test_describe_says_sizes_and_modes(tmp_path):
    _save(tmp_path/'d/a/0.png', np.zeros((10,20), np.uint8))
    _save(tmp_path/'d/b/0.png', np.zeros((30,15,4), np.uint8))
    assert 'size 15x10 to 20x30 pixels, mode L 1, RGBA 1; transparency is dropped' in from_folder(tmp_path/'d').describe()
    assert 'image size 8x6 pixels, mode RGB' in _arrays([3,3]).describe()
    assert '2 classes: c0, c1\ntrain 6 images (3/3)' in _arrays([3,3]).describe()

@pytest.mark.parametrize('item', [3, None, Image.new('L', (4,4)), torch.zeros(3,4,4)])
def test_items_that_are_neither_paths_nor_arrays(item):
    with pytest.raises(ValueError, match='pass paths or uint8 arrays'): ImageSet([_pic(0), item], [0,1], 'ab')

# CSV

def test_csv_columns_order_and_labels(tmp_path):
    f = _csv(tmp_path, ['ims/0.png,x,10', 'ims/1.png,y,2', '', 'ims/2.png,x,10'], 'id,kind,grade')
    ims = from_csv(f).check(progress=False)
    assert ims.vocab==['2', '10'] and ims.labels.tolist()==[1,0,1] and list(ims.splits)==['train']
    assert ims.names==['ims/0.png', 'ims/1.png', 'ims/2.png'] and ims.items[1]==tmp_path/'ims/1.png'
    named = from_csv(f, image_col='id', label_col='kind', vocab=['y', 'x', 'z'])
    assert named.vocab==['y', 'x', 'z'] and named.labels.tolist()==[1,0,1] and named.counts().tolist()==[1,2,0]
    f = _csv(tmp_path, ['0.png,1', '"1.png",0'])
    assert from_csv(f, images=tmp_path/'ims', ordinal=True).ordinal

@pytest.mark.parametrize('words', [('1','0'), ('True','False'), ('yes','NO'), ('1.0','0.0')])
def test_csv_valid_column(tmp_path, words):
    t,f = words
    f = _csv(tmp_path, [f'0.png,a,{f}', f'1.png,b,{f}', f'2.png,b,{t}'], 'image,label,is_valid')
    ims = from_csv(f, images=tmp_path/'ims', valid_col='is_valid')
    assert ims.splits['train'].tolist()==[0,1] and ims.splits['valid'].tolist()==[2] and ims.vocab==['a', 'b']

def test_csv_group_column(tmp_path):
    f = _csv(tmp_path, [f'{i}.png,{"ab"[i%2]},p{i//2},{int(i>3)}' for i in range(6)], 'image,label,patient,held')
    ims = from_csv(f, images=tmp_path/'ims', valid_col='held', group_col='patient')
    assert ims.vocab==['a', 'b'] and ims.groups.tolist()==['p0', 'p0', 'p1', 'p1', 'p2', 'p2'] and not ims.shared_groups()
    torn = _csv(tmp_path, ['0.png,a,p,0', '1.png,b,p,1', '2.png,b,q,0'], 'image,label,patient,held')
    with pytest.warns(UserWarning, match='groups are shared'): from_csv(torn, images=tmp_path/'ims', valid_col='held', group_col='patient')
    with pytest.raises(ValueError, match='Images without a group.*1.png'): from_csv(_csv(tmp_path, ['0.png,a,p', '1.png,b,'], 'image,label,patient'), images=tmp_path/'ims', group_col='patient')
    with pytest.raises(ValueError, match='must differ'): from_csv(torn, images=tmp_path/'ims', group_col='label', label_col='label')
    with pytest.raises(ValueError, match="group_col='who' is not a column"): from_csv(torn, images=tmp_path/'ims', group_col='who')

def test_csv_byte_order_mark_and_a_class_called_na(tmp_path):
    f = _csv(tmp_path, ['0.png,NA', '1.png,None'])
    f.write_bytes(b'\xef\xbb\xbf'+f.read_bytes())
    assert from_csv(f, images=tmp_path/'ims', image_col='image').vocab==['NA', 'None']

@pytest.mark.parametrize('rows,kw,msg', [
    (['0.png,a', '1.png,', '2.png,b', '3.png,NaN'], {}, r"Missing labels in column 'label' of t.csv: row 3 \(1.png\), row 5 \(3.png\)\. Fill"),
    (['0.png,a', '', 'none.png,b'], {}, r'missing below .*ims: row 4 \(none.png\)'),
    ([f'x{i}.png,{"ab"[i%2]}' for i in range(9)], {}, r'row 2 \(x0.png\), .*row 6 \(x4.png\) \.\.\. and 4 more'),
    (['0.png,a', '1.png,b', './0.png,b'], {}, r'lists twice: row 4 \(./0.png, as in row 2\)'),
    (['0.png,a', ',b'], {}, 'without an image: row 3'),
    (['0.png,a', '1.png,b,c'], {}, r'2 cells as the header does: row 3 \(3\)'),
    (['0.png,a', '1.png,b'], dict(vocab=['a']), "vocab does not have: row 3 has 'b'"),
    (['0.png,a', '1.png,b'], dict(label_col='grade'), "label_col='grade' is not a column.*image, label"),
    (['0.png,a', '1.png,b'], dict(label_col='image'), 'must differ'),
    (['0.png,a', '1.png,b'], dict(valid_col='label'), 'must differ'),
    (['0.png,a', '1.png,a'], {}, 'at least two classes'), ([], {}, 'no images found'),
    (['0.png,1', '1.png,1.0'], {}, 'two ways')])
def test_csv_errors_name_the_row(tmp_path, rows, kw, msg):
    f = _csv(tmp_path, rows)
    with pytest.raises(ValueError, match=msg): from_csv(f, images=tmp_path/'ims', **kw)

@pytest.mark.parametrize('rows,msg', [
    (['0.png,a,1', '1.png,b,maybe', '2.png,b,0', '3.png,b,'], "'is_valid' of t.csv must hold .*: row 3 has 'maybe', row 5 has ''"),
    (['0.png,a,0', '1.png,b,0'], 'one part'), (['0.png,a,0', '1.png,b,0', '2.png,c,1'], "training never has: 'c' of 2.png")])
def test_csv_valid_column_errors(tmp_path, rows, msg):
    f = _csv(tmp_path, rows, 'image,label,is_valid')
    with pytest.raises(ValueError, match=msg): from_csv(f, images=tmp_path/'ims', valid_col='is_valid')

def test_csv_that_cannot_be_read(tmp_path):
    f = _csv(tmp_path, ['0.png|a'], 'image|label')
    with pytest.raises(ValueError, match="single column 'image|label'"): from_csv(f)
    f.write_bytes(b'image,label\n0.png,caf\xe9\n')
    with pytest.raises(ValueError, match='not a UTF-8'): from_csv(f)
    with pytest.raises(ValueError, match='is not a folder'): from_csv(_csv(tmp_path, ['0.png,a', '1.png,b']), images=tmp_path/'no')
    with pytest.raises(ValueError, match='is not a file'): from_csv(tmp_path/'no.csv')


def _rows(n, *f): return [','.join(str(o(i)) for o in f) for i in range(n)]
_file,_class = (lambda i: f'{i}.png'),(lambda i: 'ab'[i%2])

@pytest.mark.parametrize('head,cells,label', [
    ('image,label,split', [_class, lambda i: 'x'], 'label'), ('image,Diagnosis,patient', [_class, lambda i: f'P{i//2}'], 'Diagnosis'),
    ('image,label,fold5', [_class, lambda i: i%5], 'label'),
    ('image,age,DX,sex', [lambda i: 40+i, _class, lambda i: 'mf'[i%2]], 'DX'), ('image,anything', [_class], 'anything'),
    ('image,x,y', [lambda i: i, lambda i: i%2], None),
    ('image,patient', [_class], None), ('image,fold', [_class], None), ('image,age,kind', [lambda i: i, _class], None),
    ('image,label,class', [_class, _class], None), ('image,score1,score2', [lambda i: i/8, lambda i: 1-i/8], None),
    ('image,PatientID', [_class], None), ('image,grade,y', [_class, lambda i: i], None),
    ('image,y,patient_id', [_class, lambda i: i], 'y')])
def test_the_label_column_is_named_as_one_or_must_be_named(tmp_path, head, cells, label):
    f = _csv(tmp_path, _rows(8, _file, *cells), head)
    read = lambda **kw: from_csv(f, images=tmp_path/'ims', split_col='', **kw)
    if label is None:
        with pytest.raises(ValueError, match='does not say which column is the label') as e: read()
        assert all(repr(o) in str(e.value) for o in head.split(',')) and 'label_col=' in str(e.value)
        assert read(label_col=head.split(',')[-1]).names[3]=='3.png'
    else:
        ims = read()
        assert [ims.vocab[l] for l in ims.labels]==[r.split(',')[head.split(',').index(label)] for r in _rows(8, _file, *cells)]
        assert f"label {label!r}" in repr(ims)

@pytest.mark.parametrize('names', [('train','valid','test'), ('Training','val','Testing'), ('TRAIN','Validation','TEST'),
    ('train_set','dev','test_set')])
@pytest.mark.parametrize('head', ['split', 'Set', 'anything'])
def test_a_column_of_splits_makes_them(tmp_path, names, head):
    f = _csv(tmp_path, _rows(8, _file, _class, lambda i: names[max(i-5, 0)]), f'image,label,{head}')
    for kw in ({}, dict(split_col=head)):
        ims = from_csv(f, images=tmp_path/'ims', **kw)
        assert {k: v.tolist() for k,v in ims.splits.items()}==dict(train=[0,1,2,3,4,5], valid=[6], test=[7])
        assert f"split {head!r}" in repr(ims)
    assert list(from_csv(f, images=tmp_path/'ims', split_col='').splits)==['train']

@pytest.mark.parametrize('head,cells,kw,msg', [('image,label,split', ['train','train','tset'], {}, "not understood: row 4 has 'tset'"),
    ('image,label,split', ['train','','test'], {}, "row 3 has ''"),
    ('image,label,split', [0,0,1], {}, "row 2 has '0'.*split_col=''"),
    ('image,label,subset', ['train','test','holdout'], {}, "row 4 has 'holdout'"),
    ('image,label,fold', [0,1,2], dict(split_col='fold'), "row 2 has '0'"),
    ('image,label,split,official', ['train,test','test,train','train,train'], dict(split_col='no'), "split_col='no' is not a column"),
    ('image,label,a,b', ['train,test','train,train','train,train'], {}, "'a', 'b' of t.csv all name splits"),
    ('image,label,split,held', ['train,0','train,0','test,1'], dict(valid_col='held'), "'held' and 'split' of t.csv both make splits"),
    ('image,label,split', ['test','valid','test'], {}, 'no training image')])
def test_splits_that_are_not_understood(tmp_path, head, cells, kw, msg):
    f = _csv(tmp_path, [f'{i}.png,{"aba"[i]},{c}' for i,c in enumerate(cells)], head)
    with pytest.raises(ValueError, match=msg): from_csv(f, images=tmp_path/'ims', **kw)

def test_a_csv_for_testing_only(tmp_path):
    f = _csv(tmp_path, ['0.png,a,test', '1.png,b,Test'], 'image,label,split')
    assert list(from_csv(f, images=tmp_path/'ims').splits)==['test']

@pytest.mark.parametrize('head,order,kw', [('lesion,image,dx', 'GFC', {}), ('lesion,dx,whatever', 'GCF', {}),
    ('id,file,label', 'GFC', {}), ('x,path,label', 'GFC', {}), ('image,photo2,label', 'GFC', {}), ('dx,scan', 'CF', {}),
    ('a,b,label', 'GFC', dict(image_col='b'))])
def test_the_image_column_is_found(tmp_path, head, order, kw):
    f = _csv(tmp_path, [','.join(dict(G=f'L{i//2}', F=_file(i), C=_class(i))[o] for o in order) for i in range(8)], head)
    ims = from_csv(f, images=tmp_path/'ims', **kw)
    assert ims.names==[_file(i) for i in range(8)] and [ims.vocab[l] for l in ims.labels]==[_class(i) for i in range(8)]

def test_two_columns_of_images(tmp_path):
    f = _csv(tmp_path, ['0.png,1.png,a', '2.png,3.png,b'], 'left,right,label')
    with pytest.raises(ValueError, match="'left', 'right' of t.csv all hold images.*image_col="): from_csv(f, images=tmp_path/'ims')
    assert from_csv(f, images=tmp_path/'ims', image_col='right').names==['1.png', '3.png']
    f = _csv(tmp_path, ['u0,p0,a', 'u1,p1,b'], 'study,thing,label')
    with pytest.raises(ValueError, match=r"missing below .* row 2 \(u0\).*image_col= \(--image\).*suffix="):
        from_csv(f, images=tmp_path/'ims')

@pytest.mark.parametrize('ext', ['png', 'jpg', 'JPG'])
@pytest.mark.parametrize('suffix', [None, '.{}', '{}'])
def test_names_without_ending(tmp_path, ext, suffix):
    _draw(tmp_path/'ims', 4, ext.lower())
    for o in (tmp_path/'ims').iterdir(): o.rename(o.with_name(f'ISIC_{o.stem}.{ext}'))
    (tmp_path/'t.csv').write_text('lesion_id,image_id,dx\n'+'\n'.join(f'H{i},ISIC_{i},{_class(i)}' for i in range(4)))
    ims = from_csv(tmp_path/'t.csv', images=tmp_path/'ims', suffix=suffix and suffix.format(ext)).check(progress=False)
    assert ims.names==[f'ISIC_{i}' for i in range(4)] and [o.name for o in ims.items]==[f'ISIC_{i}.{ext}' for i in range(4)]
    assert f'ending added to names: .{ext}' in repr(ims)
    with pytest.raises(ValueError, match='missing below'): from_csv(tmp_path/'t.csv', images=tmp_path/'ims', suffix='.tif')
    _draw(tmp_path/'ims', 1, 'bmp')
    (tmp_path/'ims/0.bmp').rename(tmp_path/'ims/ISIC_1.bmp')
    with pytest.raises(ValueError, match="'ISIC_0' have no ending.*'.bmp'"): from_csv(tmp_path/'t.csv', images=tmp_path/'ims')

@pytest.mark.parametrize('rows,row', [(['0.png,"a', '1.png,b', '2.png,a'], 2), (['0.png,a', '1.png,"b', '2.png,a', '3.png,"b'], 3),
    (['0.png,a', '1.png,b"', '2.png,a'], 3), (['0.png,a', '1.png,b"c', '2.png,a'], 3),
    (['0.png,a', '1.png, "b"'], 3), (['0.png,a', '"1.png",b', '"2.png,b'], 4), (['0.png,"a" ', '1.png,b'], 2)])
def test_stray_quotes(tmp_path, rows, row):
    f = _csv(tmp_path, rows)
    with pytest.raises(ValueError, match=f'quote.*in row {row}:'): from_csv(f, images=tmp_path/'ims')

def test_quotes_that_pair_up_over_rows(tmp_path):
    f = _csv(tmp_path, ['0.png,"a', '1.png,b', '2.png,"', '3.png,b'])
    with pytest.raises(ValueError, match='hold whole rows: row 2'): from_csv(f, images=tmp_path/'ims')
    f = _csv(tmp_path, ['0.png,a,fine', '1.png,b,"large', 'and round"', '2.png,b,'], 'image,label,report')
    assert from_csv(f, images=tmp_path/'ims').names==['0.png', '1.png', '2.png'] # a report of two lines
    f = _csv(tmp_path, ['0.png,a', '1.png,"b', 'c"', '2.png,b'])
    with pytest.raises(ValueError, match=r"several lines.*row 3 \('b\\nc'\)"): from_csv(f, images=tmp_path/'ims')
    f = _csv(tmp_path, ['0.png,"a ""1"""', '"1.png","b, c"'])
    assert from_csv(f, images=tmp_path/'ims').vocab==['a "1"', 'b, c']

@pytest.mark.parametrize('first', ['0.png,a', 'photo.JPG,a', 'a,0.png', 'ISIC_0,a'])
def test_a_csv_without_header(tmp_path, first):
    _draw(tmp_path/'ims', 1)
    (tmp_path/'ims/0.png').rename(tmp_path/'ims/ISIC_0.png')
    f = _csv(tmp_path, ['1.png,a', '2.png,b'], first)
    with pytest.raises(ValueError, match='t.csv has no header'): from_csv(f, images=tmp_path/'ims')

@pytest.mark.parametrize('one,zero', [('1','0'), ('1.0','0.0')])
def test_one_hot_columns(tmp_path, one, zero):
    hot = lambda *ks: [','.join([f'{i}.png', *(one if j==k else zero for j in range(3)), f'p{i}']) for i,k in enumerate(ks)]
    f = _csv(tmp_path, hot(2,0,0,2), 'image,NV,MEL,BCC,patient')
    ims = from_csv(f, images=tmp_path/'ims')
    assert ims.vocab==['NV', 'BCC'] and ims.labels.tolist()==[1,0,0,1]
    assert from_csv(f, images=tmp_path/'ims', vocab=['BCC', 'MEL', 'NV']).labels.tolist()==[0,2,2,0]
    assert from_csv(f, images=tmp_path/'ims', label_col='BCC').labels.tolist()==[1,0,0,1]
    f.write_text(f.read_text().replace(f'1.png,{one},{zero}', f'1.png,{one},{one}'))
    with pytest.raises(ValueError, match="'NV', 'MEL', 'BCC' of t.csv look like one-hot.*: row 3 has 2"): from_csv(f, images=tmp_path/'ims')
    f.write_text(f.read_text().replace(one, zero))
    with pytest.raises(ValueError, match='row 2 has 0, row 3 has 0'): from_csv(f, images=tmp_path/'ims')

def test_one_hot_columns_that_are_named_like_images(tmp_path):
    f = _csv(tmp_path, ['0.png,1,0', '1.png,0,1', '2.png,1,0'], 'image,0,1')
    ims = from_csv(f, images=tmp_path/'ims')
    assert ims.vocab==['0', '1'] and ims.labels.tolist()==[0,1,0]

@pytest.mark.parametrize('label', ['a|b', 'a;b', 'a,b', 'a b', 'a+b'])
def test_several_labels_in_a_cell(tmp_path, label):
    f = _csv(tmp_path, ['0.png,a', '1.png,b', f'2.png,"{label}"'])
    with pytest.raises(ValueError, match=r'Several labels in one cell.*row 4'): from_csv(f, images=tmp_path/'ims')
    assert from_csv(f, images=tmp_path/'ims', vocab=['a', 'b', label]).labels.tolist()==[0,1,2]

@pytest.mark.parametrize('labels', [['NA','None'], ['01','2'], ['1e3','7'], ['null','true'], ['N/A','-'], ['1_0','10'], ['0x1','1']])
def test_labels_stay_text(tmp_path, labels):
    ims = from_csv(_csv(tmp_path, [f'{i}.png,{o}' for i,o in enumerate(labels)]), images=tmp_path/'ims')
    assert sorted(ims.vocab)==sorted(labels) and [ims.vocab[l] for l in ims.labels]==labels

def test_a_class_called_nan(tmp_path):
    f = _csv(tmp_path, ['0.png,nan', '1.png,b'])
    with pytest.raises(ValueError, match='Missing labels'): from_csv(f, images=tmp_path/'ims')
    assert from_csv(f, images=tmp_path/'ims', vocab=['nan', 'b']).vocab==['nan', 'b']

@pytest.mark.parametrize('sep', [',', ';', '\t'])
@pytest.mark.parametrize('enc', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le-bom', 'utf-32'])
@pytest.mark.parametrize('end', ['\n', '\r\n', '\r'])
def test_dialects_and_encodings(tmp_path, sep, enc, end):
    _draw(tmp_path/'ims', 3)
    text = end.join(sep.join(o) for o in [('image','größe','label'), ('0.png','"1,5; 2"','é'), ('1.png','2','b'), ('2.png','3','é')])+end
    raw = b'\xff\xfe'+text.encode('utf-16-le') if enc=='utf-16-le-bom' else text.encode(enc)
    (tmp_path/'t.csv').write_bytes(raw)
    ims = from_csv(tmp_path/'t.csv', images=tmp_path/'ims')
    assert ims.vocab==['b', 'é'] and ims.labels.tolist()==[1,0,1]

@pytest.mark.parametrize('raw,msg', [('image,label\n0.png,é\n'.encode('latin-1'), 'Latin-1'),
    ('image,label\n0.png,a\n'.encode('utf-16-le'), 'NUL bytes'), (b'image,label\n0.png,a\0\n', 'NUL bytes'),
    (b'image,label,label\n0.png,a,b\n', "twice: 'label'"), (b'image label\n0.png a\n', "single column 'image label'"),
    (b'image,label\n', 'no images found'), (b'', 'no images found')])
def test_files_that_are_refused_by_name(tmp_path, raw, msg):
    (tmp_path/'t.csv').write_bytes(raw)
    with pytest.raises(ValueError, match=msg): from_csv(tmp_path/'t.csv')

def test_columns_without_a_name(tmp_path):
    f = _csv(tmp_path, ['0,0.png,a', '1,1.png,b'], ',image,kind') # as pandas writes its index
    assert from_csv(f, images=tmp_path/'ims').vocab==['a', 'b']
    f = _csv(tmp_path, ['0.png,a,,', '1.png,b', '2.png,b,,,'], 'image,label,,')
    assert from_csv(f, images=tmp_path/'ims').names==['0.png', '1.png', '2.png']
    f = _csv(tmp_path, ['0.png,a,5', '1.png,b,5'], 'image,label,')
    with pytest.raises(ValueError, match='row 2'): from_csv(f, images=tmp_path/'ims')

def test_images_that_the_csv_does_not_list_are_counted(tmp_path):
    f = _csv(tmp_path, ['0.png,a', '1.png,b'])
    assert '6 images that lie beside' in repr(from_csv(f, images=tmp_path/'ims'))

# Archives

def _npz(path, **kw):
    ims = np.stack([_pic(i, (5,5)) for i in range(6)])
    labs = np.array([0,1,2,0,1,0])
    res = dict(train_images=ims, train_labels=labs[:,None], val_images=ims[:3,...,0], val_labels=labs[:3], test_images=ims[:2], test_labels=labs[:2,None])
    res.update(kw)
    np.savez(path, **{k:v for k,v in res.items() if v is not None})
    return path

def test_npz(tmp_path):
    ims = from_npz(_npz(tmp_path/'a.npz')).check(progress=False)
    assert ims.vocab==['0', '1', '2'] and not ims.ordinal
    assert {k: ims.counts(k).tolist() for k in ims.splits}==dict(train=[3,2,1], valid=[1,1,1], test=[1,1,0])
    assert (ims.items[4]==_pic(4, (5,5))).all() and (ims.names[4], ims.names[7])==('train/4', 'valid/1')
    assert from_npz(_npz(tmp_path/'retinamnist_64.npz')).ordinal and not from_npz(tmp_path/'retinamnist_64.npz', ordinal=False).ordinal
    only = from_npz(_npz(tmp_path/'b.npz', val_images=None, val_labels=None, test_images=None, test_labels=None), vocab='xyz', ordinal=True)
    assert list(only.splits)==['train'] and only.vocab==['x', 'y', 'z'] and only.ordinal

@pytest.mark.parametrize('kw,msg', [
    (dict(train_labels=None), "a.npz has no array 'train_labels'"), (dict(val_images=None), "no array 'val_images'"), (dict(train_images=None), "no array 'train_images'"),
    (dict(train_images=np.zeros((6,5,5))), 'train_images of a.npz is float64'), (dict(train_images=np.zeros((6,5,5,2), np.uint8)), r'shape \(6, 5, 5, 2\)'),
    (dict(train_images=np.zeros((6,5), np.uint8)), r'shape \(6, 5\)'), (dict(train_labels=np.zeros((6,14), int)), r'train_labels .* shape \(6, 14\)'),
    (dict(train_labels=np.zeros(5, int)), r'shape \(5,\)'), (dict(test_labels=np.zeros(2)), 'test_labels of a.npz is float64'),
    (dict(test_labels=np.array([0,-1])), 'negative label -1'), (dict(test_labels=np.array([0,3])), "training never has: '3' of test/1"),
    (dict(valid_images=np.zeros((1,5,5), np.uint8)), "a part 'valid'"), (dict(train_labels=np.zeros(6, int), val_labels=np.zeros(3, int), test_labels=np.zeros(2, int)), 'two classes')])
def test_npz_errors(tmp_path, kw, msg):
    with pytest.raises(ValueError, match=msg): from_npz(_npz(tmp_path/'a.npz', **kw))

def test_npz_that_is_none(tmp_path):
    f = _npz(tmp_path/'a.npz')
    f.write_bytes(f.read_bytes()[:300])
    with pytest.raises(ValueError, match='not a whole .npz'): from_npz(f)
    (tmp_path/'c.npz').write_bytes(b'hello')
    with pytest.raises(ValueError, match='not a whole .npz'): from_npz(tmp_path/'c.npz')
    with open(f, 'wb') as o: np.save(o, np.zeros(3))
    with pytest.raises(ValueError, match='single array'): from_npz(f)

# Digits and the dispatcher

@pytest.mark.parametrize('ratio,n_max,seed', [(20,100,0), (1,114,1), (50,100,2)])
def test_digits_lt(ratio, n_max, seed):
    ims = digits_lt(ratio, n_max, seed).check(progress=False)
    assert ims.counts().tolist()==[round(n_max*(1/ratio)**(k/9)) for k in range(10)]
    assert ims.counts('valid').tolist()==[20]*10 and ims.counts('test').tolist()==[40]*10
    x,y = load_digits(return_X_y=True)
    have = {(o/255*16).round().astype(int).tobytes()+bytes([l]) for o,l in zip(ims.items, ims.labels)}
    assert len(have)==len(ims), 'no image twice' # the 1,797 digits are all different
    assert have<={o.astype(int).reshape(8,8).tobytes()+bytes([l]) for o,l in zip(x, y)}
    again,other = digits_lt(ratio, n_max, seed),digits_lt(ratio, n_max, seed+1)
    assert all((a==b).all() for a,b in zip(ims.items, again.items)) and not all((a==b).all() for a,b in zip(ims.items, other.items))

def test_read_images_finds_the_reader(tmp_path, tree, monkeypatch):
    assert read_images(str(tree)).names==from_folder(tree).names
    f = _csv(tmp_path, ['0.png,a', '1.png,b'], name='T.CSV')
    assert read_images(f, images=tmp_path/'ims').names==['0.png', '1.png']
    assert read_images(_npz(tmp_path/'a.npz'), ordinal=True).ordinal
    assert read_images('digits', n_max=50).counts()[0]==50
    _npz(tmp_path/'retinamnist.npz')
    monkeypatch.setenv('BALMIX_DATA', str(tmp_path))
    assert read_images('retinamnist').ordinal
    monkeypatch.setenv('BALMIX_DATA', str(tmp_path/'no'))
    with pytest.raises(ValueError, match='retinamnist.npz is missing'): read_images('retinamnist')
    monkeypatch.delenv('BALMIX_DATA')
    with pytest.raises(ValueError, match='BALMIX_DATA names; set it'): read_images('retinamnist')
    (tmp_path/'x.zip').write_bytes(b'')
    with pytest.raises(ValueError, match='another kind'): read_images(tmp_path/'x.zip')
    with pytest.raises(ValueError, match='does not exist.*digits, retinamnist'): read_images('nothing.csv')

# Parts

@pytest.mark.parametrize('pct', [.1, .2, .5, .9])
def test_with_valid_is_stratified(pct):
    counts = [57,20,3,2,1]
    ims = _arrays(counts)
    cut = ims.with_valid(pct, seed=4)
    n = [min(round(c*pct), c-1) for c in counts]
    assert cut.counts('valid').tolist()==n and cut.counts().tolist()==[c-v for c,v in zip(counts, n)]
    assert sorted([*cut.splits['train'], *cut.splits['valid']])==list(range(len(ims)))
    assert (cut.splits['valid']==ims.with_valid(pct, seed=4).splits['valid']).all() and list(ims.splits)==['train']
    assert (cut.splits['valid']!=ims.with_valid(pct, seed=5).splits['valid']).any()

def test_with_valid_keeps_test_and_refuses_to_overwrite(tree):
    ims = from_folder(tree)
    with pytest.raises(ValueError, match='pool=True'): ims.with_valid()
    both = ims.with_valid(.5, pool=True)
    assert (both.counts()+both.counts('valid')).tolist()==(ims.counts()+ims.counts('valid')).tolist()
    assert (both.splits['test']==ims.splits['test']).all()
    for pct in (0, 1, -.1, 20):
        with pytest.raises(ValueError, match=f'pct={pct} must'): ims.with_valid(pct, pool=True)
    with pytest.raises(ValueError, match='no validation image'): _arrays([4,4]).with_valid(.05)

@pytest.mark.parametrize('k', [2, 5])
def test_folds_share_every_image_once(k):
    ims = _arrays([40,11,5,3]).with_valid(.3)
    ims = ims.with_parts(**{**ims.splits, 'train':ims.splits['train'][1:], 'test':ims.splits['train'][:1]})
    folds = ims.folds(k, seed=1)
    seen = Counter(i for f in folds for i in f.splits['valid'])
    pooled = sorted([*ims.splits['train'], *ims.splits['valid']])
    assert sorted(seen)==pooled and set(seen.values())=={1} and len(folds)==k
    for f in folds:
        assert sorted([*f.splits['train'], *f.splits['valid']])==pooled and (f.splits['test']==ims.splits['test']).all()
        share = np.bincount(ims.labels[pooled])/k
        assert (abs(f.counts('valid')-share)<=1).all() and (f.counts()>0).all()
    assert [f.splits['valid'].tolist() for f in folds]==[f.splits['valid'].tolist() for f in ims.folds(k, seed=1)]
    assert [f.splits['valid'].tolist() for f in folds]!=[f.splits['valid'].tolist() for f in ims.folds(k, seed=2)]

def test_folds_errors():
    with pytest.raises(ValueError, match='single image: c1, c2'): _arrays([5,1,1]).folds(2)
    with pytest.raises(ValueError, match='k=1'): _arrays([5,5]).folds(1)
    with pytest.raises(ValueError, match='k=6 is more than the 5'): _arrays([5,5]).folds(6)

@pytest.mark.parametrize('kw,msg', [(dict(labels=[0]*3), 'labels of shape'), (dict(names=['a']), '1 names'), (dict(labels=[0,1,0,2]), 'train/3 has 2'),
    (dict(labels=[0,1,0,-1]), 'train/3 has -1'), (dict(labels=[0.,1.,0.,1.]), 'float64'), (dict(vocab=['a','a']), 'twice'), (dict(splits=dict(train=[0,1,4])), 'index 4'),
    (dict(splits=dict(train=[0,1], valid=[1])), 'more than one part, or twice in one: valid/0'), (dict(splits=dict(train=[0,1,1])), 'twice in one'),
    (dict(splits=dict(train=[0,1], dev=[2])), 'unknown parts: dev'), (dict(splits=dict(valid=[0,1])), 'no training image'), (dict(splits=dict(train=[0,2])), "only 'a'"),
    (dict(splits=dict(valid=[0], test=[1])), 'no training image'), (dict(splits={}), 'no training image|need at least one'), (dict(groups=['g']*3), r'groups has the shape \(3,\), but there are 4'),
    (dict(groups=['g', None, float('nan'), ' ']), 'without a group: train/1, train/2, train/3'), (dict(groups=np.zeros((4,2))), 'groups has the shape')])
def test_image_set_refuses(kw, msg):
    args = dict(items=[_pic(i) for i in range(4)], labels=[0,1,0,1], vocab=['a','b'])
    with pytest.raises(ValueError, match=msg): ImageSet(**{**args, **kw})

# Groups

def _grouped(seed, n=240, k=4, tail=(.6,.25,.1,.05), most=6):
    "A set of about `n` images in groups of 1 to `most`, each group of mostly one class"
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, most+1, n//((most+1)//2))
    labels = np.concatenate([np.where(rng.random(s)<.8, rng.choice(k, p=tail), rng.integers(k)) if s>1 else rng.choice(k, 1, p=tail) for s in sizes])
    groups = np.repeat(np.arange(len(sizes)), sizes)
    order = rng.permutation(len(labels))
    return ImageSet(np.zeros((len(labels),2,2), np.uint8), labels[order], [f'c{i}' for i in range(k)], groups=groups[order])

def _parts_of(ims, *parts): return [set(ims.groups[ims.splits[p]]) for p in parts]

@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('pct', [.1, .2, .5])
def test_with_valid_keeps_groups_together(seed, pct):
    ims = _grouped(seed)
    cut = ims.with_valid(pct, seed=seed)
    train,valid = _parts_of(cut, 'train', 'valid')
    assert not train&valid and not cut.shared_groups() and (cut.counts()>0).all()
    assert sorted([*cut.splits['train'], *cut.splits['valid']])==list(range(len(ims)))
    assert (abs(cut.counts('valid')-pct*ims.counts())<=6).all() # no more off than the largest group
    assert (cut.splits['valid']==ims.with_valid(pct, seed=seed).splits['valid']).all() and (cut.groups==ims.groups).all()
    assert cut.splits['valid'].tolist()!=ims.with_valid(pct, seed=seed+99).splits['valid'].tolist()

def test_groups_of_one_are_divided_as_if_there_were_none():
    plain = _arrays([57,20,8,3,1])
    single = ImageSet(plain.items, plain.labels, plain.vocab, groups=range(len(plain)))
    for pct in (.1, .23, .4): assert single.with_valid(pct).counts('valid').tolist()==plain.with_valid(pct).counts('valid').tolist()
    single,plain = [o.with_parts(train=range(88)) for o in (single, plain)]
    assert all((abs(a.counts('valid')-np.array([57,20,8,3,0])/4)<=1).all() for a in single.folds(4))

def test_with_valid_never_takes_the_last_group_of_a_class():
    ims = ImageSet(np.zeros((14,2,2), np.uint8), [0]*8+[1]*6, 'ab', groups=[0,0,1,1,2,2,3,3]+[9]*6)
    for seed in range(20):
        for pct,n in [(.5,4), (.8,6)]: assert ims.with_valid(pct, seed=seed).counts('valid').tolist()==[n,0]
    big = ImageSet(np.zeros((12,2,2), np.uint8), [0,1]*6, 'ab', groups=[0]*6+[1]*6)
    with pytest.raises(ValueError, match='pct=0.1 is less than any group'): big.with_valid(.1)

@pytest.mark.parametrize('seed', range(4))
def test_folds_keep_groups_together(seed):
    ims = _grouped(seed)
    folds = ims.folds(4, seed=seed)
    seen = Counter(i for f in folds for i in f.splits['valid'])
    assert sorted(seen)==list(range(len(ims))) and set(seen.values())=={1}
    for f in folds:
        train,valid = _parts_of(f, 'train', 'valid')
        assert not train&valid and (f.counts()>0).all() and len(valid)
        assert (abs(f.counts('valid')-ims.counts()/4)<=12).all()
    assert [f.splits['valid'].tolist() for f in folds]==[f.splits['valid'].tolist() for f in ims.folds(4, seed=seed)]

def test_folds_of_groups_errors():
    ims = ImageSet(np.zeros((12,2,2), np.uint8), [0]*8+[1]*4, 'ab', groups=[0,0,0,0,1,1,2,2]+[3]*4)
    with pytest.raises(ValueError, match='of a single group: b'): ims.folds(2)
    ims = ImageSet(np.zeros((12,2,2), np.uint8), [0]*8+[1]*4, 'ab', groups=[0]*4+[1]*4+[2]*2+[3]*2)
    with pytest.raises(ValueError, match='k=5 is more than the 4 groups'): ims.folds(5)
    ims = ImageSet(np.zeros((12,2,2), np.uint8), [0]*8+[1]*4, 'ab', groups=[0]*4+[1]*4+[2]*2+[3]*2)
    assert all((f.counts()>0).all() for f in ims.folds(2))

def test_groups_that_do_not_go_into_folds(monkeypatch):
    "What the folds leave without a class is named"
    import balmix_fastai.datasets as m
    ims = ImageSet(np.zeros((8,2,2), np.uint8), [0]*6+[1]*2, 'ab', groups=[0,1,2,3,4,5,6,7])
    class Bad(m.StratifiedGroupKFold):
        def split(self, *args): return [(np.arange(6), np.arange(6,8)), (np.arange(8), np.arange(0))]
    monkeypatch.setattr(m, 'StratifiedGroupKFold', Bad)
    with pytest.raises(ValueError, match='k=2 folds: no b to train on in fold 0, fold 1 is empty'): ims.folds(2)

def test_shared_groups_are_reported_once_and_dropped():
    ims = ImageSet(np.zeros((12,2,2), np.uint8), [0,1]*6, 'ab', groups=list('aabbccddeeff'))
    with pytest.warns(UserWarning, match=r'\(1 in train and valid, with 1 of the 3 images of valid: c\)') as said: ims.with_parts(train=[0,1,2,3,4], valid=[5,6,7], test=[8,9])
    assert [o.filename for o in said.list]==[__file__]
    with pytest.warns(UserWarning, match=r'1 in train and valid, with 1 of the 3 images of valid: c; 1 in train and test, with 2 of the 4 images of test: a') as said:
        torn = ImageSet(ims.items, ims.labels, ims.vocab, groups=list('aabbccddaaff'), splits=dict(train=[0,1,2,3,4], valid=[5,6,7], test=[8,9,10,11]))
    assert torn.shared_groups()=={('train','valid'): ['c'], ('train','test'): ['a']} and [o.filename for o in said.list]==[__file__]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert len(torn.folds(2))==2 and torn.with_valid(.4, pool=True).groups is torn.groups # known since the set was made
        less = torn.drop_shared()
    assert {k: v.tolist() for k,v in less.splits.items()}==dict(train=[2,3], valid=[5,6,7], test=[8,9,10,11]) and not less.shared_groups()
    with pytest.raises(ValueError, match='has no groups'): _arrays([3,3]).drop_shared()
    assert _arrays([3,3]).shared_groups()=={}

def test_a_set_for_testing_only():
    ims = ImageSet([_pic(i) for i in range(5)], [2,2,0,2,2], 'abc', splits=dict(test=range(5))) # neither all classes nor two of them needed
    assert ims.counts('test').tolist()==[1,0,4] and list(ims.splits)==['test'] and 'test 5 (1/0/4)' in repr(ims)
    for f in (ims.dataloaders, ims.with_valid, ims.folds):
        with pytest.raises(ValueError, match='only a test part; there is nothing to train on'): f()
    with pytest.raises(ValueError, match='it has test'): ims.counts()
    dls = ImageSet([_pic(i) for i in range(6)], [0,1,2]*2, 'abc').with_valid(.5).dataloaders(bs=2, device='cpu')
    assert ims.test_dl(dls, bs=5).one_batch()[1].tolist()==[2,2,0,2,2]
    assert list(_arrays([3,3]).with_parts(test=range(6)).splits)==['test']

# Loaders

@pytest.mark.parametrize('workers', [0, 2])
def test_loaders_give_the_pixels_and_labels(tree, workers):
    ims = from_folder(tree)
    dls = ims.dataloaders(bs=3, normalize=False, workers=workers, device='cpu')
    assert list(dls.vocab)==ims.vocab and dls.c==3
    for dl,split in ((dls.train.new(shuffle=False, drop_last=False), 'train'), (dls.valid, 'valid'), (ims.test_dl(dls, num_workers=workers), 'test')):
        x,y = [torch.cat(o).as_subclass(torch.Tensor) for o in zip(*dl)]
        want = np.stack([np.asarray(Image.open(ims.items[i])) for i in ims.splits[split]])
        np.testing.assert_allclose(x.permute(0,2,3,1).numpy(), want/255, atol=1e-6)
        assert y.tolist()==ims.labels[ims.splits[split]].tolist()

@pytest.mark.parametrize('shape', [(6,8), (6,8,1), (6,8,3), (6,8,4)])
def test_arrays_become_rgb(shape):
    arrs = [np.random.default_rng(i).integers(0, 256, shape, dtype=np.uint8) for i in range(6)]
    dls = ImageSet(arrs, [0,1]*3, 'ab', splits=dict(train=range(4), valid=[4,5])).dataloaders(bs=2, normalize=False, device='cpu')
    x,_ = dls.valid.one_batch()
    want = np.stack([np.asarray(Image.fromarray(a.squeeze(-1) if a.shape[-1]==1 else a).convert('RGB')) for a in arrs[4:]])
    np.testing.assert_allclose(x.as_subclass(torch.Tensor).permute(0,2,3,1).numpy(), want/255, atol=1e-6)

def test_normalize_size_and_training_transforms():
    flip = Flip(p=1.)
    dls = _arrays([6,6]).with_valid(.5).dataloaders(size=(10,12), bs=6, tfms=flip, device='cpu')
    plain = dls.valid.one_batch()[0].as_subclass(torch.Tensor)
    assert plain.shape==(6,3,10,12)
    assert dls.train.after_batch.fs.map(type).count(Flip)==1
    raw = _arrays([6,6]).with_valid(.5).dataloaders(size=(10,12), bs=6, normalize=False, device='cpu').valid.one_batch()[0].as_subclass(torch.Tensor)
    mean,std = [torch.tensor(o)[None,:,None,None] for o in ((.485,.456,.406), (.229,.224,.225))]
    torch.testing.assert_close(plain, (raw-mean)/std, atol=1e-5, rtol=0)

def test_item_transforms_instead_of_squeezing():
    ims = ImageSet([_pic(i, (10+i,14)) for i in range(8)], [0,1]*4, 'ab').with_valid(.5)
    crop = lambda **kw: ims.dataloaders(bs=4, normalize=False, device='cpu', **kw)
    dls = crop(item_tfms=[Resize(9, method='squish'), RandomCrop(6)])
    assert dls.train.one_batch()[0].shape==dls.valid.one_batch()[0].shape==(4,3,6,6)
    small = lambda i: np.asarray(Image.fromarray(ims.items[i]).resize((9,9), Image.BILINEAR))[1:7,1:7]/255
    np.testing.assert_allclose(dls.valid.one_batch()[0].permute(0,2,3,1).numpy(), np.stack([small(i) for i in ims.splits['valid']]), atol=2/255)
    squished = [crop(**kw).valid.one_batch()[0].as_subclass(torch.Tensor) for kw in (dict(size=9), dict(item_tfms=Resize(9, method='squish')))]
    torch.testing.assert_close(*squished)
    with pytest.raises(ValueError, match='size=9 and item_tfms both say'): crop(size=9, item_tfms=RandomCrop(6))
    with pytest.raises(ValueError, match='pass size='): crop()

def test_class_order_is_that_of_the_set_also_when_not_sorted():
    ims = ImageSet([_pic(i) for i in range(8)], [0,1]*4, ['zebra','ant']).with_valid(.5)
    dls = ims.dataloaders(bs=4, device='cpu')
    assert list(dls.vocab)==['zebra', 'ant'] and dls.valid.one_batch()[1].tolist()==ims.labels[ims.splits['valid']].tolist()

def test_seed_fixes_the_order_of_training():
    ims = _arrays([20,20]).with_valid()
    order = lambda seed: [dl.get_idxs() for dl in [ims.dataloaders(bs=4, seed=seed, device='cpu').train] for _ in [dl.randomize()]][0]
    assert order(3)==order(3)!=order(4)

def test_loader_errors():
    ims = _arrays([6,6])
    with pytest.raises(ValueError, match=r'with_valid\(\) or folds\(\)'): ims.dataloaders()
    with pytest.raises(ValueError, match='bs=64 is more than the 10'): ims.with_valid().dataloaders()
    mixed = ImageSet([_pic(0), _pic(1, (9,9)), _pic(2), _pic(3)], [0,1,0,1], 'ab').with_valid(.5)
    with pytest.raises(ValueError, match=r'\(6, 8, 3\) and \(9, 9, 3\); pass size='): mixed.dataloaders(bs=2)
    dls = mixed.dataloaders(bs=2, size=8, device='cpu')
    with pytest.raises(ValueError, match="has train, valid"): mixed.test_dl(dls)
    with pytest.raises(ValueError, match='would not agree'): ims.test_dl(dls, 'train')

def _learner(dls, tmp_path): return Learner(dls, nn.Sequential(Flatten(), nn.Linear(144, dls.c)), loss_func=CrossEntropyLossFlat(), path=tmp_path)

@pytest.mark.parametrize('arrays', [True, False])
def test_an_exported_learner_holds_nothing_of_the_data(tmp_path, arrays):
    sizes = []
    for n in (8, 80):
        if arrays: ims = _arrays([n, n])
        else:
            for c in ('benign', 'malignant'): _draw(tmp_path/f'data{n}'/c, n, start=1000)
            ims = from_folder(tmp_path/f'data{n}')
        learn = _learner(ims.with_valid().dataloaders(bs={8:6, 80:64}[n], seed=0, device='cpu'), tmp_path)
        with learn.no_bar(), learn.no_logging(): learn.fit(1) # two steps for either size: the recorder keeps a loss per step
        learn.export(f'{n}.pkl')
        data = b''.join(z.read(o) for z in [zipfile.ZipFile(tmp_path/f'{n}.pkl')] for o in z.namelist())
        assert ims.vocab[1].encode() in data, 'the classes travel, so the search can find things'
        assert not any(s in data for s in (b'1003.png', f'data{n}'.encode(), _pic(3).tobytes()))
        sizes.append(len(data))
    # 72 more paths or images are 2,000 bytes and more; the states of two random generators, of 625 integers of 5 or 7 bytes each, differ by 35 (standard deviation)
    assert abs(sizes[0]-sizes[1])<250

def test_loaded_learner_predicts_a_part(tmp_path):
    ims = _arrays([12,8]).with_valid()
    ims = ims.with_parts(train=ims.splits['train'], valid=ims.splits['valid'][1:], test=ims.splits['valid'][:1])
    learn = _learner(ims.dataloaders(bs=4, device='cpu'), tmp_path)
    learn.export('l.pkl')
    back = load_learner(tmp_path/'l.pkl')
    with back.no_bar(), learn.no_bar():
        got,targs = back.get_preds(dl=ims.test_dl(back.dls, 'valid'))
        want,_ = learn.get_preds()
    torch.testing.assert_close(got, want)
    assert targs.tolist()==ims.labels[ims.splits['valid']].tolist()

# Real data

def test_retinamnist(data_dir, monkeypatch):
    monkeypatch.setenv('BALMIX_DATA', str(data_dir))
    if not (data_dir/'retinamnist.npz').exists(): pytest.skip('BALMIX_DATA has no retinamnist.npz')
    ims = read_images('retinamnist').check(progress=False)
    want = dict(train=[486,128,206,194,66], valid=[54,12,28,20,6], test=[174,46,92,68,20])
    assert {k: ims.counts(k).tolist() for k in ims.splits}==want and ims.ordinal and ims.items[0].shape==(28,28,3)
    assert [sum(f.counts('valid')) for f in ims.folds(5)]==[240]*5

def test_cifar_folders(data_dir, tmp_path):
    if not (data_dir/'cifar10_lt100.zip').exists(): pytest.skip('BALMIX_DATA has no cifar10_lt100.zip')
    with zipfile.ZipFile(data_dir/'cifar10_lt100.zip') as z:
        files = sorted(n for n in z.namelist() if n.endswith('.jpg'))
        some = [n for n in files if n.startswith('train/')][::100] + [n for n in files if n.startswith('test/')][::500]
        z.extractall(tmp_path, some)
        per_class = Counter(n.split('/')[1] for n in files if n.startswith('train/'))
    assert sorted(per_class.values(), reverse=True)==[5000,2997,1796,1077,645,387,232,139,83,50]
    ims = from_folder(tmp_path).check(progress=False)
    for part in ('train', 'test'):
        want = Counter(n.split('/')[1] for n in some if n.startswith(part))
        assert {v:c for v,c in zip(ims.vocab, ims.counts(part)) if c}==want
    assert sorted(ims.names)==sorted(some) and ims.vocab==sorted(per_class)
    assert ims.with_valid().dataloaders(bs=16, device='cpu').one_batch()[0].shape==(16,3,32,32)

@pytest.mark.parametrize('make', [
    lambda d: from_csv(d/'x.csv', d, label_col='nowhere'), # names the columns
    lambda d: from_csv(d/'x.csv', d, label_col='b'), # names images that are not there
    lambda d: from_npz(d/'x.npz'), # names the arrays
    lambda d: ImageSet(['a','b'], [0,1], ['x','y'], splits=dict(train=[0], **{'od\x1b[31md': [1]})), # names the splits
    lambda d: ImageSet(['a\x1b[31m','b'], [0,1], ['x','y']).check(), # names the files
])
def test_errors_show_names_on_one_line_without_control_characters(make, tmp_path):
    (tmp_path/'x.csv').write_text('image,"gr\x1b[31made",b\na\x1b[31m.png,1,2\n', encoding='utf-8')
    np.savez(tmp_path/'x.npz', **{'ima\x1b[31mges': np.zeros((2,4,4), np.uint8), 'train_labels': np.zeros(2, int)})
    with pytest.raises(ValueError) as e: make(tmp_path)
    assert '\x1b' not in str(e.value) and '\\x1b' in str(e.value), str(e.value)
