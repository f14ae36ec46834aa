"Flexible Sampling: its loss, its choices, the callback in a fit, and what is refused."
import numpy as np, pytest, torch
from fastai.vision.augment import aug_transforms
from fastai.basics import (Callback, CrossEntropyLossFlat, L, Learner, ifnone, load_learner, nn, noop, set_seed)
from hypothesis import given, settings, strategies as st

from balmix_fastai.checkpoint import Checkpoint
from balmix_fastai.data import get_labels, in_order
from balmix_fastai.datasets import digits_lt
from balmix_fastai.flexible import *
from balmix_fastai.flexible import _ActiveSampler, _passes, _Twice
from balmix_fastai.mixup import BalancedMixUp
from balmix_fastai.prior import prior_table
from balmix_fastai.protocol import make_learner, small_cnn
from balmix_fastai.run import check_run, train_run
from balmix_fastai.sampling import mixup_prior
from fastai.metrics import BalancedAccuracy

data = digits_lt()

def learner(dls=None, cbs=None, model=None, **kwargs):
    set_seed(0)
    dls = ifnone(dls, data.dataloaders(bs=32, seed=0, device='cpu'))
    learn = Learner(dls, ifnone(model, small_cnn(10)), loss_func=CrossEntropyLossFlat(), metrics=BalancedAccuracy(), cbs=cbs, **kwargs)
    if hasattr(learn, 'progress'): learn.remove_cb(learn.progress)
    learn.logger = noop
    return learn

def views(): return aug_transforms(do_flip=False, max_rotate=15, max_zoom=1.3, p_affine=1, max_lighting=.3)
def state(m): return {k: v.clone() for k,v in m.state_dict().items()}
def same(a, b): return all(torch.equal(a[k], b[k]) for k in a)

# ---- the contrast

@pytest.mark.parametrize('t', [.1, .5, 2.])
def test_nt_xent_is_its_formula(t):
    z = torch.tensor(np.random.default_rng(0).normal(size=(12,7))).float()
    u,n,want = (z/z.norm(dim=1, keepdim=True)).double().numpy(),6,0.
    for i in range(12):
        j = (i+n)%12
        want -= np.log(np.exp(u[i]@u[j]/t)/sum(np.exp(u[i]@u[k]/t) for k in range(12) if k!=i))
    np.testing.assert_allclose(NTXentLoss(t)(z).item(), want/12, rtol=1e-5)

@pytest.mark.parametrize('bad', [0, -1, np.nan, 'x', None])
def test_temperature(bad):
    with pytest.raises(ValueError, match='temperature='): NTXentLoss(bad)

@pytest.mark.parametrize('n', [2, 5])
def test_too_few_views(n):
    with pytest.raises(ValueError, match='two views of at least two images'): NTXentLoss()(torch.randn(n, 3))

@pytest.mark.parametrize('workers', [0, 2])
def test_both_views_are_of_the_same_images(workers):
    dls = data.dataloaders(bs=32, seed=0, device='cpu', workers=workers)
    dl = _Twice(dls.train)
    seen = []
    for x,y,x1,y1 in dl:
        assert torch.equal(x, x1) and torch.equal(y, y1) # these loaders do not augment
        seen += dl.pairs[:,0].tolist()
    assert len(seen)==len(set(seen))==len(dl)*32

def test_pretraining_leaves_the_classifier_and_moves_the_rest():
    learn = learner()
    old = learn.model[-1]
    was = state(learn.model)
    rec = learn.pretrain_contrastive(3, 5e-3, tfms=views())
    assert learn.model[-1] is old and same(state(old), {k.split('.')[-1]: v for k,v in was.items() if k.startswith('1.')})
    assert not torch.equal(was['0.0.0.weight'], learn.model.state_dict()['0.0.0.weight'])
    first,last = rec.losses[:5],rec.losses[-5:]
    assert np.mean(last)<np.mean(first)
    learn.fit_one_cycle(1, 5e-3)
    assert not torch.equal(was['1.weight'], learn.model[-1].weight)

def test_pretraining_needs_views_that_differ():
    with pytest.raises(ValueError, match='Both views of an image are equal'): learner().pretrain_contrastive(1)

class Stop(Callback):
    order = 65
    def __init__(self, epoch): self.at = epoch
    def after_epoch(self):
        if self.epoch==self.at: raise KeyboardInterrupt

def test_interrupted_pretraining_goes_on(tmp_path):
    whole = learner()
    whole.pretrain_contrastive(3, 5e-3, tfms=views(), path=tmp_path/'whole')
    cut = learner()
    old = cut.model[-1]
    with pytest.raises(KeyboardInterrupt): cut.pretrain_contrastive(3, 5e-3, tfms=views(), path=tmp_path/'cut', cbs=Stop(0))
    assert cut.model[-1] is old
    cut.fit(1, 1e-4) # still usable
    again = learner()
    again.pretrain_contrastive(3, 5e-3, tfms=views(), path=tmp_path/'cut')
    assert same(state(whole.model[0]), state(again.model[0]))

@pytest.mark.parametrize('kw', [dict(epochs=0), dict(epochs=1.5), dict(epochs=1, temperature=0)])
def test_bad_pretraining_begins_nothing(kw):
    learn = learner()
    was = state(learn.model)
    with pytest.raises(ValueError): learn.pretrain_contrastive(**kw)
    assert same(was, state(learn.model))

# ---- anchors

@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3000), min_size=1, max_size=12).filter(any), st.floats(.001, 1), st.integers(1, 5))
def test_anchor_counts(counts, s, least):
    n,a = np.array(counts),anchor_counts(counts, s, least)
    assert (a<=n).all() and (a[n>0]>0).all() and (a>=np.minimum(n, least)).all()
    assert a.max()<=max(n.max()*s+1e-6, n[n>0].min(), least)
    assert (a==n)[n<=a.max()].all() # nothing is left out below the cap
    if s==1: assert (a==n).all()

def test_nearest_to_mean_by_hand():
    rng = np.random.default_rng(0)
    f,y = rng.normal(size=(60,5)),rng.integers(0, 3, 60)
    got = nearest_to_mean(f, y, [4,5,6])
    u = f/np.linalg.norm(f, axis=1, keepdims=True)
    for k,i in zip(range(3), np.split(got, [4,9])):
        m = u[y==k].mean(0)
        d = u[y==k]@m
        assert (y[i]==k).all()
        np.testing.assert_allclose(u[i]@m, np.sort(d)[::-1][:len(i)], rtol=1e-5)

def test_more_anchors_than_items():
    with pytest.raises(ValueError, match='n asks for 3 items of class 1, which has 2'): nearest_to_mean(np.eye(4), [0,0,1,1], [1,3])

# ---- queries

@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 500)), min_size=1, max_size=12), st.integers(0, 900))
def test_query_counts(cs, n):
    accs,left = map(np.array, zip(*cs))
    q = query_counts(accs, left, n)
    assert (q>=0).all() and (q<=left).all() and q.sum()==min(n, left.sum())
    full = q==left
    hard = (1-accs)[~full]
    if len(hard) and hard.sum()>0: # those that are not used up share the rest in proportion
        rest = q[~full].sum()
        assert (abs(q[~full]-rest*hard/hard.sum())<=2).all()

def test_no_difficulty_left(): assert query_counts([1.,1.,1.], [9,9,9], 6).tolist()==[2,2,2]

@pytest.mark.parametrize('accs', [[np.nan, 1], [-.1, 1], [1.1, 0], ['a', 'b'], 3])
def test_bad_accuracies(accs):
    for f in (lambda: query_counts(accs, [1,1], 1), lambda: difficulty_probs(accs, [1,1])):
        with pytest.raises(ValueError, match='accs'): f()

# ---- uncertainty

def test_bald_is_mutual_information():
    p = torch.tensor(np.random.default_rng(0).dirichlet(np.ones(4), size=(6,3)))
    joint = p.numpy()/6 # over passes and classes, for each item
    for i in range(3):
        j = joint[:,i]
        want = (j*np.log(j/(j.sum(0)*j.sum(1, keepdims=True)))).sum()
        np.testing.assert_allclose(bald(p)[i].item(), want, rtol=1e-9)

@pytest.mark.parametrize('make', [lambda: small_cnn(10), lambda: make_learner(data.dataloaders(bs=32, size=32, device='cpu'), 'resnet18', head='linear').model,
    lambda: make_learner(data.dataloaders(bs=32, size=32, device='cpu'), 'resnet18').model])
def test_dropout_drops_in_every_kind_of_network(make):
    model = make().train()
    dls = data.dataloaders(bs=64, size=32, device='cpu')
    a,b,c = (uncertainty(model, dls.valid, n=4, seed=s) for s in (0,0,1))
    assert a.shape==(len(dls.valid_ds),) and (a>0).mean()>.99
    assert (a==b).all() and not (a==c).all()
    assert model.training

def test_uncertainty_leaves_the_generator(): # and the modes of layers
    model = nn.Sequential(small_cnn(10), nn.Identity().eval())
    dl,was = data.dataloaders(bs=64, device='cpu').valid,torch.get_rng_state()
    uncertainty(model, dl, layer='0.1')
    assert torch.equal(was, torch.get_rng_state()) and model.training and not model[1].training

def test_passes_agree_without_dropout_in_expectation(): # inverted dropout keeps the mean of the logits of a linear layer
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4,64), nn.ReLU(), nn.Linear(64,3)).eval()
    x = torch.randn(8,4)
    with torch.no_grad(): z,want = _passes(model, model[2], (x,), 4000, .5),model(x)
    score = (z.mean(0)-want)/(z.std(0)/4000**.5)
    assert score.abs().max()<4.5 # z-score of 24 means

# ---- the callback

def flexible(epochs=10, cbs=None, **kw):
    cb = FlexibleSampling(**{**dict(seed=0, patience=0, query=.3), **kw})
    learn = learner()
    learn.fit_one_cycle(epochs, 5e-3, cbs=[cb, *L(cbs)])
    return learn,cb

def test_stages_of_a_fit():
    steps = []
    class Count(Callback):
        def after_train(self): steps.append((self.train_iter, len(self.learn.dl), self.learn.dl.n))
    learn,cb = flexible(cbs=Count())
    y,n = get_labels(learn.dls),data.counts()
    assert np.bincount(y[cb.anchors]).tolist()==anchor_counts(n).tolist()
    assert (cb.entered[cb.anchors]==0).all() and ((cb.entered==0).sum()==len(cb.anchors))
    assert [s[1:] for s in steps]==[(len(learn.dls.train), len(y))]*10 # constant steps
    epochs = np.unique(cb.entered[cb.entered>0])
    assert len(epochs) and epochs.min()>=3 # warm-up
    size = round(.3*(len(y)-len(cb.anchors)))
    left = n-anchor_counts(n)
    for e in epochs:
        took = np.bincount(y[cb.entered==e], minlength=10)
        assert took.tolist()==query_counts(cb.accs[e-1], left, size).tolist()
        left = left-took
    assert len(cb.accs)==10 and learn.dls.train is learn.dls.loaders[0] and not hasattr(learn.dls.train, 'sampler')

def test_only_active_items_are_trained_on_equally_often():
    seen = []
    class Watch(Callback):
        run_valid,order = False,5
        def before_train(self):
            n = np.bincount(self.learn.dl.get_idxs(), minlength=len(data.splits['train']))
            seen.append((set(np.flatnonzero(self.learn.flexible_sampling.active)), n))
    learn,cb = flexible(cbs=Watch())
    for active,n in seen:
        assert set(np.flatnonzero(n))==active and n.sum()==len(n)
        assert np.ptp(n[list(active)])<=1

def test_uncertain_items_first():
    scores = {}
    class Score(Callback):
        order = -2 # before the query
        def before_train(self):
            with in_order(self.learn.dls) as dl: scores[self.learn.epoch] = uncertainty(self.learn.model, dl, seed=self.learn.epoch)
    learn,cb = flexible(cbs=Score())
    y = get_labels(learn.dls)
    for e in np.unique(cb.entered[cb.entered>0]):
        for k in range(10):
            took,left = (y==k) & (cb.entered==e),(y==k) & ((cb.entered>e) | (cb.entered<0))
            if took.any() and left.any(): assert scores[e][took].min()>=scores[e][left].max()

def test_accuracies_are_those_of_validation():
    learn,cb = flexible(3)
    p,t = learn.get_preds()
    for k in range(10): np.testing.assert_allclose(cb.accs[-1][k], (p.argmax(1)==t)[t==k].float().mean().item(), atol=1e-6)
    assert len(cb.accs)==3 # get_preds is not an epoch of the fit

def test_patience_waits_for_a_plateau():
    class Better(Callback): # validation that improves until epoch 5, and not after
        order = 45 # after the callback has read the accuracies
        def after_validate(self):
            cb = self.learn.flexible_sampling
            cb.accs[-1] = np.full(10, min(self.learn.epoch, 5)/10)
    _,cb = flexible(12, Better(), patience=.25, warmup=.1)
    assert np.unique(cb.entered).tolist()[:3] in ([-1,0,9], [0,9]) # three epochs without a new best

def test_restart_forgets_the_moments():
    def run(restart):
        seen = []
        class Moments(Callback):
            run_valid,order = False,5
            def before_train(self):
                o = self.learn.opt
                seen.append(o is not None and any('grad_avg' in o.state[p] for p,*_ in o.all_params()))
        _,cb = flexible(cbs=Moments(), restart=restart)
        return {e: seen[e] for e in np.unique(cb.entered[cb.entered>0])}
    assert not any(run(True).values()) and all(run(False).values())

def test_resumed_fit_is_the_uninterrupted_one(tmp_path):
    def fit(path, cbs=None):
        learn = learner()
        cb = learn.fit_flexible(8, 5e-3, pretrain=2, tfms=views(), path=path, seed=0, patience=0, cbs=[BalancedMixUp(seed=0), *L(cbs)])
        return learn,cb
    whole,a = fit(tmp_path/'whole')
    with pytest.raises(KeyboardInterrupt): fit(tmp_path/'cut', Stop(4))
    again,b = fit(tmp_path/'cut')
    assert same(state(whole.model), state(again.model))
    assert (a.entered==b.entered).all() and np.array_equal(a.accs, b.accs) and (a.anchors==b.anchors).all()
    assert len(np.unique(a.entered))>2 # there were queries before and after

def test_unseeded_stream_goes_on():
    _,a = flexible(1, seed=None)
    b = FlexibleSampling()
    b.load_state_dict(a.state_dict())
    assert b._entropy==a._entropy is not None and (b.entered==a.entered).all()

def test_same_with_workers():
    def run(workers):
        learn = learner(data.dataloaders(bs=32, seed=0, device='cpu', workers=workers))
        cb = FlexibleSampling(seed=0, patience=0)
        learn.fit_one_cycle(4, 5e-3, cbs=cb)
        return state(learn.model),cb.entered
    (m,e),(m2,e2) = run(0),run(2)
    assert same(m, m2) and (e==e2).all()

def test_partners_are_active_items():
    seen = []
    class Watch(Callback):
        run_valid,order = False,5
        def after_batch(self): seen.append(self.learn.flexible_sampling.active[self.learn.dl.pairs].all())
    mix = BalancedMixUp(.2, seed=0)
    learn,cb = flexible(cbs=[mix, Watch()])
    assert len(seen) and all(seen)
    counts,n = mix.partner_counts,mix.partner_counts.sum() # still class-balanced
    assert (abs(counts-n/10)/(n*.1*.9)**.5).max()<4.5

def test_prior_follows_the_active_items():
    learn = learner(cbs=[cb := FlexibleSampling(seed=0, warmup=.9), BalancedMixUp(.5, seed=0)])
    seen = []
    class Watch(Callback):
        run_valid,order = False,2
        def before_batch(self): seen.append(prior_table(self.learn).mixing.values)
    learn.fit(1, cbs=Watch())
    a = anchor_counts(data.counts())
    np.testing.assert_allclose(seen[0], mixup_prior(a, .5), rtol=1e-6)

def test_lr_find_and_export(tmp_path):
    learn = learner(cbs=FlexibleSampling(seed=0, patience=0), path=tmp_path)
    learn.lr_find(num_it=5, show_plot=False)
    assert learn.flexible_sampling.entered is None
    learn.fit(4, 1e-3)
    learn.export('m.pkl')
    size = (tmp_path/'m.pkl').stat().st_size
    plain = learner(path=tmp_path)
    plain.fit(1)
    plain.export('p.pkl')
    assert size<(tmp_path/'p.pkl').stat().st_size+20000
    x,_ = learn.get_preds()
    np.testing.assert_allclose(load_learner(tmp_path/'m.pkl').get_preds(dl=data.dataloaders(bs=32, device='cpu').valid)[0], x, atol=1e-5)

def test_interrupted_fit_leaves_a_usable_learner():
    learn,cb = learner(),FlexibleSampling(seed=0, patience=0)
    with pytest.raises(KeyboardInterrupt): learn.fit(6, 1e-3, cbs=[cb, Stop(3)])
    learn.fit(2, 1e-3, cbs=cb) # begins anew
    assert len(cb.accs)==2 and np.unique(cb.entered).tolist()==[-1,0]

def test_plot_and_anchors():
    learn,cb = flexible(6)
    fig = cb.plot(learn.dls.vocab)
    left,right = fig.axes
    assert len(left.lines)>=10 and np.nanmax(left.lines[0].get_ydata())<=data.counts().max() and right.get_ylim()[1]>1
    assert len(cb.show_anchors(learn.dls, n=3, classes=[0,9]).axes)==6

# ---- what is refused

@pytest.mark.parametrize('kw,msg', [(dict(s=0), 's=0'), (dict(s=1.2), 's=1.2'), (dict(warmup=1), 'warmup=1'), (dict(patience=-1), 'patience=-1'), (dict(query=0), 'query=0'),
    (dict(passes=1), 'passes=1'), (dict(p=1), 'p=1'), (dict(warmup='x'), "warmup='x'")])
def test_bad_arguments(kw, msg):
    with pytest.raises(ValueError, match=msg): FlexibleSampling(**kw)

def test_re_sampled_loader_is_refused():
    with pytest.raises(ValueError, match='dls.train re-samples already'): learner(data.dataloaders(bs=32, device='cpu').balanced()).fit(1, cbs=FlexibleSampling())

def test_pool_is_refused():
    with pytest.raises(ValueError, match="partners='pool' does not go with FlexibleSampling"): learner().fit(1, cbs=[FlexibleSampling(), BalancedMixUp(partners='pool')])

def test_nothing_to_query_is_said():
    with pytest.warns(UserWarning, match='there is nothing to query; lower s'): _,cb = flexible(3, s=1)
    assert cb.active.all()

def test_pool_runs_out():
    _,cb = flexible(10, query=1.)
    assert cb.active.all() and len(np.unique(cb.entered))==2

def test_class_without_validation_items():
    y = data.labels
    keep = data.with_parts(train=data.splits['train'], valid=[i for i in data.splits['valid'] if y[i]!=3])
    learn = learner(keep.dataloaders(bs=32, seed=0, device='cpu'))
    cb = FlexibleSampling(seed=0)
    with pytest.warns(UserWarning, match=r'no item of the classes \[3\]'): learn.fit(2, cbs=cb)
    assert all(a[3]==0 for a in cb.accs)

def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '2')
    with pytest.raises(ValueError, match='FlexibleSampling works in one process'): FlexibleSampling.before_train(FlexibleSampling())

# ---- the light form

def test_difficulty_follows_validation():
    seen = []
    class Watch(Callback):
        run_valid,order = False,5
        def before_train(self): seen.append(self.learn.dl.sampler.probs.copy())
    learn = learner(data.dataloaders(bs=32, seed=0, device='cpu').balanced(q=.3, seed=0), cbs=(cb := DifficultySampling(.1, keep=.25)))
    learn.fit_one_cycle(4, 5e-3, cbs=Watch())
    n = data.counts()
    np.testing.assert_allclose(seen[0], n/n.sum())
    for e in (1,2,3):
        w = np.maximum(1-cb.accs[e-1], .1)
        np.testing.assert_allclose(seen[e], .25*seen[e-1]+.75*w/w.sum())

@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.,.3,1.]), st.integers(0, 9)), min_size=1, max_size=8).filter(lambda o: any(n for _,n in o)), st.floats(.01, 1))
def test_difficulty_probs(cs, floor):
    accs,n = map(np.array, zip(*cs))
    p = difficulty_probs(accs, n, floor)
    np.testing.assert_allclose(p.sum(), 1)
    assert ((p>0)==(n>0)).all()
    on = p[n>0]
    assert on.max()/on.min()<=1/floor+1e-9

@pytest.mark.parametrize('keep', [1, -.1, np.nan, 'x'])
def test_bad_keep(keep):
    with pytest.raises(ValueError, match='keep='): DifficultySampling(keep=keep)

@pytest.mark.parametrize('floor', [0, 1.1, np.nan, 'x'])
def test_bad_floor(floor):
    with pytest.raises(ValueError, match='floor='): DifficultySampling(floor)

def test_difficulty_resumes(tmp_path):
    def fit(path, cbs=None):
        learn = learner(data.dataloaders(bs=32, seed=0, device='cpu').balanced(q=1, seed=0), cbs=DifficultySampling())
        ckpt = Checkpoint(path, 'last')
        learn.fit_one_cycle(4, 5e-3, start_epoch=ckpt.load(learn), cbs=[ckpt, *L(cbs)])
        return state(learn.model)
    whole = fit(tmp_path/'whole')
    with pytest.raises(KeyboardInterrupt): fit(tmp_path/'cut', Stop(1))
    assert same(whole, fit(tmp_path/'cut'))

def test_active_sampler_draws_each_equally():
    s = _ActiveSampler(10, np.array([1,4,7]), 0)
    n = np.bincount(s.draw(10), minlength=10)
    assert n.sum()==10 and set(np.flatnonzero(n))=={1,4,7} and n.max()==4

# ---- as a run

whole_method = dict(arch='small_cnn', pretrain=2, sampling='flexible', epochs=5, lr=5e-3, size=None, augment='fastai', tta='none', metric='last', progress=False)

@pytest.fixture(scope='module')
def whole(tmp_path_factory): # a run that nothing has interrupted: what it returns, and its predictions
    out = tmp_path_factory.mktemp('whole')
    return train_run(data, out, **whole_method),(out/'predictions.csv').read_text()

@pytest.mark.parametrize('at', ['pre-training', 'between', 'training'])
def test_run_resumes_in_either_stage(tmp_path, at, monkeypatch, whole):
    event = 'before_epoch' if at=='between' else 'after_epoch'
    there = getattr(Checkpoint, event)
    def stop(self):
        there(self)
        if (self.path.name=='pretrain')==(at=='pre-training') and self.learn.epoch==0: raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(Checkpoint, event, stop)
        with pytest.raises(KeyboardInterrupt): train_run(data, tmp_path/'cut', **whole_method)
    again = train_run(data, tmp_path/'cut', resume=True, **whole_method)
    assert {k:v for k,v in again.items() if k not in ('seconds','files')}=={k:v for k,v in whole[0].items() if k not in ('seconds','files')}
    assert (tmp_path/'cut'/'predictions.csv').read_text()==whole[1]
    assert sorted(o.name for o in (tmp_path/'cut'/'pretrain').iterdir())==['log.csv']

def test_run_pretrains_anew_without_resume(tmp_path, whole):
    (tmp_path/'pretrain').mkdir()
    (tmp_path/'pretrain'/'state.pth').write_bytes(b'of another run')
    train_run(data, tmp_path, **whole_method)
    assert (tmp_path/'predictions.csv').read_text()==whole[1]

@pytest.mark.parametrize('kw,msg', [(dict(pretrain=-1), 'pretrain=-1'), (dict(pretrain=1.5), 'pretrain=1.5'), (dict(pretrain=2, lr='find'), 'give lr a number'),
    (dict(sampling='flexible', partners='pool'), 'do not go together')])
def test_run_options(kw, msg):
    with pytest.raises(ValueError, match=msg): check_run(**kw)
