"compare: the three forms by hand, what has no interval and why, what is refused, and the size of its verdicts."
import json, math, warnings
import numpy as np, pandas as pd, pytest, scipy.stats as scs
from fastai.basics import plt
from hypothesis import given, settings, strategies as st
from balmix_fastai.compare import compare, fold_means, less_is_better, mean_estimate
from balmix_fastai.intervals import Frame, nadeau_bengio
from balmix_fastai.report import ImbalanceReport

def probabilities(rng, targs, k, skill=1.5):
    p = np.exp(rng.normal(size=(len(targs),k))+skill*np.eye(k)[targs])
    return p/p.sum(1, keepdims=True)

def reports(n, k=3, seed=0, items=90, same=True, skill=1.5, **kw):
    "Reports of `n` runs on the same items, or each on items of its own"
    out,rng = [],np.random.default_rng(seed)
    shared = rng.permutation(np.arange(items)%k),rng.normal(size=(items,k))
    for _ in range(n):
        t,base = shared if same else (rng.permutation(np.arange(items)%k),rng.normal(size=(items,k)))
        p = np.exp(base+.5*rng.normal(size=(items,k))+skill*np.eye(k)[t])
        out.append(ImbalanceReport(p/p.sum(1, keepdims=True), t, **{'n_boot':0, **kw}))
    return out

def recall_parts(rep, k):
    "Hits of the items of a class"
    return rep.right[rep.targs==k]*1.

def test_two_models_by_hand():
    "Accuracy: a paired t test of the items of each class; balanced accuracy in fixed counts: three of them"
    for stratify in (False,True):
        a,b = reports(2, stratify=stratify)
        c = compare(a, b)
        np.testing.assert_allclose(c.table['diff'], a.metrics.value-b.metrics.value)
        d = [recall_parts(a, k)-recall_parts(b, k) for k in range(3)]
        se = math.sqrt(sum(o.var(ddof=1)/30 for o in d))/3
        low,high = c.table.loc['balanced_accuracy', ['low','high']]
        assert (low+high)/2==pytest.approx(c.table['diff']['balanced_accuracy'])
        assert 1.95<(high-low)/2/se<2.05, 'equal class sizes: 2 standard errors, with many degrees of freedom'
    assert c.table.p['balanced_accuracy']==pytest.approx(2*scs.norm.sf(abs(c.table['diff']['balanced_accuracy'])/se), abs=.02)
    nll = np.log(b.probs[range(90),b.targs]/a.probs[range(90),a.targs])
    ref = scs.ttest_1samp(nll, 0).confidence_interval()
    assert tuple(compare(*(ImbalanceReport(o.probs, o.targs, n_boot=0) for o in (a,b))).table.loc['nll', ['low','high']])==pytest.approx(tuple(ref), rel=.15)

def test_the_other_way_round():
    a,b = reports(2)
    c,back = compare(a, b),compare(b, a)
    np.testing.assert_allclose(back.table[['low','high']], -c.table[['high','low']])
    np.testing.assert_allclose(back.table[['p','smallest']], c.table[['p','smallest']])

def test_over_seeds_by_hand():
    "Runs and items are two sources of error, added by Welch and Satterthwaite"
    a,b = reports(6),reports(6, seed=1)
    b = [ImbalanceReport(.8*o.probs+.2/3, a[0].targs, n_boot=0) for o in b]
    c = compare(a, b)
    for k in ('accuracy','mcc','nll','macro_auroc'):
        d = np.array([x.metrics.value[k]-y.metrics.value[k] for x,y in zip(a, b)])
        gap = np.mean([x.influence[k]-y.influence[k] for x,y in zip(a, b)], 0)
        m = np.bincount(a[0].targs)[a[0].targs]
        s,i = d.std(ddof=1)/math.sqrt(6),math.sqrt((gap**2*m/(m-1)).sum())/90
        f = a[0].frame.error(gap)[1]
        df = (s*s+i*i)**2/(s**4/5+i**4/f)
        row = c.table.loc[k]
        assert row['diff']==pytest.approx(d.mean()) and row.p==pytest.approx(2*scs.t.sf(abs(d.mean())/math.hypot(s, i), df))
        assert (row.low,row.high)==pytest.approx(scs.t.interval(.95, df, d.mean(), math.hypot(s, i)))
        assert (row.low,row.high)!=pytest.approx(tuple(scs.ttest_1samp(d, 0).confidence_interval()), rel=1e-3), 'runs alone say less'
        np.testing.assert_allclose(c.pairs[k], d)

def test_over_folds_by_hand():
    a,b = (reports(4, same=False, seed=3) for _ in range(2))
    b = [ImbalanceReport(o.probs*.9+.1*np.random.default_rng(j).dirichlet(np.ones(3), 90), o.targs, n_boot=0) for j,o in enumerate(b)]
    c = compare(a, b, n_train=[300,280,310,290], n_test=90)
    for k in ('accuracy','nll'): assert tuple(c.table.loc[k, ['low','high','p']])==pytest.approx(nadeau_bengio(c.pairs[k], [300,280,310,290], 90))
    free = compare(a, b, n_train=np.inf, n_test=90).table.loc['nll']
    assert (free.low,free.high)==pytest.approx(tuple(scs.ttest_1samp(c.pairs.nll, 0).confidence_interval())), 'training sets that do not overlap'

def folds_of(seeds, shift=0., folds=3):
    "Lists of reports of several seeds in each of some folds, the first arm a little better"
    parts = [reports(2*seeds, seed=f) for f in range(folds)]
    better = lambda o: ImbalanceReport((o.probs**(1+shift))/(o.probs**(1+shift)).sum(1, keepdims=True), o.targs, n_boot=0)
    return [better(o) for p in parts for o in p[:seeds]],[o for p in parts for o in p[seeds:]],np.repeat(np.arange(folds), seeds)

def test_seeds_within_folds_are_averaged():
    a,b,at = folds_of(3, .3)
    kw = dict(n_train=[180,170,190], n_test=[90,80,100])
    c = compare(a, b, folds=at, **kw)
    means = [np.mean([x.metrics.value['nll']-y.metrics.value['nll'] for x,y,f in zip(a, b, at) if f==g]) for g in range(3)]
    assert tuple(c.table.loc['nll', ['low','high','p']])==pytest.approx(nadeau_bengio(means, *kw.values()))
    with pytest.raises(ValueError, match='3 entries, but there are 9 folds'): compare(a, b, **kw)
    twice = compare(a+a, b+b, folds=np.r_[at,at], **kw)
    pd.testing.assert_frame_equal(twice.table, c.table)
    np.testing.assert_array_equal(fold_means([[1.],[3],[8]], ['y','x','y']), [[3],[4.5]])

def test_the_order_of_pairs_does_not_matter():
    a,b,at = folds_of(2, .3)
    i = np.random.default_rng(0).permutation(6)
    turned = [a[j] for j in i],[b[j] for j in i]
    kw = dict(n_train=[180,170,190], n_test=90)
    pd.testing.assert_frame_equal(compare(*turned, folds=at[i], **kw).table, compare(a, b, folds=at, **kw).table)
    pd.testing.assert_frame_equal(compare(*turned, folds=np.array(list('xyz'))[at[i]], **kw).table, compare(a, b, folds=at, **kw).table)
    a,b = reports(5),[ImbalanceReport(.9*o.probs+.1/3, o.targs, n_boot=0) for o in reports(5, seed=0)]
    pd.testing.assert_frame_equal(compare(a[::-1], b[::-1]).table, compare(a, b).table)

def all_explained(c):
    "Is each difference without an interval explained, and no other one, in the tables and in a note?"
    lacks = c.table.index[c.table.low.isna()]
    assert set(c.reasons)==set(lacks)==set(c.table.index[c.table.high.isna()])
    text = repr(c)
    for k in lacks: assert c.reasons[k] and c.reasons[k] in ' '.join(text.split()) and any(k in o and c.reasons[k] in o for o in c.notes)
    assert c.table.p.drop([k for k in lacks if c.table.p[k]!=1]).notna().all()

def test_equal_predictions():
    a = reports(3, ordinal=True)
    for c in (compare(a[0], a[0]), compare(a, a), compare(a, a, n_train=180, n_test=90)):
        all_explained(c)
        t = c.table.drop(['ece','classwise_ece'])
        assert (t['diff']==0).all() and (t.p==1).all() and t.low.isna().all()
        assert all(c.reasons[k]=='no run and no item differs' for k in t.index)
        assert 'favour' not in str(c.notes) and c.reasons['ece']=='compare nll and brier instead'

def test_differences_that_are_the_same_everywhere():
    "An error of 0 gives no interval, also where floating point leaves a little"
    t = np.arange(60)%3
    a,b = (ImbalanceReport(np.eye(3)[t]*o+(1-o)/3, t, n_boot=0) for o in (.7,.6))
    for c in (compare(a, b), compare([a]*3, [b]*3), compare([a]*3, [b]*3, n_train=120, n_test=60)):
        all_explained(c)
        assert c.table['diff']['nll']<0 and np.isnan(c.table.p['nll']) and c.reasons['nll']=='all runs or items differ by the same'

def test_a_run_that_decides_for_one_class_only():
    "Kendall's tau is not defined for it, the error of MCC neither; all other metrics are compared"
    a,b = reports(3, ordinal=True),reports(3, seed=0, ordinal=True, skill=1.)
    flat = ImbalanceReport(np.tile([.5,.3,.2], (90,1)), a[0].targs, ordinal=True, n_boot=0)
    for x,y in ((a[:2]+[flat], b), (a, b[:2]+[flat])):
        c = compare(x, y)
        all_explained(c)
        assert c.reasons['kendall_tau']=='not defined' and c.reasons['mcc']=='its error is not defined in all reports'
        assert c.table.low.isna().sum()==4 and np.isnan(c.table.p['mcc'])
    c = compare(flat, flat)
    all_explained(c)

def test_rare_classes_have_no_interval_of_means():
    rng = np.random.default_rng(0)
    t = np.repeat([0,1,2], [50,29,11])
    a,b = (ImbalanceReport(probabilities(rng, t, 3), t, n_boot=0) for _ in range(2))
    c = compare(a, b)
    all_explained(c)
    assert set(c.reasons)=={'balanced_accuracy','macro_f1','macro_auroc','macro_auprc','ece','classwise_ece'} and 'fewer than 12 items of 2' in c.reasons['macro_f1']
    g = np.arange(90)%29
    all_explained(c := compare(*(ImbalanceReport(o.probs, t, groups=g, n_boot=0) for o in (a,b))))
    assert len(c.reasons)==len(c.table) and '29 groups, fewer than 30' in c.reasons['accuracy']

def test_metrics_that_some_folds_lack():
    rng = np.random.default_rng(0)
    lists = [[ImbalanceReport(rng.dirichlet(np.ones(2), 8), np.arange(8)%2*(j>0), n_boot=0) for j in range(4)] for _ in range(2)]
    c = compare(*lists, n_train=24, n_test=8)
    all_explained(c)
    assert np.isnan(c.table['diff']['macro_auroc']) and c.reasons['macro_auroc']=='not defined in all reports' and c.table.p['nll']<=1
    shots = [[ImbalanceReport(rng.dirichlet(np.ones(2), 8), np.arange(8)%2*(j>0), train_counts=[200,5], n_boot=0) for j in range(4)] for _ in range(2)]
    c = compare(*shots, n_train=24, n_test=8)
    all_explained(c)
    assert c.reasons['few']=='not defined in all reports' and 'many' not in c.reasons

def test_which_way_is_better():
    t = np.arange(400)%4
    p = probabilities(np.random.default_rng(0), t, 4)
    good,bad = (ImbalanceReport(o, t, n_boot=0) for o in (p, (p+p[::-1]+.1)/(p+p[::-1]+.1).sum(1, keepdims=True)))
    assert less_is_better==('nll','brier','ece','classwise_ece')
    for c,who in ((compare(good, bad), 'a'), (compare(bad, good), 'b')):
        text = next(o for o in c.notes if 'favour' in o)
        won = text.split(f'favour of {who}: ')[1].split(';')[0]
        assert all(k in won for k in ('accuracy','mcc','nll','brier'))

@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32-1), runs=st.integers(1, 4), level=st.sampled_from([.9,.95,.99]))
def test_intervals_notes_and_p_never_contradict_each_other(seed, runs, level):
    a,b = (reports(runs, seed=seed, items=60, skill=o, level=level) for o in (1.5,1.))
    c = compare(a, b) if runs>1 else compare(a[0], b[0])
    all_explained(c)
    note = next(o for o in c.notes if 'of one t test' in o)
    apart = note.split('ot told apart: ')[1].rstrip('.').split(', ') if 'ot told apart' in note else []
    for k,r in c.table.iterrows():
        if np.isnan(r.p): continue
        assert (r.p<1-level)==(r.low>0 or r.high<0)==(k not in apart), k

def test_notes_name_the_population():
    a,b = reports(2)
    says = lambda c: ' '.join(c.notes)
    assert 'same trained model' in says(compare(a, b)) and 'other random samples of such items' in says(compare(a, b)) and 'pass lists of reports' in says(compare(a, b))
    assert 'new runs, measured on other random samples of such items' in says(compare([a,b], [b,a]))
    fixed,groups = reports(2, stratify=True),reports(2, groups=np.arange(90)//2)
    assert 'in the same numbers of each class' in says(compare(fixed, fixed)) and 'other patients' in says(compare(groups, groups))
    c = compare(*folds_of(2)[:2], folds=folds_of(2)[2], n_train=180, n_test=90)
    assert '6 pairs of runs in 3 folds' in says(c) and 'new training sets, runs and items' in says(c) and 'Nadeau and Bengio' in says(c)
    assert 'Only a is right on' in says(compare(a, b)) and 'McNemar' not in says(compare(a, b))

def test_smallest_difference_stands_beside():
    "A comparison of the same design finds it in 80 % of cases: about 2.8 standard errors where degrees of freedom are many"
    c = compare(*reports(2, items=900))
    r = c.table.loc['accuracy']
    assert r.smallest/((r.high-r.low)/2/1.96)==pytest.approx(scs.norm.isf(.025)+scs.norm.isf(.2), rel=.01)

def test_what_cannot_be_compared_is_refused():
    a,b,c = reports(3)
    p,t = a.probs,a.targs
    for other,msg in ((dict(level=.9), 'level'), (dict(bins=5), 'bins'), (dict(groups=np.arange(90)//2), 'groups'), (dict(stratify=True), 'stratify'),
        (dict(ordinal=True), 'ordinal'), (dict(train_counts=[9,99,999]), 'shot'), (dict(vocab='xyz'), 'vocab')):
        with pytest.raises(ValueError, match=f'differ in their {msg}'): compare(a, ImbalanceReport(p, t, **{'n_boot':0, **other}))
    compare(a, ImbalanceReport(p, t, n_boot=50, seed=3)) # the labels drawn for calibration are no part of it
    roll = ImbalanceReport(p, np.roll(t, 1), n_boot=0)
    with pytest.raises(ValueError, match='targs'): compare(a, roll)
    with pytest.raises(ValueError, match=r'a\[1\] and b\[1\] differ in their targs'): compare([a,b], [a,roll])
    with pytest.raises(ValueError, match=r'a\[0\] and a\[1\] differ in their targs.*For folds or random splits'): compare([a,roll], [a,roll])
    with pytest.raises(ValueError, match=r'a\[0\] and a\[1\] differ in their bins'): compare([a,*reports(1, bins=4)], [a,*reports(1, bins=4)])
    for x,y in (([a],[b]), ([a,b],[c]), ([a,b],c), ([],[]), ([a,3],[b,c])):
        with pytest.raises(ValueError, match='equal length'): compare(x, y)
    for kw in (dict(n_train=1, n_test=1), dict(folds=[0])):
        with pytest.raises(ValueError, match='single reports'): compare(a, b, **kw)
    for kw,msg in ((dict(n_train=9), 'both or neither'), (dict(folds=[0,1]), 'needs n_train'), (dict(n_train=[9,9,9], n_test=1), 'there are 2 folds'), (dict(n_train=-1, n_test=1), 'n_train'),
        (dict(n_train=9, n_test=1, folds=[0,0]), 'one fold'), (dict(n_train=9, n_test=1, folds=[0,1,2]), '3 entries')):
        with pytest.raises(ValueError, match=msg): compare([a,b], [b,c], **kw)

def test_one_fold_says_nothing_of_others():
    est = mean_estimate([[.1,.2],[.2,.3]], folds=[0,0], n_train=9, n_test=1)
    assert np.isnan(est.ends()).all() and np.isnan(est.p()).all() and est.value.tolist()==pytest.approx([.15,.25])

def test_renderings(tmp_path):
    a,b = reports(2),reports(2, skill=1.)
    for c in (compare(a[0], b[0], title='A <b> | c'), compare(a, b, n_train=9, n_test=1)):
        text,md,page = repr(c),c.to_markdown(),c._repr_html_()
        for k in c.table.index: assert k in text and k in md and k in page
        assert f"{c.table['diff']['nll']:+.3f}" in text and '<b>' not in page.replace('<p><b>', '')
        for o in c.notes: assert ' '.join(o.split()) in ' '.join(text.replace('\n  ', ' ').split())
        c.to_csv(tmp_path/'c.csv')
        np.testing.assert_allclose(pd.read_csv(tmp_path/'c.csv', index_col=0), c.table)
        assert list(c.table)==['a','b','diff','low','high','p','smallest']
        d = json.loads(c.to_json(tmp_path/'c.json'))
        assert d==json.loads((tmp_path/'c.json').read_text()) and d['table']['mcc']['diff']==c.table['diff']['mcc'] and d['table']['ece']['low'] is None and d['reasons']==c.reasons
        ax = c.plot().axes[0]
        assert len(ax.get_yticklabels())==len(c.table)
        drawn = sorted(x for o in ax.lines if o.get_marker()=='o' for x in o.get_xdata())
        np.testing.assert_allclose(drawn, sorted(c.table['diff']))
    plt.close('all')

def test_nothing_is_warned_of():
    t = np.arange(60)%3
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        flat = ImbalanceReport(np.full((60,3), 1/3), t, ordinal=True, n_boot=0)
        for c in (compare(flat, flat), compare([flat]*2, [flat]*2), compare([flat]*2, [flat]*2, n_train=1, n_test=1)): repr(c), c.to_markdown(), c._repr_html_()

def size(runs, reps=400, n=100):
    "Verdicts at level .05 on models (or, with several runs, ways to train) that are equal: accuracy of decisions that share what is hard"
    rng,hits = np.random.default_rng(0),0
    for _ in range(reps):
        hard = rng.normal(size=n)+.7*rng.normal(size=(2,1,n)) # for all models, and for those of an arm
        right = hard+.7*rng.normal(size=(2,runs,n))+.3*rng.normal(size=(2,runs,1))*(runs>1) > -.8 # some runs are better than others
        gap = right[0].mean(0)-right[1].mean(0)
        est = mean_estimate((right[0].mean(1)-right[1].mean(1))[:,None], Frame(np.zeros(n, int), 1).error((gap-gap.mean())[:,None]))
        hits += int(est.p()[0]<.05)
    return hits

def within(hits, reps, low, high):
    "Can `hits` be of a rate from `low` to `high`, but for chance (z of 3.5)?"
    return scs.binom.cdf(hits, reps, low)>scs.norm.sf(3.5) and scs.binom.sf(hits-1, reps, high)>scs.norm.sf(3.5)

@pytest.mark.parametrize('runs', [1, 3, 10])
def test_size_of_verdicts_on_one_test_set(runs): assert within(hits := size(runs), 400, .03, .07), hits

def folds_size(folds, seeds, reps=400, n=200):
    "Verdicts on two recipes that are equal by symmetry: nearest class means in one or the other half of the features, cross-validated"
    rng,hits = np.random.default_rng(0),[0,0]
    def right(x, y, tr, te): # in a bootstrap of the training items
        i = rng.choice(tr, len(tr))
        a,b = x[i][y[i]==1].mean(0),x[i][y[i]==0].mean(0)
        return ((x[te]-(a+b)/2)@(a-b)>0)==y[te]
    for _ in range(reps):
        y = rng.integers(0, 2, n)
        x,part = rng.normal(size=(n,12))+.35*y[:,None],rng.permutation(np.arange(n)%folds)
        sets = [(np.flatnonzero(part!=f),np.flatnonzero(part==f)) for f in range(folds)]
        d = [[right(x[:,:6], y, *o).mean()-right(x[:,6:], y, *o).mean()] for o in sets for _ in range(seeds)]
        at = np.repeat(range(folds), seeds)
        hits[0] += int(mean_estimate(d, folds=at, n_train=n-n/folds, n_test=n/folds).p()[0]<.05)
        hits[1] += int(scs.ttest_1samp(np.ravel(d), 0).pvalue<.05)
    return hits

@pytest.mark.parametrize('folds,seeds', [(5, 1), (5, 4)])
def test_size_of_verdicts_over_folds(folds, seeds):
    "At most 5 %, and not never; runs of all folds taken as independent are called different far more often where there are several seeds"
    hits,pairs = folds_size(folds, seeds)
    assert within(hits, 400, .005, .05), hits
    if seeds>1: assert not within(pairs, 400, 0, .1), pairs
