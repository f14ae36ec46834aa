"Pictures: what they show, for 2 and for 100 classes, and that looking changes nothing"
from copy import deepcopy
from functools import partial
import matplotlib.pyplot as plt, numpy as np, pytest, torch
from torch import nn
from torch.utils.data import TensorDataset
from fastai.data.core import DataLoaders
from fastai.callback.core import Callback
from fastai.callback.schedule import SchedLin
from fastai.layers import Flatten
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.torch_core import set_seed
from balmix_fastai.metrics import shot_groups
from balmix_fastai.mixers import *
from balmix_fastai.mixup import BalancedMixUp
from balmix_fastai.prior import prior_table
from balmix_fastai.sampling import class_probs
from balmix_fastai.schedule import *
from balmix_fastai.show import *

def images(counts, size=8, n_inp=1, bs=10):
    "Loaders of flat images whose grey level tells the class"
    y = np.repeat(np.arange(len(counts)), counts)
    x = torch.tensor(y/max(1, len(counts)-1)).float()[:,None,None,None].expand(-1, 3, size, size).clone()
    ds = TensorDataset(*[x]*n_inp, torch.tensor(y))
    ds.n_inp = n_inp
    return DataLoaders.from_dsets(ds, ds, bs=bs, num_workers=0)

def learner(counts, cbs, **kwargs):
    dls = images(counts, **kwargs)
    return Learner(dls, nn.Sequential(Flatten(), nn.LazyLinear(len(counts))), CrossEntropyLossFlat(), cbs=cbs)

long_tail = [int(500*.01**(i/99)) for i in range(100)]

@pytest.fixture(autouse=True)
def no_open_figure():
    "A picture that is returned is not also left open, which would show it twice"
    plt.close('all') # what other tests have left
    yield
    assert not plt.get_fignums()

@pytest.mark.parametrize('counts', [[90,10], long_tail, [3,0,9], [7]])
def test_bars_are_counts_in_falling_order(counts):
    ax = plot_class_counts(counts).axes[0]
    bars = sorted((p.get_x()+p.get_width()/2, p.get_y()+p.get_height()) for p in ax.patches)
    have = sorted((c for c in counts if c), reverse=True)
    assert ax.get_yscale()=='log'
    np.testing.assert_allclose([h for _,h in bars], have)
    np.testing.assert_allclose([x for x,_ in bars], np.arange(len(have)), atol=1e-9)

@pytest.mark.parametrize('counts', [[90,10], long_tail])
def test_groups_are_those_of_shot_groups(counts):
    labels = [t.get_text() for t in plot_class_counts(counts).axes[0].get_legend().get_texts()]
    for group,n in zip(*np.unique(shot_groups(counts), return_counts=True)): assert any(o.startswith(group) and o.endswith(f'({n})') for o in labels)

def test_tick_labels_do_not_overlap_with_many_classes():
    fig = plot_class_counts(long_tail, [f'class number {i}' for i in range(100)])
    fig.canvas.draw()
    boxes = [t.get_window_extent() for t in fig.axes[0].get_xticklabels() if t.get_text()]
    assert len(boxes)>=10 and not any(a.overlaps(b) for a,b in zip(boxes, boxes[1:]))

def test_a_resampling_loader_shows_what_it_draws():
    dls = images([40,10]).balanced(q=0, seed=0)
    drawn = [l for l in dls.show_class_counts().axes[0].lines if l.get_label()=='drawn per epoch']
    np.testing.assert_allclose(drawn[0].get_ydata(), [25,25])
    assert not images([40,10]).show_class_counts().axes[0].lines

def test_density_integrates_to_one():
    for a in (.1, .5, 1, 3):
        lam,d = plot_lam(a).axes[0].lines[0].get_data()
        assert abs(np.trapezoid(d, lam)+lam[0]**a-1)<.01 # the first part, left of the picture, in closed form

@pytest.mark.parametrize('alphas', [[0], [-1], [np.nan], ['x']])
def test_alpha_must_be_positive(alphas):
    with pytest.raises(ValueError, match='alpha'): plot_lam(alphas)

@pytest.mark.parametrize('counts', [[90,10], long_tail[:30]])
def test_prior_lines_are_the_table(counts):
    learn = learner(counts, BalancedMixUp(.2, seed=0))
    order,t = np.argsort(-np.array(counts), kind='stable'),prior_table(learn)
    lines = learn.plot_prior(preds=np.full((4,len(counts)), 1/len(counts))).axes[0].lines
    assert len(lines)==3 # images, mixing, and the mean of predictions: the rest is equal to one of them
    np.testing.assert_allclose(lines[1].get_ydata(), t.mixing.values[order])
    np.testing.assert_allclose(lines[2].get_ydata(), 1/len(counts))

def test_prior_wants_shares():
    with pytest.raises(ValueError, match='shares must hold'): plot_prior(dict(images=[.5,-.5]))
    with pytest.raises(ValueError, match='shares must hold'): plot_prior({})

mixers = [BalancedMixUp(.2, seed=0), BalancedMixUp(.2, per_item=True, seed=0), BalancedMixUp(.2, partners='pool', seed=0), ReMix(seed=0), MAMix(seed=0),
    BalancedMixUp(SchedLin(1., .1), q=SchedLin(0., 1.), start=.5, seed=0)]

@pytest.mark.parametrize('cb', mixers, ids=lambda o: f'{type(o).__name__}-{o.per_item}-{o.partners}-{o.start}')
def test_mixed_batch_is_the_mix_of_its_rows(cb):
    learn = learner([40,10], deepcopy(cb))
    image,partner,mixed = ([ax.images[0].get_array() for ax in row] for row in np.array(learn.show_mixed_batch(max_n=6, lam=.25).axes).reshape(3, 6))
    for a,b,m in zip(image, partner, mixed): np.testing.assert_allclose(m, .75*a+.25*b, atol=1e-6)

def test_unimix_and_cutmix_show_their_own_mix():
    for cb in (UniMix(seed=0), BalancedCutMix(p=1, seed=0)): assert len(learner([40,10], cb).show_mixed_batch(max_n=3).axes)==9

def _looks(learn):
    learn.show_mixed_batch()
    learn.show_mixed_batch(lam=.3)
    learn.plot_prior()
    learn.show_exposure()
    learn.plot_schedule(4)
    learn.dls.show_class_counts()

def _regions(learn): learn.plot_regions(n=20)

def points(): return TensorDataset(torch.linspace(0, 1, 80).view(40,2), (torch.arange(40)%5==0).long())

def _state(learn):
    "What a picture must leave as it was"
    mods = list(learn.model.modules())
    hooks = [len(m._forward_hooks)+len(m._forward_pre_hooks) for m in mods]
    return [m.training for m in mods],hooks,[id(o) for o in [*learn.cbs, learn.dls.train, learn.dls.valid]],learn.__dict__.get('dl')

def _scheduled(): return [BalancedMixUp(lambda p: .1+p), ProgressiveSampling(), DeferredReweighting(.5)]

@pytest.mark.parametrize('look,cbs,resample', [(_looks, lambda: BalancedMixUp(.2, seed=5), False), (_looks, lambda: BalancedMixUp(.2), False),
    (_looks, lambda: BalancedCutMix(1.), False), (_looks, lambda: BalancedMixUp(.2, partners='pool'), False), (_looks, _scheduled, True),
    (_regions, lambda: BalancedMixUp(.2), False)])
def test_looking_changes_no_training(look, cbs, resample):
    "No generator, mode, hook, callback or loader is another, and the fit that follows has the same losses to the bit"
    def losses(looks):
        set_seed(0)
        dls = images([40,10]) if look is _looks else DataLoaders.from_dsets(points(), points(), bs=8, num_workers=0)
        if resample: dls = dls.balanced(q=1, seed=None)
        net = nn.Sequential(Flatten(), nn.Linear(192 if look is _looks else 2, 8), nn.BatchNorm1d(8), nn.Dropout(.2), nn.Linear(8, 2))
        learn = Learner(dls, net, CrossEntropyLossFlat(), cbs=cbs())
        net[3].eval()
        before = _state(learn)
        if looks: look(learn)
        assert _state(learn)==before
        assert all(cb.learn is learn for cb in learn.cbs)
        if looks=='during': learn.add_cb(Looker(look))
        with learn.no_bar(), learn.no_logging(): learn.fit(2)
        return learn.recorder.losses
    np.testing.assert_array_equal(losses(False), losses(True))
    if look is _regions: np.testing.assert_array_equal(losses(False), losses('during'))

class Looker(Callback):
    def __init__(self, look): self.look = look
    def after_train(self): self.look(self.learn)

@pytest.mark.parametrize('names', [['$5 to $9','_hidden'], ['a_b^{','\\$x$'], ['$','$$'], ['$\\frac$ of what was paid $','b'], ['<b>','&amp;']])
def test_names_are_shown_as_they_are(names):
    "Names that matplotlib would read as mathematics, or leave out of a legend"
    learn = learner([40,10], BalancedMixUp(.2, seed=0))
    pts = Learner(DataLoaders.from_dsets(points(), points(), bs=8, num_workers=0), nn.Linear(2,2), CrossEntropyLossFlat())
    learn.dls.train.dataset.vocab = learn.dls.valid.dataset.vocab = names
    figs = [plot_class_counts([40,10], names), learn.plot_schedule(2), pts.plot_regions(names, n=20), learn.dls.show_class_counts(), learn.plot_prior(),
        learn.show_exposure(), learn.show_mixed_batch(), learn.show_mixed_batch(lam=.4), plot_prior({'$a_{$': [.5,.5], '_b': [.2,.8]}, names)]
    for fig in figs:
        fig.canvas.draw()
        for t in fig.findobj(plt.Text):
            if t.get_text() and '$' in t.get_text().replace('\\$', ''): assert t.get_text().replace('\\$', '').count('$')%2==0 and 'λ' in t.get_text()
    shown = [t.get_text() for t in figs[0].axes[0].get_xticklabels()]
    assert [o.replace('\\$', '$').strip() for o in shown]==[o if len(o)<19 else f'{o[:9]}…{o[-8:]}' for o in names]
    for fig in figs[1:3]: assert len(fig.axes[0].get_legend().get_texts())==2

def test_what_cannot_be_shown_says_so():
    with pytest.raises(ValueError, match='mixes nothing'): learner([40,10], None).show_mixed_batch()
    with pytest.raises(ValueError, match='inside the network'): learner([40,10], BalancedManifoldMixUp(.2)).show_mixed_batch()
    with pytest.raises(ValueError, match='lam=2'): learner([40,10], BalancedMixUp(.2)).show_mixed_batch(lam=2)
    pts = TensorDataset(torch.randn(20, 2), torch.arange(20)%2)
    learn = Learner(DataLoaders.from_dsets(pts, pts, bs=5, num_workers=0), nn.Linear(2,2), CrossEntropyLossFlat(), cbs=BalancedMixUp(.2))
    with pytest.raises(ValueError, match='shows images'): learn.show_mixed_batch()

def test_two_inputs_show_the_first_image(): assert len(learner([40,10], BalancedMixUp(.2, seed=0), n_inp=2).show_mixed_batch(max_n=2, lam=.5).axes)==6

def test_exposure_adds_up():
    learn = learner([400,90,10], BalancedMixUp(.3, q=.5, seed=0), bs=50)
    t = exposure(learn)
    for k in ('image','partner','weight'): assert abs((t[k]*t.images).sum()-500)<1e-9
    np.testing.assert_allclose(t.partner*t.images/500, class_probs([400,90,10], .5))
    np.testing.assert_allclose(t.weight, (t.image+.3*t.partner)/1.3)

def test_exposure_counts_the_rest_that_is_dropped():
    learn = learner([40,15], None, bs=10) # fastai drops the last, incomplete batch
    assert abs((exposure(learn).image*[40,15]).sum()-50)<1e-9

def test_exposure_of_an_absent_class_is_unknown():
    dls = images([20,0,10])
    learn = Learner(dls, nn.Linear(3,3), CrossEntropyLossFlat())
    t = exposure(learn)
    assert np.isnan(t.image[1]) and t.images[1]==0
    learn.show_exposure()

def test_regions_are_the_guesses_of_the_network():
    set_seed(0)
    pts = TensorDataset(torch.rand(40,2), (torch.arange(40)%4==0).long())
    net = nn.Linear(2,2)
    with torch.no_grad(): net.weight.copy_(torch.tensor([[9.,0],[-9.,0]])), net.bias.copy_(torch.tensor([-4.5,4.5]))
    learn = Learner(DataLoaders.from_dsets(pts, pts, bs=8, num_workers=0), net, CrossEntropyLossFlat())
    ax = learn.plot_regions(n=60).axes[0]
    im,(left,right,*_) = ax.images[0].get_array(),ax.images[0].get_extent()
    x = np.linspace(left, right, 60)
    blue = im[30,:,2]>im[30,:,0] # class 0 is blue, class 1 orange
    assert (blue[x>.55]).all() and not blue[x<.45].any()
    assert net.training and sum(len(l.get_xdata()) for l in ax.lines)==40

def test_schedule_leaves_the_sampler_as_it_was():
    learn = Learner(images([40,10]).balanced(q=1, seed=0), nn.LazyLinear(2), CrossEntropyLossFlat(), cbs=[ProgressiveSampling(), DeferredReweighting(.5)])
    t = schedule_table(learn, 4, points=2)
    np.testing.assert_allclose(learn.dls.train.sampler.probs, [.8,.2])
    assert learn.loss_func.func.weight is None and learn.deferred_reweighting.pct is None
    np.testing.assert_allclose(t.iloc[0,-2:].astype(float), [.8,.2])
    assert abs(t.iloc[-1,-1]-.5)<.01 # balanced sampling leaves the deferred weights nothing to do

@pytest.mark.parametrize('kw', [dict(n_epoch=0), dict(n_epoch=2.5), dict(n_epoch=2, points=0)])
def test_schedule_refuses(kw):
    with pytest.raises(ValueError, match='n_epoch=|points='): schedule_table(learner([40,10], BalancedMixUp(.2)), **kw)

def test_own_axes_are_drawn_into():
    fig,ax = plt.subplots()
    learn = learner([40,10], BalancedMixUp(.2))
    for f in (partial(plot_class_counts, [3,1]), plot_lam, learn.plot_prior, learn.show_exposure, learn.dls.show_class_counts): assert f(ax=ax) is fig
    plt.close(fig)
