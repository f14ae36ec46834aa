"""Whatever is passed, the public functions give a right answer or an error that names the argument; never a wrong answer, and never an error from somewhere inside.
What is good input must be accepted, in each form that users have it in, with the value that a formula written out by hand gives."""
import math
import numpy as np, pandas as pd, pytest, torch
from hypothesis import given, settings, strategies as st
from fastai.basics import L, TfmdDL, tensor
from scipy.stats import binomtest
from balmix_fastai.sampling import *
from balmix_fastai.data import get_labels
from balmix_fastai.flexible import *
from balmix_fastai.losses import *
from balmix_fastai.metrics import *
from balmix_fastai.mixers import *
from balmix_fastai.mixup import BalancedMixUp
from balmix_fastai.pool import fill_level
from balmix_fastai.posthoc import *
from balmix_fastai.prior import imbalance_slope
from balmix_fastai.report import holm, wilson
from balmix_fastai.schedule import *

odd = st.one_of(st.none(), st.booleans(), st.integers(-3, 10**19), st.floats(), st.text(max_size=2), st.complex_numbers(), st.sampled_from([[], {}, object()]))
number = st.one_of(st.floats(-3, 3), st.sampled_from([0,1,.5,.9999,1e-300,1e300,-1e300,np.float32(.3),np.int64(1)]), odd)
whole = st.one_of(st.integers(0, 60), st.sampled_from([0,0,1,10**6,10**15,2**63,10**25]))
row = st.lists(whole, max_size=7)
odds = st.lists(odd, max_size=4)
array = st.one_of(row, row.map(np.array), st.lists(st.floats(1e-6, 1e6), max_size=5), odds, odds.map(lambda o: np.array(o, dtype=object)),
    st.lists(st.integers(-2, 5), max_size=5), row.map(lambda o: [o]), st.lists(st.sampled_from('abc0'), min_size=1, max_size=4), odd)
fuzz = lambda *args: lambda f: settings(max_examples=40, deadline=None)(given(*args)(f))

def tried(f, *names):
    "What `f` returns, or `None` where it has refused with a message on one of its arguments"
    with np.errstate(all='ignore'):
        try: return f()
        except ValueError as e: assert any(n in str(e) for n in names), f"the error names none of {names}: {e}"

def is_share(p, counts):
    "Does `p` hold finite shares that sum to 1, none of them of an absent class?"
    n = np.asarray(counts, dtype=np.float64)
    return p.shape==n.shape and np.isfinite(p).all() and (p>=0).all() and np.isclose(p.sum(), 1) and not p[n==0].any()

@fuzz(array, number)
def test_class_probs(counts, q):
    p = tried(lambda: class_probs(counts, q), 'counts', 'q=')
    if p is None: return
    assert is_share(p, counts)
    n,q = np.asarray(counts, dtype=np.float64),float(q)
    on = p>1e-290 # below, floats have fewer digits
    np.testing.assert_allclose(np.log(p[on])-np.log(p[on]).max(), q*np.log(n[on])-(q*np.log(n[on])).max(), rtol=1e-9, atol=1e-9)

@fuzz(array, number)
def test_effective_number(counts, beta):
    p = tried(lambda: effective_number_probs(counts, beta), 'counts', 'beta')
    assert p is None or is_share(p, counts)
    if p is not None and max(np.asarray(counts, dtype=float))<100:
        w = np.array([sum(float(beta)**i for i in range(int(n))) if float(n).is_integer() else np.nan for n in np.asarray(counts, dtype=float)])
        n = np.asarray(counts, dtype=float)
        if not np.isnan(w).any(): np.testing.assert_allclose(p[n>0], (n/w)[n>0]/(n/w)[n>0].sum(), rtol=1e-6)

@fuzz(array, number)
def test_progressive(counts, t):
    p = tried(lambda: progressive_probs(counts, t), 'counts', 't=')
    assert p is None or is_share(p, counts)

@fuzz(array, number, number)
def test_mixup_prior(counts, alpha, q):
    p = tried(lambda: mixup_prior(counts, alpha, q), 'counts', 'alpha', 'q=')
    assert p is None or is_share(p, counts)

@fuzz(array, odd)
def test_class_counts(labels, n_classes):
    n = tried(lambda: class_counts(labels, n_classes), 'labels', 'n_classes')
    if n is not None: assert n.tolist()==[sum(int(o)==k for o in labels) for k in range(len(n))] and n.sum()==len(labels)

@fuzz(array, number, st.one_of(st.none(), array))
def test_sampler(labels, q, probs):
    s = tried(lambda: ClassSampler(labels, q, probs, seed=0), 'labels', 'q=', 'counts', 'probs')
    if s is None: return
    idxs = s.draw(50)
    ids = np.asarray(labels, dtype=np.float64).astype(int)[idxs]
    assert is_share(s.probs, s.counts) and (s.probs[ids]>0).all()

@fuzz(array)
def test_labels_of_a_loader(labels):
    if not isinstance(labels, (list, np.ndarray)): return
    dl = TfmdDL(L((tensor(0.), o) for o in labels), bs=2)
    ys = tried(lambda: get_labels(dl), 'labels', 'label', 'target')
    assert ys is None or ys.tolist()==[int(np.ravel(o)[0]) for o in labels]

@fuzz(array, odd)
def test_fill_level(counts, total):
    m = tried(lambda: fill_level(counts, total), 'counts', 'total')
    if m is None: return
    n = np.asarray(counts, dtype=float)
    assert (m<=n).all() and m.sum()<=max(total, 0) and (m[n>0]>0).all() and (m.sum()==n.sum() or (m<n).sum()>total-m.sum())

@fuzz(array, number, number)
def test_class_weights(counts, beta, power):
    w = tried(lambda: class_weights(counts, beta, power), 'counts', 'beta', 'power')
    if w is None: return
    n = np.asarray(counts, dtype=float)
    assert np.isfinite(w).all() and (w>=0).all() and not w[n==0].any() and np.isclose(w[n>0].mean(), 1)

@fuzz(array, array, number)
def test_corrections(source, target, tau):
    p = np.array([[.7,.2,.1],[.1,.1,.8]])
    for c in (tried(lambda: to_prior(source, target), 'source', 'target'), tried(lambda: adjust_logits(source, tau), 'prior', 'tau', 'bias')):
        if c is None or len(c.bias)!=3: continue
        q = c(p)
        assert np.isfinite(q).all() and np.allclose(q.sum(1), 1)

@fuzz(array, array)
def test_slope(share, counts):
    s = tried(lambda: imbalance_slope(share, counts), 'share', 'counts')
    assert s is None or isinstance(s, float)

@fuzz(array)
def test_shot_groups(counts):
    g = tried(lambda: shot_groups(counts), 'counts')
    assert g is None or g.tolist()==['many' if n>100 else 'few' if n<20 else 'medium' for n in np.asarray(counts)]

some_probs = st.integers(0, 99).map(lambda s: np.random.default_rng(s).dirichlet([.3]*3, 6))
probs = st.one_of(some_probs, st.sampled_from([np.eye(3), np.full((4,3), np.nan), np.ones((3,3))]), array)

@fuzz(probs, array)
def test_metrics(p, targs):
    "What is measured of probabilities is in its range, or not defined"
    for f in (imbalance_metrics, ece, macro_auprc, macro_auroc):
        m = tried(lambda: f(p, targs), 'probs', 'targs')
        for v in [] if m is None else m.values() if isinstance(m, dict) else [m]: assert np.isnan(v) or -1-1e-9<=v<=1+1e-9

losses = [SoftFocalLoss, ClassBalancedLoss, LogitAdjustedLoss, VSLoss, CDTLoss, LDAMLoss, SeesawLoss, EqualizationLoss, InfluenceBalancedLoss,
    LabelAwareSmoothingLoss, CostSensitiveLoss, SORDLoss]

@pytest.mark.parametrize('make', losses, ids=lambda o: o.__name__)
@fuzz(number, array)
def test_losses(make, v, counts):
    "A loss that can be made is a number for each item, of finite gradient, or refuses what it was told of the classes"
    loss = tried(lambda: make(v), *'gamma beta tau max_m p q lam head tail alpha scale start a s'.split())
    if loss is None: return
    def run():
        for k in ('counts','prior'):
            if k in loss.needs: setattr(loss, k, counts)
        z = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
        if 'features' in loss.needs: loss.features = torch.ones(5, 2)
        if 'progress' in loss.needs: loss.progress = .9
        res = loss(z, torch.tensor([0,1,2,0,1]))
        return res,torch.autograd.grad(res, z)[0]
    res = tried(run, 'counts', 'prior')
    if res is not None and abs(float(v))<100: assert torch.isfinite(res[0]) and torch.isfinite(res[1]).all()

mixers = dict(balanced=BalancedMixUp, remix=ReMix, mamix=MAMix, unimix=UniMix, cutmix=BalancedCutMix, manifold=BalancedManifoldMixUp)

@pytest.mark.parametrize('name', mixers)
@fuzz(number, number, number, number, odd)
def test_mixers_are_made_or_refused(name, alpha, q, start, stop, seed):
    kw = dict(start=start, stop=stop, seed=seed) if name=='unimix' else dict(q=q, start=start, stop=stop, seed=seed) # UniMix has a stream of its own
    cb = tried(lambda: mixers[name](alpha, **kw), 'alpha', 'q=', 'start', 'seed')
    if cb is not None: assert np.isfinite(cb.q) and 0<=cb.start<cb.stop<=1 and cb.alpha>0

@pytest.mark.parametrize('make', [DeferredResampling, DeferredReweighting], ids=lambda o: o.__name__)
@fuzz(number)
def test_schedules_are_made_or_refused(make, v):
    cb = tried(lambda: make(v), 'start')
    assert cb is None or 0<=cb.start<1

@fuzz(array)
def test_holm(p):
    adj = tried(lambda: holm(p), 'pvalues')
    if adj is None: return
    p = np.asarray(p, dtype=float)
    assert (np.isnan(adj)==np.isnan(p)).all() and (adj[~np.isnan(p)]>=p[~np.isnan(p)]-1e-12).all() and (adj[~np.isnan(p)]<=1).all()

@fuzz(number, number)
def test_wilson(k, n):
    ends = tried(lambda: wilson(k, n), 'k', 'n')
    if ends is not None: assert all(np.all(np.isnan(o) | (o>=0) & (o<=1)) for o in ends) and np.all(~(ends[0]>ends[1]))

@fuzz(array, number, whole)
def test_anchor_counts(counts, s, least):
    a = tried(lambda: anchor_counts(counts, s, least), 'counts', 's=', 'least=')
    if a is None: return
    n = np.asarray(counts, dtype=np.float64)
    assert a.shape==n.shape and (a<=n).all() and (a[n>=1]>0).all()

@fuzz(array, array, whole)
def test_query_counts(accs, left, n):
    q = tried(lambda: query_counts(accs, left, n), 'accs', 'left', 'n=')
    if q is None: return
    left = np.asarray(left, dtype=np.float64)
    assert (q>=0).all() and (q<=left).all() and q.sum()==min(n, left.sum())

@fuzz(array, array, number)
def test_difficulty_probs(accs, counts, floor):
    p = tried(lambda: difficulty_probs(accs, counts, floor), 'accs', 'counts', 'floor')
    assert p is None or is_share(p, counts)

@fuzz(array, array, array)
def test_nearest_to_mean(feats, labels, n):
    i = tried(lambda: nearest_to_mean(feats, labels, n), 'feats', 'labels', 'n ', 'n=')
    if i is not None: assert np.bincount(np.asarray(labels, dtype=int)[i], minlength=len(n)).tolist()==[int(o) for o in n]

@fuzz(odd, odd, odd, odd, odd, odd, odd)
def test_flexible_is_made_or_refused(s, warmup, patience, query, passes, p, seed):
    cb = tried(lambda: FlexibleSampling(s, warmup, patience, query, passes, p, seed=seed), 's=', 'warmup=', 'patience=', 'query=', 'passes=', 'p=', 'seed=')
    assert cb is None or 0<cb.s<=1 and 0<=cb.warmup<1 and 0<=cb.patience<1 and 0<cb.query<=1 and cb.passes>=2 and 0<cb.p<1

# ---- what must be accepted

forms = dict(list=list, tuple=tuple, array=np.array, floats=lambda o: np.array(o, dtype=np.float32), small=lambda o: np.array(o, dtype=np.uint16),
    tensor=torch.tensor, series=pd.Series, strided=lambda o: np.repeat(np.array(o), 2)[::2])
good_counts = st.lists(st.sampled_from([0,1,2,3,7,40,999,60_000]), min_size=1, max_size=7).filter(any)
form = st.sampled_from(sorted(forms))
unit = st.sampled_from([0,.25,.5,.9,.9999,np.float32(.5),np.float64(.1)])
power = st.sampled_from([-1,-.5,0,.3,1,2,np.float64(.7),np.int64(1)])
good = lambda *args: lambda f: settings(max_examples=60, deadline=None)(given(good_counts, form, *args)(f))

def shares(weights):
    "Weights over their sum, in plain Python"
    total = math.fsum(weights)
    return [w/total for w in weights]

def powers(n, q): return shares([float(o)**float(q) if o else 0. for o in n])
def effective(n, beta): return [math.fsum(float(beta)**i for i in range(o)) if o<2000 else (1-float(beta)**o)/(1-float(beta)) for o in n]

def close(a, b, rtol=1e-9): np.testing.assert_allclose(np.asarray(a, dtype=float), b, rtol=rtol, atol=1e-12)

@good(power)
def test_good_class_probs(n, f, q): close(class_probs(forms[f](n), q), powers(n, q))

@good(unit)
def test_good_progressive(n, f, t):
    close(progressive_probs(forms[f](n), t), [(1-float(t))*a+float(t)*b for a,b in zip(powers(n, 1), powers(n, 0))])

@good(unit)
def test_good_effective_number(n, f, beta):
    want = shares([c/e if c else 0 for c,e in zip(n, effective(n, beta))])
    close(effective_number_probs(forms[f](n), beta), want, 1e-6)

@good(st.sampled_from([1e-3,.1,.2,1,5,np.float32(.5)]), power)
def test_good_mixup_prior(n, f, alpha, q):
    e = float(alpha)/(float(alpha)+1)
    close(mixup_prior(forms[f](n), alpha, q), [(1-e)*a+e*b for a,b in zip(powers(n, 1), powers(n, q))])

@good(unit, st.sampled_from([0,.5,1,1.2]))
def test_good_class_weights(n, f, beta, power):
    w = [(1/e)**power if c else 0. for c,e in zip(n, effective(n, beta))]
    mean = math.fsum(w)/sum(map(bool, n))
    close(class_weights(forms[f](n), beta, power), [o/mean for o in w], 1e-6)

@good(st.integers(0, 300))
def test_good_fill_level(n, f, room):
    present = sum(map(bool, n))
    m = fill_level(forms[f](n), present+room).tolist()
    level = max(l for l in range(1, present+room+1) if sum(min(o, l) for o in n)<=present+room)
    assert m==[min(o, level) for o in n]

@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=30), form, st.integers(0, 3))
def test_good_labels(labels, f, more):
    "Counts, and a sampler that draws what it says: each class with a share draws, and of each item that has the label"
    k = max(labels)+1+more
    assert class_counts(forms[f](labels), k).tolist()==[labels.count(i) for i in range(k)]
    s = ClassSampler(forms[f](labels), q=0., n_classes=k, seed=0)
    close(s.probs, powers([labels.count(i) for i in range(k)], 0))
    per = 1/len(set(labels))
    close(s.item_probs(), [per/labels.count(o) for o in labels])
    assert {labels[i] for i in s.draw(2000)}==set(labels)
    dl = TfmdDL(L((tensor(0.), o) for o in labels), bs=2)
    assert get_labels(dl).tolist()==labels

@good(power)
def test_good_slope(n, f, q):
    "The slope of a power of the counts is the power"
    s = imbalance_slope(forms[f](powers(n, q)) if f not in ('small',) else powers(n, q), n)
    if len({o for o in n if o})<2: assert np.isnan(s)
    else: close(s, float(q), 1e-4)

@good(st.sampled_from([-1,0,.5,1,2]))
def test_good_corrections(n, f, tau):
    n = [*n, 3] # two classes or more
    p = np.random.default_rng(0).dirichlet([.5]*len(n), 5)
    counts = [o+1 for o in n]
    want = [shares([v/c**tau for v,c in zip(row, shares(counts))]) for row in p]
    close(adjust_logits(forms[f](counts), tau)(p), want, 1e-6)
    close(to_prior(forms[f](counts), forms[f](n))(p), [shares([v*t/c for v,t,c in zip(row, n, counts)]) for row in p], 1e-6)

@good()
def test_good_shot_groups(n, f): assert shot_groups(forms[f](n)).tolist()==['many' if o>100 else 'few' if o<20 else 'medium' for o in n]

@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 5), st.integers(1, 30))
def test_good_metrics(seed, k, n):
    rng = np.random.default_rng(seed)
    p,y = rng.dirichlet([.5]*k, n),rng.integers(0, k, n)
    for put in (lambda o: o, torch.tensor):
        m = imbalance_metrics(put(p), put(y))
        hits = [int(a==b) for a,b in zip(p.argmax(1), y)]
        close(m['accuracy'], sum(hits)/n)
        close(m['balanced_accuracy'], np.mean([np.mean([h for h,t in zip(hits, y) if t==c]) for c in set(y.tolist())]))

@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_good_holm(p):
    order,worst,want = sorted(range(len(p)), key=lambda i: p[i]),0,[0]*len(p)
    for r,i in enumerate(order):
        worst = max(worst, min(1, (len(p)-r)*p[i]))
        want[i] = worst
    close(holm(p), want)

@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_good_wilson(kn):
    low,high = wilson(*kn)
    want = binomtest(*kn).proportion_ci(method='wilson')
    close([low, high], [want.low, want.high], 1e-6)

@pytest.mark.parametrize('make', [o for o in losses if o is not LabelAwareSmoothingLoss], ids=lambda o: o.__name__)
def test_good_losses(make):
    "Made with their defaults, told counts in every form, they are the same number"
    z,y,res = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)),torch.tensor([0,1,2,0,1,2]),[]
    for f in forms.values():
        loss = make()
        for k in ('counts','prior'):
            if k in loss.needs: setattr(loss, k, f([50,30,20]))
        if 'features' in loss.needs: loss.features = torch.ones(6, 2)
        if 'progress' in loss.needs: loss.progress = .9
        if hasattr(loss, 'rng'): loss.rng = np.random.default_rng(0)
        res.append(float(loss(z, y)))
    assert np.isfinite(res).all() and np.allclose(res, res[0], rtol=1e-6)

@pytest.mark.parametrize('name', mixers)
@settings(max_examples=30, deadline=None)
@given(st.sampled_from([.1,1,2,np.float32(.5),np.int64(1)]), st.sampled_from([(0,1),(0.,.5),(.5,1.),(.25,.75)]), st.sampled_from([None,0,7,np.int64(3)]))
def test_good_mixers(name, alpha, window, seed):
    cb = mixers[name](alpha, start=window[0], stop=window[1], seed=seed)
    assert cb.alpha==alpha and (cb.start,cb.stop)==window and cb.seed==seed

@settings(max_examples=30, deadline=None)
@given(st.floats(0, .99))
def test_good_schedules(v): assert DeferredResampling(v).start==v and DeferredReweighting(v).start==v

@good(st.floats(.01, 1))
def test_good_anchor_counts(n, f, s):
    a = anchor_counts(forms[f](n), s)
    assert all((x>0)==(o>0) and x<=o for x,o in zip(a, n))

@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.,.2,.9,1.]), st.integers(0, 30)), min_size=1, max_size=6), st.integers(0, 60), form)
def test_good_query_counts(rows, n, f):
    accs,left = [a for a,_ in rows],[m for _,m in rows]
    if f=='small' or n==0: return # accuracies are no whole numbers
    q = query_counts(forms[f](accs), left, n)
    assert q.sum()==min(n, sum(left)) and all(x<=m for x,m in zip(q, left))

@settings(max_examples=30, deadline=None)
@given(st.sampled_from([.1,1.]), st.sampled_from([0,.3,.99]), st.sampled_from([.05,1]), st.integers(2, 20), st.sampled_from([.1,.9]),
    st.sampled_from([None,0,5]))
def test_good_flexible(s, share, query, passes, p, seed):
    cb = FlexibleSampling(s, share, share, query, passes, p, seed=seed)
    assert (cb.s, cb.warmup, cb.patience, cb.query, cb.passes, cb.p)==(s, share, share, query, passes, p)
