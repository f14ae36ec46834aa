"Mixers: label factors by hand, what is delivered against what is stated, and everything they inherit."
import numpy as np, pytest, scipy.stats as scs, torch
from functools import partial
from torch.nn import functional as F
from torch.utils.data import TensorDataset
from fastai.basics import Callback, CrossEntropyLossFlat, DataLoaders, Learner, nn, set_seed
from fastai.callback.mixup import MixUp
from fastai.callback.progress import ProgressCallback
from balmix_fastai.losses import BalancedSoftmaxLoss, CELoss, LDAMLoss
from balmix_fastai.mixers import *
from balmix_fastai.mixup import BalancedMixUp
from balmix_fastai.prior import training_prior
from balmix_fastai.sampling import class_probs

n_k = np.array([120,30,10])
y = torch.repeat_interleave(torch.arange(3), torch.tensor(n_k))
x = torch.randn(len(y), 1, 12, 12, generator=torch.Generator().manual_seed(0))+y[:,None,None,None]
make = dict(remix=ReMix, mamix=MAMix, unimix=UniMix, cutmix=partial(BalancedCutMix, start=0, stop=1), manifold=BalancedManifoldMixUp)

def learner(cb, loss=None, workers=0, net=None):
    set_seed(0)
    ds = TensorDataset(x, y)
    dls = DataLoaders.from_dsets(ds, ds, bs=16, num_workers=workers, device='cpu')
    net = net or nn.Sequential(nn.Conv2d(1,4,3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4,3))
    learn = Learner(dls, net, loss or CELoss(), cbs=cb, lr=.01)
    learn.remove_cb(ProgressCallback).logger = lambda *o: None
    return learn

class Log(Callback):
    "Label of each step as soft targets, inputs, and the loss by hand"
    run_valid,order = False,30
    def before_fit(self): self.mass,self.n,self.off,self.ids,self.lams = np.zeros(3),0,[],[],[]
    def after_loss(self):
        cb = next(c for c in self.learn.cbs if hasattr(c, 'label_mass'))
        soft = F.one_hot(self.yb[0], 3).double()
        if cb._lam is not None:
            w = torch.as_tensor(np.broadcast_to(cb._lam_y, len(soft)).copy())[:,None]
            soft = (1-w)*soft+w*F.one_hot(cb._yb1[0], 3)
            self.lams.append(np.broadcast_to(cb._lam, len(soft)))
            self.ids.append(cb._paired.pairs)
        self.mass,self.n = self.mass+soft.sum(0).numpy(),self.n+len(soft)
        self.off.append((self.loss-CELoss()(self.pred, soft)).abs().item())

@pytest.mark.parametrize('name', make)
def test_label_mass_and_loss(name):
    "Soft-target cross-entropy by hand at each step; delivered label mass against the stated prior, as z-scores over epochs"
    learn = learner([make[name](seed=1), Log()])
    per = []
    for _ in range(25):
        learn.fit(1)
        per.append(learn.log.mass/learn.log.n)
        assert max(learn.log.off)<1e-5
    per,prior = np.array(per),next(c for c in learn.cbs if hasattr(c, 'label_mass')).prior
    z = (per.mean(0)-prior)/(per.std(0, ddof=1)/len(per)**.5)
    assert abs(z).max()<5 # the t statistic of 25 epochs: beyond 5 with p below 1e-4

def remix_by_hand(lam, n, n1):
    if n/n1>=3 and 1-lam<.5: return 1.
    if n/n1<=1/3 and lam<.5: return 0.
    return lam
def mamix_by_hand(lam, n, n1):
    k,k1 = n**-.25,n1**-.25
    return np.interp(lam, [0, k/(k+k1), 1], [0, .5, 1])

@pytest.mark.parametrize('cb,f', [(ReMix(), remix_by_hand), (MAMix(), mamix_by_hand), (UniMix(), lambda u,n,n1: 1-(u+n1/(n+n1) if u+n1/(n+n1)<1 else u+n1/(n+n1)-1))])
def test_factors_by_hand(cb, f):
    rng = np.random.default_rng(0)
    lam,n,n1 = rng.random(500),rng.integers(1, 300, 500).astype(float),rng.integers(1, 300, 500).astype(float)
    assert np.allclose(cb.factor(lam, n, n1), [f(*o) for o in zip(lam, n, n1)])

@pytest.mark.parametrize('cb', [ReMix(kappa=1e9), MAMix(power=0.)])
def test_limits_are_mixup(cb):
    lam = np.linspace(0, 1, 50)
    assert np.allclose(cb.factor(lam, np.full(50, 90.), np.full(50, 7.)), lam)

@pytest.mark.parametrize('name', make)
def test_seeds_workers_and_repeats(name):
    def weights(seed, workers):
        learn = learner(make[name](seed=seed), workers=workers)
        learn.fit(2)
        return torch.cat([p.flatten() for p in learn.model.parameters()]).detach()
    a = weights(3, 0)
    assert torch.equal(a, weights(3, 0)) and torch.equal(a, weights(3, 2)) and not torch.equal(a, weights(4, 0))

@pytest.mark.parametrize('name,q', [('remix',1), ('mamix',1), ('unimix',.9), ('cutmix',0), ('manifold',0)])
def test_partner_stream(name, q):
    learn = learner([make[name](seed=0), Log()])
    learn.fit(30)
    cb = next(c for c in learn.cbs if hasattr(c, 'label_mass'))
    assert scs.chisquare(cb.partner_counts, cb.partner_counts.sum()*class_probs(n_k, q)).pvalue>1e-5

def test_cutmix_pastes_the_partner_and_only_it():
    class Look(Callback):
        run_valid,order = False,3
        def before_batch(self):
            cb = self.balanced_cut_mix
            if cb._lam is None: return
            a,b = (x[o] for o in cb._paired.pairs.T)
            mine,theirs = (self.xb[0]==a).all(1),(self.xb[0]==b).all(1)
            assert (mine | theirs).all()
            other = torch.as_tensor((cb._paired.pairs[:,0]!=cb._paired.pairs[:,1]))
            share = theirs[other].float().mean((1,2))
            assert torch.allclose(share, torch.full_like(share, float(cb._lam)), atol=1e-6)
            ys,xs = torch.where(theirs[other][0])
            assert len(ys)==(ys.max()-ys.min()+1)*(xs.max()-xs.min()+1) if len(ys) else True # a rectangle
    learner([BalancedCutMix(seed=0, p=1., start=0, stop=1), Look()]).fit(3)

def test_cutmix_mixes_as_often_as_it_says():
    learn = learner(BalancedCutMix(seed=0, p=.3, start=0, stop=1))
    learn.fit(40)
    n,steps = len(learn.balanced_cut_mix.lams),40*len(learn.dls.train)
    assert abs(n-.3*steps)/(steps*.3*.7)**.5<4

def test_features_of_the_classifier_are_mixed():
    "The last layer sees the mix of the two features"
    seen = []
    learn = learner([BalancedManifoldMixUp(1., seed=0), Log()])
    learn.model[4].register_forward_hook(lambda m,i,o: seen.append(i[0].detach()) if learn.training else None)
    learn.fit(1)
    ids,lam = learn.log.ids[0],float(learn.log.lams[0][0])
    first = learner(None).model # the same start
    f = lambda i: first[:4](x[i])
    assert torch.allclose(seen[0], torch.lerp(f(ids[:,0]), f(ids[:,1]), lam), atol=1e-5)

def test_features_hook_goes_after_an_interruption():
    class Stop(Callback):
        order = 20
        def before_batch(self):
            if self.training and self.iter==2: raise KeyboardInterrupt
    learn = learner([BalancedManifoldMixUp(seed=0)])
    with pytest.raises(KeyboardInterrupt), learn.added_cbs(Stop()): learn.fit(1)
    assert len(learn.get_preds()[0])==160 and not learn.model[4]._forward_pre_hooks

@pytest.mark.parametrize('name', make)
def test_with_other_losses_and_the_prior(name):
    for loss in (BalancedSoftmaxLoss(), LDAMLoss(), CrossEntropyLossFlat()):
        learn = learner(make[name](seed=0), loss)
        learn.fit(1)
        assert np.isfinite(learn.recorder.values[-1]).all()
        assert np.allclose(training_prior(learn), next(cb for cb in learn.cbs if hasattr(cb, 'label_mass')).prior, atol=2e-3 if name=='cutmix' else 1e-6) # whose first step does not know the size of the images
        if isinstance(loss, BalancedSoftmaxLoss) and name!='cutmix': assert np.allclose(loss.prior, training_prior(learn), atol=1e-5) # which begins and ends unmixed

@pytest.mark.parametrize('name', make)
def test_refuses_two_mixers(name):
    for other in (MixUp(.2), BalancedMixUp(.2)):
        with pytest.raises(ValueError, match='both mix'): learner([make[name](), other]).fit(1)

@pytest.mark.parametrize('f,says', [(lambda: ReMix(kappa=.5), 'kappa'), (lambda: ReMix(tau=2), 'tau'), (lambda: MAMix(power=np.inf), 'power'), (lambda: UniMix(tau=np.nan), 'tau'),
    (lambda: BalancedCutMix(p=0), 'p=0'),
    (lambda: ReMix(alpha=0), 'alpha'), (lambda: BalancedCutMix(start=.9, stop=.5), 'start')])
def test_bad_arguments(f, says):
    with pytest.raises(ValueError, match=says): f()

def test_cutmix_needs_images():
    ds = TensorDataset(torch.randn(40,3), y[:40]*0+torch.arange(40)%2)
    learn = Learner(DataLoaders.from_dsets(ds, ds, bs=8, num_workers=0, device='cpu'), nn.Linear(3,2), CELoss(), cbs=BalancedCutMix(p=1., start=0, stop=1))
    with pytest.raises(ValueError, match='N,C,H,W'), learn.no_bar(): learn.fit(1)
