"Studies: what they refuse, that they repeat, resume, share work, and survive a run that dies."
import json, os, signal, subprocess, sys, time
import numpy as np, pandas as pd, pytest, yaml
import kills
from filelock import FileLock
from balmix_fastai.datasets import ImageSet, read_images
from balmix_fastai import run as run_module
from balmix_fastai.intervals import guess_item_sd, study_power
from balmix_fastai.output import read_predictions, read_sealed, sha256_of, write_sealed
from balmix_fastai.run import read_metrics
from balmix_fastai.study import Run, Study, pick_arms, read_study, read_yaml, studies
from balmix_fastai.tables import StudyResults, recompute

fast = dict(arch='small_cnn', epochs=1, lr=5e-3, size=None, augment='none', tta='none')
arms = {'instance': {}, 'Balanced-MixUp .2': dict(alpha=.2)}

@pytest.fixture(scope='module')
def digits(): return read_images('digits')

@pytest.fixture(scope='module')
def grouped():
    "60 images of 2 classes, 20 patients with 3 images each, without any division"
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(20)%4==0, 3).astype(int)
    return ImageSet([np.clip(rng.normal(80+80*k, 30, (8,8)), 0, 255).astype(np.uint8) for k in y], y, ['healthy','ill'], groups=np.repeat(np.arange(20), 3))

def predictions(out): return {o.parent.name: pd.read_csv(o) for o in sorted(out.glob('runs/*/predictions.csv'))}

@pytest.mark.parametrize('kw,says', [(dict(arms={}), 'arms is empty'), (dict(reference='x'), "reference='x'"), (dict(seeds=0), 'seeds'), (dict(seeds=[1,1]), 'seeds'), (dict(seeds=[-1]), 'seeds'),
    (dict(arms={'a':dict(alpha=-1)}), "arm 'a': alpha=-1"), (dict(arms={'a':dict(alpah=1)}), "arm 'a': 'alpah'"), (dict(arms={'A b':{}, 'a-b':{}}), 'same folder'),
    (dict(folds=3), 'test part'), (dict(valid_pct=.1), 'no effect'), (dict(centre='mode'), 'centre'), (dict(stratify=1), 'stratify=1'), (dict(stratify='yes'), "stratify='yes'"), (dict(stratify=None), 'stratify=None'),
    (dict(protocol=dict(fast, bs=400)), 'bs=400 is more than the 341'),
    (dict(protocol=dict(fast, metric='quadratic_kappa')), 'quadratic_kappa')])
def test_refuses(digits, kw, says):
    with pytest.raises(ValueError, match=says): Study(digits, **{**dict(arms=arms, protocol=fast), **kw})

def test_fixed_class_counts_do_not_go_with_groups(grouped):
    with pytest.raises(ValueError, match='these images have groups, such as patients'): Study(grouped, arms, fast, folds=3, stratify=True)

three = dict(instance={}, mixed=dict(alpha=.3), other=dict(alpha=.4))

@pytest.mark.parametrize('kw', [dict(seeds=5), dict(seeds=10, table=['accuracy','nll'])])
def test_plan_by_a_guess(digits, kw):
    "`study_power` of the stated guess, for each metric of decisions"
    s,counts = Study(digits, three, fast, **kw),digits.counts('test')
    says = s.plan()
    for part in ('from instance', 'a probability of 80 % (2 tests, Holm)', 'by a guess', 'standard deviation of 2 points', '20 % of the images are decided differently'): assert part in says
    for k in s.table:
        if k=='nll': assert 'nll' not in says
        else: assert f"{k} {100*study_power(.02, guess_item_sd(k, counts), counts.sum(), kw['seeds'], arms=3):.1f} points" in says

def test_plan_over_folds(grouped):
    s = Study(grouped, arms, dict(fast, bs=8), seeds=1, folds=3, table=['balanced_accuracy'])
    want = study_power(.02, guess_item_sd('balanced_accuracy', grouped.counts()), 60, 1, 3)
    assert f'balanced_accuracy {100*want:.1f} points.' in s.plan() and '(1 tests, Holm)' in s.plan()

def test_plan_of_designs_that_tell_nothing_apart(digits):
    assert Study(digits, {'a': {}}, fast, seeds=5).plan()=='One arm: there is nothing to compare it with.'
    assert 'take 3 seeds or more' in Study(digits, arms, fast, seeds=1).plan()
    assert Study(digits, arms, fast, seeds=3, table=['nll']).plan().endswith('not known for these metrics.')

def test_plan_by_the_runs_at_hand(digits, tmp_path, capsys):
    "Printed before the first run, by a guess; later by what has been run, for all seeds of the study; not printed where nothing is left to run"
    few,more,wide = (Study(digits, a, fast, seeds=n) for a,n in ((arms,2), (arms,3), (arms | three,2)))
    few.run(tmp_path)
    out = capsys.readouterr().out.splitlines()
    assert out[0]==few.plan()==few.plan(tmp_path/'none') and ': done' in out[1]
    power,says = few.results(tmp_path).power(3),more.plan(tmp_path)
    assert '(3 tests, Holm)' in wide.plan(tmp_path) and f"mcc {100*few.results(tmp_path).power(arms=4)['mcc']:.1f} points" in wide.plan(tmp_path), 'of all its arms'
    assert 'by the runs in' in says and all(f'{k} {100*v:.1f} points' in says for k,v in power.items()) and says!=more.plan()
    capsys.readouterr()
    few.run(tmp_path)
    assert 'Smallest' not in capsys.readouterr().out
    more.run(tmp_path)
    assert capsys.readouterr().out.splitlines()[0]==says
    more.run(tmp_path/'quiet', progress=False)
    assert capsys.readouterr().out==''

def test_arms_that_come_later(digits, tmp_path):
    "The runs of one arm say nothing of differences: the plan is by the guess"
    Study(digits, {'instance': {}}, fast, seeds=4).run(tmp_path, progress=False)
    s = Study(digits, arms, fast, seeds=4)
    assert s.plan(tmp_path)==s.plan()

def test_fixed_class_counts_reach_the_verdict(digits, tmp_path):
    kw = dict(protocol=fast, seeds=2)
    plain,fixed = Study(digits, arms, **kw),Study(digits, arms, stratify=True, **kw)
    plain.run(tmp_path, progress=False)
    a,b = (o.results(tmp_path) for o in (plain,fixed))
    assert 'random samples' in a.verdict() and 'in the same numbers of each class' in b.verdict() and (a.meta['stratify'],b.meta['stratify'])==(False,True)
    b.save(tmp_path)
    assert recompute(tmp_path).verdict()==b.verdict()!=a.verdict()

def test_names_of_arms_do_not_steer_the_terminal(digits, tmp_path, capsys):
    "What is printed of a study, and its errors, are each on one line"
    odd = {'\x1b[31mred': {}, 'two\nlines': dict(alpha=.2), '\u202eabc': {}}
    study = Study(digits, odd, fast)
    with pytest.raises(ValueError) as e: Study(digits, odd, fast, reference='x')
    with pytest.raises(ValueError) as f: pick_arms('x', odd)
    for o in (repr(study).splitlines()[0], str(e.value), str(f.value)): assert o.isprintable() and all(a in o for a in (r'\x1b[31mred', r'two\nlines', r'\u202eabc'))
    study = Study(digits, {'two\nlines': {}}, fast, seeds=1)
    assert not study.run(tmp_path)
    plan,line = capsys.readouterr().out.splitlines()
    assert plan==study.plan() and line.startswith(r'two\nlines, seed 0, fold 0: done')

def test_an_arm_called_as_a_key_of_the_study_is():
    spec = read_yaml('arms:\n  title:\n  reference: {alpha: .2}\n  arms: {}\ntitle: 01\nreference: null', 'x.yml')
    assert spec==dict(arms=dict(title=None, reference=dict(alpha=.2), arms={}), title='01', reference='null')

def test_every_bundled_study_can_be_built(digits, data_dir, monkeypatch):
    "Its arms, protocol and table, on stand-ins of a small set where the data is the user's"
    import balmix_fastai.study as st
    monkeypatch.setenv('BALMIX_DATA', str(data_dir))
    assert set(studies)=={'digits','digits-methods','retinamnist','retinamnist-methods','retinamnist-pool','retinamnist-flexible',
        'cifar10-lt','cifar10-lt-methods','cifar10-lt-flexible','isic2019-lt','paper-eyepacs','paper-kvasir'}
    read = st.read_layout
    def stand_in(name, path=None, **kw):
        if name in ('digits','retinamnist'): return read(name, path, **kw)
        splits = dict(train=np.arange(100)) if name in ('hyper_kvasir','cifar_lt') else dict(train=np.arange(100), valid=np.arange(100,120), test=np.arange(120,140))
        if name=='cifar_lt': splits = dict(train=np.arange(1000), test=np.arange(1000,1010))
        n = max(map(max, splits.values()))+1
        return ImageSet([np.zeros((8,8), np.uint8)]*n, np.arange(n)%2, ['a','b'], splits=splits, ordinal=name=='eyepacs')
    monkeypatch.setattr(st, 'read_layout', stand_in)
    for name in studies:
        s = read_study(name, None if name.startswith(('digits','retinamnist')) else 'x')
        assert s.reference in s.arms
        if name=='retinamnist-pool': continue
        assert s.reference=='instance' and s.arms['instance']['alpha']==0
        if name.endswith('-flexible'): assert len({o['epochs']+o.get('pretrain', 0) for o in s.arms.values()})==1 # equal steps
        if name.endswith(('-methods','-flexible')): continue
        assert len(s.arms)==(21 if name=='isic2019-lt' else 9) and [o['alpha'] for a,o in s.arms.items() if a.startswith('Balanced')]==[.1,.2,.3]
        for rows in s.paper.values(): assert set(rows)<=set(s.arms) and all(len(v)==len(s.table) for v in rows.values())
    assert len(read_study('paper-kvasir', 'x').sets)==5

def test_yaml_of_ones_own(tmp_path):
    spec = dict(data=dict(read='digits', ratio=5, n_max=50), arms=dict(plain=None, mixed=dict(alpha=.3)), seeds=[3,7], protocol=fast)
    (tmp_path/'mine.yml').write_text(yaml.safe_dump(spec, sort_keys=False))
    s = read_study(tmp_path/'mine.yml', data_args=dict(ratio=2), epochs=4)
    assert s.data.counts()[[0,9]].tolist()==[50,25] and s.runs[0]==Run('plain', 3, 0) and s.arms['mixed']['epochs']==4 and s.reference=='plain'
    for bad,says in ((dict(arm={}), "'arm'"), (dict(data={}), 'what to read')):
        (tmp_path/'bad.yml').write_text(yaml.safe_dump({**spec, **bad}, sort_keys=False))
        with pytest.raises(ValueError, match=says): read_study(tmp_path/'bad.yml')

def test_shared_work_gives_the_same_numbers(digits, tmp_path):
    "One process; two processes with loader processes of their own; and again"
    s = Study(digits, arms, fast, seeds=2)
    for out,kw in (('a', {}), ('b', dict(jobs=2, workers=2)), ('c', {})): assert s.run(tmp_path/out, progress=False, **kw)=={}
    a,b,c = (predictions(tmp_path/o) for o in 'abc')
    assert len(a)==4
    for k in a:
        pd.testing.assert_frame_equal(a[k], b[k], check_exact=True)
        pd.testing.assert_frame_equal(a[k], c[k], check_exact=True)

after = {'plain':{}, 'retrained':dict(two_stage='retrain'), 'adjusted':dict(posthoc='logit_adjust'), 'mixed':dict(alpha=.2),
    'mixed, adjusted':dict(alpha=.2, posthoc='tau', two_stage='mislas'), 'tta':dict(tta='h')}

def test_what_trains_alike_trains_once(digits, tmp_path, monkeypatch):
    "Second stages and corrections begin from the weights of a finished twin, and nobody can tell it from the numbers"
    own,fits = run_module.fit_schedule,[]
    def spy(learn, schedule, epochs, lr, metric, done, *args):
        fits.append(epochs-done)
        return own(learn, schedule, epochs, lr, metric, done, *args)
    monkeypatch.setattr(run_module, 'fit_schedule', spy)
    s = Study(digits, after, fast, seeds=2)
    ticks = []
    monkeypatch.setattr(Study, '_in_line', lambda self,out,workers,threads,tick,f=Study._in_line: f(self, out, workers, threads, lambda: (ticks.append(1), tick())))
    assert s.run(tmp_path/'all', progress=False)=={}
    n = fast['epochs']
    assert fits==[n,0,0,n,0,0]*2 and len(ticks)==12*n==s._epochs_left(tmp_path/'none')
    assert not list((tmp_path/'all').rglob('*.pth')) and not list((tmp_path/'all').rglob('*.tmp'))
    both = predictions(tmp_path/'all')
    for a in after: assert Study(digits, {a:after[a]}, fast, seeds=2).run(tmp_path/'alone', progress=False)=={}
    assert fits[12:]==[n]*12
    alone = predictions(tmp_path/'alone')
    assert len(both)==12
    for k in both:
        pd.testing.assert_frame_equal(both[k], alone[k], check_exact=True)
        a,b = (read_metrics(tmp_path/o/'runs'/k) for o in ('all','alone'))
        assert {**a, 'seconds':0, 'files':0}=={**b, 'seconds':0, 'files':0}
    assert not both['plain-s0'].equals(both['adjusted-s0']) and not both['plain-s0'].equals(both['retrained-s0'])

def test_decisions_of_cut_points_reach_the_tables(tmp_path):
    imgs = read_images('digits')
    grades = ImageSet(imgs.items, imgs.labels, imgs.vocab, splits=imgs.splits, ordinal=True)
    s = Study(grades, {'plain':{}, 'cuts':dict(posthoc='cuts')}, fast, seeds=1)
    assert s.run(tmp_path, progress=False)=={}
    res = s.results(tmp_path)
    for r in res.runs.itertuples():
        m = json.loads((s._dir(tmp_path, Run(r.arm, 0, 0))/'metrics.json').read_text())['test']
        assert np.isclose(r.quadratic_kappa, m['quadratic_kappa']) and np.isclose(r.accuracy, m['accuracy'])
    assert res.runs.nll[0]==res.runs.nll[1] and res.runs.accuracy[0]!=res.runs.accuracy[1]

def test_weights_wait_for_the_last_twin(digits, tmp_path):
    "A runner that leaves early, and one that comes later; a twin that has not left its weights is no hindrance"
    few = {k: after[k] for k in ('plain','retrained','adjusted')}
    s = Study(digits, few, fast, seeds=1)
    plain,retrained,adjusted = s.runs
    assert s._do(plain, tmp_path)==s._do(adjusted, tmp_path)==('done', '')
    left = {o.parent.name for o in tmp_path.rglob('state.pth')}
    assert left=={'plain-s0','adjusted-s0'}
    (tmp_path/'runs'/'plain-s0'/'best.pth').unlink()
    assert s._do(retrained, tmp_path)==('done', '') and not list(tmp_path.rglob('*.pth'))
    assert Study(digits, few, fast, seeds=1).run(tmp_path/'b', progress=False)=={}
    for k,v in predictions(tmp_path).items(): pd.testing.assert_frame_equal(v, predictions(tmp_path/'b')[k], check_exact=True)

def test_a_run_that_another_runner_does_is_left_to_it(digits, tmp_path):
    s = Study(digits, arms, fast, seeds=1)
    d = s._dir(tmp_path, s.runs[0])
    d.mkdir(parents=True)
    with FileLock(d/'.lock'):
        assert subprocess.run([sys.executable, '-c', f"from filelock import FileLock; FileLock({str(d/'.lock')!r}).acquire(timeout=0)"], capture_output=True).returncode
        assert s.run(tmp_path, progress=False)=={}
    assert list(predictions(tmp_path))==[s._dir(tmp_path, s.runs[1]).name]
    s.run(tmp_path, progress=False)
    assert len(predictions(tmp_path))==2

def two_arms(out, jobs): print(Study(read_images('digits'), {'instance': {}, 'mixed': dict(alpha=.2)}, dict(fast, epochs=4), seeds=2).run(out, jobs=jobs))

def start(tmp_path, out, jobs=1): return kills.start(two_arms, tmp_path/out, jobs, log=tmp_path/f'{out}.txt')

def wait(p): # Exit status
    p.join()
    return p.exitcode

def wait_for(f, p):
    while p.exitcode is None and not (res := f()): time.sleep(.02)
    assert p.exitcode is None
    return res

def test_killed_and_run_again_equals_uninterrupted(tmp_path):
    "Killed in the middle of the second run: the first is not done again, the second goes on at its epoch"
    p = start(tmp_path, 'cut')
    wait_for(lambda: (tmp_path/'cut'/'runs'/'mixed-s0'/'log.csv').exists(), p)
    p.kill()
    p.join()
    first = tmp_path/'cut'/'runs'/'instance-s0'/'metrics.json'
    before,rows = first.stat().st_mtime_ns,len(pd.read_csv(tmp_path/'cut'/'runs'/'mixed-s0'/'log.csv'))
    assert 1<=rows and not (tmp_path/'cut'/'runs'/'mixed-s0'/'metrics.json').exists()
    for o in ('cut','whole'): assert wait(start(tmp_path, o))==0, (tmp_path/f'{o}.txt').read_text()
    assert first.stat().st_mtime_ns==before
    a,b = predictions(tmp_path/'cut'),predictions(tmp_path/'whole')
    assert len(a)==4
    for k in a: pd.testing.assert_frame_equal(a[k], b[k], check_exact=True)
    for k in a: pd.testing.assert_frame_equal(*(pd.read_csv(tmp_path/o/'runs'/k/'log.csv') for o in ('cut','whole')), check_exact=True)

def children(pid): return [int(o) for o in subprocess.run(['ps','-o','pid=','--ppid',str(pid)], capture_output=True, text=True).stdout.split()]

def test_a_process_that_dies_takes_only_its_run_with_it(tmp_path):
    p = start(tmp_path, 'out', jobs=2)
    state = wait_for(lambda: next((tmp_path/'out'/'runs').glob('*/state.pth'), None) if (tmp_path/'out'/'runs').exists() else None, p)
    kids = [k for o in children(p.pid) for k in children(o)] # the processes come from one that has the package imported
    os.kill(kids[0], signal.SIGKILL)
    assert wait(p)==0
    errors,done = list((tmp_path/'out').rglob('error.txt')),predictions(tmp_path/'out')
    assert len(errors)==1 and 'status -9' in errors[0].read_text() and len(done)==3 and errors[0].parent.name not in done
    assert errors[0].parent.name.split('-')[0] in (tmp_path/'out.txt').read_text()
    assert wait(start(tmp_path, 'out'))==0 and len(predictions(tmp_path/'out'))==4 and not list((tmp_path/'out').rglob('error.txt'))

def test_two_runners_never_do_a_run_twice(tmp_path):
    ps = [start(tmp_path, 'out') for _ in range(2)]
    assert [wait(p) for p in ps]==[0,0]
    assert len(predictions(tmp_path/'out'))==4
    for o in (tmp_path/'out').rglob('log.csv'): assert pd.read_csv(o).epoch.tolist()==list(range(4))
    lines = (tmp_path/'out.txt').read_text().count(': done')
    assert lines==4

def test_other_settings_are_refused_before_any_run(digits, tmp_path):
    Study(digits, {'instance': {}}, fast, seeds=1).run(tmp_path, progress=False)
    with pytest.raises(ValueError, match='lr 0.001, was 0.005'): Study(digits, arms, dict(fast, lr=1e-3), seeds=1).run(tmp_path)
    assert len(list((tmp_path/'runs').iterdir()))==1
    more = Study(digits, arms, fast, seeds=2)
    assert more._epochs_left(tmp_path)==3 and more.run(tmp_path, progress=False)=={} and len(predictions(tmp_path))==4

def test_folds_measure_every_image_once_and_choose_elsewhere(grouped, tmp_path):
    s = Study(grouped, arms, dict(fast, bs=8), seeds=1, folds=3)
    tests = np.concatenate([o.splits['test'] for o in s.sets])
    assert sorted(tests)==list(range(60))
    for o in s.sets:
        parts = [set(grouped.groups[o.splits[k]]) for k in ('train','valid','test')]
        assert sum(map(len, parts))==20==len(set.union(*parts))
    s.run(tmp_path, progress=False)
    res = s.results(tmp_path)
    assert len(res.runs)==6 and res.meta['n']==[len(o.splits['test']) for o in s.sets]
    with np.load(tmp_path/'predictions.npz') as z:
        for f in range(3):
            assert np.array_equal(z[f'groups{f}'], grouped.groups[s.sets[f].splits['test']])
            for i,a in enumerate(arms):
                acc = (z[f'probs{f}'][i].argmax(1)==z[f'targs{f}']).mean()
                assert res.runs.query('arm==@a and fold==@f').accuracy.item()==pytest.approx(acc)
    assert (res.pairs.df==2).all() and 't test over 3 folds' in res.verdict()

def test_results_of_half_a_study(digits, tmp_path):
    s = Study(digits, arms, fast, seeds=2)
    with pytest.raises(ValueError, match='no finished run'): s.results(tmp_path)
    s.run(tmp_path, progress=False)
    for o in s._dir(tmp_path, Run('Balanced-MixUp .2', 1, 0)).iterdir(): o.unlink()
    res = s.results(tmp_path)
    assert len(res.runs)==3 and res.meta['missing']==1 and '1 runs of the study are missing' in res.to_markdown()
    assert set(res.pairs.runs)=={1}

def test_predictions_of_other_images_are_refused(digits, tmp_path):
    s = Study(digits, {'instance': {}}, fast, seeds=1)
    s.run(tmp_path, progress=False)
    f = s._dir(tmp_path, s.runs[0])/'predictions.csv'
    df = pd.read_csv(f)
    df.loc[df.index[-1], 'name'] = 'test/x'
    df.to_csv(f, index=False)
    with pytest.raises(ValueError, match='predictions.csv is missing, damaged or was changed'): s.results(tmp_path)
    write_sealed(f.with_name('metrics.json'), dict(read_sealed(f.with_name('metrics.json')), files={f.name: sha256_of(f)}))
    with pytest.raises(ValueError, match='other images'): s.results(tmp_path)

good = 'data: {read: digits, n_max: 20, ratio: 2}\nseeds: 1\nprotocol: {arch: small_cnn, epochs: 1, bs: 8, size: null, augment: none, tta: none, lr: 1e-3}\n'

@pytest.mark.parametrize('text,says', [
    (good+'arms: {a: {}, a: {alpha: .2}}', "line 4: the name 'a' stands twice"), (good+'arms:\n\ta: {}', r"line 5: .*\\t.*indent with spaces"), ('', 'holds nothing'), ('# nothing', 'holds nothing'),
    ('- a\n- b', 'holds list'), ('just text', 'holds str'), (good+'arms: [a, b]', r'needs arms: .*\{plain'), (good+'arms: a', 'needs arms:'), (good, 'needs arms:'), (good+'arms: {}', 'arms is empty'),
    (good+'arms:\n  a: {}\n  b: mixup', "line 6: arm 'b' must have options"), (good+'arms:\n  a: [alpha]', "line 5: arm 'a'"), (good+'arms: {a: {}}\narm: 1', "line 5: 'arm' is not a key"),
    (good+'seeds: 2', "line 4: the name 'seeds' stands twice"), (good+'arms: {a: {alpah: 1}}', "arm 'a': 'alpah'"), (good+'arms: {a: {alpha: x}}', "arm 'a': alpha='x'"), (good+'arms: {a: {seed: 3}}', "'seed' is not an option of an arm"),
    (good+'arms: {a: {epochs: 010x}}', "epochs='010x'"), (good+'arms: {a: {pretrained: "no"}}', "pretrained='no'"), (good+'arms: {a: {}}\ntable: [kapa]', "'kapa' is not a metric of this study; metrics are accuracy"),
    (good+'arms: {a: {}}\ntable: [quadratic_kappa]', "'quadratic_kappa' is not"), (good+'arms: {a: {}}\ntable: mcc', "table='mcc' must be a list"), (good+'arms: {a: {}}\npaper: {small_cnn: {a: [1]}}', 'give a list of 3 numbers'),
    (good+'arms: {a: {}}\nfolds: x', "folds='x'"), (good+'arms: {a: {}}\nstratify: 1', 'stratify=1'), (good.replace('seeds: 1', 'seeds: x')+'arms: {a: {}}', "seeds='x'"), (good.replace('seeds: 1', 'seeds: 1.5')+'arms: {a: {}}', 'seeds=1.5'),
    (good+'arms: {a: {}}\nreference: b', "reference='b'"), (good.replace('{read: digits, n_max: 20, ratio: 2}', 'digits')+'arms: {a: {}}', 'what to read'), (good+'arms: {a: {two_stage: ncm, posthoc: x}}', 'posthoc'),
    (good+'arms: {a: {bs: 1000}}', 'bs=1000 is more than'), ('a: [1', 'line 1'), ('a: !!python/name:os.system x', 'line 1'), (good+'arms: {a: {}}\n---\nb: 1', 'line 5')], ids=str)
def test_yaml_that_is_no_study(tmp_path, text, says):
    "One line that names the file, and the line where there is one"
    (tmp_path/'mine.yml').write_text(text, encoding='utf-8')
    with pytest.raises(ValueError, match=says) as e: read_study(tmp_path/'mine.yml')
    assert str(e.value).startswith('mine.yml') and '\n' not in str(e.value)

def test_yaml_that_is_not_utf8(tmp_path):
    (tmp_path/'mine.yml').write_bytes((good+'arms: {größer: {}}').encode('latin1'))
    with pytest.raises(ValueError, match='mine.yml is not a UTF-8'): read_study(tmp_path/'mine.yml')
    (tmp_path/'mine.yml').write_bytes((good+'arms: {größer: {}}').encode('utf-8-sig'))
    assert list(read_study(tmp_path/'mine.yml').arms)==['größer']

names = ['0.1','yes','no','null','01','1e3','2024-01-01','true','~','NA','None']

def test_names_are_what_is_written(tmp_path):
    (tmp_path/'mine.yml').write_text(good+'arms:\n'+''.join(f'  {o}: {{}}\n' for o in names)+'  last: {lr: 2E-4, alpha: .5, wd: 1.}\nreference: no')
    s = read_study(tmp_path/'mine.yml')
    assert list(s.arms)==[*names,'last'] and s.reference=='no' and [s.arms['last'][o] for o in ('lr','alpha','wd')]==[2e-4,.5,1.] and s.arms['01']['lr']==1e-3

def test_a_study_of_such_names_to_its_verdict(tmp_path):
    "Run, gathered, saved, loaded: each arm has its own runs, in the tables as in the predictions"
    (tmp_path/'mine.yml').write_text(good.replace('seeds: 1', 'seeds: 2')+'arms: {0.2: {alpha: .2}, 01: {}, null: {two_stage: ncm}}\nreference: 01')
    s = read_study(tmp_path/'mine.yml')
    assert s.run(tmp_path/'out', progress=False)=={}
    res = s.results(tmp_path/'out')
    res.save(tmp_path/'out')
    assert list(res.summary.index)==['0.2','01','null'] and 't test over 2 runs and test images together' in res.verdict()
    for r in StudyResults.load(tmp_path/'out').runs.itertuples():
        df = read_predictions(s._dir(tmp_path/'out', Run(r.arm, r.seed, 0))/'predictions.csv').query("split=='test'")
        assert (df.label==df.predicted).mean()==pytest.approx(r.accuracy)
    assert recompute(tmp_path/'out', 50).verdict()==res.verdict()

@pytest.mark.parametrize('arms,want', [('CB, class', ['CB, class']), ('CB,class', ['CB, class']), ('class, CB', ['class','CB']), ('[CB, class]', ['CB','class']), ('["CB, class", 01]', ['CB, class','01']),
    ('CB, class, CB', ['CB, class','CB']), (' 01 ,', ['01']), ('class,class', ['class']), (['CB, class','01'], ['CB, class','01'])])
def test_arms_by_name(arms, want): assert pick_arms(arms, ['CB','class','CB, class','01'])==want

@pytest.mark.parametrize('arms,says', [('x', "'x' is not an arm"), ('CB, x', "'x' is not"), (['CB,class,01'], "'CB,class,01' is not"), ('[CB', 'not a list of names'), ('[{a: 1}]', 'not a list of names')])
def test_arms_that_are_not_there(arms, says):
    with pytest.raises(ValueError, match=says): pick_arms(arms, ['CB','class','01'])

def test_arms_have_folders_of_their_own(digits):
    "Also those whose names have nothing that a folder's name may have"
    many = ['..', '平衡', '混合', 'MixUp 平', 'MixUp 混', 'CON', 'a/b', '+', '-', 'x'*300, 'x'*299+'y', 'ä', 'ö', '$', '_', '$a_$b', 'a, b', 'a_b', 'a:b']
    s = Study(digits, {o: {} for o in many}, fast, seeds=1)
    dirs = [s._dir('out', r).name for r in s.runs]
    assert len(set(map(str.lower, dirs)))==len(many) and all(o.isascii() and len(o)<120 and not o.startswith('.') for o in dirs)
    assert s._dir('out', Run('CON', 0, 0)).name=='con-s0'

def test_other_images_are_not_gone_on_with(tmp_path):
    "Names, labels and counts are alike, the images are not; and a label that has changed since"
    a,b = (read_images('digits', n_max=20, ratio=2, seed=i) for i in (0,1))
    kw = dict(arms={'a': {}}, protocol=dict(fast, bs=8), seeds=1)
    assert a.names==b.names and (a.labels==b.labels).all()
    assert Study(a, **kw).run(tmp_path, progress=False)=={}
    with pytest.raises(ValueError, match='with other pixels'): Study(b, **kw).run(tmp_path, progress=False)
    labels = a.labels.copy()
    labels[a.splits['test'][0]] = 5
    c = ImageSet(a.items, labels, a.vocab, a.names, a.splits)
    with pytest.raises(ValueError, match='other labels'): Study(c, **kw).results(tmp_path)
    with pytest.raises(ValueError, match='1 with another label'): Study(c, **kw).run(tmp_path, progress=False)
    assert Study(a, **kw).run(tmp_path, progress=False)=={}

def test_an_arm_that_cannot_be_trained_is_told_before_the_first_run(digits, tmp_path):
    s = Study(digits, {'plain': {}, 'vit': dict(arch='vit_tiny_patch16_224', head='linear', size=32)}, fast, seeds=1)
    with pytest.raises(ValueError, match="arm 'vit': size=32"): s.run(tmp_path/'out', progress=False)
    assert not (tmp_path/'out').exists()

def test_corrected_settings_after_runs_that_never_began(digits, tmp_path, monkeypatch):
    import balmix_fastai.study as st
    def broken(*args, **kwargs): raise RuntimeError('no memory')
    s = lambda lr: Study(digits, {'a': {}}, dict(fast, lr=lr), seeds=1)
    monkeypatch.setattr(st, 'train_run', broken)
    assert len(s(.1).run(tmp_path, progress=False))==1
    monkeypatch.undo()
    assert s(5e-3).run(tmp_path, progress=False)=={}
    with pytest.raises(ValueError, match='lr 0.1, was 0.005'): s(.1).run(tmp_path, progress=False)
