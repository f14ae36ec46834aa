"""What can happen in the middle of a training: a worker that is killed, an image that breaks, a device or a disk that is full, skipped items, and
losses that are not numbers. Each ends in a clear error or a documented skip, the last checkpoint is whole, and the Learner goes on."""
import gc, multiprocessing, subprocess, sys, textwrap
import numpy as np, pandas as pd, pytest, torch
from fastai.basics import Callback, CrossEntropyLossFlat, DataLoaders, Learner, L, TfmdDL, nn, noop, set_seed
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.progress import ProgressCallback
from fastai.data.load import SkipItemException
from fastcore.script import CliError
from PIL import Image
from balmix_fastai.checkpoint import read_state
from balmix_fastai.cli import balmix_train
from balmix_fastai.mixup import BalancedMixUp
from balmix_fastai import run as run_module
from balmix_fastai.run import CheckFinite, Checkpoint

opts = dict(arch='small_cnn', size=16, bs=8, lr='0.005', augment='none', tta='none', epochs=4)
sources = pytest.mark.parametrize('partners', ['loader','pool'])

@pytest.fixture
def folder(tmp_path):
    "Two classes of noisy images, light and dark"
    rng = np.random.default_rng(0)
    for k,(name,n) in enumerate(dict(dark=40, light=12).items()):
        (tmp_path/'data'/name).mkdir(parents=True)
        for i in range(n): Image.fromarray(rng.integers(120*k, 120*k+100, (16,16,3), dtype=np.uint8)).save(tmp_path/f'data/{name}/{i}.jpg')
    return tmp_path/'data'

class At(Callback):
    "Do something once, before the step `step` of the epoch `epoch` of a training, or for `None` before its loader starts"
    order,run_valid = -50,False
    def __init__(self, f, epoch=2, step=2): self.f,self.at = f,(epoch, step)
    def _now(self, step):
        if (self.learn.epoch, step)!=self.at: return
        self.at = None
        self.f(self.learn)
    def before_train(self): self._now(None)
    def before_batch(self): self._now(self.learn.iter)

def quiet(dls, model, cbs):
    res = Learner(DataLoaders(*dls), model, loss_func=CrossEntropyLossFlat(), cbs=cbs)
    res.remove_cb(ProgressCallback).logger = noop
    return res

@pytest.fixture
def fault(monkeypatch):
    "Have the next `train_run` meet a fault"
    def plan(f, **kw):
        make,cb = run_module.make_learner,At(f, **kw)
        def made(*args, cbs=None, **kwargs): return make(*args, cbs=[*L(cbs), cb], **kwargs)
        monkeypatch.setattr(run_module, 'make_learner', made)
        return monkeypatch.undo
    return plan

def whole(out, epochs):
    "The checkpoint of so many epochs can be read, and nothing half-written lies about"
    state = read_state(out/'state.pth')
    assert len(state['rows'])==len(pd.read_csv(out/'log.csv'))==epochs and torch.load(out/'best.pth') and not list(out.glob('*.tmp'))
    assert not (out/'metrics.json').exists()

def resumed_equals_uninterrupted(folder, out, **kw):
    balmix_train(folder, out=out, resume=True, **{**opts, **kw})
    balmix_train(folder, out=out.with_name('whole'), **{**opts, **kw})
    for f in ('log.csv','predictions.csv'): pd.testing.assert_frame_equal(pd.read_csv(out/f), pd.read_csv(out.with_name('whole')/f), check_exact=True)

@sources
def test_a_worker_is_killed(folder, tmp_path, fault, partners):
    "In epoch 2; the command goes on from there, with the same result as if nothing had happened"
    undo = fault(lambda learn: multiprocessing.active_children()[-1].kill(), step=0)
    with pytest.raises(CliError, match='(?s)DataLoader worker.*fewer --workers.*--resume'): balmix_train(folder, out=tmp_path/'run', **{**opts, 'bs':2}, workers=2, partners=partners)
    undo()
    whole(tmp_path/'run', 2)
    gc.collect()
    assert not multiprocessing.active_children()
    resumed_equals_uninterrupted(folder, tmp_path/'run', workers=2, partners=partners, bs=2)

@pytest.mark.parametrize('workers', [0,2])
@pytest.mark.parametrize('how', ['cut','text','gone'])
def test_an_image_breaks(folder, tmp_path, fault, workers, how):
    "In epoch 2, all images of a class; the error names the first, and after the repair the run goes on"
    files = sorted((folder/'light').iterdir())
    keep = {o: o.read_bytes() for o in files}
    def harm(learn):
        for o in files:
            if how=='gone': o.unlink()
            else: o.write_bytes(keep[o][:len(keep[o])//2] if how=='cut' else b'no image')
    undo = fault(harm, step=None)
    with pytest.raises(CliError, match=r'(?s)Images that cannot be used.*light.0\.jpg.*Repair'): balmix_train(folder, out=tmp_path/'run', **opts, workers=workers)
    undo()
    whole(tmp_path/'run', 2)
    for o,b in keep.items(): o.write_bytes(b)
    resumed_equals_uninterrupted(folder, tmp_path/'run', workers=workers)

@sources
def test_the_device_is_out_of_memory(folder, tmp_path, fault, partners):
    def full(learn): raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 GiB.')
    undo = fault(full)
    with pytest.raises(CliError, match='(?s)out of memory.*20.00 GiB.*smaller --bs'): balmix_train(folder, out=tmp_path/'run', **opts, partners=partners)
    undo()
    whole(tmp_path/'run', 2)
    resumed_equals_uninterrupted(folder, tmp_path/'run', partners=partners)

@sources
def test_the_learner_goes_on_after_a_fault(partners):
    "A new fit after one that met an error is the fit of a learner that met none"
    x = torch.randn(80, 6)
    def learner():
        set_seed(0)
        dl = [TfmdDL(L(zip(x, torch.arange(80)%4//3)), bs=8, shuffle=s, num_workers=0) for s in (True, False)]
        return quiet(dl, nn.Linear(6, 2), BalancedMixUp(.4, labels=np.arange(80)%4//3, seed=1, partners=partners))
    one,two = learner(),learner()
    def full(learn): raise torch.OutOfMemoryError('no memory')
    with pytest.raises(torch.OutOfMemoryError): one.fit(3, 1e-2, cbs=At(full))
    start = {k: v.clone() for k,v in two.model.state_dict().items()}
    for o in (one, two):
        o.model.load_state_dict(start)
        o.opt = None
        o.balanced_mix_up._n_fits = 0
        set_seed(3)
        o.dls.train.rng.seed(5)
        o.fit(2, 1e-2)
    assert all(torch.equal(v, two.model.state_dict()[k]) for k,v in one.model.state_dict().items()) and len(one.cbs)==len(two.cbs)
    one.validate()
    assert one.balanced_mix_up._pool is None

limited = """
    import resource, sys, warnings
    warnings.filterwarnings('ignore')
    from balmix_fastai.run import Checkpoint
    from balmix_fastai.cli import balmix_train
    write = Checkpoint._write
    def late(self, name, o):
        if len(self.rows)==3 and name==sys.argv[3]: resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]), resource.RLIM_INFINITY))
        write(self, name, o)
    Checkpoint._write = late
    balmix_train(sys.argv[1], out=sys.argv[2], **eval(sys.argv[5]))
"""

@pytest.mark.parametrize('file,limit', [('state.pth',3000), ('best.new.pth',100), ('log.csv',50)])
def test_the_disk_is_full(folder, tmp_path, file, limit):
    "No file may grow beyond a few bytes from the third checkpoint on: a real failure of writing, in a process of its own"
    kw = dict(opts, metric='last')
    res = subprocess.run([sys.executable, '-c', textwrap.dedent(limited), folder, tmp_path/'run', file, str(limit), repr(kw)], capture_output=True, text=True)
    assert res.returncode and f'{file} could not be written' in res.stderr and 'disk full' in res.stderr and '--resume' in res.stderr, res.stderr[-2000:]
    done = 3 if file=='log.csv' else 2
    assert len(read_state(tmp_path/'run/state.pth')['rows'])==done and read_state(tmp_path/'run/best.pth') and not list((tmp_path/'run').glob('*.tmp'))
    resumed_equals_uninterrupted(folder, tmp_path/'run', metric='last')

class Skipping:
    "Items of which some are skipped from the third epoch on, when each has been read two times"
    def __init__(self, skip): self.skip,self.reads = set(skip),np.zeros(60, dtype=int)
    def __len__(self): return 60
    def __getitem__(self, i):
        self.reads[i] += 1
        if i in self.skip and self.reads[i]>2: raise SkipItemException
        return torch.full((3,), float(i)),torch.tensor(int(i>=45))

@sources
def test_items_that_are_skipped_leave_out_their_pair_and_nothing_else(partners):
    ds,seen = Skipping(range(0, 60, 7)),[]
    class Watch(Callback):
        order = 1
        def before_batch(self):
            if self.training: seen.append((self.learn.epoch, self.learn.balanced_mix_up._paired.pairs.copy(), len(self.xb[0])))
    dl = [TfmdDL(ds, bs=8, shuffle=True, num_workers=0), TfmdDL(Skipping([]), bs=8, num_workers=0)]
    learn = quiet(dl, nn.Linear(3, 2), [BalancedMixUp(.4, labels=(np.arange(60)>=45).astype(int), seed=1, partners=partners), Watch()])
    learn.fit(6, 1e-3)
    assert all(len(p)==n for _,p,n in seen)
    last = np.concatenate([p for e,p,_ in seen if e==5])
    assert not set(last[:,0])&ds.skip and len(set(last[:,0]))==len(last) and (partners=='pool' or not set(last[:,1])&ds.skip)
    if partners=='pool': assert set(last[:,0])==set(range(60))-ds.skip # what was loaded before stays a partner

class Half(MixedPrecision):
    "fastai's mixed precision, with autocast and gradient scaling on a CPU"
    order = 10
    def before_fit(self):
        self.autocast,self.learn.scaler,self.scales = torch.autocast('cpu', dtype=torch.bfloat16),torch.amp.GradScaler('cpu', init_scale=2.**10),L()

def half(losses, cb):
    "A learner in half precision whose losses are multiplied by those of the list `losses`, in turn"
    set_seed(0)
    dl = [TfmdDL(L(zip(torch.randn(64, 6), torch.arange(64)%2)), bs=8, shuffle=s, num_workers=0) for s in (True, False)]
    class Times(Callback):
        order = 5
        n = 0
        def after_loss(self):
            if not self.training: return
            self.learn.loss_grad = self.learn.loss_grad*losses[self.n%len(losses)]
            self.learn.loss,self.n = self.learn.loss_grad.clone(),self.n+1
    return quiet(dl, nn.Linear(6, 2), [BalancedMixUp(.4, labels=np.arange(64)%2, seed=1), Times(), Half(), *L(cb)])

@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_single_losses_that_are_no_numbers_are_skipped_in_half_precision(bad):
    "The scaler leaves the weights as they are, and a warning counts the steps"
    learn = half([1,1,bad,1], CheckFinite())
    start = learn.model.weight.detach().clone()
    with pytest.warns(UserWarning, match='2 of 8 steps of epoch 0'): learn.fit(1, 1e-2)
    assert torch.isfinite(learn.model.weight).all() and not torch.equal(start, learn.model.weight)

def test_losses_that_are_never_numbers_end_the_training(tmp_path):
    "The first epoch is good, the second has no number: the checkpoint is that of the first, of finite weights"
    learn = half([1]*8+[np.nan]*8, [CheckFinite(), Checkpoint(tmp_path, 'valid_loss')])
    with pytest.raises(FloatingPointError, match='epoch 1: no loss of its 8 steps'): learn.fit(3, 1e-2)
    state = read_state(tmp_path/'state.pth')
    assert len(state['rows'])==1 and all(torch.isfinite(v).all() for v in state['model'].values())

def test_a_rate_that_is_too_high(folder, tmp_path):
    "In full precision a bad step spoils the weights: the run ends, and says what to do"
    with pytest.raises(CliError, match='(?s)diverged.*Lower the learning rate.*--overwrite'): balmix_train(folder, out=tmp_path/'run', **{**opts, 'lr':'1e30'})
    assert not (tmp_path/'run/metrics.json').exists()
