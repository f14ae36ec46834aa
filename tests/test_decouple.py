"Second stages: what they change, what they leave, what they compute, and how they are undone."
import numpy as np, pytest, torch
from torch.nn import functional as F
from copy import deepcopy
from fastai.basics import Callback, DataLoaders, Datasets, ItemGetter, Learner, accuracy, load_learner, nn, set_seed, tensor
from fastai.callback.progress import ProgressCallback
from balmix_fastai.decouple import *
from balmix_fastai.heads import *
from balmix_fastai.losses import *
from balmix_fastai.prior import FollowPrior # losses follow it once it is imported

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
    assert any(isinstance(cb, FollowPrior) for cb in learn.cbs)
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
