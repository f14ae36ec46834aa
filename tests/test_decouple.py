"Second stages: what they change, what they leave, what they compute, and how they are undone."
import numpy as np, pytest, torch
from torch.nn import functional as F
from copy import deepcopy
from fastai.basics import Callback, Categorize, DataLoaders, Datasets, ItemGetter, Learner, accuracy, load_learner, nn, set_seed, tensor
from fastai.callback.progress import ProgressCallback
from fastai.callback.schedule import * # fit_one_cycle, lr_find
from balmix_fastai.decouple import *
from balmix_fastai.heads import *
from balmix_fastai.losses import *
from balmix_fastai.prior import * # losses follow the prior once it is imported

def toy(counts=(120,40,12), bs=16):
    g = torch.Generator().manual_seed(0)
    items = lambda n: [(torch.randn(6, generator=g)+1.5*k, k) for k,m in enumerate(n) for _ in range(m)]
    return DataLoaders.from_dsets(items(counts), items([40]*3), bs=bs, device='cpu', num_workers=0)

@pytest.fixture
def learn():
    set_seed(0)
    res = Learner(toy(), nn.Sequential(nn.Linear(6,12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(.1), nn.Linear(12,3)), CELoss(), metrics=accuracy, lr=.01)
    res.remove_cb(ProgressCallback)
    with res.no_logging(): res.fit(2)
    return res

def state(learn): return {k: v.clone() for k,v in learn.model.state_dict().items()}
stages = dict(retrain=lambda o: o.retrain_classifier(2, seed=0), lws=lambda o: o.scale_classifier(2, seed=0), tau=lambda o: o.tau_normalize(.7),
    ncm=lambda o: o.nearest_class_mean(), disalign=lambda o: o.disalign(2),
    mislas=lambda o: o.mislas(2, seed=0, shift_bn=False), mislas_bn=lambda o: o.mislas(2, seed=0))

@pytest.mark.parametrize('name', stages)
def test_backbone_undo_and_flags(learn, name):
    "Bit-identical before the classifier (but for shifted BatchNorm statistics), trainable after, and back to the first stage"
    before = state(learn)
    stages[name](learn)
    after = state(learn)
    moved = {k for k,v in before.items() if k in after and not torch.equal(v, after[k])}
    body = {k for k in moved if not k.startswith('4.')}
    assert body==({'1.running_mean','1.running_var','1.num_batches_tracked'} if name=='mislas_bn' else set())
    assert all(p.requires_grad for p in learn.model.parameters()) and not learn.model[4]._forward_pre_hooks
    with pytest.raises(ValueError, match='undo_stage2'): learn.tau_normalize(1.)
    learn.undo_stage2()
    assert all(torch.equal(v, learn.model.state_dict()[k]) for k,v in before.items()) and set(before)==set(learn.model.state_dict())
    with pytest.raises(ValueError, match='nothing to undo'): learn.undo_stage2()
    with learn.no_logging(): learn.fit(1)
    assert not torch.equal(before['4.weight'], learn.model[4].weight), 'the first stage must go on with the classifier, too'

@pytest.mark.parametrize('name', stages)
def test_export_and_more_training(learn, name, tmp_path):
    "The exported learner predicts as the one it is of, and that one can be trained further, its classifier included"
    items,n = [*learn.dls.train_ds, *learn.dls.valid_ds],len(learn.dls.train_ds)
    learn.dls = Datasets(items, [ItemGetter(0), ItemGetter(1)], splits=(range(n), range(n, len(items)))).dataloaders(bs=16, device='cpu', num_workers=0)
    stages[name](learn)
    learn.path = tmp_path
    learn.export('e.pkl')
    want,_ = learn.get_preds()
    got,_ = load_learner(tmp_path/'e.pkl').get_preds(dl=learn.dls.valid)
    assert torch.allclose(want, got, atol=1e-6)
    before = state(learn)
    with learn.no_logging(): learn.fit(1)
    assert any(not torch.equal(v, learn.model.state_dict()[k]) for k,v in before.items() if k.startswith('4.') and v.is_floating_point())

@pytest.mark.parametrize('name', ['retrain','lws','disalign','mislas_bn'])
def test_interrupted(learn, name, monkeypatch):
    before = state(learn)
    class Stop(Callback):
        def after_batch(self):
            if self.training and self.iter==2: raise KeyboardInterrupt
    import balmix_fastai.decouple as d
    make = d._FreezeRest
    monkeypatch.setattr(d, '_FreezeRest', lambda *args: [make(*args), Stop()])
    monkeypatch.setattr(d, 'Learner', lambda *args, cbs=None, **kw: Learner(*args, cbs=[*cbs[0], *cbs[1:]], **kw))
    with pytest.raises(KeyboardInterrupt): stages[name](learn)
    assert all(torch.equal(v, learn.model.state_dict()[k]) for k,v in before.items()) and all(p.requires_grad for p in learn.model.parameters())

def test_repeats(learn):
    res = []
    for _ in range(2):
        set_seed(1)
        res.append(state(learn.retrain_classifier(2, seed=3))['4.weight'])
        learn.undo_stage2()
    assert torch.equal(*res)

def test_retraining_is_plain_training_of_the_last_layer(learn):
    "The same steps by hand on the features: Adam, one-cycle, the sampler's order"
    set_seed(1)
    first = deepcopy(learn.model[4])
    learn.retrain_classifier(1, lr=.02, seed=5, reinit=False)
    set_seed(1)
    body,head = learn.model[:4].eval(),first
    feats = [(body(x[None])[0].detach(), y) for x,y in learn.dls.train_ds]
    dls = DataLoaders.from_dsets(feats, feats[:10], bs=16, device='cpu', num_workers=0).balanced(seed=5)
    by_hand = Learner(dls, head, CELoss())
    with by_hand.no_bar(), by_hand.no_logging(): by_hand.fit_one_cycle(1, .02)
    assert torch.allclose(head.weight, learn.model[4].weight, atol=1e-6)

def test_tau_in_closed_form(learn):
    w,x = learn.model[4].weight.detach().clone(),torch.randn(7,6)
    learn.model.eval()
    h = learn.model[:4](x)
    assert learn.tau_normalize(.5)==.5
    assert torch.allclose(learn.model(x), h@(w/w.norm(dim=1, keepdim=True)**.5).T, atol=1e-6)
    learn.undo_stage2()
    tau = learn.tau_normalize()
    def score(t):
        if getattr(learn, '_stage1', None): learn.undo_stage2()
        learn.tau_normalize(t)
        return learn.validate()[1]
    assert score(tau)>=max(map(score, np.linspace(0, 2, 9)))-1e-9 # a balanced validation set: accuracy is balanced accuracy

def test_nearest_mean_by_hand(learn):
    learn.model.eval()
    body = lambda x: learn.model[:4](x).detach()
    x,y = map(torch.stack, zip(*[(a, tensor(b)) for a,b in learn.dls.train_ds]))
    means = torch.stack([body(x)[y==k].mean(0) for k in range(3)])
    learn.nearest_class_mean(s=5.)
    assert torch.allclose(learn.model(x), 5*F.cosine_similarity(body(x)[:,None], means[None], dim=-1), atol=1e-5)

def test_disalign_starts_from_the_first_stage(learn):
    from balmix_fastai.decouple import _DisAlign
    h = torch.randn(5,12)
    new = _DisAlign(learn.model[4])
    assert torch.allclose(new(h), new.old(h))
    new.a.data,new.b.data = torch.randn(3),torch.randn(3)
    c,z = new.confidence(h).sigmoid(),new.old(h)
    assert torch.allclose(new(h), c*((1+new.a)*z+new.b)+(1-c)*z, atol=1e-6)

def test_scales_fold_into_one_layer(learn):
    learn.model.eval()
    w = learn.model[4].weight.detach().clone()
    learn.scale_classifier(2, seed=0)
    assert type(learn.model[4]) is nn.Linear
    ratio = learn.model[4].weight/w
    assert torch.allclose(ratio, ratio[:,:1].expand_as(ratio), rtol=1e-4) and not torch.allclose(ratio[:,0], torch.ones(3))

def test_cosine_head_and_ldam():
    set_seed(0)
    learn = Learner(toy(), cosine_head(nn.Sequential(nn.Linear(6,12), nn.ReLU(), nn.Linear(12,3))), LDAMLoss(), metrics=accuracy, lr=.02)
    with learn.no_bar(), learn.no_logging():
        learn.fit(4)
        assert learn.validate()[1]>.6

@pytest.mark.parametrize('f,says', [(lambda o: o.tau_normalize(3.), 'tau=3'), (lambda o: o.disalign(rho=-1), 'rho'), (lambda o: (cosine_head(o.model), o.scale_classifier()), 'CosineLinear')])
def test_bad_input(learn, f, says):
    with pytest.raises(ValueError, match=says): f(learn)
    assert getattr(learn, '_stage1', None) is None

def test_unknown_classifier():
    with pytest.raises(ValueError, match='layer='): find_classifier(nn.Sequential(nn.Linear(3,3), nn.Conv2d(3,3,1)))
    net = nn.Sequential(nn.Linear(6,3), nn.Linear(3,3))
    replace_layer(net, '0', CosineLinear(6,3))
    assert isinstance(net[0], CosineLinear)

def _datasets(learn):
    "The data of `learn` as fastai's Datasets, which can be exported"
    items,n = [*learn.dls.train_ds, *learn.dls.valid_ds],len(learn.dls.train_ds)
    return Datasets(items, [ItemGetter(0), ItemGetter(1)], splits=(range(n), range(n, len(items)))).dataloaders(bs=16, device='cpu', num_workers=0)

@pytest.mark.parametrize('name', stages)
def test_the_first_stage_stays_out_of_pickles(learn, name, tmp_path):
    "The marked weights of the first stage are in no file, and the loaded learner goes on from what it is"
    learn.dls,learn.path = _datasets(learn),tmp_path
    with torch.no_grad(): learn.model[4].bias[:] = torch.tensor([.123456789,.2,.3])
    mark = learn.model[4].bias.detach()[:1].numpy().tobytes()
    stages[name](learn)
    kept = any((v.numpy().tobytes().find(mark)>=0) for v in learn.model.state_dict().values()) # DisAlign and the scales keep the bias
    learn.export('e.pkl')
    assert kept or mark not in (tmp_path/'e.pkl').read_bytes()
    back = load_learner(tmp_path/'e.pkl')
    back.dls = learn.dls
    with pytest.raises(ValueError, match='nothing to undo'): back.undo_stage2()
    before = state(back)
    if name=='disalign':
        with pytest.raises(ValueError, match='disalign'): back.retrain_classifier(1, seed=0)
        return
    back.retrain_classifier(1, seed=0)
    assert not torch.equal(before['4.weight'], state(back)['4.weight'])
    back.undo_stage2()
    assert all(torch.equal(v, state(back)[k]) for k,v in before.items())

def test_no_growth_by_a_second_stage(learn, tmp_path):
    "The classifier has 240 kB"
    learn = Learner(_datasets(learn), nn.Sequential(nn.Linear(6, 20_000), nn.Linear(20_000, 3)), CELoss(), path=tmp_path).remove_cb(ProgressCallback)
    learn.export('a.pkl')
    learn.retrain_classifier(1, seed=0)
    learn.export('b.pkl')
    assert (tmp_path/'b.pkl').stat().st_size<(tmp_path/'a.pkl').stat().st_size+2000

def _fit(learn): learn.fit(1)
def _last_only(learn): learn.model[4].bias.data += 1
def _swap(learn): learn.model[0] = nn.Linear(6, 12)
@pytest.mark.parametrize('change', [_fit, lambda o: o.load('other'), _swap, lambda o: o.fit_one_cycle(1), lambda o: o.model[1].weight.data.mul_(1.0001)])
def test_undo_is_refused_on_another_body(learn, change, tmp_path):
    learn.path = tmp_path
    start = state(learn)
    learn.model[0].weight.data += 1
    learn.save('other')
    learn.model.load_state_dict(start)
    learn.retrain_classifier(1, seed=0)
    with learn.no_logging(): change(learn)
    now = state(learn)
    with pytest.raises(ValueError, match='have changed since'): learn.undo_stage2()
    assert all(torch.equal(v, state(learn)[k]) for k,v in now.items()), 'nothing is mixed'
    learn.retrain_classifier(1, seed=0).undo_stage2() # the next stage begins from here
    assert all(torch.equal(v, state(learn)[k]) for k,v in now.items())

@pytest.mark.parametrize('change', [_last_only, lambda o: o.validate(), lambda o: o.get_preds(), lambda o: o.lr_find(show_plot=False, num_it=5),
    lambda o: o.export('x.pkl'), deepcopy])
def test_undo_still_works_on_the_same_body(learn, change, tmp_path):
    learn.dls,learn.path = _datasets(learn),tmp_path
    before = state(learn)
    learn.scale_classifier(1, seed=0)
    with learn.no_logging(): change(learn)
    learn.undo_stage2()
    assert all(torch.equal(v, state(learn)[k]) for k,v in before.items())

def test_a_copy_is_undone_by_itself(learn):
    before = state(learn)
    learn.retrain_classifier(1, seed=0)
    second = state(learn)
    deepcopy(learn).undo_stage2()
    assert all(torch.equal(v, state(learn)[k]) for k,v in second.items())
    other = deepcopy(learn).undo_stage2()
    assert all(torch.equal(v, state(other)[k]) for k,v in before.items())

@pytest.mark.parametrize('name', ['retrain','lws','tau','ncm','disalign','mislas'])
def test_a_network_that_is_the_classifier(name):
    "Nothing lies before it that could stay as it is"
    learn = Learner(toy(), nn.Linear(6, 3), CELoss()).remove_cb(ProgressCallback)
    before = state(learn)
    with pytest.raises(ValueError, match='whole network.*nn.Sequential'): stages[name](learn)
    assert all(torch.equal(v, state(learn)[k]) for k,v in before.items()) and getattr(learn, '_stage1', None) is None

def test_a_layer_that_is_not_the_classifier(learn):
    learn.dls = Datasets(range(90), [lambda i: torch.zeros(6), [lambda i: 'abc'[i%3], Categorize()]], n_inp=1).dataloaders(bs=16, device='cpu', num_workers=0)
    with pytest.raises(ValueError, match="'0', a Linear, has 12 outputs for 3 classes"): learn.retrain_classifier(1, layer='0')
    with pytest.raises(ValueError, match="layer='5' is not the name of a layer"): learn.tau_normalize(1., layer='5')

def test_a_named_classifier_need_not_be_found(learn):
    "`layer=` is the way out where `find_classifier` refuses"
    learn.model.add_module('5', nn.LayerNorm(3))
    for f in (lambda: find_classifier(learn.model), lambda: learn.tau_normalize(1.)):
        with pytest.raises(ValueError, match="'5', is of type LayerNorm"): f()
    learn.tau_normalize(1., layer='4')
    assert features(learn.model, learn.dls.valid, '4')[0].shape==(120,12)

@pytest.mark.parametrize('make,name', [(lambda o: o, 'fc'), (nn.DataParallel, 'module.fc'), (nn.Sequential, '0.fc'), (lambda o: nn.Sequential(o, nn.Linear(3, 5)), '1')])
def test_classifiers_of_timm(make, name):
    import timm
    net = make(timm.create_model('resnet18', num_classes=3))
    assert find_classifier(net)==name
    assert isinstance(cosine_head(net).get_submodule(name), CosineLinear) and find_classifier(net)==name

@pytest.mark.parametrize('arch,says', [('deit_tiny_distilled_patch16_224', '2 classifiers, head, head_dist'), ('crossvit_tiny_240', '2 classifiers'), ('resnetv2_50', "'head.fc', is of type Conv2d.*linear head")])
def test_classifiers_that_are_not_one_linear_layer(arch, says):
    import timm
    net = timm.create_model(arch, num_classes=3)
    for o in (net, nn.Sequential(net)):
        with pytest.raises(ValueError, match=says if o is net else 'classifiers|Conv2d'): find_classifier(o)

@pytest.mark.parametrize('f,says', [(lambda: cosine_head(nn.Linear(6, 3)), r'nn\.Sequential\(model\)'), (lambda: replace_layer(nn.Linear(6, 3), '', nn.Linear(6, 2)), r'nn\.Sequential\(model\)'),
    (lambda: replace_layer(nn.Sequential(nn.Linear(6, 3)), '1', nn.Linear(6, 2)), "layer='1'"),
    (lambda: cosine_head(nn.Sequential(nn.Conv2d(3, 3, 1)), '0'), 'Conv2d'), (lambda: find_classifier(nn.ReLU()), 'no layer with parameters')])
def test_heads_that_cannot_be_replaced(f, says):
    with pytest.raises(ValueError, match=says): f()

def test_the_prior_is_that_of_the_last_stage(learn):
    "What the classifier was trained on last; not known where it was computed; and that of the first stage again, after undo or a failure"
    n = np.array([120,40,12])
    first = training_prior(learn)
    assert np.allclose(first, n/n.sum())
    for stage,want in ((lambda o: o.retrain_classifier(1, q=.5, seed=0), n**.5), (lambda o: o.scale_classifier(1, seed=0), n**0),
        (lambda o: o.mislas(1, seed=0), n**0),
        (lambda o: o.disalign(1, rho=1.2), n**-.2), (lambda o: o.tau_normalize(.7), None), (lambda o: o.nearest_class_mean(), None)):
        stage(learn)
        if want is None:
            with pytest.raises(ValueError, match='not known'): output_prior(learn)
        else: assert np.allclose(output_prior(learn), want/want.sum(), atol=1e-6)
        assert np.allclose(training_prior(learn.undo_stage2()), first)
    class Stop(Callback):
        def after_batch(self): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): learn.retrain_classifier(1, cbs=Stop())
    assert np.allclose(training_prior(learn), first)
