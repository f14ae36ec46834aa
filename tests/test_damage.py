"Run folders that are damaged, foreign, or cannot be written: each row of the table on the page of runs, and the faults of a place."
import json, os, re, shutil, time, zipfile
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from fastai.basics import load_learner
from fastcore.script import CliError
from filelock import FileLock
import kills
from balmix_fastai import output, study as study_module
from balmix_fastai.checkpoint import read_state, write_state
from balmix_fastai.cli import balmix_train
from balmix_fastai.output import Busy, locked, read_json, read_sealed, write_json, write_sealed, write_whole
from balmix_fastai.run import Checkpoint, read_metrics, train_run
from balmix_fastai.study import Study

fast = dict(arch='small_cnn', epochs=3, bs=16, size=16, augment='none', tta='none')

class Evil:
    "A pickle of it writes a file when it is read"
    def __init__(self, file): self.file = str(file)
    def __reduce__(self): return exec, (f"open({self.file!r}, 'w').write('ran')",)

@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    "A finished run, one that was stopped after its second epoch, and one of two folds, with their images"
    d = tmp_path_factory.mktemp('runs')
    kills.save_npz(d)
    balmix_train(d/'images.npz', out=d/'done', **fast)
    balmix_train(d/'images.npz', out=d/'folds', folds=2, **{**fast, 'epochs':1})
    old,Checkpoint.after_epoch = Checkpoint.after_epoch,stopping(Checkpoint.after_epoch)
    try:
        for k,kw in dict(cut={}, found=dict(lr='find'), pretrained=dict(pretrain=3)).items():
            with pytest.raises(CliError, match='same command and --resume'): balmix_train(d/'images.npz', out=d/k, **{**fast, **kw})
    finally: Checkpoint.after_epoch = old
    return d

def stopping(f):
    def after_epoch(self):
        f(self)
        if len(self.rows)==2: raise KeyboardInterrupt
    return after_epoch

def flip(f):
    b = bytearray(f.read_bytes())
    for i in range(len(b)//3, len(b)-len(b)//3, max(len(b)//20, 1)): b[i] ^= 255
    f.write_bytes(bytes(b))
def half(f): f.write_bytes(f.read_bytes()[:f.stat().st_size//2])
def empty(f): f.write_bytes(b'')
def gone(f): f.unlink()
def of_a_list(f): f.write_text('[]')
def digit(f): f.write_text(re.sub(r'0\.(\d)', lambda m: f'0.{(int(m[1])+1)%10}', f.read_text(), count=1))
def lines(f): f.write_text(''.join(f.read_text().splitlines(keepends=True)[:-3]))
def evil(f): torch.save(Evil(f.parents[1]/'ran'), f)
def deflated(f):
    with zipfile.ZipFile(f, 'w', zipfile.ZIP_DEFLATED) as z: z.writestr('state/data/0', bytes(10**8))
def shapes(f): write_state(f, {**read_state(f), 'model':{k: v[:1] if v.ndim else v for k,v in read_state(f)['model'].items()}})
def other(f): write_state(f, dict(rows=[]))

# run, file, damage in words, what is done, and what the command says
rows = []
rows += [('cut', 'state.pth', 'bytes are altered', flip, 'state.pth is damaged'), ('cut', 'state.pth', 'cut off', half, 'state.pth is damaged')]
rows += [('cut', 'state.pth', 'empty', empty, 'state.pth is damaged'), ('cut', 'state.pth', 'missing', gone, 'state.pth is missing')]
rows += [('cut', 'state.pth', 'a pickle that runs code', evil, 'holds more than numbers, text and tensors')]
rows += [('cut', 'state.pth', 'packed, and larger than it is', deflated, 'claim more bytes')]
rows += [('cut', 'state.pth', 'of another network', shapes, 'of another network'), ('cut', 'state.pth', 'of something else', other, 'not the state of a fit')]
rows += [('cut', 'best.pth', 'bytes are altered', flip, 'best.pth is missing, damaged'), ('cut', 'best.pth', 'cut off', half, 'best.pth is missing, damaged')]
rows += [('cut', 'best.pth', 'empty', empty, 'best.pth is missing, damaged'), ('cut', 'best.pth', 'missing', gone, 'best.pth is missing, damaged')]
rows += [('cut', 'best.pth', 'a pickle that runs code', evil, 'best.pth is missing, damaged')]
rows += [('cut', 'config.json', 'empty', empty, 'config.json cannot be read'), ('cut', 'config.json', 'cut off', half, 'config.json cannot be read')]
rows += [('cut', 'config.json', 'a list', of_a_list, 'config.json cannot be read'), ('cut', 'config.json', 'missing', gone, 'holds no run')]
rows += [('cut', 'splits.json.gz', 'cut off', half, 'splits.json.gz is damaged'), ('cut', 'splits.json.gz', 'bytes are altered', flip, 'splits.json.gz is damaged')]
rows += [('cut', 'splits.json.gz', 'missing', gone, 'does not say which images')]
rows += [('cut', 'log.csv', 'cut off', half, ''), ('cut', 'log.csv', 'missing', gone, '')]
rows += [('found', 'lr.json', 'cut off', half, 'lr.json cannot be read'), ('found', 'lr.json', 'a digit is altered', digit, 'lr.json is damaged')]
rows += [('pretrained', 'pretrain/state.pth', 'a pickle that runs code', evil, 'holds more than numbers, text and tensors')]
rows += [('pretrained', 'pretrain/state.pth', 'cut off', half, 'state.pth is damaged')]
rows += [('done', 'metrics.json', 'empty', empty, 'metrics.json cannot be read'), ('done', 'metrics.json', 'cut off', half, 'metrics.json cannot be read')]
rows += [('done', 'metrics.json', 'a digit is altered', digit, 'metrics.json is damaged')]
rows += [('done', 'predictions.csv', 'the last lines are missing', lines, 'predictions.csv is missing, damaged')]
rows += [('done', 'predictions.csv', 'a digit is altered', digit, 'predictions.csv is missing, damaged')]
rows += [('done', 'predictions.csv', 'missing', gone, 'predictions.csv is missing, damaged')]
rows += [('done', 'export.pkl', 'missing', gone, '')]
rows += [('folds', 'fold1/predictions.csv', 'a digit is altered', digit, 'predictions.csv is missing, damaged')]
options = dict(found=dict(lr='find'), pretrained=dict(pretrain=3), folds=dict(folds=2, epochs=1))

@pytest.mark.parametrize('run,file,words,damage,says', rows, ids=[f'{o[1]}: {o[2]}' for o in rows])
def test_damaged_runs(runs, tmp_path, run, file, words, damage, says):
    "Refused in one line that names the file, or mended; nothing that a file holds is run"
    out = tmp_path/'run'
    shutil.copytree(runs/run, out)
    damage(out/file)
    before = {o: o.read_bytes() for o in out.rglob('*') if o.is_file() and o.name!='.lock'}
    kw = dict(out=out, resume=True, **{**fast, **options.get(run, {})})
    if says:
        with pytest.raises(CliError, match=says) as e: balmix_train(runs/'images.npz', **kw)
        assert '\n' not in str(e.value) and re.search(r'anew|another|leave out|restore', str(e.value))
        assert {o: o.read_bytes() for o in before}==before
    else:
        balmix_train(runs/'images.npz', **kw)
        assert len(pd.read_csv(out/'log.csv'))==3 and read_metrics(out)['valid']==read_metrics(runs/'done')['valid']
    assert not list(tmp_path.rglob('ran'))

def test_the_table_has_these_rows():
    cells = json.loads((Path(__file__).parents[1]/'nbs/run.ipynb').read_text(encoding='utf-8'))['cells']
    table = next(s for c in cells if '| file | damage |' in (s := ''.join(c['source'])))
    shown = [[v.strip(' `') for v in l.strip('|').split('|')] for l in table.splitlines() if l.startswith('| `')]
    assert [o[:2] for o in shown]==[[o[1].split('/')[-1] if o[0]=='folds' else o[1], o[2]] for o in rows]
    assert [o[2].startswith('refused') for o in shown]==[bool(o[4]) for o in rows]

# The place

def hold(folder):
    with locked(folder):
        (Path(folder)/'held').touch()
        while (Path(folder)/'held').exists(): time.sleep(.05)

def test_a_folder_belongs_to_one_process(runs, tmp_path):
    out = tmp_path/'run'
    shutil.copytree(runs/'cut', out)
    p = kills.start(hold, str(out), log=tmp_path/'log.txt')
    while not (out/'held').exists(): assert p.exitcode is None
    try:
        with pytest.raises(CliError, match='Another process is at work'): balmix_train(runs/'images.npz', out=out, resume=True, **fast)
        with pytest.raises(Busy): train_run(kills.images(), out, **{**fast, 'lr':1e-3})
    finally: (out/'held').unlink()
    p.join()
    balmix_train(runs/'images.npz', out=out, resume=True, **fast)
    assert read_metrics(out)['valid']==read_metrics(runs/'done')['valid']

def test_who_has_the_lock_may_take_it_again(tmp_path):
    with locked(tmp_path), locked(tmp_path): pass
    with locked(tmp_path): pass

@pytest.mark.parametrize('error', [OSError(37, 'No locks available'), NotImplementedError('FileSystem does not appear to support flock')])
def test_a_file_system_without_locks_is_refused(runs, tmp_path, monkeypatch, error):
    def refuse(self, *args, **kwargs): raise error
    monkeypatch.setattr(FileLock, 'acquire', refuse)
    with pytest.raises(CliError, match='cannot be locked.*local disk'): balmix_train(runs/'images.npz', out=tmp_path/'run', **fast)
    with pytest.raises(ValueError, match='cannot be locked.*local disk'): Study(kills.images(), kills.arms, kills.fast, seeds=1).run(tmp_path/'study')

def test_a_folder_that_vanishes(runs, tmp_path, monkeypatch):
    "The message does not speak of a checkpoint that is gone, too"
    old = Checkpoint.after_epoch
    def after_epoch(self):
        if len(self.rows)==1: shutil.rmtree(tmp_path/'run')
        old(self)
    monkeypatch.setattr(Checkpoint, 'after_epoch', after_epoch)
    with pytest.raises(CliError, match='could not be written.*There is no .*state.pth'): balmix_train(runs/'images.npz', out=tmp_path/'run', **fast)

def test_an_error_that_cannot_be_kept_is_still_said(tmp_path, monkeypatch):
    "A run fails since the disk is full, and so does writing why"
    def fail(*args, **kwargs): raise OSError('No space left on device')
    monkeypatch.setattr(study_module, 'train_run', fail)
    old = output.write_whole
    monkeypatch.setattr(study_module, 'write_whole', lambda path, data: fail() if Path(path).name=='error.txt' else old(path, data))
    failed = Study(kills.images(), dict(a={}), kills.fast, seeds=1).run(tmp_path, progress=False)
    assert [*failed.values()]==[f"OSError: No space left on device ({tmp_path/'runs'/'a-s0'/'error.txt'} could not be written: No space left on device)"]

def test_fewer_folds_leave_no_empty_fold(runs, tmp_path):
    kw = dict(out=tmp_path/'run', **{**fast, 'epochs':1})
    balmix_train(runs/'images.npz', folds=3, **kw)
    (tmp_path/'run/fold1/notes.txt').write_text('mine')
    balmix_train(runs/'images.npz', overwrite=True, **kw)
    assert sorted(o.name for o in (tmp_path/'run').glob('fold*'))==['fold1'] and [o.name for o in (tmp_path/'run/fold1').iterdir() if o.name!='.lock']==['notes.txt']

def test_an_export_carries_no_path(runs, tmp_path):
    pkl = (runs/'done/export.pkl').read_bytes()
    assert str(runs).encode() not in pkl and os.path.expanduser('~').encode()+b'/' not in pkl and load_learner(runs/'done/export.pkl').path==Path()

def test_arms_of_any_name(tmp_path):
    "Long ones, those without a letter of ASCII, and those that differ in what a folder's name leaves out"
    arms = {k: {} for k in ('a'*300, 'a'*299+'b', '猫', '犬', '..', 'a/b', 'a_b', 'a:b')}
    s = Study(kills.images(), arms, dict(kills.fast, epochs=1, alpha=0.), seeds=1)
    assert s.run(tmp_path, progress=False)=={} and len(list((tmp_path/'runs').iterdir()))==len(arms)
    assert s.results(tmp_path).runs.arm.tolist()==[*arms]

# Files

@pytest.mark.parametrize('o', [1, .1, np.float64(.1), np.int64(2)**40, 2**200, 'a', None, True, (1,'b'), [1,[2.5]], {'a':{1:'x'}},
    np.arange(3, dtype=np.uint32), np.zeros((0,2)), np.array(['é','b']), torch.arange(3), np.float32([[1,np.nan]])], ids=repr)
def test_states_come_back(tmp_path, o):
    write_state(tmp_path/'s.pth', dict(o=o))
    back = read_state(tmp_path/'s.pth')['o']
    if isinstance(o, np.ndarray): assert back.dtype==o.dtype and np.array_equal(back, o, equal_nan=o.dtype.kind=='f')
    elif isinstance(o, torch.Tensor): assert torch.equal(back, o)
    else: assert back==o and type(back)==(type(o.item()) if isinstance(o, np.generic) else type(o))

@pytest.mark.parametrize('o', [object(), np.array([None]), lambda: 0, Path], ids=['object','object array','function','class'])
def test_states_hold_nothing_else(tmp_path, o):
    with pytest.raises(TypeError, match='state.cbs.x is a '): write_state(tmp_path/'s.pth', dict(cbs=dict(x=o)))
    assert not list(tmp_path.iterdir())

def test_a_write_that_fails_leaves_the_file(tmp_path):
    write_whole(tmp_path/'a', 'one')
    with pytest.raises(RuntimeError), output.written_whole(tmp_path/'a') as f:
        f.write(b'tw')
        raise RuntimeError
    assert (tmp_path/'a').read_text()=='one' and len(list(tmp_path.iterdir()))==1

@pytest.mark.parametrize('text,why', [('', 'Expecting value'), ('{"a": 1', 'delimiter'), ('[1]', 'valid dict'), ('['*10**5, 'nested'), ('\xff', 'utf-8'), (None, 'missing')])
def test_json_that_is_none(tmp_path, text, why):
    if text is not None: (tmp_path/'a.json').write_bytes(text.encode('latin-1'))
    with pytest.raises(ValueError, match=f'a.json cannot be read .*{why}.*; do it anew'): read_json(tmp_path/'a.json', remedy='do it anew')

def test_json_is_read_with_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(output, 'most_json', 10)
    write_json(tmp_path/'a.json', dict(a='x'*20))
    with pytest.raises(ValueError, match='at most'): read_json(tmp_path/'a.json')

def test_sealed_files(tmp_path):
    write_sealed(tmp_path/'a.json', dict(b=[.1,np.pi,float('inf')], a={'x':None}))
    assert read_sealed(tmp_path/'a.json')==dict(b=[.1,np.pi,float('inf')], a={'x':None})
    with pytest.raises(ValueError, match='does not hold'): read_sealed(tmp_path/'a.json', dict[str,float])
