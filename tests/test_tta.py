"flip_tta: equal to a by-hand computation, one pass over the loader, after export, under autocast, no trace left, errors."
import numpy as np, pytest, torch
from fastai.basics import Callback, CrossEntropyLossFlat, DataLoaders, Learner, TfmdDL, Transform, accuracy, load_learner, nn, noop, set_seed, to_float
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.transforms import ItemGetter, RandomSplitter
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.progress import ProgressCallback
from fastai.layers import Flatten
from fastai.losses import BCEWithLogitsLossFlat
from fastai.vision.augment import RandomErasing
from fastai.vision.core import TensorImage
from fastai.vision.data import ImageBlock
from balmix_fastai.tta import _FlipTTA

DIMS = dict(none=[None], h=[None, [-1]], v=[None, [-2]], hv=[None, [-1], [-2], [-1,-2]])

class Items:
    "Images with a count of the reads"
    def __init__(self, n=20, n_inp=1, n_out=4):
        rng = np.random.default_rng(0)
        self.ims = [torch.tensor(rng.normal(size=(n,2,6,8))).float() for _ in range(n_inp)]
        self.targs,self.reads = torch.tensor(rng.integers(0, n_out, n)),[]
    def __len__(self): return len(self.targs)
    def __getitem__(self, i):
        self.reads.append(i)
        return (*[TensorImage(x[i]) for x in self.ims], self.targs[i])

class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a,self.b = _model(),_model()
    def forward(self, a, b): return self.a(a) - 2*self.b(b)

def _model(): return nn.Sequential(nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), Flatten(), nn.Dropout(.5), nn.Linear(5*4*6, 4))

def _learn(n_inp=1, loss=None, bs=8, metrics=None, cbs=None, model=None):
    set_seed(1)
    ds = Items(n_inp=n_inp)
    dls = DataLoaders(TfmdDL(ds, bs=bs, shuffle=True, num_workers=0), TfmdDL(ds, bs=bs, num_workers=0))
    model = model or (_model() if n_inp==1 else TwoInputs())
    return Learner(dls, model, loss_func=loss or CrossEntropyLossFlat(), metrics=metrics, cbs=cbs).remove_cb(ProgressCallback),ds

def _by_hand(learn, ds, axes, act=None):
    "Mean of the probabilities, in plain PyTorch"
    learn.model.eval()
    act = act or (lambda o: o.exp()/o.exp().sum(1, keepdim=True))
    with torch.no_grad(): return torch.stack([act(learn.model(*[x if d is None else torch.flip(x, d) for x in ds.ims])) for d in DIMS[axes]]).mean(0)

@pytest.mark.parametrize('n_inp', [1,2])
@pytest.mark.parametrize('axes', list(DIMS))
def test_equals_the_mean_over_flipped_tensors(axes, n_inp):
    learn,ds = _learn(n_inp)
    for ds_idx in (0,1):
        probs,targs = learn.flip_tta(ds_idx, axes=axes)
        torch.testing.assert_close(probs, _by_hand(learn, ds, axes), atol=1e-6, rtol=0)
        assert torch.equal(targs, ds.targs)
    if axes!='none': assert (probs - _by_hand(learn, ds, 'none')).abs().max()>1e-3, 'flips must matter to this model'

def test_default_is_the_papers_horizontal_flip():
    learn,ds = _learn()
    torch.testing.assert_close(learn.flip_tta()[0], _by_hand(learn, ds, 'h'), atol=1e-6, rtol=0)

@pytest.mark.parametrize('axes', ['h', 'hv'])
def test_every_item_is_read_once_and_the_model_called_once_per_view(axes):
    learn,ds = _learn()
    learn.get_preds() # fastai reads an item of each new loader to learn its types
    calls = []
    ds.reads.clear()
    learn.model.register_forward_hook(lambda m,i,o: calls.append(len(o)))
    learn.flip_tta(axes=axes)
    assert ds.reads==list(range(20))
    assert calls==[n for n in (8,8,4) for _ in DIMS[axes]]

@pytest.mark.parametrize('loss,act', [(nn.CrossEntropyLoss(label_smoothing=.1), lambda o: o.softmax(1)), (nn.functional.cross_entropy, lambda o: o.softmax(1)),
    (nn.BCEWithLogitsLoss(), torch.sigmoid), (nn.functional.binary_cross_entropy_with_logits, torch.sigmoid), (BCEWithLogitsLossFlat(), torch.sigmoid)])
def test_activation_belongs_to_the_loss(loss, act):
    learn,ds = _learn(loss=loss)
    if act is torch.sigmoid: ds.targs = torch.eye(4)[ds.targs]
    torch.testing.assert_close(learn.flip_tta()[0], _by_hand(learn, ds, 'h', act), atol=1e-6, rtol=0)

def test_own_activation_wins():
    learn,ds = _learn(loss=nn.MultiMarginLoss())
    torch.testing.assert_close(learn.flip_tta(act=noop)[0], _by_hand(learn, ds, 'h', noop), atol=1e-5, rtol=0)
    learn.loss_func = CrossEntropyLossFlat()
    torch.testing.assert_close(learn.flip_tta(act=torch.tanh)[0], _by_hand(learn, ds, 'h', torch.tanh), atol=1e-6, rtol=0)

def test_loss_and_metrics_see_the_plain_predictions():
    seen = []
    def logit_range(pred, targ):
        seen.append(pred.min())
        return pred.sum()
    learn,_ = _learn(metrics=[accuracy, logit_range])
    plain = learn.validate()
    n = len(seen)
    learn.flip_tta(axes='hv')
    assert len(seen)==2*n and seen[n:]==seen[:n] and min(seen)<0
    learn.get_preds()
    assert list(learn.recorder.log[1:4])[:1]==pytest.approx(plain[:1])

def _state(learn): return [id(c) for c in learn.cbs],id(learn.loss_func),learn.loss_func.__class__,id(learn.dls.train),id(learn.dls.valid),learn.opt

class Boom(Callback):
    "Fails at the second batch, or interrupts"
    def __init__(self, ex): self.ex = ex
    def after_pred(self):
        if self.learn.iter==1: raise self.ex

@pytest.mark.parametrize('ex', [None, RuntimeError('boom'), KeyboardInterrupt()])
def test_leaves_no_trace(ex):
    learn,ds = _learn()
    before,plain,weights = _state(learn),learn.get_preds()[0],[p.clone() for p in learn.model.parameters()]
    if ex is None: learn.flip_tta(axes='hv')
    else:
        with learn.added_cbs(Boom(ex)), pytest.raises(type(ex)): learn.flip_tta(axes='hv')
    assert _state(learn)==before and not any(isinstance(c, _FlipTTA) for c in learn.cbs)
    assert torch.equal(learn.get_preds()[0], plain) and all(torch.equal(a, b) for a,b in zip(weights, learn.model.parameters()))
    learn.fit(1, 0.)
    torch.testing.assert_close(learn.flip_tta()[0], _by_hand(learn, ds, 'h'), atol=1e-6, rtol=0)

class CpuAutocast(MixedPrecision):
    "fastai's mixed precision with autocast for the CPU"
    def before_fit(self): self.autocast = torch.autocast('cpu', dtype=torch.bfloat16)

def test_all_views_run_under_autocast_and_come_back_as_float():
    learn,ds = _learn(cbs=CpuAutocast())
    dtypes = []
    learn.model.register_forward_hook(lambda m,i,o: dtypes.append(o.dtype))
    probs,_ = learn.flip_tta(axes='hv')
    assert set(dtypes)=={torch.bfloat16} and len(dtypes)==12 and probs.dtype==torch.float32
    with torch.autocast('cpu', dtype=torch.bfloat16): want = _by_hand(learn, ds, 'hv', lambda o: to_float(o).softmax(1))
    torch.testing.assert_close(probs, want, atol=1e-6, rtol=0)

def test_an_error_about_the_input_leaves_no_autocast_open():
    learn,ds = _learn(cbs=CpuAutocast(), model=nn.Sequential(Flatten(), nn.Linear(96, 4)))
    ds.ims = [x.flatten(1) for x in ds.ims]
    with pytest.raises(ValueError, match=r'\(8, 96\)'): learn.flip_tta()
    assert not torch.is_autocast_enabled('cpu')

def test_to_fp16_as_fastai_sets_it():
    learn,ds = _learn()
    probs,_ = learn.to_fp16().flip_tta()
    torch.testing.assert_close(probs, _by_hand(learn, ds, 'h'), atol=1e-6 if not torch.cuda.is_available() else 1e-2, rtol=0)

def test_fastais_tta_is_unchanged():
    class Lighter(Transform):
        "A training augmentation without chance, so that tta has one right answer"
        split_idx = 0
        def encodes(self, x:TensorImage): return x*1.5
    learn,ds = _learn()
    blocks = DataBlock((ImageBlock, CategoryBlock), get_x=ItemGetter(0), get_y=ItemGetter(1), splitter=RandomSplitter(seed=0), batch_tfms=Lighter())
    items = _rgb_items()
    dls = blocks.dataloaders(items, bs=8, num_workers=0, device='cpu')
    learn = Learner(dls, _rgb_model(), loss_func=CrossEntropyLossFlat()).remove_cb(ProgressCallback)
    learn.flip_tta(axes='hv')
    x,y = torch.cat([b[0] for b in dls.valid]).as_subclass(torch.Tensor),torch.cat([b[1] for b in dls.valid])
    learn.model.eval()
    with torch.no_grad(): want = .75*learn.model(x*1.5).softmax(1) + .25*learn.model(x).softmax(1)
    probs,targs = learn.tta(n=2, beta=.25)
    torch.testing.assert_close(probs, want, atol=1e-6, rtol=0)
    assert torch.equal(targs, y.as_subclass(torch.Tensor))

def _rgb_items(n=20): return [(np.random.default_rng(i).integers(0, 256, (6,8,3), dtype=np.uint8), 'abcd'[i%4]) for i in range(n)]
def _rgb_model(): return nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), Flatten(), nn.Linear(5*4*6, 4))

@pytest.mark.parametrize('with_labels', [True, False])
def test_after_export_and_load(tmp_path, with_labels):
    set_seed(3)
    blocks = DataBlock((ImageBlock, CategoryBlock), get_x=ItemGetter(0), get_y=ItemGetter(1), splitter=RandomSplitter(seed=0), batch_tfms=RandomErasing(p=1.))
    items = _rgb_items()
    learn = Learner(blocks.dataloaders(items, bs=8, num_workers=0, device='cpu'), _rgb_model(), loss_func=CrossEntropyLossFlat(), path=tmp_path)
    learn.export('l.pkl')
    back = load_learner(tmp_path/'l.pkl').remove_cb(ProgressCallback)
    dl = back.dls.test_dl([o if with_labels else o[:1] for o in items], with_labels=with_labels, bs=8, num_workers=0)
    probs,targs = back.flip_tta(dl=dl, axes='hv')
    x = torch.tensor(np.stack([o[0] for o in items])).permute(0,3,1,2).contiguous()/255
    back.model.eval()
    with torch.no_grad(): want = torch.stack([back.model(o).softmax(1) for o in (x, x.flip(-1), x.flip(-2), x.flip(-1).flip(-2))]).mean(0)
    torch.testing.assert_close(probs, want, atol=1e-6, rtol=0)
    if with_labels: assert targs.tolist()==[i%4 for i in range(20)]
    assert torch.equal(back.flip_tta(dl=dl, axes='hv')[0], probs), 'no random augmentation may take part'

def test_image_beside_other_inputs_flips_the_image_only():
    class ImageAndRow(nn.Module):
        def __init__(self):
            super().__init__()
            self.a,self.w = _model(),nn.Linear(3, 4)
        def forward(self, im, row): return self.a(im) + self.w(row)
    learn,ds = _learn(n_inp=2, model=ImageAndRow())
    ds.ims[1] = torch.randn(20, 3)
    with torch.no_grad(): want = torch.stack([learn.model.eval()(x, ds.ims[1]).softmax(1) for x in (ds.ims[0], ds.ims[0].flip(-1))]).mean(0)
    torch.testing.assert_close(learn.flip_tta()[0], want, atol=1e-6, rtol=0)

def test_pairs_of_images_in_one_input_are_flipped_together():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.two = TwoInputs()
        def forward(self, pair): return self.two(*pair)
    learn,ds = _learn(model=Pair())
    other = torch.randn(20,2,6,8)
    dl = [((ds.ims[0][i:i+10], other[i:i+10]), ds.targs[i:i+10]) for i in (0,10)]
    views = [(ds.ims[0], other), (ds.ims[0].flip(-1), other.flip(-1))]
    with torch.no_grad(): want = torch.stack([learn.model.eval()(v).softmax(1) for v in views]).mean(0)
    torch.testing.assert_close(learn.flip_tta(dl=dl)[0], want, atol=1e-6, rtol=0)

def test_bad_arguments_are_refused_before_anything_is_read():
    learn,ds = _learn(loss=nn.MultiMarginLoss())
    ds.reads.clear()
    with pytest.raises(ValueError, match="axes='x' is not one of 'none', 'h', 'v', 'hv'"): learn.flip_tta(axes='x')
    with pytest.raises(ValueError, match='MultiMarginLoss.*act='): learn.flip_tta()
    assert not ds.reads

def test_inputs_without_images_need_axes_none():
    learn,ds = _learn(model=nn.Sequential(Flatten(), nn.Linear(96, 4)))
    ds.ims = [x.flatten(1) for x in ds.ims]
    with pytest.raises(ValueError, match=r"shapes \[\(8, 96\)\]; use get_preds, or axes='none'"): learn.flip_tta()
    torch.testing.assert_close(learn.flip_tta(axes='none')[0], learn.get_preds()[0])

@pytest.mark.parametrize('model,got', [(nn.Conv2d(2, 4, 1), r'shape \(8, 4, 6, 8\)'), (nn.Sequential(_model(), nn.Module()), 'tuple')])
def test_predictions_that_would_have_to_be_flipped_back_are_refused(model, got):
    if got=='tuple': model[1].forward = lambda o: (o, o)
    learn,_ = _learn(model=model)
    with pytest.raises(ValueError, match=got): learn.flip_tta()
