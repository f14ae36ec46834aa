"report: weighted metrics against scikit-learn on the expanded resample, resamples, coverage by simulation, tests against scipy and statsmodels, rendering."
import json, math, warnings
import numpy as np, pandas as pd, pytest, scipy.stats as scs, sklearn.metrics as skm, torch
from hypothesis import given, settings, strategies as st
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint
from fastai.basics import CrossEntropyLossFlat, Learner, nn
from fastai.torch_core import set_seed
from fastai.vision.augment import aug_transforms
from balmix_fastai import report as R
from balmix_fastai.datasets import digits_lt
from balmix_fastai.bench import report_memory
from balmix_fastai.metrics import ShotAccuracy, brier, classwise_ece, ece, imbalance_metrics, macro_auprc, nll
from balmix_fastai.report import ImbalanceReport, compare, holm, mcnemar_exact, nadeau_bengio, paired_figures, sign_flip, wilson

def _data(seed, n=120, k=4, absent=(), ties=False, skill=1.5):
    "Probabilities with some skill, or with none and few values, and targets without the classes `absent`"
    rng = np.random.default_rng(seed)
    targs = rng.choice([c for c in range(k) if c not in absent], n)
    p = rng.permuted(np.tile(np.arange(k)//2+1., (n, 1)), axis=1) if ties else np.exp(rng.normal(size=(n, k))+skill*np.eye(k)[targs])
    return p/p.sum(1, keepdims=True), targs

def _plain(p, t, k, bins, counts, shots, guess=None):
    "Every metric and class figure of the report from scikit-learn and the plain functions"
    g = p.argmax(1) if guess is None else guess
    with warnings.catch_warnings():
        warnings.simplefilter('ignore') # scikit-learn mentions classes that do not occur
        res = imbalance_metrics(p, t, True, guess) | dict(macro_auprc=macro_auprc(p, t), nll=nll(p, t), brier=brier(p, t),
            ece=ece(p, t, bins), classwise_ece=classwise_ece(p, t, bins))
        res |= {o: ShotAccuracy(counts, o, shots)(torch.tensor(g), torch.tensor(t)) for o in ('many','medium','few') if o in R.shot_groups(counts, shots)}
        kw = dict(labels=range(k), average=None, zero_division=np.nan)
        cl = dict(n=np.bincount(t, minlength=k), recall=skm.recall_score(t, g, **kw), precision=skm.precision_score(t, g, **kw), f1=skm.f1_score(t, g, **kw),
            auroc=[skm.roc_auc_score(t==c, p[:,c]) if 0<(t==c).sum()<len(t) else np.nan for c in range(k)], mean_prob=p.mean(0))
    return res,cl

@pytest.mark.filterwarnings('ignore:A single label was found')
@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32-1), n=st.integers(2, 50), k=st.integers(2, 6), ties=st.booleans(), grouped=st.booleans(), decided=st.booleans(),
    data=st.data())
def test_weighted_metrics_are_those_of_the_resample(seed, n, k, ties, grouped, decided, data):
    absent = data.draw(st.sets(st.integers(0, k-1), max_size=k-1))
    p,t = _data(seed, n, k, absent, ties)
    groups = np.random.default_rng(seed).integers(0, max(2, n//3), n) if grouped else None
    ids = R._group_ids(groups, n) if grouped and len(set(groups))>1 else None
    counts = np.arange(k)*15
    guess = np.random.default_rng(seed).integers(0, k, n) if decided else p.argmax(1)
    calc = R._Weighted(p, t, guess, 7, True, R.shot_groups(counts, (50,20)))
    for w in R._resamples(t, ids, 3, seed):
        got,cl = calc(w)
        for r in range(w.shape[1]):
            idx = np.repeat(np.arange(n), w[:,r].astype(int))
            want,wcl = _plain(p[idx], t[idx], k, 7, counts, (50,20), guess[idx])
            assert not set(got)-set(want)
            for name in got: np.testing.assert_allclose(got[name][r], want[name], atol=1e-9, err_msg=name)
            for name in cl: np.testing.assert_allclose(cl[name][r], wcl[name], atol=1e-9, err_msg=f'{name} of a class')

@pytest.mark.parametrize('absent', [(), (2,), (0,3)])
def test_report_holds_the_plain_values_and_its_bootstrap_those_of_the_resamples(absent):
    p,t = _data(1, absent=absent)
    counts = [500,50,19,5]
    rep = ImbalanceReport(torch.tensor(p), torch.tensor(t), 'abcd', counts, ordinal=True, n_boot=40, bins=10, seed=3)
    want,cl = _plain(p, t, 4, 10, counts, (100,20))
    assert {k: v for k,v in rep.metrics.value.items()} == {k: pytest.approx(want[k], abs=1e-12) for k in rep.metrics.index}
    assert set(want)-set(rep.metrics.index) <= {'many','medium','few'}
    assert {k: rep.metrics.value[k] for k in imbalance_metrics(p, t, True)} == imbalance_metrics(p, t, True), 'equal to the last bit'
    assert list(rep.metrics.index)[:6]==['accuracy','balanced_accuracy','macro_f1','mcc','macro_auroc','macro_auprc']
    for k in ('recall','precision','f1','auroc','mean_prob'): np.testing.assert_allclose(rep.per_class[k], cl[k], atol=1e-12)
    np.testing.assert_array_equal(rep.per_class.n, cl['n'])
    np.testing.assert_allclose(rep.per_class.prevalence, cl['n']/120)
    w, = R._resamples(t, None, 40, 3)
    for r in (0,39):
        idx = np.repeat(np.arange(120), w[:,r].astype(int))
        boot,_ = _plain(p[idx], t[idx], 4, 10, counts, (100,20))
        assert {k: v[r] for k,v in rep.boot.items()} == {k: pytest.approx(boot[k], abs=1e-9) for k in rep.boot}
    for k,v in rep.boot.items(): np.testing.assert_allclose(rep.metrics.loc[k, ['low','high']].astype(float), np.quantile(v, [.025,.975]), atol=1e-12)

def test_decisions_of_another_rule():
    "Shares, kappa and the confusion matrix follow the decisions; calibration and ranking the probabilities"
    p,t = _data(1)
    g = (p.argmax(1)+1)%4
    a,b = ImbalanceReport(p, t, ordinal=True, n_boot=40),ImbalanceReport(p, t, ordinal=True, n_boot=40, guess=torch.tensor(g))
    assert b.metrics.value.accuracy==(g==t).mean()!=a.metrics.value.accuracy and b.right.tolist()==(g==t).tolist()
    assert b.metrics.value.quadratic_kappa==pytest.approx(skm.cohen_kappa_score(t, g, weights='quadratic'))
    np.testing.assert_allclose(b.per_class.recall, skm.recall_score(t, g, average=None))
    same = ['macro_auroc','macro_auprc','nll','brier','ece','classwise_ece']
    pd.testing.assert_frame_equal(a.metrics.loc[same], b.metrics.loc[same])
    for bad,msg in ((g[1:], 'guess has shape'), (g+1, 'guess holds the class id 4'), (g*1., 'guess holds float64')):
        with pytest.raises(ValueError, match=msg): ImbalanceReport(p, t, guess=bad)

def test_shot_groups_without_test_items_are_no_metric():
    p,t = _data(2, absent=(3,))
    rep = ImbalanceReport(p, t, train_counts=[500,50,60,5], n_boot=0)
    assert [o for o in rep.metrics.index if o in ('many','medium','few')]==['many','medium']
    assert rep.per_class.shot.tolist()==['many','medium','medium','few']
    assert ImbalanceReport(p, t, train_counts=[500,50,60,5], cuts=(2,3), n_boot=0).per_class.shot.tolist()==['many','medium','many','few']
    assert not {'many','medium','few'} & set(ImbalanceReport(p, t, n_boot=0).metrics.index)

def test_resamples_are_bootstrap_draws():
    t = np.random.default_rng(0).permutation(np.repeat([0,1,2], [30,7,1]))
    w = np.concatenate(list(R._resamples(t, None, 4000, 1)), 1)
    for c,n in enumerate((30,7,1)): assert (w[t==c].sum(0)==n).all()
    for c,n in enumerate((30,7)): # each item is drawn Binomial(n, 1/n) times
        z = (w[t==c].mean(1)-1)/math.sqrt((1-1/n)/4000)
        assert abs(z).max()<4.5
        for times in (0,1,2):
            q = scs.binom.pmf(times, n, 1/n)
            assert abs((w[t==c][0]==times).mean()-q) < 4*math.sqrt(q*(1-q)/4000)

def test_resamples_draw_whole_groups():
    g = R._group_ids(np.array(['x','y','z','x','z','z']), 6)
    w = np.concatenate(list(R._resamples(np.zeros(6, int), g, 3000, 1)), 1)
    assert (w[0]==w[3]).all() and (w[2]==w[4]).all() and (w[2]==w[5]).all()
    assert (w[[0,1,2]].sum(0)==3).all()
    assert abs(w.mean(1)-1).max() < 4*math.sqrt(2/3/3000)

def test_size_of_the_chunks_changes_nothing():
    _,t = _data(0)
    for g in (None, np.arange(120)//2):
        a,b = (np.concatenate(list(R._resamples(t, g, 37, 5, size)), 1) for size in (1<<20, 1000))
        np.testing.assert_array_equal(a, b)

def test_repeatable_and_the_same_for_other_models_of_the_items():
    (p,t),(q,_) = _data(0),_data(9)
    a,b,c = (ImbalanceReport(x, t, n_boot=50, seed=s) for x,s in ((p,0), (p,0), (p,1)))
    for k in a.boot: np.testing.assert_array_equal(a.boot[k], b.boot[k])
    assert (a.boot['mcc']!=c.boot['mcc']).any()
    pd.testing.assert_frame_equal(a.metrics, b.metrics)
    state = np.random.get_state()[1].copy()
    both = ImbalanceReport((p+q)/2, t, n_boot=50)
    assert (np.random.get_state()[1]==state).all(), 'no global generator'
    d = compare(a, both)
    np.testing.assert_array_equal(d.boot['brier'], a.boot['brier']-both.boot['brier'])
    np.testing.assert_array_equal(compare(a, b).boot['brier'], 0)

def test_no_bootstrap_leaves_values_and_wilson_intervals():
    p,t = _data(0)
    rep,full = ImbalanceReport(p, t, n_boot=0),ImbalanceReport(p, t, n_boot=40)
    np.testing.assert_array_equal(rep.metrics.value, full.metrics.value)
    assert rep.metrics[['low','high']].isna().all(None) and rep.boot['mcc'].shape==(0,)
    np.testing.assert_array_equal(rep.per_class.recall_low, full.per_class.recall_low)
    assert any('no bootstrap' in o for o in rep.notes)
    repr(rep), rep._repr_html_(), repr(compare(rep, rep))

def test_percentiles_agree_with_scipys_bootstrap():
    p,t = _data(4, n=150, k=2, skill=1)
    rep = ImbalanceReport(p, t, n_boot=4000)
    right = (p.argmax(1)==t).astype(float)
    bacc = lambda x,y,axis=-1: (x.mean(axis)+y.mean(axis))/2
    ref = scs.bootstrap((right[t==0], right[t==1]), bacc, n_resamples=4000, method='percentile', vectorized=True, rng=np.random.default_rng(0))
    sd,grid = ref.standard_error,.5/np.bincount(t).min()
    tol = 4*math.sqrt(2*.025*.975/4000)/scs.norm.pdf(1.96)*sd + grid # standard error of a difference of two quantiles, and their steps
    got = rep.metrics.loc['balanced_accuracy', ['low','high']].astype(float)
    assert abs(got-np.array(ref.confidence_interval)).max()<tol<.2*6*sd
    assert rep.boot['balanced_accuracy'].std()==pytest.approx(sd, rel=4*math.sqrt(1/4000))

def _ends(t, right, groups, k, name, seed, n_boot=300):
    "Percentile interval of a metric of guesses that are right or one class off, without the rest of a report"
    guess = np.where(right, t, (t+1)%k)
    calc = R._Weighted(np.eye(k)[guess]*.8+.2/k, t, guess, 5)
    return R.percentile_ends(np.concatenate([calc(w)[0][name] for w in R._resamples(t, groups, n_boot, seed)]), .95)

def test_stratified_intervals_cover():
    "Of 95 % intervals of balanced accuracy 92 to 96 % should cover, for 40 to 80 images a class; counts within z=4 of that"
    t,recall,runs = np.repeat([0,1,2], [80,60,40]),np.array([.85,.7,.6]),400
    rng = np.random.default_rng(0)
    ends = np.array([_ends(t, rng.random(180)<recall[t], None, 3, 'balanced_accuracy', i) for i in range(runs)])
    cover = ((ends[:,0]<=recall.mean()) & (recall.mean()<=ends[:,1])).sum()
    assert scs.binom.cdf(cover, runs, .92)>scs.norm.sf(4) and scs.binom.sf(cover-1, runs, .96)>scs.norm.sf(4)
    width = np.diff(ends)[:,0].mean()
    assert width==pytest.approx(2*1.96*math.sqrt((recall*(1-recall)/[80,60,40]).sum())/3, rel=.05), 'the width of the normal interval'

def test_cluster_intervals_cover_where_item_intervals_do_not():
    "Four images a patient share their fate: item intervals have half the width and cover about 68 %, patient intervals 91 to 96 %"
    runs,k = 300,2
    rng,groups = np.random.default_rng(1),np.repeat(np.arange(60), 4)
    hit = dict(items=0, patients=0, wilson=0, naive=0)
    for i in range(runs):
        t = np.repeat(rng.integers(0, 2, 60), 4)
        right = np.repeat(rng.random(60)<.75, 4)
        for name,g in (('items',None), ('patients',groups)):
            lo,hi = _ends(t, right, g, k, 'accuracy', i)
            hit[name] += lo<=.75<=hi
        m = R._n_eff(right & (t==1), t==1, groups)
        share = right[t==1].mean()
        for name,n in (('wilson',m), ('naive',(t==1).sum())):
            lo,hi = wilson(share*n, n)
            hit[name] += lo<=.75<=hi
    low = lambda c,p: scs.binom.cdf(c, runs, p)>scs.norm.sf(4)
    high = lambda c,p: scs.binom.sf(c-1, runs, p)>scs.norm.sf(4)
    assert low(hit['patients'], .91) and high(hit['patients'], .96), hit
    assert low(hit['wilson'], .92) and high(hit['wilson'], .97), hit
    assert not low(hit['items'], .85) and not low(hit['naive'], .85), hit

def test_effective_number():
    rng = np.random.default_rng(0)
    base,hits = np.ones(600, bool),rng.random(600)<.7
    assert R._n_eff(np.repeat(hits, 3), np.ones(1800), np.repeat(np.arange(600), 3))==pytest.approx(599)
    assert R._n_eff(hits, base, np.arange(600))==pytest.approx(599)
    assert R._n_eff(base, base, np.arange(600)//6)==100 and R._n_eff(~base, base, np.arange(600)//6)==100, 'all or none: one each'
    assert R._n_eff(hits & False, base & False, np.arange(600))==0
    assert R._n_eff(hits, base, np.zeros(600, int))==1
    alternate = np.arange(600)%2==0
    assert R._n_eff(alternate, base, np.arange(600)//2)==600, 'never more than the items'

def test_groups_widen_the_class_intervals():
    p,t = (np.repeat(o, 5, 0) for o in _data(0, n=60, k=3))
    a,b = ImbalanceReport(p, t, n_boot=0),ImbalanceReport(p, t, n_boot=0, groups=np.repeat(np.arange(60), 5))
    np.testing.assert_array_equal(a.per_class.recall, b.per_class.recall)
    for k in ('prevalence','recall','precision'):
        ratio = (b.per_class[f'{k}_high']-b.per_class[f'{k}_low'])/(a.per_class[f'{k}_high']-a.per_class[f'{k}_low'])
        assert ((1.7<ratio) & (ratio<2.6)).all(), 'about the square root of 5'
    small = np.bincount(t[::5])<12
    assert any('Fewer than 12 groups' in o for o in b.notes)==small.any()

def test_groups_of_any_kind():
    p,t = _data(0, n=6)
    runs = [ImbalanceReport(p, t, groups=g, n_boot=40).boot['brier'] for g in ([7,7,3,3,5,5], list('aabbcc'), torch.tensor([0,0,1,1,2,2]), pd.Series(list('xxyyzz')))]
    for r in runs[1:]: np.testing.assert_array_equal(runs[0], r)

def test_wilson_is_statsmodels():
    k,n = np.array([0,1,5,17,20,0,333]),np.array([20,20,20,20,20,1,1000])
    for level in (.8,.95,.99):
        got,want = wilson(k, n, level),proportion_confint(k, n, alpha=1-level, method='wilson')
        np.testing.assert_allclose(got, want, atol=1e-12)
    low,high = wilson([0,3,0], [3,3,0])
    assert low[0]==0 and high[1]==1 and np.isnan([low[2],high[2]]).all()
    assert wilson(17, 20)==pytest.approx(scs.binomtest(17, 20).proportion_ci(method='wilson'))
    assert all(isinstance(o, float) for o in wilson(17, 20))
    p,t = _data(0)
    pc = ImbalanceReport(p, t, n_boot=0, level=.9).per_class
    np.testing.assert_allclose(pc[['recall_low','recall_high']].T, proportion_confint((pc.recall*pc.n).round(), pc.n, alpha=.1, method='wilson'))

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

@pytest.mark.parametrize('d', [[.3], [1,1], [1,-1,.5], [.1,.2,-.05,.3,.02,.07], [0,0,1.], [0,0], [.1]*7, list(np.arange(10)-2.)])
def test_sign_flip_is_scipys_permutation_test(d):
    ref = scs.permutation_test((np.array(d),), np.mean, permutation_type='samples', n_resamples=np.inf, alternative='two-sided').pvalue if len(d)>1 else 1
    if not any(d): ref = 1 # scipy and we agree: all sums are equal
    p,least = sign_flip(d)
    assert p==pytest.approx(ref) and least==2/2**len(d) and p>=least

def test_sign_flip_of_many_pairs():
    d = np.random.default_rng(0).normal(.4, 1, 20)
    exact = sign_flip(d)[0]
    q,least = sign_flip(np.append(d, 0)) # a pair without a difference changes nothing but the way
    assert least==1/100_001 and abs(q-exact)<4*math.sqrt(exact*(1-exact)/1e5)
    assert sign_flip(np.append(d, 0))==(q,least) and sign_flip(np.append(d, 0), seed=1)[0]!=q
    assert sign_flip(np.ones(40), n_flips=999)==(1/1000, 1/1000)
    for bad in ([], [np.nan, 1], [[1,2]]):
        with pytest.raises(ValueError, match='finite numbers'): sign_flip(bad)

@pytest.mark.parametrize('n', [2, 3, 8, 13])
def test_sign_flip_tries_all_signs(n):
    "One by one, of rounded differences with many equal sums"
    d = np.random.default_rng(n).normal(.3, 1, n).round(1)
    sums = np.array([d@s for s in np.stack(np.meshgrid(*[[1,-1]]*n), -1).reshape(-1, n)])
    assert sign_flip(d)[0]==(abs(sums)>=abs(d.sum())-1e-9).mean()

def test_figures_of_many_columns_are_those_of_each():
    "Columns with undefined differences in other places, with one, and with none"
    d = np.random.default_rng(0).normal(.2, 1, (6,40))
    d[np.random.default_rng(1).random(d.shape)<.2] = np.nan
    d[:,0],d[1:,1],d[:,2] = np.nan,np.nan,0
    d[0,1] = .5
    tr,te = np.arange(6)*10+100,np.arange(6)+20
    res = paired_figures(d, .9, tr, te)
    assert res.index.tolist()==list(range(40)) and list(res)==['diff','sd','pairs','p','p_min','t_low','t_high','nb_low','nb_high','nb_p']
    for j,r in res.iterrows():
        ok = ~np.isnan(d[:,j])
        assert r.pairs==ok.sum()
        if ok.any(): assert (r.p, r.p_min)==pytest.approx(sign_flip(d[ok,j])) and r['diff']==pytest.approx(d[ok,j].mean(), abs=1e-15)
        else: assert r.drop('pairs').isna().all()
        if ok.sum()<2: assert r[['sd','t_low','nb_low','nb_p']].isna().all()
        else:
            assert (r.nb_low, r.nb_high, r.nb_p)==pytest.approx(nadeau_bengio(d[ok,j], tr[ok], te[ok], .9))
            if d[ok,j].any(): assert (r.t_low, r.t_high)==pytest.approx(scs.ttest_1samp(d[ok,j], 0).confidence_interval(.9))
    many = np.random.default_rng(2).normal(.3, 1, (23,130))
    assert paired_figures(many).p.tolist()==[sign_flip(o)[0] for o in many.T]

def test_memory_of_a_report_is_a_few_times_that_of_its_probabilities():
    m = report_memory(3000, 200)
    assert m['report']<5*m['probs']

def test_nadeau_bengio():
    d = np.random.default_rng(0).normal(.1, .3, 10)
    m,s = d.mean(),d.std(ddof=1)
    lo,hi,p = nadeau_bengio(d, 900, 100, .9)
    se = s*math.sqrt(1/10+1/9)
    assert (lo,hi)==pytest.approx(scs.t.interval(.9, 9, m, se)) and p==pytest.approx(2*scs.t.sf(abs(m)/se, 9))
    ref = scs.ttest_1samp(d, 0)
    assert nadeau_bengio(d, np.inf, 1)==pytest.approx((*ref.confidence_interval(), ref.pvalue))
    assert nadeau_bengio(d, [900]*10, [100]*10, .9)==(lo,hi,p)
    assert nadeau_bengio([1,1], 9, 1)==(1,1,0) and nadeau_bengio([0,0], 9, 1)==(0,0,1)
    for kw,msg in ((dict(diffs=[1], n_train=9, n_test=1), '2 or more'), (dict(diffs=d, n_train=0, n_test=1), 'n_train'), (dict(diffs=d, n_train=9, n_test=[1,2]), 'n_test')):
        with pytest.raises(ValueError, match=msg): nadeau_bengio(**kw)

def test_nadeau_bengio_keeps_its_level_on_overlapping_splits():
    "Random splits of 50 numbers, means of test parts around 0: the plain t interval is far too narrow, the corrected one covers 90 % or more"
    rng,runs,hit,plain = np.random.default_rng(0),400,0,0
    for _ in range(runs):
        x = rng.normal(size=50)
        d = [x[rng.permutation(50)[:10]].mean() for _ in range(15)]
        lo,hi,_ = nadeau_bengio(d, 40, 10)
        hit += lo<=0<=hi
        lo,hi,_ = nadeau_bengio(d, np.inf, 10)
        plain += lo<=0<=hi
    assert scs.binom.cdf(hit, runs, .9)>scs.norm.sf(4) and scs.binom.cdf(plain, runs, .85)<scs.norm.sf(4)

def test_holm_is_statsmodels():
    rng = np.random.default_rng(0)
    for n in (1,2,7,30):
        p = rng.random(n)**3
        np.testing.assert_allclose(holm(p), multipletests(p, method='holm')[1])
    np.testing.assert_allclose(holm([.01,np.nan,.03,.03]), [.03,np.nan,.06,.06])
    assert holm([]).shape==(0,) and holm([1,1]).tolist()==[1,1]
    with pytest.raises(ValueError, match='in \\[0,1\\]'): holm([.1,1.2])

def _reports(n, k=3, seed=0, same=True, **kw):
    "Reports of `n` runs on the same items or on other ones each"
    out = []
    for j in range(n):
        p,t = _data(seed if same else seed+j, n=90, k=k)
        noise = np.random.default_rng(1000*seed+j).dirichlet(np.ones(k), 90)
        out.append(ImbalanceReport(.7*p+.3*noise, t, **{'n_boot':60, **kw}))
    return out

def test_comparison_of_two():
    a,b = _reports(2)
    c = compare(a, b)
    np.testing.assert_allclose(c.table['diff'], a.metrics.value-b.metrics.value)
    for k in c.table.index: np.testing.assert_allclose(c.table.loc[k, ['low','high']].astype(float), np.quantile(a.boot[k]-b.boot[k], [.025,.975]))
    assert c.mcnemar==mcnemar_exact(a.right, b.right)
    back = compare(b, a)
    np.testing.assert_allclose(back.table[['low','high']], -c.table[['high','low']])
    assert 'favour' not in str(compare(a, a).notes)

def test_verdict_knows_which_way_is_better():
    p,t = _data(0, n=400)
    good,bad = (ImbalanceReport(o, t, n_boot=100) for o in (p, (p+p[::-1]+.1)/(p+p[::-1]+.1).sum(1, keepdims=True)))
    for c,who in ((compare(good, bad), 'a'), (compare(bad, good), 'b')):
        text = next(o for o in c.notes if 'favour' in o)
        won = text.split(f'favour of {who}: ')[1].split(';')[0]
        assert all(k in won for k in ('accuracy','mcc','nll','brier'))

def test_comparison_over_seeds():
    a,b = _reports(6),_reports(6, seed=0, k=3)
    b = [ImbalanceReport(np.roll(o.probs, 0, 1)*.8+.2/3, o.targs, n_boot=60) for o in b]
    c = compare(a, b)
    d = np.array([x.metrics.value['nll']-y.metrics.value['nll'] for x,y in zip(a, b)])
    row = c.table.loc['nll']
    assert row['diff']==pytest.approx(d.mean()) and row.sd==pytest.approx(d.std(ddof=1)) and (row.p,row.p_min)==sign_flip(d)
    assert (row.t_low,row.t_high)==pytest.approx(tuple(scs.ttest_1samp(d, 0).confidence_interval()))
    np.testing.assert_allclose(c.pairs.nll, d)
    boot = np.mean([x.boot['nll']-y.boot['nll'] for x,y in zip(a, b)], 0)
    np.testing.assert_allclose(row[['low','high']].astype(float), np.quantile(boot, [.025,.975]))
    assert 'share their items' in str(c.notes) and 'cannot reach' not in str(c.notes) and '0.0312' in str(c.notes)
    five = compare(a[:5], b[:5])
    assert '0.0625' in str(five.notes) and '5 pairs cannot reach 0.05; 6 can' in str(five.notes)

def test_comparison_over_folds():
    a,b = (_reports(4, same=False, seed=3) for _ in range(2))
    b = [ImbalanceReport(o.probs*.9+.1/3, o.targs, n_boot=60) for o in b]
    c = compare(a, b)
    assert 'low' not in c.table and 'too optimistic' in str(c.notes) and 'share their items' not in str(c.notes)
    c = compare(a, b, n_train=[300]*4, n_test=100)
    assert tuple(c.table.loc['nll', ['nb_low','nb_high','nb_p']])==pytest.approx(nadeau_bengio(c.pairs.nll, 300, 100))
    assert 'too optimistic' not in str(c.notes)

def test_pairs_without_a_value_are_left_out_and_counted():
    rng = np.random.default_rng(0)
    lists = [[ImbalanceReport(rng.dirichlet(np.ones(2), 8), np.arange(8)%2*(j>0), n_boot=0) for j in range(4)] for _ in range(2)]
    c = compare(*lists, n_train=[1,2,3,4], n_test=1)
    assert c.table.pairs['macro_auroc']==3 and c.table.pairs['nll']==4 and 'macro_auroc has 3' in str(c.notes)
    d = c.pairs.macro_auroc[1:]
    assert c.table.p_min['macro_auroc']==.25 and c.table.loc['macro_auroc', 'nb_p']==nadeau_bengio(d, [2,3,4], 1)[2]

def test_what_cannot_be_compared_is_refused():
    a,b,c = _reports(3)
    p,t = a.probs,a.targs
    g = np.arange(90)//2
    for other,msg in ((dict(seed=1), 'seed'), (dict(n_boot=50), 'n_boot'), (dict(level=.9), 'level'), (dict(bins=5), 'bins'), (dict(groups=g), 'groups'),
        (dict(ordinal=True), 'ordinal'), (dict(train_counts=[9,99,999]), 'shot'), (dict(vocab='xyz'), 'vocab')):
        with pytest.raises(ValueError, match=f'differ in their {msg}'): compare(a, ImbalanceReport(p, t, **{'n_boot':60, **other}))
    with pytest.raises(ValueError, match='targs'): compare(a, ImbalanceReport(p, np.roll(t, 1), n_boot=60))
    with pytest.raises(ValueError, match=r'a\[1\] and b\[1\] differ in their targs'): compare([a,b], [a,ImbalanceReport(p, np.roll(t, 1), n_boot=60)])
    with pytest.raises(ValueError, match=r'a\[0\] and a\[1\] differ in their bins'): compare([a,*_reports(1, bins=4)], [a,*_reports(1, bins=4)])
    for x,y in (([a],[b]), ([a,b],[c]), ([a,b],c), ([],[]), ([a,3],[b,c])):
        with pytest.raises(ValueError, match='equal length'): compare(x, y)
    with pytest.raises(ValueError, match='single reports'): compare(a, b, n_train=1, n_test=1)
    with pytest.raises(ValueError, match='both or neither'): compare([a,b], [b,c], n_train=9)
    with pytest.raises(ValueError, match='2 pairs'): compare([a,b], [b,c], n_train=[9,9,9], n_test=1)

def test_groups_have_no_mcnemar():
    a,b = _reports(2, groups=np.arange(90)//3)
    c = compare(a, b)
    assert c.mcnemar is None and 'McNemar' in str(c.notes)

@pytest.mark.parametrize('kw,msg', [(dict(level=1), 'level=1'), (dict(n_boot=10), '40 or more'), (dict(n_boot=-1), 'n_boot=-1'), (dict(n_boot=99.5), '99.5'), (dict(bins=0), 'bins=0'),
    (dict(level=.99, n_boot=100), '200 or more'), (dict(vocab=['a']*4), '4 different'), (dict(vocab='abc'), '4 different'), (dict(train_counts=[1,2]), 'train_counts'), (dict(train_counts=[-1,2,3,4]), 'not negative'),
    (dict(groups=[1]*120), 'two or more'), (dict(groups=[1,2]), r'groups has shape \(2,\)'), (dict(groups=[None]*60+[1]*60), 'missing'), (dict(train_counts=[1]*4, shots=(5,)), 'shots')])
def test_bad_arguments_are_refused(kw, msg):
    p,t = _data(0)
    with pytest.raises(ValueError, match=msg): ImbalanceReport(p, t, **kw)

def test_bad_probabilities_are_refused():
    p,t = _data(0)
    for x,y,msg in ((p*3, t, 'logits'), (p, t+1, 'class id 4'), (p*np.nan, t, 'diverged'), (p, t[1:], 'shape')):
        with pytest.raises(ValueError, match=msg): ImbalanceReport(x, y)

def test_notes_say_what_is_wrong():
    p,t = _data(0, n=60, absent=(1,))
    t[t==2] = 0
    t[:3] = 2
    notes = ' '.join(ImbalanceReport(p, t, ['a','b','c','d'], [0,9,50,200], n_boot=50).notes)
    for part in ('Missing from the targets: b.', 'Fewer than 12 items: c (3).', 'Without a training image: a.', '1 many, 1 medium, 2 few', '50 bootstrap resamples', 'each class keeps'): assert part in notes
    g = np.arange(60)//3
    rep = ImbalanceReport(p, t, ['a','b','c','d'], groups=g, n_boot=200)
    notes = ' '.join(rep.notes)
    lost = sum((w[t==2].sum(0)==0).sum() for w in R._resamples(t, rep.groups, 200, 0))
    assert 0<lost<200 and f'Resamples without a class: c {lost} of 200' in notes and 'With 20 groups' in notes
    assert 'McNemar' not in notes
    zero = ImbalanceReport([[1.,0.],[0.,1.],[.5,.5]], [1,1,0], n_boot=0)
    assert any('1 items have a true class of probability 0' in o for o in zero.notes) and np.isfinite(zero.metrics.value['nll'])

def test_undefined_resamples_are_left_out_and_counted():
    t = np.array([0,0,0,0,1,1])
    p = np.random.default_rng(0).dirichlet(np.ones(2), 6)
    rep = ImbalanceReport(p, t, groups=[0,1,2,3,4,4], n_boot=400)
    bad = np.isnan(rep.boot['macro_auroc']).sum()
    w = np.concatenate(list(R._resamples(t, rep.groups, 400, 0)), 1)
    assert 0<bad==((w[t==0].sum(0)==0) | (w[t==1].sum(0)==0)).sum()
    assert any(f'macro_auroc in {bad}' in o for o in rep.notes)
    v = rep.boot['macro_auroc']
    np.testing.assert_allclose(rep.metrics.loc['macro_auroc', ['low','high']].astype(float), np.quantile(v[~np.isnan(v)], [.025,.975]))

def test_one_item_and_one_class():
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        rep = ImbalanceReport([[.9,.1]], [0], ordinal=True, n_boot=40)
    assert rep.metrics.value['accuracy']==1 and np.isnan(rep.metrics.loc['macro_auroc']).all()
    repr(rep), rep.to_markdown(), rep._repr_html_()

def test_renderings_hold_the_same_figures(tmp_path):
    p,t = _data(0, absent=(3,))
    vocab = ['plain','a|b','<b>&','none\nhere']
    rep = ImbalanceReport(p, t, vocab, [500,50,19,5], n_boot=60, title='A <title> | b')
    text,md,page = repr(rep),rep.to_markdown(),rep._repr_html_()
    cell = f"{rep.metrics.value['mcc']:.3f}"
    assert all(cell in o for o in (text, md, page))
    for note in rep.notes: assert ' '.join(note.split()) in ' '.join(md.split())
    rows = [o for o in md.splitlines() if o.startswith('|')]
    assert len(rows)==2+len(rep.metrics)+2+4
    assert {o.replace('\\|', '').count('|') for o in rows[-6:]}=={len(rep._tables()['By class, with 95 % intervals'].columns)+2}
    assert '<b>&<' not in page and '&lt;b&gt;&amp;' in page and 'A &lt;title&gt;' in page
    rep.to_csv(tmp_path/'r.csv')
    df = pd.read_csv(tmp_path/'r.csv', keep_default_na=False, na_values=[''], dtype={'class': str})
    assert list(df)==['figure','class','value','low','high']
    whole = df[df['class'].isna()].set_index('figure')
    np.testing.assert_allclose(whole.loc[rep.metrics.index, ['value','low','high']], rep.metrics)
    one = df[(df.figure=='recall') & (df['class']=='a|b')][['value','low','high']].values[0]
    np.testing.assert_allclose(one, rep.per_class.loc['a|b', ['recall','recall_low','recall_high']].astype(float))
    d = json.loads(rep.to_json(tmp_path/'r.json'))
    assert d==json.loads((tmp_path/'r.json').read_text()) and d['per_class']['none\nhere']['recall'] is None and d['metrics']['mcc']['value']==rep.metrics.value['mcc']
    assert d['notes']==rep.notes and d['n_boot']==60

def test_renderings_of_a_comparison(tmp_path):
    a,b = _reports(4)[:2],_reports(4)[2:]
    for c in (compare(a[0], b[0]), compare(a, b, n_train=9, n_test=1)):
        text,md,page = repr(c),c.to_markdown(),c._repr_html_()
        for k in c.table.index: assert k in text and k in md and k in page
        assert f"{c.table['diff']['nll']:+.3f}" in text
        c.to_csv(tmp_path/'c.csv')
        np.testing.assert_allclose(pd.read_csv(tmp_path/'c.csv', index_col=0), c.table)
        assert json.loads(c.to_json())['table']['mcc']['diff']==c.table['diff']['mcc']
        ax = c.plot().axes[0]
        assert len(ax.get_yticklabels())==len(c.table)
        drawn = sorted(x for o in ax.lines if o.get_marker()=='o' for x in o.get_xdata())
        np.testing.assert_allclose(drawn, sorted(c.table['diff']))
    R.plt.close('all')

@pytest.mark.parametrize('k', [2, 12, 100])
def test_picture_shows_every_class(k):
    p,t = _data(0, n=6*k, k=k, absent=(1,))
    for kw in (dict(), dict(train_counts=np.arange(k)*5), dict(vocab=[f'a very long name of class number {i}' for i in range(k)])):
        rep = ImbalanceReport(p, t, n_boot=0, **kw)
        fig = rep.plot()
        fig.canvas.draw()
        a,b,c = fig.axes
        xy = np.concatenate([np.c_[o.get_data()] for o in a.lines if o.get_marker()=='o'])
        xy = xy[xy[:,0].argsort()]
        np.testing.assert_array_equal(xy[:,0], np.arange(k))
        np.testing.assert_allclose(xy[:,1], rep.per_class.recall)
        assert 2<=len(a.get_xticks())<=30 and len(set(o.get_text() for o in a.get_xticklabels()))==len(a.get_xticks())
        np.testing.assert_allclose(sum(o.get_height() for o in b.patches), 1)
        rows = c.images[0].get_array().sum(1)
        np.testing.assert_allclose(rows, (rep.counts>0)*1.)
        R.plt.close(fig)

@pytest.fixture(scope='module')
def learn():
    "A learner on digits whose model is a random linear layer"
    set_seed(0)
    data = digits_lt(n_max=40, ratio=4)
    dls = data.dataloaders(bs=32, tfms=aug_transforms(size=8), workers=0, seed=0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    return Learner(dls, model, loss_func=CrossEntropyLossFlat())

def test_from_learner_predicts_as_the_learner_does(learn):
    data = digits_lt(n_max=40, ratio=4)
    rep = ImbalanceReport.from_learner(learn, n_boot=0, title='t')
    with learn.no_bar(): probs,targs = learn.get_preds()
    np.testing.assert_allclose(rep.probs, probs, atol=1e-7)
    np.testing.assert_array_equal(rep.targs, targs)
    assert rep.vocab==list(learn.dls.vocab) and rep.train_counts.tolist()==data.counts().tolist() and rep.title=='t'
    with learn.no_bar(): flips = learn.flip_tta()[0]
    np.testing.assert_allclose(ImbalanceReport.from_learner(learn, tta='flip', n_boot=0).probs, flips, atol=1e-7)
    other = ImbalanceReport.from_learner(learn, dl=learn.dls.valid, train_counts=False, vocab='abcdefghij', groups=np.arange(len(targs))//2, n_boot=0)
    assert other.shot is None and other.vocab==list('abcdefghij') and other.groups.max()==(len(targs)-1)//2
    assert ImbalanceReport.from_learner(learn, train_counts=range(10), n_boot=0).train_counts.tolist()==list(range(10))

@pytest.mark.parametrize('tta', [None, 'flip', 2])
def test_from_learner_gives_probabilities_of_a_plain_loss(learn, tta):
    def rep():
        set_seed(1)
        return ImbalanceReport.from_learner(learn, tta=tta, n_boot=0).probs
    want,cbs = rep(),[type(o) for o in learn.cbs]
    np.testing.assert_allclose(want.sum(1), 1, atol=1e-5)
    try:
        learn.loss_func = nn.CrossEntropyLoss()
        np.testing.assert_allclose(rep(), want, atol=1e-6)
        learn.loss_func = nn.MultiMarginLoss() # which says nothing of an activation
        with pytest.raises(ValueError, match='pass it, such as act='): rep()
        set_seed(1)
        np.testing.assert_allclose(ImbalanceReport.from_learner(learn, tta=tta, act=nn.Softmax(-1), n_boot=0).probs, want, atol=1e-6)
    finally: learn.loss_func = CrossEntropyLossFlat()
    assert [type(o) for o in learn.cbs]==cbs, 'no callback is left behind'

def test_from_learner_with_act_ignores_the_losss_own(learn):
    sharp = lambda o: (2*o).softmax(-1)
    plain = ImbalanceReport.from_learner(learn, n_boot=0).probs
    for tta in (None, 'flip'):
        got = ImbalanceReport.from_learner(learn, tta=tta, act=sharp, n_boot=0).probs
        assert got.max(1).mean()>plain.max(1).mean()+.01, tta
        np.testing.assert_allclose(got.sum(1), 1, atol=1e-5)
    with learn.no_bar(): logits = learn.get_preds(act=lambda o: o)[0]
    np.testing.assert_allclose(ImbalanceReport.from_learner(learn, act=sharp, n_boot=0).probs, sharp(logits), atol=1e-6)
    with pytest.raises(ValueError, match='cannot go together'): ImbalanceReport.from_learner(learn, tta=2, act=sharp, n_boot=0)

def test_from_learner_refuses_what_would_mislead(learn):
    for kw,msg in ((dict(ds_idx=0), r'learn.dls\[0\] shuffles'), (dict(dl=learn.dls.train), 'dl shuffles'), (dict(dl=learn.dls.train.new(shuffle=False, drop_last=True)), 'drops items'),
        (dict(ds_idx=5), 'ds_idx=5'), (dict(tta='often'), "tta='often'"), (dict(tta=0), 'tta=0'), (dict(tta=True), 'tta=True')):
        with pytest.raises(ValueError, match=msg): ImbalanceReport.from_learner(learn, n_boot=0, **kw)
    dl = learn.dls.test_dl([o for o in learn.dls.valid_ds.items[:3]], num_workers=0)
    with pytest.raises(ValueError, match='has no labels'): ImbalanceReport.from_learner(learn, dl=dl, n_boot=0)

def test_labels_that_cannot_be_found_name_the_remedy(learn, monkeypatch):
    def unknown(_): raise ValueError("No labels here.")
    monkeypatch.setattr(R, 'get_labels', unknown)
    with pytest.raises(ValueError, match='No labels here. .*train_counts=False'): ImbalanceReport.from_learner(learn, n_boot=0)
    assert ImbalanceReport.from_learner(learn, train_counts=False, n_boot=0).shot is None

def test_an_exported_learner_has_no_shot_groups(learn, tmp_path):
    from fastai.learner import load_learner
    learn.export(tmp_path/'l.pkl')
    loaded = load_learner(tmp_path/'l.pkl')
    dl = loaded.dls.test_dl(learn.dls.valid_ds.items, with_labels=True, num_workers=0)
    rep,want = ImbalanceReport.from_learner(loaded, dl=dl, n_boot=0),ImbalanceReport.from_learner(learn, n_boot=0)
    assert rep.shot is None and rep.vocab==want.vocab
    np.testing.assert_allclose(rep.probs, want.probs, atol=1e-6)

def test_the_core_needs_no_vision():
    import subprocess, sys
    code = "import sys, balmix_fastai.report; assert 'fastai.vision' not in sys.modules and 'timm' not in sys.modules"
    subprocess.run([sys.executable, '-W', 'ignore', '-c', code], check=True)

def test_the_time_of_a_report_does_not_explode():
    "2,000 resamples of 400 items take well under a second (bounded here by 3, for a loaded machine); memory is that of a chunk"
    import time, tracemalloc
    p,t = _data(0, n=400, k=5)
    start = time.process_time()
    ImbalanceReport(p, t, ordinal=True)
    assert time.process_time()-start<3
    p,t = _data(0, n=4000, k=10)
    tracemalloc.start()
    ImbalanceReport(p, t, n_boot=300)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak<120e6, 'a matrix of all weights and class segments would not fit'
