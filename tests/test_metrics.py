"metrics: values against scikit-learn, scipy and by-hand computation, a class missing from the targets, what is refused."
import math, warnings
import numpy as np, pytest, scipy.stats as scs, sklearn.metrics as skm, torch
from hypothesis import given, settings, strategies as st
from fastai.basics import CrossEntropyLossFlat, DataLoader, DataLoaders, Learner, Recorder, nn
from balmix_fastai.metrics import (ECE, KendallTau, MacroAUPRC, MacroAUROC, QuadraticKappa, ShotAccuracy, brier, classwise_ece, ece, imbalance_metrics,
    macro_auprc, macro_auroc, nll, paper_metrics, shot_groups)

NAMES = ['accuracy', 'balanced_accuracy', 'macro_f1', 'mcc', 'macro_auroc', 'quadratic_kappa', 'kendall_tau']

def _data(seed, n=150, k=5, absent=()):
    "Probabilities with some skill, and targets without the classes `absent`"
    rng = np.random.default_rng(seed)
    targs = rng.choice([c for c in range(k) if c not in absent], n)
    logits = rng.normal(size=(n, k)) + 1.5*np.eye(k)[targs]
    return logits, np.exp(logits)/np.exp(logits).sum(1, keepdims=True), targs

def _auc_pairs(pos, neg):
    "AUC from its definition: the share of pairs in order, ties count half"
    d = pos[:,None] - neg[None]
    return ((d>0).sum() + .5*(d==0).sum())/d.size

def _by_hand(probs, targs):
    "All values from the confusion matrix and from pairs, in plain numpy"
    k,g,n = probs.shape[1],probs.argmax(1),len(targs)
    cm = np.zeros((k, k))
    np.add.at(cm, (targs, g), 1)
    tp,row,col = np.diag(cm),cm.sum(1),cm.sum(0)
    seen = (row+col)>0
    den = math.sqrt((n**2-(row**2).sum())*(n**2-(col**2).sum()))
    w = (np.arange(k)[:,None]-np.arange(k))**2
    s = np.sign(targs[:,None]-targs)*np.sign(g[:,None]-g)
    tie = math.sqrt((targs[:,None]!=targs).sum()*(g[:,None]!=g).sum())
    aucs = [_auc_pairs(probs[targs==c,c], probs[targs!=c,c]) for c in range(k) if 0<row[c]<n]
    return dict(accuracy=tp.sum()/n, balanced_accuracy=(tp[row>0]/row[row>0]).mean(), macro_f1=(2*tp[seen]/(row+col)[seen]).mean(),
        mcc=(tp.sum()*n-(row*col).sum())/den if den else 0, macro_auroc=np.mean(aucs) if aucs else np.nan,
        quadratic_kappa=1-(w*cm).sum()*n/e if (e := (w*np.outer(row, col)).sum()) else np.nan, kendall_tau=s.sum()/tie if tie else np.nan)

@pytest.mark.filterwarnings('ignore:A single label was found')
@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32-1), n=st.integers(1, 60), k=st.integers(2, 6), ties=st.booleans(), data=st.data())
def test_values_follow_the_definitions(seed, n, k, ties, data):
    absent = data.draw(st.sets(st.integers(0, k-1), max_size=k-1))
    _,probs,targs = _data(seed, n, k, absent)
    if ties: probs = np.round(probs, 1)+.1
    probs /= probs.sum(1, keepdims=True)
    got,want = imbalance_metrics(probs, targs, ordinal=True),_by_hand(probs, targs)
    assert list(got)==list(want)==NAMES
    np.testing.assert_allclose(list(got.values()), list(want.values()), atol=1e-9, err_msg=str(NAMES))

@pytest.mark.parametrize('absent', [(), (4,), (1,3), (0,)])
def test_values_are_those_of_sklearn_and_scipy(absent):
    _,probs,targs = _data(3, absent=absent)
    m,g = imbalance_metrics(torch.tensor(probs), torch.tensor(targs), ordinal=True),probs.argmax(1)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore') # scikit-learn mentions classes that were guessed and do not occur
        want = [skm.accuracy_score(targs, g), skm.balanced_accuracy_score(targs, g), skm.f1_score(targs, g, average='macro'), skm.matthews_corrcoef(targs, g)]
    want.append(np.mean([skm.roc_auc_score(targs==c, probs[:,c]) for c in set(targs)]))
    want += [skm.cohen_kappa_score(targs, g, labels=range(5), weights='quadratic'), scs.kendalltau(targs, g).statistic]
    np.testing.assert_allclose(list(m.values()), want, atol=1e-12)

def test_without_missing_class_auroc_is_sklearns_macro_ovr():
    _,probs,targs = _data(5)
    np.testing.assert_allclose(macro_auroc(probs, targs), skm.roc_auc_score(targs, probs, multi_class='ovr', average='macro'), atol=1e-12)

@pytest.mark.filterwarnings('ignore:y_pred contains classes')
@pytest.mark.parametrize('absent,bs', [((), 150), ((), 32), ((2,), 32), ((0,4), 7)])
def test_learner_reports_what_imbalance_metrics_computes(absent, bs):
    logits,probs,targs = _data(11, absent=absent)
    dl = DataLoader(list(zip(torch.tensor(logits).float(), torch.tensor(targs))), bs=bs)
    model = nn.Linear(5, 5, bias=False)
    model.weight.data = torch.eye(5)
    learn = Learner(DataLoaders(dl, dl), model, loss_func=CrossEntropyLossFlat(), metrics=paper_metrics(ordinal=True), cbs=Recorder())
    vals = learn.validate()
    want = imbalance_metrics(probs, targs, ordinal=True)
    assert list(learn.metrics.attrgot('name'))==list(want)
    np.testing.assert_allclose(vals[1:], list(want.values()), atol=1e-5)
    np.testing.assert_allclose(learn.validate()[1:], vals[1:], err_msg='a second validation must start afresh')

def test_names_and_the_ordinal_switch():
    name = lambda m: getattr(m, 'name', getattr(m, '__name__', None))
    assert [name(m) for m in paper_metrics()]==NAMES[:5]
    assert [name(m) for m in paper_metrics(ordinal=True)]==NAMES
    assert paper_metrics()[1] is not paper_metrics()[1], 'two learners must not share an accumulator'

def test_kappa_measures_by_class_id_not_by_position():
    true,pred = torch.tensor([0,0,1,1,4]),torch.tensor([0,0,1,1,0])
    far = QuadraticKappa()(pred, true)
    near = QuadraticKappa()(torch.tensor([0,0,1,1,0]), torch.tensor([0,0,1,1,2]))
    assert far<near
    assert QuadraticKappa()(true, true)==1
    assert math.isnan(QuadraticKappa()(torch.tensor([3,3]), torch.tensor([3,3])))

def test_undefined_values_are_nan():
    assert math.isnan(KendallTau()(torch.zeros(4).long(), torch.arange(4)))
    assert math.isnan(MacroAUROC()(torch.full((4,3), 1/3), torch.zeros(4).long()))
    one = imbalance_metrics([[.9,.1]], [0], ordinal=True)
    assert one['accuracy']==one['balanced_accuracy']==1 and all(math.isnan(one[k]) for k in ('macro_auroc', 'quadratic_kappa', 'kendall_tau'))

def test_half_precision_and_cpu_lists():
    _,probs,targs = _data(2)
    half = imbalance_metrics(torch.tensor(probs).half(), torch.tensor(targs).int())
    assert half['macro_auroc']==pytest.approx(imbalance_metrics(probs.tolist(), targs.tolist())['macro_auroc'], abs=1e-2)

@pytest.mark.parametrize('probs,targs,msg', [
    (np.full((3,2), .5), [0,1,2], 'class id 2'), (np.full((3,2), .5), [0,1,-1], 'class id -1'), (np.full((3,2), .5), [0,1], r'shape \(2,\)'),
    (np.full((3,2), .5), [[0],[1],[0]], r'shape \(3, 1\)'), (np.full((3,2), .5), [0.,1.,0.], 'integer class ids'), (np.full(3, .5), [0,1,0], r'shape \(3,\)'),
    (np.full((3,1), 1.), [0,0,0], 'K of 2'), (np.full((0,2), .5), np.zeros(0, int), 'empty'), (np.full((3,2), np.nan), [0,1,0], 'diverged'),
    ([[.5,np.inf]], [0], 'infinite'), ([[2.,-1.]], [0], 'logits'), ([[.5,.6]], [0], 'logits')])
def test_what_cannot_be_measured_is_refused(probs, targs, msg):
    for f in (imbalance_metrics, macro_auroc, macro_auprc, ece, classwise_ece, nll, brier):
        with pytest.raises(ValueError, match=msg): f(probs, targs)

@pytest.mark.parametrize('absent', [(), (4,), (1,3)])
def test_proper_scores_and_auprc_are_sklearns(absent):
    _,probs,targs = _data(3, absent=absent)
    assert nll(probs, targs)==pytest.approx(skm.log_loss(targs, probs, labels=range(5)), abs=1e-12)
    assert brier(probs, targs)==pytest.approx(skm.brier_score_loss(targs, probs, labels=range(5), scale_by_half=False), abs=1e-12)
    aps = [skm.average_precision_score(targs==c, probs[:,c]) for c in range(5) if c not in absent]
    assert macro_auprc(torch.tensor(probs), torch.tensor(targs))==pytest.approx(np.mean(aps), abs=1e-12)
    assert math.isnan(macro_auprc(probs, targs*0))

def test_nll_of_certain_and_right_predictions_is_0(): assert math.copysign(1, nll(np.eye(3), [0,1,2]))==1 and f'{nll(np.eye(3), [0,1,2]):.3f}'=='0.000'

def test_nll_of_an_impossible_truth_is_sklearns():
    probs,targs = np.array([[1.,0.],[.5,.5]]),[1,0]
    assert nll(probs, targs)==pytest.approx(skm.log_loss(targs, probs)) and np.isfinite(nll(probs, targs))

def _ece_by_hand(conf, hit, bins):
    "The definition, bin by bin: [m/M, (m+1)/M), and 1 in the last; what is 1e-6 below a border is on it, as numbers of 32 bits may be"
    total = 0
    for m in range(bins):
        at = [i for i,c in enumerate(conf) if (c>=m/bins-1e-6 or m==0) and (c<(m+1)/bins-1e-6 or m==bins-1)]
        if at: total += abs(np.mean([hit[i] for i in at])-np.mean([conf[i] for i in at]))*len(at)/len(conf)
    return total

@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32-1), n=st.integers(1, 40), k=st.integers(2, 5), bins=st.integers(1, 20), ties=st.booleans(), single=st.booleans())
def test_calibration_errors_follow_the_definitions(seed, n, k, bins, ties, single):
    _,p,t = _data(seed, n, k)
    if ties: # multiples of 1/bins, the borders
        p = np.random.default_rng(seed).multinomial(bins, np.full(k, 1/k), n)/bins
    if single: p = p.astype(np.float32)
    assert ece(p, t, bins)==pytest.approx(_ece_by_hand(p.max(1), p.argmax(1)==t, bins), abs=1e-6)
    assert classwise_ece(p, t, bins)==pytest.approx(np.mean([_ece_by_hand(p[:,c], t==c, bins) for c in range(k)]), abs=1e-6)

def test_a_border_belongs_to_the_bin_above():
    "As in torchmetrics, and for both precisions"
    p = np.array([[.25,.75],[.2,.8]])
    for o in (p, p.astype(np.float32)):
        assert ece(o, [1,0], 4)==pytest.approx(.55/2) and ece(o, [1,0], 2)==pytest.approx(.55/2)
        assert classwise_ece(o, [1,0], 4)==pytest.approx(((.25+.8)/2+.55/2)/2), '.25 and .2 are in two bins, .75 and .8 in one'
    assert ece([[0.,1.],[.05,.95]], [1,0], 10)==pytest.approx(.95/2), '1 is in the last bin'

@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32-1), bins=st.integers(1, 16))
def test_calibration_errors_of_both_precisions_are_equal(seed, bins):
    "Fractions with small denominators, many of which are borders"
    rng = np.random.default_rng(seed)
    p = rng.integers(1, 7, (30,3)).astype(float)
    p,t = p/p.sum(1, keepdims=True),rng.integers(0, 3, 30)
    for f in (ece, classwise_ece):
        for kw in (dict(), dict(debias=True)): assert f(p.astype(np.float32), t, bins, **kw)==pytest.approx(f(p, t, bins, **kw), abs=1e-5)

def test_debiased_error_of_one_bin_by_hand():
    "Items of probability .7 in one bin, 12 of 20 right: |gap| of 2 of 20 with noise of variance 4.2, less the mean excess of the folded normal"
    p = np.tile([.7,.3], (20,1))
    t = (np.arange(20)>=12)*1
    gap,s = 2.,math.sqrt(20*.7*.3)
    assert ece(p, t, 5, debias=True)==pytest.approx((2*gap-scs.foldnorm.mean(gap/s, scale=s))/20)
    assert ece(np.eye(2), [0,1], debias=True)==0 and ece(np.eye(2), [1,0], debias=True)==1, 'certain predictions have no noise'

def test_calibration_of_certain_predictions():
    assert ece(np.eye(3), [0,1,2])==classwise_ece(np.eye(3), [0,1,2])==brier(np.eye(3), [0,1,2])==0
    assert ece(np.eye(3), [1,2,0])==1 and classwise_ece(np.eye(3), [1,2,0])==pytest.approx(2/3) and brier(np.eye(3), [1,2,0])==2
    for bad in (0, 1.5, None, -3):
        for f in (lambda: ece(np.eye(2), [0,1], bad), lambda: classwise_ece(np.eye(2), [0,1], bad), lambda: ECE(bad)):
            with pytest.raises(ValueError, match='whole number of bins'): f()

def test_the_borders_of_shot_groups_are_medium(): assert shot_groups([101,100,20,19]).tolist()==['many','medium','medium','few']

@given(counts=st.lists(st.integers(0, 300), min_size=1, max_size=12), data=st.data())
def test_shot_groups_follow_the_rules(counts, data):
    want = ['many' if n>100 else 'few' if n<20 else 'medium' for n in counts]
    assert shot_groups(counts).tolist()==want and shot_groups(torch.tensor(counts)).tolist()==want
    a = data.draw(st.integers(0, len(counts)))
    b = data.draw(st.integers(a, len(counts)))
    got = shot_groups(counts, cuts=(a,b))
    assert [(got==o).sum() for o in ('many','medium','few')]==[a,b-a,len(counts)-b]
    order = [n for o in ('many','medium','few') for n in sorted((n for n,g in zip(counts, got) if g==o), reverse=True)]
    assert order==sorted(counts, reverse=True), 'no class of a later group has more images'
    fall = sorted(counts, reverse=True)
    assert shot_groups(fall, cuts=(a,b)).tolist()==['many']*a+['medium']*(b-a)+['few']*(len(counts)-b), 'ids in falling order: cuts are ids'

@pytest.mark.parametrize('args,kw,msg', [(([],), {}, 'counts'), (([[1,2]],), {}, 'counts'), (([1,-2],), {}, 'not negative'), (([1,np.nan],), {}, 'finite'), ((['a'],), {}, 'counts'),
    (([1,2],), dict(shots=(20,100)), 'falling'), (([1,2],), dict(shots=(5,)), 'falling'), (([1,2],), dict(cuts=(2,1)), 'rising'), (([1,2],), dict(cuts=(0,3)), '2 classes')])
def test_bad_shot_groups_are_refused(args, kw, msg):
    for f in (shot_groups, ShotAccuracy):
        with pytest.raises(ValueError, match=msg): f(*args, **kw)

@pytest.mark.filterwarnings('ignore:y_pred contains classes')
@pytest.mark.parametrize('absent,bs', [((), 150), ((2,), 32), ((0,4), 7)])
def test_learner_reports_groups_and_calibration(absent, bs):
    logits,probs,targs = _data(11, absent=absent)
    counts = [500,60,150,10,5]
    metrics = [ShotAccuracy(counts, 'many'), ShotAccuracy(counts, 'medium'), ShotAccuracy(counts), ECE(), ECE(bins=5), MacroAUPRC()]
    dl = DataLoader(list(zip(torch.tensor(logits).float(), torch.tensor(targs))), bs=bs)
    model = nn.Linear(5, 5, bias=False)
    model.weight.data = torch.eye(5)
    learn = Learner(DataLoaders(dl, dl), model, loss_func=CrossEntropyLossFlat(), metrics=metrics, cbs=Recorder())
    recall = skm.recall_score(targs, probs.argmax(1), labels=range(5), average=None, zero_division=np.nan)
    want = [np.nanmean(recall[[0,2]]), recall[1], np.nanmean(recall[[3,4]]), ece(probs, targs), ece(probs, targs, 5), macro_auprc(probs, targs)]
    np.testing.assert_allclose(learn.validate()[1:], want, atol=1e-5)
    assert [m.name for m in metrics]==['many','medium','few','ece','ece','macro_auprc']

def test_a_group_without_targets_is_nan_and_one_without_classes_refused():
    m = ShotAccuracy([500,50,5], 'few')
    assert math.isnan(m(torch.tensor([0,2]), torch.tensor([0,1]))) and m(torch.tensor([2,0]), torch.tensor([2,1]))==1
    with pytest.raises(ValueError, match='the groups are many, few'): ShotAccuracy([500,5], 'medium')
    with pytest.raises(ValueError, match="group='rare'"): ShotAccuracy([500,5], 'rare')
