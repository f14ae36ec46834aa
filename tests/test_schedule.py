"Scheduled sampling and weights: what each epoch delivers, and what is left afterwards."
import warnings
import numpy as np, pytest, torch
from fastai.basics import Callback, CancelEpochException, CancelFitException, CrossEntropyLossFlat, DataLoaders, F, Learner, nn, noop, set_seed
from fastai.callback.all import CollectDataCallback, MixUp, ProgressCallback, SchedLin
from scipy import stats
from torch.utils.data import TensorDataset
from balmix_fastai.flexible import DifficultySampling
from balmix_fastai.losses import CELoss, ClassBalancedLoss, LDAMLoss, class_weights
from balmix_fastai.mixers import ReMix
from balmix_fastai.mixup import BalancedMixUp
from balmix_fastai.prior import training_prior
from balmix_fastai.sampling import class_probs, mixup_prior
from balmix_fastai.schedule import DeferredResampling, DeferredReweighting, ProgressiveSampling

n_k = np.array([400,40,8])
ds = TensorDataset(torch.randn(n_k.sum(), 2), torch.tensor(np.repeat(range(3), n_k)))

def delivered(n_epoch, cb=ProgressiveSampling, **kw):
    "Class counts of each epoch of a fit"
    set_seed(0)
    dls = DataLoaders.from_dsets(ds, ds, bs=32, num_workers=0).balanced(q=1, seed=1)
    learn = Learner(DataLoaders(dls.train), nn.Linear(2, 3), loss_func=CrossEntropyLossFlat(), cbs=[cb, CollectDataCallback])
    learn.remove_cb(ProgressCallback).logger = noop
    learn._do_epoch_validate = noop
    learn.fit(n_epoch, **kw)
    ys = torch.stack([b[1][0] for b in learn.collect_data.data]).numpy().reshape(-1, len(dls.train)*32)
    return [np.bincount(y, minlength=3) for y in ys]

def agrees(obs, t): return stats.chisquare(obs, obs.sum()*((1-t)*n_k/n_k.sum() + t/3)).pvalue>1e-6

def test_epochs_move_from_instance_to_balanced():
    obs = delivered(5)
    assert len(obs)==5 and all(agrees(o, e/4) for e,o in enumerate(obs))
    assert not agrees(obs[0], 1) and not agrees(obs[-1], 0) and not agrees(obs[2], 0) and not agrees(obs[2], 1)

def test_one_epoch_is_instance_sampling(): assert agrees(delivered(1)[0], 0)

def test_a_resumed_fit_goes_on_where_it_was():
    obs = delivered(5, start_epoch=3)
    assert len(obs)==2 and agrees(obs[0], .75) and agrees(obs[1], 1)

def test_needs_a_loader_that_re_samples():
    learn = Learner(DataLoaders.from_dsets(ds, ds, bs=32, num_workers=0), nn.Linear(2, 3), loss_func=CrossEntropyLossFlat(), cbs=ProgressiveSampling)
    with pytest.raises(ValueError, match=r'balanced\(q=1\)'), learn.no_bar(): learn.fit(1)

def test_deferred_resampling_switches_once():
    obs = delivered(5, DeferredResampling(.6))
    assert all(agrees(o, 0) for o in obs[:3]) and all(agrees(o, 1) for o in obs[3:])

@pytest.mark.parametrize('mixer_first', [True, False])
def test_the_mixer_knows_of_this_epochs_sampling(mixer_first):
    "In whatever order the callbacks are added"
    dls = DataLoaders.from_dsets(ds, ds, bs=32, num_workers=0).balanced(q=1, seed=1)
    cbs = [BalancedMixUp(.2, q=1, seed=0), DeferredResampling(.5)]
    learn = Learner(dls, nn.Linear(2,3), CELoss(), cbs=cbs if mixer_first else cbs[::-1])
    with learn.no_bar(), learn.no_logging(): learn.fit(2)
    e = .2/1.2
    want = (class_probs(n_k) + (1-e)*class_probs(n_k, 0) + e*class_probs(n_k))/2
    assert np.allclose(learn.balanced_mix_up.prior, want)

class Seen(Callback):
    "Weights of the loss at each step, and its value by hand"
    order = 20
    def before_fit(self): self.w,self.off = [],[]
    def after_loss(self):
        loss = getattr(self.loss_func, 'func', self.loss_func)
        if not self.training: assert loss.weight is None
        else:
            self.w.append(None if loss.weight is None else loss.weight.clone())
            self.off.append((self.loss-F.cross_entropy(self.pred, self.yb[0], loss.weight)).abs().item())

@pytest.mark.parametrize('loss', [CELoss, CrossEntropyLossFlat])
@pytest.mark.parametrize('beta', [.999, None])
def test_weights_come_in_late_and_go(loss, beta):
    learn = Learner(DataLoaders.from_dsets(ds, ds, bs=32, num_workers=0), nn.Linear(2,3), loss(), cbs=[DeferredReweighting(.75, beta), Seen()])
    with learn.no_bar(), learn.no_logging(): learn.fit(2)
    n = len(learn.seen.w)
    assert [o is not None for o in learn.seen.w]==[i>=.75*n-1e-9 for i in range(n)] and max(learn.seen.off)<1e-6
    w = (1-beta)/(1-beta**n_k) if beta else 1/n_k
    assert np.allclose(learn.seen.w[-1], w/w.mean(), rtol=1e-4)
    assert getattr(learn.loss_func, 'func', learn.loss_func).weight is None

def test_weights_with_mixing_and_after_an_interruption():
    class Stop(Callback):
        def after_batch(self):
            if self.training and self.epoch==1: raise KeyboardInterrupt
    for cbs in ([BalancedMixUp(.2, seed=0)], [MixUp(.2)]):
        learn = Learner(DataLoaders.from_dsets(ds, ds, bs=32, num_workers=0), nn.Linear(2,3), CELoss(), cbs=[*cbs, DeferredReweighting(.5)])
        with learn.no_bar(), learn.no_logging():
            with pytest.raises(KeyboardInterrupt), learn.added_cbs(Stop()): learn.fit(2)
            if isinstance(cbs[0], MixUp): learn.loss_func = cbs[0].old_lf # fastai leaves its swap behind
            learn.fit(2)
        assert learn.loss_func.weight is None

def test_drw_balances_the_prior_of_the_last_part():
    learn = Learner(DataLoaders.from_dsets(ds, ds, bs=32, num_workers=0), nn.Linear(2,3), LDAMLoss(), cbs=DeferredReweighting(.5, None))
    assert np.allclose(training_prior(learn), class_probs(n_k))
    class Prior(Callback):
        order = 9
        def after_loss(self):
            if self.training: self.learn.last_prior = training_prior(self.learn)
    with learn.no_bar(), learn.no_logging(), learn.added_cbs(Prior()): learn.fit(2)
    assert np.allclose(learn.last_prior, 1/3, atol=1e-6)

def dlsof(**kw): return DataLoaders.from_dsets(ds, ds, bs=32, num_workers=0, **kw)

def test_deferred_weights_follow_what_the_others_leave():
    "With sampling and mixing of any kind the label mass at the end is that of weights alone: counts times `class_weights`"
    for beta in (.999, None):
        w = class_weights(n_k, beta)
        want = n_k*w/(n_k*w).sum()
        for dls,cbs in ((dlsof(), []), (dlsof(), [BalancedMixUp(.3, seed=0)]), (dlsof(), [BalancedMixUp(1., q=.5, seed=0)]), (dlsof(), [ReMix(seed=0)]),
            (dlsof().balanced(q=.5, seed=0), []), (dlsof().balanced(seed=0), []), (dlsof().balanced(q=1, seed=0), [ProgressiveSampling()]),
            (dlsof().balanced(q=.3, seed=0), [BalancedMixUp(.2, seed=0)])):
            for late in (False, True):
                learn = Learner(dls, nn.Linear(2,3), CELoss(), cbs=[] if late else [DeferredReweighting(.5, beta), *cbs])
                with learn.no_bar(), learn.no_logging(), warnings.catch_warnings():
                    warnings.simplefilter('error', UserWarning) # nothing is corrected twice
                    learn.fit(2, cbs=[*cbs, DeferredReweighting(.5, beta)] if late else None)
                assert np.allclose(training_prior(learn), want, atol=1e-6)

def test_weights_that_are_given_are_taken_as_they_are():
    learn = Learner(dlsof(), nn.Linear(2,3), CELoss(), cbs=[DeferredReweighting(.5, weight=[1.,2.,4.]), BalancedMixUp(.3, seed=0), Seen()])
    with learn.no_bar(), learn.no_logging(): learn.fit(2)
    assert learn.seen.w[-1].tolist()==[1,2,4] and learn.seen.w[0] is None

def test_weights_belong_to_the_data_of_the_fit():
    "The same callback on a second data set, and on items that were relabelled"
    cb,seen = DeferredReweighting(0., None),Seen()
    for counts in ([400,40,8], [10,100,1000], [5,5,5]):
        y = torch.tensor(np.repeat(range(3), counts))
        d = TensorDataset(torch.randn(len(y), 2), y)
        learn = Learner(DataLoaders.from_dsets(d, d, bs=5, num_workers=0), nn.Linear(2,3), CELoss(), cbs=[cb, seen])
        with learn.no_bar(), learn.no_logging(): learn.fit(1)
        assert np.allclose(seen.w[-1], class_weights(counts, None), rtol=1e-5)

class Looks(Callback):
    "Class probabilities and weights that each training epoch begins with"
    order = 30
    def before_fit(self): self.probs,self.weights = [],[]
    def after_loss(self):
        if self.training and self.iter==0: self.probs.append(self.learn.dl.sampler.probs.copy())
        if self.training: self.weights.append(self.loss_func.weight)

@pytest.mark.parametrize('cb', [ProgressiveSampling, lambda: DeferredResampling(0.), lambda: DeferredReweighting(0., None), DifficultySampling])
def test_a_search_sees_loader_and_loss_as_they_are(cb):
    dls = dlsof().balanced(q=.7, seed=0)
    learn = Learner(dls, nn.Linear(2,3), CELoss(), cbs=[cb(), Looks()])
    before = dls.train.sampler.probs.copy()
    with learn.no_bar(), learn.no_logging(): learn.lr_find(num_it=40, show_plot=False)
    assert all(np.allclose(o, before) for o in learn.looks.probs) and all(o is None for o in learn.looks.weights) and len(learn.looks.probs)>1
    assert np.allclose(dls.train.sampler.probs, before)

def test_a_search_mixes_as_training_begins():
    "alpha, q, start and stop of a mixer stay where a fit begins, for the whole search"
    for kw,alpha in ((dict(alpha=SchedLin(1., .1)), 1.), (dict(alpha=.3, start=.5), None), (dict(alpha=.3, stop=.01), .3),
        (dict(alpha=.3, q=SchedLin(0., 1.)), .3)):
        cb = BalancedMixUp(**kw, seed=0)
        learn = Learner(dlsof(), nn.Linear(2,3), CELoss(), cbs=cb)
        with learn.no_bar(), learn.no_logging(): learn.lr_find(num_it=40, show_plot=False)
        assert np.allclose(cb.prior, class_probs(n_k) if alpha is None else mixup_prior(n_k, alpha))

@pytest.mark.parametrize('cb', [ProgressiveSampling, lambda: DeferredResampling(.5), DifficultySampling])
@pytest.mark.parametrize('how', [KeyboardInterrupt, CancelFitException, CancelEpochException, None])
def test_the_users_sampler_stays(cb, how):
    class Stop(Callback):
        def after_batch(self):
            if how and self.training and self.epoch==2 and self.iter==1: raise how
    dls = dlsof().balanced(q=.7, seed=0)
    learn = Learner(dls, nn.Linear(2,3), CELoss())
    before = dls.train.sampler.probs.copy()
    with learn.no_bar(), learn.no_logging():
        try: learn.fit(4, cbs=[cb(), Stop()])
        except KeyboardInterrupt: pass
    assert np.allclose(dls.train.sampler.probs, before) and learn.dls.train is dls.train
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert np.allclose(training_prior(learn), class_probs(n_k, .7))

@pytest.mark.parametrize('f,says', [(lambda: DeferredResampling(1.), 'start'), (lambda: DeferredReweighting(-.1), 'start'), (lambda: DeferredReweighting(beta=1.), 'beta')])
def test_bad_arguments(f, says):
    with pytest.raises(ValueError, match=says): f()

@pytest.mark.parametrize('loss,says', [(nn.MSELoss(), 'place for them'), (ClassBalancedLoss(), 'weights of its own'), (CELoss(weight=[1,2,3]), 'already')])
def test_losses_that_cannot_be_weighted(loss, says):
    learn = Learner(DataLoaders.from_dsets(ds, ds, bs=32, num_workers=0), nn.Linear(2,3), loss, cbs=DeferredReweighting())
    with pytest.raises(ValueError, match=says), learn.no_bar(): learn.fit(1)
