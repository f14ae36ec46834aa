"mixup: against independent training loops, with fastai's losses and callbacks, interruptions, seeds, schedules, errors."
import gc, multiprocessing, pickle, subprocess, sys, textwrap, warnings
from copy import deepcopy
from fractions import Fraction
import numpy as np, pytest, torch, torch.nn.functional as F
from scipy import stats
from torch.utils.data import Dataset, TensorDataset
from fastai.callback.data import WeightedDL
from fastai.vision.all import (BCEWithLogitsLossFlat, CSVLogger, Callback, CancelBatchException, CancelEpochException, CancelFitException,
    CancelTrainException, CategoryBlock, ChannelsLast, ClassificationInterpretation, CollectDataCallback, CrossEntropyLossFlat, CutMix, DataBlock,
    DataLoaders, EarlyStoppingCallback, FocalLoss, FocalLossFlat, GradientAccumulation, GradientClip, ImageBlock, IndexSplitter, L,
    LabelSmoothingCrossEntropy, LabelSmoothingCrossEntropyFlat, Learner, MixUp, MixedPrecision, Normalize, OptimWrapper, PILImage, ProgressCallback, SGD,
    SaveModelCallback, SchedCos, ShowGraphCallback, SimpleCNN, TransformBlock, accuracy, aug_transforms, ifnone, load_learner, nn, noop, pd, set_seed,
    tensor)
from fastai.tabular.all import Categorify, TabularDataLoaders, tabular_learner
from balmix_fastai.data import PairedDL
from balmix_fastai.losses import BalancedSoftmaxLoss
from balmix_fastai.mixers import ReMix
from balmix_fastai.mixup import BalancedMixUp
from balmix_fastai.sampling import class_probs, mixup_prior
from balmix_fastai.schedule import ProgressiveSampling

n_k = np.array([40, 12, 5])
ys = np.random.default_rng(0).permutation(np.repeat(range(3), n_k))
xs = tensor(np.random.default_rng(1).normal(size=(len(ys),4))).float() + tensor(ys)[:,None]*tensor([1.,-1,.5,0])
n_all,p_min = len(ys),1e-6
train_ds = TensorDataset(xs, tensor(ys))

@pytest.fixture(autouse=True, scope='module')
def one_thread():
    "Tiny models are slower on several threads"
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)

def toy_dls(bs=8, ds=None, num_workers=0, **kw):
    ds = ifnone(ds, train_ds)
    return DataLoaders.from_dsets(ds, ds, bs=bs, num_workers=num_workers, device=torch.device('cpu'), **kw)

def unbarred(learn): return learn.remove_cbs(L(cb for cb in learn.cbs if cb.name=='progress'))

def mlp(n_out=3, n_in=4):
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(n_in,8), nn.Tanh(), nn.Linear(8,n_out))

def learner(cbs=None, loss_func=None, dls=None, model=None, seed=3, **kw):
    "A silent learner whose loaders start from `seed`"
    set_seed(seed)
    dl_kw = {k:kw.pop(k) for k in ('bs','num_workers','drop_last','ds') if k in kw}
    learn = Learner(ifnone(dls, toy_dls(**dl_kw)), ifnone(model, mlp()), loss_func=ifnone(loss_func, CrossEntropyLossFlat()), **kw)
    learn.logger = noop
    return unbarred(learn).add_cbs(cbs)

class Forced(BalancedMixUp):
    "Writes down pairs and lams; `lam` gives them in order, one number forces it"
    def __init__(self, lam=None, **kw):
        super().__init__(**kw)
        self.forced,self.log = lam,[]
    def draw_lam(self, bs):
        if self.forced is None: res = super().draw_lam(bs)
        else: res = np.full(bs, self.forced) if self.per_item else self.forced
        self.log.append((self._paired.pairs.copy(), res))
        return res

class Trace(Callback):
    "Loss, gradients and parameters of each step"
    order = 70
    def before_fit(self): self.steps = []
    def before_step(self):
        assert torch.equal(self.loss, self.loss_grad) # what the recorder shows is what is trained on
        self.now = self.learn.loss_grad.item(),[p.grad.clone() for p in self.model.parameters()]
    def after_step(self): self.steps.append((*self.now, [p.detach().clone() for p in self.model.parameters()]))

def chi_p(obs, p):
    obs,p = np.asarray(obs),np.asarray(p, dtype=float)
    assert obs[p==0].sum()==0
    return stats.chisquare(obs[p>0], obs.sum()*p[p>0]/p.sum()).pvalue

def check_steps(got, want, tol=2e-6):
    assert len(got)==len(want)>0
    for (l,gs,ps),(l1,gs1,ps1) in zip(got, want):
        assert l==pytest.approx(l1, abs=tol, rel=tol)
        for a,b in zip(gs+ps, gs1+ps1): torch.testing.assert_close(a, b, atol=tol, rtol=1e-4)

# 1. Lambda

@pytest.mark.parametrize('alpha', [.05, .1, .2, .3, 1., 4.])
@pytest.mark.parametrize('per_item', [False, True])
def test_lam_is_beta(alpha, per_item):
    "What a whole fit draws: Kolmogorov-Smirnov against Beta(alpha,1), and the mean by z-score"
    cb = BalancedMixUp(alpha, per_item=per_item, seed=11)
    learner(cb, bs=1 if not per_item else 8).fit(6 if per_item else 12)
    lam = cb.lams
    assert lam.dtype==np.float64 and lam.shape==((6*7*8,) if per_item else (12*n_all,)) and (lam>=0).all() and (lam<=1).all()
    z = (lam.mean()-alpha/(alpha+1))/np.sqrt(alpha/((alpha+1)**2*(alpha+2))/len(lam))
    assert abs(z)<5 and stats.kstest(lam, stats.beta(alpha, 1).cdf).pvalue>p_min

@pytest.mark.parametrize('lam,side', [(0., 0), (1., 1)])
@pytest.mark.parametrize('per_item', [False, True])
def test_extreme_lam_is_plain_training(lam, side, per_item):
    "lam=0: the instance batches, lam=1: the partner batches; losses, gradients and parameters of a whole run are those of plain training on them"
    cb = Forced(lam, per_item=per_item, seed=1)
    learn = learner([cb, Trace()], opt_func=SGD, drop_last=False)
    learn.fit(2, .1)
    order = [pairs[:,side].tolist() for pairs,_ in cb.log]
    model,steps = mlp(),[]
    opt = torch.optim.SGD(model.parameters(), .1)
    for idx in order:
        loss = F.cross_entropy(model(xs[idx]), tensor(ys)[idx])
        loss.backward()
        grads = [p.grad.clone() for p in model.parameters()]
        opt.step()
        opt.zero_grad()
        steps.append((loss.item(), grads, [p.detach().clone() for p in model.parameters()]))
    assert len(order)==2*8
    check_steps(learn.trace.steps, steps)

def test_lam_0_is_the_same_learner_without_the_callback():
    "Bit for bit, through one-cycle Adam with weight decay"
    def run(cbs):
        learn = learner([*cbs, Trace()])
        learn.fit_one_cycle(2, .01)
        return learn.trace.steps,learn.recorder.values
    (a,va),(b,vb) = run([Forced(0., seed=1)]),run([])
    assert len(a)==14 and np.array_equal(np.array(va), np.array(vb))
    for (l,g,p),(l1,g1,p1) in zip(a, b): assert l==l1 and all(map(torch.equal, g+p, g1+p1))

# 2. An independent loop

def soft_ce(smooth=0.):
    "Cross-entropy of mixed, and possibly smoothed, one-hot targets"
    def f(out, y, y1, lam):
        onehot = lambda t: F.one_hot(t, 3)*(1-smooth) + smooth/3
        lam = torch.as_tensor(lam, dtype=torch.float32).reshape(-1, 1)
        return -(F.log_softmax(out, 1)*((1-lam)*onehot(y) + lam*onehot(y1))).sum(1).mean()
    return f

@pytest.mark.parametrize('per_item', [False, True])
@pytest.mark.parametrize('opt', [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize('loss_func,ref', [(CrossEntropyLossFlat(), soft_ce()), (nn.CrossEntropyLoss(), soft_ce()),
    (LabelSmoothingCrossEntropyFlat(eps=.2), soft_ce(smooth=.2))], ids=['flat','torch','smooth'])
def test_run_equals_plain_pytorch(per_item, opt, loss_func, ref):
    "A whole run, step by step, against a loop fed the same pairs and lams and trained on mixed one-hot targets"
    cb = Forced(alpha=.8, per_item=per_item, seed=5)
    learn = learner([cb, Trace()], loss_func, opt_func=lambda p,**kw: OptimWrapper(p, opt, **kw), drop_last=False)
    learn.fit(3, .05)
    model,steps = mlp(),[]
    o = opt(model.parameters(), lr=.05)
    for pairs,lam in cb.log:
        (x,y),(x1,y1) = ((xs[i],tensor(ys)[i]) for i in pairs.T)
        l = torch.as_tensor(lam, dtype=torch.float32).reshape(-1, 1)
        loss = ref(model((1-l)*x + l*x1), y, y1, lam)
        o.zero_grad()
        loss.backward()
        grads = [p.grad.clone() for p in model.parameters()]
        o.step()
        steps.append((loss.item(), grads, [p.detach().clone() for p in model.parameters()]))
    assert len(steps)==3*8
    check_steps(learn.trace.steps, steps, tol=5e-6)

def test_weighted_loss_keeps_its_own_divisor():
    "Per item, each half over the sum of the class weights of its labels"
    w = tensor([1.,5.,20.])
    cb = Forced(alpha=.8, per_item=True, seed=5)
    learn = learner([cb, Trace()], CrossEntropyLossFlat(weight=w), opt_func=SGD)
    learn.fit(1, 0.)
    for (loss,_,_),(pairs,lam) in zip(learn.trace.steps, cb.log):
        (x,y),(x1,y1) = ((xs[i],tensor(ys)[i]) for i in pairs.T)
        l = tensor(lam).float()
        logp = F.log_softmax(mlp()((1-l[:,None])*x + l[:,None]*x1), 1)
        part = lambda t, share: -(share*w[t]*logp[range(len(t)),t]).sum()/w[t].sum()
        assert loss==pytest.approx((part(y, 1-l) + part(y1, l)).item(), rel=1e-5)

def test_order_of_pairs_is_the_users():
    "The instance stream is what the bare loader would deliver, batch by batch"
    cb = Forced(seed=1)
    learner(cb, drop_last=False).fit(2)
    plain = learner(CollectDataCallback(), drop_last=False)
    plain.fit(2)
    seen = [b[0][0] for b in plain.collect_data.data] # 8 batches of training, 8 of validation, ...
    for (pairs,_),x in zip(cb.log, seen[:8]+seen[16:24], strict=True): assert torch.equal(xs[pairs[:,0]], x)

# 3. Losses

class Unsqueezed(nn.BCEWithLogitsLoss):
    def forward(self, out, y): return super().forward(out[:,0], y)

bin_ds = TensorDataset(xs, tensor(ys>0).float())
w3 = tensor([1.,4.,9.])
losses = dict(flat=CrossEntropyLossFlat, torch=nn.CrossEntropyLoss, function=lambda: F.cross_entropy, sum=lambda: nn.CrossEntropyLoss(reduction='sum'))
losses |= dict(smooth=LabelSmoothingCrossEntropyFlat, smooth_plain=LabelSmoothingCrossEntropy, smooth_torch=lambda: nn.CrossEntropyLoss(label_smoothing=.1))
losses |= dict(weighted=lambda: CrossEntropyLossFlat(weight=w3), weighted_torch=lambda: nn.CrossEntropyLoss(weight=w3))
losses |= dict(focal=FocalLossFlat, focal_plain=lambda: FocalLoss(gamma=1.))
binary = dict(bce=BCEWithLogitsLossFlat, bce_torch=lambda: Unsqueezed(pos_weight=tensor([3.])))

@pytest.mark.parametrize('per_item', [False, True])
@pytest.mark.parametrize('name', [*losses, *binary])
def test_losses(name, per_item):
    "The mixture of two values of the loss itself; as a user would, with validation and predictions"
    two = name in binary
    make = (binary if two else losses)[name]
    cb,ref = Forced(alpha=1., per_item=per_item, seed=2),make()
    learn = learner([cb, Trace()], make(), ds=bin_ds if two else None, model=mlp(1 if two else 3), opt_func=SGD)
    kept = learn.loss_func
    learn.fit(1, 0.)
    t = (tensor(ys)>0).float() if two else tensor(ys)
    for (loss,_,_),(pairs,lam) in zip(learn.trace.steps, cb.log):
        i,j = pairs.T
        l = tensor(np.broadcast_to(lam, len(i)).copy()).float()[:,None]
        out = mlp(1 if two else 3)((1-l)*xs[i] + l*xs[j])
        if not per_item: want = (1-lam)*ref(out, t[i]) + lam*ref(out, t[j])
        elif name.startswith('weighted'): continue # has a test of its own
        else:
            each = lambda k: torch.stack([ref(out[n:n+1], t[k][n:n+1]) for n in range(len(k))])
            want = ((1-l[:,0])*each(i) + l[:,0]*each(j)).sum()/(1 if name=='sum' else len(i))
        assert loss==pytest.approx(want.item(), rel=1e-5)
    learn.fit_one_cycle(1, 1e-2)
    assert learn.loss_func is kept and getattr(kept, 'reduction', 'mean')==('sum' if name=='sum' else 'mean') and np.isfinite(learn.validate()[0])
    assert len(learn.get_preds(with_loss=True)[2])==n_all

@pytest.mark.parametrize('per_item', [False, True])
def test_loss_gets_plain_tensors(per_item):
    "fastai strips its tensor classes from targets (`CastToTensor`); those of the partner too"
    seen = []
    class Typed(nn.CrossEntropyLoss):
        def forward(self, out, y):
            seen.append((type(out), type(y)))
            return super().forward(out, y)
    img_learner(BalancedMixUp(seed=1, per_item=per_item), loss_func=Typed()).fit(1)
    assert set(seen)=={(torch.Tensor,torch.Tensor)} and len(seen)>=2*5

def test_per_item_needs_single_losses():
    learn = learner(BalancedMixUp(per_item=True), lambda out, y: F.cross_entropy(out, y))
    with pytest.raises(ValueError, match='(?s)per_item=True.*per_item=False'): learn.fit(1)

def test_per_item_leaves_the_reduction_after_an_error():
    class Odd(nn.CrossEntropyLoss):
        def forward(self, out, y):
            if self.reduction=='none': raise RuntimeError('no single losses')
            return super().forward(out, y)
    learn = learner(BalancedMixUp(per_item=True), Odd())
    with pytest.raises(RuntimeError, match='no single'): learn.fit(1)
    assert learn.loss_func.reduction=='mean'

# 3. Training functions and callbacks

imgs = np.random.default_rng(2).integers(0, 256, (n_all, 12, 12, 3), dtype=np.uint8)
def get_img(i): return PILImage.create(imgs[i])
def get_name(i): return 'abc'[ys[i]]

def img_dls(n_valid=12, batch_tfms=None, bs=8, num_workers=0, path='.', **kw):
    block = DataBlock((ImageBlock, CategoryBlock(vocab=list('abc'))), get_x=get_img, get_y=get_name, splitter=IndexSplitter(range(n_valid)), batch_tfms=batch_tfms)
    return block.dataloaders(range(n_all), bs=bs, num_workers=num_workers, device='cpu', path=path, **kw)

def cnn():
    torch.manual_seed(7)
    return SimpleCNN([3,4,3])

def img_learner(cbs=None, dls=None, **kw): return learner(cbs, dls=ifnone(dls, img_dls()), model=cnn(), **kw)

class CPUAutocast(Callback):
    "What `MixedPrecision` does on a GPU"
    order = 10
    def before_batch(self):
        self.ctx = torch.autocast('cpu', dtype=torch.bfloat16)
        self.ctx.__enter__()
    def after_pred(self): self.learn.pred = self.pred.float()
    def after_loss(self): self.ctx.__exit__(None, None, None)

extras = dict(accumulate=lambda: GradientAccumulation(16), clip=lambda: GradientClip(.1), channels_last=ChannelsLast, bf16=CPUAutocast, fp16=MixedPrecision,
    csv=CSVLogger, save=lambda: SaveModelCallback(monitor='accuracy'), early=lambda: EarlyStoppingCallback(monitor='valid_loss', min_delta=9.),
    show=ShowGraphCallback, collect=CollectDataCallback)
fits = dict(one_cycle=lambda l: l.fit_one_cycle(2, 1e-2), flat_cos=lambda l: l.fit_flat_cos(2, 1e-2), fine_tune=lambda l: l.fine_tune(1, 1e-2),
    sgdr=lambda l: l.fit_sgdr(1, 2), find=lambda l: (l.lr_find(show_plot=False), l.fit(2, 1e-2), l.lr_find(show_plot=False)))

def check_after(learn, loss_func, train):
    "What must hold after any fit"
    assert learn.loss_func is loss_func and learn.dls.train is train
    preds,targs = learn.get_preds()
    torch.testing.assert_close(preds.sum(1), torch.ones(len(preds)))
    assert np.isfinite(learn.validate()[0]) and not multiprocessing.active_children()

@pytest.mark.parametrize('per_item', [False, True])
@pytest.mark.parametrize('name', extras)
def test_with_other_callbacks(name, per_item, tmp_path):
    learn = img_learner(BalancedMixUp(seed=1, per_item=per_item), img_dls(path=tmp_path), metrics=accuracy)
    loss_func,train,extra = learn.loss_func,learn.dls.train,extras[name]()
    if name=='show': learn.add_cb(ProgressCallback())
    with warnings.catch_warnings():
        warnings.simplefilter('ignore') # no GPU
        learn.fit_one_cycle(2, 1e-2, cbs=extra)
    assert len(learn.recorder.values)==2 and len(learn.balanced_mix_up.lams)==2*5*(8 if per_item else 1)
    assert np.isfinite(learn.recorder.losses).all() and learn.recorder.losses[0].dtype==torch.float32
    if name=='csv': assert len(pd.read_csv(tmp_path/'history.csv'))==2
    if name=='save': assert (tmp_path/'models/model.pth').exists()
    if name=='early': assert extra.wait==1
    with learn.no_bar(): check_after(learn, loss_func, train)

@pytest.mark.parametrize('fit', fits)
def test_training_functions(fit, tmp_path):
    learn = img_learner(BalancedMixUp(seed=1), img_dls(path=tmp_path))
    loss_func,train = learn.loss_func,learn.dls.train
    fits[fit](learn)
    check_after(learn, loss_func, train)
    assert len(learn.balanced_mix_up.lams)>0

def test_bf16_equals_its_own_loop():
    "Under autocast both loss terms are taken like the first: equal to lerp of the two within bfloat16, and to the fp32 loss within 2%"
    def losses_of(*cbs):
        learn = learner([Forced(.4, seed=1), Trace(), *cbs], opt_func=SGD)
        learn.fit(1, 0.)
        return np.array([s[0] for s in learn.trace.steps])
    np.testing.assert_allclose(losses_of(CPUAutocast()), losses_of(), rtol=.02)

def test_accumulation_equals_a_big_batch():
    "Two batches of 8 with one lam step like one batch of 16"
    def run(bs, cbs):
        cb = Forced(.3, seed=1)
        dls = toy_dls(bs=bs, ds=TensorDataset(xs[:48], tensor(ys[:48])), shuffle=False)
        learn = learner([cb, *cbs], dls=dls, opt_func=SGD)
        learn.fit(2, .1)
        return [p.detach() for p in learn.model.parameters()],np.concatenate([p for p,_ in cb.log])
    (a,pa),(b,pb) = run(8, [GradientAccumulation(16)]),run(16, [])
    np.testing.assert_array_equal(pa, pb)
    for p,q in zip(a, b): torch.testing.assert_close(p, q, atol=1e-6, rtol=1e-5)

def test_clip_sees_the_mixed_gradient():
    class Norm(Callback):
        order,norms = 80,[]
        def before_step(self): self.norms.append(torch.cat([p.grad.flatten() for p in self.model.parameters()]).norm().item())
    learn = learner([BalancedMixUp(seed=1), GradientClip(.01), cb := Norm()])
    learn.fit(1)
    np.testing.assert_allclose(cb.norms, .01, rtol=1e-3)

def test_early_stopping_stops():
    learn = learner([BalancedMixUp(seed=1), EarlyStoppingCallback(min_delta=99., patience=1)])
    learn.fit(9)
    assert len(learn.recorder.values)==2 and len(learn.balanced_mix_up.lams)==2*7

@pytest.mark.parametrize('train_metrics', [False, True])
def test_metrics_see_the_instance_labels(train_metrics):
    "Training metrics compare mixed predictions with the labels of the user's own stream"
    seen = []
    def watch(out, y):
        seen.append((len(out), y.tolist()))
        return 0.
    cb = Forced(1., seed=1)
    learn = learner(cb, metrics=watch)
    learn.recorder.train_metrics = train_metrics
    learn.fit(1)
    want = [ys[p[:,0]].tolist() for p,_ in cb.log]
    assert [y for _,y in seen[:7]]==want if train_metrics else len(seen)==8

def test_predicting():
    "tta, get_preds, validate, show_results, interpretation and summary neither mix nor start a loader of pairs"
    class Watch(Callback):
        def before_batch(self): assert not isinstance(self.learn.dl, PairedDL) and len(self.xb)==1 and len(self.yb)==1
    learn = img_learner(BalancedMixUp(seed=1), img_dls(batch_tfms=aug_transforms(size=12)))
    learn.fit(1)
    cb = learn.balanced_mix_up
    before = cb.lams.copy(),cb.partner_counts.copy(),cb._n_fits
    plain = img_learner(dls=learn.dls)
    plain.model = learn.model
    learn.add_cb(Watch())
    for f in (lambda l: l.get_preds(), lambda l: l.get_preds(ds_idx=0), lambda l: l.tta(n=2)):
        set_seed(1) # augmentation
        a = f(learn)
        set_seed(1)
        assert all(map(torch.equal, a, f(plain)))
    assert list(learn.validate())==list(plain.validate())
    learn.show_results(max_n=2)
    learn.dls.show_batch(max_n=2)
    interp = ClassificationInterpretation.from_learner(learn)
    assert interp.confusion_matrix().sum()==12
    interp.plot_top_losses(2)
    learn.remove_cb(Watch)
    learn.summary()
    assert np.array_equal(cb.lams, before[0]) and np.array_equal(cb.partner_counts, before[1]) and cb._n_fits==before[2]

def test_untrained_learner_can_predict():
    "No labels are read, and no error raised, where nothing is trained"
    cb = BalancedMixUp(labels=[0]) # wrong, but not yet needed
    learn = learner(cb)
    assert len(learn.get_preds()[0])==n_all and len(learn.validate())==1
    assert cb.lams.shape==(0,)
    with pytest.raises(ValueError, match='prior'): cb.prior

# 3. Loaders

@pytest.mark.parametrize('per_item', [False, True])
def test_workers_do_not_matter(per_item):
    "Same partners, lams, losses and parameters for 0 and 2 workers"
    def run(workers):
        cb = Forced(alpha=.5, per_item=per_item, seed=4)
        learn = learner([cb, Trace()], num_workers=workers, drop_last=False)
        learn.fit(2, .05)
        assert not multiprocessing.active_children()
        return cb.log,learn.trace.steps
    (log,steps),(log2,steps2) = run(0),run(2)
    for (p,l),(p2,l2) in zip(log, log2, strict=True): assert np.array_equal(p, p2) and np.array_equal(l, l2)
    check_steps(steps, steps2, tol=1e-7)

@pytest.mark.parametrize('per_item', [False, True])
@pytest.mark.parametrize('bs,drop_last,sizes', [(1, False, [1]*n_all), (1, True, [1]*n_all), (10, False, [10]*5+[7]),
    (10, True, [10]*5), (n_all+9, False, [n_all]), (56, False, [56,1])])
def test_batch_sizes(bs, drop_last, sizes, per_item):
    cb = Forced(seed=1, per_item=per_item)
    learn = learner(cb, bs=bs, drop_last=drop_last)
    learn.fit(1)
    assert [len(p) for p,_ in cb.log]==sizes and cb.partner_counts.sum()==sum(sizes) and len(cb.lams)==(sum(sizes) if per_item else len(sizes))
    assert sorted(np.concatenate([p[:,0] for p,_ in cb.log]))==list(range(n_all)) or drop_last

class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a,self.b = mlp(),mlp(n_in=2)
    def forward(self, x, z): return self.a(x) + self.b(z)

@pytest.mark.parametrize('nested', [False, True])
@pytest.mark.parametrize('per_item', [False, True])
def test_several_inputs(nested, per_item):
    "All inputs are mixed with the same lam, also in a tuple or dict of one input"
    class Both(Dataset):
        n_inp,labels = (1 if nested else 2),ys
        def __len__(self): return n_all
        def __getitem__(self, i): return ((xs[i], dict(z=xs[i,:2])), int(ys[i])) if nested else (xs[i], xs[i,:2], int(ys[i]))
    seen = []
    class Model(TwoInputs):
        def forward(self, *args):
            x,z = (args[0][0],args[0][1]['z']) if nested else args
            if self.training: seen.append((x.clone(), z.clone()))
            return super().forward(x, z)
    cb = Forced(alpha=1., per_item=per_item, seed=1)
    learn = learner(cb, ds=Both(), model=Model())
    learn.fit(1)
    assert len(seen)==7
    for (x,z),(pairs,lam) in zip(seen, cb.log):
        l = tensor(np.broadcast_to(lam, len(pairs)).copy()).float()[:,None]
        want = (1-l)*xs[pairs[:,0]] + l*xs[pairs[:,1]]
        torch.testing.assert_close(x, want)
        torch.testing.assert_close(z, want[:,:2])

def tab_dls(cats=()):
    df = pd.DataFrame(xs.numpy(), columns=list('abcd')).assign(e=np.where(ys>0, 'u', 'v'), y=[f'k{k}' for k in ys])
    return TabularDataLoaders.from_df(df, procs=[Categorify], cat_names=list(cats), cont_names=list('abcd'), y_names='y', y_block=CategoryBlock(), bs=8,
        valid_idx=list(range(10)), device='cpu')

def test_tabular():
    cb = Forced(alpha=.5, seed=1)
    learn = tabular_learner(tab_dls(), layers=[8], cbs=[cb, CollectDataCallback()])
    learn.logger = noop
    with learn.no_bar(): learn.fit(1)
    conts = learn.dls.train.dataset.conts.values
    data = learn.collect_data.data[:len(cb.log)]
    assert len(data)==5
    for b,(pairs,lam) in zip(data, cb.log):
        np.testing.assert_allclose(b[0][1], (1-lam)*conts[pairs[:,0]] + lam*conts[pairs[:,1]], rtol=1e-4, atol=1e-6)
        assert b[1][0].flatten().tolist()==ys[10:][pairs[:,0]].tolist()
    with learn.no_bar(): assert len(learn.get_preds()[0])==10

def test_tabular_with_categories_is_refused():
    learn = tabular_learner(tab_dls('e'), layers=[8], cbs=BalancedMixUp())
    learn.logger = noop
    with learn.no_bar(), pytest.raises(ValueError, match='int64.*continuous'): learn.fit(1)

bases = dict(plain=lambda: toy_dls(), balanced=lambda: toy_dls().balanced(q=-1, seed=1), items=lambda: toy_dls().balanced(weights=ys+1., seed=1),
    weighted=lambda: DataLoaders(WeightedDL(train_ds, bs=8, wgts=ys+1., shuffle=True, drop_last=True, num_workers=0), toy_dls().valid))
streams = dict(plain=n_k/n_all, balanced=class_probs(n_k, -1), items=n_k*[1,2,3]/(n_k*[1,2,3]).sum(), weighted=n_k*[1,2,3]/(n_k*[1,2,3]).sum())

@pytest.mark.parametrize('base', bases)
def test_base_streams(base):
    "`.prior` follows the stream of the user's own loader, and that stream is followed (chi-square)"
    cb = Forced(alpha=.5, q=.5, seed=1)
    learn = learner(cb, dls=bases[base]())
    learn.fit(30)
    np.testing.assert_allclose(cb.prior, streams[base]*2/3 + class_probs(n_k, .5)/3, rtol=1e-9)
    if base=='plain': np.testing.assert_allclose(cb.prior, mixup_prior(n_k, .5, .5))
    else: assert chi_p(np.bincount(ys[np.concatenate([p[:,0] for p,_ in cb.log])], minlength=3), streams[base])>p_min

def test_base_balanced_by_given_labels():
    "A vocab with a class that nobody has, and labels that the user gave to the factory"
    dls = img_dls()
    labels = np.minimum(ys[12:], 1)
    cb = BalancedMixUp(alpha=1., seed=1)
    img_learner(cb, dls.balanced(labels=labels)).fit(1)
    n = np.bincount(ys[12:])
    np.testing.assert_allclose(cb.prior, .5*np.array([.5, *.5*n[1:]/n[1:].sum()]) + 1/6, rtol=1e-9)

def test_partners_get_the_users_transforms():
    "Also those that were added to the loaders after the learner was made, as `Normalize` by `vision_learner`"
    cb = Forced(1., seed=1)
    learn = img_learner([cb, CollectDataCallback()])
    learn.dls.add_tfms([Normalize.from_stats([.5,.4,.3], [.2,.2,.2], cuda=False)], 'after_batch')
    learn.fit(1)
    items = learn.dls.train_ds.items
    for b,(pairs,_) in zip(learn.collect_data.data, cb.log):
        raw = tensor(imgs[[items[i] for i in pairs[:,1]]]).permute(0,3,1,2)/255
        torch.testing.assert_close(b[0][0].as_subclass(torch.Tensor), (raw - tensor([.5,.4,.3])[:,None,None])/.2, atol=1e-5, rtol=1e-5)

@pytest.mark.parametrize('persistent', [False, True])
def test_no_worker_is_left(persistent):
    "Neither after a search, which stops in the middle of an epoch, nor after a fit"
    learn = learner(BalancedMixUp(seed=1), dls=toy_dls(num_workers=2, persistent_workers=persistent))
    for f in (lambda: learn.lr_find(show_plot=False, num_it=10), lambda: learn.fit(2), lambda: learn.get_preds()):
        f()
        gc.collect()
        assert not multiprocessing.active_children()

# 4. Interruptions

excs = [KeyboardInterrupt, CancelBatchException, CancelEpochException, CancelTrainException, CancelFitException, RuntimeError]
class Stop(Callback):
    "Raise once, at an event of a training step"
    order = 30
    def __init__(self, ex, at, step):
        self.ex,self.step,self.done = ex,step,False
        setattr(self, at, self.fire)
    def fire(self):
        if self.done or not self.training or self.train_iter!=self.step: return
        self.done = True
        raise self.ex('stop')

places = [('before_batch', 0, 0), ('after_pred', 2, 2), ('after_loss', 9, 0), ('after_step', 13, 2), ('after_batch', 3, 0)]
@pytest.mark.parametrize('at,step,workers', places)
@pytest.mark.parametrize('ex', excs, ids=lambda o: o.__name__)
def test_interruptions(ex, at, step, workers):
    if ex is CancelBatchException and at=='after_batch': at = 'before_step' # fastai catches it only within a step
    learn = learner(BalancedMixUp(seed=1), num_workers=workers)
    loss_func,train,valid = learn.loss_func,learn.dls.train,learn.dls.valid
    learn.dls.valid.fake_l.num_workers = 0
    if ex in (KeyboardInterrupt, RuntimeError):
        with pytest.raises(ex): learn.fit(2, cbs=Stop(ex, at, step))
    else: learn.fit(2, cbs=Stop(ex, at, step))
    gc.collect()
    assert learn.dls.valid is valid
    check_after(learn, loss_func, train)
    learn.fit(1)
    assert len(learn.balanced_mix_up.lams)==7
    check_after(learn, loss_func, train)

class Bad(nn.Module):
    "Fails once, in its `step`th training step"
    def __init__(self, ex, step):
        super().__init__()
        self.m,self.ex,self.left = mlp(),ex,step
    def forward(self, x):
        self.left -= self.training
        if self.left==-1 and self.training: raise self.ex('in the model')
        return self.m(x)

@pytest.mark.parametrize('ex', [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize('step', [0, 3, 8])
def test_error_in_the_model(ex, step):
    learn = learner(BalancedMixUp(seed=1), model=Bad(ex, step), num_workers=2)
    loss_func,train = learn.loss_func,learn.dls.train
    with pytest.raises(ex, match='in the model'): learn.fit(2)
    gc.collect()
    check_after(learn, loss_func, train)
    learn.fit(1)
    check_after(learn, loss_func, train)

def test_interrupted_learner_exports(tmp_path):
    "Directly after Ctrl-C; and what is written holds no data"
    dls = img_dls(path=tmp_path)
    learn = img_learner(BalancedMixUp(seed=1, labels=ys[12:]), dls)
    with pytest.raises(KeyboardInterrupt): learn.fit(1, cbs=Stop(KeyboardInterrupt, 'after_step', 2))
    learn.export('e.pkl')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        back = load_learner(tmp_path/'e.pkl')
    assert back.balanced_mix_up.labels is None and len(learn.balanced_mix_up.labels)==n_all-12

# Export, pickle, copies

def test_export_and_load(tmp_path):
    "Predictions agree after loading; the file is larger than a plain learner's by the callback's settings only, whatever N"
    def size(cbs, n):
        block = DataBlock((TransformBlock, CategoryBlock(vocab=list('abc'))), get_x=get_vec, get_y=get_name3, splitter=IndexSplitter([0,1,2]))
        dls = block.dataloaders(range(n), bs=64, num_workers=0, device='cpu', path=tmp_path)
        learn = learner(cbs, dls=dls)
        learn.fit(1)
        learn.export('e.pkl')
        return (tmp_path/'e.pkl').stat().st_size,learn
    extra = []
    for n in (200, 4000):
        (plain,_),(ours,learn) = size([], n),size(BalancedMixUp(seed=1, labels=np.arange(n-3)%3), n)
        extra.append(ours-plain)
    assert abs(extra[0]-extra[1])<300 and extra[1]<5000
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        back = load_learner(tmp_path/'e.pkl')
    unbarred(back)
    test = range(5000, 5010)
    a,b = (l.get_preds(dl=l.dls.test_dl(test))[0] for l in (learn, back))
    torch.testing.assert_close(a, b)
    assert back.predict(5001)[0]=='abc'[int(a[1].argmax())]
    assert back.balanced_mix_up.alpha==.2 and back.balanced_mix_up.prior.shape==(3,)

def get_vec(i): return xs[i%n_all]
def get_name3(i): return 'abc'[i%3]

def test_loaded_learner_can_train(tmp_path):
    learn = img_learner(BalancedMixUp(seed=1), img_dls(path=tmp_path))
    learn.fit(1)
    learn.export('e.pkl')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        back = load_learner(tmp_path/'e.pkl')
    back.dls,back.logger = img_dls(),noop
    back.fit(1)
    assert len(back.balanced_mix_up.lams)==5

def full(): return BalancedMixUp(.3, q=.5, per_item=True, seed=3, start=.1, stop=.9, labels=np.arange(n_all)%3)

def test_pickle():
    "Settings travel, labels and what was drawn stay behind"
    cb = full()
    back = pickle.loads(pickle.dumps(cb))
    assert (back.alpha,back.q,back.per_item,back.seed,back.start,back.stop,back.labels)==(.3,.5,True,3,.1,.9,None) and back.lams.shape==(0,)
    assert len(pickle.dumps(BalancedMixUp(labels=np.zeros(10**5, int))))<2000
    a = full()
    back.labels = a.labels
    for o in (a, back): learner(o).fit(2)
    np.testing.assert_array_equal(a.lams, back.lams)

def test_copy():
    "A copy is ready to train, with the same labels; also one made after training"
    a,twin = full(),deepcopy(full())
    for o in (a, twin): learner(o).fit(1)
    np.testing.assert_array_equal(a.lams, twin.lams)
    np.testing.assert_array_equal(a.partner_counts, twin.partner_counts)
    late = deepcopy(a)
    for o in (a, late): learner(o).fit(1)
    np.testing.assert_array_equal(a.lams, late.lams)
    assert late is not a and late.learn is not a.learn

def test_cloned_learner():
    learn = learner(BalancedMixUp(seed=1))
    twin = deepcopy(learn)
    for l in (learn, twin): l.fit(1)
    assert np.array_equal(learn.balanced_mix_up.lams, twin.balanced_mix_up.lams) and learn.balanced_mix_up is not twin.balanced_mix_up
    assert twin.balanced_mix_up.learn is twin and torch.equal(learn.model[0].weight, twin.model[0].weight)

# 5. Errors

class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.EmbeddingBag(9, 3)
    def forward(self, x): return self.emb(x)

def int_ds(): return TensorDataset(torch.randint(0, 9, (n_all,4)), tensor(ys))
def one_class(): return TensorDataset(xs, torch.zeros(n_all).long())
def beyond():
    ds = TensorDataset(xs, tensor(ys))
    ds.vocab = ['a','b']
    return ds
class Opaque(Dataset):
    def __len__(self): return n_all
    def __getitem__(self, i): return xs[i],int(ys[i])
class Ragged(Opaque):
    labels = ys

@pytest.mark.parametrize('kw,msg', [(dict(alpha=0), 'alpha=0'), (dict(alpha=-.2), 'greater than 0'), (dict(alpha=np.inf), 'alpha'),
    (dict(alpha=np.nan), 'alpha'), (dict(alpha='a'), 'alpha'), (dict(alpha=None), 'alpha'), (dict(alpha=True), 'alpha'), (dict(q=np.nan), 'q=nan'), (dict(q=np.inf), 'q=inf'),
    (dict(start=-.1), 'start'), (dict(stop=1.1), 'stop'), (dict(start=.5, stop=.4), 'start=0.5'), (dict(start=1.), 'start')])
def test_arguments_that_are_refused(kw, msg):
    with pytest.raises(ValueError, match=msg): BalancedMixUp(**kw)

@pytest.mark.parametrize('alpha', [1, .2, np.float32(.2), np.float64(.2), np.int64(2)])
def test_kinds_of_alpha(alpha):
    cb = BalancedMixUp(alpha, seed=1)
    learner(cb).fit(1)
    assert len(cb.lams)==7

def no(): return {}
refused = dict(
    labels_unknown=(lambda: dict(ds=Opaque()), {}, 'labels='), labels_short=(no, dict(labels=[0,1,2]), '3 entries'), labels_one=(no, dict(labels=[1]*n_all), 'two classes'),
    labels_multi=(no, dict(labels=np.eye(n_all)), 'multi-label'), labels_names=(no, dict(labels=['a','b','c']*19), 'class ids'),
    labels_neg=(no, dict(labels=[-1]*n_all), 'negative'), one=(lambda: dict(ds=one_class()), {}, 'two classes'),
    vocab=(lambda: dict(ds=beyond()), {}, 'class id 2.*vocab'), ints=(lambda: dict(ds=int_ds(), model=Tokens()), {}, 'int64'),
    empty_epoch=(lambda: dict(bs=n_all+1), {}, 'yields no batch.*lower bs'), alpha_fn=(no, dict(alpha=lambda p: p), 'alpha=0'),
    q_fn=(no, dict(q=lambda p: np.nan), 'q=nan'), torch_dl=(lambda: dict(dls=DataLoaders(torch.utils.data.DataLoader(train_ds), toy_dls().valid)), {}, 'from_dsets'))

@pytest.mark.parametrize('name', refused)
def test_errors_before_the_first_step(name):
    f,kw,msg = refused[name]
    learn = learner(BalancedMixUp(**kw), **f())
    before = [p.clone() for p in learn.model.parameters()]
    with pytest.raises(ValueError, match=f'(?s){msg}'): learn.fit(1)
    assert all(map(torch.equal, before, learn.model.parameters())) and isinstance(learn.loss_func, CrossEntropyLossFlat)

def test_class_outside_the_outputs_of_the_loaders():
    "`dls.c` where there is no vocab"
    dls = toy_dls()
    dls.c = 2
    with pytest.raises(ValueError, match='class id 2'): learner(BalancedMixUp(), dls=dls).fit(1)

def test_uneven_shapes():
    class Odd(Ragged):
        def __getitem__(self, i): return (xs[i] if i%2 else xs[i,:2]),int(ys[i])
    learn = learner(BalancedMixUp(seed=1), ds=Odd(), bs=1, model=nn.Sequential(nn.AdaptiveAvgPool1d(4), mlp()))
    with pytest.raises(ValueError, match='(?s)shape.*Resize'): learn.fit(1)

@pytest.mark.parametrize('other', [MixUp, CutMix, lambda: BalancedMixUp(seed=2)], ids=['MixUp','CutMix','itself'])
@pytest.mark.parametrize('first', [False, True])
@pytest.mark.parametrize('temporary', [False, True])
def test_other_mixers_are_refused(other, first, temporary):
    "In either order; the loss function is the user's afterwards, and with the other removed training works"
    a,b = BalancedMixUp(seed=1),other()
    learn = img_learner([] if temporary else [b,a] if first else [a,b])
    loss_func = learn.loss_func
    with pytest.raises(ValueError, match='both mix'): learn.fit(1, cbs=([b,a] if first else [a,b]) if temporary else None)
    assert learn.loss_func is loss_func
    torch.testing.assert_close(learn.get_preds()[0].sum(1), torch.ones(12))
    if not temporary: learn.remove_cb(b)
    learn.fit(1)
    assert learn.loss_func is loss_func

# Seeds

def lams_and_pairs(f, **kw):
    cb = Forced(alpha=.5, **kw)
    learn = learner(cb)
    f(learn)
    return cb.lams.tolist(),np.concatenate([p[:,1] for p,_ in cb.log]).tolist()

def test_equal_seeds():
    one = lambda seed, f=lambda l: l.fit(2): lams_and_pairs(f, seed=seed)
    assert one(1)==one(1) and one(1)[0]!=one(2)[0] and one(1)[1]!=one(2)[1]
    assert one(1, lambda l: (torch.rand(9), np.random.rand(9), l.fit(2)))==one(1) # its randomness is its own
    assert len(set(one(1)[0]))==14 # epochs differ

def test_lr_find_has_no_influence():
    find = lambda l: l.lr_find(show_plot=False, num_it=20)
    def draws(*fs):
        cb = BalancedMixUp(alpha=.5, seed=1)
        learn,res = learner(cb),[]
        for f in fs:
            f(learn)
            res.append((cb.lams.tolist(), cb.partner_counts.tolist()))
        return res
    fit = lambda l: l.fit(2)
    assert draws(fit, fit)==draws(find, fit, find, fit)[1::2] and draws(fit, fit)[0]!=draws(fit, fit)[1]

@pytest.mark.parametrize('e', [1, 2, 3])
def test_resumed_training_draws_what_it_would_have(e):
    "A fresh learner that starts at epoch e"
    def run(**kw):
        cb = Forced(alpha=SchedCos(1., .1), q=lambda p: p, seed=6)
        learner(cb).fit(4, **kw)
        return cb.log
    for (p,l),(p1,l1) in zip(run()[7*e:], run(start_epoch=e), strict=True): assert l==l1 and np.array_equal(p[:,1], p1[:,1])

def test_training_resumed_after_an_interruption_draws_what_it_would_have():
    "The same learner and callback: stopped in the third epoch, which is trained again"
    def run(*calls):
        cb = Forced(alpha=.5, seed=6)
        learn = learner(cb)
        for kw in calls:
            cb.log = []
            try: learn.fit(4, **kw)
            except KeyboardInterrupt: pass
        return cb.log
    stopped = run(dict(cbs=Stop(KeyboardInterrupt, 'after_step', 16)), dict(start_epoch=2))
    for (p,l),(p1,l1) in zip(run({})[14:], stopped, strict=True): assert l==l1 and np.array_equal(p[:,1], p1[:,1])

@pytest.mark.parametrize('f', ['get_preds','validate','tta'])
def test_predicting_during_a_fit_has_no_influence(f):
    "Per-epoch evaluation by a callback: fastai then sets `train_iter` back to 0 in the middle of the fit"
    class Evaluate(Callback):
        order = 75
        def after_epoch(self):
            if self.epoch<2 and not hasattr(self, 'busy'):
                self.busy = True
                getattr(self.learn, f)()
                del self.busy
    def run(cbs):
        cb = Forced(alpha=.5, seed=6)
        learn = img_learner([cb, *cbs])
        learn.fit(3)
        return cb.lams.tolist(),cb.partner_counts.tolist(),np.concatenate([p[:,1] for p,_ in cb.log]).tolist()
    a,b = run([]),run([Evaluate()])
    assert len(a[0])==15 and a[2]==b[2] and a==b

@pytest.mark.parametrize('ex', [CancelTrainException, CancelEpochException, CancelBatchException])
def test_cancelling_the_first_step_has_no_influence_on_later_epochs(ex):
    def run(cbs):
        cb = Forced(alpha=.5, seed=6)
        learner([cb, *cbs]).fit(3)
        return cb.log[-14:],len(cb.lams)
    (a,_),(b,n) = run([]),run([Stop(ex, 'after_pred', 0)])
    for (p,l),(p1,l1) in zip(a, b): assert l==l1 and np.array_equal(p[:,1], p1[:,1])
    assert n==(21 if ex is CancelBatchException else 15)

def test_set_seed_governs_without_a_seed():
    def run(seed):
        cb = BalancedMixUp(alpha=.5)
        learner(cb, seed=seed).fit(1)
        return cb.lams.tolist()
    assert run(5)==run(5)!=run(6)

def test_the_loader_keeps_its_order():
    "Pairing takes nothing from the generators that order the user's stream"
    def order(cbs):
        learn = learner([*cbs, CollectDataCallback()], opt_func=SGD)
        learn.fit(2, 0.)
        return torch.cat([b[1][0] for b in learn.collect_data.data])
    assert torch.equal(order([]), order([BalancedMixUp(seed=1)]))

# Partners

def test_partner_counts():
    "Those of the pairs that were mixed, and uniform over classes (chi-square)"
    cb = Forced(seed=1)
    learner(cb).fit(60)
    i = np.concatenate([p[:,1] for p,_ in cb.log])
    assert cb.partner_counts.tolist()==np.bincount(ys[i], minlength=3).tolist() and cb.partner_counts.sum()==60*7*8
    assert chi_p(cb.partner_counts, np.ones(3))>p_min
    for k in range(3): assert chi_p(np.bincount(i, minlength=n_all)[ys==k], np.ones(n_k[k]))>p_min

@pytest.mark.parametrize('q', [.5, 1, -1])
def test_strength_of_the_partners(q):
    cb = BalancedMixUp(q=q, seed=1)
    learner(cb).fit(40)
    assert chi_p(cb.partner_counts, class_probs(n_k, q))>p_min
    np.testing.assert_allclose(cb.prior, mixup_prior(n_k, .2, q))

def test_settings_changed_between_fits():
    cb = BalancedMixUp(.2, seed=1)
    learn = learner(cb)
    learn.fit(1)
    cb.q,cb.alpha = 1.,.7
    learn.fit(40)
    assert chi_p(cb.partner_counts, n_k)>p_min
    np.testing.assert_allclose(cb.prior, n_k/n_all)
    cb.q,cb.labels = lambda p: 0.,(ys==0).astype(int)
    learn.fit(1)
    assert len(cb.partner_counts)==2
    learn.dls = toy_dls(ds=TensorDataset(xs[:30], tensor(ys[:30])))
    cb.labels,cb.q = None,0.
    learn.fit(1)
    np.testing.assert_allclose(cb.prior, mixup_prior(np.bincount(ys[:30]), .7))

def test_labels_given():
    "Balance over any grouping; the targets stay the data set's"
    groups = np.arange(n_all)%2
    cb = Forced(seed=1, labels=groups)
    learn = learner([cb, CollectDataCallback()], ds=Opaque())
    learn.fit(30)
    i = np.concatenate([p[:,1] for p,_ in cb.log])
    assert cb.partner_counts.tolist()==np.bincount(groups[i]).tolist() and chi_p(cb.partner_counts, [1,1])>p_min
    assert learn.collect_data.data[0][1][0].tolist()==ys[cb.log[0][0][:,0]].tolist()

def test_binary_target_with_one_output():
    "`dls.c` is 1 for one output unit; targets are 0 and 1 all the same"
    dls = toy_dls(ds=bin_ds)
    dls.c = 1
    cb = BalancedMixUp(seed=1)
    learner(cb, BCEWithLogitsLossFlat(), dls=dls, model=mlp(1)).fit(30)
    assert chi_p(cb.partner_counts, [1,1])>p_min

def test_absent_class():
    dls = img_dls()
    vocab4 = DataBlock((ImageBlock, CategoryBlock(vocab=list('axbc'), sort=False)), get_x=get_img, get_y=get_name, splitter=IndexSplitter([0]))
    cb = BalancedMixUp(seed=1)
    torch.manual_seed(0)
    learner(cb, dls=vocab4.dataloaders(range(n_all), bs=8, num_workers=0, device='cpu'), model=SimpleCNN([3,4,4])).fit(4)
    assert cb.partner_counts[1]==0 and cb.prior[1]==0 and len(cb.prior)==4 and dls.c==3

# Schedules and windows

@pytest.mark.parametrize('per_item', [False, True])
def test_alpha_schedule(per_item):
    "The lam of each step is U^(1/alpha) of that step's alpha; the prior is the mean over the steps"
    sched = SchedCos(1., .05)
    cb,ref = BalancedMixUp(sched, seed=1, per_item=per_item),BalancedMixUp(1., seed=1, per_item=per_item)
    for o in (cb, ref): learner(o).fit_one_cycle(3, 1e-2)
    a = np.array([sched(i/21) for i in range(21)])
    u = ref.lams # with alpha=1 lam is U itself
    np.testing.assert_allclose(cb.lams, u**(1/np.repeat(a, 8 if per_item else 1)), rtol=1e-9)
    np.testing.assert_allclose(cb.prior, np.mean([mixup_prior(n_k, o) for o in a], axis=0), rtol=1e-9)

def test_q_schedule():
    "Partners of each stage of the training follow q of that stage; first and last thirds by chi-square"
    cb = Forced(q=lambda p: -1. if p<1/3 else 0. if p<2/3 else 1.5, seed=1)
    learner(cb, drop_last=False).fit(60)
    i = [ys[np.concatenate([p[:,1] for p,_ in cb.log[s]])] for s in (slice(0,160), slice(160,320), slice(320,480))]
    for part,q in zip(i, (-1, 0, 1.5)): assert chi_p(np.bincount(part, minlength=3), class_probs(n_k, q))>p_min
    np.testing.assert_allclose(cb.prior, np.mean([mixup_prior(n_k, .2, q) for q in (-1, 0, 1.5)], axis=0), rtol=1e-9)

def test_q_schedule_within_an_epoch():
    "One epoch, q jumping halfway: the batch is the grain"
    cb = Forced(q=lambda p: -60. if p<.5 else 60., seed=1)
    learner(cb, drop_last=False).fit(1)
    assert len(cb.log)==8
    for s,(p,_) in enumerate(cb.log): assert set(ys[p[:,1]])=={2 if s<4 else 0}

@pytest.mark.parametrize('start,stop', [(0.,1.), (0.,.5), (.5,1.), (.25,.75), (.1,.7), (.3,.31), (1/3,2/3), (.9,1.)])
@pytest.mark.parametrize('n_epoch,bs', [(1,1), (3,8), (10,20)])
def test_windows(start, stop, n_epoch, bs):
    "Steps whose share of the training lies in [start, stop) are mixed, and no others; epochs that lie outside load no partners"
    class Watch(Callback):
        def before_fit(self): self.seen,self.paired = [],[]
        def before_train(self): self.paired.append(isinstance(self.learn.dl, PairedDL))
        def after_pred(self):
            if self.training: self.seen.append((self.x.clone(), self.y.clone(), self.forced._lam))
    cb = Forced(alpha=1., start=start, stop=stop, seed=1)
    learn = learner([cb, Watch()], bs=bs, opt_func=SGD)
    learn.fit(n_epoch, 0.)
    n,(lo,hi) = len(learn.dls.train),(Fraction(o).limit_denominator(1000) for o in (start, stop))
    inside = [[lo <= Fraction(e*n+i, n*n_epoch) < hi for i in range(n)] for e in range(n_epoch)]
    flat = [o for e in inside for o in e]
    assert len(cb.lams)==sum(flat) and [l is not None for _,_,l in learn.watch.seen]==flat and cb.partner_counts.sum()==bs*sum(flat)
    assert learn.watch.paired==[Fraction(e, n_epoch)<hi and Fraction(e+1, n_epoch)>lo for e in range(n_epoch)]
    np.testing.assert_allclose(cb.prior, (sum(flat)*mixup_prior(n_k, 1.) + (len(flat)-sum(flat))*n_k/n_all)/len(flat), rtol=1e-9)
    rows = {tuple(x.tolist()):int(y) for x,y in zip(xs, ys)}
    for x,y,lam in learn.watch.seen:
        if lam is None: assert [rows[tuple(o.tolist())] for o in x]==y.tolist() # instance items with their own targets

def test_unmixed_steps_are_plain_training():
    "Before `start` a run equals one without the callback, bit for bit"
    def run(cbs):
        learn = learner([*cbs, Trace()])
        learn.fit(2, .01)
        return learn.trace.steps
    a,b = run([BalancedMixUp(start=.75, seed=1)]),run([])
    same = [all(map(torch.equal, x[2], y[2])) for x,y in zip(a, b, strict=True)]
    assert same[:10]==[True]*10 and not same[-1]

# What it tells

def test_shapes_of_what_it_tells():
    cb = BalancedMixUp(seed=1, per_item=True)
    learn = learner(cb, drop_last=False)
    learn.fit(1)
    learn.fit(2) # the last fit counts
    assert cb.lams.shape==(2*n_all,) and cb.partner_counts.shape==(3,) and cb.partner_counts.sum()==2*n_all and cb.prior.sum()==pytest.approx(1)
    assert learn.balanced_mix_up is cb

def test_as_an_argument_of_fit():
    cb = BalancedMixUp(seed=1)
    learn = learner()
    learn.fit_one_cycle(1, cbs=cb)
    assert len(cb.lams)==7 and cb.prior.shape==(3,) and not hasattr(learn, 'balanced_mix_up')
    learn.fit(1)
    assert len(cb.lams)==7

def test_cancelled_batches_keep_the_count():
    "A batch that is cancelled before it is mixed leaves lams and losses in step"
    class Skip(Callback):
        order = -5
        def before_batch(self):
            if self.training and self.iter%2: raise CancelBatchException
    cb = BalancedMixUp(seed=1)
    learner([cb, Skip()]).fit(1)
    assert len(cb.lams)==4

def test_it_reads_labels_once_in_a_fit():
    "Not in each epoch; and again in the next fit, since items may have been relabelled"
    class Counting(Opaque):
        reads = 0
        @property
        def labels(self):
            type(self).reads += 1
            return ys
    learn = learner(BalancedMixUp(seed=1), ds=Counting())
    learn.fit(1)
    n = Counting.reads
    learn.fit(3)
    assert n and Counting.reads==2*n

def test_labels_that_are_given_serve_the_loss_too():
    learn = learner(BalancedMixUp(labels=ys, seed=1), ds=Opaque(), loss_func=BalancedSoftmaxLoss())
    learn.fit(1)
    assert np.allclose(learn.loss_func.prior, mixup_prior(n_k, .2))

class Interrupt(Callback):
    def after_batch(self):
        if self.training and self.iter==1: raise KeyboardInterrupt

class Cancel(Callback):
    def after_batch(self):
        if self.training and self.iter==1: raise CancelFitException

def _interrupted(l):
    with pytest.raises(KeyboardInterrupt): l.fit(1, cbs=Interrupt())

@pytest.mark.parametrize('first', [lambda l: l.lr_find(show_plot=False, num_it=5), lambda l: l.fit(1, cbs=Cancel()), _interrupted, lambda l: next(iter(l.dls.train)),
    lambda l: l.dls.train.one_batch()], ids=['lr_find','cancelled','interrupted','iterator','one_batch'])
@pytest.mark.parametrize('kind', ['shuffled','re-sampled'])
@pytest.mark.parametrize('cb', [BalancedMixUp, lambda: BalancedMixUp(partners='pool'), lambda: BalancedMixUp(q=.5, per_item=True), ProgressiveSampling, ReMix])
def test_after_a_plain_fit_that_was_stopped(first, kind, cb):
    "A loader without worker processes keeps an iterator when it is stopped, which is its own and of no use to another"
    learn = learner()
    if kind=='re-sampled' or cb is ProgressiveSampling: learn.dls = learn.dls.balanced(q=1, seed=0)
    first(learn)
    learn.fit(2, cbs=cb())
    assert len(learn.recorder.values)==2

def spawned(method, code, tmp_path):
    "Run `code` where loader processes are started by `method`"
    head = """
        import sys, multiprocessing, warnings; warnings.filterwarnings('ignore')
        import numpy as np, torch
        from fastai.basics import *
        from fastai.callback.schedule import *
        from balmix_fastai.flexible import *
        from balmix_fastai.mixup import *
        from balmix_fastai.prior import *
        from balmix_fastai.losses import *
        from balmix_fastai.data import *
        from balmix_fastai.schedule import *
        class Noise(Transform):
            def encodes(self, x:Tensor): return x+torch.randn_like(x) if x.is_floating_point() else x
        class Slow(Callback): # what a Learner holds may be of a kind that no pickle takes
            def before_fit(self): self.f = lambda: None
        def main():
            x,y = torch.randn(32,4),np.repeat([0,1], [22,10])
            ds = torch.utils.data.TensorDataset(x, tensor(y))
            def loaders(n=1, **kw): return DataLoaders(TfmdDL(ds, bs=8, num_workers=n, device='cpu', **kw), TfmdDL(ds, bs=32, num_workers=0, device='cpu'))
            dls = loaders(shuffle=True)
            def fit(dls, *cbs, loss=CELoss()):
                learn = Learner(dls, nn.Sequential(nn.Linear(4,4), nn.Linear(4,2)), loss_func=loss, cbs=[Slow()])
                with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1, 1e-3, cbs=cbs)
                return learn
        """
    body = textwrap.dedent(head)+textwrap.indent(textwrap.dedent(code), '    ')
    (tmp_path/'go.py').write_text(body+f"\nif __name__=='__main__':\n    multiprocessing.set_start_method({method!r})\n    main()\n    print('done')\n", encoding='utf-8')
    res = subprocess.run([sys.executable, 'go.py'], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert res.stdout.endswith('done\n'), res.stderr[-2000:]

@pytest.mark.parametrize('method', ['spawn','forkserver'])
def test_worker_processes_that_do_not_fork(method, tmp_path):
    "Windows, macOS, and Linux from Python 3.14 on: what goes to a worker carries neither the Learner nor its network"
    spawned(method, """
        fit(dls, BalancedMixUp(seed=0), loss=BalancedSoftmaxLoss())
        fit(dls, BalancedMixUp(seed=0, partners='pool'))
        fit(dls.balanced(q=1, seed=0), ProgressiveSampling(), BalancedMixUp(seed=0))
        fit(dls, FlexibleSampling(warmup=0., patience=0., query=1., seed=0))
        fit(dls, BalancedMixUp(seed=0)).pretrain_contrastive(1, tfms=[Noise()])""" if method=='spawn' else "fit(dls, BalancedMixUp(seed=0))", tmp_path)

def test_partners_are_the_same_in_a_spawned_worker(tmp_path):
    spawned('spawn', """
        def drawn(n):
            fit(loaders(n), cb := BalancedMixUp(seed=3))
            return cb.lams,cb.partner_counts,cb.prior
        for a,b in zip(drawn(0), drawn(1)): assert np.array_equal(a, b)""", tmp_path)

# Distributed

def test_distributed(distributed):
    "Loaders wrapped as `DistributedTrainer` does: two ranks mix their own shares of one set of pairs, with targets and inputs told apart"
    class Ranks(Callback):
        order = 11
        def __init__(self, rank): self.rank = rank
        def wrap(self, dl): return dl if isinstance(dl, distributed.DistributedDL) else distributed.DistributedDL(dl, rank=self.rank, world_size=2)
        def before_fit(self): self.learn.dls.loaders = [self.wrap(dl) for dl in self.dls]
        def before_train(self): self.learn.dl = self.wrap(self.learn.dl)
    logs = []
    for rank in range(2):
        cb = Forced(alpha=.5, seed=1)
        learn = learner([cb, Ranks(rank), CollectDataCallback()], model=cnn(), ds=img_ds())
        learn._split = lambda b, learn=learn: setattr(learn, 'xb', b[:1]) or setattr(learn, 'yb', b[1:])
        learn.fit(1)
        logs.append(cb.log)
        for b,(pairs,_) in zip(learn.collect_data.data, cb.log): assert b[1][0].tolist()==ys[pairs[:,0]].tolist()
    whole = Forced(alpha=.5, seed=1)
    learner(whole, ds=img_ds(), model=cnn(), drop_last=False).fit(1)
    got,want = (np.concatenate([p for p,_ in o]) for o in (logs[0]+logs[1], whole.log))
    assert len(logs[0])==len(logs[1])==3 and set(map(tuple, got))<=set(map(tuple, want)) and len(got)==48

def img_ds(): return TensorDataset(tensor(imgs).permute(0,3,1,2).float()/255, tensor(ys))
