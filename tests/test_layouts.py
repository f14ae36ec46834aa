"layouts: each published layout in miniature, what is refused and named, the published counts, and the real lists and images where there are some."
import hashlib, io, json, os, pickle, re, sys, types, warnings, zipfile
from collections import Counter
from importlib.machinery import ModuleSpec
import numpy as np, pytest, torchvision
from PIL import Image
from balmix_fastai import layouts as lay
from balmix_fastai.datasets import from_npz
from balmix_fastai.layouts import cifar_lt, eyepacs, hyper_kvasir, isic2019_lt, layouts, longtail_counts, medmnist, messidor2, read_layout
from balmix_fastai.study import read_study

names10 = 'airplane automobile bird cat deer dog frog horse ship truck'.split()

def _pic(i, side=8): return np.random.default_rng(i).integers(0, 256, (side,side,3), dtype=np.uint8)

def _save(path, i, side=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(_pic(i, side)).save(path)

def _quiet(f, *args, **kw):
    "Call `f`, and fail if it warns"
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        return f(*args, **kw)

# Long-tailed counts

@pytest.mark.parametrize('k,n_max', [(10,5000), (100,500)])
@pytest.mark.parametrize('ratio', [10, 20, 50, 100, 200])
def test_longtail_counts_are_cao_s(k, n_max, ratio):
    # Cao et al. 2019: mu = 1/ratio to the power k/(K-1), cut off
    assert longtail_counts(n_max, k, ratio)==[int(n_max*(1/ratio)**(i/(k-1))) for i in range(k)]
    assert longtail_counts(n_max, k, ratio, 'step')==[n_max]*(k//2)+[int(n_max/ratio)]*(k-k//2)

def test_longtail_counts_of_papers_and_at_whole_numbers():
    assert longtail_counts(5000, 10)==[5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert sum(longtail_counts(500, 100))==10847 # the size of CIFAR-100-LT at 100 in the literature
    assert longtail_counts(512, 10, 512)==[2**(9-i) for i in range(10)]
    assert longtail_counts(7, 3, 1)==[7]*3 and longtail_counts(9, 3, 3, 'step')==[9,3,3]

@pytest.mark.parametrize('kw,msg', [(dict(ratio=.5), 'ratio=0.5'), (dict(ratio=float('nan')), 'ratio=nan'), (dict(ratio=5001), 'ratio=5001 with n_max=5000'),
    (dict(profile='linear'), "profile='linear' is unknown; pass one of 'exp', 'step'"), (dict(n_classes=1), 'n_classes=1')])
def test_longtail_counts_errors(kw, msg):
    with pytest.raises(ValueError, match=msg): longtail_counts(**{**dict(n_max=5000, n_classes=10), **kw})

# CIFAR

@pytest.fixture
def tree(tmp_path):
    "CIFAR-10 with 12 training and 2 test images per class"
    for c,name in enumerate(names10):
        for part,n in dict(train=12, test=2).items():
            for i in range(n): _save(tmp_path/'cifar'/part/name/f'{i:04}.png', i+100*c+10000*(part=='test'), 32)
    return tmp_path/'cifar'

def _zip(tree, path):
    with zipfile.ZipFile(path, 'w') as z:
        for f in sorted(tree.rglob('*.png')): z.write(f, f.relative_to(tree).as_posix())
    return path

def test_cifar_folder_and_zip_agree(tree, tmp_path):
    a,b = [cifar_lt(p, ratio=4, seed=3, differ='ignore') for p in (tree, _zip(tree, tmp_path/'c.zip'))]
    for ims in (a, b):
        assert ims.vocab==names10 and list(ims.splits)==['train', 'test'] and ims.counts('test').tolist()==[2]*10
        assert ims.counts().tolist()==[int(12*.25**(k/9)) for k in range(10)] and ims.counts().tolist()==longtail_counts(12, 10, 4)
        for i in (0, 17, len(ims)-1):
            assert (ims.items[i]==np.asarray(Image.open(tree/ims.names[i]))).all() and ims.names[i].split('/')[1]==ims.vocab[ims.labels[i]]
    assert a.names==b.names and all((x==y).all() for x,y in zip(a.items, b.items)) and a.items[0].dtype==np.uint8
    assert a.with_valid(.3).dataloaders(bs=4, device='cpu').one_batch()[0].shape==(4,3,32,32)

def test_cifar_seed_and_nesting(tree):
    train = lambda **kw: {n for n in cifar_lt(tree, differ='ignore', **kw).names if n.startswith('train')}
    assert train(ratio=4, seed=1)==train(ratio=4, seed=1)!=train(ratio=4, seed=2)
    assert train(ratio=12, seed=1)<train(ratio=4, seed=1)<train(ratio=None)==train(ratio=1)
    assert len(train(ratio=2, profile='step', n_max=10))==75

def test_cifar_keeps_whatever_is_there(tree):
    for i in range(5, 12): (tree/f'train/truck/{i:04}.png').unlink()
    assert cifar_lt(tree, ratio=None, differ='ignore').counts().tolist()==[12]*9+[5]
    with pytest.raises(ValueError, match=r"Classes with fewer images than 'exp' with ratio=2 asks for: truck has 5 of 6\. Pass a smaller n_max"): cifar_lt(tree, ratio=2)
    assert cifar_lt(tree, ratio=2, n_max=10, differ='ignore').counts()[-1]==5
    with pytest.raises(ValueError, match='n_max=10 needs a ratio'): cifar_lt(tree, ratio=None, n_max=10)

def test_cifar_counts_are_compared(tree):
    with pytest.warns(UserWarning, match=r"CIFAR-10-LT: train 'airplane' has 12 \(published 5000\), train 'automobile' has 9 \(published 3871\)"): cifar_lt(tree, ratio=10)
    with pytest.warns(UserWarning, match=r"CIFAR-10-LT: test 'airplane' has 2 \(published 1000\)"): cifar_lt(tree, ratio=None)
    with pytest.raises(ValueError, match=r"test 'airplane' has 2 \(published 1000\).* and 5 more"): cifar_lt(tree, ratio=10, n_max=12, differ='raise')
    with pytest.raises(ValueError, match="differ='no' is unknown"): cifar_lt(tree, differ='no')
    _quiet(cifar_lt, tree, ratio=10, differ='ignore')

def test_cifar_of_other_shapes(tree, tmp_path):
    (tree/'train/truck').rename(tmp_path/'truck')
    (tree/'test/truck').rename(tmp_path/'truck2')
    with pytest.raises(ValueError, match='has 9 classes; CIFAR has 10 or 100'): cifar_lt(tree)
    (tmp_path/'truck').rename(tree/'train/truck')
    with pytest.raises(ValueError, match='has 10 classes; CIFAR has 100'): cifar_lt(tree, classes=100)
    with pytest.raises(ValueError, match='neither a folder nor a .zip'): cifar_lt(tmp_path/'no')
    _save(tree/'train/cat/0003.png', 0, 28)
    (tree/'train/dog/0004.png').write_bytes((tree/'train/dog/0004.png').read_bytes()[:500])
    with pytest.raises(ValueError, match=r'train/cat/0003.png \(has 28x28 pixels\), train/dog/0004.png \(OSError'): cifar_lt(tree, ratio=None)

def _member(name, data=b'x'):
    def f(z): z.writestr(name, data)
    return f
@pytest.mark.parametrize('add,msg', [(_member('../../evil.png'), r'point out of it: \.\./\.\./evil.png'), (_member('/train/cat/x.png'), 'point out of it: /train/cat/x.png'),
    (_member('train/..\\x/a.png'), 'point out of it'), (_member('train/cat/deeper/x.png'), r'not train/<class>/<file>.*: train/cat/deeper/x.png'),
    (_member('valid/cat/x.png'), 'valid/cat/x.png'), (_member('train/cat/0000.png'), 'holds twice: train/cat/0000.png'),
    (_member('train/cat/big.png', bytes(1_000_001)), r'too large for .*: train/cat/big.png \(1000001 bytes\)'), (_member('train/cat/x.png'), r'train/cat/x.png \(UnidentifiedImageError')])
def test_zip_members_are_checked(tree, tmp_path, add, msg):
    f = _zip(tree, tmp_path/'c.zip')
    with zipfile.ZipFile(f, 'a') as z, warnings.catch_warnings():
        warnings.simplefilter('ignore') # of the duplicate
        add(z)
    with pytest.raises(ValueError, match=msg): cifar_lt(f, ratio=None, differ='ignore')
    assert not list(tmp_path.rglob('evil.png'))

def test_zip_that_is_broken_and_harmless_members(tree, tmp_path):
    f = _zip(tree, tmp_path/'c.zip')
    with zipfile.ZipFile(f, 'a') as z:
        for n in ('__MACOSX/train/cat/._0.png', 'README.md', 'train/.hidden/a.png'): z.writestr(n, b'x')
    assert len(cifar_lt(f, ratio=None, differ='ignore'))==140
    with zipfile.ZipFile(f) as z: o = z.getinfo('train/bird/0002.png')
    data = bytearray(f.read_bytes())
    data[o.header_offset+30+len(o.filename)+o.file_size//2] ^= 255
    f.write_bytes(data)
    with pytest.raises(ValueError, match=r'train/bird/0002.png \(BadZipFile: Bad CRC'): cifar_lt(f, ratio=None)
    f.write_bytes(data[:1000])
    with pytest.raises(ValueError, match='c.zip is not a whole zip archive'): cifar_lt(f)

@pytest.fixture
def torch_cifar(tmp_path, monkeypatch):
    "torchvision's folder of CIFAR-10 with 6 training and 1 test image per class, and their MD5s where torchvision looks them up"
    d,lists = tmp_path/'tv'/'cifar-10-batches-py',{}
    d.mkdir(parents=True)
    def dump(name, obj):
        (d/name).write_bytes(pickle.dumps(obj))
        lists[name] = hashlib.md5((d/name).read_bytes()).hexdigest()
    dump('data_batch_1', dict(data=np.stack([_pic(i, 32).transpose(2,0,1).reshape(-1) for i in range(60)]), labels=[i%10 for i in range(60)]))
    dump('test_batch', dict(data=np.stack([_pic(i, 32).transpose(2,0,1).reshape(-1) for i in range(60, 70)]), labels=[i%10 for i in range(10)]))
    dump('batches.meta', dict(label_names=names10))
    C = torchvision.datasets.CIFAR10
    monkeypatch.setattr(C, 'train_list', [['data_batch_1', lists['data_batch_1']]])
    monkeypatch.setattr(C, 'test_list', [['test_batch', lists['test_batch']]])
    monkeypatch.setattr(C, 'meta', {**C.meta, 'md5':lists['batches.meta']})
    return tmp_path/'tv'

def test_torchvision_s_folder(torch_cifar):
    for path in (torch_cifar, torch_cifar/'cifar-10-batches-py'):
        ims = cifar_lt(path, ratio=3, differ='ignore')
        assert ims.vocab==names10 and ims.counts().tolist()==longtail_counts(6, 10, 3) and ims.counts('test').tolist()==[1]*10
        for i,n in enumerate(ims.names):
            part,j = n.split('/')
            j = int(j)+60*(part=='test')
            assert (ims.items[i]==_pic(j, 32)).all() and ims.labels[i]==j%10 and ims.items[i].base is None
    (torch_cifar/'cifar-100-python').mkdir()
    with pytest.raises(ValueError, match='pass classes=10 or classes=100'): cifar_lt(torch_cifar)
    assert len(cifar_lt(torch_cifar, ratio=None, classes=10, differ='ignore'))==70
    with pytest.raises(ValueError, match="torchvision cannot read .*cifar-100-python.*not found or corrupted"): cifar_lt(torch_cifar, classes=100)
    f = torch_cifar/'cifar-10-batches-py'/'data_batch_1'
    f.write_bytes(pickle.dumps(_Evil())) # torchvision compares the MD5 before it unpickles
    with pytest.raises(ValueError, match='not found or corrupted'): cifar_lt(torch_cifar, classes=10)
    assert not os.path.exists('evil')

def test_download_is_passed_on(torch_cifar, monkeypatch):
    seen = []
    monkeypatch.setattr(torchvision.datasets.CIFAR10, 'download', lambda self: seen.append(self.root))
    cifar_lt(torch_cifar, ratio=1, download=True, differ='ignore')
    assert seen==[torch_cifar]*2
    with pytest.raises(ValueError, match='classes=None does not say'): cifar_lt(torch_cifar/'other', download=True)

def test_real_cifar_zip(data_dir):
    if not (f := data_dir/'cifar10_lt100.zip').exists(): pytest.skip('BALMIX_DATA has no cifar10_lt100.zip')
    ims = _quiet(cifar_lt, f)
    with zipfile.ZipFile(f) as z:
        files = sorted(n for n in z.namelist() if n.endswith('.jpg'))
        want = {n: np.asarray(Image.open(io.BytesIO(z.read(n)))) for n in files[::500]}
    assert sorted(ims.names)==files and all((ims.items[ims.names.index(n)]==o).all() for n,o in want.items())
    assert ims.counts().tolist()==longtail_counts(5000, 10) and ims.counts('test').tolist()==[1000]*10
    part = lay._zip_tree(f)
    assert part.names==ims.names and (part.labels==ims.labels).all() and all((part.splits[k]==ims.splits[k]).all() for k in part.splits) # as with ratio=None
    with pytest.raises(ValueError, match='automobile has 2997 of 3237'): cifar_lt(f, ratio=50)

# EyePACS

@pytest.fixture
def eyes(tmp_path):
    "Both eyes of patients 0..19; 0..11 train, 12..15 valid, 16..19 test"
    root,rows = tmp_path/'eyepacs',[f'{i}_{s}.jpeg,{(i+j)%5}' for i in range(20) for j,s in enumerate(('left', 'right'))]
    for i,r in enumerate(rows): _save(root/'eyepacs_all_ims'/r.split(',')[0], i)
    for part,a,b in [('train', 0, 24), ('val', 24, 32), ('test', 32, 40)]: (root/f'{part}_eyepacs.csv').write_text('image_id,level\n'+'\n'.join(rows[a:b])+'\n')
    return root

def test_eyepacs(eyes):
    with pytest.warns(UserWarning, match=r"train\+valid '0' has 7 \(published 25810\).* and 1 more"): ims = eyepacs(eyes)
    _quiet(eyepacs, eyes, differ='ignore').check(progress=False)
    assert ims.vocab==list('01234') and ims.ordinal and {k: len(v) for k,v in ims.splits.items()}==dict(train=24, valid=8, test=8)
    for i,n in enumerate(ims.names):
        p,s = n.split('.')[0].split('_')
        assert ims.labels[i]==(int(p)+(s=='right'))%5 and ims.groups[i]==p and ims.items[i]==eyes/'eyepacs_all_ims'/n
        assert i in ims.splits['train' if int(p)<12 else 'valid' if int(p)<16 else 'test']
    (eyes/'test_eyepacs.csv').unlink()
    assert list(eyepacs(eyes, differ='ignore').splits)==['train', 'valid']

def _edit(old, new, file='train_eyepacs.csv'):
    def f(root): (root/file).write_text((root/file).read_text().replace(old, new))
    return f
@pytest.mark.parametrize('spoil,msg', [(lambda r: (r/'eyepacs_all_ims/3_left.jpeg').unlink(), r'missing: 3_left.jpeg \(train\)'),
    (lambda r: (r/'eyepacs_all_ims').rename(r/'images'), 'eyepacs_all_ims.* is not a folder'), (lambda r: (r/'val_eyepacs.csv').unlink(), 'val_eyepacs.csv.*not a file'),
    (_edit('\n0_left.jpeg', '\n1_left.jpeg'), r'listed twice: 1_left.jpeg \(train and train\)'), (_edit('\n0_left.jpeg', '\n13_left.jpeg'), r'13_left.jpeg \(train and valid\)'),
    (_edit('17_left.jpeg', '12_right.jpeg', 'test_eyepacs.csv'), r'12_right.jpeg \(valid and test\)'), (_edit('\n0_left.jpeg', '\n../eyepacs_all_ims/1_left.jpeg'), r'listed twice: 1_left.jpeg'),
    (_edit('\n0_left.jpeg,0', '\n0_left.jpeg,5'), r"not 0 to 4: row 2 \(0_left.jpeg\) has '5'"), (_edit('\n0_left.jpeg,0', '\n0_left.jpeg,'), r"row 2 \(0_left.jpeg\) has ''")])
def test_eyepacs_errors(eyes, spoil, msg):
    spoil(eyes)
    with pytest.raises(ValueError, match=msg): eyepacs(eyes, differ='ignore')

def test_eyepacs_patients_in_two_parts_are_reported(eyes):
    rows = (eyes/'train_eyepacs.csv').read_text().splitlines()
    (eyes/'train_eyepacs.csv').write_text('\n'.join(rows[:-1]))
    with (eyes/'val_eyepacs.csv').open('a') as f: f.write(rows[-1]+'\n')
    with pytest.warns(UserWarning, match='1 in train and valid, with 1 of the 9 images of valid: 11'): ims = eyepacs(eyes, differ='ignore')
    assert ims.shared_groups()=={('train','valid'): ['11']}
    assert all(not f.shared_groups() for f in ims.folds(3))

def test_eyepacs_with_other_names_has_no_groups(eyes):
    for f in ('train', 'val', 'test'): _edit('_left', '_l', f'{f}_eyepacs.csv')(eyes)
    for f in (eyes/'eyepacs_all_ims').glob('*_left*'): f.rename(f.with_name(f.name.replace('_left', '_l')))
    assert eyepacs(eyes, differ='ignore').groups is None

# Messidor-2

def _messidor(tmp_path, rows, head='image_id,adjudicated_dr_grade,adjudicated_dme,adjudicated_gradable', ext='JPG'):
    root = tmp_path/'m2'
    for i,r in enumerate(rows): _save(root/'IMAGES'/f"{r.split(',')[0].split('.')[0]}.{ext}", i)
    (root/'messidor_data.csv').write_text('\n'.join([head, *rows])+'\n')
    return root

good = ['IM1.jpg,0,0,1', 'IM2.jpg,2,0,1', 'b_PP.png,4.0,1,1.0', 'IM3.jpg,,,0', 'IM4.jpg,1,0,1']

def test_messidor2(tmp_path):
    root = _messidor(tmp_path, good)
    with pytest.warns(UserWarning, match='1 ungradable images of Messidor-2 are left out: IM3.jpg'): ims = messidor2(root, differ='ignore')
    assert list(ims.splits)==['test'] and ims.counts('test').tolist()==[1,1,1,0,1] and ims.ordinal and ims.vocab==list('01234')
    assert ims.names==['IM1.jpg', 'IM2.jpg', 'b_PP.png', 'IM4.jpg'] and ims.items[2]==root/'IMAGES'/'b_PP.JPG' and ims.groups is None
    with pytest.raises(ValueError, match='nothing to train on'): ims.dataloaders()
    with pytest.raises(ValueError, match=r"test '0' has 1 \(published 1017\)"), pytest.warns(UserWarning, match='ungradable'): messidor2(root, differ='raise')

def test_messidor2_other_columns_and_pairs(tmp_path):
    root = _messidor(tmp_path, ['IM1.jpg,0', 'IM2.jpg,2', 'IM5.jpg,3'], 'id_code,diagnosis', ext='png')
    (root/'messidor-2.csv').write_text('left;right\nIM1.JPG;IM2.JPG\nIM4.JPG;IM5.JPG\n')
    ims = _quiet(messidor2, root, pairs=root/'messidor-2.csv', differ='ignore')
    assert ims.groups[0]==ims.groups[1]!=ims.groups[2] and ims.labels.tolist()==[0,2,3]
    (root/'messidor-2.csv').write_text('left;right\nIM1.JPG;IM2.JPG\n')
    with pytest.raises(ValueError, match='pairs has no group for: IM5.jpg'): messidor2(root, pairs=root/'messidor-2.csv')

@pytest.mark.parametrize('rows,head,msg', [(['a.jpg,0,0,maybe'], None, "gradable .* must hold 0 or 1: row 2 has 'maybe'"), (['a.jpg,,0,1'], None, r"row 2 \(a.jpg\) has ''"),
    (['a.jpg,1'], 'image,level', 'neither a column adjudicated_dr_grade nor diagnosis; it has image, level'), (['a.jpg,1,0,1', 'A.JPG,1,0,1'], None, 'listed twice|same name')])
def test_messidor2_errors(tmp_path, rows, head, msg):
    root = _messidor(tmp_path, rows, *[head]*bool(head))
    with pytest.raises(ValueError, match=msg): messidor2(root, differ='ignore')
    (root/'IMAGES'/'a.JPG').unlink()
    if head is None and 'maybe' not in rows[0] and ',,' not in rows[0]:
        for f in (root/'IMAGES').iterdir(): f.unlink()
        with pytest.raises(ValueError, match=r'missing: a.jpg \(test\)'): messidor2(root)

def test_a_learner_of_eyepacs_predicts_messidor2(eyes, tmp_path):
    with pytest.warns(UserWarning, match='ungradable'): ims = messidor2(_messidor(tmp_path, good), differ='ignore')
    dls = eyepacs(eyes, differ='ignore').dataloaders(bs=4, device='cpu')
    x,y = ims.test_dl(dls).one_batch()
    assert y.tolist()==[0,2,4,1] and x.shape==(4,3,8,8)

# Hyper-Kvasir

def _kvasir(root, counts, flat=False):
    rows = []
    for f,n in counts.items():
        for i in range(n):
            rows.append(f'{f}-{i:04},Lower GI,{f},quality')
            _save(root/'images'/f'{f}-{i:04}.jpg' if flat else root/'lower-gi-tract'/'quality'/f/f'{f}-{i:04}.jpg', i)
    (root/'image-labels.csv').write_text('Video file,Organ,Finding,Classification\n'+'\n'.join(rows)+'\n')
    return root

@pytest.mark.parametrize('flat', [True, False])
def test_hyper_kvasir(tmp_path, flat):
    root = _kvasir(tmp_path/'labeled-images', dict(polyps=9, cecum=5, ileum=2), flat)
    _save(tmp_path/'segmented-images'/'images'/'polyps-0000.jpg', 0)
    for path in (root, tmp_path):
        with pytest.warns(UserWarning, match=r'train has 3 classes \(published 23\)'): ims = hyper_kvasir(path)
        assert ims.vocab==['cecum', 'ileum', 'polyps'] and ims.counts().tolist()==[5,2,9] and list(ims.splits)==['train'] and not ims.ordinal
        assert all(f.stem==n and n.startswith(ims.vocab[l]) for f,n,l in zip(ims.items, ims.names, ims.labels))
    with pytest.raises(ValueError, match=r'train has 3 classes'): hyper_kvasir(root, differ='raise')
    assert len(ims.folds(2))==2

def test_hyper_kvasir_published_counts(tmp_path, monkeypatch):
    counts = {f'f{i:02}': n for i,n in enumerate(lay._kvasir)}
    assert sum(lay._kvasir)==10662 and len(lay._kvasir)==23 and max(lay._kvasir)//min(lay._kvasir)==191
    small = {k: -(-n//100) for k,n in counts.items()}
    monkeypatch.setattr(lay, '_kvasir', list(small.values()))
    ims = _quiet(hyper_kvasir, _kvasir(tmp_path/'k', small))
    assert ims.counts().tolist()==list(small.values())

@pytest.mark.parametrize('kind', ['dict', 'csv', 'array'])
def test_hyper_kvasir_groups(tmp_path, kind):
    root = _kvasir(tmp_path, dict(polyps=12, cecum=9))
    by = {n: f'v{int(n[-4:])//3}{n[0]}' for n in hyper_kvasir(root, differ='ignore').names}
    (tmp_path/'g.csv').write_text('image,video\n'+'\n'.join(f'{k}.jpg,{v}' for k,v in by.items()))
    ims = hyper_kvasir(root, groups=dict(dict=by, csv=tmp_path/'g.csv', array=list(by.values()))[kind], differ='ignore')
    assert ims.groups.tolist()==list(by.values())
    for f in ims.folds(3): assert not set(f.groups[f.splits['train']]) & set(f.groups[f.splits['valid']])
    if kind=='dict':
        by['polyps-0001.jpg'] = 'other'
        with pytest.raises(ValueError, match='groups lists twice: polyps-0001'): hyper_kvasir(root, groups=by)
        by.pop('cecum-0003')
        by.pop('polyps-0001.jpg')
        with pytest.raises(ValueError, match='groups has no group for: cecum-0003'): hyper_kvasir(root, groups=by)

def test_hyper_kvasir_errors(tmp_path):
    root = _kvasir(tmp_path, dict(polyps=3, cecum=3))
    csv,text = root/'image-labels.csv',(root/'image-labels.csv').read_text()
    wrong = [('Finding', 'Label', 'lacks: Finding'), ('polyps-0001,', 'polyps-0002,', r'listed twice: polyps-0002 \(train and train\)'),
        ('polyps-0001,', 'other,', r'missing: other \(train\)'), ('polyps-0001,Lower GI,polyps', 'polyps-0001,Lower GI,', 'without a finding: row 3')]
    for old,new,msg in wrong:
        csv.write_text(text.replace(old, new))
        with pytest.raises(ValueError, match=msg): hyper_kvasir(root)
    csv.write_text(text)
    _save(root/'copy'/'polyps-0001.jpg', 0)
    with pytest.raises(ValueError, match='same name: .*polyps-0001.jpg and .*polyps-0001.jpg'): hyper_kvasir(root)
    csv.unlink()
    with pytest.raises(ValueError, match='image-labels.csv.* is not a file'): hyper_kvasir(root)

# ISIC-2019-LT

class _Evil:
    def __reduce__(self): return os.system, ('touch evil',)

def _lists(root, ratio=100, n=(4,1,2), k=8):
    "Lists of `n` images per class for train, val and test, and the images"
    d,end = (root/'14-class','') if ratio=='14-class' else (root/'8-class',f'_{ratio}')
    d.mkdir(parents=True)
    names = [f'ISIC_{i:07}.jpg' for i in range(sum(n)*k)]
    for i,o in enumerate(names): _save(root/'images'/o, i)
    (d/'dic.json').write_text(json.dumps({o: i%k for i,o in enumerate(names)}))
    for part,a,b in zip(('train', 'val', 'test'), np.cumsum([0,*n[:-1]])*k, np.cumsum(n)*k): np.save(d/f'{part}{end}.npy', np.array(names[a:b]))
    return names

@pytest.mark.parametrize('ratio,k', [(100,8), (500,8), ('14-class',14)])
def test_isic(tmp_path, ratio, k):
    names = _lists(tmp_path, ratio, k=k)
    ims = _quiet(isic2019_lt, tmp_path, ratio=ratio, differ='ignore')
    assert {p: ims.counts(p).tolist() for p in ims.splits}==dict(train=[4]*k, valid=[1]*k, test=[2]*k) and ims.names==names
    assert ims.vocab[:3]==['NV', 'MEL', 'BCC'] and len(ims.vocab)==k and ims.groups is None and not ims.ordinal
    with pytest.warns(UserWarning, match=rf"ISIC-2019-LT, {ratio}: train 'NV' has 4 \(published {lay._isic[ratio][0][0]}\)"): isic2019_lt(tmp_path, ratio=ratio)
    (tmp_path/'images').rename(tmp_path/'pics')
    assert len(isic2019_lt(tmp_path, tmp_path/'pics', ratio, differ='ignore'))==len(names)
    with pytest.raises(ValueError, match="images'.* is not a folder"): isic2019_lt(tmp_path, ratio=ratio)
    for bad in (50, '8-class', 100.5):
        with pytest.raises(ValueError, match=r"is unknown; pass one of 100, 200, 500, '14-class'"): isic2019_lt(tmp_path, ratio=bad)

def test_isic_lesions(tmp_path):
    names = _lists(tmp_path)
    lesion = {n: f'L{i//2}' for i,n in enumerate(names)}
    lesion.update({names[-1]: lesion[names[0]], names[3]: ''})
    rows = lambda skip=(): 'image,age_approx,lesion_id,sex\n'+'\n'.join(f'{n[:-4]},50,{g},male' for n,g in lesion.items() if n not in skip)
    (tmp_path/'meta.csv').write_text(rows())
    with pytest.warns(UserWarning, match=r'1 in train and test, with 1 of the 16 images of test: L0'): ims = isic2019_lt(tmp_path, lesions=tmp_path/'meta.csv', differ='ignore')
    assert ims.groups[:4].tolist()==['L0', 'L0', 'L1', 'ISIC_0000003']
    less = ims.drop_shared()
    assert not less.shared_groups() and (less.splits['test']==ims.splits['test']).all() and less.splits['train'].tolist()==list(range(2, 32))
    (tmp_path/'meta.csv').write_text(rows([names[5]]))
    with pytest.raises(ValueError, match='lesions has no group for: ISIC_0000005.jpg'): isic2019_lt(tmp_path, lesions=tmp_path/'meta.csv')
    (tmp_path/'meta.csv').write_text('image,age\na,3\n')
    with pytest.raises(ValueError, match='meta.csv lacks: lesion_id'): isic2019_lt(tmp_path, lesions=tmp_path/'meta.csv')

def _list(part, f):
    def spoil(root):
        file = root/'8-class'/f'{part}_100.npy'
        np.save(file, f(np.load(file)), allow_pickle=True)
    return spoil
@pytest.mark.parametrize('spoil,msg', [(lambda r: (r/'images'/'ISIC_0000040.jpg').unlink(), r'missing: ISIC_0000040.jpg \(test\)'), (lambda r: (r/'8-class'/'val_100.npy').unlink(), 'val_100.npy is missing'),
    (lambda r: (r/'8-class').rename(r/'lists'), "8-class' is not a folder"), (lambda r: (r/'8-class'/'dic.json').unlink(), 'dic.npy is missing'),
    (_list('train', lambda a: np.append(a, a[0])), r'listed twice: ISIC_0000000.jpg \(train and train\)'), (_list('test', lambda a: np.append(a, 'ISIC_0000001.jpg')), r'ISIC_0000001.jpg \(train and test\)'),
    (_list('val', lambda a: np.append(a, 'other.jpg')), 'Names of val_100.npy that dic.npy does not have: other.jpg'), (_list('val', lambda a: a.reshape(2, -1)), r'shape \(2, 4\)'),
    (_list('val', lambda a: np.arange(3)), 'is int64 of shape'), (_list('val', lambda a: np.array([_Evil()])), 'val_100.npy is object of shape'),
    (lambda r: (r/'8-class'/'test_100.npy').write_bytes(b'\x93NUMPY'), 'test_100.npy is not a whole array')])
def test_isic_errors(tmp_path, spoil, msg):
    _lists(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ValueError, match=msg): isic2019_lt(tmp_path, differ='ignore')
    assert not os.path.exists('evil')

@pytest.mark.parametrize('obj', [{'a':1}, {'a':_Evil()}, _Evil(), [1,2], Counter()])
def test_pickles_that_are_not_published_are_refused(tmp_path, obj):
    _lists(tmp_path)
    (tmp_path/'8-class/dic.json').unlink()
    np.save(tmp_path/'8-class/dic.npy', np.array(obj, dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match='dic.npy is none of the files that FlexSampling publishes .*is not opened.*dic.json'): isic2019_lt(tmp_path)
    assert not os.path.exists('evil')

@pytest.mark.parametrize('text,msg', [('', 'not a JSON object'), ('[1]', 'it is no object'), ('{"a": 1.5}', "'a' has '1.5'"), ('{"a": -1}', "'a' has '-1'"),
    ('{"a": true}', "'a' has 'True'"), ('{"a": 1, "a": 2}', 'holds twice: a'), ('{"a": 1', 'not a JSON object'), ('{"a": {"b": 1}}', "'a' has ")])
def test_class_ids_that_are_none(tmp_path, text, msg):
    _lists(tmp_path)
    (tmp_path/'8-class/dic.json').write_text(text)
    with pytest.raises(ValueError, match=msg): isic2019_lt(tmp_path)

@pytest.mark.parametrize('ratio', [100, 200, 500, '14-class'])
def test_real_isic_lists(data_dir, ratio):
    if not (d := data_dir/'isic2019_lt').is_dir(): pytest.skip('BALMIX_DATA has no isic2019_lt')
    parts,k = lay._isic_lists(d, ratio),14 if ratio=='14-class' else 8
    for p,want in zip(('train', 'valid', 'test'), lay._isic[ratio]): assert np.bincount(parts[p][1], minlength=k).tolist()==want
    names = [n for p in parts.values() for n in p[0]]
    assert len(set(names))==len(names) and all(n.startswith('ISIC_') and n.endswith('.jpg') for n in names)
    if k==8: assert parts['train'][1].count(0)/parts['train'][1].count(7)==pytest.approx(ratio, rel=.1)
    ids = lay._class_ids(d/('14-class' if k==14 else '8-class'))
    want = [12875,4522,3393,1464,869,656,384,270,253,246,32,27,15,14] if k==14 else [12875,4522,3323,2624,867,628,253,239]
    assert np.bincount(list(ids.values())).tolist()==want # ISIC 2019 as a whole
    assert ids=={str(n): int(c) for n,c in np.load(d/('14-class' if k==14 else '8-class')/'dic.npy', allow_pickle=True).item().items()} # these files are known to be harmless

def test_real_isic_lists_shrunk(data_dir, tmp_path):
    if not (d := data_dir/'isic2019_lt').is_dir(): pytest.skip('BALMIX_DATA has no isic2019_lt')
    (tmp_path/'8-class').mkdir()
    (tmp_path/'8-class'/'dic.npy').write_bytes((d/'8-class'/'dic.npy').read_bytes())
    for part in ('train', 'val', 'test'):
        some = np.load(d/'8-class'/f'{part}_100.npy')[::40]
        np.save(tmp_path/'8-class'/f'{part}_100.npy', some)
        for i,n in enumerate(some): _save(tmp_path/'images'/n, i)
    ims = isic2019_lt(tmp_path, differ='ignore').check(progress=False)
    assert [len(o) for o in ims.splits.values()]==[259,10,20] and any('_downsampled' in n for n in ims.names)

@pytest.mark.parametrize('arm', ['CB-focal, class', 'GRW 1.2', 'Flexible + Balanced-MixUp .2', 'difficulty'])
def test_isic_lists_train(data_dir, tmp_path, arm):
    "The shipped names with drawn images, by arms of the bundled study"
    if not (d := data_dir/'isic2019_lt').is_dir(): pytest.skip('BALMIX_DATA has no isic2019_lt')
    (tmp_path/'8-class').mkdir()
    (tmp_path/'8-class'/'dic.npy').write_bytes((d/'8-class'/'dic.npy').read_bytes())
    for part,step in (('train', 40), ('val', 10), ('test', 20)):
        some = np.load(d/'8-class'/f'{part}_100.npy')[::step]
        np.save(tmp_path/'8-class'/f'{part}_100.npy', some)
        for i,n in enumerate(some): _save(tmp_path/'images'/n, i, 16)
    stages = dict(pretrain=1, epochs=2) if 'Flexible' in arm else dict(epochs=3)
    study = read_study('isic2019-lt', tmp_path, [arm], 1, dict(differ='ignore'), arch='small_cnn', pretrained=False, head='fastai', size=16, bs=32)
    study.arms = {arm: dict(study.arms[arm], **stages)}
    assert study.run(tmp_path/'out', progress=False)=={}
    res = study.results(tmp_path/'out')
    assert len(res.runs)==1 and np.isfinite(res.runs.balanced_accuracy).all() and (tmp_path/'out'/'predictions.npz').exists()

# MedMNIST

flags = dict(retinamnist=('RetinaMNIST', 'ordinal-regression', {str(i): str(i) for i in range(5)}), breastmnist=('BreastMNIST', 'binary-class', {'0':'malignant', '1':'normal, benign'}))

def _arrays(k, n=(6,4,4)):
    return {f'{m}_{w}': np.arange(c)[:,None]%k if w=='labels' else np.stack([_pic(i)[...,0] for i in range(c)]) for m,c in zip(('train', 'val', 'test'), n) for w in ('images', 'labels')}

@pytest.fixture
def package(monkeypatch):
    "A stand-in for the package medmnist, whose download writes a small archive"
    mm,calls = types.ModuleType('medmnist'),[]
    mm.__spec__ = ModuleSpec('medmnist', None)
    mm.INFO = {f: dict(python_class=c, task=t, label=l, n_samples=dict(train=6, val=4, test=4)) for f,(c,t,l) in flags.items()}
    def kind(flag, k):
        def make(split, download, root, size):
            calls.append((flag, split, download, size))
            np.savez(os.path.join(root, f"{flag}{'' if size==28 else f'_{size}'}.npz"), **_arrays(k))
        return make
    for f,(c,_,l) in flags.items(): setattr(mm, c, kind(f, len(l)))
    monkeypatch.setitem(sys.modules, 'medmnist', mm)
    return calls

@pytest.fixture
def no_package(monkeypatch): monkeypatch.setattr(lay, 'find_spec', lambda name: None)

def test_medmnist_with_the_package(package, tmp_path):
    ims = _quiet(medmnist, 'breastmnist', root=tmp_path/'new', download=True)
    assert package==[('breastmnist', 'test', True, 28)] and ims.vocab==['malignant', 'normal, benign'] and not ims.ordinal
    assert {k: ims.counts(k).tolist() for k in ims.splits}==dict(train=[3,3], valid=[2,2], test=[2,2])
    assert _quiet(medmnist, 'breastmnist', size=64, root=tmp_path/'new', download=True).vocab==ims.vocab and package[1]==('breastmnist', 'test', True, 64)
    assert _quiet(medmnist, tmp_path/'new'/'breastmnist_64.npz').names==ims.names and len(package)==2
    np.savez(tmp_path/'breastmnist.npz', **_arrays(2, (5,4,4)))
    with pytest.warns(UserWarning, match=r"MedMNIST's breastmnist: train has 5 \(published 6\)\. Is"): medmnist('breastmnist', root=tmp_path)
    with pytest.raises(ValueError, match=r'train has 5 \(published 6\)'): medmnist('breastmnist', root=tmp_path, differ='raise')

def test_medmnist_without_the_package(no_package, tmp_path):
    np.savez(tmp_path/'breastmnist.npz', **_arrays(2))
    with pytest.warns(UserWarning, match=r"breastmnist need the package medmnist, .*balmix_fastai\[medmnist\].*Classes are numbered"): ims = medmnist('breastmnist', root=tmp_path)
    assert ims.vocab==['0', '1']
    with pytest.raises(ValueError, match=r"download=True needs the package medmnist.*balmix_fastai\[medmnist\]"): medmnist('breastmnist', root=tmp_path, download=True)

@pytest.mark.parametrize('name,kw,msg', [('chestmnist', {}, 'several labels per image'), ('organmnist3d', {}, "name='organmnist3d' is unknown"), ('retina', {}, "'retinamnist'"),
    ('retinamnist', dict(size=32), r'size=32 is unknown; pass one of 28, 64, 128, 224'), ('retinamnist', {}, 'retinamnist.npz does not exist; pass download=True'),
    ('x/retinamnist.npz', dict(size=64), 'leave root and size out'), ('x/chestmnist_64.npz', dict(root=None), 'several labels'), ('x/retinamnist_100.npz', dict(root=None), 'size=100')])
def test_medmnist_errors(no_package, tmp_path, name, kw, msg):
    with pytest.raises(ValueError, match=msg): medmnist(name, **{**dict(root=tmp_path), **kw})

def test_real_retinamnist(data_dir, no_package, tmp_path):
    if not (f := data_dir/'retinamnist.npz').exists(): pytest.skip('BALMIX_DATA has no retinamnist.npz')
    ims,plain = _quiet(medmnist, 'retinamnist', root=data_dir, differ='raise'),from_npz(f)
    assert ims.ordinal and ims.vocab==plain.vocab and (ims.labels==plain.labels).all() and {k: ims.counts(k).tolist() for k in ims.splits}==lay._retina
    with np.load(f) as z: cut = {k: v[1:] if k.startswith('val') else v for k,v in z.items()}
    np.savez(tmp_path/'retinamnist.npz', **cut)
    with pytest.warns(UserWarning, match=r"valid '.' has \d+ \(published \d+\)\. Is"): medmnist('retinamnist', root=tmp_path)

def test_the_package_itself(data_dir):
    "The flags and counts are those of the package"
    import medmnist as mm
    assert set(lay._flags)=={k for k,v in mm.INFO.items() if 'multi-label' not in v['task'] and not k.endswith('3d')}
    assert {k: sum(v) for k,v in lay._retina.items()}=={k: mm.INFO['retinamnist']['n_samples'][m] for k,m in dict(train='train', valid='val', test='test').items()}
    assert medmnist('retinamnist', root=data_dir, differ='raise').vocab==list('01234')

# By name

def test_read_layout(tree, tmp_path, monkeypatch):
    assert set(layouts)==set('eyepacs messidor2 hyper_kvasir isic2019_lt medmnist cifar_lt'.split()) and all(getattr(lay, k) is v for k,v in layouts.items())
    assert read_layout('cifar_lt', tree, ratio=4, differ='ignore').names==cifar_lt(tree, ratio=4, differ='ignore').names
    assert read_layout('digits', ratio=5).counts().min()==20
    np.savez(tmp_path/'retinamnist.npz', **_arrays(5, (10,5,5)))
    monkeypatch.setenv('BALMIX_DATA', str(tmp_path))
    assert len(read_layout('retinamnist'))==len(read_layout('retinamnist', tmp_path/'retinamnist.npz', differ='ignore'))==20
    with pytest.raises(ValueError, match="name='isic' is unknown; pass one of 'eyepacs', .*'cifar_lt', 'digits', 'retinamnist'"): read_layout('isic', tree)
    with pytest.raises(ValueError, match='needs the path'): read_layout('eyepacs')
    with pytest.raises(ValueError, match='has no use: digits'): read_layout('digits', tree)
    with pytest.raises(ValueError, match="path='nowhere' is not a folder"): read_layout('eyepacs', 'nowhere')

def test_datasets_does_not_know_layouts():
    from balmix_fastai import datasets
    with open(datasets.__file__) as f: assert not re.search(r'^\s*(from|import)\b.*layouts', f.read(), re.M)
