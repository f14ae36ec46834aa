"intervals: influences against weights in scikit-learn, standard errors and tests against scipy, statsmodels and the formulas of the papers, power against whole designs drawn with numpy."
import math, warnings
import numpy as np, pytest, scipy.stats as scs, sklearn.metrics as skm
from hypothesis import given, settings, strategies as st
from scipy import integrate
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import ttest_ind
from balmix_fastai.intervals import (Estimate, Frame, check_level, decision_influences, folds_error, grade_influences, guess_item_sd, holm, mcnemar_exact,
    nadeau_bengio, pooled_error, rank_influences, recall_influence, runs_error, scale_of, scales, sign_flip, smallest_difference, study_power, wilson)

def quiet(f, *args, **kw):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore') # scikit-learn mentions classes that do not occur
        return f(*args, **kw)

def shift(f, n, at=None, by=1e-5):
    "Change of `f(weights)` by a little more and a little less weight of each item (of those in `at`), times n: its influence, from both sides"
    e = np.eye(n)[slice(None) if at is None else at]*by
    return np.array([(f(1+o)-f(1-o))/(2*by) for o in e])*n

def tau_b(t, g, w):
    "Kendall's tau-b of weighted items, from its definition over pairs"
    ww,a,b = w[:,None]*w,np.sign(t[:,None]-t),np.sign(g[:,None]-g)
    return (ww*a*b).sum()/math.sqrt((ww*a*a).sum()*(ww*b*b).sum())

def recall_of(t, g, w, ids): return np.mean([w[(t==k) & (g==k)].sum()/w[t==k].sum() for k in ids])

cases = dict(seed=st.integers(0, 2**32-1), n=st.integers(2, 25), k=st.integers(2, 5), data=st.data())

def draw(seed, n, k, absent):
    "Targets without some classes, and decisions that are often right"
    rng = np.random.default_rng(seed)
    t = rng.choice([c for c in range(k) if c not in absent], n)
    return t,np.where(rng.random(n)<.5, t, rng.integers(0, k, n)),rng

@settings(deadline=None, max_examples=25)
@given(**cases)
def test_influences_of_decisions_are_those_of_weights(seed, n, k, data):
    t,g,rng = draw(seed, n, k, data.draw(st.sets(st.integers(0, k-1), max_size=k-1)))
    at = rng.choice(n, min(n, 4), replace=False) # scikit-learn takes its time
    peer = dict(accuracy=skm.accuracy_score, balanced_accuracy=skm.balanced_accuracy_score, mcc=skm.matthews_corrcoef,
        macro_f1=lambda *o, **kw: skm.f1_score(*o, average='macro', **kw), quadratic_kappa=lambda *o, **kw: skm.cohen_kappa_score(*o, weights='quadratic', labels=range(k), **kw))
    got = decision_influences(t, g) | grade_influences(t, g)
    assert set(got)==set(peer) | {'kendall_tau'} and all(o.shape==(n,) for o in got.values())
    ties = len(set(t))<2 or len(set(g))<2 # a correlation has no slope there
    for name,f in peer.items():
        if ties and name in ('mcc','quadratic_kappa'): continue
        np.testing.assert_allclose(got[name][at], quiet(shift, lambda w: f(t, g, sample_weight=w), n, at), atol=1e-6, err_msg=name)
    if ties: assert np.isnan(got['mcc']).all() and np.isnan(got['kendall_tau']).all()
    else: np.testing.assert_allclose(got['kendall_tau'], shift(lambda w: tau_b(t, g, w), n), atol=1e-6)
    for name,o in got.items(): assert np.isnan(o).all() or abs(o.sum())<1e-8*n, name

@settings(deadline=None, max_examples=40)
@given(**cases)
def test_influence_on_the_recall_of_a_group_of_classes(seed, n, k, data):
    t,g,_ = draw(seed, n, k, ())
    ids = sorted(data.draw(st.sets(st.sampled_from(sorted(set(t.tolist()))), min_size=1)))
    got = recall_influence(t, g, ids)
    np.testing.assert_allclose(got, shift(lambda w: recall_of(t, g, w, ids), n), atol=1e-6)
    assert abs(got.sum())<1e-8*n

@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32-1), n=st.integers(2, 25), levels=st.sampled_from([2, 4, 1000]))
def test_influences_of_rankings_are_those_of_weights(seed, n, levels):
    "Few levels of the score make many ties"
    rng = np.random.default_rng(seed)
    own,at = rng.permutation(np.arange(n)<rng.integers(1, n)),rng.choice(n, min(n, 6), replace=False)
    score = rng.integers(0, levels, n)/levels
    for f,got in zip((skm.roc_auc_score, skm.average_precision_score), rank_influences(score, own)):
        np.testing.assert_allclose(got[at], shift(lambda w: f(own, score, sample_weight=w), n, at), atol=1e-6, err_msg=f.__name__)
        assert abs(got.sum())<1e-8*n

def test_tau_by_pairs_is_scipys():
    "The definition above, with and without a weight of 2"
    rng = np.random.default_rng(0)
    t,g = rng.integers(0, 4, (2,30))
    assert tau_b(t, g, np.ones(30))==pytest.approx(scs.kendalltau(t, g).statistic, abs=1e-12)
    assert tau_b(t, g, 1.+(np.arange(30)==3))==pytest.approx(scs.kendalltau(*(np.r_[o,o[3]] for o in (t,g))).statistic, abs=1e-12)

@pytest.mark.parametrize('p,n', [(.5, 40), (.9, 200), (1/3, 3)])
def test_error_of_a_proportion(p, n):
    "Of one class, with and without fixed counts: the textbook's, with n-1"
    hit = (np.arange(n)<round(p*n))*1.
    for o in (False,True):
        se,df = Frame(np.zeros(n, int), 1, stratify=o).error(hit-hit.mean())
        assert se==pytest.approx(hit.std(ddof=1)/math.sqrt(n)) and 1<=df<=n-1

def delong(pos, neg):
    "Variance of AUROC by the components of DeLong, DeLong and Clarke-Pearson (1988), equations 3 to 7"
    psi = (pos[:,None]>neg) + .5*(pos[:,None]==neg)
    return psi.mean(1).var(ddof=1)/len(pos) + psi.mean(0).var(ddof=1)/len(neg)

@pytest.mark.parametrize('levels', [3, 10**6])
def test_error_of_auroc_is_delongs(levels):
    rng = np.random.default_rng(0)
    own = rng.permutation(np.arange(90)<25)
    score = rng.integers(0, levels, 90)+own*levels*.3
    inf = rank_influences(score, own)[0]
    for o in (False,True): assert Frame(own*1, 2, stratify=o).error(inf)[0]==pytest.approx(math.sqrt(delong(score[own], score[~own])))

def test_error_of_groups_is_the_cluster_formula():
    rng = np.random.default_rng(0)
    groups = np.r_[np.arange(20), rng.integers(0, 20, 80)]
    x = rng.normal(size=100)+rng.normal(size=20)[groups]
    x -= x.mean()
    sums = np.array([x[groups==g].sum() for g in range(20)])
    se,df = Frame(np.zeros(100, int), 1, groups).error(x)
    assert se==pytest.approx(math.sqrt(20/19*(sums**2).sum())/100) and 1<=df<=19
    own = rng.permutation(100) # groups of one item are items
    assert Frame(np.zeros(100, int), 1, own).error(x)[0]==pytest.approx(x.std(ddof=1)/10)

def test_error_with_fixed_counts_is_the_textbooks():
    "Stratified sampling (Cochran 1977, section 5.4): sum of (n_k/n)^2 s_k^2/n_k; a random sample has the variance between the classes, too"
    rng = np.random.default_rng(0)
    t = np.repeat([0,1,2], [50,30,7])
    x = rng.normal(size=87)+t
    x -= x.mean()
    n = np.bincount(t)
    want = sum((m/87)**2*x[t==k].var(ddof=1)/m for k,m in enumerate(n))
    assert Frame(t, 3, stratify=True).error(x)[0]==pytest.approx(math.sqrt(want))
    both = want+sum(m*x[t==k].mean()**2*m/(m-1) for k,m in enumerate(n))/87**2
    assert Frame(t, 3).error(x)[0]==pytest.approx(math.sqrt(both), rel=1e-2)

def test_errors_of_many_columns_are_those_of_each():
    rng = np.random.default_rng(0)
    t,x = rng.integers(0, 3, 60),rng.normal(size=(60,4))
    x[:,2] = np.nan
    for kw in (dict(), dict(stratify=True), dict(groups=np.arange(60)//2)):
        f = Frame(t, 3, **kw)
        np.testing.assert_allclose(np.array(f.error(x)).T, [f.error(o) for o in x.T])
        assert np.isnan(f.error(x)[0][2])

def test_number_of_groups_that_hold_a_class():
    "Kish's number: all groups if they hold as many of its items each, fewer if one of them holds most"
    groups = np.repeat(np.arange(10), 4)
    t = np.tile([0,0,1,1], 10)
    t[groups>4] = 0
    f = Frame(t, 3, groups)
    want = [np.bincount(groups[t==k]) for k in (0,1)]
    assert f.units.tolist()==pytest.approx([(o.sum())**2/(o**2).sum() for o in want]+[0]) and f.units[1]==5
    assert Frame(t, 3).units.tolist()==[30,10,0] and (Frame(t, 3).unit,f.unit)==('items','groups')

def test_degrees_of_freedom():
    "Near n-1 where influences are normal, few where a few items hold most"
    x = np.random.default_rng(0).normal(size=4000)
    x -= x.mean()
    assert .9*3999<Frame(np.zeros(4000, int), 1).error(x)[1]<=3999
    rare = np.r_[np.full(3, 1.), np.zeros(397)]
    assert Frame(np.zeros(400, int), 1).error(rare-rare.mean())[1]<10

def test_one_item_and_items_that_do_not_differ():
    assert Frame(np.zeros(1, int), 2).error(np.zeros(1))==(0,1)
    assert Frame(np.zeros(3, int), 1, np.zeros(3, int)).error(np.array([1.,-1,0]))[0]==0, 'one group'
    t = np.arange(70)%7
    loss = np.full(70, math.log(7))
    for kw in (dict(), dict(stratify=True), dict(groups=t)):
        assert Frame(t, 7, **kw).error(loss-loss.mean()+2e-16*(t>3))[0]==0, 'rounding is no error'
    assert Frame(t, 7).error(1e-7*(t-3))[0]>0, 'what numbers of 32 bits can tell apart is'

def test_what_is_drawn_cannot_be_groups_in_fixed_counts():
    with pytest.raises(ValueError, match='cannot go together'): Frame(np.zeros(4, int), 1, np.arange(4), True)

@pytest.mark.parametrize('level', [.8, .95])
def test_interval_and_p_are_scipys(level):
    "Of the mean of a sample"
    x = np.random.default_rng(0).normal(.4, 1, 12)
    est,ref = Estimate(x.mean(), *runs_error(x)),scs.ttest_1samp(x, 0)
    assert est.ends(level)==pytest.approx(tuple(ref.confidence_interval(level))) and est.p()==pytest.approx(ref.pvalue)
    assert Estimate(.5, .1).ends()==pytest.approx(scs.norm.interval(.95, .5, .1)), 'a known error'

@given(v=st.floats(-5, 5), se=st.floats(1e-3, 5), df=st.floats(1, 1e4))
def test_interval_and_p_never_contradict_each_other(v, se, df):
    est = Estimate(v, se, df)
    (low,high),p = est.ends(),est.p()
    if abs(p-.05)>1e-9: assert (p<.05)==(low>0 or high<0)
    assert low<=v<=high and 0<=p<=1

@pytest.mark.parametrize('scale,values', [('plain', [-2,.3,7]), ('logit', [.02,.5,.97]), ('fisher', [-.9,0,.6]), ('log', [.01,1,30])])
def test_scales(scale, values):
    "There and back, their slopes, and ends that the metric can have"
    (to,back,slope),v = scales[scale],np.array(values, dtype=float)
    np.testing.assert_allclose(back(to(v)), v, atol=1e-12)
    np.testing.assert_allclose(slope(v), (to(v+1e-6)-to(v-1e-6))/2e-6, rtol=1e-5)
    low,high = Estimate(v, .01*abs(v)+1e-3, 20).ends(scale=scale)
    assert ((low<v) & (v<high)).all()
    low,high = Estimate(v, np.full(3, .3), 5).ends(scale=scale)
    least,most = dict(plain=(-9,9), logit=(0,1), fisher=(-1,1), log=(0,np.inf))[scale]
    assert (low>=least).all() and (high<=most).all()

def test_every_metric_has_the_scale_of_its_range():
    for k in ('accuracy','balanced_accuracy','macro_f1','macro_auroc','macro_auprc','few'): assert scale_of(k)=='logit'
    for k in ('mcc','quadratic_kappa','kendall_tau'): assert scale_of(k)=='fisher'
    assert scale_of('nll')==scale_of('brier')=='log'

def test_estimates_without_an_error():
    same,unknown,other = Estimate(0, 0, 5),Estimate(.1, np.nan, 5),Estimate(.1, 0, 5)
    assert same.p()==1 and np.isnan([unknown.p(), other.p(), *same.ends(), *unknown.ends(), *other.ends(), same.smallest(), unknown.smallest()]).all()
    assert np.isnan(Estimate(1, .1, 5).ends(scale='logit')).all(), 'at the end of its scale'
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        v = Estimate([0,.1,.1], [0,np.nan,.1], [5,5,5])
        assert np.isnan(v.smallest()).tolist()==[True,True,False] and np.isnan(v.p()).tolist()==[False,True,False]
    for level in (0,1,95):
        with pytest.raises(ValueError, match='between 0 and 1'): other.ends(level)
        with pytest.raises(ValueError, match='between 0 and 1'): check_level(level)

def test_two_independent_sources_are_welchs_test():
    rng = np.random.default_rng(0)
    a,b = rng.normal(.5, 1, 7),rng.normal(0, 3, 23)
    est = Estimate(a.mean()-b.mean(), *pooled_error(runs_error(a), runs_error(b)))
    t,p,df = ttest_ind(a, b, usevar='unequal')
    assert est.p()==pytest.approx(p) and est.df==pytest.approx(df) and est.value/est.se==pytest.approx(t)
    assert est.ends()==pytest.approx(tuple(scs.ttest_ind(a, b, equal_var=False).confidence_interval()))
    assert pooled_error((.3, 4), (0., 9))==pytest.approx((.3, 4)) and pooled_error((0., 4), (0., 9))==(0,np.inf)

def test_error_over_folds_is_nadeau_and_bengios():
    "Means and variances of several columns, of folds of unequal size, by the formula of the paper"
    v = np.random.default_rng(0).normal(size=(4,3))
    tr,te = np.array([90,80,91,85]),np.array([30,40,29,35])
    se,df = folds_error(v, tr, te)
    np.testing.assert_allclose(se**2, (1/4+(te/tr).mean())*((v-v.mean(0))**2).sum(0)/3)
    assert df.tolist()==[3,3,3]
    np.testing.assert_allclose(folds_error(v, np.inf, 1), runs_error(v))
    assert folds_error([.3-.2,.1,.4-.3], 9, 1)[0]==0==runs_error([.3-.2,.1,.4-.3])[0], 'rounding is no error'

def test_nadeau_bengio():
    d = np.random.default_rng(0).normal(.1, .3, 10)
    m,s = d.mean(),d.std(ddof=1)
    lo,hi,p = nadeau_bengio(d, 900, 100, .9)
    se = s*math.sqrt(1/10+1/9)
    assert (lo,hi)==pytest.approx(scs.t.interval(.9, 9, m, se)) and p==pytest.approx(2*scs.t.sf(abs(m)/se, 9))
    ref = scs.ttest_1samp(d, 0)
    assert nadeau_bengio(d, np.inf, 1)==pytest.approx((*ref.confidence_interval(), ref.pvalue))
    assert nadeau_bengio(d, [900]*10, [100]*10, .9)==(lo,hi,p)
    assert np.isnan(nadeau_bengio([1,1], 9, 1)).all() and nadeau_bengio([0,0], 9, 1)[2]==1, 'without a spread there is no error'
    for kw,msg in ((dict(diffs=[1], n_train=9, n_test=1), '2 or more'), (dict(diffs=d, n_train=0, n_test=1), 'n_train'), (dict(diffs=d, n_train=9, n_test=[1,2]), 'n_test')):
        with pytest.raises(ValueError, match=msg): nadeau_bengio(**kw)

def test_nadeau_bengio_keeps_its_level_on_overlapping_splits():
    "Random splits of 50 numbers, means of test parts around 0: the plain t interval is far too narrow, the corrected one covers 90 % or more"
    rng,runs = np.random.default_rng(0),1000
    x = rng.normal(size=(runs,50))
    d = np.stack([rng.permuted(x, axis=1)[:,:10].mean(1) for _ in range(15)])
    hit,plain = (int((Estimate(d.mean(0), *folds_error(d, n, 10)).p()>=.05).sum()) for n in (40,np.inf))
    assert scs.binom.cdf(hit, runs, .9)>scs.norm.sf(4) and scs.binom.cdf(plain, runs, .85)<scs.norm.sf(4)

def test_wilson_is_statsmodels():
    k,n = np.array([0,1,5,17,20,0,333]),np.array([20,20,20,20,20,1,1000])
    for level in (.8,.95,.99):
        got,want = wilson(k, n, level),proportion_confint(k, n, alpha=1-level, method='wilson')
        np.testing.assert_allclose(got, want, atol=1e-12)
    low,high = wilson([0,3,0], [3,3,0])
    assert low[0]==0 and high[1]==1 and np.isnan([low[2],high[2]]).all()
    assert wilson(17, 20)==pytest.approx(scs.binomtest(17, 20).proportion_ci(method='wilson'))
    assert all(isinstance(o, float) for o in wilson(17, 20))

def test_mcnemar_is_statsmodels():
    rng = np.random.default_rng(0)
    for n in (5,40,200):
        a,b = rng.random(n)<.7,rng.random(n)<.6
        tab = [[(a&b).sum(),(a&~b).sum()],[(~a&b).sum(),(~a&~b).sum()]]
        p,only_a,only_b = mcnemar_exact(a, b)
        assert (only_a,only_b)==(tab[0][1],tab[1][0]) and p==pytest.approx(mcnemar(tab, exact=True).pvalue)
    assert mcnemar_exact(a, a)==(1,0,0)
    for x,y in ((a, b[:5]), (a*1, b), (a[None], b[None])):
        with pytest.raises(ValueError, match='one boolean'): mcnemar_exact(x, y)

@pytest.mark.parametrize('n', [2, 3, 8, 13])
def test_sign_flip_tries_all_signs(n):
    "One by one, of rounded differences with many equal sums"
    d = np.random.default_rng(n).normal(.3, 1, n).round(1)
    sums = np.array([d@s for s in np.stack(np.meshgrid(*[[1,-1]]*n), -1).reshape(-1, n)])
    p,least = sign_flip(d)
    assert p==pytest.approx((abs(sums)>=abs(d.sum())-1e-9).mean()) and least==2/2**n and p>=least

def test_sign_flip_of_few_and_of_many():
    assert sign_flip([.3])==(1,1) and sign_flip([0,0])[0]==1 and sign_flip([1,1,0.])[0]==.5
    d = np.random.default_rng(0).normal(.4, 1, 16)
    exact = sign_flip(d)[0]
    q,least = sign_flip(np.append(d, 0)) # a pair without a difference changes nothing but the way
    assert least==2/1e5 and abs(q-exact)<4*2*math.sqrt(exact/2*(1-exact/2)/1e5)+2e-5 # twice the tail that is estimated
    assert sign_flip(np.append(d, 0))==(q,least)!=sign_flip(np.append(d, 0), seed=1)
    for bad in ([], [np.nan, 1], [[1,2]]):
        with pytest.raises(ValueError, match='finite numbers'): sign_flip(bad)

def test_holm_is_statsmodels():
    rng = np.random.default_rng(0)
    for n in (1,2,7,30):
        p = rng.random(n)**3
        np.testing.assert_allclose(holm(p), multipletests(p, method='holm')[1])
    np.testing.assert_allclose(holm([.01,np.nan,.03,.03]), [.03,np.nan,.06,.06])
    assert holm([]).shape==(0,) and holm([1,1]).tolist()==[1,1]
    with pytest.raises(ValueError, match='in \\[0,1\\]'): holm([.1,1.2])

@pytest.mark.parametrize('n', [10, 200, 3000])
@pytest.mark.parametrize('tests', [1, 7])
@pytest.mark.parametrize('power', [.5, .8, .95])
def test_smallest_difference_is_statsmodels(n, tests, power):
    d = smallest_difference(2/math.sqrt(n), n-1, tests, .05, power)
    assert TTestPower().power(d/2, n, .05/tests)==pytest.approx(power, abs=1e-3)

@pytest.mark.parametrize('df', [1, 2, 4.5])
@pytest.mark.parametrize('tests', [1, 37])
@pytest.mark.parametrize('power', [.5, .8, .99])
def test_smallest_difference_of_few_runs(df, tests, power):
    "Where statsmodels gives nan: the power by integration over the quantiles of the variance"
    d,limit = smallest_difference(3, df, tests, .05, power)/3,scs.t.isf(.025/tests, df)
    def at(q): return sum(scs.norm.sf(limit*math.sqrt(scs.chi2.isf(q, df)/df)-o) for o in (d,-d))
    assert integrate.quad(at, 0, 1, limit=200)[0]==pytest.approx(power, abs=2e-3)

def test_smallest_difference_without_an_error(): assert np.isnan([smallest_difference(*o) for o in ((0,5), (np.nan,5), (.1,np.nan))]).all()

def found(d, design, reps=20_000, seed=0):
    "Share of `reps` studies in which a true difference of `d` is found: each value of each run is drawn and the study is tested as a whole"
    (seed_sd,item_sd,n,seeds,folds,arms),rng = design,np.random.default_rng(seed)
    if not folds: # items shared by the runs, and what another run adds
        runs,items = d+rng.normal(0, seed_sd, (reps,seeds)),rng.normal(0, item_sd/math.sqrt(n), reps)
        s,i = runs.std(1, ddof=1)/math.sqrt(seeds),item_sd*np.sqrt(rng.chisquare(n-1, reps)/(n-1)/n)
        mean,se,df = runs.mean(1)+items,np.hypot(s, i),(s**2+i**2)**2/(s**4/(seeds-1)+i**4/(n-1))
    else: # training sets that overlap share what makes them differ: folds correlate by 1/folds (Nadeau and Bengio 2003, section 3)
        own = rng.normal(0, seed_sd, (reps,folds,seeds)).mean(2)+rng.normal(0, item_sd/math.sqrt(n/folds), (reps,folds))
        var = seed_sd**2/seeds+item_sd**2*folds/n
        v = d+own+rng.normal(0, math.sqrt(var/(folds-1)), (reps,1))
        mean,se,df = v.mean(1),v.std(1, ddof=1)*math.sqrt(1/folds+1/(folds-1)),folds-1
    return (2*scs.t.sf(abs(mean)/se, df)<.05/(arms-1)).mean()

designs = [(.02,.45,400,5,0,2), (.03,.3,400,10,0,9), (.02,.45,500,3,5,2), (.03,.3,1000,1,10,4)]

@pytest.mark.parametrize('design', designs)
def test_power_of_a_study_is_that_of_the_whole_design(design):
    share = found(study_power(*design), design)
    assert abs(share-.8)<4*math.sqrt(.16/20_000), share

def test_power_of_three_seeds_is_a_little_less():
    "Each study estimates its degrees of freedom from the spread of its three runs; 78.75 % of 200,000 studies found the difference"
    design = .01,.45,2000,3,0,2
    assert .775<found(study_power(*design), design)<.8

def test_power_grows_with_each_part_of_a_design():
    base = study_power(.02, .45, 400, 5)
    assert study_power(.02, .45, 400, 10)<base and study_power(.02, .45, 800, 5)<base
    assert study_power(.02, .45, 400, 5, arms=9)>base and study_power(.02, .45, 400, 5, power=.9)>base
    assert study_power(0, .45, 400, 2)==pytest.approx(smallest_difference(.45/20, 399))
    assert study_power(.02, 0, 400, 5)==pytest.approx(smallest_difference(.02/math.sqrt(5), 4))

@pytest.mark.parametrize('kw,msg', [(dict(seed_sd=-1), 'seed_sd=-1'), (dict(item_sd=np.nan), 'item_sd=nan'), (dict(arms=1), 'arms=1'), (dict(seeds=1), 'seeds=1'), (dict(seeds=0, folds=5), 'seeds=0'),
    (dict(folds=1), 'folds=1'), (dict(folds=500), '400 test items')])
def test_designs_that_find_nothing_are_refused(kw, msg):
    with pytest.raises(ValueError, match=msg): study_power(**dict(seed_sd=.02, item_sd=.4, n_test=400, seeds=5) | kw)

def test_guess_of_the_error_over_items():
    "Against made-up decisions of which a fifth differs, half of it for the better"
    rng,counts = np.random.default_rng(0),np.array([300,60,40])
    t = np.repeat(range(3), counts)
    errors = []
    for _ in range(200):
        kind = rng.choice(3, 400, p=(.1,.1,.8)) # only a is right, only b is, both are
        a,b = (np.where(kind==o, (t+1)%3, t) for o in (1,0))
        inf = {k: decision_influences(t, a)[k]-decision_influences(t, b)[k] for k in ('accuracy','balanced_accuracy')}
        errors.append([Frame(t, 3).error(o)[0]*20 for o in inf.values()])
    np.testing.assert_allclose(np.mean(errors, 0), [guess_item_sd(k, counts) for k in inf], rtol=.05)
    assert guess_item_sd('accuracy', [5,0,5])==math.sqrt(.2) and np.isnan(guess_item_sd('nll', counts))
