"Post-hoc corrections: against Bayes' rule, scikit-learn, brute force; objects that travel and refuse."
import json, re, subprocess, sys
from copy import deepcopy
import numpy as np, pytest, scipy.optimize as sco, sklearn.metrics as skm, torch
from hypothesis import given, settings, strategies as hs
from sklearn.linear_model import LogisticRegression
from fastai.basics import Categorize, CrossEntropyLossFlat, Datasets, ItemGetter, Learner, RandomSplitter, nn, load_learner, set_seed
from fastai.callback.progress import *
from fastai.data.block import CategoryBlock, DataBlock
from fastai.interpret import ClassificationInterpretation
from fastai.layers import Flatten
from fastai.vision.data import ImageBlock
from balmix_fastai.decouple import *
from balmix_fastai.losses import BalancedSoftmaxLoss, CELoss
from balmix_fastai.metrics import ece, nll
from balmix_fastai.mixup import BalancedMixUp
from balmix_fastai.prior import output_prior, prior_table, training_prior
from balmix_fastai.output import write_sealed
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

def mixtures():
    "Random sets of probabilities, of few and many images, of classes that are near and far, half of which do not occur in every other set; with their source and shares"
    rng = np.random.default_rng(0)
    for j in range(60):
        k,n = rng.integers(2, 12),rng.choice([1,20,200,2000])
        source,target = np.maximum(rng.dirichlet([1]*k), .005),rng.dirichlet([.5]*k)
        if j%2: target[rng.permutation(k)[:k//2]] = 0
        source,target = source/source.sum(),target/target.sum()
        centre = rng.normal(size=(k,k-1))*rng.choice([.3,1,3])
        x = centre[rng.choice(k, n, p=target)]+rng.normal(size=(n,k-1))
        z = -.5*((x[:,None]-centre)**2).sum(2)+np.log(source)
        yield softmax(z-z.max(1, keepdims=True)),source,target

def test_shares_of_the_greatest_likelihood():
    "Against an independent solver, scipy's SLSQP: nothing that matters is lost, whether classes occur or not"
    for p,s,_ in mixtures():
        n,k = p.shape
        like = lambda v: np.log(np.maximum((p/s)@v, 1e-300)).sum()
        best = sco.minimize(lambda v: -like(v)/n, np.full(k, 1/k), method='SLSQP', jac=lambda v: -((p/s)/np.maximum((p/s)@v, 1e-300)[:,None]).mean(0),
            bounds=[(0,1)]*k, constraints=dict(type='eq', fun=lambda v: v.sum()-1, jac=np.ones_like), options=dict(ftol=1e-13, maxiter=1000)).x.clip(0)
        for tol in (.01,1e-6):
            q = estimate_prior(p, s, tol=tol)
            assert q.sum()==pytest.approx(1) and (q>=0).all() and like(q)>like(best/best.sum())-tol-1e-9*n

def test_shares_of_calibrated_predictions():
    "With exact posteriors of many images the shares come back, those of absent classes near 0"
    rng = np.random.default_rng(1)
    source,target,centre = np.array([.6,.3,.1]),np.array([.2,0.,.8]),np.array([[0,0],[2,0],[0,2]])
    x = centre[rng.choice(3, 20_000, p=target)]+rng.normal(size=(20_000,2))
    assert np.allclose(estimate_prior(softmax(-.5*((x[:,None]-centre)**2).sum(2)+np.log(source)), source), target, atol=.02)

def test_prior_that_is_not_found_says_what_is_left(preds):
    p,_ = preds
    s = np.array([.5,.3,.2])
    with pytest.raises(ValueError, match=r'max_iter=2 evaluations were not enough for tol=0.01: the log-likelihood of all images could still gain (?!0[.]?0*[.])\d'):
        estimate_prior(p, s, max_iter=2)
    left = float(re.search(r'gain ([\d.e+]+)[.] Pass', str(pytest.raises(ValueError, estimate_prior, p, s, max_iter=2).value))[1])
    assert np.array_equal(estimate_prior(p, s, tol=1.01*left), s) # a larger tol ends where it begins
    with pytest.raises(ValueError, match='tol=0 must be above 0'): estimate_prior(p, s, tol=0)

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
    good = (tmp_path/'c.json').read_text()
    for text,msg in ((good[:-20], 'cannot be read'), ('[]', 'cannot be read'), (good.replace('"c"', '"d"'), 'damaged or was changed'), (json.dumps(dict(kind='x')), 'does not hold')):
        (tmp_path/'x.json').write_text(text)
        with pytest.raises(ValueError, match=f'x.json.*{msg}'): load_correction(tmp_path/'x.json')
    for o in (dict(kind='x'), dict(kind='CutPoints'), dict(kind='CutPoints', cuts=[.5], more=1)):
        write_sealed(tmp_path/'x.json', o)
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

# --- attached corrections, on images

_prior = np.array([.5,.3,.2])
def _images(n=30): return [(np.random.default_rng(i).integers(0, 256, (6,8,3), dtype=np.uint8), 'abc'[i%3]) for i in range(n)]

@pytest.fixture
def pics(tmp_path):
    "A learner on small images to which flips matter, and its plain probabilities of the validation images, by hand, for each kind of flips"
    set_seed(5)
    block = DataBlock((ImageBlock, CategoryBlock), get_x=ItemGetter(0), get_y=ItemGetter(1), splitter=RandomSplitter(seed=0, valid_pct=.5))
    dls = block.dataloaders(_images(), bs=4, num_workers=0, device='cpu')
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), Flatten(), nn.Linear(4*4*6, 3))
    with torch.no_grad(): net[-1].weight.mul_(8)
    learn = Learner(dls, net, CrossEntropyLossFlat(), path=tmp_path, lr=.01).remove_cb(ProgressCallback)
    x = torch.stack([torch.tensor(np.asarray(o[0])).permute(2,0,1)/255 for o in dls.valid.items])
    dims = dict(none=[[]], h=[[],[3]], hv=[[],[3],[2],[2,3]])
    with torch.no_grad(): by_hand = {k: torch.stack([net.eval()(x.flip(d)).softmax(1) for d in v]).mean(0).double().numpy() for k,v in dims.items()}
    return learn,by_hand

def _bayes(p):
    "Probabilities for equal shares, written out"
    p = p/_prior
    return p/p.sum(1, keepdims=True)

def _ways(learn, items):
    "Probabilities and decisions by every call that predicts"
    dl = learn.dls.test_dl(items)
    p,_,d = learn.get_preds(dl=dl, with_decoded=True)
    inp,p2,_,d2 = learn.get_preds(dl=dl, with_decoded=True, with_input=True)
    p3,d3,_ = learn.corrected_preds(dl=dl)
    one = [learn.predict(o) for o in items]
    return dict(get_preds=(p,d), with_input=(p2,d2), corrected_preds=(p3,d3), predict=(torch.stack([o[2] for o in one]), torch.stack([o[1] for o in one])),
        names=(p, [list(learn.dls.vocab).index(o[0]) for o in one]))

@pytest.mark.parametrize('axes', ['none','h','hv'])
@pytest.mark.parametrize('kind', ['prior','cuts'])
def test_all_ways_to_predict_agree(pics, kind, axes):
    learn,by_hand = pics
    raw = by_hand[axes]
    if kind=='prior': want,wanted,c = _bayes(raw),_bayes(raw).argmax(1),adjust_logits(_prior)
    else:
        e = raw@[0,1,2]
        cuts = np.quantile(e, [.2,.52])
        want,wanted,c = raw,(e>cuts[0]).astype(int)+(e>cuts[1]),CutPoints(cuts)
    assert (wanted!=raw.argmax(1)).any() and (axes=='none' or abs(raw-by_hand['none']).max()>.05)
    learn.attach(c, axes)
    learn.export('e.pkl')
    items = [o[0] for o in learn.dls.valid.items]
    for o in (learn, load_learner(learn.path/'e.pkl').remove_cb(ProgressCallback), deepcopy(learn)):
        assert o.correction.axes==axes
        for name,(p,d) in _ways(o, items).items():
            np.testing.assert_allclose(np.asarray(p), want, atol=1e-5, err_msg=name)
            assert list(map(int, d))==wanted.tolist(), name
        np.testing.assert_allclose(o.flip_tta(dl=o.dls.test_dl(items))[0], o.flip_tta(dl=o.dls.test_dl(items), axes=axes)[0], atol=1e-6)
        np.testing.assert_allclose(o.flip_tta(dl=o.dls.test_dl(items), axes=axes)[0], want, atol=1e-5)
    interp = ClassificationInterpretation.from_learner(learn)
    targs = np.array(['abc'.index(o[1]) for o in learn.dls.valid.items])
    assert np.array_equal(interp.confusion_matrix(), skm.confusion_matrix(targs, wanted, labels=range(3)))
    assert [int(o) for o in interp[[3,4]][3]]==wanted[[3,4]].tolist()
    shown = []
    learn.dls.valid.show_results = lambda b, out, **kw: shown.append(out) # what fastai hands to the picture
    learn.show_results(dl=learn.dls.valid)
    assert shown[0].tolist()==wanted[:4].tolist()

def test_a_fresh_process_agrees(pics):
    "Where only fastai is imported, the export brings the package along"
    learn,by_hand = pics
    learn.attach(adjust_logits(_prior), 'h').export('e.pkl')
    np.save('im.npy', learn.dls.valid.items[0][0])
    code = "import sys, numpy as np, warnings; warnings.simplefilter('ignore'); from fastai.learner import load_learner; l = load_learner(sys.argv[1]); im = np.load('im.npy');" \
        "print(*l.predict(im)[2].tolist(), *l.corrected_preds(dl=l.dls.test_dl([im]))[0][0].tolist(), *l.get_preds(dl=l.dls.test_dl([im]))[0][0].tolist())"
    out = subprocess.run([sys.executable, '-c', code, str(learn.path/'e.pkl')], capture_output=True, text=True, check=True).stdout.split('\n')
    got = np.array([o for l in out for o in l.split()][-9:], dtype=float).reshape(3,3)
    np.testing.assert_allclose(got, np.repeat(_bayes(by_hand['h'])[:1], 3, 0), atol=1e-5)

def test_without_a_correction_get_preds_is_fastais(pics):
    learn,_ = pics
    for kw in (dict(), dict(with_input=True, with_decoded=True), dict(with_loss=True), dict(act=lambda o: o), dict(ds_idx=0, reorder=False)):
        set_seed(0)
        a = learn.get_preds(**kw)
        set_seed(0)
        for x,y in zip(a, learn._orig_get_preds(**kw)): assert torch.equal(x, y) and type(x) is type(y)
    learn.attach(adjust_logits(_prior)).attach(None)
    assert torch.equal(learn.get_preds()[0], learn._orig_get_preds()[0])

def test_losses_and_metrics_are_of_the_network(pics):
    learn,_ = pics
    val,loss = learn.validate(),learn.get_preds(with_loss=True)[2]
    learn.attach(adjust_logits(_prior))
    p,_,got = learn.get_preds(with_loss=True)
    assert torch.equal(got, loss) and learn.validate()==val
    assert learn.get_preds(with_preds=False, with_loss=True)[0] is None

def test_a_second_correction_is_refused(pics):
    learn,by_hand = pics
    c = learn.attach(adjust_logits(_prior)).correction
    p,y = learn.get_preds()
    refused = [lambda: c(p), lambda: c.predict(p), lambda: c(p[:5]), lambda: fit_temperature(p, y), lambda: fit_vector(p, y), lambda: fit_tau(p, y, _prior),
        lambda: fit_offsets(p, y), lambda: fit_cuts(p, y), lambda: CutPoints([.5,1.5]).predict(p), lambda: c(learn.flip_tta(axes='none')[0]),
        lambda: c(learn.corrected_preds()[0])]
    for f in refused:
        with pytest.raises(ValueError, match='corrected already.*uncorrected'): f()
    with learn.uncorrected():
        q,y = learn.get_preds()
        learn.attach(fit_temperature(q, y))
    np.testing.assert_allclose(q, by_hand['none'], atol=1e-5)
    assert learn.correction.how=='temperature scaling', 'what is attached within stays'

def test_uncorrected_gives_the_correction_back(pics):
    learn,by_hand = pics
    learn.attach(adjust_logits(_prior), 'h')
    with pytest.raises(KeyboardInterrupt), learn.uncorrected(), learn.uncorrected():
        np.testing.assert_allclose(learn.get_preds()[0], by_hand['none'], atol=1e-5)
        raise KeyboardInterrupt
    np.testing.assert_allclose(learn.get_preds()[0], _bayes(by_hand['h']), atol=1e-5)
    with learn.uncorrected(): learn.attach(None)
    np.testing.assert_allclose(learn.get_preds()[0], by_hand['none'], atol=1e-5)

def test_calls_that_cannot_use_it_say_so(pics, tmp_path):
    learn,_ = pics
    learn.attach(adjust_logits(_prior), 'h')
    refused = [(lambda: learn.tta(n=2), 'corrected_preds.*uncorrected'), (lambda: learn.get_preds(act=lambda o: o), 'logits'),
        (lambda: learn.get_preds(save_preds=tmp_path), 'save_preds'), (lambda: learn.flip_tta(axes='v'), "axes='v'.*'h'"),
        (lambda: learn.corrected_preds(axes='none'), "axes='none'.*'h'"), (lambda: learn.attach(learn.correction, 'v'), "axes='v'.*'h'"),
        (lambda: learn.attach(adjust_logits(_prior), 'x'), "axes='x' is not one of"), (lambda: learn.attach(adjust_logits([1,1])), '3 names.*2 classes')]
    for f,says in refused:
        with pytest.raises(ValueError, match=says): f()
    assert learn.correction.axes=='h', 'what was refused has changed nothing'

@pytest.mark.parametrize('change', ['fit','stage','load','by hand'])
def test_other_weights_are_another_network(pics, change):
    learn,_ = pics
    learn.save('start')
    with torch.no_grad(): learn.model[0].bias += 1
    learn.attach(adjust_logits(_prior))
    if change=='fit':
        with learn.no_logging(): learn.fit(1, 1e-5)
    elif change=='stage': learn.tau_normalize(.5)
    elif change=='load': learn.load('start')
    else: learn.model[3].bias.data[0] += 1e-5
    for f in (learn.get_preds, learn.corrected_preds, learn.flip_tta, lambda: learn.predict(_images()[0][0])):
        with pytest.raises(ValueError, match='weights have changed'): f()
    with learn.uncorrected(): learn.get_preds()
    learn.attach(learn.correction).get_preds()

def test_flips_are_kept(tmp_path):
    for c in (adjust_logits(_prior), CutPoints([.5,1.5])):
        assert c.axes is None
        c.axes = 'hv'
        c.save(tmp_path/'c.json')
        assert load_correction(tmp_path/'c.json').axes=='hv'
    a,b = Correction(1, [0,1], axes='h'),Correction(2, [1,0])
    assert a.then(b).axes==b.then(a).axes=='h'
    with pytest.raises(ValueError, match="axes='v'"): a.then(Correction(1, [0,0], axes='v'))
    with pytest.raises(ValueError, match='axes'): Correction(1, [0,0], axes='d')
    (tmp_path/'old.json').write_text(json.dumps(dict(scale=[1,1], bias=[0,.5], vocab=['a','b'], how='x', kind='Correction'))) # as version 0.1.0 wrote it
    assert load_correction(tmp_path/'old.json').axes is None
    old = Correction.__new__(Correction)
    old.__dict__.update(scale=np.ones(2), bias=np.zeros(2), vocab=None, how='') # as its exports hold it
    assert old.axes is None and old.then(a).axes=='h'

# --- what an export holds

def test_an_export_knows_its_prior_and_no_folders(tmp_path, monkeypatch):
    set_seed(0)
    (tmp_path/'training').mkdir()
    (tmp_path/'clinic').mkdir()
    dls = Datasets(range(90), [[_features], [_label, Categorize()]], n_inp=1).dataloaders(bs=16, device='cpu', num_workers=0, path=tmp_path/'training')
    learn = Learner(dls, nn.Linear(4,3), BalancedSoftmaxLoss(), path=tmp_path/'training', cbs=BalancedMixUp(.2, seed=0), lr=.05).remove_cb(ProgressCallback)
    with learn.no_logging(): learn.fit(1)
    learn.export('m.pkl')
    assert learn.path==dls.path==tmp_path/'training' and learn.dls is dls
    assert str(tmp_path).encode() not in (tmp_path/'training/m.pkl').read_bytes()
    monkeypatch.chdir(tmp_path/'clinic')
    back = load_learner('../training/m.pkl')
    counts = np.array([20,60,10])/90
    assert np.allclose(training_prior(back), (1-1/6)*counts + 1/6/3) # alpha/(alpha+1) = 1/6 of the labels are balanced
    for f in (output_prior, training_prior): assert np.allclose(f(back), f(learn))
    assert list(prior_table(back).index)==['mild','none','severe']
    back.export('m.pkl')
    assert (tmp_path/'clinic/m.pkl').exists() and np.allclose(output_prior(load_learner('m.pkl')), output_prior(learn))

def test_an_export_that_fails_leaves_learner_and_file(tmp_path):
    dls = Datasets(range(90), [[_features], [_label, Categorize()]], n_inp=1).dataloaders(bs=16, device='cpu', num_workers=0)
    learn = Learner(dls, nn.Linear(4,3), CELoss(), path=tmp_path).remove_cb(ProgressCallback)
    with learn.no_logging(): learn.fit(1)
    learn.export('m.pkl')
    before,opt = (tmp_path/'m.pkl').read_bytes(),learn.opt
    learn.not_to_pickle = (o for o in ())
    with pytest.raises(TypeError): learn.export('m.pkl')
    assert learn.dls is dls and learn.opt is opt and learn.path==tmp_path
    assert (tmp_path/'m.pkl').read_bytes()==before and not list(tmp_path.glob('*.tmp'))

def test_a_prior_that_was_not_kept_is_asked_for(tmp_path):
    dls = Datasets(range(90), [[_features], [_features]], n_inp=1).dataloaders(bs=16, device='cpu', num_workers=0)
    learn = Learner(dls, nn.Linear(4,3), nn.MSELoss(), path=tmp_path)
    learn.export('m.pkl')
    with pytest.raises(ValueError, match='learn.dls'): output_prior(load_learner(tmp_path/'m.pkl'))
