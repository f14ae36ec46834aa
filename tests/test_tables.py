"Tables of a study against a plain computation, and what is said where there is too little."
import cProfile, pstats, warnings
import numpy as np, pandas as pd, pytest, sklearn.metrics as skm, scipy.special, scipy.stats
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
    res = analyse(meta, runs, preds, n_boot=100)
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
    res = analyse(meta, runs, preds, n_boot=100)
    for i,v in enumerate(res.runs.balanced_accuracy): assert v==pytest.approx(skm.balanced_accuracy_score(preds[0]['targs'], preds[0]['guess'][i]))
    res.save(tmp_path)
    _save_preds(tmp_path/'predictions.npz', preds)
    assert recompute(tmp_path, 100).to_markdown()==res.to_markdown()

def test_pairs_against_scipy():
    meta,runs,preds = study(skills=dict(plain=1., better=2., same=1.))
    res = analyse(meta, runs, preds, n_boot=100)
    assert list(zip(*res.pairs[['a','b']].drop_duplicates().values.T))==[('better','plain'),('same','plain'),('same','better')]
    wide = res.runs.pivot(index='seed', columns='arm', values='balanced_accuracy')
    for r in res.pairs[res.pairs.metric=='balanced_accuracy'].itertuples():
        d = wide[r.a]-wide[r.b]
        want = scipy.stats.permutation_test((d.values,), np.mean, permutation_type='samples', n_resamples=np.inf).pvalue
        assert r.diff==pytest.approx(d.mean()) and r.p==pytest.approx(want) and r.p_min==2/2**6
        assert (r.t_low, r.t_high)==pytest.approx(scipy.stats.ttest_1samp(d, 0).confidence_interval(.95))
    vs = res.pairs[(res.pairs.metric=='balanced_accuracy') & (res.pairs.b=='plain')].sort_values('p')
    assert np.allclose(vs.p_holm, [min(1, 2*vs.p.iloc[0]), min(1, max(2*vs.p.iloc[0], vs.p.iloc[1]))])
    assert res.pairs[res.pairs.b!='plain'].p_holm.isna().all()

def test_a_difference_that_is_there_is_told():
    "20 pairs: the smallest p is 2e-6"
    res = analyse(*study(n_runs=20), n_boot=100)
    assert 'different are better (+' in res.verdict() and 'all are told apart' in res.verdict()

def test_no_difference_is_not_made_up():
    "Under the null, Holm keeps the share of studies with any finding at or below .05 (exact test, conservative): 60 studies, one-sided z of 3"
    found = sum('no arm is different' not in analyse(*study(8, dict(plain=1., a=1., b=1.), seed=i, n=60, table=['accuracy']), n_boot=0).verdict() for i in range(60))
    assert found <= 60*.05 + 3*np.sqrt(60*.05*.95)

@pytest.mark.parametrize('n,says', [(1, 'spread over seeds is not known'), (4, 'can tell no arm')])
def test_too_few_runs_are_named(n, says): assert says in analyse(*study(n), n_boot=100).verdict()

def test_saved_and_recomputed(tmp_path):
    meta,runs,preds = study()
    res = analyse(meta, runs, preds, n_boot=100)
    res.save(tmp_path)
    _save_preds(tmp_path/'predictions.npz', preds)
    for other in (StudyResults.load(tmp_path), recompute(tmp_path, 100)):
        assert other.meta==res.meta and other.to_markdown()==res.to_markdown()
        for k in ('runs','summary','pairs','recalls'):
            pd.testing.assert_frame_equal(getattr(other, k), getattr(res, k), check_exact=False, rtol=1e-9, check_index_type=False, check_column_type=False)
    assert (tmp_path/'report.md').read_text()==res.to_markdown() and (tmp_path/'figure.png').stat().st_size and (tmp_path/'classes.png').stat().st_size

def test_the_paper_stands_beside():
    paper = dict(small_cnn=dict(plain=[50.,.9], better=[61.5,.8]))
    t = analyse(*study(2, paper=paper), n_boot=100).to_frame()
    assert t.loc['better','balanced_accuracy, paper']=='61.50' and t.loc['plain','nll, paper']=='0.90'
    other = analyse(*study(2, paper=paper, arms=dict(plain=dict(arch='resnet8'), better=dict(arch='resnet8'))), n_boot=100).to_frame()
    assert not [c for c in other if 'paper' in c]

def test_medians_are_printed_where_the_study_says_so():
    res = analyse(*study(3, centre='median'), n_boot=100)
    v = res.runs[res.runs.arm=='plain'].balanced_accuracy
    assert res.to_frame().loc['plain','balanced_accuracy'].startswith(f'{100*v.median():.1f}') and 'median ±' in res.to_markdown()

def test_folds_get_no_interval_over_images_but_the_corrected_one():
    res = analyse(*study(2, folds=3), n_boot=100)
    assert '[' not in res.to_frame().iloc[0,0] and '95 % over runs' in res.against() and '95 % over test images' not in res.against()
    r = res.pairs[res.pairs.metric=='balanced_accuracy'].iloc[0]
    d = res.runs.pivot(index=['seed','fold'], columns='arm', values='balanced_accuracy').eval('better-plain')
    se = np.sqrt(d.var(ddof=1)*(1/6+200/370))
    half = scipy.stats.t.ppf(.975, 5)*se
    assert (r.nb_low, r.nb_high)==pytest.approx((d.mean()-half, d.mean()+half))

def calls(*args):
    "Calls of functions that `analyse` makes: what grows with the work, on any machine"
    with cProfile.Profile() as p: analyse(*args, n_boot=0)
    return pstats.Stats(p).total_calls

def test_arms_and_not_their_pairs_are_what_tables_cost():
    "Four times the arms have 19 times the pairs"
    few,many = (study(2, {f'a{i}': 1. for i in range(n)}, n=30, reference='a0') for n in (6,24))
    analyse(*few, n_boot=0) # what is imported or kept at the first time
    assert calls(*many)<6*calls(*few)

def test_arms_with_other_runs_are_compared_on_those_that_both_have():
    meta,runs,preds = study(5, dict(plain=1., a=2., b=1.5))
    keep = [i for i,r in enumerate(runs.itertuples()) if (r.arm, r.seed) not in (('a',1), ('b',0), ('b',1), ('b',2), ('b',3))]
    preds[0]['probs'] = preds[0]['probs'][keep]
    res = analyse(meta, runs.iloc[keep].reset_index(drop=True), preds, n_boot=50)
    mcc = res.pairs[res.pairs.metric=='mcc'].set_index(['a','b'])
    assert mcc.index.tolist()==[('a','plain'),('b','plain'),('b','a')] and mcc.runs.tolist()==[4,1,1]
    wide = res.runs.pivot(index='seed', columns='arm', values='mcc')
    assert mcc['diff'].tolist()==pytest.approx([(wide.a-wide.plain).mean(), (wide.b-wide.plain)[4], (wide.b-wide.a)[4]])
    assert mcc.p.isna().tolist()==[False,True,True] and mcc.low.notna().all() and (mcc.low<=mcc.high).all()

def test_a_fold_without_the_classes_of_a_group():
    "Its runs have no figure for the group, and the others keep theirs"
    meta,runs,preds = study(1, folds=3)
    few = preds[0]['targs']==2
    preds[0].update(targs=preds[0]['targs'][~few], probs=preds[0]['probs'][:,~few], names=preds[0]['names'][~few])
    res = analyse(meta, runs, preds, n_boot=0)
    assert res.runs.few.isna().tolist()==(res.runs.fold==0).tolist()
    r = res.pairs[res.pairs.metric=='few'].iloc[0]
    wide = res.runs.pivot(index='fold', columns='arm', values='few')
    assert r.pairs==2 and r['diff']==pytest.approx((wide.better-wide.plain).mean()) and res.pairs.metric.nunique()==13

def test_figures_show_every_arm_and_class():
    res = analyse(*study(3, dict(plain=1., a=1., b=2.)), n_boot=100)
    fig = res.plot()
    assert [o.get_text() for o in fig.axes[0].get_yticklabels()]==['plain','a','b'] and len(fig.axes)==2
    fig = res.plot_classes()
    assert [o.get_text() for o in fig.axes[2].get_xticklabels()]==['a','b','c'] and len(fig.axes[1].patches)==9

odd = ['01', '1e3', 'NA', 'None', 'True', '0.2', '$a_b$', '猫', 'two\nlines', 'a,b|c', '_x', '<b>x</b>', 'y'*200, '=1+1', "'=x", '-x', '\x1b[31m', 'arm']

def test_odd_names_of_arms_and_classes_come_back(tmp_path):
    "Arms that look like numbers or missing values, and classes called as columns are: saved, loaded and computed again they say the same"
    vocab = ['arm','seed','NA']
    meta,runs,preds = study(2, {o: 1.+i%3 for i,o in enumerate(odd)}, vocab=vocab, reference='01')
    res = analyse(meta, runs, preds, n_boot=100)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore') # fonts without the sign
        res.save(tmp_path)
    _save_preds(tmp_path/'predictions.npz', preds)
    assert not res.verdict().startswith('One run')
    for other in (StudyResults.load(tmp_path), recompute(tmp_path, 100)):
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
    res = analyse(*study(2), n_boot=100)
    with pytest.warns(UserWarning, match='figure.png could not be drawn'): res.save(tmp_path)
    assert StudyResults.load(tmp_path).to_markdown()==res.to_markdown() and (tmp_path/'classes.png').exists()
