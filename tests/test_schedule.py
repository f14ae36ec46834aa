"Progressively balanced sampling: what each epoch delivers."
import numpy as np, pytest, torch
from fastai.basics import CrossEntropyLossFlat, DataLoaders, Learner, nn, noop, set_seed
from fastai.callback.all import CollectDataCallback, ProgressCallback
from scipy import stats
from torch.utils.data import TensorDataset
from balmix_fastai.schedule import ProgressiveSampling

n_k = np.array([400,40,8])
ds = TensorDataset(torch.randn(n_k.sum(), 2), torch.tensor(np.repeat(range(3), n_k)))

def delivered(n_epoch, **kw):
    "Class counts of each epoch of a fit"
    set_seed(0)
    dls = DataLoaders.from_dsets(ds, ds, bs=32, num_workers=0).balanced(q=1, seed=1)
    learn = Learner(DataLoaders(dls.train), nn.Linear(2, 3), loss_func=CrossEntropyLossFlat(), cbs=[ProgressiveSampling, CollectDataCallback])
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
