"Checkpoints, and runs that are resumed, chosen and measured."
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from sklearn.metrics import cohen_kappa_score
from fastai.basics import Callback, CrossEntropyLossFlat, DataLoaders, Learner, ValueMetric, load_learner, noop, nn, set_seed
from fastai.callback.all import ProgressCallback
from torch.utils.data import TensorDataset
from balmix_fastai.data import get_labels, stream_probs
from balmix_fastai.datasets import ImageSet, read_images
from balmix_fastai import run as run_module
from balmix_fastai.losses import EqualizationLoss
from balmix_fastai.checkpoint import read_state, write_state
from balmix_fastai.output import read_predictions, sha256_of
from balmix_fastai.posthoc import load_correction
from balmix_fastai.sampling import class_probs, effective_number_probs, mixup_prior
from balmix_fastai.run import Checkpoint, check_run, make_loss, read_metrics, resample, train_run

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
        n[0] += 'state' in Path(f.name).name
        if n[0]<2: return save(o, f)
        f.write(b'half')
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

def test_effective_number_sampling(digits):
    dls,cbs = resample(digits.dataloaders(), 'effective', seed=0)
    assert np.allclose(stream_probs(dls.train, digits.counts(), get_labels(dls)), effective_number_probs(digits.counts())) and not cbs

@pytest.mark.parametrize('kw,says', [(dict(arch='resnet19'), 'resnet1'), (dict(sampling='x'), 'instance, class'), (dict(loss='x'), 'focal'), (dict(metric='x'), 'mcc'),
    (dict(metric='quadratic_kappa'), 'mcc'), (dict(tta='x'), 'hv'), (dict(augment='x'), 'paper'), (dict(opt='x'), 'sgd'), (dict(schedule='x'), 'plateau'),
    (dict(head='x'), 'linear'), (dict(epochs=0), 'epochs=0'), (dict(epochs=2.5), 'epochs=2.5'), (dict(bs=0), 'bs=0'), (dict(alpha=-.1), 'alpha=-0.1'),
    (dict(alpha=float('nan')), 'alpha=nan'), (dict(mixer='mix'), "mixer='mix'"), (dict(loss='ldam'), 'cosine'), (dict(head='cosine'), 'ldam'), (dict(loss='sord'), 'ordered'),
    (dict(defer=True, loss='class_balanced'), 'defer'), (dict(two_stage='x'), 'two_stage'),
    (dict(two_stage='ncm', posthoc='logit_adjust'), 'use bcts'), (dict(two_stage='tau', posthoc='tau'), 'use bcts'), 
    (dict(posthoc='x'), 'posthoc'), (dict(posthoc='cuts'), 'ordered'), (dict(loss='ldam', head='cosine', two_stage='ncm'), 'linear'),
    (dict(lr=0), 'lr=0'), (dict(lr='fast'), "lr='fast'"), (dict(mom=1), 'mom=1'), (dict(wd=-1), 'wd=-1'),
    (dict(arch='small_cnn', pretrained=True), 'no weights'), (dict(alhpa=.2), 'alhpa'), (dict(data=1), 'data')])
def test_bad_settings(kw, says):
    with pytest.raises(ValueError, match=says): check_run(**kw)

def test_bad_settings_write_nothing(digits, tmp_path):
    for kw in (dict(tta='x'), dict(epochs=0)):
        with pytest.raises(ValueError): train_run(digits, tmp_path/'run', **{'arch':'test_resnet', **kw})
    assert not (tmp_path/'run').exists()

def test_training_learns_what_can_be_learned(tmp_path):
    "Two classes of plain black and white images: all right after a few epochs"
    ims = ImageSet([np.full((8,8), 250*k, np.uint8) for k in [0]*40+[1]*8], [0]*40+[1]*8, ['black','white']).with_valid(.25)
    res = train_run(ims, tmp_path, arch='test_resnet', epochs=4, lr=5e-3, bs=12, size=32, augment='none', tta='none')
    assert res['valid']['balanced_accuracy']==1 and not (tmp_path/'models').exists()

def test_the_chosen_weights_are_the_ones_measured(digits, tmp_path):
    "With the best weights exchanged for ones that give every class the same score, the measured probabilities are all alike"
    kw = dict(arch='test_resnet', epochs=1, lr=5e-3, bs=64, size=32, augment='none', tta='none')
    train_run(digits, tmp_path, **kw)
    best,state = read_state(tmp_path/'best.pth'),read_state(tmp_path/'state.pth')
    write_state(tmp_path/'best.pth', {k: torch.zeros_like(v) if k==list(best)[-1] else v for k,v in best.items()})
    write_state(tmp_path/'state.pth', dict(state, sha256=sha256_of(tmp_path/'best.pth')))
    train_run(digits, tmp_path, resume=True, **kw)
    p = pd.read_csv(tmp_path/'predictions.csv').filter(like='p_')
    assert np.allclose(p, .1)

def small(digits, out, **kw):
    return train_run(digits, out, **{**dict(arch='small_cnn', epochs=2, lr=5e-3, bs=64, size=None, augment='none', tta='none', keep=False, progress=False), **kw})

@pytest.mark.parametrize('kw,want', [
    (dict(alpha=.2), lambda n: mixup_prior(n, .2)), (dict(alpha=0.), class_probs), (dict(mixer='mixup', alpha=.2), class_probs),
    (dict(alpha=0., sampling='class'), lambda n: class_probs(n, 0))])
def test_label_mass_is_the_formula(digits, tmp_path, kw, want):
    assert np.allclose(small(digits, tmp_path, epochs=1, **kw)['label_mass'], want(digits.counts()))

def test_loader_processes_change_nothing(digits, tmp_path):
    "With augmentation, re-sampling and mixing: equal logs and predictions with 0 and 2 workers, and again"
    for out,workers in (('a',0), ('b',2), ('c',0)): small(digits, tmp_path/out, alpha=.2, sampling='sqrt', augment='fastai', seed=3, workers=workers)
    for name in ('log.csv','predictions.csv'):
        a,b,c = (pd.read_csv(tmp_path/o/name) for o in 'abc')
        pd.testing.assert_frame_equal(a, b, check_exact=True)
        pd.testing.assert_frame_equal(a, c, check_exact=True)

def test_runs_repeat_and_seeds_differ(digits, tmp_path):
    res = [small(digits, tmp_path/str(i), mixer='mixup', alpha=.2, seed=s)['test'] for i,s in enumerate((1,1,2))]
    assert res[0]==res[1]!=res[2]

def test_last_is_the_last_epoch(digits, tmp_path):
    "Weights of the last epoch even where an earlier one was better"
    ckpt,learn = Checkpoint(tmp_path, 'last'),tiny(ValueMetric(lambda: -1., 'm'))
    learn.fit(3, 1e-2, cbs=ckpt)
    assert ckpt.best_epoch==2 and torch.equal(torch.load(tmp_path/'best.pth')['weight'], learn.model.weight)

def test_what_is_not_kept_is_gone(digits, tmp_path):
    small(digits, tmp_path)
    assert sorted(o.name for o in tmp_path.iterdir() if o.name!='.lock')==['log.csv','metrics.json','predictions.csv','splits.json.gz']

@pytest.mark.parametrize('kw', [dict(schedule='step'), dict(schedule='plateau'), dict(sampling='deferred', defer=False), dict(loss='equalization', sampling='sqrt'),
    dict(loss='influence_balanced'), dict(loss='ldam', head='cosine', defer=True)], ids=lambda o: '-'.join(map(str, o.values())))
def test_every_part_resumes_exactly(digits, tmp_path, monkeypatch, kw):
    monkeypatch.setitem(run_module._losses, 'equalization', lambda counts: EqualizationLoss(.1)) # digits have no class below the usual .005
    kw = {**dict(alpha=.2, epochs=5, lr=.05, schedule='one_cycle', opt='sgd', mom=.5, metric='mcc'), **kw}
    class Stop(Callback):
        order = 70
        def after_epoch(self):
            if self.epoch==2: raise KeyboardInterrupt
    small(digits, tmp_path/'whole', **kw)
    with pytest.raises(KeyboardInterrupt): small(digits, tmp_path/'cut', cbs=Stop(), **kw)
    small(digits, tmp_path/'cut', resume=True, **kw)
    for name in ('log.csv','predictions.csv'):
        pd.testing.assert_frame_equal(*(pd.read_csv(tmp_path/o/name) for o in ('whole','cut')), check_exact=True)

def test_plateau_ends_early_and_says_so(digits, tmp_path):
    "A learning rate too small to learn with: training ends at the third fall, counted by hand"
    res = small(digits, tmp_path, alpha=0., epochs=40, lr=1e-9, opt='sgd', schedule='plateau', metric='mcc')
    best,bad,falls = -1,0,[]
    for i,v in enumerate(pd.read_csv(tmp_path/'log.csv').mcc):
        best,bad = (v,0) if v>best else (best,bad+1)
        if bad==3:
            bad = 0
            falls.append(i)
    assert len(falls)==3 and res['epochs']==falls[-1]+1<40

def test_class_balanced_loss_against_the_formula():
    n = np.array([5000,100,0,7])
    w = np.where(n>0, (1-.9999)/np.maximum(1-.9999**n, 1e-12), 0)
    loss = make_loss('class_balanced', n)
    x,y = torch.randn(16,4,generator=torch.Generator().manual_seed(0)),torch.tensor([0,1,3,0]*4)
    want = torch.nn.functional.cross_entropy(x, y, weight=torch.tensor(w, dtype=torch.float))
    assert torch.allclose(loss(x, y), want) and loss.func.weight[n>0].mean()==pytest.approx(1)

@pytest.mark.parametrize('kw', [dict(loss='balanced_softmax'), dict(loss='ldam', head='cosine', defer=True, alpha=0.), dict(loss='influence_balanced'), dict(loss='seesaw', mixer='remix', alpha=1.),
    dict(mixer='cutmix', alpha=1.), dict(mixer='manifold'), dict(mixer='unimix', alpha=.8, loss='equalization'), dict(mixer='mamix', alpha=1., defer=True), dict(sampling='deferred', alpha=0.)])
def test_recipes_run_and_repeat(digits, tmp_path, kw):
    "Whole runs by name: a label mass that sums to 1, and the same numbers again"
    a,b = (small(digits, tmp_path/o, **kw) for o in 'ab')
    assert a['test']==b['test'] and np.isclose(sum(a['label_mass']), 1)

def test_second_stages_start_from_the_chosen_weights(digits, tmp_path):
    "Each differs from the first stage and repeats; tau-normalisation and class means need no randomness"
    first = small(digits, tmp_path/'first')['test']
    for o in ('retrain','scale','tau','ncm','disalign','mislas'):
        a,b = (small(digits, tmp_path/f'{o}{i}', two_stage=o)['test'] for i in range(2))
        assert a==b!=first

def test_corrections_are_those_of_the_predictions(digits, tmp_path):
    "From the uncorrected predictions and the saved correction come the corrected ones; the export has it"
    raw = small(digits, tmp_path/'raw')
    probs = lambda o: pd.read_csv(tmp_path/o/'predictions.csv').iloc[:,-10:].values
    for o in ('logit_adjust','tau','temperature','bcts','vector','offsets'):
        res = small(digits, tmp_path/o, posthoc=o, keep=o=='tau')
        c = load_correction(tmp_path/o/'correction.json')
        assert c.vocab==list(map(str, digits.vocab)) and np.allclose(c(probs('raw')), probs(o), atol=1e-5)
        if o=='logit_adjust': assert np.allclose(c.bias, -np.log(mixup_prior(digits.counts(), .2)))
        if o=='temperature': assert res['test']['accuracy']==raw['test']['accuracy']
    assert load_learner(tmp_path/'tau'/'export.pkl').correction.vocab==list(map(str, digits.vocab))

def test_cut_points_decide_and_leave_the_probabilities(digits, tmp_path):
    "Probabilities are the uncorrected ones; decisions, metrics and kappa follow from the expected grade and the saved cuts"
    grades = ImageSet(digits.items, digits.labels, digits.vocab, splits=digits.splits, ordinal=True)
    small(grades, tmp_path/'raw', metric='quadratic_kappa')
    res = small(grades, tmp_path/'cuts', metric='quadratic_kappa', posthoc='cuts')
    raw,cut = (pd.read_csv(tmp_path/o/'predictions.csv') for o in ('raw','cuts'))
    pd.testing.assert_frame_equal(raw.drop(columns='predicted'), cut.drop(columns='predicted'), check_exact=True)
    c = load_correction(tmp_path/'cuts'/'correction.json')
    assert (cut.predicted==(cut.iloc[:,-10:].values@np.arange(10)[:,None]>=c.cuts).sum(1)).mean()>.999 # the saved probabilities are rounded
    for split in ('valid','test'):
        o,before = cut[cut.split==split],raw[raw.split==split]
        kappa,acc = cohen_kappa_score(o.label, o.predicted, weights='quadratic', labels=range(10)),(o.label==o.predicted).mean()
        assert np.isclose(res[split]['quadratic_kappa'], kappa) and np.isclose(res[split]['accuracy'], acc)
        if split=='valid': assert kappa>=cohen_kappa_score(before.label, before.predicted, weights='quadratic', labels=range(10))

def test_a_balanced_softmax_has_nothing_to_adjust(digits, tmp_path):
    "Its predictions are for equal shares already, so logit adjustment changes nothing"
    small(digits, tmp_path/'a', loss='balanced_softmax')
    small(digits, tmp_path/'b', loss='balanced_softmax', posthoc='logit_adjust')
    assert np.allclose(load_correction(tmp_path/'b'/'correction.json').bias, np.log(10), atol=1e-5)

def shades(n_train=(20,12), n_valid=(5,4), vocab=('a','b'), **kw):
    "Two classes of 8 x 8 images that can be told apart"
    rng,y = np.random.default_rng(0),np.concatenate([np.repeat(range(len(o)), o) for o in (n_train, n_valid)])
    imgs = [np.clip(rng.normal(60+80*k, 20, (8,8)), 0, 255).astype(np.uint8) for k in y]
    n = sum(n_train)
    return ImageSet(imgs, y, vocab, splits=dict(train=np.arange(n), valid=np.arange(n, len(y))), **kw)

quick = dict(arch='small_cnn', epochs=1, bs=8, size=None, augment='none', tta='none', progress=False)

def without(ims, i):
    keep = np.delete(np.arange(len(ims)), i)
    place = {o:n for n,o in enumerate(keep)}
    return ImageSet([ims.items[o] for o in keep], ims.labels[keep], ims.vocab, [ims.names[o] for o in keep],
        {k: [place[o] for o in v if o in place] for k,v in ims.splits.items()})

def moved(ims): return ims.with_parts(train=np.r_[ims.splits['train'][1:], ims.splits['valid'][0]], valid=np.r_[ims.splits['train'][0], ims.splits['valid'][1:]])
def relabelled(ims): return ImageSet(ims.items, np.where(np.arange(len(ims))==3, 1, ims.labels), ims.vocab, ims.names, ims.splits)
def repainted(ims): return ImageSet([np.zeros_like(o) if i==2 else o for i,o in enumerate(ims.items)], ims.labels, ims.vocab, ims.names, ims.splits)
def renamed(ims): return ImageSet(ims.items, 1-ims.labels, ims.vocab[::-1], ims.names, ims.splits)
def reordered(ims): return ims.with_parts(train=ims.splits['train'][::-1], valid=ims.splits['valid'])

@pytest.fixture(scope='module')
def begun(tmp_path_factory):
    "A run of one epoch"
    out = tmp_path_factory.mktemp('begun')/'run'
    train_run(shades(), out, **quick)
    return out

@pytest.mark.parametrize('change,says', [(lambda o: without(o, 0), r'1 gone \(train/0\)'), (moved, r'2 in another split \(train/0: train, now valid, valid/0: valid, now train\)'),
    (relabelled, r'1 with another label \(train/3: a, now b\)'), (repainted, r'1 with other pixels \(train/2\)'), (renamed, r'the classes were a, b, now b, a'), (reordered, 'another order')],
    ids=['gone','moved','relabelled','repainted','renamed','reordered'])
def test_other_images_are_not_resumed(begun, change, says):
    before = {o.name: o.stat().st_mtime_ns for o in begun.iterdir()}
    with pytest.raises(ValueError, match=says): train_run(change(shades()), begun, resume=True, **{**quick, 'epochs':2})
    assert {o.name: o.stat().st_mtime_ns for o in begun.iterdir()}==before

def test_new_images_are_not_resumed(tmp_path):
    train_run(without(shades(), 0), tmp_path, **quick)
    with pytest.raises(ValueError, match=r'1 new \(train/0\)'): train_run(shades(), tmp_path, resume=True, **quick)

def test_the_same_images_are_resumed(tmp_path):
    assert train_run(shades(), tmp_path, **quick)['valid']==train_run(shades(), tmp_path, resume=True, **quick)['valid']

def test_a_new_run_takes_nothing_from_an_old_one(tmp_path):
    "Neither its learning rate nor its state: stopped before its first epoch, it has nothing to resume"
    train_run(shades(), tmp_path, **{**quick, 'posthoc':'temperature'})
    (tmp_path/'lr.json').write_text('7.0')
    (tmp_path/'notes.txt').write_text('mine')
    class Stop(Callback):
        def before_train(self): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): train_run(shades((20,10)), tmp_path, cbs=Stop(), **quick)
    assert sorted(o.name for o in tmp_path.iterdir() if o.name!='.lock')==['notes.txt','splits.json.gz']
    assert train_run(shades((20,10)), tmp_path, resume=True, **quick)['lr']==1e-3

odd_names = ['$10_$20', r'\frac{1}', '<b>|#%', 'two\nlines\r', 'NA', 'split', 'p_x', '猫😀', 'x'*300, '_', 'caf\udce9']

@pytest.mark.filterwarnings('ignore:confusion_valid.png:UserWarning')
def test_odd_names_of_classes(tmp_path):
    "All results are written, and predictions come back under the names"
    k = len(odd_names)
    res = train_run(shades([8]*k, [2]*k, odd_names), tmp_path, **quick)
    df = read_predictions(tmp_path/'predictions.csv')
    want = [o.replace('\udce9', r'\xe9') for o in odd_names]
    assert df.label.tolist()==[o for o in want for _ in range(2)] and list(df.columns[4:])==[f'p_{o}' for o in want]
    assert (df.label==df.predicted).mean()==pytest.approx(res['valid']['accuracy'])
    assert {'metrics.json','export.pkl','confusion_valid.png'}<={o.name for o in tmp_path.iterdir()}

def test_a_picture_stops_no_run(tmp_path, monkeypatch):
    def fails(*args): raise RuntimeError('no picture')
    monkeypatch.setattr(run_module, '_plot_confusion', fails)
    with pytest.warns(UserWarning, match='confusion_valid.png could not be drawn'): res = train_run(shades(), tmp_path, **quick)
    assert read_metrics(tmp_path)==res and (tmp_path/'predictions.csv').exists() and (tmp_path/'export.pkl').exists()

three = dict(vocab=('a','b','c'), ordinal=True)

@pytest.mark.parametrize('data,kw,says', [
    (dict(n_train=(20,12,3), n_valid=(5,5,0)), dict(posthoc='bcts'), "posthoc='bcts'.*validation image.*none of c"), (dict(n_train=(20,12,3), n_valid=(5,5,0)), dict(posthoc='vector'), 'none of c'),
    (dict(n_train=(20,12,3), n_valid=(5,0,0)), dict(posthoc='cuts'), 'two grades'), (dict(n_train=(20,12,3), n_valid=(5,0,0)), dict(metric='mcc'), 'single class'),
    (dict(n_train=(0,20,12), n_valid=(0,5,5)), dict(two_stage='ncm'), "two_stage='ncm'.*training image.*none of a"),
    (dict(n_train=(0,20,12), n_valid=(0,5,5)), dict(posthoc='logit_adjust'), 'none of a'), (dict(n_train=(0,20,12), n_valid=(0,5,5)), dict(posthoc='tau'), 'none of a'),
    ({}, dict(arch='resnetv2_18', head='linear', size=32, two_stage='tau'), "two_stage='tau' needs a linear classifier"), ({}, dict(arch='resnetv2_18', head='linear', size=32, two_stage='disalign'), 'linear classifier'),
    ({}, dict(arch='resnetv2_18', head='cosine', loss='ldam', size=32), 'head or network'), ({}, dict(arch='vit_tiny_patch16_224', head='linear', size=32), 'size=32'),
    ({}, dict(arch='convnext_atto', size=16), 'size=16'), ({}, dict(arch='test_resnet', size=32, bs=1), 'bs=1: BatchNorm'), ({}, dict(bs=36), 'bs=36 is more than the 35'),
    ({}, dict(arch='resnet18.nosuch'), 'resnet18.a1_in1k'), ({}, dict(size=0), 'size=0'), ({}, dict(size='32'), "size='32'"), ({}, dict(pretrained='no'), "pretrained='no'"),
    ({}, dict(epochs=True), 'epochs=True'), ({}, dict(seed=-1), 'seed=-1'), ({}, dict(loss=['ce']), 'loss='), ({}, dict(sampling=[.5]), 'sampling='), ({}, dict(alpha='.2'), 'alpha='), ({}, dict(wd='x'), 'wd=')])
def test_refused_before_the_first_epoch(tmp_path, data, kw, says):
    ims = shades(**{**dict(n_train=(20,12,3), n_valid=(5,5,2)), **three, **data})
    class Began(Callback):
        def before_fit(self): raise AssertionError('training has begun')
    with pytest.raises(ValueError, match=says): train_run(ims, tmp_path/'run', cbs=Began(), **{**quick, **kw})
    assert not (tmp_path/'run').exists()

@pytest.mark.parametrize('kw', [dict(posthoc='temperature'), dict(posthoc='offsets'), dict(posthoc='cuts'), dict(two_stage='tau'), dict(two_stage='mislas'), dict(posthoc='logit_adjust', two_stage='retrain')], ids=str)
def test_a_class_without_validation_images_is_not_refused_more_than_it_must(tmp_path, kw):
    res = train_run(shades((20,12,3), (5,5,0), **three), tmp_path, **{**quick, **kw})
    assert 0<=res['valid']['accuracy']<=1 and len(read_predictions(tmp_path/'predictions.csv'))==10

def test_out_that_is_a_file(tmp_path):
    (tmp_path/'run').write_text('mine')
    with pytest.raises(ValueError, match='run is a file'): train_run(shades(), tmp_path/'run', **quick)
    assert (tmp_path/'run').read_text()=='mine'
