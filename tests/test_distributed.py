"Two processes on a CPU (gloo), as torchrun starts them and fastai's `distrib_ctx` uses them: shards, partners, gradients, predictions."
import json, os, subprocess, sys
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch, torch.nn.functional as F
from scipy import stats

script = Path(__file__).with_name('two_processes.py')

def start(out, mode, **kwargs):
    "Two processes that write to `out`"
    env = dict(os.environ, ACCELERATE_USE_CPU='true', OMP_NUM_THREADS='1', PYTHONPATH=str(script.parents[1]))
    cmd = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2', script, out, mode, json.dumps(kwargs)]
    return subprocess.run(list(map(str, cmd)), env=env, capture_output=True, text=True, timeout=300)

def launch(out, mode):
    "What each of two processes wrote"
    out.mkdir(exist_ok=True)
    res = start(out, mode)
    assert res.returncode==0, res.stderr[-3000:]
    return [torch.load(out/f'{mode}_{r}.pt', weights_only=False) for r in range(2)]

@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    d = tmp_path_factory.mktemp('ddp')
    return {mode: launch(d, mode) for mode in ('loader','pool','balanced')}

def points():
    "The data of `two_processes.py`"
    rng = np.random.default_rng(0)
    y = rng.permutation(np.repeat([0,1,2], [150,40,11]))
    return torch.tensor(np.array([[0.,0],[2,1],[1,2.5]])[y]+rng.normal(size=(len(y),2)), dtype=torch.float32),y

n,bs,epochs = 201,16,3
mixed = pytest.mark.parametrize('mode', ['loader','pool'])

@mixed
def test_shards_are_disjoint_and_complete(runs, mode):
    "Of the instance side, in each epoch; the one item that rounds 201 up to 202 comes twice, and the last incomplete batch is dropped"
    per = len(runs[mode][0]['pairs'])//epochs
    assert per==(n+1)//2//bs==6
    for e in range(epochs):
        one,two = (np.concatenate(o['pairs'][e*per:(e+1)*per])[:,0] for o in runs[mode])
        both = np.r_[one, two]
        assert len(both)==2*per*bs and len(set(both))>=len(both)-1

@mixed
def test_partners_are_balanced_and_differ(runs, mode):
    "Class frequencies of both processes' partners within z=5 of a third each; partners and strengths differ between processes"
    parts = [np.concatenate(o['pairs'])[:,1] for o in runs[mode]]
    y = runs[mode][0]['y']
    for p in parts:
        k = np.bincount(y[p], minlength=3)
        assert np.abs((k-len(p)/3)/np.sqrt(len(p)*2/9)).max()<5
    assert parts[0].tolist()!=parts[1].tolist()
    lams = [np.array(o['lams']) for o in runs[mode]]
    assert not set(lams[0]) & set(lams[1])
    assert stats.kstest(np.concatenate(lams), stats.beta(.5, 1).cdf).pvalue>1e-4

@mixed
def test_it_repeats(runs, mode, tmp_path):
    for a,b in zip(runs[mode], launch(tmp_path, mode)):
        assert all((p==q).all() for p,q in zip(a['pairs'], b['pairs'])) and a['lams']==b['lams'] and a['losses']==b['losses']

@mixed
def test_training_is_that_of_one_process_on_the_same_pairs(runs, mode):
    "Plain PyTorch: the mean of both processes' gradients, step by step; losses and weights"
    a,b = runs[mode]
    w = [p.clone().requires_grad_() for p in a['start']]
    y = torch.tensor(a['y'])
    for t in range(len(a['pairs'])):
        losses = []
        for o in (a, b):
            pred,lam = F.linear(o['x'][t], *w),o['lams'][t]
            i,j = (y[torch.tensor(k)] for k in o['pairs'][t].T)
            losses.append((1-lam)*F.cross_entropy(pred, i)+lam*F.cross_entropy(pred, j))
            assert float(losses[-1].detach())==pytest.approx(o['losses'][t], abs=1e-5)
        for p,g in zip(w, torch.autograd.grad(sum(losses)/2, w)): p.data -= .1*g
    for p,q,r in zip(w, a['end'], b['end']):
        assert torch.equal(q, r), 'the processes must have the same weights'
        assert torch.allclose(p, q, atol=1e-5)

@pytest.mark.parametrize('mode', ['loader','pool','balanced'])
def test_predictions_are_gathered_in_order(runs, mode):
    a,b = runs[mode]
    x,y = points()
    want = F.linear(x[:77], *a['end']).softmax(1)
    for o in (a, b):
        assert sorted(o['theirs'][:,0].tolist())==sorted(o['preds'][:,0].tolist()) and o['theirs'].tolist()!=o['preds'].tolist() # fastai's own order
        assert torch.allclose(o['preds'], want, atol=1e-5) and o['targs'].tolist()==y[:77].tolist()

@pytest.mark.parametrize('mode', ['loader','balanced'])
def test_metrics_are_those_of_all_predictions(runs, mode):
    from balmix_fastai.metrics import imbalance_metrics
    a,_ = runs[mode]
    want,got = imbalance_metrics(a['preds'], a['targs']),dict(zip(a['names'][2:], a['values']))
    for k in ('balanced_accuracy','macro_f1','mcc','macro_auroc'): assert got[k]==pytest.approx(want[k], abs=1e-5), k
    assert got['accuracy']==pytest.approx(want['accuracy'], abs=1/78) # fastai's own averages over processes, the padding included

def test_a_resampled_loader_is_shared_out(runs):
    "The processes' shares of one class-balanced draw: frequencies of the points, which tell their class, within z=5"
    xs = torch.cat([torch.cat(o['x']) for o in runs['balanced']])
    x,y = points()
    at = torch.cdist(xs, x).argmin(1)
    k = np.bincount(y[at], minlength=3)
    assert np.abs((k-len(at)/3)/np.sqrt(len(at)*2/9)).max()<5

@pytest.mark.parametrize('n,bs,world', [(77,16,2), (10,2,2), (5,4,3), (64,8,4), (7,64,2)])
def test_the_order_of_gathering(n, bs, world):
    "A permutation; each process's items stay in their order"
    from balmix_fastai.tta import _gathered
    idxs = _gathered(n, bs, world)
    assert sorted(idxs)==list(range(n))
    per = -(-n//world)
    for r in range(world): assert (np.diff(idxs[idxs//per==r])>0).all()

@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    "balmix-train in two processes, at once and stopped and resumed"
    d,kw = tmp_path_factory.mktemp('train'),dict(epochs=3, seed=4, sampling='sqrt', partners='pool', posthoc='bcts', two_stage='tau', workers=1)
    for name,how in (('whole',{}), ('parts',dict(stop=0)), ('parts',dict(resume=True))):
        res = start(d/name, 'train', **kw, **how)
        assert (res.returncode!=0)==('stop' in how), res.stderr[-3000:]
        if 'stop' in how: assert 'go on with the same command and --resume' in res.stderr and not (d/name/'metrics.json').exists()
    return d,kw

def test_balmix_train_goes_on_exactly(trained):
    "Logs, predictions and metrics of the run that was interrupted, to the last digit"
    d,_ = trained
    a,b = (pd.read_csv(d/o/'log.csv') for o in ('whole','parts'))
    assert a.equals(b) and len(a)==3
    assert pd.read_csv(d/'whole/predictions.csv').equals(pd.read_csv(d/'parts/predictions.csv'))
    one,two = (json.loads((d/o/'metrics.json').read_text()) for o in ('whole','parts'))
    assert one['test']==two['test'] and one['test']['balanced_accuracy']>.3 # of ten classes

def test_balmix_train_leaves_what_one_process_leaves(trained):
    "The exported learner, in a process alone, gives the predictions that were written, in their order"
    from fastai.basics import load_learner
    from balmix_fastai.datasets import read_images
    from balmix_fastai.tta import Learner
    d,kw = trained
    ims,learn = read_images('digits'),load_learner(d/'whole/export.pkl')
    df = pd.read_csv(d/'whole/predictions.csv')
    probs,_ = Learner.flip_tta(learn, dl=ims.test_dl(learn.dls), axes='none')
    want = df[df.split=='test'].filter(like='p_').values
    assert np.allclose(probs, want, atol=1e-5) # by the correction that came with it
    assert not list(d.glob('*/*.tmp')) and not any('module.' in k for k in torch.load(d/'whole/best.pth'))

def test_a_run_of_two_processes_is_not_resumed_by_one(trained):
    from fastcore.script import CliError
    from balmix_fastai.cli import balmix_train
    d,kw = trained
    (d/'whole/metrics.json').unlink()
    with pytest.raises(CliError, match='of 2 processes, and there are 1 now'):
        balmix_train('digits', out=str(d/'whole'), arch='small_cnn', size=8, augment='fastai', tta='none', bs=32, lr='0.005', resume=True, **kw)
