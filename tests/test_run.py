"Checkpoints, resumed runs and the comparison of arms."
import numpy as np, pandas as pd, pytest, torch
from fastai.basics import CrossEntropyLossFlat, DataLoaders, Learner, ValueMetric, noop, nn, set_seed
from fastai.callback.all import ProgressCallback
from torch.utils.data import TensorDataset
from balmix_fastai.data import get_labels, stream_probs
from balmix_fastai.datasets import ImageSet, read_images
from balmix_fastai.sampling import class_probs, mixup_prior
from balmix_fastai.study import Checkpoint, arms, check_run, format_summary, resample, run_arm, run_arms, summarise, train_run

@pytest.fixture(scope='module')
def digits(): return read_images('digits')

def tiny(metrics):
    set_seed(0)
    ds = TensorDataset(torch.randn(40, 2), torch.arange(40)%4%3)
    learn = Learner(DataLoaders.from_dsets(ds, ds, bs=8, num_workers=0), nn.Linear(2, 3), loss_func=CrossEntropyLossFlat(), metrics=metrics)
    learn.remove_cb(ProgressCallback).logger = noop
    return learn

@pytest.mark.parametrize('vals,best', [([.1,.3,.2], 1), ([np.nan,.1,np.nan], 1), ([np.nan]*3, 2), ([.2,.2,.1], 0)])
def test_best_weights_are_those_of_the_best_epoch(tmp_path, vals, best):
    "The first of equals; an undefined value never beats a defined one"
    ckpt,seen = Checkpoint(tmp_path, 'm'),[]
    def m():
        seen.append(learn.model.weight.detach().clone())
        return vals[len(seen)-1]
    learn = tiny(ValueMetric(m, 'm'))
    learn.fit(3, 1e-2, cbs=ckpt)
    assert torch.equal(torch.load(tmp_path/'best.pth')['weight'], seen[best]) and ckpt.best_epoch==best

def test_lower_losses_are_better(tmp_path):
    ckpt = Checkpoint(tmp_path, 'valid_loss')
    tiny(None).fit(4, 1e-2, cbs=ckpt)
    assert ckpt.best==pd.read_csv(tmp_path/'log.csv').valid_loss.min()

def test_monitor_must_be_recorded(tmp_path):
    with pytest.raises(ValueError, match='valid_loss'): tiny(None).fit(1, cbs=Checkpoint(tmp_path, 'kappa'))

def test_a_state_is_never_half_written(tmp_path, monkeypatch):
    "An error while the state of epoch 1 is written leaves the state of epoch 0"
    save,n = torch.save,[0]
    def broken(o, f):
        n[0] += 'state' in f.name
        if n[0]<2: return save(o, f)
        f.write_bytes(b'half')
        raise OSError('disk full')
    monkeypatch.setattr(torch, 'save', broken)
    with pytest.raises(OSError, match='disk full'): tiny(None).fit(3, 1e-2, cbs=Checkpoint(tmp_path, 'valid_loss'))
    monkeypatch.undo()
    ckpt,learn = Checkpoint(tmp_path, 'valid_loss'),tiny(None)
    assert ckpt.load(learn)==1
    learn.fit(3, 1e-2, start_epoch=1, cbs=ckpt)
    assert [r['epoch'] for r in ckpt.rows]==[0,1,2]

@pytest.mark.parametrize('sampling,q', [('class',0.), ('sqrt',.5), ('.25',.25), (0.7,.7), ('progressive',1.)])
def test_resample(digits, sampling, q):
    dls,cbs = resample(digits.dataloaders(), sampling, seed=0)
    assert np.allclose(stream_probs(dls.train, digits.counts(), get_labels(dls)), class_probs(digits.counts(), q)) and len(cbs)==(sampling=='progressive')

@pytest.mark.parametrize('kw,says', [(dict(arch='resnet19'), 'resnet1'), (dict(sampling='x'), 'instance, class'), (dict(loss='x'), 'focal'), (dict(metric='x'), 'mcc'),
    (dict(metric='quadratic_kappa'), 'mcc'), (dict(tta='x'), 'hv')])
def test_bad_settings(kw, says):
    with pytest.raises(ValueError, match=says): check_run(**kw)

def test_bad_settings_write_nothing(digits, tmp_path):
    for kw in (dict(tta='x'), dict(epochs=0)):
        with pytest.raises(ValueError): train_run(digits, tmp_path/'run', **{'arch':'test_resnet', **kw})
    assert not (tmp_path/'run').exists()

def test_arms_are_what_they_say(digits):
    "Metrics follow from the recalls on the balanced test part, and the label mass from the formulas"
    n = digits.counts()
    want = dict(zip(arms, [class_probs(n), class_probs(n, 0), class_probs(n), mixup_prior(n, .2)]))
    for name in arms:
        metrics,recall,mass = run_arm(digits, name, 0, epochs=1)
        assert metrics['accuracy']==pytest.approx(recall.mean()) and np.allclose(mass, want[name])

def test_runs_repeat(digits): assert run_arm(digits, 'Balanced-MixUp', 3, epochs=1)[0]==run_arm(digits, 'Balanced-MixUp', 3, epochs=1)[0]

def test_summary_is_mean_and_sd(digits, tmp_path):
    runs,recalls,_ = run_arms(digits, seeds=2, out=tmp_path/'runs.csv', epochs=1)
    s = summarise(runs)
    for name in arms:
        v = runs[runs.arm==name].mcc
        assert s.loc[name, ('mcc','mean')]==pytest.approx(v.mean()) and s.loc[name, ('mcc','sd')]==pytest.approx(np.std(v, ddof=1))
        assert recalls[name].shape==(2,10)
    assert list(s.index)==list(arms)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path/'runs.csv'), runs)
    assert '±' not in format_summary(summarise(runs[runs.seed==0])).iloc[0,0]

def test_training_learns_what_can_be_learned(tmp_path):
    "Two classes of plain black and white images: all right after a few epochs"
    ims = ImageSet([np.full((8,8), 250*k, np.uint8) for k in [0]*40+[1]*8], [0]*40+[1]*8, ['black','white']).with_valid(.25)
    res = train_run(ims, tmp_path, arch='test_resnet', epochs=4, lr=5e-3, bs=12, size=32, augment=False, tta='none')
    assert res['valid']['balanced_accuracy']==1 and not (tmp_path/'models').exists()

def test_the_chosen_weights_are_the_ones_measured(digits, tmp_path):
    "With the best weights exchanged for ones that give every class the same score, the measured probabilities are all alike"
    kw = dict(arch='test_resnet', epochs=1, lr=5e-3, bs=64, size=32, augment=False, tta='none')
    train_run(digits, tmp_path, **kw)
    best = torch.load(tmp_path/'best.pth')
    torch.save({k: torch.zeros_like(v) if k==list(best)[-1] else v for k,v in best.items()}, tmp_path/'best.pth')
    train_run(digits, tmp_path, resume=True, **kw)
    p = pd.read_csv(tmp_path/'predictions.csv').filter(like='p_')
    assert np.allclose(p, .1)
