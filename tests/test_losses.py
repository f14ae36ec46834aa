"Losses: gradients, targets of both kinds, weights, reductions, precision, pickles, and life in a Learner."
import pickle
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as hs
from torch.nn import functional as F
from fastai.basics import DataLoaders, Learner, nn, set_seed
from fastai.callback.mixup import MixUp
from fastai.callback.progress import *
from balmix_fastai.losses import *
from balmix_fastai.mixup import BalancedMixUp

counts = [500,100,20,4]
def all_losses(**kw):
    ib = InfluenceBalancedLoss(counts=counts, start=0., **kw)
    ib.features = torch.linspace(-1, 1, 6*8).view(6,8)
    own = {k:v for k,v in kw.items() if k!='weight'} # these make their weights themselves
    res = dict(ce=CELoss(**kw), focal=SoftFocalLoss(**kw), la=LogitAdjustedLoss(1.3, counts=counts, **kw), bs=BalancedSoftmaxLoss(counts=counts, **kw),
        cb=ClassBalancedLoss(.99, counts=counts, **own), cb_focal=ClassBalancedLoss(.99, 1.5, counts=counts, **own), vs=VSLoss(counts=counts, **kw),
        cdt=CDTLoss(counts=counts, **kw), ldam=LDAMLoss(counts=counts, **kw), seesaw=SeesawLoss(counts=counts, **kw),
        eql=EqualizationLoss(.05, seed=0, counts=counts, **kw), ib=ib,
        las=LabelAwareSmoothingLoss(counts=counts, **kw), cs=CostSensitiveLoss(**kw), sord=SORDLoss(**kw), emd=EMDLoss(**kw))
    return res
names = list(all_losses())
label_wise = [o for o in names if o!='emd'] # EMD is not linear in its target

@pytest.fixture
def z(): return torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tanh()
y = torch.tensor([0,1,2,3,3,0])
soft = torch.rand(6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64).softmax(1)

def again(loss):
    "The same draws each time, for losses that draw"
    if hasattr(loss, 'rng'): loss.rng = np.random.default_rng(0)
    return loss

@pytest.mark.parametrize('name', [o for o in names if o not in ('seesaw','ib')]) # these two hold a factor of the loss fixed
@pytest.mark.parametrize('targ', [y, soft])
def test_gradients(z, name, targ):
    loss = all_losses()[name]
    assert torch.autograd.gradcheck(lambda o: again(loss)(o, targ), z.requires_grad_())

@pytest.mark.parametrize('name', ['seesaw','ib'])
def test_gradients_with_the_factor_held(z, name):
    "The gradient is that of cross-entropy with the factor as a constant"
    loss,z = all_losses()[name],z.requires_grad_()
    g, = torch.autograd.grad(loss(z, y), z)
    n,s = torch.tensor(counts).double(),z.detach().softmax(1)
    if name=='seesaw':
        S = (n/n[y][:,None]).clamp(max=1)**.8*(s/s.gather(1, y[:,None]).clamp(min=.01)).clamp(min=1)**2
        S = S.scatter(1, y[:,None], 1.)
        p = S*z.exp()/(S*z.exp()).sum(1, keepdim=True)
        want = (p-F.one_hot(y, 4))/6
    else:
        w = (1/n)/(1/n).mean()
        f = w[y]*1000/((s-F.one_hot(y, 4)).abs().sum(1)*loss.features.abs().sum(1)+1e-3)
        want = f[:,None]*(s-F.one_hot(y, 4))/6
    assert torch.allclose(g.detach(), want.detach(), rtol=1e-5)

@pytest.mark.parametrize('name', names)
def test_ids_are_certain_probabilities(z, name):
    loss = all_losses(reduction='none')[name]
    assert torch.allclose(again(loss)(z, y), again(loss)(z, F.one_hot(y, 4).double()), rtol=1e-6)

@pytest.mark.parametrize('name', label_wise)
@pytest.mark.parametrize('w', [None, [.5,1.,2.,4.]])
def test_a_mixed_target_is_the_mix_of_losses(z, name, w):
    loss = all_losses(reduction='none', weight=w)[name]
    want = sum(soft[:,k]*again(loss)(z, torch.full((6,), k)) for k in range(4)) # weights are in the losses of the single labels
    assert torch.allclose(again(loss)(z, soft), want, rtol=1e-5)

@pytest.mark.parametrize('name', [o for o in names if not o.startswith('cb')])
@pytest.mark.parametrize('targ', [y, soft])
def test_reductions_and_weights(z, name, targ):
    "Sum is the sum of the items; the mean divides by the summed weights of the targets"
    w = torch.tensor([.5,1.,2.,4.]).double()
    one,s,m = (again(all_losses(reduction=r, weight=w)[name])(z, targ) for r in ('none','sum','mean'))
    n = w[y].sum() if targ is y else (soft*w).sum()
    assert one.shape==(6,) and torch.allclose(one.sum(), s) and torch.allclose(m, s/n)

@pytest.mark.parametrize('name', [o for o in names if o not in ('ib',)])
def test_images_of_logits(name):
    "Classes on another axis: the same as the flattened items"
    z,y = torch.randn(2,4,3,5).tanh(),torch.randint(0, 4, (2,3,5))
    flat = again(all_losses()[name])(z.permute(0,2,3,1).reshape(-1,4), y.reshape(-1))
    loss = again(all_losses(axis=1)[name])
    got = loss(z, y)
    if name!='eql': assert torch.allclose(got, flat, rtol=1e-4)
    assert torch.allclose(loss.activation(z).sum(1), torch.ones(2,3,5)) and loss.decodes(z).shape==(2,3,5)

@pytest.mark.parametrize('name', names)
def test_half_precision_is_computed_in_single(z, name):
    a = all_losses()[name]
    with torch.autocast('cpu', dtype=torch.bfloat16): low = again(a)(z.to(torch.bfloat16), y)
    assert low.dtype==torch.float32 and torch.allclose(low, again(a)(z.to(torch.bfloat16).float(), y))

@pytest.mark.parametrize('name', names)
def test_pickle(z, name):
    a = all_losses(weight=[1.,2.,3.,4.])[name]
    b = pickle.loads(pickle.dumps(a))
    if name=='ib': b.features = a.features
    assert torch.equal(again(a)(z, y), again(b)(z, y)) and repr(a)==repr(b)

extreme = hs.lists(hs.floats(-80, 80), min_size=4, max_size=4)
@settings(max_examples=60, deadline=None)
@given(extreme, hs.integers(0, 3))
def test_finite_everywhere(row, k):
    "Far from sure or very sure: losses and gradients are numbers"
    for name,loss in all_losses().items():
        if name=='ib': loss.features = torch.ones(1,8)
        z = torch.tensor([row]).float().requires_grad_()
        out = loss(z, torch.tensor([k]))
        out.backward()
        assert torch.isfinite(out) and torch.isfinite(z.grad).all(), name

def test_absent_class():
    "A class without an image counts like the rarest one, and is not nan"
    n = [500,100,0,4]
    for cls in (BalancedSoftmaxLoss, VSLoss, LDAMLoss, SeesawLoss, ClassBalancedLoss, LabelAwareSmoothingLoss):
        loss = cls(counts=n)
        z = torch.zeros(2,4).requires_grad_()
        loss(z, torch.tensor([0,3])).backward()
        assert torch.isfinite(z.grad).all()
    assert torch.allclose(log_prior(torch.tensor([.9,.1,0.]))[1:], torch.tensor([.1,.1]).log())

@pytest.mark.parametrize('f,says', [(lambda: LogitAdjustedLoss(float('nan')), 'tau'), (lambda: SoftFocalLoss(-1), 'gamma'), (lambda: LDAMLoss(0), 'max_m'), (lambda: CELoss(reduction='x'), 'reduction'),
    (lambda: CELoss(weight=[-1,1]), 'weight'), (lambda: CELoss(weight=[[1]]), 'weight'), (lambda: ClassBalancedLoss(1.), 'beta'), (lambda: ClassBalancedLoss(weight=[1]), 'weight='),
    (lambda: EqualizationLoss(2.), 'lam'), (lambda: InfluenceBalancedLoss(start=1.), 'start'), (lambda: LabelAwareSmoothingLoss(.1, .2), 'tail'), (lambda: SORDLoss(0), 's='),
    (lambda: BalancedSoftmaxLoss(counts=[0,0]), 'counts'), (lambda: BalancedSoftmaxLoss(counts=[1,2,3])(torch.zeros(2,4), torch.tensor([0,1])), '3 classes'),
    (lambda: BalancedSoftmaxLoss()(torch.zeros(2,4), torch.tensor([0,1])), 'no prior'),
    (lambda: InfluenceBalancedLoss(counts=[1,1], start=0.)(torch.zeros(2,2), torch.tensor([0,1])), 'features'),
    (lambda: CELoss()(torch.zeros(2,4), torch.zeros(2)), 'class id'), (lambda: CELoss()(torch.zeros(2,4), torch.zeros(3, dtype=torch.long)), 'class id'),
    (lambda: QuadraticKappaLoss(reduction='none')(torch.zeros(2,4), torch.tensor([0,1])), 'per_item'), (lambda: QuadraticKappaLoss(weight=[1,1]), 'weight')])
def test_bad_input(f, says):
    with pytest.raises(ValueError, match=says): f()

def test_equalization_draws_at_its_rate():
    "Rare classes of other labels are left out with probability gamma: z-score of 40,000 draws"
    loss = EqualizationLoss(.05, .9, seed=1, counts=counts)
    out = loss._left_out(torch.zeros(20_000, 4))
    assert not out[:,:2].any()
    z = (out[:,2:].double().mean()-.9)/(.9*.1/40_000)**.5
    assert abs(z)<4

def toy(n=(60,20,8,4)):
    g = torch.Generator().manual_seed(0)
    items = [(torch.randn(5, generator=g)+k, k) for k,m in enumerate(n) for _ in range(m)]
    return DataLoaders.from_dsets(items, items, bs=16, device='cpu', num_workers=0)

@pytest.mark.parametrize('name', ['ce','focal','cb','bs','vs','ldam','seesaw','eql','las','cs','sord','emd'])
@pytest.mark.parametrize('cb', [None, 'mixup', 'balanced', 'per_item'])
def test_in_a_learner(name, cb):
    set_seed(0)
    cbs = dict(mixup=MixUp(.4), balanced=BalancedMixUp(.3, seed=0), per_item=BalancedMixUp(.3, per_item=True, seed=0)).get(cb)
    learn = Learner(toy(), nn.Linear(5,4), all_losses()[name], cbs=cbs, lr=.05)
    with learn.no_bar(), learn.no_logging():
        before = learn.validate()[0]
        learn.fit(3)
        after,(p,t) = learn.validate()[0],learn.get_preds()
    assert np.isfinite(after) and after<before and torch.allclose(p.sum(1), torch.ones(len(p)))

def test_kappa_loss_learns_grades():
    "Measured on all items at once: in batches of one grade, as this unshuffled validation has, there is no kappa"
    set_seed(0)
    learn = Learner(toy(), nn.Linear(5,4), QuadraticKappaLoss(), cbs=BalancedMixUp(.2, seed=0))
    def kappa():
        p,t = learn.get_preds()
        return 1-QuadraticKappaLoss()(p.log(), t).exp()
    with learn.no_bar(), learn.no_logging():
        before = kappa()
        learn.fit(20, .1)
        assert before<.2 and kappa()>.7
