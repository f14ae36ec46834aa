"A training epoch with and without `BalancedMixUp`: digits in memory, so that the callback's own time shows."
import numpy as np, pytest, torch
from fastai.basics import CrossEntropyLossFlat, DataLoaders, Learner, noop, set_seed, tensor
from fastai.callback.all import MixUp, ProgressCallback
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset
from balmix_fastai.mixup import BalancedMixUp
from balmix_fastai.protocol import small_cnn

cbs = dict(plain=None, mixup=MixUp, balanced_mixup=BalancedMixUp)

@pytest.mark.parametrize('name', cbs)
def bench_epoch(benchmark, name):
    set_seed(0)
    x,y = load_digits(return_X_y=True)
    ds = TensorDataset(torch.tensor(x, dtype=torch.float32).view(-1,1,8,8).expand(-1,3,-1,-1)/16, tensor(y.astype(np.int64)))
    learn = Learner(DataLoaders.from_dsets(ds, ds, bs=64, num_workers=0), small_cnn(10), loss_func=CrossEntropyLossFlat(), cbs=cbs[name])
    learn.remove_cb(ProgressCallback).logger = noop
    benchmark(learn.fit, 1)
