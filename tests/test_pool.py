"Partners from memory: places, contents, draws, workers, resuming, bounds, exports, refusals."
import pickle
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from scipy import stats
from fastai.basics import Callback, CrossEntropyLossFlat, DataLoaders, IntToFloatTensor, L, Learner, Normalize, TensorImage
from fastai.basics import TfmdDL, Transform, nn, noop, set_seed
from fastai.callback.all import ProgressCallback
from fastai.data.load import SkipItemException
from fastai.vision.augment import Flip
from balmix_fastai.data import PairedDL
from balmix_fastai.mixers import BalancedCutMix, BalancedManifoldMixUp, ReMix, UniMix
from balmix_fastai.mixup import BalancedMixUp
from balmix_fastai.pool import PartnerPool, PooledDL, fill_level
from balmix_fastai.run import Checkpoint
from balmix_fastai.sampling import ClassSampler, class_probs

counts = np.array([400,150,40,6])
y = np.random.default_rng(0).permutation(np.repeat(np.arange(4), counts))
n_all = len(y)

class Items:
    "Item i is (i, its read number, noise), so that what is drawn can be traced"
    def __init__(self, shape=(2,2), skip=()): self.shape,self.skip,self.reads = shape,set(skip),0
    def __len__(self): return n_all
    def __getitem__(self, i):
        if i in self.skip: raise SkipItemException
        self.reads += 1
        return torch.full(self.shape, float(i)),torch.tensor(int(y[i]))

def batch(idxs, version=0.): return torch.stack([torch.tensor([float(i), version]) for i in idxs]),torch.as_tensor(y[idxs])
def pool_of(places, seed=0, labels=y):
    "A pool with room for about so many items of 16 bytes"
    res = PartnerPool(labels, ClassSampler(labels, seed=seed), places*16/2**20)
    res.start((torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64)))
    return res

@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), st.integers(0, 200))
def test_fill_level_is_water_filling(n, total):
    "Against filling place by place, the class with the fewest places first"
    n = np.array(n)
    if total<(n>0).sum():
        with pytest.raises(ValueError, match='fewer than'): fill_level(n, total)
        return
    got = fill_level(n, total)
    limit = max(l for l in range(51) if np.minimum(n, l).sum()<=total)
    assert got.tolist()==np.minimum(n, limit).tolist()

@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(4, 200), st.integers(1, 90), st.booleans())
def test_contents_stay_in_step(seed, places, bs, repeat):
    "Whatever is added: each place holds the newest version of its item, of its class; small classes lose nothing; memory is bounded"
    rng,pool,newest = np.random.default_rng(seed),pool_of(places),{}
    for v in range(12):
        idxs = rng.choice(n_all, bs, replace=repeat)
        pool.add(batch(idxs, v), idxs)
        newest.update({int(i): v for i in idxs})
    x,t = pool.parts
    for k,(a,m) in enumerate(zip(pool._first, pool.places)):
        inside = pool._item[a:a+m]
        h = pool.held[k]
        assert (inside[:h]>=0).all() and (inside[h:]<0).all() and (y[inside[:h]]==k).all() and (t[a:a+h]==k).all()
        if m==counts[k]: assert set(inside[:h])=={i for i in newest if y[i]==k}
    at = np.flatnonzero(pool._item>=0)
    assert x[at,0].tolist()==pool._item[at].tolist() and x[at,1].tolist()==[newest[i] for i in pool._item[at]]
    assert (pool._place>=0).sum()==len(at) and (pool._place[pool._item[at]]==at).all()
    assert pool.nbytes<=pool.mb*2**20

def test_a_large_class_is_a_moving_window():
    "After one pass in order each class holds its last items; after another, again, where the class has items for two windows"
    pool = pool_of(100)
    assert pool.places.tolist()==[31,31,31,6]
    for classes in (range(4), range(2)):
        for i in range(0, n_all, 7): pool.add(batch(np.arange(i, min(i+7, n_all))), np.arange(i, min(i+7, n_all)))
        for k in classes:
            want = np.flatnonzero(y==k)[-pool.places[k]:]
            assert set(pool._item[pool._first[k]:pool._first[k]+pool.places[k]])==set(want)

@pytest.mark.parametrize('q', [0., .5, 1.])
def test_draws_follow_the_classes_and_then_the_items(q):
    "Chi-square at 1e-6 of class frequencies, and of items within a class"
    pool = pool_of(200, seed=3)
    pool.sampler.probs = class_probs(counts, q)
    for i in range(0, n_all, 32): pool.add(batch(np.arange(i, min(i+32, n_all))), np.arange(i, min(i+32, n_all)))
    (x,t),idxs = pool.draw(20000)
    assert x[:,0].tolist()==idxs.tolist() and t.tolist()==y[idxs].tolist()
    assert stats.chisquare(np.bincount(t, minlength=4), 20000*class_probs(counts, q)).pvalue>1e-6
    for k in range(4):
        _,n = np.unique(idxs[y[idxs]==k], return_counts=True)
        assert len(n)==pool.held[k] and stats.chisquare(n).pvalue>1e-6

def test_first_items_are_rare_ones_whole_and_some_of_each():
    pool = pool_of(500)
    idxs = pool.first_items(.1)
    n = np.bincount(y[idxs], minlength=4)
    assert len(set(idxs))==len(idxs) and n.tolist()==fill_level(counts, 59).tolist()==[17,17,17,6]
    assert np.bincount(y[pool.first_items(0)], minlength=4).tolist()==[1,1,1,1]

def quiet(dls, model, cbs=None, path=None):
    "A learner that shows nothing"
    learn = Learner(dls, model, loss_func=CrossEntropyLossFlat(), cbs=cbs, path=path)
    learn.remove_cb(ProgressCallback).logger = noop
    return learn

def learner(cbs=None, bs=32, workers=0, ds=None, path=None, after_batch=None, drop_last=True):
    set_seed(0)
    ds = ds or Items()
    train = TfmdDL(ds, bs=bs, shuffle=True, drop_last=drop_last, num_workers=workers, after_batch=after_batch)
    return quiet(DataLoaders(train, TfmdDL(Items(), bs=64)), nn.Sequential(nn.Flatten(), nn.Dropout(.2), nn.Linear(4, 4)), cbs, path)

class Watch(Callback):
    "What the model gets, from which items"
    order = 1
    def __init__(self, mixer): self.mixer,self.x,self.pairs = mixer,[],[]
    def before_batch(self):
        if not self.training or self.mixer._paired is None: return
        self.x.append(self.xb[0].clone())
        self.pairs.append(self.mixer._paired.pairs.copy())

def watched(n_epoch=2, workers=0, start_epoch=0, mixer=None, cbs=None, **kw):
    cb = mixer or BalancedMixUp(.4, labels=y, seed=1, partners='pool')
    w = Watch(cb)
    learn = learner([cb, w], workers=workers, **kw)
    learn.fit(n_epoch, 1e-3, start_epoch=start_epoch, cbs=cbs)
    return learn,cb,w

def test_what_is_mixed_is_the_item_and_its_partner():
    _,cb,w = watched()
    lams = iter(cb.lams)
    for x,p in zip(w.x, w.pairs):
        lam = next(lams)
        assert torch.allclose(x[:,0,0], torch.as_tensor((1-lam)*p[:,0]+lam*p[:,1], dtype=torch.float32), atol=1e-3)

def test_the_training_stream_is_the_loaders_own():
    "Order, length and drop_last of plain training, and of partners from the loader"
    _,_,w = watched()
    plain = learner()
    order = []
    class Order(Callback):
        def before_batch(self):
            if self.training: order.append(self.xb[0][:,0,0].tolist())
    plain.fit(2, 1e-3, cbs=Order())
    assert [p[:,0].tolist() for p in w.pairs]==order
    _,_,l = watched(mixer=BalancedMixUp(.4, labels=y, seed=1))
    assert [p[:,0].tolist() for p in w.pairs]==[p[:,0].tolist() for p in l.pairs]

def test_partners_are_balanced():
    "z below 5 for each class, over 40 epochs"
    _,cb,_ = watched(40)
    n = cb.partner_counts
    assert n.sum()==40*(n_all//32)*32 and np.abs((n-n.sum()/4)/np.sqrt(n.sum()*3/16)).max()<5

def test_reads_every_item_once_and_a_tenth_beforehand():
    ds,plain = Items(),Items()
    watched(3, ds=ds, drop_last=False)
    learner(ds=plain, drop_last=False).fit(3, 1e-3)
    assert ds.reads-plain.reads==fill_level(counts, n_all//10).sum()+1 # and one item is looked at for its size

def test_workers_and_searches_change_nothing():
    _,_,a = watched()
    _,_,b = watched(workers=2)
    cb = BalancedMixUp(.4, labels=y, seed=1, partners='pool')
    w = Watch(cb)
    learn = learner([cb, w])
    learn.lr_find(show_plot=False, num_it=5)
    w.pairs.clear()
    set_seed(0)
    learn.fit(2, 1e-3)
    assert [o.tolist() for o in a.pairs]==[o.tolist() for o in b.pairs]
    assert a.pairs[0][:,1].tolist()==w.pairs[0][:,1].tolist() and cb.partner_counts.sum()==2*(n_all//32)*32

def test_small_pools_still_balance():
    "Room for 20 items: the window is short, the classes are not affected"
    item = Items()[0]
    size = item[0].nbytes+item[1].nbytes
    _,cb,w = watched(30, mixer=BalancedMixUp(.4, labels=y, seed=1, partners='pool', pool_mb=20*size/2**20))
    n = cb.partner_counts
    assert np.abs((n-n.sum()/4)/np.sqrt(n.sum()*3/16)).max()<5
    assert len(set(np.concatenate(w.pairs)[:,1]))>n_all//2, 'the window must move'

def test_resumed_training_has_the_same_partners(tmp_path):
    "Interrupted after two of four epochs, checkpointed, and gone on with in a new learner"
    class Stop(Callback):
        order = 70
        def after_epoch(self):
            if self.epoch==1: raise KeyboardInterrupt
    for o in ('whole','cut'): (tmp_path/o).mkdir()
    whole,_,a = watched(4, cbs=Checkpoint(tmp_path/'whole', 'valid_loss'))
    with pytest.raises(KeyboardInterrupt): watched(4, cbs=[Checkpoint(tmp_path/'cut', 'valid_loss'), Stop()])
    cb = BalancedMixUp(.4, labels=y, seed=1, partners='pool')
    w,ckpt = Watch(cb),Checkpoint(tmp_path/'cut', 'valid_loss')
    learn = learner([cb, w])
    start = ckpt.load(learn)
    learn.fit(4, 1e-3, start_epoch=start, cbs=ckpt)
    n = n_all//32
    assert [o.tolist() for o in w.pairs]==[o.tolist() for o in a.pairs[2*n:]]
    for p,r in zip(learn.model.parameters(), whole.model.parameters()): assert torch.equal(p, r)

def test_the_pool_never_reaches_an_export(tmp_path):
    "Not in the middle of a fit, and after it the memory is given back"
    cb = BalancedMixUp(.4, labels=y, seed=1, partners='pool')
    set_seed(0)
    ds = Big()
    learn = quiet(DataLoaders(TfmdDL(ds, bs=32, shuffle=True), TfmdDL(ds, bs=64)), nn.Sequential(nn.Flatten(), nn.Linear(64*64, 4)), cb)
    seen = []
    class Look(Callback):
        def after_train(self): seen.append((cb._pool, len(pickle.dumps({k:v for k,v in cb.__getstate__().items() if k!='learn'}))))
    learn.fit(2, 1e-3, cbs=Look())
    assert seen[0][0].nbytes==n_all*(64*64*4+8) and seen[0][1]<2_000 and cb._pool is None

def test_a_copy_of_the_mixer_pickles():
    cb = pickle.loads(pickle.dumps(BalancedMixUp(partners='pool', pool_mb=3)))
    assert cb.partners=='pool' and cb.pool_mb==3

@pytest.mark.parametrize('mixer', [lambda: ReMix(labels=y, seed=0, partners='pool'), lambda: BalancedMixUp(.4, q=lambda p: 1-p, labels=y, seed=0, partners='pool'),
    lambda: BalancedMixUp(.4, labels=y, seed=0, partners='pool', start=.3, stop=.7), lambda: BalancedMixUp(.4, labels=y, seed=0, per_item=True, partners='pool')])
def test_every_mixer_can_use_it(mixer):
    cb = mixer()
    learn,_,_ = watched(4, mixer=cb)
    assert cb.partner_counts.sum()>0 and np.isclose(cb.prior.sum(), 1)

def test_cutmix_from_the_pool():
    class Images(Items):
        def __getitem__(self, i): return torch.full((3,8,8), float(i)),torch.tensor(int(y[i]))
    cb = BalancedCutMix(p=1., labels=y, seed=0, partners='pool', start=0., stop=1.)
    w = Watch(cb)
    set_seed(0)
    dls = DataLoaders(TfmdDL(Images(), bs=32, shuffle=True), TfmdDL(Images(), bs=64))
    quiet(dls, nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), [cb, w]).fit(1, 1e-6)
    for x,p in zip(w.x, w.pairs):
        for img,(i,j) in zip(x, p): assert set(img.unique().tolist())<={float(i), float(j)}

def test_batch_transforms_see_items_as_loaded():
    "The pool holds what the transforms have not seen; both halves pass them, each by itself"
    calls = []
    class Shift(Transform):
        def encodes(self, x:torch.Tensor):
            if x.is_floating_point(): calls.append(len(x))
            return x+1000 if x.is_floating_point() else x
    _,cb,w = watched(after_batch=Shift())
    lams = iter(cb.lams)
    for x,p in zip(w.x, w.pairs):
        lam = next(lams)
        assert torch.allclose(x[:,0,0], torch.as_tensor((1-lam)*p[:,0]+lam*p[:,1]+1000, dtype=torch.float32), atol=1e-2)

def test_skipped_items_are_left_out():
    skip = np.flatnonzero(y==0)[:50]
    _,cb,w = watched(2, ds=Items(skip=skip))
    assert not set(np.concatenate(w.pairs).ravel()) & set(skip)

class Big(Items):
    def __getitem__(self, i): return torch.full((64,64), i*1.),torch.tensor(int(y[i]))

class Ragged(Items):
    def __getitem__(self, i): return torch.zeros(2, 2+int(i>=len(self)//2)),torch.tensor(int(y[i]))

@pytest.mark.parametrize('ds,kw,says', [(Items(skip=np.flatnonzero(y==3)), {}, 'Class 3 has 6 items'), (Items(skip=range(n_all)), {}, 'skipped the first 100'),
    (Items((64,64)), dict(pool_mb=.05), 'pool_mb=1 or more'), (Ragged(), {}, 'Resize')])
def test_what_cannot_work_is_refused(ds, kw, says):
    cb = BalancedMixUp(.4, labels=y, seed=1, partners='pool', **kw)
    set_seed(0)
    dls = DataLoaders(TfmdDL(ds, bs=1 if isinstance(ds, Ragged) else 32, shuffle=True), TfmdDL(ds, bs=64))
    learn = quiet(dls, nn.Linear(2, 2), cb)
    with pytest.raises(ValueError, match=says): learn.fit(1, 1e-3)

def test_nested_batches_are_refused():
    class Nested(Items):
        def __getitem__(self, i): return (torch.zeros(2), torch.zeros(3)),torch.tensor(int(y[i]))
    pool = PartnerPool(y, ClassSampler(y, seed=0), 1)
    with pytest.raises(ValueError, match="partners='loader'"): list(PooledDL(TfmdDL(Nested(), bs=8), pool))

@pytest.mark.parametrize('kw,says', [(dict(partners='memory'), 'partners='), (dict(pool_mb=0), 'pool_mb=0'), (dict(pool_mb=float('nan')), 'pool_mb=nan'), (dict(pool_mb='1'), 'pool_mb')])
def test_bad_arguments(kw, says):
    with pytest.raises(ValueError, match=says): BalancedMixUp(**kw)

def test_a_pool_of_other_settings_is_refused():
    a,b = pool_of(50),pool_of(60)
    with pytest.raises(ValueError, match='same data'): a.restore(b.state_dict())

def images(stats=True, size=12, k=3, aug=()):
    "Byte images in memory, with the batch transforms of fastai"
    rng = np.random.default_rng(0)
    x = [TensorImage(torch.as_tensor(o)) for o in rng.integers(0, 256, (n_all,k,size,size), dtype=np.uint8)]
    tfms = [IntToFloatTensor(), *aug, *([Normalize.from_stats([.4,.5,.6][:k], [.2,.3,.1][:k], cuda=False)] if stats else [])]
    return [TfmdDL(L(zip(x, torch.as_tensor(y))), bs=32, shuffle=s, after_batch=tfms) for s in (True, False)]

class Late(Callback):
    "The batch that the model gets, and the same one made of transformed halves"
    order = 1
    def __init__(self, mixer): self.mixer,self.got,self.raw = mixer,[],[]
    def before_batch(self):
        if not self.training: return
        self.got.append(self.xb[0].clone())
        self.raw.append(self.mixer._paired is not None and self.mixer._paired.is_raw)

def late_run(mixer, slow=False, **kw):
    set_seed(0)
    k = kw.get('k', 3)
    late = Late(mixer)
    dls = DataLoaders(*images(**kw))
    learn = quiet(dls, nn.Sequential(nn.Flatten(), nn.Linear(144*k, 4)), [mixer, late])
    if slow: dls.train.after_batch.add(Slow())
    learn.fit(2, 1e-3)
    return late,learn

class Slow(Transform):
    "Does nothing, but is not known to do nothing"
    order = 1000

@pytest.mark.parametrize('partners', ['loader','pool'])
@pytest.mark.parametrize('mixer', [lambda **kw: BalancedMixUp(.4, **kw), lambda **kw: BalancedMixUp(.4, per_item=True, **kw),
    lambda **kw: BalancedMixUp(.4, stop=.5, **kw), lambda **kw: ReMix(**kw), lambda **kw: UniMix(**kw), lambda **kw: BalancedManifoldMixUp(.4, **kw),
    lambda **kw: BalancedCutMix(p=.7, start=0., stop=1., **kw)])
def test_mixing_before_the_transforms_is_mixing_after_them(mixer, partners):
    "To the rounding of floats; `Slow` sends the batches through the transforms first"
    fast,a = late_run(mixer(labels=y, seed=1, partners=partners))
    slow,b = late_run(mixer(labels=y, seed=1, partners=partners), slow=True)
    assert all(fast.raw[:n_all//32]) and not any(slow.raw) and len(fast.got)==len(slow.got)
    for p,q in zip(fast.got, slow.got): assert type(p) is type(q) and torch.allclose(p, q, atol=2e-5), (p-q).abs().max()
    for p,q in zip(a.model.parameters(), b.model.parameters()): assert torch.allclose(p, q, atol=1e-4)

@pytest.mark.parametrize('kw,raw', [(dict(stats=False), True), (dict(k=1), True), (dict(aug=[Flip(p=.5)]), False)])
def test_which_transforms_can_wait(kw, raw):
    late,_ = late_run(BalancedMixUp(.4, labels=y, seed=1), **kw)
    slow,_ = late_run(BalancedMixUp(.4, labels=y, seed=1), slow=True, **kw)
    assert all(o==raw for o in late.raw)
    for p,q in zip(late.got, slow.got): assert torch.allclose(p, q, atol=2e-5)

def test_a_batch_that_is_not_mixed_is_the_loaders_own():
    "Of epochs outside of the window, and with the transforms done late inside of it"
    class Zero(BalancedMixUp):
        def draw_lam(self, bs): return None
    late,learn = late_run(Zero(.4, labels=y, seed=1))
    assert all(late.raw)
    set_seed(0)
    train,_ = images()
    plain = [b[0].clone() for _ in range(2) for b in train]
    assert len(plain)==len(late.got)
    for p,q in zip(late.got[:n_all//32], plain): assert torch.allclose(p, q, atol=2e-5)

def test_pairs_read_by_hand_are_transformed():
    train,_ = images()
    x,_,x1,_ = PairedDL(train, ClassSampler(y, seed=0).draw).one_batch()
    assert x.is_floating_point() and x1.is_floating_point() and x.abs().max()<7
