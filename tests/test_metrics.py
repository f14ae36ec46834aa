"metrics: values against scikit-learn, scipy and by-hand computation, a class missing from the targets, what is refused."
import math, warnings
import numpy as np, pytest, scipy.stats as scs, sklearn.metrics as skm, torch
from hypothesis import given, settings, strategies as st
from fastai.basics import CrossEntropyLossFlat, DataLoader, DataLoaders, Learner, Recorder, nn
from balmix_fastai.metrics import KendallTau, MacroAUROC, QuadraticKappa, imbalance_metrics, macro_auroc, paper_metrics

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
    for f in (imbalance_metrics, macro_auroc):
        with pytest.raises(ValueError, match=msg): f(probs, targs)
