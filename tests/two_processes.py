"Trains in each of several processes, as `accelerate launch` starts them, and writes down what each has seen: two_processes.py OUT MODE [OPTIONS as JSON]"
import json, sys, warnings
warnings.filterwarnings('ignore')
from pathlib import Path
import numpy as np, torch
from fastai.basics import *
import fastai.distributed as distributed
from torch.utils.data import TensorDataset
from balmix_fastai.metrics import paper_metrics
from balmix_fastai.mixup import BalancedMixUp
from balmix_fastai.tta import *

def _broadcast(self, t, rank):
    "fastai's, without the move to a GPU, which it makes in any case"
    t = LongTensor(t)
    torch.distributed.broadcast(t, rank)
    return t.tolist()
distributed.DistributedDL._broadcast = _broadcast

out,mode = Path(sys.argv[1]),sys.argv[2]
rng = np.random.default_rng(0)
y = rng.permutation(np.repeat([0,1,2], [150,40,11]))
x = torch.tensor(np.array([[0.,0],[2,1],[1,2.5]])[y]+rng.normal(size=(len(y),2)), dtype=torch.float32)
train,valid = TensorDataset(x, torch.tensor(y)),TensorDataset(x[:77], torch.tensor(y[:77]))

class Watch(Callback):
    "Pairs, strengths and losses of this process"
    order = 1
    def __init__(self): self.pairs,self.lams,self.losses,self.x = [],[],[],[]
    def before_batch(self):
        if not self.training: return
        cb = self.learn.balanced_mix_up if mode!='balanced' else None
        self.x.append(self.xb[0].clone())
        if cb is None: return
        self.pairs.append(cb._paired.pairs.copy())
        self.lams.append(cb._lam)
    def after_loss(self):
        if self.training: self.losses.append(float(self.learn.loss_grad.detach()))

def main():
    set_seed(0)
    dls = DataLoaders.from_dsets(train, valid, bs=16, num_workers=0, device='cpu')
    if mode=='balanced': dls = dls.balanced(seed=3)
    cbs = [] if mode=='balanced' else [BalancedMixUp(.5, seed=1, partners=mode)]
    watch = Watch()
    learn = Learner(dls, nn.Linear(2, 3), loss_func=CrossEntropyLossFlat(), cbs=[*cbs, watch], opt_func=SGD, metrics=paper_metrics(), path=out)
    start = [p.detach().clone() for p in learn.model.parameters()]
    with learn.no_bar(), learn.distrib_ctx(sync_bn=False):
        learn.fit(3, .1)
        end = [p.detach().clone() for p in learn.model.parameters()]
        preds,targs = learn.flip_tta(axes='none')
        theirs,_ = learn.get_preds()
    names,vals = learn.recorder.metric_names,learn.recorder.values[-1]
    seen = {k: getattr(watch, k) for k in ('pairs','lams','losses','x')}
    torch.save(dict(seen, start=start, end=end, preds=preds, targs=targs, theirs=theirs, y=y, values=list(vals), names=list(names)), out/f'{mode}_{rank_distrib()}.pt')

def train_digits(stop=None, **kwargs):
    "balmix-train, interrupted in all processes after the epoch `stop`"
    from balmix_fastai.cli import balmix_train
    from balmix_fastai.run import CheckFinite
    def after_epoch(self):
        if self.learn.epoch==stop: raise KeyboardInterrupt
    if stop is not None: CheckFinite.order,CheckFinite.after_epoch = 65,after_epoch # after Checkpoint
    res = balmix_train('digits', out=str(out), arch='small_cnn', size=8, augment='fastai', tta='none', bs=32, lr='0.005', **kwargs)
    assert (res is None)==bool(rank_distrib())

if __name__=='__main__':
    if mode=='train': train_digits(**json.loads(sys.argv[3]))
    else: main()
