"report: values against scikit-learn and the plain functions, reasons where there is no interval, calibration against a plain simulation, rendering."
import json, math, warnings
import numpy as np, pandas as pd, pytest, scipy.stats as scs, sklearn.metrics as skm, torch
from hypothesis import given, settings, strategies as st
from statsmodels.stats.proportion import proportion_confint
from fastai.basics import CrossEntropyLossFlat, Learner, nn
from fastai.torch_core import set_seed
from fastai.vision.augment import aug_transforms
from balmix_fastai import report as R
from balmix_fastai.datasets import digits_lt
from balmix_fastai.bench import report_memory
from balmix_fastai.metrics import ShotAccuracy, brier, classwise_ece, ece, imbalance_metrics, macro_auprc, nll
from balmix_fastai.report import ImbalanceReport

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

@pytest.mark.parametrize('absent', [(), (2,), (0,3)])
def test_report_holds_the_plain_values(absent):
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

def explained(rep):
    "Has each metric without an interval a reason that is printed, and no other one a reason?"
    lacks = rep.metrics.index[rep.metrics.low.isna()]
    assert set(rep.reasons)==set(lacks)==set(rep.metrics.index[rep.metrics.high.isna()])
    shown = ' '.join(repr(rep).split())
    for k in lacks: assert rep.reasons[k] in shown and (k in ('ece','classwise_ece') or any(k in o and rep.reasons[k] in o for o in rep.notes))
    ok = rep.metrics.dropna()
    assert ((ok.low<=ok.value) & (ok.value<=ok.high) & (ok.low<ok.high)).all()

@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32-1), n=st.integers(1, 120), k=st.integers(2, 5), kind=st.sampled_from(['ties','plain','same','perfect','wrong']), drawn=st.sampled_from(['items','counts','groups']),
    data=st.data())
def test_no_interval_goes_without_a_word(seed, n, k, kind, drawn, data):
    absent = data.draw(st.sets(st.integers(0, k-1), max_size=k-1))
    p,t = _data(seed, n, k, absent, kind=='ties')
    if kind=='same': p = np.full((n,k), 1/k)
    if kind in ('perfect','wrong'): p = np.eye(k)[(t+(kind=='wrong'))%k]
    groups = np.random.default_rng(seed).integers(0, n//2+1, n) if drawn=='groups' and n>3 else None
    if groups is not None: groups[0] = -1 # two groups at least
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        rep = ImbalanceReport(p, t, train_counts=[300,50,5,0,200][:k], ordinal=True, groups=groups, stratify=drawn=='counts', n_boot=0)
    explained(rep)
    pc = rep.per_class
    for c in ('recall','precision','f1','auroc','mean_prob','prevalence'):
        low,v,high = pc[[f'{c}_low',c,f'{c}_high']].astype(float).values.T
        assert (np.isnan(low)==np.isnan(high)).all() and (np.isnan(low) | (low<=v+1e-12) & (v<=high+1e-12)).all(), c

def test_intervals_have_the_width_of_a_bootstrap():
    "Of the plain functions, on 400 resamples of the items, of the items of each class, or of groups: the same standard errors"
    p,t = _data(4, n=300, k=3, skill=1)
    groups = np.arange(300)//2
    at,rng = [np.flatnonzero(t==k) for k in range(3)],np.random.default_rng(0)
    draws = dict(items=lambda: rng.integers(0, 300, 300), counts=lambda: np.concatenate([rng.choice(o, len(o)) for o in at]),
        groups=lambda: (2*rng.integers(0, 150, 150)[:,None]+[0,1]).ravel())
    for kind,draw in draws.items():
        rep = ImbalanceReport(p, t, ordinal=True, groups=groups if kind=='groups' else None, stratify=kind=='counts', n_boot=0)
        parts = [(p[i],t[i]) for i in (draw() for _ in range(400))]
        boot = pd.DataFrame([imbalance_metrics(*o, True) | dict(nll=nll(*o), brier=brier(*o), macro_auprc=macro_auprc(*o)) for o in parts])
        for k in boot: assert rep.frame.error(rep.influence[k])[0]==pytest.approx(boot[k].std(), rel=4/math.sqrt(2*400)), (kind, k)

def test_interval_of_a_metric_by_hand():
    "MCC on Fisher's scale, with the degrees of freedom of its error"
    p,t = _data(4, n=300, k=3, skill=1)
    for level in (.8,.95):
        rep = ImbalanceReport(p, t, n_boot=0, level=level)
        se,df = rep.frame.error(rep.influence['mcc'])
        v = rep.metrics.value.mcc
        half = scs.t.ppf((1+level)/2, df)*se/(1-v*v)
        assert tuple(rep.metrics.loc['mcc', ['low','high']])==pytest.approx((np.tanh(np.arctanh(v)-half),np.tanh(np.arctanh(v)+half)))
        assert tuple(rep.metrics.loc['accuracy', ['low','high']])==pytest.approx(proportion_confint(rep.right.sum(), 300, 1-level, 'wilson'))

def test_figures_of_the_classes_by_hand():
    p,t = _data(4, n=300, k=3, skill=1)
    rep = ImbalanceReport(p, t, n_boot=0, level=.9)
    pc,called,hits = rep.per_class,np.bincount(p.argmax(1), minlength=3),np.bincount(t[rep.right], minlength=3)
    want = dict(recall=(hits, pc.n), precision=(hits, called), prevalence=(pc.n, 300))
    for k,(a,b) in want.items(): np.testing.assert_allclose(pc[[f'{k}_low',f'{k}_high']].T, proportion_confint(a, b, alpha=.1, method='wilson'))
    jaccard = np.array(proportion_confint(hits, pc.n+called-hits, alpha=.1, method='wilson'))
    np.testing.assert_allclose(pc[['f1_low','f1_high']].T, 2*jaccard/(1+jaccard))
    for k in range(3):
        pos,neg = p[t==k,k],p[t!=k,k]
        psi = (pos[:,None]>neg) + .5*(pos[:,None]==neg)
        a,se = psi.mean(),math.sqrt(psi.mean(1).var(ddof=1)/len(pos)+psi.mean(0).var(ddof=1)/len(neg)) # DeLong
        low,high = scs.norm.interval(.9, math.log(a/(1-a)), se/a/(1-a))
        np.testing.assert_allclose(pc[['auroc_low','auroc_high']].values[k], 1/(1+np.exp([-low,-high])), atol=2e-3) # the normal quantile for t with many degrees of freedom
        m,s = p[:,k].mean(),p[:,k].std()/math.sqrt(300)
        low,high = scs.norm.interval(.9, math.log(m/(1-m)), s/m/(1-m))
        np.testing.assert_allclose(pc[['mean_prob_low','mean_prob_high']].values[k], 1/(1+np.exp([-low,-high])), atol=2e-3)
    fixed = ImbalanceReport(p, t, n_boot=0, stratify=True).per_class
    assert fixed[['prevalence_low','prevalence_high']].isna().all(axis=None) and fixed.recall_low.notna().all()

means = {'balanced_accuracy','macro_f1','macro_auroc','macro_auprc'}
always = {'ece':'biased by chance; see calibration errors', 'classwise_ece':'biased by chance; see calibration errors'}

@pytest.mark.parametrize('rarest', [11, 12])
@pytest.mark.parametrize('stratify', [False, True])
def test_eleven_items_of_a_class_are_too_few_and_twelve_are_not(rarest, stratify):
    t = np.repeat([0,1,2], [60,40,rarest])
    p = np.random.default_rng(0).dirichlet(np.ones(3), len(t))
    rep = ImbalanceReport(p, t, ['a','b','rare'], [300,50,5], n_boot=0, stratify=stratify)
    explained(rep)
    why = dict.fromkeys(means | {'few'}, 'fewer than 12 items of rare')
    assert rep.reasons==(always | why if rarest<12 else always)
    row = rep.per_class.loc['rare']
    assert np.isnan(row['f1_low'])==(rarest<12) and row.recall_low<row.recall_high
    assert rep.per_class.loc['a', ['f1_low','auroc_low']].notna().all()

@pytest.mark.parametrize('rarest', [19, 20])
def test_auroc_of_a_class_needs_twenty_items_and_twenty_others(rarest):
    t = (np.arange(60+rarest)<60)*1
    p = np.random.default_rng(0).dirichlet(np.ones(2), len(t))
    for kw in (dict(), dict(groups=np.arange(len(t)))): assert ImbalanceReport(p, t, n_boot=0, **kw).per_class.auroc_low.isna().tolist()==[rarest<20]*2

@pytest.mark.parametrize('n', [29, 30])
def test_29_groups_are_too_few_and_30_are_not(n):
    rng = np.random.default_rng(0)
    g = np.arange(6*n)//6
    t = np.tile([0,1,2], 2*n)
    rep = ImbalanceReport(rng.dirichlet(np.ones(3), 6*n), t, groups=g, ordinal=True, n_boot=0)
    explained(rep)
    if n==30: assert rep.reasons==always and rep.per_class.notna().all(axis=None)
    else:
        assert set(rep.reasons)==set(rep.metrics.index) and {v for k,v in rep.reasons.items() if k not in always}=={'29 groups, fewer than 30'}
        assert rep.per_class.filter(regex='_low|_high').isna().all(axis=None)

def test_a_class_in_few_groups():
    "30 groups, of which 11 or 20 hold the class in equal numbers; and one more that holds nearly all of it"
    t = np.tile([0,0,1,1], 30)
    g = np.arange(120)//4
    for few in (np.where(g<11, 2*(t>0), t), np.where(g<20, 2*(t>0), t)):
        rep = ImbalanceReport(np.random.default_rng(0).dirichlet(np.ones(3), 120), few*(few!=1), groups=g, n_boot=0)
        explained(rep)
        small = rep.frame.units[2]<12
        assert (rep.reasons.get('macro_f1')=='fewer than 12 groups of 2')==small==(g[few==2].max()<12)
    big = np.r_[np.full(100, 2),few]
    rep = ImbalanceReport(np.random.default_rng(0).dirichlet(np.ones(3), 220), big, groups=np.r_[np.full(100, 0),g], n_boot=0)
    assert rep.frame.units[2]<3 and rep.reasons['balanced_accuracy']=='fewer than 12 groups of 1, 2' and 'accuracy' not in rep.reasons

def test_one_item_one_class_and_one_probability():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        one = ImbalanceReport([[.9,.1]], [0], ordinal=True, n_boot=40)
        same = ImbalanceReport(np.tile([.6,.3,.1], (50,1)), np.zeros(50, int), ordinal=True, n_boot=40)
        flat = ImbalanceReport(np.full((90,3), 1/3), np.arange(90)%3, ordinal=True, n_boot=40)
    for rep in (one, same, flat):
        explained(rep)
        rep.to_markdown(), rep._repr_html_(), rep.to_json()
    assert one.metrics.value['accuracy']==1 and np.isnan(one.metrics.loc['macro_auroc']).all() and one.reasons['macro_auroc']=='not defined' and one.reasons['nll']=='no item differs from another'
    assert tuple(one.metrics.loc['accuracy', ['low','high']])==pytest.approx(proportion_confint(1, 1, method='wilson'))
    assert same.metrics.value['balanced_accuracy']==1 and same.reasons['brier']=='no item differs from another' and same.reasons['macro_auprc']=='not defined'
    assert flat.metrics.value['mcc']==0 and flat.reasons['mcc']=='its error is not defined' and flat.reasons['nll']==flat.reasons['macro_auprc']=='no item differs from another'
    assert flat.reasons['kendall_tau']=='not defined'

def test_all_right_and_all_wrong():
    t = np.arange(60)%3
    for g,v in ((t, 1.), ((t+1)%3, 0.)):
        rep = ImbalanceReport(np.eye(3)[g]*.8+.2/3, t, n_boot=0)
        explained(rep)
        assert rep.metrics.value['accuracy']==rep.metrics.value['balanced_accuracy']==v and rep.reasons['balanced_accuracy']=='no item differs from another'
        assert tuple(rep.metrics.loc['accuracy', ['low','high']])==pytest.approx(proportion_confint(v*60, 60, method='wilson'))
    perfect = ImbalanceReport(np.eye(3)[t], t, n_boot=0).metrics.value
    assert perfect.nll==perfect.brier==0 and math.copysign(1, perfect.nll)==math.copysign(1, nll(np.eye(3), [0,1,2]))==1 and '-0.000' not in repr(rep)

def test_a_value_at_the_end_of_its_scale_has_no_interval(monkeypatch):
    "Should an error ever be left there"
    t,own = np.arange(60)%2,ImbalanceReport._influences
    monkeypatch.setattr(ImbalanceReport, '_influences', lambda self: own(self) | dict(macro_f1=t-.5))
    rep = ImbalanceReport(np.eye(2)[t]*.8+.1, t, n_boot=0)
    explained(rep)
    assert rep.metrics.value['macro_f1']==1 and rep.reasons['macro_f1']=='the value is at the end of its scale'

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
    pd.testing.assert_frame_equal(a.calibration, b.calibration)
    for bad,msg in ((g[1:], 'guess has shape'), (g+1, 'guess holds the class id 4'), (g*1., 'guess holds float64')):
        with pytest.raises(ValueError, match=msg): ImbalanceReport(p, t, guess=bad)

def test_shot_groups_without_test_items_are_no_metric():
    p,t = _data(2, absent=(3,))
    rep = ImbalanceReport(p, t, train_counts=[500,50,60,5], n_boot=0)
    assert [o for o in rep.metrics.index if o in ('many','medium','few')]==['many','medium']
    assert rep.per_class.shot.tolist()==['many','medium','medium','few']
    assert ImbalanceReport(p, t, train_counts=[500,50,60,5], cuts=(2,3), n_boot=0).per_class.shot.tolist()==['many','medium','many','few']
    assert not {'many','medium','few'} & set(ImbalanceReport(p, t, n_boot=0).metrics.index)

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
    for k in ('prevalence','recall','precision','auroc','mean_prob'):
        ratio = (b.per_class[f'{k}_high']-b.per_class[f'{k}_low'])/(a.per_class[f'{k}_high']-a.per_class[f'{k}_low'])
        ratio = ratio.dropna() # AUROC needs 20 groups
        assert len(ratio)>=2 and ((1.7<ratio) & (ratio<2.6)).all(), 'about the square root of 5'
    small = np.bincount(t[::5])<12
    assert any('Fewer than 12 groups' in o for o in b.notes)==small.any()

def simulated(rng, n, pi=(.6,.25,.15), group=1):
    "Items (in groups that share class and difficulty) and the probabilities of a model"
    t = np.repeat(rng.choice(3, n//group, p=pi), group)
    base = np.repeat(rng.normal(0, .9, (n//group,3)), group, 0)
    p = np.exp(base+.6*rng.normal(size=(n,3))+1.8*np.eye(3)[t]+.8*np.log(pi))
    return p/p.sum(1, keepdims=True), t

def covered(n, reps, group=1, report_groups=True):
    "How often the intervals of a report contain the true value"
    rng = np.random.default_rng(0)
    truth = ImbalanceReport(*simulated(rng, 200_000), n_boot=0).metrics.value
    hits,shown = pd.Series(0, index=truth.index),pd.Series(0, index=truth.index)
    for _ in range(reps):
        m = ImbalanceReport(*simulated(rng, n, group=group), groups=np.arange(n)//group if group>1 and report_groups else None, n_boot=0).metrics
        hits,shown = hits+((m.low<=truth) & (truth<=m.high)),shown+m.low.notna()
    return hits[shown>.8*reps],shown

def test_intervals_cover():
    "Of 95 % intervals 93 to 97 % should cover, on random samples of 200; counts within z=3.5 of that"
    hits,n = covered(200, 400)
    assert len(hits)==8
    for k,h in hits.items(): assert scs.binom.cdf(h, n[k], .93)>scs.norm.sf(3.5) and scs.binom.sf(h-1, n[k], .97)>scs.norm.sf(3.5), (k, h, n[k])

def test_intervals_of_groups_cover_where_those_of_items_do_not():
    "Four images a patient share class and difficulty"
    hits,n = covered(400, 200, group=4)
    naive,_ = covered(400, 200, group=4, report_groups=False)
    for k,h in hits.items(): assert scs.binom.cdf(h, n[k], .92)>scs.norm.sf(3.5) and scs.binom.sf(h-1, n[k], .98)>scs.norm.sf(3.5), (k, h, n[k])
    assert scs.binom.cdf(naive['accuracy'], 200, .9)<scs.norm.sf(3.5)

def test_fixed_counts_are_covered_by_stratified_intervals():
    "Test sets of 120, 50 and 30 items: intervals of a random sample are too wide for accuracy, where the classes differ much"
    rng,recall,t = np.random.default_rng(0),np.array([.95,.5,.2]),np.repeat([0,1,2], [120,50,30])
    truth,hits,width = (recall*[120,50,30]).sum()/200,dict(fixed=0, random=0),{}
    for _ in range(400):
        g = np.where(rng.random(200)<recall[t], t, (t+1)%3)
        for k in hits:
            low,high = ImbalanceReport(np.eye(3)[g]*.8+.2/3, t, stratify=k=='fixed', n_boot=0).metrics.loc['accuracy', ['low','high']]
            hits[k] += low<=truth<=high
    assert scs.binom.cdf(hits['fixed'], 400, .93)>scs.norm.sf(3.5) and scs.binom.sf(hits['fixed']-1, 400, .97)>scs.norm.sf(3.5) and hits['random']>=390, hits

def test_calibration_of_the_audit():
    "Probabilities on the borders of bins: the same in both precisions, and as in torchmetrics 1.8 (.0833)"
    p,t = np.array([[.2,.8],[.4,.6],[.6,.4],[1/3,2/3]]),[1,1,0,0]
    for o in (p, p.astype(np.float32), torch.tensor(p), torch.tensor(p).float()):
        rep = ImbalanceReport(o, t, bins=5, n_boot=0)
        assert ece(o, t, 5)==pytest.approx(1/12, abs=1e-6) and rep.calibration.value['ece']==rep.metrics.value['ece']==pytest.approx(1/12, abs=1e-6)

def test_range_under_perfect_calibration_is_that_of_a_plain_simulation():
    "Of labels drawn one by one: the ends have the rank that they should have among 2,000 plain errors, within 4 standard errors"
    p,t = _data(0, n=80, k=3)
    cal,rng = ImbalanceReport(p, t, n_boot=2000, bins=10, level=.9).calibration,np.random.default_rng(1)
    draws = [np.array([rng.choice(3, p=o) for o in p]) for _ in range(2000)]
    for name,f in (('ece',ece), ('classwise_ece',classwise_ece)):
        plain = np.array([f(p, y, 10) for y in draws])
        for end,q in (('calibrated_low',.05), ('calibrated_high',.95)):
            v,tol = cal[end][name],4*math.sqrt(2*q*(1-q)/2000)
            assert (plain<v-1e-9).mean()<q+tol and (plain<=v+1e-9).mean()>q-tol, (name, end)
    assert cal.value.tolist()==[f(p, t, 10) for f in (ece,classwise_ece)] and cal.debiased.tolist()==[f(p, t, 10, debias=True) for f in (ece,classwise_ece)]

@pytest.mark.parametrize('power,n', [(1., 100), (1., 1000), (2., 100), (2., 1000)])
def test_debiased_errors_are_nearer_to_the_truth(power, n):
    "In the mean over 200 test sets, by more than 4 Monte-Carlo standard errors; calibrated ones within .02 of 0 at 1,000 items"
    rng = np.random.default_rng(0)
    def draw(n):
        q = rng.dirichlet([.5,.5,.5], n)
        t = (rng.random((n,1))>q.cumsum(1)).sum(1).clip(max=2)
        p = q**power
        return p/p.sum(1, keepdims=True),t
    big,sets = draw(200_000),[draw(n) for _ in range(200)]
    for f in (ece, classwise_ece):
        plain,less = (np.array([f(*o, debias=d) for o in sets]) for d in (False,True))
        truth = f(*big, debias=True)
        se = np.hypot(plain.std(), less.std())/math.sqrt(200)
        if n==100 or power==1: assert abs(less.mean()-truth)+4*se<abs(plain.mean()-truth), f.__name__
        if n==1000: assert abs(less.mean()-truth)<(.02 if power==1 else .01)

def test_no_sets_of_labels_leave_the_errors():
    p,t = _data(0)
    rep,full = ImbalanceReport(p, t, n_boot=0),ImbalanceReport(p, t, n_boot=40)
    pd.testing.assert_frame_equal(rep.metrics, full.metrics)
    pd.testing.assert_frame_equal(rep.calibration[['value','debiased']], full.calibration[['value','debiased']])
    assert rep.calibration[['calibrated_low','calibrated_high']].isna().all(axis=None) and full.calibration.notna().all(axis=None)
    assert not any('Range if calibrated' in o for o in rep.notes) and any('40 sets of labels' in o for o in full.notes)

def test_repeatable():
    p,t = _data(0)
    a,b,c = (ImbalanceReport(p, t, n_boot=60, seed=s) for s in (0,0,1))
    pd.testing.assert_frame_equal(a.calibration, b.calibration)
    pd.testing.assert_frame_equal(a.metrics, c.metrics)
    assert (a.calibration!=c.calibration).any(axis=None)
    state = np.random.get_state()[1].copy()
    ImbalanceReport(p, t, n_boot=50)
    assert (np.random.get_state()[1]==state).all(), 'no global generator'

def test_groups_of_any_kind():
    p,t = _data(0, n=90)
    ids = np.arange(90)//3
    names = np.array([f'p{o}' for o in ids])
    runs = [ImbalanceReport(p, t, groups=g, n_boot=0).metrics for g in (ids[::-1]*7, names.tolist(), torch.tensor(ids), pd.Series(names))]
    for r in runs[1:]: np.testing.assert_array_equal(runs[0], r)

def test_order_of_the_items_changes_nothing():
    p,t = _data(0, n=90)
    i,g = np.random.default_rng(1).permutation(90),np.arange(90)//2
    for kw in (lambda o: dict(groups=g[o]), lambda o: dict(stratify=True), lambda o: {}):
        a,b = (ImbalanceReport(p[o], t[o], n_boot=0, **kw(o)) for o in (np.arange(90),i))
        np.testing.assert_allclose(a.metrics, b.metrics, atol=1e-12)
        np.testing.assert_allclose(a.per_class, b.per_class, atol=1e-12)

@pytest.mark.parametrize('kw,msg', [(dict(level=1), 'level=1'), (dict(n_boot=10), '40 or more'), (dict(n_boot=-1), 'n_boot=-1'), (dict(n_boot=99.5), '99.5'), (dict(bins=0), 'bins=0'),
    (dict(n_boot=True), 'n_boot=True'), (dict(groups=[1,2]*60, stratify=True), 'cannot go together'),
    (dict(vocab=['a']*4), '4 different'), (dict(vocab='abc'), '4 different'), (dict(train_counts=[1,2]), 'train_counts'), (dict(train_counts=[-1,2,3,4]), 'not negative'),
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
    for part in ('Missing from the targets: b.', 'Fewer than 12 items: c (3).', 'Without a training image: a.', '1 many, 1 medium, 2 few', '50 sets of labels', 'other random samples of such items',
        'No interval of balanced_accuracy, macro_f1, macro_auroc, macro_auprc, medium: fewer than 12 items of c.'): assert part in notes, part
    assert 'in the same numbers of each class' in ' '.join(ImbalanceReport(p, t, stratify=True, n_boot=0).notes)
    grouped = ' '.join(ImbalanceReport(p, t, groups=np.arange(60)//3, n_boot=0).notes)
    assert 'such as other patients' in grouped and '20 groups, fewer than 30' in grouped
    assert 'Another training run' in notes and 'bootstrap' not in notes+grouped
    zero = ImbalanceReport([[1.,0.],[0.,1.],[.5,.5]], [1,1,0], n_boot=0)
    assert any('1 items have a true class of probability 0' in o for o in zero.notes) and np.isfinite(zero.metrics.value['nll'])

def test_renderings_hold_the_same_figures(tmp_path):
    p,t = _data(0, absent=(3,))
    vocab = ['plain','a|b','<b>&','none\nhere']
    rep = ImbalanceReport(p, t, vocab, [500,50,19,5], n_boot=60, title='A <title> | b')
    text,md,page = repr(rep),rep.to_markdown(),rep._repr_html_()
    cell = f"{rep.metrics.value['mcc']:.3f}"
    assert all(cell in o for o in (text, md, page))
    for note in rep.notes: assert ' '.join(note.split()) in ' '.join(md.split())
    rows = [o for o in md.splitlines() if o.startswith('|')]
    assert len(rows)==2+len(rep.metrics)+2+2+2+4
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

def test_memory_of_a_report_is_a_few_times_that_of_its_probabilities():
    m = report_memory(3000, 200)
    assert m['report']<5*m['probs']

def test_the_time_of_a_report_does_not_explode():
    "A report of 400 items takes a part of a second (bounded here by 3, for a loaded machine), with its 1,000 sets of labels"
    import time
    p,t = _data(0, n=400, k=5)
    start = time.process_time()
    ImbalanceReport(p, t, ordinal=True)
    assert time.process_time()-start<3
