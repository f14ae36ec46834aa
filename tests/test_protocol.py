"Networks, augmentations, optimisers and schedules by name."
import numpy as np, pytest, timm, torch, torchvision
from fastai.basics import CrossEntropyLossFlat, DataLoaders, Learner, TensorImage, nn, set_seed
from fastai.callback.core import Callback
from fastai.callback.progress import ProgressCallback
from scipy.stats import chisquare
from torch.utils.data import TensorDataset
from balmix_fastai.datasets import read_images
from balmix_fastai.protocol import (Plateau, augmentation, check_network, cifar_resnet, find_network, fit_schedule, make_learner, make_network, optimizer,
    paper_tfms, step_lr)

@pytest.fixture(scope='module')
def digits(): return read_images('digits')

@pytest.mark.parametrize('arch', ['small_cnn','resnet8','resnet32','mobilenetv2','test_resnet'])
@pytest.mark.parametrize('head', ['fastai','linear'])
def test_networks_fit_the_classes(digits, arch, head):
    learn = make_learner(digits.dataloaders(size=32, bs=8), arch, head=head, loss_func=CrossEntropyLossFlat())
    out = learn.model.eval()(torch.randn(2,3,32,32))
    assert out.shape==(2,10) and all(p.requires_grad for p in learn.model.parameters())
    lins = [m for m in learn.model.modules() if isinstance(m, nn.Linear)]
    assert lins[-1].out_features==10 and (head=='fastai' and arch in ('mobilenetv2','test_resnet'))==(len(lins)>1)

def test_the_papers_networks_are_what_they_are_said_to_be():
    bit,mob,rx = (timm.create_model(find_network(o), pretrained=False) for o in ('bit_r50x1','mobilenetv2','resnext50'))
    assert any(isinstance(m, nn.GroupNorm) for m in bit.modules()) and not any(isinstance(m, nn.BatchNorm2d) for m in bit.modules())
    n = lambda m: sum(p.numel() for p in m.parameters())
    assert n(mob)==n(torchvision.models.mobilenet_v2()) and n(rx)==n(torchvision.models.resnext50_32x4d())

def test_shortcut_is_option_a():
    "With the convolutions of the last block of a stage silenced, its output is the sub-sampled input, zeros around it"
    block = cifar_resnet(8)[2]
    for p in block.convs.parameters(): nn.init.zeros_(p)
    x = torch.randn(2,16,8,8)
    y = block.eval()(x)
    assert torch.equal(y[:,8:24], x[:,:,::2,::2].relu()) and not y[:,:8].any() and not y[:,24:].any()

@pytest.mark.parametrize('name', ['paper','cifar'])
def test_augmentation_draws_for_each_image_and_leaves_validation_alone(name):
    x = TensorImage(torch.rand(1,3,32,32).repeat(8,1,1,1))
    tfm, = augmentation(name)
    y = tfm(x, split_idx=0)
    assert len({o.numpy().tobytes() for o in y})>=7 and y.shape==x.shape and type(y) is TensorImage and torch.equal(tfm(x, split_idx=1), x)

def test_augmentation_follows_torchs_seed():
    x,(tfm,) = TensorImage(torch.rand(4,3,32,32)),augmentation('paper')
    a,b,c = (set_seed(s) or tfm(x, split_idx=0) for s in (1,1,2))
    assert torch.equal(a, b) and not torch.equal(a, c)

def test_cifar_shifts_by_up_to_four_pixels():
    "Every shift and flip of a single bright pixel in the middle of 2,000 images: 9 rows and 9 columns, twice, are uniform (chi-square, p > 1e-6)"
    x = torch.zeros(2000,3,32,32)
    x[:,:,16,10] = 1
    set_seed(0)
    y = augmentation('cifar')[0](TensorImage(x), split_idx=0)
    rows,cols = np.nonzero(y[:,0].numpy())[1:]
    assert set(rows)==set(range(12,21)) and set(cols)==set(range(6,15))|set(range(17,26))
    assert chisquare(np.bincount(rows)[12:21]).pvalue>1e-6 and chisquare(np.concatenate([np.bincount(cols)[6:15], np.bincount(cols)[17:26]])).pvalue>1e-6

def test_paper_tfms_in_a_data_block(digits):
    dls = digits.dataloaders(size=64, bs=4, tfms=paper_tfms(64)['batch_tfms'])
    assert dls.train.one_batch()[0].shape==(4,3,64,64)

def test_step_schedule_of_200_epochs():
    "Cao et al. 2019: rise over 5 epochs, then .1, from epoch 160 .001, from 180 .00001"
    lr = [.1*step_lr(e/200) for e in range(200)]
    assert np.allclose(lr[:5], [0,.02,.04,.06,.08]) and np.allclose(lr[5:160], .1) and np.allclose(lr[160:180], .001) and np.allclose(lr[180:], .00001)

def tiny(**kw):
    x = torch.randn(32,2,generator=torch.Generator().manual_seed(0))
    ds = TensorDataset(x, (x[:,0]>0).long())
    learn = Learner(DataLoaders.from_dsets(ds, ds, bs=8, num_workers=0), nn.Linear(2,2), loss_func=CrossEntropyLossFlat(), **kw)
    learn.remove_cb(ProgressCallback)
    return learn

def test_sgd_is_pytorchs():
    "One cycle with constant momentum against torch.optim.SGD by hand"
    set_seed(0)
    learn = tiny(**optimizer('sgd', mom=.8))
    ref = nn.Linear(2,2)
    ref.load_state_dict(learn.model.state_dict())
    opt,seen = torch.optim.SGD(ref.parameters(), lr=.1, momentum=.8),[]
    class Follow(Callback):
        def after_loss(self):
            if not self.training: return
            opt.param_groups[0]['lr'] = learn.opt.hypers[-1]['lr']
            opt.zero_grad()
            nn.functional.cross_entropy(ref(self.x), self.y).backward()
            opt.step()
    with learn.no_bar(), learn.no_logging(): fit_schedule(learn, 'one_cycle', 3, .1, cbs=Follow())
    assert torch.allclose(ref.weight, learn.model.weight, atol=1e-5)

def test_unknown_names_are_told():
    for f,says in ((lambda: find_network('resnet33'), 'resnet32'), (lambda: augmentation('x'), 'cifar'), (lambda: optimizer('lamb'), 'sgd'), (lambda: optimizer('sgd', 1.), 'mom=1'),
        (lambda: fit_schedule(tiny(), 'x', 1, .1), 'plateau'), (lambda: cifar_resnet(9), 'depth=9')):
        with pytest.raises(ValueError, match=says): f()

def test_plateau_goes_on_where_it_was():
    a = Plateau('m', 1., history=[.5,.4,.4,.4,.6])
    assert a.falls==1 and Plateau('valid_loss', 1., history=[.5,.4,.4,.4,.4]).falls==1

@pytest.mark.parametrize('size,most', [(32, 4), (64, 8), (20, 2)])
def test_the_crop_of_cifar_follows_the_size(size, most):
    "A bright pixel in the middle of 500 images moves by up to an eighth of the side, and images keep their size"
    x = torch.zeros(500,3,size,size)
    x[:,:,size//2,size//2] = 1
    set_seed(0)
    y = augmentation('cifar')[0](TensorImage(x), split_idx=0)
    rows = np.nonzero(y[:,0].numpy())[1]-size//2
    assert y.shape==x.shape and (rows.min(), rows.max())==(-most, most)

def test_a_network_is_tried_on_empty_images():
    "What it says is what training would say, and nothing is drawn from torch's generator"
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for arch,head,size,bs in (('small_cnn','fastai',8,2), ('resnet8','linear',32,1), ('resnetv2_18','linear',32,4), ('vit_tiny_patch16_224','linear',224,2)):
        check_network(arch, head, 3, (size,size), bs)
    for says,args in (('size=32', ('vit_tiny_patch16_224','linear',3,(32,32),2)), ('bs=1: BatchNorm', ('mobilenetv2','fastai',3,(64,64),1)),
        ("two_stage='ncm'", ('resnetv2_18','linear',3,(32,32),2,'ncm')), ('head or network', ('resnetv2_18','cosine',3,(32,32),2))):
        with pytest.raises(ValueError, match=says): check_network(*args)
    assert torch.equal(torch.get_rng_state(), before)

@pytest.mark.parametrize('arch', ['small_cnn','test_resnet','mobilenetv2'])
@pytest.mark.parametrize('head', ['fastai','linear','cosine'])
def test_the_network_that_is_tried_is_the_one_that_is_trained(digits, arch, head):
    a,b = make_network(arch, 10, head),make_learner(digits.dataloaders(size=32, bs=8), arch, head=head, loss_func=CrossEntropyLossFlat()).model
    shapes = lambda m: {k: v.shape for k,v in m.state_dict().items()}
    assert shapes(a)==shapes(b)

def test_weights_that_cannot_be_fetched(digits, monkeypatch):
    def offline(*args, **kwargs): raise RuntimeError('no network\nmore lines')
    monkeypatch.setattr(timm, 'create_model', offline)
    for head in ('fastai','linear'):
        with pytest.raises(OSError, match=r'the weights of mobilenetv2 could not be loaded \(RuntimeError: no network\)'):
            make_learner(digits.dataloaders(size=32, bs=8, normalize=False), 'mobilenetv2', True, head, loss_func=CrossEntropyLossFlat())

@pytest.mark.parametrize('arch,says', [('resnet18.nosuch','resnet18.a1_in1k'), ('resnet18.','resnet18.a1_in1k'), ('small_cnn.x','neither'), ('','neither')])
def test_names_of_weights(arch, says):
    assert find_network('resnet18.a1_in1k')=='resnet18.a1_in1k'
    with pytest.raises(ValueError, match=says): find_network(arch)
