"The prior that is really trained on, losses that follow it, and warnings of what overshoots."
import importlib, inspect, pickle, subprocess, sys, warnings
import numpy as np, pytest, torch
from fastai.basics import (Callback, CancelFitException, CancelTrainException, Categorize, CrossEntropyLossFlat, DataLoaders, Datasets, ItemGetter,
    Learner, defaults, load_learner, nn, set_seed, tensor)
from fastai.callback.mixup import MixUp
from fastai.callback.schedule import SchedLin
from balmix_fastai.data import *
from balmix_fastai.losses import *
from balmix_fastai.mixup import BalancedMixUp
from balmix_fastai.prior import *
from balmix_fastai.sampling import *
from balmix_fastai.schedule import DeferredReweighting, ProgressiveSampling

counts = np.array([120,40,12,6])
def toy(**kw):
    g = torch.Generator().manual_seed(0)
    items = [(torch.randn(5, generator=g)+k, k) for k,m in enumerate(counts) for _ in range(m)]
    return DataLoaders.from_dsets(items, items[::5], bs=16, device='cpu', num_workers=0, **kw)

def exportable():
    "Loaders made by transforms, as an export needs them"
    items = [(x, str(y)) for x,y in toy().train.dataset]
    dsets = Datasets(items, [[ItemGetter(0)], [ItemGetter(1), Categorize()]], splits=[range(len(items)), range(0, len(items), 5)])
    return dsets.dataloaders(bs=16, num_workers=0, device='cpu')

def learner(loss, dls=None, cbs=None, **kw):
    set_seed(0)
    return Learner(dls or toy(), nn.Sequential(nn.Linear(5,8), nn.ReLU(), nn.Linear(8,4)), loss, cbs=cbs, lr=.01, **kw)

def fit(learn, *args, f='fit'):
    with learn.no_bar(), learn.no_logging(): getattr(learn, f)(*args)
    return learn

class Seen(Callback):
    "What a loss knew at each step"
    order = 5
    def before_fit(self): self.priors,self.progress = [],[]
    def after_batch(self):
        if not self.training: return
        self.priors.append(None if self.loss_func.prior is None else self.loss_func.prior.clone())
        self.progress.append(getattr(self.loss_func, 'progress', None))

w = class_weights(counts, None)
@pytest.mark.parametrize('dls,loss,cbs,want', [
    (toy, CELoss(), None, counts), (lambda: toy().balanced(q=.5), CELoss(), None, counts**.5), (toy, CELoss(weight=w), None, np.ones(4)),
    (toy, CrossEntropyLossFlat(weight=tensor(w).float()), None, np.ones(4)), (toy, ClassBalancedLoss(.9), None, counts*class_weights(counts, .9)),
    (toy, CELoss(), lambda: BalancedMixUp(.3), mixup_prior(counts, .3)), (toy, CELoss(), lambda: BalancedMixUp(.3, q=.5), mixup_prior(counts, .3, .5)),
    (lambda: toy().balanced(q=.5), CELoss(weight=w), lambda: BalancedMixUp(1.), (class_probs(counts, .5)+class_probs(counts, 0))/2*w),
    (toy, CELoss(), lambda: MixUp(.4), counts),
    (lambda: toy().balanced(weights={0:1.,1:2.,2:3.,3:4.}), CELoss(), None, counts*[1,2,3,4])])
def test_closed_forms(dls, loss, cbs, want):
    learn = learner(loss, dls(), cbs and cbs())
    assert np.allclose(training_prior(learn), want/want.sum(), atol=1e-6)

def test_what_is_delivered():
    "Label mass of 300 epochs of mixed labels against the stated prior: z-scores from the binomial of the partners"
    learn = learner(CELoss(), toy().balanced(q=.5, seed=0), BalancedMixUp(1., seed=0))
    mass = np.zeros(4)
    class Count(Callback):
        order = 1
        def after_loss(self):
            if not self.training: return
            lam,cb = self.balanced_mix_up._lam,self.balanced_mix_up
            for y,v in ((self.yb[0], 1-lam), (cb._yb1[0], lam)): mass[:] += np.bincount(y, minlength=4)*v
    with learn.added_cbs(Count()): fit(learn, 60)
    p,n = training_prior(learn),mass.sum()
    z = (mass/n-p)/np.sqrt(p*(1-p)/(n/2)) # one lam for a batch: at least half of the labels count as independent
    assert abs(z).max()<4

@pytest.mark.parametrize('loss,want', [(BalancedSoftmaxLoss, 'prior'), (LDAMLoss, 'counts'), (SeesawLoss, 'counts'), (EqualizationLoss, 'prior')])
def test_losses_are_told(loss, want):
    learn = fit(learner(loss(), cbs=BalancedMixUp(.3, seed=0)), 1)
    v = getattr(learn.loss_func, want)
    assert np.allclose(v, counts if want=='counts' else mixup_prior(counts, .3), rtol=1e-5)

def test_what_the_user_says_stays():
    learn = fit(learner(VSLoss(counts=[4,3,2,1]), cbs=BalancedMixUp(.3, seed=0)), 1)
    assert learn.loss_func.counts.tolist()==[4,3,2,1] and np.allclose(learn.loss_func.prior/learn.loss_func.prior.sum(), [.4,.3,.2,.1])

def test_follows_schedules():
    "alpha that falls, mixing that stops, and sampling that moves: each step has its own prior"
    alpha = SchedLin(1., .1)
    cb = BalancedMixUp(alpha, stop=.5, seed=0)
    learn = fit(learner(BalancedSoftmaxLoss(), cbs=[cb, Seen()]), 4)
    n = len(learn.seen.priors)
    for i,p in enumerate(learn.seen.priors):
        pct = i/n
        want = mixup_prior(counts, alpha(pct)) if pct<.5 else class_probs(counts)
        assert np.allclose(p, want, rtol=1e-5)
    learn = fit(learner(BalancedSoftmaxLoss(), toy().balanced(q=1, seed=0), [ProgressiveSampling(), Seen()]), 3)
    per = len(learn.seen.priors)//3
    for e in range(3): assert np.allclose(learn.seen.priors[e*per], progressive_probs(counts, e/2), rtol=1e-5)

def test_balanced_softmax_leaves_no_prior():
    for cbs,dls in ((BalancedMixUp(.2), toy()), (None, toy().balanced(q=.3)), (MixUp(.2), toy())):
        learn = fit(learner(BalancedSoftmaxLoss(), dls, cbs), 1)
        assert np.allclose(output_prior(learn), .25, atol=1e-6)
    assert np.allclose(output_prior(learner(LogitAdjustedLoss(.5))), class_probs(counts, .5), atol=1e-6)

def test_features_and_progress():
    "Influence-balanced loss gets the classifier's input of each batch; nothing stays hooked"
    loss = InfluenceBalancedLoss(start=.5)
    learn = fit(learner(loss, cbs=[BalancedMixUp(.2, seed=0), Seen()]), 2)
    n = len(learn.seen.progress)
    assert np.allclose(learn.seen.progress, np.arange(n)/n) and loss.features.shape[1]==8
    assert not learn.model[2]._forward_pre_hooks
    class Stop(Callback):
        def after_batch(self):
            if self.iter==3: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), learn.no_bar(), learn.no_logging(), learn.added_cbs(Stop()): learn.fit(1)
    assert np.isfinite(fit(learn, 1).recorder.values[-1]).all() and not learn.model[2]._forward_pre_hooks

def test_validate_before_training():
    with (learn := learner(BalancedSoftmaxLoss())).no_bar(): assert np.isfinite(learn.validate()[0])
    assert np.allclose(learn.loss_func.prior, class_probs(counts), rtol=1e-5)

@pytest.mark.parametrize('make,parts', [
    (lambda: learner(CELoss(weight=w), toy().balanced()), ('re-sampling','class weights')), (lambda: learner(BalancedSoftmaxLoss(counts=counts), toy().balanced(q=.2)), ('re-sampling','adds to the logits')),
    (lambda: learner(BalancedSoftmaxLoss(counts=counts), cbs=BalancedMixUp(.5)), ('mixing','adds to the logits')), (lambda: learner(LogitAdjustedLoss(counts=counts, weight=w)), ('class weights','adds to the logits'))])
def test_overshooting_is_said_once(make, parts):
    learn = make()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        fit(learn, 3)
    said = [str(o.message) for o in said if 'more than once' in str(o.message)]
    assert len(said)==1 and all(p in said[0] for p in parts) and check_prior(learn)==said[0]

@pytest.mark.parametrize('make', [lambda: learner(CELoss(), toy().balanced()), lambda: learner(CELoss(weight=w)),
    lambda: learner(CELoss(weight=w**.5), toy().balanced(q=.5)), lambda: learner(BalancedSoftmaxLoss(), toy().balanced(q=.2), BalancedMixUp(.3)),
    lambda: learner(LDAMLoss(), toy().balanced()), lambda: learner(CELoss(), toy().balanced(q=-1)),
    lambda: learner(CELoss(), toy().balanced(), BalancedMixUp(.3))])
def test_what_fits_together_is_not_blamed(make): assert check_prior(make())==''

def test_importing_changes_no_learner():
    "fastai's defaults stay, a Learner keeps the callbacks that it was given, and is made where fastai makes it"
    assert not any(getattr(o, '__name__', '')=='FollowPrior' for o in defaults.callbacks)
    for o in (CrossEntropyLossFlat(), LDAMLoss()):
        learn = learner(o, cbs=BalancedMixUp(seed=0))
        names = set(learn.cbs.attrgot('name'))
        assert set(fit(learn, 1).cbs.attrgot('name'))==names
    class NoTrain: device,path = 'cpu',None
    for dls in (None, DataLoaders(), NoTrain()): Learner(dls, nn.Linear(1,1), loss_func=LDAMLoss())

def test_fit_keeps_its_signature_and_is_wrapped_once():
    own = inspect.unwrap(Learner.fit)
    assert own.__module__=='fastai.learner' and inspect.signature(Learner.fit)==inspect.signature(own)
    fit_before = Learner.fit.fastai_own
    importlib.reload(importlib.import_module('balmix_fastai.prior'))
    assert Learner.fit.fastai_own is fit_before is own

def parts():
    "Parts of a training that over-corrects, a new set of them at each call"
    return dict(dls=toy().balanced(q=.5, seed=0), loss=BalancedSoftmaxLoss(prior=class_probs(counts)), cbs=BalancedMixUp(.5, seed=0))

def put_in(how, n=2):
    "A Learner trained with `parts`, which were put in in one of several orders; with what it warned of"
    p = parts()
    if how=='at once': learn = learner(p['loss'], p['dls'], p['cbs'])
    else: learn = learner(CrossEntropyLossFlat(), toy())
    if how in ('dls, loss, mixer', 'loss, mixer, dls', 'mixer, loss, dls'):
        for o in how.split(', '): dict(dls=lambda: setattr(learn, 'dls', p['dls']), loss=lambda: setattr(learn, 'loss_func', p['loss']), mixer=lambda: learn.add_cb(p['cbs']))[o]()
    if how=='mixer in fit': learn.dls,learn.loss_func = p['dls'],p['loss']
    if how=='after a search':
        with learn.no_bar(), learn.no_logging(): learn.lr_find(num_it=5, show_plot=False)
        learn.dls,learn.loss_func = p['dls'],p['loss']
        learn.add_cb(p['cbs'])
    set_seed(3)
    with warnings.catch_warnings(record=True) as said, learn.no_bar(), learn.no_logging():
        warnings.simplefilter('always')
        learn.fit(n, cbs=p['cbs'] if how=='mixer in fit' else None)
    return learn,[str(o.message) for o in said if 'more than once' in str(o.message)]

@pytest.mark.parametrize('how', ['dls, loss, mixer', 'loss, mixer, dls', 'mixer, loss, dls', 'mixer in fit', 'after a search'])
def test_parts_in_every_order_are_the_same_training(how):
    a,said_a = put_in('at once')
    b,said_b = put_in(how)
    assert len(said_a)==1 and said_a==said_b
    assert a.trained_prior==b.trained_prior
    if how!='after a search': # which has changed the order of the items
        for o,p in zip(a.model.parameters(), b.model.parameters()): assert torch.equal(o, p)

def test_what_was_trained_on_stays_known():
    "The parts that a fit had, at its end, also when they are gone, in an export, and after an interruption"
    alpha = SchedLin(1., .1)
    learn = learner(BalancedSoftmaxLoss(), exportable())
    with learn.no_bar(), learn.no_logging(): learn.fit(2, cbs=BalancedMixUp(alpha, seed=0))
    n = 2*len(learn.dls.train)
    want = np.mean([mixup_prior(counts, alpha(i/n)) for i in range(n//2, n)], 0) # the mean of the last epoch
    assert np.allclose(training_prior(learn), want) and np.allclose(output_prior(learn), .25, atol=1e-6)
    learn.export('l.pkl')
    loaded = load_learner('l.pkl')
    assert np.allclose(training_prior(loaded), want) and np.allclose(output_prior(loaded), .25, atol=1e-6)
    assert prior_table(loaded).index.tolist()==list('0123')
    learn = learner(CELoss(), toy().balanced(q=1, seed=0))
    class Stop(Callback):
        def before_batch(self):
            if self.training and self.epoch==2: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), learn.no_bar(), learn.no_logging(): learn.fit(4, cbs=[ProgressiveSampling(), Stop()])
    assert np.allclose(training_prior(learn), progressive_probs(counts, 1/3))
    with learn.no_bar(): learn.lr_find(num_it=3, show_plot=False)
    assert np.allclose(training_prior(learn), progressive_probs(counts, 1/3)) # a search is no training

def test_what_is_not_known_is_not_taken_from_an_earlier_fit():
    "A fit whose labels cannot be read leaves no prior, and not the one of other data"
    learn = fit(learner(CELoss(), toy().balanced(q=.5, seed=0)), 1)
    assert np.allclose(training_prior(learn), class_probs(counts, .5))
    class Blind(torch.utils.data.Dataset):
        def __len__(self): return 32
        def __getitem__(self, i): return torch.zeros(5),i%4
    learn.dls = DataLoaders.from_dsets(Blind(), Blind(), bs=8, device='cpu', num_workers=0)
    fit(learn, 1)
    with pytest.raises(ValueError, match='labels='): output_prior(learn)

def test_an_interrupted_fit_leaves_nothing_behind():
    class Stop(Callback):
        def __init__(self, at): self.at = at
        def after_pred(self):
            if self.training and self.iter==2: raise self.at('stop')
    for error in (KeyboardInterrupt, CancelFitException, CancelTrainException, ValueError):
        learn = learner(InfluenceBalancedLoss(start=0.), cbs=DeferredReweighting(0., None))
        names = set(learn.cbs.attrgot('name'))
        try:
            with learn.no_bar(), learn.no_logging(): learn.fit(1, cbs=Stop(error))
        except (KeyboardInterrupt, ValueError): pass
        assert learn.loss_func.weight is None and not learn.model[2]._forward_pre_hooks and set(learn.cbs.attrgot('name'))==names
        fit(learn, 1)

def test_labels_are_read_anew_for_each_fit():
    "Items that were relabelled between two fits"
    items = [(torch.randn(5), 0) for _ in range(60)]+[(torch.randn(5), 1) for _ in range(20)]
    dls = DataLoaders.from_dsets(items, items[::5], bs=16, device='cpu', num_workers=0)
    learn = Learner(dls, nn.Linear(5,2), BalancedSoftmaxLoss(), cbs=BalancedMixUp(.2, seed=0), lr=.01)
    fit(learn, 1)
    for i in range(20, 60): items[i] = (items[i][0], 1)
    fit(learn, 1)
    assert np.allclose(training_prior(learn), mixup_prior([20,60], .2)) and np.allclose(learn.balanced_mix_up.prior, mixup_prior([20,60], .2))

def test_loss_outside_of_a_learner_and_unreadable_labels():
    with pytest.raises(ValueError, match='has no prior'): BalancedSoftmaxLoss()(torch.zeros(2,4), tensor([0,1]))
    class Blind(torch.utils.data.Dataset):
        def __len__(self): return 32
        def __getitem__(self, i): return torch.zeros(5),i%4
    dls = DataLoaders.from_dsets(Blind(), Blind(), bs=8, device='cpu', num_workers=0)
    with pytest.raises(ValueError, match='Or pass it counts='): fit(learner(BalancedSoftmaxLoss(), dls), 1)
    fit(learner(BalancedSoftmaxLoss(counts=counts), dls), 1)

def test_exports_leave_the_data_behind():
    learn = fit(learner(InfluenceBalancedLoss(start=0.), cbs=BalancedMixUp(.2)), 1)
    assert not any(isinstance(o, FollowPrior) for o in learn.cbs) and len(pickle.dumps(learn.loss_func))<2000 and len(pickle.dumps(learn.trained_prior))<1000

def test_an_export_without_parts_of_ours_needs_no_package():
    "A plain Learner, trained while the package was imported, is loaded by a Python that cannot import it"
    learn = fit(learner(CrossEntropyLossFlat(), exportable()), 1)
    learn.export('plain.pkl')
    code = "import sys; sys.modules['balmix_fastai'] = None; from fastai.learner import load_learner; l = load_learner('plain.pkl'); print(l.cbs.attrgot('name'))"
    res = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert res.returncode==0 and 'follow_prior' not in res.stdout, res.stderr
