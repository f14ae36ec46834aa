"balmix-demo and balmix-train: real runs on small images, what they write, what they refuse, and being killed."
import json, os, signal, subprocess, sys, time
import numpy as np, pandas as pd, pytest, sklearn.metrics as skm
from fastai.basics import load_learner
from fastcore.script import CliError
from PIL import Image
from balmix_fastai.cli import balmix_bench, balmix_demo, balmix_study, balmix_train
from balmix_fastai.output import read_predictions
from balmix_fastai.run import read_metrics

fast = dict(arch='test_resnet', epochs=2, size=32, bs=8, lr='0.005', augment='none', tta='none')
study_files = 'classes.png figure.png pairs.csv recalls.csv report.md results.json runs.csv summary.csv'.split()
written = 'best.pth config.json confusion_valid.png export.pkl log.csv metrics.json predictions.csv splits.json.gz state.pth'.split()

def picture(path, k, rng):
    "A noisy image whose class `k` can be seen in its brightness"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(rng.normal(60+60*k, 20, (24,24,3)), 0, 255).astype(np.uint8)).save(path)

@pytest.fixture
def folder(tmp_path):
    "train/<class> with 20, 10 and 5 images, test/<class> with 4 each"
    rng = np.random.default_rng(0)
    for k,(name,n) in enumerate(dict(bright=20, dim=10, dark=5).items()):
        for i in range(n): picture(tmp_path/'imgs'/'train'/name/f'{i}.png', k, rng)
        for i in range(4): picture(tmp_path/'imgs'/'test'/name/f'{i}.png', k, rng)
    return tmp_path/'imgs'

@pytest.fixture
def csv(tmp_path):
    "30 images in a folder beside a CSV with the columns image, age, grade, valid"
    rng = np.random.default_rng(0)
    rows = [(f'{i}.png', 40+i, i%3, i>=21) for i in range(30)]
    for name,_,k,_ in rows: picture(tmp_path/'eyes'/name, k, rng)
    pd.DataFrame(rows, columns=['image','age','grade','valid']).to_csv(tmp_path/'eyes.csv', index=False)
    return tmp_path/'eyes.csv'

def edit(csv, f):
    df = pd.read_csv(csv, dtype=object)
    f(df)
    df.to_csv(csv, index=False)

def command(name): return os.path.join(os.path.dirname(sys.executable), name)

def files(d): return sorted(o.name for o in d.iterdir() if o.is_file() and o.name!='.lock')

def test_folder_writes_all_and_metrics_follow_from_predictions(folder, tmp_path):
    res = balmix_train(folder, out=tmp_path/'run', **fast)
    assert files(tmp_path/'run')==sorted([*written, 'confusion_test.png'])
    df = pd.read_csv(tmp_path/'run'/'predictions.csv')
    assert df.groupby('split').size().to_dict()==dict(test=12, valid=7)
    for split in ('valid','test'):
        d = df[df.split==split]
        assert np.allclose(d[['p_bright','p_dark','p_dim']].sum(axis=1), 1, atol=1e-5)
        assert res[split]['accuracy']==pytest.approx(skm.accuracy_score(d.label, d.predicted))
        assert res[split]['balanced_accuracy']==pytest.approx(skm.balanced_accuracy_score(d.label, d.predicted))
        assert res[split]['mcc']==pytest.approx(skm.matthews_corrcoef(d.label, d.predicted))
    log = pd.read_csv(tmp_path/'run'/'log.csv')
    assert list(log.epoch)==[0,1] and res['best_epoch']==log.balanced_accuracy.argmax()
    assert read_metrics(tmp_path/'run')==res

def test_exported_learner_predicts_what_was_written(folder, tmp_path):
    balmix_train(folder, out=tmp_path/'run', **fast)
    learn = load_learner(tmp_path/'run'/'export.pkl')
    df = pd.read_csv(tmp_path/'run'/'predictions.csv').query("split=='test'")
    dl = learn.dls.test_dl([(folder/o if (folder/o).exists() else o,) for o in df.name], num_workers=0)
    with learn.no_bar(): probs = learn.get_preds(dl=dl)[0]
    assert np.allclose(probs, df[[f'p_{o}' for o in learn.dls.vocab]], atol=1e-5)

def test_csv_with_its_own_split(csv, tmp_path):
    balmix_train(csv, images=tmp_path/'eyes', label='grade', valid_col='valid', ordinal=True, sampling='progressive', out=tmp_path/'run', **fast)
    df = pd.read_csv(tmp_path/'run'/'predictions.csv')
    assert list(df.name)==[f'{i}.png' for i in range(21,30)] and list(df.label)==[i%3 for i in range(21,30)]
    assert {'quadratic_kappa','kendall_tau'} <= set(pd.read_csv(tmp_path/'run'/'log.csv').columns)

def test_folds_predict_every_training_image_once(folder, tmp_path):
    res = balmix_train(folder, folds=3, out=tmp_path/'run', **{**fast, 'epochs':1})
    df = pd.read_csv(tmp_path/'run'/'predictions.csv')
    v = df[df.split=='valid']
    assert len(v)==35 and v.name.is_unique and v.groupby('fold').label.nunique().eq(3).all()
    accs = [(d.label==d.predicted).mean() for _,d in v.groupby('fold')]
    assert res['valid']['median']['accuracy']==pytest.approx(np.median(accs)) and res['valid']['sd']['accuracy']==pytest.approx(np.std(accs, ddof=1))

def test_retinamnist(data_dir, tmp_path):
    res = balmix_train(data_dir/'retinamnist.npz', out=tmp_path/'run', **{**fast, 'epochs':1, 'bs':64})
    df = pd.read_csv(tmp_path/'run'/'predictions.csv')
    assert df.groupby(['split','label']).size().unstack().loc['test'].tolist()==[174,46,92,68,20]
    assert 'quadratic_kappa' in res['test']

def test_options_reach_the_run(folder, tmp_path):
    balmix_train(folder, out=tmp_path/'a', alpha=0, loss='focal', sampling='0.3', **fast)
    balmix_train(folder, out=tmp_path/'b', alpha=.2, **{**fast, 'lr':'find', 'tta':'hv'})
    assert not hasattr(load_learner(tmp_path/'a'/'export.pkl'), 'balanced_mix_up')
    learn = load_learner(tmp_path/'b'/'export.pkl')
    assert learn.balanced_mix_up.alpha==.2 and abs(learn.balanced_mix_up.prior.sum()-1)<1e-9
    assert read_metrics(tmp_path/'b')['lr']==json.loads((tmp_path/'b'/'lr.json').read_text())['lr']

@pytest.mark.parametrize('kw,says', [
    (dict(arch='mobilnet_v2'), 'mobilnet_v2'), (dict(alpha=-1.), 'alpha=-1'), (dict(alpha=float('nan')), 'alpha=nan'), (dict(mixer='x'), "mixer='x'"), (dict(sampling='often'), 'often'),
    (dict(loss='mse'), 'mse'), (dict(epochs=0), 'epochs=0'), (dict(lr='fast'), 'lr='), (dict(lr='-1'), 'lr='), (dict(lr='0'), 'lr='), (dict(lr='nan'), 'lr='), (dict(sampling='nan'), 'nan'), (dict(metric='kappa'), 'kappa'),
    (dict(augment='x'), 'augment='), (dict(schedule='x'), 'plateau'), (dict(folds=1), '--folds'), (dict(bs=64), '--bs'),
    (dict(valid_pct=1.), '--valid-pct'), (dict(valid_pct=.3, folds=2), 'no effect'), (dict(seed=-1), '--seed'), (dict(tta='x'), 'tta='), (dict(images='x'), '--images'),
    (dict(resume=True, overwrite=True), 'exclude'), (dict(resume=True), 'holds no run')])
def test_bad_options(folder, tmp_path, kw, says):
    with pytest.raises(CliError, match=says): balmix_train(folder, out=tmp_path/'run', **{**fast, **kw})
    assert not (tmp_path/'run').exists()

def bad_csv(csv, tmp_path, f, says, **kw):
    f(csv)
    with pytest.raises(CliError, match=says): balmix_train(csv, images=tmp_path/'eyes', label='grade', out=tmp_path/'run', **{**fast, **kw})
    assert not (tmp_path/'run').exists()

def test_missing_image(csv, tmp_path): bad_csv(csv, tmp_path, lambda o: (tmp_path/'eyes'/'4.png').unlink(), r'4\.png')

def test_unreadable_image(csv, tmp_path):
    img = tmp_path/'eyes'/'4.png'
    bad_csv(csv, tmp_path, lambda o: img.write_bytes(img.read_bytes()[:200]), r'4\.png')

def test_missing_label(csv, tmp_path): bad_csv(csv, tmp_path, lambda o: edit(o, lambda df: df.__setitem__('grade', df.grade.where(df.index!=5))), r'\b7\b')

def test_label_unseen_in_training(csv, tmp_path):
    bad_csv(csv, tmp_path, lambda o: edit(o, lambda df: df.__setitem__('grade', df.grade.where(df.index!=25, '9'))), '9', valid_col='valid')

def test_no_such_data(tmp_path):
    with pytest.raises(CliError, match='nowhere'): balmix_train(tmp_path/'nowhere', out=tmp_path/'run', **fast)

def test_output_folders_are_respected(folder, tmp_path):
    out = tmp_path/'thesis'
    out.mkdir()
    (out/'chapter1.txt').write_text('mine')
    for kw in ({}, dict(overwrite=True)):
        with pytest.raises(CliError, match='not a run of balmix-train'): balmix_train(folder, out=out, **fast, **kw)
    assert files(out)==['chapter1.txt']
    run = tmp_path/'run'
    balmix_train(folder, out=run, **{**fast, 'epochs':1})
    (run/'notes.txt').write_text('mine')
    with pytest.raises(CliError, match='--overwrite'): balmix_train(folder, out=run, **fast)
    with pytest.raises(CliError, match='epochs 2, was 1'): balmix_train(folder, out=run, resume=True, **fast)
    assert len(pd.read_csv(run/'log.csv'))==1
    balmix_train(folder, out=run, overwrite=True, **fast)
    assert len(pd.read_csv(run/'log.csv'))==2 and (run/'notes.txt').read_text()=='mine'

def test_killed_and_resumed_equals_uninterrupted(folder, tmp_path):
    args = '--arch test_resnet --epochs 12 --size 32 --bs 8 --lr 0.005 --tta none --sampling sqrt --seed 3'.split()
    def start(out, *more):
        cmd = [command('balmix-train'), str(folder), *args, '--out', str(tmp_path/out), *more]
        return subprocess.Popen(cmd, stdout=open(tmp_path/f'{out}.txt', 'a'), stderr=subprocess.STDOUT)
    whole,cut = start('whole'),start('cut')
    state = tmp_path/'cut'/'log.csv'
    while cut.poll() is None and not state.exists(): time.sleep(.02)
    cut.send_signal(signal.SIGKILL)
    cut.wait()
    done = len(pd.read_csv(tmp_path/'cut'/'log.csv'))
    assert 1<=done<12 and not (tmp_path/'cut'/'metrics.json').exists()
    assert whole.wait()==0, (tmp_path/'whole.txt').read_text()
    again = start('cut', '--resume')
    assert again.wait()==0, (tmp_path/'cut.txt').read_text()
    a,b = (pd.read_csv(tmp_path/o/'log.csv') for o in ('whole','cut'))
    pd.testing.assert_frame_equal(a, b)
    pd.testing.assert_frame_equal(*(pd.read_csv(tmp_path/o/'predictions.csv') for o in ('whole','cut')))

def test_resuming_folds_keeps_what_is_done(folder, tmp_path):
    "Stopped between the last epoch of a fold and its predictions: the done fold is left alone, the other is only predicted"
    kw = dict(folds=2, out=tmp_path/'run', **{**fast, 'epochs':1})
    whole = balmix_train(folder, **kw)
    first,weights = tmp_path/'run'/'fold0'/'metrics.json',(tmp_path/'run'/'fold1'/'best.pth').read_bytes()
    before = first.stat().st_mtime_ns
    for o in ('fold1/metrics.json','fold1/predictions.csv','metrics.json'): (tmp_path/'run'/o).unlink()
    again = balmix_train(folder, resume=True, **kw)
    assert first.stat().st_mtime_ns==before and (tmp_path/'run'/'fold1'/'best.pth').read_bytes()==weights
    for k in ('mean','sd','median'): assert again['valid'][k]==pytest.approx(whole['valid'][k])

def test_demo_writes_what_it_prints(tmp_path, capsys):
    balmix_demo(epochs=1, seeds=2, out=tmp_path/'demo')
    runs,out = pd.read_csv(tmp_path/'demo'/'runs.csv'),capsys.readouterr().out
    assert files(tmp_path/'demo')==study_files and len(runs)==8
    r = runs[runs.arm=='Balanced-MixUp'].mcc
    assert f'{100*r.mean():.1f} ± {100*r.std(ddof=1):.1f}' in out
    assert runs.groupby('arm').mcc.nunique().eq(2).all()
    balmix_demo(epochs=2, seeds=1, out=tmp_path/'demo')
    assert len(pd.read_csv(tmp_path/'demo'/'runs.csv'))==4

def test_demo_of_a_folder(folder, tmp_path):
    balmix_demo(folder, epochs=1, seeds=1, out=tmp_path/'demo')
    assert len(pd.read_csv(tmp_path/'demo'/'runs.csv'))==4

def test_demo_refuses(tmp_path):
    with pytest.raises(CliError, match='--seeds'): balmix_demo(seeds=0, out=tmp_path/'demo')
    with pytest.raises(CliError, match='nothing_here'): balmix_demo('nothing_here', out=tmp_path/'demo')

quick = dict(arms='instance, Balanced-MixUp .2', seeds=2, set='epochs=2')

def test_study_reports_what_it_ran(tmp_path, capsys):
    res = balmix_study('digits', out=tmp_path/'s', **quick)
    assert files(tmp_path/'s')==sorted([*study_files, 'predictions.npz']) and len(res.runs)==4
    r = pd.read_csv(tmp_path/'s'/'runs.csv').query("arm=='instance'").balanced_accuracy
    assert f'{100*r.mean():.1f} ± {100*r.std(ddof=1):.1f}' in capsys.readouterr().out
    for run in (tmp_path/'s'/'runs').iterdir(): assert len(pd.read_csv(run/'log.csv'))==2

def test_study_tells_of_failed_runs_and_does_the_others(tmp_path, monkeypatch):
    import balmix_fastai.study as st
    train = st.train_run
    def fails(data, out, alpha, seed, **kw):
        if alpha and seed: raise RuntimeError('out of memory')
        return train(data, out, alpha=alpha, seed=seed, **kw)
    monkeypatch.setattr(st, 'train_run', fails)
    with pytest.raises(CliError, match=r'Balanced-MixUp .2, seed 1, fold 0: RuntimeError: out of memory'): balmix_study('digits', out=tmp_path/'s', **quick)
    assert len(pd.read_csv(tmp_path/'s'/'runs.csv'))==3
    monkeypatch.undo()
    balmix_study('digits', out=tmp_path/'s', **quick)
    assert len(pd.read_csv(tmp_path/'s'/'runs.csv'))==4 and not list((tmp_path/'s').rglob('error.txt'))

@pytest.mark.parametrize('kw,says', [(dict(study='x'), 'bundled'), (dict(arms='x'), 'is not an arm'), (dict(set='epochs'), 'key=value'), (dict(set='lr=-1'), 'lr=-1'),
    (dict(jobs=0), 'jobs=0'), (dict(data='x'), 'no use'), (dict(study='cifar10-lt'), 'path of your copy'), (dict(report=True), 'no finished run'), (dict(seeds=0), 'seeds')])
def test_study_refuses(tmp_path, kw, says):
    with pytest.raises(CliError, match=says): balmix_study(**{**dict(study='digits', out=tmp_path/'s'), **kw})
    assert not (tmp_path/'s').exists()

@pytest.mark.parametrize('cmd', ['balmix-demo','balmix-train','balmix-study'])
def test_help(cmd):
    out = subprocess.run([command(cmd), '--help'], capture_output=True, text=True)
    assert out.returncode==0 and '--seed' in out.stdout

# Reading

once = {**fast, 'epochs':1}

def _tell(tmp_path, capsys, data, **kw):
    "What the command says first, and the predictions it writes"
    balmix_train(data, out=tmp_path/'run', **{**once, **kw})
    return capsys.readouterr().out,pd.read_csv(tmp_path/'run'/'predictions.csv', dtype=str, keep_default_na=False)

def test_a_column_of_splits_is_read_and_said(csv, tmp_path, capsys):
    edit(csv, lambda df: df.__setitem__('split', ['Training']*18 + ['val']*6 + ['Testing']*6))
    edit(csv, lambda df: df.pop('valid'))
    out,df = _tell(tmp_path, capsys, csv, images=tmp_path/'eyes')
    assert df.groupby('split').name.apply(list).to_dict()==dict(valid=[f'{i}.png' for i in range(18, 24)],
        test=[f'{i}.png' for i in range(24, 30)])
    first = out.splitlines()[:6]
    assert first[:4]==['3 classes: 0, 1, 2', 'train 18 images (6/6/6)', 'valid 6 images (2/2/2)', 'test 6 images (2/2/2)']
    assert first[4]=='image size 24x24 pixels, mode RGB'
    assert first[5]=="columns: image 'image'; label 'grade'; split 'split'; not used: 'age'"

def test_names_of_splits_in_folders_and_what_is_left_out_are_said(folder, tmp_path, capsys):
    (folder/'train').rename(folder/'Training')
    (folder/'test').rename(folder/'Testing')
    (folder/'unlabeled').mkdir()
    (folder/'Training/dim/notes.txt').write_text('x')
    out,df = _tell(tmp_path, capsys, folder)
    assert df.groupby('split').size().to_dict()==dict(test=12, valid=7)
    assert all(o in out for o in ('3 classes: bright, dark, dim', 'train 28 images (16/4/8)',
        'train from Training/, test from Testing/', 'folders left out: unlabeled/', 'left out: 1 .txt'))

def test_order_of_named_grades(folder, csv, tmp_path, capsys):
    _,df = _tell(tmp_path, capsys, folder, order='dark, dim, bright')
    assert list(df.columns[4:])==['p_dark', 'p_dim', 'p_bright']
    assert 'quadratic_kappa' in json.loads((tmp_path/'run/metrics.json').read_text())['test']
    with pytest.raises(CliError, match="vocab does not have: dim"): balmix_train(folder, order='dark,bright', out=tmp_path/'no', **once)
    with pytest.raises(CliError, match='ordinal=True needs the order'): balmix_train(folder, ordinal=True, out=tmp_path/'no', **once)
    for bad in ('dark', 'dark,,dim', '"dark,dim'):
        with pytest.raises(CliError, match='--order'): balmix_train(folder, order=bad, out=tmp_path/'no', **once)
    with pytest.raises(CliError, match='--order does not apply to digits'): balmix_train('digits', order='a,b', out=tmp_path/'no', **once)
    edit(csv, lambda df: df.__setitem__('grade', [['none', 'mild, early', 'late'][int(o)] for o in df.grade]))
    balmix_train(csv, images=tmp_path/'eyes', order='none,"mild, early",late', out=tmp_path/'c', **once)
    assert list(pd.read_csv(tmp_path/'c/predictions.csv').columns[4:])==['p_none', 'p_mild, early', 'p_late']

def test_order_names_the_classes_of_an_archive(tmp_path, capsys):
    rng = np.random.default_rng(0)
    np.savez(tmp_path/'a.npz', train_images=rng.integers(0, 256, (40,8,8), dtype=np.uint8), train_labels=np.arange(40)%2)
    out,df = _tell(tmp_path, capsys, tmp_path/'a.npz', order='well,ill')
    assert '2 ordered classes: well, ill' in out and set(df.label)=={'well', 'ill'}

def test_image_column_and_ending(csv, tmp_path, capsys):
    edit(csv, lambda df: df.insert(0, 'lesion', [f'L{i//2}' for i in range(30)]))
    edit(csv, lambda df: df.insert(3, 'scan', [o[:-4] for o in df.pop('image')]))
    kw = dict(images=tmp_path/'eyes', image='scan', label='grade', group='lesion', valid_pct=.3)
    out,df = _tell(tmp_path, capsys, csv, suffix='png', **kw)
    assert "image 'scan'; label 'grade'; group 'lesion'; not used: 'age', 'valid'" in out and 'ending added to names: .png' in out
    with pytest.raises(CliError, match=r"missing below .*--suffix"): balmix_train(csv, suffix='.tif', out=tmp_path/'no', **kw, **once)

@pytest.mark.parametrize('kw,says', [(dict(label=None), "'image', 'age', 'kind', 'valid'.*--label"),
    (dict(split='age'), "row 2 has '40'"), (dict(image='no'), "image_col='no' is not a column"), (dict(window='1'), 'window='),
    (dict(window='9,3'), 'window='), (dict(window='0,99'), '8 bits per pixel'),
    (dict(valid_col='valid', split='valid'), 'both make splits|must differ')])
def test_reading_options_that_are_refused(csv, tmp_path, kw, says):
    csv.write_text(csv.read_text().replace('grade', 'kind', 1))
    with pytest.raises(CliError, match=says):
        balmix_train(csv, images=tmp_path/'eyes', out=tmp_path/'run', **{**dict(label='kind'), **once, **kw})
    assert not (tmp_path/'run').exists()

@pytest.mark.parametrize('opt', ['image', 'suffix', 'label', 'split', 'valid_col', 'group'])
def test_options_of_csvs_are_refused_for_folders(folder, tmp_path, opt):
    with pytest.raises(CliError, match=f"--{opt.replace('_', '-')}"): balmix_train(folder, out=tmp_path/'run', **{**once, opt:'x'})

def test_sixteen_bits_are_refused_or_scaled(folder, tmp_path, capsys):
    for f in folder.rglob('*.png'): Image.fromarray(np.asarray(Image.open(f))[...,0].astype(np.uint16)*200).save(f)
    with pytest.raises(CliError, match=r'mode I;16.*--window'): balmix_train(folder, out=tmp_path/'run', **once)
    assert not (tmp_path/'run').exists()
    out,df = _tell(tmp_path, capsys, folder, window='0,51000', epochs=2, alpha=0.)
    assert 'mode I;16' in out and len(df)==19

def test_a_tab_separated_file(csv, tmp_path, capsys):
    tsv = tmp_path/'eyes.tsv'
    tsv.write_text(csv.read_text().replace(',', '\t'))
    out,_ = _tell(tmp_path, capsys, tsv, images=tmp_path/'eyes', valid_col='valid')
    assert "label 'grade'" in out and 'train 21 images (7/7/7)' in out

# Runs

tiny = dict(arch='small_cnn', epochs=1, size=8, bs=4, lr='0.005', augment='none', tta='none')

@pytest.fixture
def grades(tmp_path):
    "Class folders called None, 01 and 02 with 12, 8 and 8 images"
    rng = np.random.default_rng(0)
    for k,(name,n) in enumerate({'None':12, '01':8, '02':8}.items()):
        for i in range(n): picture(tmp_path/'g'/name/f'{i}.png', k, rng)
    return tmp_path/'g'

def test_labels_stay_text_in_the_predictions_of_all_folds(grades, tmp_path):
    balmix_train(grades, folds=2, out=tmp_path/'run', **tiny)
    parts = [read_predictions(tmp_path/'run'/f'fold{i}'/'predictions.csv') for i in range(2)]
    both = read_predictions(tmp_path/'run'/'predictions.csv')
    assert both.label.value_counts().to_dict()=={'None':12, '01':8, '02':8} and all(o.name.startswith(o.label+'/') for o in both.itertuples())
    pd.testing.assert_frame_equal(both.drop(columns='fold'), pd.concat(parts, ignore_index=True))

def test_folds_are_not_gone_on_with_on_other_images(grades, tmp_path, monkeypatch):
    import balmix_fastai.cli as cli
    own,n = cli.train_run,[0]
    def second(*args, **kwargs):
        n[0] += 1
        if n[0]==2: raise KeyboardInterrupt
        return own(*args, **kwargs)
    monkeypatch.setattr(cli, 'train_run', second)
    with pytest.raises(CliError, match='finished epochs are saved'): balmix_train(grades, folds=2, out=tmp_path/'run', **tiny)
    monkeypatch.undo()
    (grades/'None'/'8.png').rename(tmp_path/'8.png')
    with pytest.raises(CliError, match=r'1 gone \(None/8.png\)'): balmix_train(grades, folds=2, out=tmp_path/'run', resume=True, **tiny)
    assert not (tmp_path/'run'/'fold1').exists()
    (tmp_path/'8.png').rename(grades/'None'/'8.png')
    balmix_train(grades, folds=2, out=tmp_path/'run', resume=True, **tiny)
    assert read_predictions(tmp_path/'run'/'predictions.csv').name.is_unique

@pytest.mark.parametrize('stop,says', [(KeyboardInterrupt(), 'Stopped. No epoch was finished'), (OSError('the weights could not be loaded'), 'could not be loaded No epoch was finished'),
    (RuntimeError('DataLoader worker (pid 1) is killed'), 'No epoch was finished'), (FloatingPointError('diverged'), 'diverged')], ids=lambda o: type(o).__name__)
def test_after_a_run_that_never_began_the_corrected_command_works(grades, tmp_path, monkeypatch, stop, says):
    import balmix_fastai.run as run
    def fails(*args, **kwargs): raise stop
    for k in ('make_learner','fit_schedule'): # before and after the folder is made
        monkeypatch.setattr(run, k, fails)
        with pytest.raises(CliError, match=says): balmix_train(grades, out=tmp_path/k, **{**tiny, 'lr':'0.1'})
        monkeypatch.undo()
        assert balmix_train(grades, out=tmp_path/k, **tiny)['lr']==.005

def test_weights_without_a_network(grades, tmp_path, monkeypatch):
    import timm
    def offline(*args, **kwargs): raise ConnectionError('offline')
    monkeypatch.setattr(timm, 'create_model', lambda *args, pretrained=False, f=timm.create_model, **kw: offline() if pretrained else f(*args, **kw))
    with pytest.raises(CliError, match='the weights of test_resnet could not be loaded .*offline.* No epoch was finished') as e:
        balmix_train(grades, out=tmp_path/'run', **{**tiny, 'arch':'test_resnet', 'size':32, 'pretrained':True})
    assert '--resume' not in str(e.value)

@pytest.mark.parametrize('f', [lambda o: balmix_train('digits', out=o, **tiny), lambda o: balmix_study('digits', out=o), lambda o: balmix_demo(out=o),
    lambda o: balmix_bench(out=o)], ids=['train','study','demo','bench'])
def test_out_that_is_a_file(tmp_path, f):
    (tmp_path/'mine').write_text('mine')
    for o in ('mine','mine/below'):
        with pytest.raises(CliError, match='--out=.*mine is a file'): f(tmp_path/o)
    assert (tmp_path/'mine').read_text()=='mine'

def test_what_can_be_known_is_refused_before_training(grades, tmp_path):
    for kw,says in ((dict(arch='vit_tiny_patch16_224', head='linear'), 'size=8'), (dict(arch='test_resnet', size=32, bs=1), 'bs=1'), (dict(arch='resnet18.nosuch'), 'resnet18.a1_in1k'),
        (dict(arch='resnetv2_18', head='linear', size=32, two_stage='disalign'), 'linear classifier'), (dict(valid_pct=.05, posthoc='bcts'), 'validation image')):
        with pytest.raises(CliError, match=says): balmix_train(grades, out=tmp_path/'run', **{**tiny, **kw})
        assert not (tmp_path/'run').exists()

@pytest.mark.parametrize('text,want', [('epochs=1, lr=1e-3', dict(epochs=1, lr=1e-3)), ('arch=resnet8', dict(arch='resnet8')), ('classes=[a, b], ratio=2', dict(classes=['a','b'], ratio=2)), ('size=null', dict(size=None)),
    ('pretrained=yes,wd=.1', dict(pretrained=True, wd=.1)), ('title=a, b, epochs=2', dict(title='a, b', epochs=2)), (None, {}), ('epochs=1,', dict(epochs=1))])
def test_settings_of_the_command_line(monkeypatch, text, want):
    import balmix_fastai.cli as cli
    seen = {}
    def spy(study, data, arms, seeds, data_args, **protocol):
        seen.update(data_args=data_args, protocol=protocol)
        raise ValueError('enough')
    monkeypatch.setattr(cli, 'read_study', spy)
    for k,o in (('set','protocol'), ('data_args','data_args')):
        with pytest.raises(CliError, match='enough'): balmix_study('digits', **{k: text})
        assert seen[o]==want

@pytest.mark.parametrize('kw,says', [(dict(set='epochs=1, epochs=2'), 'twice'), (dict(set='lr='), 'key=value'), (dict(set='=1'), 'key=value'), (dict(set='lr=[1'), '--set'), (dict(set='data=x'), 'use --data'), (dict(set='seed=1'), "'seed' is not an option"),
    (dict(set='pretrained=maybe'), "pretrained='maybe'"), (dict(data_args='ratio'), 'key=value'), (dict(study='isic2019-lt', data='nowhere', arms='CB-focal, klass'), "'klass' is not an arm")])
def test_settings_that_cannot_be(tmp_path, kw, says):
    with pytest.raises(CliError, match=says) as e: balmix_study(**{**dict(study='digits', out=tmp_path/'s'), **kw})
    assert '\n' not in str(e.value) and not (tmp_path/'s').exists()
