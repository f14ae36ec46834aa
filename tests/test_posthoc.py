"Post-hoc corrections: against Bayes' rule, scikit-learn, brute force; objects that travel and refuse."
import json
import numpy as np, pytest, scipy.optimize as sco, sklearn.metrics as skm, torch
from hypothesis import given, settings, strategies as hs
from sklearn.linear_model import LogisticRegression
from fastai.basics import Categorize, Datasets, Learner, nn, load_learner, set_seed
from fastai.callback.progress import *
from balmix_fastai.losses import CELoss
from balmix_fastai.metrics import ece, nll
from balmix_fastai.posthoc import *
from balmix_fastai.posthoc import _best_cut

def softmax(z): return np.exp(z)/np.exp(z).sum(1, keepdims=True)

@pytest.fixture(scope='module')
def preds():
    "Over-confident, shifted predictions of 3 classes and their labels"
    rng = np.random.default_rng(0)
    z = rng.normal(size=(1500,3))*1.5
    y = (softmax(z).cumsum(1)<rng.random((1500,1))).sum(1)
    return softmax(2*z+[.5,0,-.5]),y

shares = hs.lists(hs.floats(.01, 1), min_size=3, max_size=3).map(lambda v: np.array(v)/sum(v))
@settings(max_examples=40, deadline=None)
@given(shares, shares, shares)
def test_priors_compose(a, b, c):
    "From a to b to c is from a to c, back is nothing, and the rows sum to 1"
    p = np.random.default_rng(0).dirichlet([1]*3, 20)
    assert np.allclose(to_prior(a, b).then(to_prior(b, c))(p), to_prior(a, c)(p))
    assert np.allclose(to_prior(b, a)(to_prior(a, b)(p)), p) and np.allclose(to_prior(a, b)(p).sum(1), 1)
    assert np.allclose(adjust_logits(a)(p), to_prior(a)(p)) and np.allclose(adjust_logits(a, 0.)(p), p)

def test_bayes_on_a_table():
    "Counts of a discrete feature: re-weighting the classes of the table is what the correction does"
    rng = np.random.default_rng(1)
    like = rng.dirichlet([1]*6, 3) # p(x|class)
    s,t = np.array([.7,.2,.1]),np.array([.1,.3,.6])
    post = lambda pi: (like.T*pi)/(like.T*pi).sum(1, keepdims=True)
    assert np.allclose(to_prior(s, t)(post(s)), post(t))

def test_a_class_that_does_not_occur():
    p = to_prior([.5,.3,.2], [.5,.5,0.])(np.full((2,3), 1/3))
    assert np.allclose(p[:,2], 0, atol=1e-12)

def test_em_is_the_maximum_of_the_likelihood(preds):
    p,y = preds
    s = np.array([.5,.3,.2])
    est = estimate_prior(p, s)
    like = lambda v: -np.log((p/s)@np.r_[v, 1-v.sum()]).mean()
    best = sco.minimize(like, est[:2], method='Nelder-Mead', options=dict(xatol=1e-9, fatol=1e-14)).x
    assert np.allclose(est[:2], best, atol=1e-5)
    with pytest.raises(ValueError, match='max_iter=2'): estimate_prior(p, s, max_iter=2)

def test_calibrations_against_scikit_learn(preds):
    "Vector scaling is logistic regression of each class's own log-probability; the others are checked at their stationary points"
    p,y = preds
    one = np.eye(3)[y]
    for f,dims in ((fit_temperature,0), (fit_bcts,1), (fit_vector,2)):
        c = f(p, y)
        g = c(p)-one
        slope = (g*np.log(p)*c.scale).sum(0)
        assert abs((slope if dims==2 else slope.sum(keepdims=True))/len(p)).max()<1e-5
        if dims: assert abs(g.mean(0)).max()<1e-5
    assert np.isclose(fit_bcts(p, y).scale[0], .5, atol=.1)
    two = np.c_[p[:,0], 1-p[:,0]]
    y2 = (y!=0).astype(int)
    lr = LogisticRegression(C=np.inf, tol=1e-10).fit(np.log(two[:,1:]/two[:,:1]), y2) # of two classes: one slope and one bias
    assert np.allclose(fit_bcts(two, y2)(two), lr.predict_proba(np.log(two[:,1:]/two[:,:1])), atol=1e-4)

def test_calibration_calibrates(preds):
    p,y = preds
    for f in (fit_temperature, fit_bcts, fit_vector): assert nll(f(p, y)(p), y)<nll(p, y) and ece(f(p, y)(p), y)<ece(p, y)

def test_tau_is_the_best_of_the_grid(preds):
    p,y = preds
    prior,taus = [.6,.3,.1],np.linspace(0, 2, 9)
    for metric,f in dict(balanced_accuracy=skm.balanced_accuracy_score, mcc=skm.matthews_corrcoef).items():
        c = fit_tau(p, y, prior, metric, taus)
        assert np.isclose(f(y, c.predict(p)), max(f(y, (np.log(p)-t*np.log(prior)).argmax(1)) for t in taus))

@pytest.mark.parametrize('metric,f', [('macro_f1', lambda y,g: skm.f1_score(y, g, average='macro')), ('balanced_accuracy', skm.balanced_accuracy_score)])
def test_offsets_do_not_lose(preds, metric, f):
    p,y = preds
    c = fit_offsets(p, y, metric)
    assert f(y, c.predict(p))>=f(y, p.argmax(1)) and np.allclose(c.scale, 1)

@settings(max_examples=30, deadline=None)
@given(hs.integers(0, 10_000), hs.integers(3, 6), hs.integers(12, 60))
def test_one_cut_against_brute_force(seed, k, n):
    "The kappa at every place of one cut, from scikit-learn"
    rng = np.random.default_rng(seed)
    e,t = np.sort(rng.random(n).round(2)*(k-1)),rng.integers(0, k, n)
    t[:2] = [0,k-1]
    cuts,w = np.sort(rng.random(k-1))*(k-1),(np.arange(k)[:,None]-np.arange(k))**2.
    j = int(rng.integers(0, k-1))
    kappa = lambda c: skm.cohen_kappa_score(t, np.searchsorted(c, e, side='right'), weights='quadratic', labels=range(k))
    at,got = _best_cut(e, t, w, np.searchsorted(cuts, e, side='right'), j, cuts)
    moved = lambda o: kappa(np.r_[cuts[:j], o, cuts[j+1:]])
    lo,hi = cuts[j-1] if j else -1,cuts[j+1] if j+1<k-1 else k
    places = [lo, hi, *(x for x in e if lo<=x<=hi), *(x+1e-9 for x in e if lo<=x<hi)]
    assert np.isclose(got, moved(at)) and got>=np.nanmax([moved(o) for o in places])-1e-9

def test_cuts_beat_the_argmax_and_the_halves(preds):
    rng = np.random.default_rng(2)
    y = rng.choice(4, 800, p=[.6,.2,.15,.05])
    p = softmax(-(np.arange(4)-(y+rng.normal(size=800))[:,None])**2+np.log([.6,.2,.15,.05]))
    kappa = lambda g: skm.cohen_kappa_score(y, g, weights='quadratic')
    c = fit_cuts(p, y)
    assert kappa(c.predict(p))>max(kappa(p.argmax(1)), kappa(CutPoints([.5,1.5,2.5]).predict(p)))-1e-12
    assert c.predict(np.eye(4)).tolist()==sorted(c.predict(np.eye(4)).tolist())

def test_save_and_load(preds, tmp_path):
    p,y = preds
    for c in (fit_vector(p, y, vocab=['a','b','c']), fit_cuts(p, y, vocab=['a','b','c'])):
        c.save(tmp_path/'c.json')
        d = load_correction(tmp_path/'c.json')
        assert np.array_equal(c.predict(p), d.predict(p)) and repr(c)==repr(d) and d.vocab==['a','b','c']
        with pytest.raises(ValueError, match='class order'): d.predict(p, ['b','a','c'])
    (tmp_path/'x.json').write_text(json.dumps(dict(kind='x')))
    with pytest.raises(ValueError, match='does not hold'): load_correction(tmp_path/'x.json')

def test_tensors_stay_tensors(preds):
    p = torch.tensor(preds[0]).float()
    q = adjust_logits([.6,.3,.1])(p)
    assert q.dtype==torch.float32 and torch.allclose(q, torch.tensor(adjust_logits([.6,.3,.1])(preds[0])).float(), atol=1e-6)

@pytest.mark.parametrize('f,says', [(lambda p,y: to_prior([1,0,1]), 'source'), (lambda p,y: to_prior([1,1],[1,1,1]), 'target'), (lambda p,y: adjust_logits([1,1,1], np.inf), 'tau'),
    (lambda p,y: Correction(0, [0,0]), 'scale'), (lambda p,y: Correction(1, [0,np.nan]), 'bias'), (lambda p,y: Correction(1, [0,0], ['a']), 'vocab'), (lambda p,y: CutPoints([1,0]), 'cuts'),
    (lambda p,y: fit_bcts(p[y>0], y[y>0]), 'lacks 0'), (lambda p,y: fit_offsets(p, y, 'x'), 'metric'), (lambda p,y: adjust_logits([1,1])(p), '3 classes'),
    (lambda p,y: fit_cuts(p[:3], [1,1,1]), 'grade 1 only'),
    (lambda p,y: adjust_logits([1,1,1])(np.log(p)), 'logits')])
def test_bad_input(preds, f, says):
    with pytest.raises(ValueError, match=says): f(*preds)

_y = np.repeat(['mild','none','severe'], (20,60,10)).tolist()
def _features(i): return torch.tensor(np.random.default_rng(i).normal(size=4)).float()+len(_y[i])
def _label(i): return _y[i]

def test_travels_with_the_learner(tmp_path):
    set_seed(0)
    dls = Datasets(range(90), [[_features], [_label, Categorize()]], n_inp=1).dataloaders(bs=16, device='cpu', num_workers=0)
    learn = Learner(dls, nn.Linear(4,3), CELoss(), path=tmp_path, lr=.05)
    with learn.no_bar(), learn.no_logging():
        learn.fit(2)
        p,y = learn.get_preds(dl=dls.test_dl(range(90), with_labels=True))
        with pytest.raises(ValueError, match='no correction'): learn.corrected_preds()
        with pytest.raises(ValueError, match='class order'): learn.attach(adjust_logits([60,20,10], vocab=['none','mild','severe']))
        c,dl = adjust_logits([20,60,10]),dls.test_dl(range(90), with_labels=True)
        q,g,t = learn.attach(c).corrected_preds(dl=dl)
        assert torch.allclose(q, c(p), atol=1e-6) and torch.equal(g, c(p).argmax(1)) and torch.equal(t, y)
        learn.export('m.pkl')
        other = load_learner(tmp_path/'m.pkl')
        assert np.allclose(other.correction.bias, c.bias) and other.correction.vocab==['mild','none','severe']
        with other.no_bar(): assert torch.allclose(other.corrected_preds(dl=other.dls.test_dl(range(90)))[0], q, atol=1e-6)
        learn.attach(fit_cuts(p, y))
        q,g,t = learn.corrected_preds(dl=dl)
        assert torch.allclose(q, p) and g.dtype==torch.int64
