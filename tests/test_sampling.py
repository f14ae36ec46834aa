"sampling: distributions by chi-square, quotas, seeds and cuts, closed formulas, size."
import warnings
from copy import copy
from fractions import Fraction
import numpy as np, pytest, torch
from hypothesis import example, given, settings, strategies as st
from scipy import stats
from torch.utils.data import WeightedRandomSampler
from balmix_fastai.sampling import ClassSampler, class_counts, class_probs, effective_number_probs, mixup_prior, progressive_probs

n_k = np.array([0, 500, 3, 0, 60, 1, 0]) # classes 0, 3 and 6 are absent
p_min = 1e-6 # a right sampler fails one such test in a million

def shuffled(counts=n_k, seed=0): return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))

def chi_p(obs, p):
    "p-value of the counts `obs` under the probabilities `p`; what has none must not occur"
    obs,p = np.asarray(obs),np.asarray(p, dtype=float)
    assert obs[p==0].sum()==0
    return stats.chisquare(obs[p>0], obs.sum()*p[p>0]/p.sum()).pvalue

# class_counts

@given(st.lists(st.integers(0, 12), max_size=60), st.sampled_from(['int64','int8','uint8','uint16','uint64','float32','object']), st.integers(0, 4))
def test_counts(ys, dtype, more):
    res = class_counts(np.array(ys, dtype=dtype), max(ys, default=-1)+1+more)
    assert res.dtype==np.int64 and res.tolist()==[ys.count(k) for k in range(max(ys, default=-1)+1+more)]

@pytest.mark.parametrize('f', [list, tuple, np.array, torch.tensor])
def test_counts_of_what_people_hold(f): assert class_counts(f([2,0,2])).tolist()==[1,0,2]

def test_counts_of_a_data_frame():
    import pandas as pd
    assert class_counts(pd.Series([2,0,2], index=[7,8,9])).tolist()==[1,0,2]
    assert class_counts(pd.Series([2,0,2], dtype='Int64')).tolist()==[1,0,2]
    with pytest.raises(ValueError, match='class id'): class_counts(pd.Series([2,None,2], dtype='Int64'))

@pytest.mark.parametrize('bad,msg', [(['a','b'], 'class ids'), ([0,.5], 'class ids'), ([0,np.nan], 'class ids'), ([0,np.inf], 'class ids'), ([1,-1], 'negative'),
    ([[0,1]], r'shape \(1, 2\)'), (0, 'shape'), ([1j], 'class ids'), (np.array(['0','1'], dtype=object), 'class ids'), ([None,1], 'class ids')])
def test_counts_refuse(bad, msg):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        with pytest.raises(ValueError, match=msg): class_counts(bad)

# Probabilities

counts_st = st.lists(st.integers(0, 10**12), min_size=1, max_size=12).filter(any)
big_st = st.lists(st.sampled_from([0, 1, 2, 10**6, 10**15, 2**53, 1e300]), min_size=1, max_size=6).filter(any)

def check_probs(p, counts):
    assert p.dtype==np.float64 and p.shape==(len(counts),) and np.isfinite(p).all() and (p>=0).all() and (p[np.array(counts)==0]==0).all()
    assert p.sum()==pytest.approx(1, abs=1e-12)

@given(counts_st, st.sampled_from([-2, -1, 0, 1, 2, 3]))
def test_class_probs_of_integer_q_are_exact(counts, q):
    raw = [Fraction(n)**q if n else Fraction(0) for n in counts]
    p = class_probs(counts, q)
    check_probs(p, counts)
    np.testing.assert_allclose(p, [float(o/sum(raw)) for o in raw], rtol=1e-11)

@given(counts_st, st.floats(-3, 3))
def test_class_probs(counts, q):
    p,n = class_probs(counts, q),np.array(counts, dtype=float)
    check_probs(p, counts)
    a,b = np.flatnonzero(n)[[0,-1]]
    assert np.log(p[a]/p[b])==pytest.approx(q*np.log(n[a]/n[b]), abs=1e-9) # all that eq. 2 says

@given(big_st, st.sampled_from([-1e300, -1e4, -200, -1, -0., 0, 1, 200, 1e4, 1e300]))
@example([0,1000], -200)
def test_class_probs_do_not_overflow(counts, q):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        p = class_probs(counts, q)
    check_probs(p, counts)
    if abs(q)>=1e4: # the limit: all of it to the largest, or the smallest, classes
        n = np.array(counts, dtype=float)
        best = n==(n.max() if q>0 else n[n>0].min())
        np.testing.assert_allclose(p, best/best.sum(), atol=1e-12)

def test_reversed_sampling(): np.testing.assert_allclose(class_probs([4,0,1], -1), [.2,0,.8], rtol=1e-14)

@given(counts_st, st.one_of(st.just(0.), st.floats(1e-3, 1-1e-6)))
def test_effective_number(counts, beta):
    p = effective_number_probs(counts, beta)
    check_probs(p, counts)
    log_b = np.log1p(beta-1) if beta else -np.inf
    w = np.array([n/-np.expm1(n*log_b) if n else 0 for n in map(float, counts)]) # (1-beta) cancels
    np.testing.assert_allclose(p, w/w.sum(), rtol=1e-9)

@given(st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(any), st.floats(0, .999))
def test_effective_number_is_a_geometric_sum(counts, beta):
    w = [n/sum(beta**i for i in range(n)) if n else 0 for n in counts] # (1-beta^n)/(1-beta) written out
    np.testing.assert_allclose(effective_number_probs(counts, beta), np.array(w)/sum(w), rtol=1e-9)

@given(counts_st)
def test_effective_number_limits(counts):
    np.testing.assert_allclose(effective_number_probs(counts, 0), np.array(counts)/sum(counts), rtol=1e-12)
    small = [n%1000 for n in counts[1:]] + [1]
    np.testing.assert_allclose(effective_number_probs(small, 1-1e-10), class_probs(small, 0), rtol=1e-6)

def test_effective_number_limit():
    np.testing.assert_allclose(effective_number_probs([1000,0,3], 1-1e-12), [.5,0,.5], rtol=1e-6)
    np.testing.assert_allclose(effective_number_probs([1000,0,3], np.nextafter(1, 0)), [.5,0,.5], rtol=1e-6)

@given(counts_st, st.floats(0, 1))
def test_progressive(counts, t):
    p,k = progressive_probs(counts, t),sum(n>0 for n in counts)
    check_probs(p, counts)
    np.testing.assert_allclose(p, [(1-t)*n/sum(counts) + t/k*(n>0) for n in counts], rtol=1e-11)

@given(counts_st, st.floats(1e-6, 1e6), st.floats(-2, 2))
def test_prior(counts, alpha, q):
    p = mixup_prior(counts, alpha, q)
    check_probs(p, counts)
    np.testing.assert_allclose(p, (np.array(counts)/sum(counts) + alpha*class_probs(counts, q))/(1+alpha), rtol=1e-9, atol=1e-14)

def test_prior_is_the_mean_of_what_is_mixed():
    "Simulated label mass, by z-score"
    counts,alpha,n = np.array([80,15,5]),.3,200_000
    rng = np.random.default_rng(0)
    lam = rng.beta(alpha, 1, n)
    a,b = (np.eye(3)[rng.choice(3, n, p=class_probs(counts, q))] for q in (1,-.5))
    mass = (1-lam)[:,None]*a + lam[:,None]*b
    assert (np.abs(mass.mean(0)-mixup_prior(counts, alpha, -.5)) < 5*mass.std(0)/np.sqrt(n)).all()

@pytest.mark.parametrize('f,msg', [(lambda: class_probs([]), 'no item'), (lambda: class_probs([0]), 'no item'), (lambda: class_probs([[1]]), 'shape'),
    (lambda: class_probs([1,-1]), 'not negative'), (lambda: class_probs([1,np.inf]), 'finite'), (lambda: class_probs([1], np.nan), 'q=nan'), (lambda: class_probs([1], np.inf), 'q=inf'),
    (lambda: effective_number_probs([1], 1), 'beta=1'), (lambda: effective_number_probs([1], -.1), 'beta'), (lambda: effective_number_probs([1], np.nan), 'beta'),
    (lambda: progressive_probs([1], 1.01), 't=1.01'), (lambda: progressive_probs([1], np.nan), 't=nan'),
    (lambda: mixup_prior([1], 0), 'alpha=0'), (lambda: mixup_prior([1], np.inf), 'alpha=inf'), (lambda: mixup_prior([1], np.nan), 'alpha=nan'), (lambda: mixup_prior([1], -1), 'alpha=-1')])
def test_probs_refuse(f, msg):
    with pytest.raises(ValueError, match=msg): f()

# Drawing

ways = {'q0':dict(q=0.), 'q.5':dict(q=.5), 'q1':dict(q=1.), 'q-1':dict(q=-1), 'probs':dict(probs=[0,1,5,0,2,0,0])}

@pytest.mark.parametrize('stratified', [False, True])
@pytest.mark.parametrize('kw', ways.values(), ids=ways)
def test_distribution(kw, stratified):
    "Classes, and items within classes, of 60,000 draws"
    labels = shuffled()
    s = ClassSampler(labels, n_classes=7, seed=11, stratified=stratified, **kw)
    want = np.array(kw['probs'])/8 if 'probs' in kw else class_probs(n_k, kw['q'])
    np.testing.assert_allclose(s.probs, want)
    idxs = s.draw(60_000)
    assert idxs.dtype==np.int64 and idxs.shape==(60_000,)
    obs = np.bincount(labels[idxs], minlength=7)
    if not stratified: assert chi_p(obs, want)>p_min
    for k in np.flatnonzero(want): assert n_k[k]==1 or chi_p(np.bincount(idxs, minlength=len(labels))[labels==k], np.ones(n_k[k]))>p_min

def test_successive_draws_are_independent():
    "Pairs of neighbours, as cells of one chi-square; also that class and item are drawn apart"
    labels = shuffled([3,2,1])
    i = ClassSampler(labels, seed=5).draw(90_000).reshape(-1, 2)
    p = (1/3/np.array([3,2,1]))[labels]
    assert chi_p(np.bincount(i[:,0]*6 + i[:,1], minlength=36), np.outer(p, p).ravel())>p_min

@pytest.mark.parametrize('seed', range(3))
def test_same_distribution_as_torch(seed):
    "Two-sample chi-square against `WeightedRandomSampler` with the weights of the items"
    labels = shuffled([40,7,1,0,3])
    counts = np.bincount(labels, minlength=5)
    torch.manual_seed(seed)
    theirs = np.array(list(WeightedRandomSampler(list(1/counts[labels]), 50_000, replacement=True)))
    both = np.array([np.bincount(o, minlength=len(labels)) for o in (theirs, ClassSampler(labels, seed=seed).draw(50_000))])
    assert stats.chi2_contingency(both).pvalue>p_min

@settings(max_examples=60)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.integers(0, 400), st.integers(0, 2**31), st.booleans())
def test_only_items_that_are_there(labels, n, seed, stratified):
    idxs = ClassSampler(labels, n_classes=12, seed=seed, stratified=stratified).draw(n)
    assert len(idxs)==n and ((idxs>=0) & (idxs<len(labels))).all()

def test_extremes_of_the_generator():
    "The least and the largest uniform number stay within their class, and a class without probability is never met at the edge"
    class Edge:
        def __init__(self, u): self.u = u
        def random(self, size): return np.full(size, self.u)
    labels = np.repeat([0,1,2,4], [5,7,3,6])
    for u,want in [(0., 5), (np.nextafter(1, 0), 14)]: # the first item of class 1, the last of class 2
        s = ClassSampler(labels, probs=[0,.3,.7,0,0], seed=0)
        s.rng = Edge(u)
        assert s.draw(3).tolist()==[want]*3

# Quotas

probs_st = st.lists(st.integers(0, 1000), min_size=1, max_size=30).filter(any)

@settings(max_examples=200)
@given(probs_st, st.integers(0, 5000), st.integers(0, 2**32-1))
def test_quotas(w, n, seed):
    "Each class its share, rounded up or down; the sum is n"
    s = ClassSampler(np.arange(len(w)), probs=w, seed=seed, stratified=True)
    obs = np.bincount(s.draw(n), minlength=len(w))
    exact = [Fraction(n*o, sum(w)) for o in w]
    assert obs.sum()==n
    for o,e in zip(obs, exact): assert e.numerator//e.denominator <= o <= -(-e.numerator//e.denominator)

def test_quotas_are_unbiased():
    "Mean over 3,000 draws against n p_k, by z-score: a class with a fractional share gets the extra item in that share of the draws"
    p,n,m = np.array([.5,.37,.1,.03]),17,3000
    s = ClassSampler(np.arange(4), probs=p, seed=8, stratified=True)
    got = np.array([np.bincount(s.draw(n), minlength=4) for _ in range(m)])
    f = n*p % 1
    assert (np.abs(got.mean(0)-n*p) < 5*np.sqrt(f*(1-f)/m)).all()

def test_quotas_come_in_random_order():
    "Every place of a stratified draw holds each class equally often"
    s = ClassSampler(np.arange(3), seed=4, stratified=True)
    got = np.array([s.draw(6) for _ in range(4000)])
    for col in got.T: assert chi_p(np.bincount(col, minlength=3), np.ones(3))>p_min

# Seeds

@settings(max_examples=60)
@given(st.integers(0, 2**64), st.lists(st.integers(0, 300), max_size=8))
def test_stream_does_not_depend_on_its_cuts(seed, cuts):
    a,b = (ClassSampler(shuffled(), q=.5, seed=seed) for _ in range(2))
    assert np.concatenate([np.zeros(0, int), *map(a.draw, cuts)]).tolist()==b.draw(sum(cuts)).tolist()

def test_stream_does_not_depend_on_its_cuts_at_the_chunks():
    n = 2*ClassSampler._chunk + 5
    a,b = (ClassSampler(shuffled(), seed=1) for _ in range(2))
    np.testing.assert_array_equal(a.draw(n), np.concatenate([b.draw(o) for o in (1, ClassSampler._chunk, 3, ClassSampler._chunk+1)]))

@pytest.mark.parametrize('stratified', [False, True])
def test_seeds(stratified):
    def draw(seed=None): return ClassSampler(shuffled(), seed=seed, stratified=stratified).draw(200).tolist()
    assert draw(3)==draw(3)!=draw(4)
    np.random.seed(3)
    a = draw(),draw()
    np.random.seed(3)
    assert (draw(),draw())==a and a[0]!=a[1] # numpy's global state rules where there is no seed
    np.random.seed(3)
    s = ClassSampler(shuffled(), seed=0)
    before = np.random.get_state()[1:3]
    s.draw(50)
    assert np.array_equal(before[0], np.random.get_state()[1]) and before[1]==np.random.get_state()[2] # and nothing is taken from it otherwise

def test_set_seed_governs():
    from fastai.torch_core import set_seed
    def draw():
        set_seed(9)
        return ClassSampler(shuffled()).draw(50).tolist()
    assert draw()==draw()

def test_copy_goes_on_by_itself():
    a = ClassSampler(shuffled(), seed=0)
    a.draw(10)
    b = copy(a)
    assert b._order is a._order and b.draw(20).tolist()==a.draw(20).tolist()
    b.draw(5)
    b.probs = class_probs(b.counts, 1)
    assert a.probs[1]==pytest.approx(1/4) and a.draw(20).tolist()!=b.draw(20).tolist()

# New probabilities

def test_probs_are_set_in_the_number_of_classes():
    "The index of the items is made once: setting `probs` touches arrays of K numbers only"
    s = ClassSampler(shuffled(), n_classes=7, seed=0)
    old = dict(s.__dict__)
    s.probs = class_probs(n_k, .5)
    changed = [k for k in s.__dict__ if s.__dict__[k] is not old[k]]
    assert changed and all(len(s.__dict__[k])==len(n_k) for k in changed)
    np.testing.assert_allclose(s.probs, class_probs(n_k, .5))
    s.probs = 17*class_probs(n_k, -1)
    np.testing.assert_allclose(s.probs, class_probs(n_k, -1))
    assert chi_p(np.bincount(shuffled()[s.draw(50_000)], minlength=7), s.probs)>p_min

@pytest.mark.parametrize('bad,msg', [([1,1], 'shape'), (np.eye(7), 'shape'), ([0]*7, 'not all 0'), ([0,-1,2,0,0,0,0], 'not negative'), ([0,np.nan,1,0,0,0,0], 'finite'),
    ([.5,.5,0,0,0,0,0], 'class 0'), ([0,1,0,0,0,0,1e-9], 'class 6')])
def test_probs_refuse_and_leave_the_old(bad, msg):
    s = ClassSampler(shuffled(), n_classes=7, seed=0)
    with pytest.raises(ValueError, match=msg): s.probs = bad
    np.testing.assert_allclose(s.probs, class_probs(n_k, 0))
    assert len(s.draw(10))==10

@pytest.mark.parametrize('args,kw,msg', [(([],), {}, 'empty'), (([0,3],), dict(n_classes=3), 'n_classes=3'), (([0,1],), dict(q=np.nan), 'q=nan'), (([[0],[1]],), {}, 'shape'), (([0,-1],), {}, 'negative')])
def test_sampler_refuses(args, kw, msg):
    with pytest.raises(ValueError, match=msg): ClassSampler(*args, **kw)

# Size

def test_ten_million():
    "More items than 2^23, a class of one: drawn uniformly over classes, and uniformly within the large one"
    labels = np.zeros(10**7, dtype=np.int64)
    labels[[5_000_000]],labels[9_000_000:] = 2,4
    s = ClassSampler(labels, seed=0)
    idxs = s.draw(10**7)
    obs = np.bincount(labels[idxs], minlength=5)
    assert chi_p(obs, [1,0,1,0,1])>p_min
    big = idxs[labels[idxs]==0]
    assert chi_p(np.histogram(big, bins=100, range=(0, 9_000_000))[0], np.r_[np.full(55, 90_000.), 89_999, np.full(44, 90_000.)])>p_min

def test_more_items_than_torch_can_weight():
    "Items beyond 2^24 are reached, each class from its own range, and stratified quotas hold"
    n = 2**24 + 1000
    labels = np.zeros(n, dtype=np.uint8)
    labels[2**24:] = 1
    s = ClassSampler(labels, seed=0, stratified=True)
    idxs = s.draw(20_000)
    assert (idxs>=2**24).sum()==10_000
    assert chi_p(np.bincount(idxs[idxs>=2**24]-2**24, minlength=1000), np.ones(1000))>p_min
    assert (labels[idxs]==(idxs>=2**24)).all() and idxs[idxs<2**24].max()>.99*2**24

def test_many_classes():
    labels = shuffled(np.r_[np.zeros(70_000, int), np.full(70_000, 2)])
    idxs = ClassSampler(labels, seed=0).draw(700_000)
    assert chi_p(np.bincount(labels[idxs], minlength=140_000)[70_000:], np.ones(70_000))>p_min
