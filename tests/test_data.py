"data: labels without opening an image, the balanced loader and its copies, the loader of pairs."
import pickle, random, warnings
from types import SimpleNamespace
import PIL.Image, numpy as np, pandas as pd, pytest, torch
from scipy import stats
from torch.utils.data import ConcatDataset, IterableDataset, Subset, TensorDataset
from fastai.callback.data import PartialDL, WeightedDL
from fastai.vision.all import (Categorize, CategoryBlock, ColReader, CrossEntropyLossFlat, DataBlock, DataLoader, DataLoaders, Datasets, ImageBlock,
    ImageDataLoaders, IndexSplitter, ItemTransform, L, Learner, MultiCategoryBlock, Normalize, PILImage, Path, RandomSplitter, SkipItemException, TfmdDL,
    TfmdLists, ToTensor, Transform, TransformBlock, aug_transforms, ifnone, load_learner, nn, noop, parent_label, set_seed, tensor)
from fastai.tabular.all import Categorify, TabDataLoader, TabularDataLoaders
from balmix_fastai.data import BalancedDL, PairedDL, ResampledDL, balanced_dataloaders, get_labels, stream_probs
from balmix_fastai.sampling import ClassSampler, class_probs

n_k = np.array([60, 20, 4])
ys = np.random.default_rng(0).permutation(np.repeat(range(3), n_k))
n_all,p_min = len(ys),1e-6

class Numbered:
    "Item i is (tensor [i, 10i], its label); as a class of its own it has no attribute that tells labels"
    def __init__(self, ys=ys, skip=()): self.ys,self.skip = ys,set(skip)
    def __len__(self): return len(self.ys)
    def __getitem__(self, i):
        if i in self.skip: raise SkipItemException
        return tensor([float(i),10.*i]),tensor(int(self.ys[i]))

def numbered(labels=ys): return TensorDataset(tensor([[float(i),10.*i] for i in range(len(labels))]), tensor(labels))

def toy_dls(labels=ys, bs=8, ds=None, **kw):
    ds = ifnone(ds, numbered(labels))
    return DataLoaders.from_dsets(ds, numbered(labels[:9]), bs=bs, **dict(num_workers=0, device=torch.device('cpu')) | kw)

def cat(ts): return torch.cat(list(ts)).long().tolist()
def items(dl): return cat(b[0][:,0] for b in dl)

def chi_p(obs, p):
    obs,p = np.asarray(obs),np.asarray(p, dtype=float)
    assert obs[p==0].sum()==0
    return stats.chisquare(obs[p>0], obs.sum()*p[p>0]/p.sum()).pvalue

# Labels: image files

@pytest.fixture(scope='module')
def pngs(tmp_path_factory):
    "train/ and valid/ with a folder per class, and labels.csv"
    path,rows = tmp_path_factory.mktemp('pngs'),[]
    for part,counts in dict(train=(7,3,2), valid=(2,1,1)).items():
        for k,n in zip(('ant','bee','cat'), counts):
            (path/part/k).mkdir(parents=True)
            for i in range(n):
                name = f'{part}/{k}/{k}_{i}.png'
                PIL.Image.fromarray(np.full((8,8,3), 15*len(rows), dtype=np.uint8)).save(path/name)
                rows.append((name, k, part=='valid'))
    pd.DataFrame(rows, columns=['name','label','valid']).to_csv(path/'labels.csv', index=False)
    return path

def table(p): return pd.read_csv(p/'labels.csv')
def files(p): return [p/o for o in table(p).name]
kw_img = dict(bs=2, num_workers=0, device='cpu')
def from_folder(p):    return ImageDataLoaders.from_folder(p, **kw_img)
def from_folder_pct(p): return ImageDataLoaders.from_folder(p/'train', valid_pct=.3, seed=1, **kw_img)
def from_df(p):        return ImageDataLoaders.from_df(table(p), p, seed=1, **kw_img)
def from_df_valid(p):  return ImageDataLoaders.from_df(table(p), p, valid_col='valid', label_col='label', batch_tfms=aug_transforms(), **kw_img)
def from_csv(p):       return ImageDataLoaders.from_csv(p, valid_col='valid', delimiter=',', **kw_img)
def from_lists(p):     return ImageDataLoaders.from_lists(p, files(p), table(p).label.tolist(), seed=2, **kw_img)
def from_path_func(p): return ImageDataLoaders.from_path_func(p, files(p), parent_label, seed=3, **kw_img)
def from_name_func(p): return ImageDataLoaders.from_name_func(p, files(p), lambda s: s.split('_')[0], seed=4, **kw_img)
def from_name_re(p):   return ImageDataLoaders.from_name_re(p, files(p), r'^(.*)_\d', seed=4, **kw_img)
def from_datasets(p):
    dsets = Datasets(files(p), [[PILImage.create], [parent_label, Categorize]], splits=[[0,3,9,8],[1,7]])
    return dsets.dataloaders(after_item=ToTensor(), **kw_img)
def from_block(p):
    blocks = ImageBlock,CategoryBlock(vocab=['dog','cat','bee','ant'], sort=False)
    block = DataBlock(blocks, get_x=ColReader('name', pref=f'{p}/'), get_y=ColReader('label'), splitter=RandomSplitter(seed=5))
    return block.dataloaders(table(p), **kw_img)
makers = [from_folder, from_folder_pct, from_df, from_df_valid, from_csv, from_lists, from_path_func, from_name_func, from_name_re, from_datasets, from_block]

@pytest.fixture
def blind(monkeypatch):
    "From its call on, opening an image fails"
    def _f():
        def no(*args, **kwargs): raise AssertionError('an image was opened')
        monkeypatch.setattr(PIL.Image, 'open', no)
    return _f

@pytest.mark.parametrize('maker', makers)
def test_labels_of_images(pngs, maker, blind, monkeypatch):
    "As the slow way through the images, without opening one; the balanced loaders need none either to be sampled from"
    dls = maker(pngs)
    want = [int(y) for _,y in dls.train_ds]
    assert 1<len(set(want)) and len(want)==dls.train.n
    b = dls.balanced(seed=0)
    blind()
    with pytest.raises(AssertionError, match='opened'): from_df(pngs) # it would show
    res = get_labels(dls)
    assert res.dtype==np.int64 and res.tolist()==want
    assert get_labels(dls.train).tolist()==get_labels(dls.train_ds).tolist()==want
    assert get_labels(dls.train.new(shuffle=False)).tolist()==want
    assert get_labels(b).tolist()==want and set(b.train.get_idxs())<=set(range(len(want)))

def test_labels_of_a_list_of_targets(): assert get_labels(TfmdLists(list('abca'), [Categorize])).tolist()==[0,1,2,0]

def test_labels_of_the_other_split(pngs):
    dls = from_folder(pngs)
    assert get_labels(dls.valid).tolist()==[int(y) for _,y in dls.valid_ds] and len(get_labels(dls.valid))==4

def test_balanced_images_are_delivered(pngs):
    b = from_folder(pngs).balanced(seed=0)
    xs = [x for x,_ in b.train]
    assert all(x.shape==(2,3,8,8) and x.is_floating_point() for x in xs) and len(xs)==len(b.train)

# Labels: tables, torch, torchvision

def frame(n=40):
    rng = np.random.default_rng(1)
    return pd.DataFrame(dict(a=rng.normal(size=n), b=rng.normal(size=n), c=rng.choice(list('xyz'), n), y=np.where(np.arange(n)%5, 'common', 'rare')))

def tab_dls(n=40, bs=8, **kw):
    return TabularDataLoaders.from_df(frame(n), procs=[Categorify], cat_names=['c'], cont_names=['a','b'], y_names='y', y_block=CategoryBlock(),
        valid_idx=list(range(0, n, 4)), bs=bs, **dict(device='cpu') | kw)

def test_labels_of_tabular():
    dls = tab_dls()
    slow = torch.cat([b[-1] for b in dls.train.new(shuffle=False, drop_last=False)]).flatten().tolist()
    assert get_labels(dls).tolist()==slow==[0 if i%5 else 1 for i in range(40) if i%4]

def test_labels_of_torch_datasets():
    a,b = TensorDataset(torch.zeros(4,2), tensor([3,0,1,1])),TensorDataset(torch.zeros(3,2), tensor([[5],[6],[7]]))
    nested = Subset(ConcatDataset([Subset(a, [2,0]), b, Subset(Subset(a, range(1,4)), tensor([0,2]))]), np.array([6,4,0,1,1]))
    assert get_labels(nested).tolist()==[int(y) for _,y in nested]==[1,7,1,3,3]
    assert get_labels(Subset(a, [])).tolist()==[]
    assert get_labels(torch.utils.data.DataLoader(nested)).tolist()==[1,7,1,3,3]
    assert get_labels([('x',1),('y',0)]).tolist()==get_labels(L(('x',1),('y',0))).tolist()==[1,0]

def test_labels_of_fastai_inside_torch(pngs):
    ds = from_folder(pngs).train_ds
    nested = Subset(ConcatDataset([ds, ds]), [13,0,11,12])
    assert get_labels(nested).tolist()==[int(nested[i][1]) for i in range(4)]

@pytest.mark.parametrize('tfm', [None, lambda y: 2-y, lambda y: tensor(y)])
def test_labels_of_image_folder(pngs, blind, tfm):
    import torchvision.datasets as tv
    ds = tv.ImageFolder(pngs/'train', target_transform=tfm)
    sub = Subset(ds, [11,0,8,8])
    want,part = [int(y) for _,y in ds],[int(y) for _,y in sub]
    blind()
    assert get_labels(ds).tolist()==want and get_labels(sub).tolist()==part

def test_labels_of_a_folder_that_was_relabelled(pngs):
    "`DatasetFolder` loads `samples`; `targets` is a copy that stays behind"
    import torchvision.datasets as tv
    for change in (lambda ds: ds.samples.__setitem__(slice(None), [(f, 1-y%2) for f,y in ds.samples]), lambda ds: setattr(ds, 'samples', [(f, 0) for f,_ in ds.samples]),
        lambda ds: setattr(ds, 'targets', [1]*len(ds))):
        ds = tv.ImageFolder(pngs/'train')
        change(ds)
        want = [int(y) for _,y in ds]
        assert get_labels(ds).tolist()==want and get_labels(Subset(ds, [3,0])).tolist()==[want[3],want[0]]
        assert get_labels(ConcatDataset([ds, ds])).tolist()==2*want

@pytest.mark.parametrize('kept,want', [
    (dict(targets=[0,1,1], labels=[0,1,1]), [0,1,1]), (dict(targets=[0,1,1], labels=[0,1,0]), None), (dict(targets=[0,1,1], labels=['cat','dog','dog']), [0,1,1]),
    (dict(targets=[0,1,1], labels=['cat','dog']), [0,1,1]), (dict(targets=[0,1,1], samples=[('a',0),('b',1),('c',1)]), [0,1,1]),
    (dict(targets=[0,1,1], samples=[('a',0),('b',1),('c',0)]), None), (dict(targets=tensor([0,1,1]), samples=['a','b','c']), [0,1,1]),
    (dict(samples=[('a',2),('b',1),('c',0)]), [2,1,0]), (dict(targets=[0,1,1], labels=np.array([0,1])), None)])
def test_labels_that_are_kept_twice(kept, want):
    "Equal lists are read, different ones are refused, names are no labels"
    ds = type('Kept', (), dict(__len__=lambda self: 3, __getitem__=lambda self, i: 1/0, **kept))()
    if want: assert get_labels(ds).tolist()==want
    else:
        with pytest.raises(ValueError, match='(?s)other labels in.*pass labels='): get_labels(ds)

@pytest.mark.parametrize('name', ['targets','labels'])
@pytest.mark.parametrize('f', [list, np.array, tensor, lambda o: np.array(o)[:,None], lambda o: tensor(o)[:,None].to(torch.uint8), lambda o: np.array(o)*1.])
def test_labels_in_attributes(name, f):
    class Opaque:
        def __len__(self): return 3
        def __getitem__(self, i): raise AssertionError('an item was loaded')
    ds = Opaque()
    setattr(ds, name, f([2,0,1]))
    assert get_labels(ds).tolist()==[2,0,1] and get_labels(ds).dtype==np.int64
    assert get_labels(Subset(ds, [2,0])).tolist()==[1,2]

def int_dsets(get_y): return Datasets(range(6), [[lambda i: torch.zeros(2)], [get_y]], splits=[[0,1,2,3],[4,5]])

@pytest.mark.parametrize('f', [int, tensor, np.int64, float, lambda k: tensor([k]), lambda k: np.array([k])])
def test_labels_of_any_kind_of_target(f): assert get_labels(int_dsets(lambda i: f(i%3)).train).tolist()==[0,1,2,0]

@pytest.mark.parametrize('source', [int_dsets(lambda i: i+.5), int_dsets(lambda i: 'abc'[i%3]), int_dsets(lambda i: tensor([[i]])), Numbered(), object(), {}, [1,2],
    TensorDataset(tensor([.5,.2])), SimpleNamespace(targets=['a','b']), Datasets(range(4), [[noop],[noop],[noop]], n_inp=1)], ids=lambda o: type(o).__name__)
def test_labels_that_cannot_be_known(source):
    with pytest.raises(ValueError, match='labels=|class ids'): get_labels(getattr(source, 'train', source))

@pytest.mark.parametrize('source', [TensorDataset(torch.zeros(3,2), torch.eye(3)), SimpleNamespace(labels=np.eye(4)), int_dsets(lambda i: tensor([1.,0,0])), [('x',(0,1))],
    DataBlock((TransformBlock, MultiCategoryBlock), get_y=lambda i: 'ab'[:i%3], splitter=IndexSplitter([0])).datasets(range(9)),
    ConcatDataset([TensorDataset(torch.zeros(3,2), torch.eye(3))])], ids=lambda o: type(o).__name__)
def test_labels_of_multi_label(source):
    with pytest.raises(ValueError, match='(?s)multi-label.*labels=.*weights='): get_labels(getattr(source, 'train', source))

# The factory

def check_factory(dls, b, want=(1/3,1/3,1/3), labels=ys, epochs=30):
    "Chi-square of the classes that were delivered, and of the items of the largest class; what must be as before"
    assert b is not dls and len(b)==len(dls) and all(x is y for x,y in zip(b.loaders[1:], dls.loaders[1:])) and b.path==dls.path and b.device==dls.device
    assert isinstance(b.train, BalancedDL) and isinstance(b.train, type(dls.train)) and b.train.drop_last==dls.train.drop_last and b.train.bs==dls.train.bs
    assert len(b.train)==len(dls.train) and b.train.n==dls.train.n and len(b.train.get_idxs())==len(labels)
    got = np.concatenate([b.train.get_idxs() for _ in range(epochs)])
    assert chi_p(np.bincount(labels[got], minlength=len(want)), want)>p_min
    return got

def test_plain_loaders():
    dls = toy_dls()
    old,state = dls.train,dict(dls.train.__dict__)
    b = dls.balanced(seed=1)
    got = check_factory(dls, b)
    for k in range(3): assert chi_p(np.bincount(got, minlength=n_all)[ys==k], np.ones(n_k[k]))>p_min
    assert dls.train is old and type(old) is TfmdDL and old.shuffle and not isinstance(old, BalancedDL)
    assert {k:v for k,v in old.__dict__.items() if k in state and k!='rng'}=={k:v for k,v in state.items() if k!='rng'}
    xs,yb = zip(*b.train)
    assert (ys[cat(x[:,0] for x in xs)]==cat(yb)).all() and len(cat(yb))==len(b.train)*8 # items come with their own targets

@pytest.mark.parametrize('drop_last,n_items', [(True,80), (False,84)])
def test_epoch_length(drop_last, n_items):
    b = toy_dls(drop_last=drop_last).balanced()
    assert len(items(b.train))==n_items and len(list(b.train))==len(b.train)

@pytest.mark.parametrize('q', [0, .5, 1, -1])
def test_strength(q): check_factory(dls := toy_dls(), dls.balanced(q=q, seed=2), n_k**float(q)/(n_k**float(q)).sum())

def test_function_and_method_agree():
    dls = toy_dls()
    want = ClassSampler(ys, q=.5, seed=1).draw(n_all).tolist()
    assert balanced_dataloaders(dls, .5, seed=1).train.get_idxs().tolist()==dls.balanced(.5, seed=1).train.get_idxs().tolist()==want

def test_of_datasets():
    dsets = Datasets(range(n_all), [[number], [letter, Categorize]], splits=[list(range(70)), list(range(70, n_all))])
    b = dsets.balanced_dataloaders(q=0, seed=3, bs=4, num_workers=0, after_item=lambda o: o, device='cpu')
    assert b.train.bs==4 and len(b.train)==17 and type(b.valid) is TfmdDL and b.vocab==list('abc')
    got = np.concatenate([b.train.get_idxs() for _ in range(30)])
    assert len(got)==30*70 and chi_p(np.bincount(ys[got]), (1,1,1))>p_min
    for x,y in b.train: assert (ys[x[:,0].long()]==y.numpy()).all()

def marked(batch): return [(x+1000, y) for x,y in batch]

def test_of_a_block_with_its_own_arguments():
    "What a block asks of the loaders (`dls_kwargs`, as the padding of `BBoxBlock`) survives, and so do item and batch transforms"
    block = DataBlock((TransformBlock(dls_kwargs=dict(before_batch=marked)), CategoryBlock), get_x=number, get_y=letter,
        splitter=IndexSplitter([0,1,2]), item_tfms=lambda o: o, batch_tfms=Halve())
    b = block.balanced_dataloaders(range(n_all), q=.5, seed=1, bs=5, num_workers=0, device='cpu', path='/nowhere')
    assert b.path==Path('/nowhere') and b.train.bs==5
    for x,y in b.train: assert (x>=500).all() and (ys[(2*x[:,0]-1000).long()]==y.numpy()).all()
    with_wgts = block.balanced_dataloaders(range(n_all), weights=dict(a=0, b=0, c=1), bs=2, num_workers=0, device='cpu')
    assert set(cat(y for _,y in with_wgts.train))=={2}

class Halve(ItemTransform):
    def encodes(self, b): return b[0]/2,*b[1:]

def test_of_tabular():
    "The default class of a tabular loader stays, and rows come with their own targets"
    dls = tab_dls()
    b = dls.balanced(seed=4)
    labels,conts = get_labels(dls),dls.train.dataset.conts.values
    check_factory(dls, b, want=(.5,.5), labels=labels)
    assert isinstance(b.train, TabDataLoader)
    for _,x,y in b.train:
        rows = [int(np.flatnonzero(np.isclose(conts, o).all(1))[0]) for o in x.numpy()]
        assert labels[rows].tolist()==y.flatten().tolist()
    b.show_batch(max_n=2)
    assert len(b.test_dl(frame(6)))==1 and not isinstance(b.test_dl(frame(6)), BalancedDL)

def test_of_tabular_draws_its_seeds_stream():
    dls = tab_dls()
    assert dls.balanced(seed=4).train.get_idxs().tolist()==ClassSampler(get_labels(dls), seed=4).draw(dls.train.n).tolist()

def test_of_image_loaders_gets_later_transforms(pngs):
    "`vision_learner` adds `Normalize` to the loaders that it is given"
    b = from_folder(pngs).balanced()
    b.add_tfms([Normalize.from_stats([10.]*3, [1.]*3, cuda=False)], 'after_batch')
    assert b.one_batch()[0].max()<0

def number(i): return tensor([float(i)])
def letter(i): return 'abc'[ys[i%n_all]]
def block_of(*vocab, get_y=letter, **kw):
    return DataBlock((TransformBlock, CategoryBlock(vocab=vocab, sort=False)), get_x=number, get_y=get_y, splitter=IndexSplitter([0]), **kw)

block_abc = block_of('c', 'a', 'b', 'none')
def abc_dls(**kw): return block_abc.dataloaders(range(n_all), bs=8, num_workers=0, device='cpu', **kw)

@pytest.mark.parametrize('weights', [dict(a=2, b=1, c=5.), {1:2, 2:1, 0:5.}, {np.int64(1):2, np.int64(2):1, np.int64(0):5.}, dict(none=7, c=5, a=2, b=1)])
def test_weights_of_classes(weights):
    "By name, or by the id that the vocab gives; each item weighs what its class does, and the weight of a class without items is of no effect"
    dls = abc_dls()
    labels = get_labels(dls)
    mass = np.array([(labels==0).sum()*5, (labels==1).sum()*2, (labels==2).sum(), 0])
    check_factory(dls, dls.balanced(weights=weights, seed=1), mass/mass.sum(), labels)

def test_weights_by_name_go_before_ids():
    b = block_of(2, 0, 1, get_y=lambda i: int(ys[i])).balanced_dataloaders(range(n_all), weights={2:1,0:0,1:0}, bs=8, num_workers=0, device='cpu')
    assert {ys[int(i)] for x,_ in b.train for i in x[:,0]}=={2}

@pytest.mark.parametrize('f', [np.array, list, tensor, lambda w: pd.Series(w, index=range(5, 5+len(w)))])
def test_weights_of_items(f):
    "Any weight per item: chi-square over the items"
    w = np.random.default_rng(3).integers(0, 5, n_all).astype(float)
    dls = toy_dls()
    b = dls.balanced(weights=f(w), seed=1)
    got = check_factory(dls, b, np.bincount(ys, weights=w), epochs=60)
    assert chi_p(np.bincount(got, minlength=n_all), w)>p_min

@pytest.mark.parametrize('kw,want', [({}, [28,28,28]), (dict(q=1), n_k), (dict(weights={0:1,1:3,2:6}), [35,35,14])])
def test_stratified(kw, want):
    b = toy_dls().balanced(stratified=True, **kw)
    for _ in range(3): assert np.bincount(ys[b.train.get_idxs()]).tolist()==list(want)

def test_labels_given():
    dls = toy_dls(ds=Numbered())
    with pytest.raises(ValueError, match='labels='): dls.balanced()
    check_factory(dls, dls.balanced(labels=ys, seed=3))
    groups = (ys==2).astype(int) # any grouping, not only the targets
    check_factory(dls, dls.balanced(labels=groups, seed=3), (1/2,1/2), groups)

def test_weights_need_no_labels(): assert set(items(toy_dls(ds=Numbered()).balanced(weights=np.arange(n_all)==7).train))=={7}

def test_balanced_again():
    b = toy_dls().balanced(seed=0)
    again = b.balanced(q=1, seed=5)
    assert type(again.train) is BalancedDL and again.train.get_idxs().tolist()==ClassSampler(ys, q=1, seed=5).draw(n_all).tolist()
    assert b.train.get_idxs().tolist()==ClassSampler(ys, seed=0).draw(n_all).tolist()

def test_what_else_a_loader_holds():
    "Settings of the training loader that fastai's `.new()` forgets or keeps"
    dl = TfmdDL(numbered(), bs=8, shuffle=False, n=50, num_workers=2, persistent_workers=True, drop_last=True, timeout=7)
    b = DataLoaders(dl, dl).balanced().train
    assert (b.n,b.bs,b.drop_last,b.timeout,b.fake_l.num_workers,b.fake_l.persistent_workers,b.shuffle,len(b))==(50,8,True,7,2,True,True,6)
    assert max(b.get_idxs())<50 and len(b.get_idxs())==50 and b.new().n==50

@pytest.mark.parametrize('f,msg', [
    (lambda: DataLoaders(torch.utils.data.DataLoader(numbered()), toy_dls().valid), 'torch.utils.data.*from_dsets'),
    (lambda: DataLoaders(DataLoader(numbered(), bs=4), toy_dls().valid), 'from_dsets'),
    (lambda: DataLoaders(TfmdDL(type('Stream', (IterableDataset,), dict(__iter__=lambda self: iter([1])))(), bs=4), None), 'iterable'),
    (lambda: DataLoaders(TfmdDL(numbered(), bs=None), None), 'already made'),
    (lambda: DataLoaders(TfmdDL([], bs=4), None), 'no items'),
    (lambda: DataLoaders(WeightedDL(numbered(), bs=4, wgts=np.arange(n_all)+1., shuffle=True), None), 'dls.train.wgts'),
    (lambda: DataLoaders(PartialDL(numbered(), bs=4, partial_n=8), None), 'PartialDL')])
def test_loaders_that_are_refused(f, msg):
    with pytest.raises(ValueError, match=f'(?s){msg}'): f().balanced()

@pytest.mark.parametrize('kw,msg', [(dict(weights={'a':1}), "lacks.*'b'"), (dict(weights={0:1}), 'lacks'), (dict(weights=dict(a=1, b=1, c=1, x=1)), "'x'"), (dict(weights={9:1}), 'no class'),
    (dict(weights=[1,2]), r'shape \(2,\)'), (dict(weights=np.ones(n_all)), r'shape.*splits\[0\]'), (dict(weights=np.zeros(n_all-1)), 'not all 0'), (dict(weights=-np.ones(n_all-1)), 'negative'),
    (dict(weights=dict(a=-1, b=1, c=1)), 'negative'), (dict(weights=dict(a=1, b=1, c=1), q=.5), 'both'), (dict(labels=[0,1]), '2 entries'), (dict(labels=np.eye(n_all-1)), 'multi-label'),
    (dict(labels=['a']*(n_all-1)), 'class ids'), (dict(q=np.nan), 'q=nan')])
def test_arguments_that_are_refused(kw, msg):
    with pytest.raises(ValueError, match=f'(?s){msg}'): abc_dls().balanced(**kw)

def test_class_outside_the_vocab():
    ds = numbered()
    ds.vocab = ['a','b']
    with pytest.raises(ValueError, match='class id 2.*2 classes'): toy_dls(ds=ds).balanced()

# Copies of a balanced loader

@pytest.mark.parametrize('workers', [0, 2])
def test_same_stream_for_any_number_of_workers(workers):
    "Two epochs, in order, as the sampler draws them"
    b = toy_dls(drop_last=False, num_workers=workers).balanced(seed=6)
    s = ClassSampler(ys, seed=6)
    for _ in range(2): assert items(b.train)==s.draw(n_all).tolist()

def test_nothing_else_moves_the_stream():
    "Neither the global generators, nor one_batch of a copy, nor other loaders"
    a,b = (toy_dls(drop_last=False).balanced(seed=6).train for _ in range(2))
    items(a)
    items(b)
    torch.rand(3), np.random.rand(3), random.random()
    b.new().one_batch()
    b.new(shuffle=False).one_batch()
    items(toy_dls().balanced(seed=6).train)
    assert items(a)==items(b)

def test_set_seed_governs_without_a_seed():
    def run():
        set_seed(5)
        return toy_dls().balanced().train.get_idxs().tolist()
    assert run()==run()

def test_new_keeps_the_sampling():
    b = toy_dls().balanced(q=-1, seed=1).train
    for c in (b.new(), b.new(bs=3), b.new(dataset=b.dataset), b.new(num_workers=2), b.new().new()):
        assert type(c) is BalancedDL and c.sampler is not b.sampler
        np.testing.assert_allclose(c.sampler.probs, class_probs(n_k, -1))
    assert b.new().get_idxs().tolist()==b.new().get_idxs().tolist()==b.get_idxs().tolist()
    assert b.new(shuffle=False).get_idxs()==list(range(n_all))
    assert type(b.new(cls=TfmdDL)) is TfmdDL and sorted(b.new(cls=TfmdDL).get_idxs())==list(range(n_all))

def test_other_data_do_not_inherit_it():
    b = toy_dls(drop_last=False).balanced(weights=np.arange(n_all)==0).train
    other = b.new(numbered(ys[:20]))
    assert type(other) is TfmdDL and sorted(items(other))==list(range(20))
    tab = tab_dls().balanced()
    assert type(tab.train.new(tab.valid.dataset)) is type(tab.valid)

def test_test_dl():
    b = abc_dls().balanced(weights=dict(a=0, b=0, c=1))
    for dl in (b.test_dl(range(30)), b.test_dl(range(30), with_labels=True)):
        assert type(dl) is TfmdDL and cat(o[0][:,0] for o in dl)==list(range(30))
    assert b.new_empty().train.n==0 and not isinstance(b.new_empty().train, BalancedDL)

class Echo(nn.Module):
    "Predictions that tell which item was seen"
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(1))
    def forward(self, x): return self.w*x.float().flatten(1).mean(1)[:,None].expand(-1, 4)

def echo(dls): return Learner(dls, Echo(), loss_func=nn.CrossEntropyLoss(), cbs=[])

@pytest.mark.parametrize('how', ['tta','get_preds'])
def test_predictions_of_the_training_set_align(how):
    "fastai's `WeightedDL` re-samples under `tta(ds_idx=0)` and shuffles targets against predictions; here every item is there, once and in order"
    b = abc_dls().balanced(seed=0)
    learn = echo(b)
    with learn.no_bar(), learn.no_logging(): preds,targs = learn.tta(ds_idx=0, n=2) if how=='tta' else learn.get_preds(ds_idx=0)
    assert targs.tolist()==get_labels(b).tolist()
    assert preds[:,0].tolist()==[float(i) for i in range(1, n_all)] # item 0 is for validation
    assert learn.dls.train is b.train and b.train.shuffle

def test_tta_of_images_aligns(pngs):
    "With random augmentation the training images still line up: their grey levels are 15 apart"
    b = from_folder(pngs).balanced(seed=0)
    learn = echo(b)
    with learn.no_bar(), learn.no_logging(): preds,targs = learn.tta(ds_idx=0, n=1)
    want = [np.asarray(PIL.Image.open(f)).mean()/255 for f in b.train_ds.items]
    np.testing.assert_allclose(preds[:,0], want, atol=1e-5)
    assert targs.tolist()==[int(y) for _,y in b.train_ds]

def test_show_batch(pngs):
    b = from_folder(pngs).balanced(seed=0)
    b.show_batch(max_n=2)
    b.train.show_batch(max_n=2, unique=True)
    assert sorted(set(b.train.get_idxs()))!=[0] and len(b.train.get_idxs())==12 # sampling is back after `unique`
    assert len(list(b.train))==len(b.train)

def test_one_batch():
    b = toy_dls().balanced(seed=2)
    x,_ = b.one_batch()
    assert cat([x[:,0]])==ClassSampler(ys, seed=2).draw(n_all)[:8].tolist()

def test_export(tmp_path):
    "A learner on balanced loaders predicts after loading, and its file is not larger than that of a plain one"
    def size(f):
        dls = f(block_abc.dataloaders(range(10_000, 13_000), bs=64, num_workers=0, device='cpu', path=tmp_path))
        learn = Learner(dls, nn.Linear(1,4), loss_func=CrossEntropyLossFlat())
        with learn.no_bar(), learn.no_logging(): learn.fit(1)
        learn.export('e.pkl')
        return (tmp_path/'e.pkl').stat().st_size
    assert abs(size(noop)-size(lambda d: d.balanced(seed=1)))<200
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        learn = load_learner(tmp_path/'e.pkl')
    with learn.no_bar(): assert learn.predict(10_005)[0] in 'abc'

class MyDL(BalancedDL): "A subclass that can be found by name"

@pytest.mark.parametrize('make', [lambda: toy_dls().balanced(seed=3).train, lambda: tab_dls().balanced(seed=3).train,
    lambda: toy_dls().train.new(cls=MyDL, sampler=ClassSampler(ys, seed=3), shuffle=True)], ids=['plain','tabular','subclass'])
def test_pickle(make):
    dl = make()
    back = pickle.loads(pickle.dumps(dl))
    assert type(back) is type(dl) and list(back.get_idxs())==list(dl.get_idxs())
    assert len(list(back))==len(list(dl))

# The class probabilities of a stream

@pytest.mark.parametrize('f,want', [
    (lambda d: d.train, n_k/84), (lambda d: d.balanced().train, [1/3]*3), (lambda d: d.balanced(q=-1).train, class_probs(n_k, -1)),
    (lambda d: d.balanced().train.new(shuffle=False), n_k/84),
    (lambda d: d.balanced(weights=ys+1.).train, n_k*[1,2,3]/112), (lambda d: d.balanced(weights={0:0,1:1,2:1}).train, [0,20/24,4/24]),
    (lambda d: d.balanced(labels=np.arange(n_all)%3).train, None), (lambda d: d.balanced(labels=np.minimum(ys, 1)).train, [.5, .5*20/24, .5*4/24]),
    (lambda d: WeightedDL(d.train_ds, bs=4, wgts=ys+1., shuffle=True), n_k*[1,2,3]/112),
    (lambda d: WeightedDL(d.train_ds, bs=4, wgts=ys+1., shuffle=False), n_k/84)],
    ids='plain balanced reversed unshuffled items mapping grouped coarser weighted weighted_unshuffled'.split())
def test_stream_probs(f, want):
    if want is None: want = [np.mean([(ys[np.arange(n_all)%3==g]==k).mean() for g in range(3)]) for k in range(3)]
    np.testing.assert_allclose(stream_probs(f(toy_dls()), n_k, ys), want, rtol=1e-9)

# The loader of pairs

def seeded(dl, seed=0):
    "`dl`, set to deliver one known epoch next"
    np.random.seed(seed)
    torch.manual_seed(seed)
    dl.rng = random.Random(seed)
    return dl

def partners(seed=0): return ClassSampler(ys, seed=seed).draw

kw0 = dict(bs=8, num_workers=0)
bases = dict(shuffled=lambda: TfmdDL(numbered(), shuffle=True, drop_last=True, **kw0), ordered=lambda: TfmdDL(numbered(), **kw0),
    balanced=lambda: toy_dls().balanced(seed=9).train, weighted=lambda: WeightedDL(numbered(), wgts=ys+1., shuffle=True, **kw0),
    partial=lambda: PartialDL(numbered(), partial_n=37, shuffle=True, **kw0), part=lambda: TfmdDL(numbered(), shuffle=True, n=50, **kw0),
    one=lambda: TfmdDL(numbered(), shuffle=True, bs=1, num_workers=0), large=lambda: TfmdDL(numbered(), shuffle=True, bs=1000, num_workers=0),
    transformed=lambda: TfmdDL(numbered(), shuffle=True, after_item=lambda o: o, after_batch=Halve(), **kw0))

@pytest.mark.parametrize('make', bases.values(), ids=bases)
def test_first_half_is_the_bare_loader(make):
    "Same batches in the same order; the other half are the partners, loaded and transformed alike"
    plain,dl = list(seeded(make())),seeded(make())
    paired = PairedDL(dl, partners())
    got = [(b, paired.pairs) for b in paired]
    assert len(got)==len(plain)==len(paired)==len(dl) and paired.n_inp==1
    want1 = ClassSampler(ys, seed=0).draw(sum(len(p) for _,p in got) + 84)
    for ((x,y,x1,y1),p),(px,py) in zip(got, plain):
        assert torch.equal(x, px) and torch.equal(y, py) and p.shape==(len(x),2) and len(x1)==len(x)
        scale = 2 if make is bases['transformed'] else 1
        assert (x[:,0]*scale).tolist()==p[:,0].tolist() and (x1[:,1]*scale/10).tolist()==pytest.approx(p[:,1].tolist())
        assert (ys[p]==np.stack([y,y1], 1)).all()
    i1 = np.concatenate([p[:,1] for _,p in got])
    assert i1.tolist()==want1[:len(i1)].tolist()

def test_tabular_pairs():
    dls = tab_dls()
    plain,dl = list(seeded(dls.train)),seeded(dls.train)
    labels = get_labels(dls)
    paired = PairedDL(dl, ClassSampler(labels, seed=0).draw)
    assert paired.n_inp==2
    n = 0
    for (cats,x,y,cats1,x1,y1),(pc,px,py) in zip(paired, plain):
        assert torch.equal(cats, pc) and torch.equal(x, px) and torch.equal(y, py)
        np.testing.assert_allclose(x1, dl.dataset.conts.values[paired.pairs[:,1]], rtol=1e-6)
        assert y1.flatten().tolist()==labels[paired.pairs[:,1]].tolist() and cats1.shape==cats.shape
        n += 1
    assert n==len(dl)

@pytest.mark.parametrize('name', ['shuffled','balanced','weighted','partial'])
def test_same_pairs_for_any_number_of_workers(name):
    def run(workers):
        dl = seeded(bases[name]().new() if name!='partial' else bases[name]())
        if name=='weighted': dl = bases[name]()
        dl.fake_l.num_workers = workers
        paired = PairedDL(seeded(dl), partners())
        got = [(b[0].numpy(), b[3].numpy(), paired.pairs) for b in paired]
        return [np.concatenate(o) for o in zip(*got)]
    for a,b in zip(run(0), run(2)): np.testing.assert_array_equal(a, b)

@pytest.mark.parametrize('workers', [0, 2])
def test_skipped_items_drop_their_pair(workers):
    "Whether item or partner; batches stay full, and halves in step"
    skip = [0,1,5,*np.flatnonzero(ys==2)[:2]]
    dl = TfmdDL(Numbered(skip=skip), bs=8, num_workers=workers, n=n_all)
    paired = PairedDL(dl, partners())
    got,sizes = [],[]
    for x,y,x1,y1 in paired:
        assert len(x)==len(x1)==len(y)==len(y1)==len(paired.pairs)
        np.testing.assert_array_equal(np.stack([x[:,0], x1[:,0]], 1), paired.pairs)
        np.testing.assert_array_equal(np.stack([y, y1], 1), ys[paired.pairs])
        got += paired.pairs.tolist()
        sizes.append(len(x))
    asked = list(zip(range(n_all), partners()(n_all).tolist()))
    want = [list(p) for p in asked if not set(p) & set(skip)]
    assert sorted(got)==sorted(want) and 40<len(want)<75
    if not workers: assert got==want and set(sizes[:-1])=={8}

def test_all_items_skipped(): assert list(PairedDL(TfmdDL(Numbered(skip=range(n_all)), bs=8, num_workers=0, n=n_all), partners()))==[]

class Count(ItemTransform):
    "Adds 1 in the first call, 2 in the second, ...: one number drawn per batch"
    def __init__(self): self.n = 0
    def encodes(self, b):
        self.n += 1
        return b[0]+1000*self.n,*b[1:]

def test_halves_are_transformed_apart():
    paired = PairedDL(TfmdDL(numbered(), bs=8, num_workers=0, after_batch=Count()), partners())
    for i,(x,_,x1,_) in enumerate(paired):
        np.testing.assert_array_equal(x[:,0], paired.pairs[:,0] + 1000*(2*i+1))
        np.testing.assert_array_equal(x1[:,0], paired.pairs[:,1] + 1000*(2*i+2))

def test_items_are_augmented_apart():
    "An item and its partner that is the same item get an item transform each"
    dl = TfmdDL(numbered(), bs=8, num_workers=0, after_item=Count())
    x,_,x1,_ = next(iter(PairedDL(dl, lambda n: np.arange(n))))
    assert not set(cat([x[:,0]])) & set(cat([x1[:,0]]))

def pin(o): return [pin(p) for p in o] if isinstance(o, tuple) else o

def test_pinned_batches():
    "Pinning has returned lists for tuples; transforms that want a tuple still get one"
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        dl = TfmdDL(numbered(), bs=8, num_workers=0, pin_memory=True, after_batch=Strict())
    paired = PairedDL(dl, partners())
    assert paired.pin_memory and paired.fake_l.pin_memory
    for b in paired.create_batches(paired.get_idxs()):
        x,y,x1,y1 = paired.after_batch(tuple(pin(b))) # as `DataLoader.__iter__` calls it
        np.testing.assert_array_equal(np.stack([x[:,0], x1[:,0]], 1), paired.pairs)

class Strict(Transform):
    def __call__(self, b, **kwargs):
        assert type(b) is tuple
        return b

def test_split_idx_reaches_the_wrapped_loader():
    "Training transforms run in training: the split of the data set is put on the transforms as the bare loader does"
    class TrainOnly(Transform):
        split_idx = 0
        def encodes(self, x:torch.Tensor): return x+1000
    dsets = Datasets(range(8), [[lambda i: tensor([float(i)])],[lambda i: i%2]], splits=[[0,1,2,3],[4,5,6,7]])
    for ds,on in [(dsets.train, True), (dsets.valid, False)]:
        dl = TfmdDL(ds, bs=2, num_workers=0, after_item=TrainOnly(), after_batch=TrainOnly())
        x,_,x1,_ = next(iter(PairedDL(dl, lambda n: np.zeros(n, dtype=int))))
        assert (x>=1000).all()==(x1>=1000).all()==on

@pytest.mark.parametrize('n_inp', [1, 2])
def test_several_inputs(n_inp):
    dsets = Datasets(range(8), [[lambda i: tensor([float(i)])],[lambda i: tensor([i*2.])],[lambda i: i%2]], n_inp=n_inp)
    paired = PairedDL(TfmdDL(dsets, bs=4, num_workers=0), lambda n: np.arange(n)[::-1])
    b = next(iter(paired))
    assert len(b)==6 and paired.n_inp==n_inp and b[4].flatten().tolist()==[14,12,10,8]

def test_new_is_of_the_wrapped_loader():
    "Whoever copies the training loader during an epoch gets the user's own kind"
    dl = toy_dls().balanced().train
    assert type(PairedDL(dl, partners()).new(shuffle=False)) is BalancedDL

@pytest.mark.parametrize('f,msg', [(lambda: torch.utils.data.DataLoader(numbered()), 'from_dsets'), (lambda: TfmdDL(numbered(), bs=None), 'already made'), (lambda: TfmdDL([], bs=4), 'no items')])
def test_pairs_refuse(f, msg):
    with pytest.raises(ValueError, match=msg): PairedDL(f(), partners())

@pytest.mark.parametrize('world_size', [1, 2, 3])
def test_distributed(distributed, world_size):
    "The ranks share out the pairs of an epoch, each with its own partners, padded to equal length"
    def run(rank):
        paired = PairedDL(seeded(bases['shuffled']()), partners())
        ddl = distributed.DistributedDL(paired, rank=rank, world_size=world_size)
        return [(cat([x[:,0]]), cat([x1[:,0]]), paired.pairs.T.tolist()) for x,_,x1,_ in ddl]
    whole = PairedDL(seeded(bases['shuffled']()), partners())
    whole.randomize() # as at the start of an epoch
    one = [tuple(o) for o in whole.get_idxs().tolist()]
    per = -(-n_all//world_size)
    padded = (one*2)[:per*world_size]
    for rank in range(world_size):
        got = run(rank)
        for x,x1,p in got: assert [x,x1]==p
        mine = padded[rank*per:(rank+1)*per]
        assert [o for x,x1,_ in got for o in zip(x, x1)]==mine[:len(mine)//8*8]

def test_a_resampled_loader():
    "Other probabilities, the generator of the sampler that is there, and nothing that stays"
    y = np.repeat([0,1,2], [40,8,2])
    ds = TensorDataset(torch.arange(50.)[:,None], tensor(y))
    base = lambda: DataLoaders.from_dsets(ds, ds, bs=5, num_workers=0, device='cpu').balanced(q=1, seed=0).train
    a,b = base(),base()
    b.sampler.probs = [.1,.2,.7]
    drawn = [torch.cat([o[1] for o in ResampledDL(a, [.1,.2,.7])]) for _ in range(2)]
    assert all(torch.equal(o, torch.cat([o[1] for o in b])) for o in drawn) and not torch.equal(*drawn)
    assert np.allclose(a.sampler.probs, [.8,.16,.04]) and np.allclose(stream_probs(ResampledDL(a, [0,1,0]), [40,8,2], y), [0,1,0])
    with pytest.raises(ValueError, match='probs has shape'): ResampledDL(a, [.5,.5])

def test_a_wrapped_loader_takes_nothing_over():
    "Neither what a stopped iteration has left on the loader, nor an attribute `it` of the data set; the data set's other attributes are reached as in fastai"
    class Set(torch.utils.data.Dataset):
        it,vocab = 'mine',['a','b']
        def __len__(self): return 32
        def __getitem__(self, i): return torch.zeros(2),i%2
    dl = TfmdDL(Set(), bs=8, num_workers=0)
    next(iter(dl))
    assert hasattr(dl, 'it')
    paired = PairedDL(dl, partners())
    assert len(list(paired))==4 and paired.vocab==['a','b'] and not hasattr(paired, 'it') and not hasattr(paired, 'nothing')

def test_what_a_worker_gets_can_be_pickled():
    "Not what draws the partners, which may hold a Learner"
    paired = PairedDL(TfmdDL(TensorDataset(torch.zeros(16,2), torch.zeros(16)), bs=8, num_workers=0), lambda n: np.zeros(n, dtype=int))
    paired.one_batch()
    copy = pickle.loads(pickle.dumps(paired))
    assert not hasattr(copy, 'draw') and copy.bs==8 and len(list(copy.create_batches(np.zeros((16,2), dtype=int))))==2
