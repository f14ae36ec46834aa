"Tables of a study against a plain computation, and what is said where there is too little."
import cProfile, json, pstats, re, warnings
import numpy as np, pandas as pd, pytest, sklearn.metrics as skm, scipy.special, scipy.stats
from hypothesis import given, settings, strategies as st
from balmix_fastai.intervals import Estimate, holm, nadeau_bengio, smallest_difference, study_power
from balmix_fastai.report import ImbalanceReport
from balmix_fastai.tables import StudyResults, _save_preds, analyse, class_columns, recompute

def study(n_runs=6, skills=None, seed=0, n=200, table=('balanced_accuracy','nll'), paper=None, folds=1, **meta):
    "Made-up predictions of three classes"
    skills,rng = skills or dict(plain=1., better=2.), np.random.default_rng(seed)
    runs = pd.DataFrame([dict(arm=a, seed=s, fold=f, valid_mcc=.5, best_epoch=1) for s in range(n_runs) for f in range(folds) for a in skills])
    preds = {}
    for f in range(folds):
        y = rng.permutation(np.arange(n)%3)
        probs = [scipy.special.softmax(rng.normal(size=(n,3))+skills[a]*np.eye(3)[y], 1) for a in runs[runs.fold==f].arm]
        preds[f] = dict(names=np.array([f'{f}/{i}' for i in range(n)]), targs=y, probs=np.stack(probs).astype(np.float32))
    meta = dict(title='t', vocab=['a','b','c'], ordinal=False, split='test', counts=[[300,60,10]]*folds, n=[n]*folds, reference='plain', table=list(table), paper=paper or {},
        centre='mean', arms={a: dict(arch='small_cnn') for a in skills}, label_mass={a: [.8,.15,.05] for a in skills}, missing=0) | meta
    return meta,runs,preds

def test_runs_and_summary_against_sklearn():
    meta,runs,preds = study()
    res = analyse(meta, runs, preds)
    y,p = preds[0]['targs'],preds[0]['probs']
    for i,r in enumerate(res.runs.itertuples()):
        assert r.balanced_accuracy==pytest.approx(skm.balanced_accuracy_score(y, p[i].argmax(1)))
        assert r.nll==pytest.approx(skm.log_loss(y, p[i].astype(float)), rel=1e-4)
        assert np.allclose(res.recalls.iloc[i][['a','b','c']].astype(float), skm.recall_score(y, p[i].argmax(1), average=None))
    for a in meta['arms']:
        v,s = res.runs[res.runs.arm==a].balanced_accuracy,res.summary.loc[a, 'balanced_accuracy']
        assert s['mean']==pytest.approx(v.mean()) and s['sd']==pytest.approx(v.std(ddof=1)) and s['median']==pytest.approx(v.median()) and s.low<s['mean']<s.high

def test_decisions_that_are_not_the_argmax(tmp_path):
    meta,runs,preds = study(2)
    preds[0]['guess'] = (preds[0]['probs'].argmax(-1)+np.arange(4)[:,None])%3
    res = analyse(meta, runs, preds)
    for i,v in enumerate(res.runs.balanced_accuracy): assert v==pytest.approx(skm.balanced_accuracy_score(preds[0]['targs'], preds[0]['guess'][i]))
    res.save(tmp_path)
    _save_preds(tmp_path/'predictions.npz', preds)
    assert recompute(tmp_path).to_markdown()==res.to_markdown()

def part_of(study, keep):
    "`study` with those of its runs for which `keep(arm, seed, fold)`"
    meta,runs,preds = study
    ok = np.array([keep(r.arm, r.seed, r.fold) for r in runs.itertuples()])
    preds = {f: o | dict(probs=o['probs'][ok[runs.fold==f]]) for f,o in preds.items() if ok[runs.fold==f].any()}
    return meta,runs[ok].reset_index(drop=True),preds

def by_arm(res, metric, index='seed'): return res.runs.pivot(index=index, columns='arm', values=metric)

def test_pairs_on_one_test_set_by_hand():
    "Accuracy: the spread over runs, and that of the mean difference of each item, added by Welch and Satterthwaite"
    meta,runs,preds = study(skills=dict(plain=1., better=1.3, same=1.))
    res = analyse(meta, runs, preds)
    assert list(zip(*res.pairs[['a','b']].drop_duplicates().values.T))==[('better','plain'),('same','plain'),('same','better')]
    assert list(res.pairs)==['a','b','metric','runs','diff','sd','se','df','low','high','p','p_holm','smallest']
    wide,y = by_arm(res, 'accuracy'),preds[0]['targs']
    right = {a: (preds[0]['probs'][runs.arm==a].argmax(-1)==y).mean(0) for a in meta['arms']}
    for r in res.pairs[res.pairs.metric=='accuracy'].itertuples():
        d,gap = wide[r.a]-wide[r.b],right[r.a]-right[r.b]
        s,i = d.std(ddof=1)/6**.5,gap.std(ddof=1)/200**.5
        assert r.runs==6 and (r.diff,r.sd)==pytest.approx((d.mean(),d.std(ddof=1))) and r.diff==pytest.approx(gap.mean())
        assert r.se==pytest.approx(np.hypot(s, i), rel=.01)
        kurt = scipy.stats.kurtosis(gap, fisher=False) # of the items' error
        df = (s*s+i*i)**2/(s**4/5+i**4/min(2*200/(kurt-1), 199))
        assert r.df==pytest.approx(df, rel=.05) and (r.low,r.high)==pytest.approx(scipy.stats.t.interval(.95, r.df, r.diff, r.se))
        assert r.p==pytest.approx(2*scipy.stats.t.sf(abs(r.diff)/r.se, r.df))
    vs = res.pairs[(res.pairs.metric=='accuracy') & (res.pairs.b=='plain')]
    assert vs.p_holm.tolist()==holm(vs.p).tolist() and vs.smallest.tolist()==[pytest.approx(smallest_difference(r.se, r.df, 2)) for r in vs.itertuples()]
    assert res.pairs[res.pairs.b!='plain'][['p_holm','smallest']].isna().all(axis=None)

def test_summary_by_hand():
    "The mean's interval has both errors, on the scale of the metric, and is that of a report for one run"
    meta,runs,preds = study(5)
    res = analyse(meta, runs, preds)
    right = (preds[0]['probs'][runs.arm=='plain'].argmax(-1)==preds[0]['targs'])
    m,s,i = right.mean(),right.mean(1).std(ddof=1)/5**.5,right.mean(0).std(ddof=1)/200**.5
    low,high = res.summary.loc['plain', 'accuracy'][['low','high']]
    half = scipy.stats.norm.isf(.025)*np.hypot(s, i)/m/(1-m)
    assert scipy.special.logit([low,high])==pytest.approx([scipy.special.logit(m)-half, scipy.special.logit(m)+half], rel=.05) # normal quantiles for those of t
    one = analyse(*part_of((meta,runs,preds), lambda arm,seed,fold: seed==0))
    rep = ImbalanceReport(preds[0]['probs'][0], preds[0]['targs'], train_counts=[300,60,10], n_boot=0)
    for k in ('macro_f1','nll','few'): assert one.summary.loc['plain', k][['low','high']].tolist()==pytest.approx(rep.metrics.loc[k, ['low','high']].tolist())
    assert 'with one run: for new images only' in one.to_markdown() and 'with one run' not in res.to_markdown()

def sized(seeds=2, folds=4, n=120):
    "A study of folds of unequal size, with other training counts in each"
    meta,runs,preds = study(seeds, dict(plain=1., better=1.4), folds=folds, n=n)
    for f in range(folds): preds[f] = {k: v[...,:n-8*f,:] if k=='probs' else v[:n-8*f] for k,v in preds[f].items()}
    return meta | dict(n=[n-8*f for f in range(folds)], counts=[[300-9*f,60+f,10] for f in range(folds)]),runs,preds

def test_pairs_over_folds_by_hand():
    "Runs of a fold are averaged, then Nadeau and Bengio's test over folds of unequal size; the smallest difference follows from the same error"
    meta,runs,preds = sized()
    res = analyse(meta, runs, preds)
    tr,te = [sum(o) for o in meta['counts']],meta['n']
    for k in ('balanced_accuracy','nll','macro_auroc'):
        d = by_arm(res, k, ['fold','seed']).eval('better-plain').groupby('fold').mean()
        r = res.pairs[res.pairs.metric==k].iloc[0]
        assert (r.runs,r.df)==(8,3) and r['diff']==pytest.approx(d.mean()) and r.sd==pytest.approx(d.std(ddof=1))
        assert (r.low,r.high,r.p)==pytest.approx(nadeau_bengio(d, tr, te)) and r.p_holm==r.p and r.smallest==pytest.approx(smallest_difference(r.se, 3))
        v = by_arm(res, k, ['fold','seed']).plain.groupby('fold').mean()
        low,high = scipy.special.logit(res.summary.loc['plain', k][['low','high']].astype(float)) if k!='nll' else np.log(res.summary.loc['plain', k][['low','high']].astype(float))
        assert (low+high)/2==pytest.approx(scipy.special.logit(v.mean()) if k!='nll' else np.log(v.mean())), 'on the scale of the metric'
    says = res.verdict()
    assert 't test over 4 folds (Nadeau and Bengio 2003; 8 runs of each arm)' in says and 'new training sets and new images' in says and 'flip' not in res.to_markdown()

def test_more_seeds_are_no_more_folds():
    "Each run twice: nothing changes"
    meta,runs,preds = sized()
    twice = meta,pd.concat([runs, runs.assign(seed=runs.seed+9)], ignore_index=True),{f: o | dict(probs=np.concatenate([o['probs']]*2)) for f,o in preds.items()}
    cols = ['diff','se','df','low','high','p','smallest']
    pd.testing.assert_frame_equal(analyse(*twice).pairs[cols], analyse(meta, runs, preds).pairs[cols])

def test_folds_with_missing_runs():
    "Arms are compared on the runs of both; one that has runs in one fold only has no interval and no test, and is named"
    own = study(3, dict(plain=1., a=2., b=1., c=1.2), folds=3)
    res = analyse(*part_of(own, lambda arm,seed,fold: not (arm=='a' and fold) and not (arm=='b' and seed) and not (arm=='c' and fold==2 and seed==1)))
    rows = res.pairs[(res.pairs.metric=='mcc') & (res.pairs.b=='plain')].set_index('a')
    assert rows.runs.tolist()==[3,3,8] and rows.df['b']==2 and rows.loc['a', ['low','high','p','p_holm','smallest']].isna().all()
    wide = by_arm(res, 'mcc', ['fold','seed'])
    for arm in 'bc':
        d = (wide[arm]-wide.plain).dropna().groupby('fold').mean()
        assert tuple(rows.loc[arm, ['low','high','p']])==pytest.approx(nadeau_bengio(d, 370, 200))
    says = res.verdict('mcc')
    assert 'No test of a: one run or one fold' in says and "Holm's correction for 2 arms" in says and '3 to 8 runs' in says
    assert res.summary.loc['a', 'mcc'][['low','high']].isna().all() and '3 to 9 runs for each arm' in res.to_markdown()
    two = analyse(*part_of(own, lambda arm,seed,fold: fold<2))
    assert 't test over 2 folds' in two.verdict('mcc')

def sets(says):
    "Arms of a verdict: different, different without Holm's correction only, not told apart"
    parts = [re.search(o, says) for o in (r'[Dd]ifferent are (.*?)(?:;|\. )', r'which is no finding: (.*?)(?:;|\. )', r'[Nn]ot told apart are (.*?)(?:;|\. )')]
    return [[] if o is None else [a.split(' (')[0] for a in o[1].split(', ')] for o in parts]

@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), seeds=st.integers(2, 5), folds=st.sampled_from([1, 1, 3]), arms=st.integers(1, 4), gap=st.sampled_from([0., .15, .5]),
    k=st.sampled_from(['accuracy','balanced_accuracy','mcc','nll']))
def test_verdict_and_interval_never_contradict_each_other(seed, seeds, folds, arms, gap, k):
    "Every arm is named once, in one of three groups; its interval excludes 0 if it is in one of the first two, and includes 0 if in the third"
    res = analyse(*study(seeds, dict(plain=1.) | {f'a{i}': 1+gap*i for i in range(arms)}, seed=seed, n=45, folds=folds, table=[k]))
    groups,t = sets(res.verdict()),res.against()
    assert sorted(sum(groups, []))==[f'a{i}' for i in range(arms)]
    rows = res.pairs[(res.pairs.metric==k) & (res.pairs.b=='plain')].set_index('a')
    for i,arm in [(i, a) for i,g in enumerate(groups) for a in g]:
        r = rows.loc[arm]
        assert (r.low>0 or r.high<0)==(i<2)==(r.p<.05) and (r.p_holm<.05)==(i==0) and (r.low+r.high)/2==pytest.approx(r['diff'])
        assert t.loc[arm, '95 % interval'].startswith('[')
    small = re.search('finds a difference of ([0-9.]+)', res.verdict())[1]
    assert float(small)==pytest.approx(rows.smallest.median()*(1 if k=='nll' else 100), abs=.051)

def test_a_difference_that_is_there_is_told():
    res = analyse(*study(n_runs=5, skills=dict(plain=1., better=2., near=1.05)))
    says = res.verdict()
    assert sets(says)==[['better'],[],['near']]
    for part in ('balanced_accuracy, against plain', 't test over 5 runs and test images together', 'for new runs, measured on other random samples of such items', 'level .05', "Holm's correction for 2 arms", 'probability of 80 %'): assert part in says
    fixed = study(5)
    assert 'in the same numbers of each class' in analyse(fixed[0] | dict(stratify=True), *fixed[1:]).verdict()

def test_groups_reach_the_tables():
    meta,runs,preds = study(3, n=180)
    preds[0]['groups'] = np.arange(180)//3
    res,plain = analyse(meta, runs, preds),analyse(meta, runs, {0: {k:v for k,v in preds[0].items() if k!='groups'}})
    assert 'other groups of this kind' in res.verdict() and not np.allclose(res.pairs.se, plain.pairs.se, equal_nan=True)
    preds[0]['groups'] = np.arange(180)//7 # 26 of them
    few = analyse(meta, runs, preds)
    assert few.pairs[['low','p']].isna().all(axis=None) and '26 groups, fewer than 30' in few.verdict() and few.verdict().startswith('balanced_accuracy: no interval and no test')

def test_rare_classes_have_no_interval_and_the_verdict_says_why():
    meta,runs,preds = study(4, n=90, table=['accuracy','balanced_accuracy','few','ece'])
    keep = np.flatnonzero((preds[0]['targs']!=2) | (np.cumsum(preds[0]['targs']==2)<=11))
    preds[0] = dict(names=preds[0]['names'][keep], targs=preds[0]['targs'][keep], probs=preds[0]['probs'][:,keep])
    res = analyse(meta | dict(n=[len(keep)]), runs, preds)
    for k in ('balanced_accuracy','few'):
        assert res.verdict(k)==f'{k}: no interval and no test (fewer than 12 items of c).' and res.against(k)['95 % interval'].tolist()==[''] and 'p' not in res.against(k)
        assert '[' not in res.to_frame()[k].iloc[0]
    assert res.verdict('accuracy').startswith('accuracy, against plain') and 'biased by chance' in res.verdict('ece') and res.pairs[res.pairs.metric=='ece'].low.isna().all()

def test_calibration_errors_have_no_interval_over_folds_either():
    res = analyse(*study(2, folds=3, table=['ece','nll']))
    t = res.pairs[res.pairs.metric.isin(['ece','classwise_ece'])]
    assert t[['se','low','high','p','p_holm','smallest']].isna().all(axis=None) and t['diff'].notna().all() and 'no interval and no test' in res.verdict('ece')
    assert '[' not in res.to_frame()['ece'].iloc[0] and '[' in res.to_frame()['nll'].iloc[0]

def test_classes_that_are_rare_in_each_fold():
    "Folds are tested by the spread over folds: the interval and the verdict of balanced accuracy stand together"
    meta,runs,preds = study(2, folds=4, n=24, table=['balanced_accuracy'])
    res = analyse(meta, runs, preds)
    assert res.pairs[res.pairs.metric=='balanced_accuracy'].low.notna().all() and 't test over 4 folds' in res.verdict()

def test_equal_and_undefined_predictions():
    "Arms that predict the same are not told apart; a run whose metric is not defined leaves its arm without a test, by name"
    meta,runs,preds = study(3, dict(plain=1., same=1., flat=1., better=2.), ordinal=True, table=['kendall_tau','mcc'])
    p = preds[0]['probs']
    p[runs.arm=='same'] = p[runs.arm=='plain']
    p[np.flatnonzero(runs.arm=='flat')[1]] = [.5,.3,.2]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        res = analyse(meta, runs, preds)
    rows = res.pairs[(res.pairs.metric=='kendall_tau') & (res.pairs.b=='plain')].set_index('a')
    assert rows.p['same']==1 and np.isnan(rows.low['same']) and rows.loc['flat', ['diff','p']].isna().all() and rows.p['better']<.01
    says = res.verdict()
    assert sets(says)==[['better'],[],['same']] and 'No test of flat: one run or one fold, or a value or an error that is not defined' in says
    assert 'nan' not in res.to_markdown()

def test_one_arm_alone():
    res = analyse(*study(3, dict(plain=1.)))
    assert not len(res.pairs) and '[' in res.to_frame().iloc[0,0] and 'against' not in res.to_markdown()
    assert res.verdict()=='balanced_accuracy: no arm has runs to compare with plain.' and not len(res.against()) and res.power().isna().all()
    assert list(res.pairs)==list(analyse(*study(2)).pairs)

def test_no_difference_is_not_made_up():
    "Studies of two arms that equal the reference: any finding after Holm in at most 7 % of 40, within z=3.5"
    found = sum(bool(sets(analyse(*study(3, dict(plain=1., a=1., b=1.), seed=i, n=60, table=['accuracy'])).verdict())[0]) for i in range(40))
    assert scipy.stats.binom.sf(found-1, 40, .07)>scipy.stats.norm.sf(3.5), found

def test_one_run_says_nothing_of_others():
    res = analyse(*study(1))
    assert 'spread over seeds is not known' in res.verdict() and res.pairs.p.isna().all() and res.power().isna().all()

def test_power_of_more_seeds():
    "From the runs at hand: the spread over runs shrinks, that over items stays"
    res = analyse(*study(5, dict(plain=1., a=1., b=1.), table=['accuracy']))
    t = res.pairs[(res.pairs.metric=='accuracy') & (res.pairs.b=='plain')]
    item = np.sqrt((t.se**2-t.sd**2/5).median()*200)
    for n in (3,5,20): assert res.power(n)['accuracy']==pytest.approx(study_power(t.sd.median(), item, 200, n, arms=3))
    assert res.power()['accuracy']==pytest.approx(t.smallest.median(), rel=.1) and res.power(3)['accuracy']>res.power()['accuracy']>res.power(50)['accuracy']
    folds = analyse(*study(2, folds=3, table=['nll']))
    assert folds.power(9)['nll']==folds.power()['nll']==folds.pairs[folds.pairs.metric=='nll'].smallest.item()<folds.power(arms=5)['nll']

def test_saved_and_recomputed(tmp_path):
    meta,runs,preds = study()
    res = analyse(meta, runs, preds)
    res.save(tmp_path)
    _save_preds(tmp_path/'predictions.npz', preds)
    for other in (StudyResults.load(tmp_path), recompute(tmp_path)):
        assert other.meta==res.meta and other.to_markdown()==res.to_markdown()
        for k in ('runs','summary','pairs','recalls'):
            pd.testing.assert_frame_equal(getattr(other, k), getattr(res, k), check_exact=False, rtol=1e-9, check_index_type=False, check_column_type=False)
    assert (tmp_path/'report.md').read_text()==res.to_markdown() and (tmp_path/'figure.png').stat().st_size and (tmp_path/'classes.png').stat().st_size

def test_the_paper_stands_beside():
    paper = dict(small_cnn=dict(plain=[50.,.9], better=[61.5,.8]))
    t = analyse(*study(2, paper=paper)).to_frame()
    assert t.loc['better','balanced_accuracy, paper']=='61.50' and t.loc['plain','nll, paper']=='0.90'
    other = analyse(*study(2, paper=paper, arms=dict(plain=dict(arch='resnet8'), better=dict(arch='resnet8')))).to_frame()
    assert not [c for c in other if 'paper' in c]

def test_medians_are_printed_where_the_study_says_so():
    res = analyse(*study(3, centre='median'))
    v = res.runs[res.runs.arm=='plain'].balanced_accuracy
    assert res.to_frame().loc['plain','balanced_accuracy'].startswith(f'{100*v.median():.1f}') and 'median ±' in res.to_markdown()

def calls(*args):
    "Calls of functions that `analyse` makes: what grows with the work, on any machine"
    with cProfile.Profile() as p: analyse(*args, n_boot=0)
    return pstats.Stats(p).total_calls

def test_arms_and_not_their_pairs_are_what_tables_cost():
    "Four times the arms have 18 times the pairs, the work for each of which is small: under a tenth of that for an arm"
    few,many = (study(2, {f'a{i}': 1. for i in range(n)}, n=30, reference='a0') for n in (6,24))
    analyse(*few, n_boot=0) # what is imported or kept at the first time
    a,b = calls(*few),calls(*many)
    pair = (b-4*a)/(24*23/2-4*6*5/2)
    assert pair<.1*(a-15*pair)/6, (a, b, pair)

def test_arms_with_other_runs_are_compared_on_those_that_both_have():
    meta,runs,preds = study(5, dict(plain=1., a=2., b=1.5))
    keep = [i for i,r in enumerate(runs.itertuples()) if (r.arm, r.seed) not in (('a',1), ('b',0), ('b',1), ('b',2), ('b',3))]
    preds[0]['probs'] = preds[0]['probs'][keep]
    res = analyse(meta, runs.iloc[keep].reset_index(drop=True), preds)
    mcc = res.pairs[res.pairs.metric=='mcc'].set_index(['a','b'])
    assert mcc.index.tolist()==[('a','plain'),('b','plain'),('b','a')] and mcc.runs.tolist()==[4,1,1]
    wide = res.runs.pivot(index='seed', columns='arm', values='mcc')
    assert mcc['diff'].tolist()==pytest.approx([(wide.a-wide.plain).mean(), (wide.b-wide.plain)[4], (wide.b-wide.a)[4]])
    assert mcc.p.isna().tolist()==[False,True,True] and mcc.low.notna().all() and (mcc.low<=mcc.high).all()
    assert 'No test of b: one run' in res.verdict('mcc') and 'over 4 runs and' in res.verdict('mcc')

def test_a_fold_without_the_classes_of_a_group():
    "Its runs have no figure for the group, so the mean over folds has none, and the verdict says so; the other metrics keep theirs"
    meta,runs,preds = study(1, folds=3, table=['few','nll'])
    few = preds[0]['targs']==2
    preds[0].update(targs=preds[0]['targs'][~few], probs=preds[0]['probs'][:,~few], names=preds[0]['names'][~few])
    res = analyse(meta, runs, preds)
    assert res.runs.few.isna().tolist()==(res.runs.fold==0).tolist()
    r = res.pairs[res.pairs.metric=='few'].iloc[0]
    assert r.runs==3 and r[['diff','low','p']].isna().all() and res.pairs.metric.nunique()==13
    assert res.verdict('few')=='few: no test, since its value or its error is not defined.' and 't test over 3 folds' in res.verdict('nll') and 'nan' not in res.to_markdown()

def test_figures_show_every_arm_and_class():
    res = analyse(*study(3, dict(plain=1., a=1., b=2.)))
    fig = res.plot()
    assert [o.get_text() for o in fig.axes[0].get_yticklabels()]==['plain','a','b'] and len(fig.axes)==2
    fig = res.plot_classes()
    assert [o.get_text() for o in fig.axes[2].get_xticklabels()]==['a','b','c'] and len(fig.axes[1].patches)==9

odd = ['01', '1e3', 'NA', 'None', 'True', '0.2', '$a_b$', '猫', 'two\nlines', 'a,b|c', '_x', '<b>x</b>', 'y'*200, '=1+1', "'=x", '-x', '\x1b[31m', 'arm']

def test_odd_names_of_arms_and_classes_come_back(tmp_path):
    "Arms that look like numbers or missing values, and classes called as columns are: saved, loaded and computed again they say the same"
    vocab = ['arm','seed','NA']
    meta,runs,preds = study(2, {o: 1.+i%3 for i,o in enumerate(odd)}, vocab=vocab, reference='01')
    res = analyse(meta, runs, preds)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore') # fonts without the sign
        res.save(tmp_path)
    _save_preds(tmp_path/'predictions.npz', preds)
    assert not res.verdict().startswith('One run')
    for other in (StudyResults.load(tmp_path), recompute(tmp_path)):
        assert other.verdict()==res.verdict() and other.to_markdown()==res.to_markdown() and list(other.summary.index)==odd
        pd.testing.assert_frame_equal(other.recalls, res.recalls, check_exact=False, rtol=1e-9, check_dtype=False)
        pd.testing.assert_frame_equal(other.summary, res.summary, check_exact=False, rtol=1e-9, check_index_type=False, check_column_type=False)
    assert list(res.recalls)[3:]==['class arm','class seed','NA'] and class_columns(['fold','class fold','class x'])==['class fold','class class fold','class x']
    y,p = preds[0]['targs'],preds[0]['probs']
    assert np.allclose(res.recalls.iloc[:,3:], [skm.recall_score(y, o.argmax(1), average=None) for o in p])
    assert {'figure.png','classes.png'}<={o.name for o in tmp_path.iterdir()}
    shown = [o.get_text() for o in res.plot_classes().legends[0].get_texts()]
    assert len(shown)==len(odd)

def test_numbers_are_saved_where_a_picture_cannot_be_drawn(tmp_path, monkeypatch):
    def fails(self): raise ValueError('no picture')
    monkeypatch.setattr(StudyResults, 'plot', fails)
    res = analyse(*study(2))
    with pytest.warns(UserWarning, match='figure.png could not be drawn'): res.save(tmp_path)
    assert StudyResults.load(tmp_path).to_markdown()==res.to_markdown() and (tmp_path/'classes.png').exists()

def old_tables(path, runs=3, folds=1, short=()):
    "Tables of one test set as version 0.1.0 wrote them, of arms whose differences have a known spread over runs and width over images"
    n = 400
    meta = dict(title='old', vocab=['a','b'], ordinal=False, split='test', counts=[[300,30]]*folds, n=[n]*folds, reference='plain', table=['accuracy','nll','ece'], paper={}, centre='mean',
        arms={a: {} for a in ('plain','x','y')}, label_mass={a: [.9,.1] for a in ('plain','x','y')}, missing=0)
    rows = [dict(arm=a, seed=s, fold=0, accuracy=.7, nll=.6, ece=.1) for a in meta['arms'] for s in range(1 if a in short else runs)]
    stats = dict(accuracy=(.02,.01,.03), nll=(-.05,.02,.08), ece=(.01,.01,.01)) # difference, sd, width of the interval over images
    spread = lambda a,sd: np.nan if a in short or runs<2 else sd
    pairs = [dict(a=a, b=b, metric=k, runs=1 if a in short else runs, diff=d*m, sd=spread(a, sd), pairs=runs, p=.25, p_min=.25, t_low=0, t_high=0,
        low=d*m-w/2, high=d*m+w/2, p_holm=.5 if b=='plain' else np.nan)
        for m,(a,b) in enumerate((('x','plain'),('y','plain'),('y','x')), 1) for k,(d,sd,w) in stats.items()]
    figures = lambda a,sd,w: dict(mean=.6, sd=spread(a, sd), median=.6, low=.6-w/2, high=.6+w/2)
    summary = {a: {(k,c): v for k,(d,sd,w) in stats.items() for c,v in figures(a, sd, w).items()} for a in meta['arms']}
    summary = pd.DataFrame.from_dict(summary, orient='index').rename_axis('arm')
    (path/'results.json').write_text(json.dumps(meta))
    pd.DataFrame(rows).to_csv(path/'runs.csv', index=False)
    pd.DataFrame(pairs).to_csv(path/'pairs.csv', index=False)
    summary.to_csv(path/'summary.csv')
    pd.DataFrame([dict(arm=r['arm'], seed=r['seed'], fold=0, a=.7, b=.6) for r in rows]).to_csv(path/'recalls.csv', index=False)

def test_tables_of_010_are_converted(tmp_path):
    "The width of the percentile interval gives the error over images, the sd that over runs: the t test of both, and Holm on it"
    old_tables(tmp_path)
    res = StudyResults.load(tmp_path)
    assert list(res.pairs)==['a','b','metric','runs','diff','sd','se','df','low','high','p','p_holm','smallest']
    r = res.pairs.iloc[0]
    s,i = .01/3**.5,.03/2/scipy.stats.norm.isf(.025)
    df = (s*s+i*i)**2/(s**4/2+i**4/399)
    assert r.se==pytest.approx(np.hypot(s, i), rel=1e-6) and r.df==pytest.approx(df, rel=1e-6)
    assert (r.low,r.high)==pytest.approx(scipy.stats.t.interval(.95, df, .02, r.se)) and r.p==pytest.approx(2*scipy.stats.t.sf(.02/r.se, df))
    vs = res.pairs[(res.pairs.metric=='accuracy') & (res.pairs.b=='plain')]
    assert vs.p_holm.tolist()==pytest.approx(holm(vs.p).tolist()) and vs.smallest.notna().all()
    low,high = res.summary.loc['x', 'accuracy'][['low','high']]
    assert (low,high)==pytest.approx(Estimate(.6, r.se, r.df).ends(scale='logit'))
    assert 'in the same numbers of each class' in res.verdict('accuracy') and 'biased by chance' in res.verdict('ece') and res.pairs[res.pairs.metric=='ece'].low.isna().all()
    res.save(tmp_path/'new')
    again = StudyResults.load(tmp_path/'new')
    assert again.to_markdown()==res.to_markdown() and again.verdict('nll')==res.verdict('nll'), 'once converted, it is not converted again'

@pytest.mark.parametrize('runs,short', [(3, ('y',)), (1, ())])
def test_tables_of_010_with_single_runs(tmp_path, runs, short):
    "A pair with one run has the error over images and no p; the others keep their error over runs"
    old_tables(tmp_path, runs, short=short)
    res = StudyResults.load(tmp_path)
    t = res.pairs[(res.pairs.metric=='accuracy') & (res.pairs.b=='plain')].set_index('a')
    s,i = .01/3**.5,.03/2/scipy.stats.norm.isf(.025)
    assert t.se['y']==pytest.approx(i) and np.isnan(t.p['y']) and t.se['x']==pytest.approx(np.hypot(s, i) if runs>1 else i) and np.isnan(t.p['x'])==(runs==1)
    assert res.summary.loc['x', ('accuracy','low')]==pytest.approx(Estimate(.6, t.se['x'], t.df['x']).ends(scale='logit')[0])
    assert ('One run for each arm' in res.verdict())==(runs==1)

def test_tables_of_folds_of_010_are_refused(tmp_path):
    old_tables(tmp_path, folds=3)
    with pytest.raises(ValueError, match='verdicts do not hold; make them anew'): StudyResults.load(tmp_path)
