"datasets: readers of folders, CSVs and archives, what they refuse and name, parts, loaders, export; real data where there is some."
import shutil, threading, warnings, zipfile
from collections import Counter
import numpy as np, pytest, torch
from PIL import Image
from sklearn.datasets import load_digits
from fastai.basics import CrossEntropyLossFlat, Learner, load_learner, nn
from fastai.layers import Flatten
from fastai.vision.augment import Flip, RandomCrop, Resize
from balmix_fastai.datasets import ImageSet, digits_lt, from_csv, from_folder, from_npz, read_images

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
def _no_train(d): (d/'train').rename(d/'training')
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
    f = _csv(tmp_path, ['0.png;a'], 'image;label')
    with pytest.raises(ValueError, match="single column 'image;label'"): from_csv(f)
    f.write_bytes(b'image,label\n0.png,caf\xe9\n')
    with pytest.raises(ValueError, match='not a UTF-8'): from_csv(f)
    with pytest.raises(ValueError, match='is not a folder'): from_csv(_csv(tmp_path, ['0.png,a', '1.png,b']), images=tmp_path/'no')
    with pytest.raises(ValueError, match='is not a file'): from_csv(tmp_path/'no.csv')

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
