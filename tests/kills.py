"Runs that are killed at random moments and begun again must end as uninterrupted ones do: `python tests/kills.py --kills 30`."
import argparse, multiprocessing, os, random, signal, tempfile, time, warnings
from contextlib import redirect_stdout
from pathlib import Path
import numpy as np, pandas as pd, torch
from balmix_fastai.cli import balmix_train
from balmix_fastai.datasets import ImageSet
from balmix_fastai.output import read_predictions
from balmix_fastai.run import read_metrics, train_run
from balmix_fastai.study import Study

fast = dict(arch='small_cnn', epochs=4, lr=5e-3, bs=16, size=None, augment='fastai', tta='h')
kinds = dict(plain={}, pool=dict(partners='pool', pool_mb=.01), progressive=dict(sampling='progressive', posthoc='logit_adjust'),
    difficulty=dict(sampling='difficulty', two_stage='retrain'), pretrain=dict(pretrain=3, sampling='flexible'), lr_find=dict(lr='find'))
kinds = {k: dict(fast, **v) for k,v in kinds.items()}
arms = dict(plain=dict(alpha=0.), adjusted=dict(alpha=0., posthoc='logit_adjust'), mixed=dict(alpha=.2))

def images():
    "90 images of 3 classes that differ in their brightness, and test images"
    rng,y = np.random.default_rng(0),np.repeat([0,1,2,0,1,2], [50,25,15,10,10,10])
    x = [np.clip(rng.normal(60+60*k, 40, (12,12)), 0, 255).astype(np.uint8) for k in y]
    return ImageSet(x, y, ['a','b','c'], splits=dict(train=np.arange(90), test=np.arange(90, 120))).with_valid(.3)

def once(kind, out):
    "Begin a run, or go on with it"
    out = Path(out)
    if kind in kinds: train_run(images(), out, resume=True, progress=False, **kinds[kind])
    elif kind=='study': Study(images(), arms, fast, seeds=1).run(out, jobs=2, progress=False)
    else:
        data = out.parent/'images.npz'
        balmix_train(data, out=out, folds=2, resume=(out/'config.json').exists(), **{**fast, 'lr':'0.005', 'size':16, 'epochs':2})

def is_done(kind, out):
    "Is all of it there?"
    return len(list(out.glob('runs/*/metrics.json')))==len(arms) if kind=='study' else (out/'metrics.json').exists()

def _work(f, args, log):
    "Body of a process"
    os.setsid() # with its own processes it can be killed as a group
    warnings.simplefilter('ignore')
    torch.set_num_threads(1)
    with open(log, 'a') as out, redirect_stdout(out): f(*args)

def start(f, *args, log):
    "Call `f(*args)` in a process that has the package imported already, and write what it prints to `log`"
    ctx = multiprocessing.get_context('forkserver')
    ctx.set_forkserver_preload(['balmix_fastai.all', 'balmix_fastai.cli'])
    p = ctx.Process(target=_work, args=(f, args, str(log)))
    p.start()
    return p

def begin(kind, out): return start(once, kind, str(out), log=f'{out}.txt')

def save_npz(d):
    "The images in MedMNIST's layout"
    o = images()
    parts = dict(train=[*o.splits['train'], *o.splits['valid']], test=o.splits['test'])
    arrays = {f'{k}_images': np.stack([o.items[i] for i in idx]) for k,idx in parts.items()}
    np.savez(d/'images.npz', **arrays, **{f'{k}_labels': o.labels[idx][:,None] for k,idx in parts.items()})

def ends(out): # Of each folder of a run: log, predictions and metrics
    "What a run or a study has come to"
    res = {}
    for f in sorted(out.rglob('metrics.json')):
        d = f.parent
        m = read_metrics(d)
        own = {k: v for k,v in m.items() if k not in ('seconds','files','folds')}
        res[str(d.relative_to(out))] = own,read_predictions(d/'predictions.csv').to_csv(),pd.read_csv(d/'log.csv').to_csv() if (d/'log.csv').exists() else ''
    return res

def whole(kind, d): # Its end, and the seconds it took
    "An uninterrupted run"
    at,p = time.time(),begin(kind, d/f'{kind}-whole')
    p.join()
    if p.exitcode: raise RuntimeError(f"{kind}: {(d/f'{kind}-whole.txt').read_text()[-2000:]}")
    return ends(d/f'{kind}-whole'),time.time()-at

def killed(kind, out, seconds, rng, kills=1): # Lines that say when it was killed
    "A run that is killed so many times, and then goes on to its end"
    said = []
    for left in range(kills, -1, -1):
        p = begin(kind, out)
        if left:
            after,group = rng.uniform(0, seconds),rng.random()<.5
            p.join(after)
            if p.exitcode is None: (os.killpg if group and os.getpgid(p.pid)==p.pid else os.kill)(p.pid, signal.SIGKILL)
            p.join()
            said.append(f"{'group' if group else 'process'} after {after:.1f} of {seconds:.1f} s, epochs done: {epochs(out)}")
        else: p.join()
        if p.exitcode not in (0, -signal.SIGKILL): raise RuntimeError(f"{kind}, {said}: {Path(f'{out}.txt').read_text()[-2000:]}")
    for _ in range(30): # a run that the processes of a killed study still have is left out
        if is_done(kind, out): break
        time.sleep(1)
        p = begin(kind, out)
        p.join()
    return said

def epochs(out): return sum(len(pd.read_csv(o)) for o in out.rglob('log.csv'))

def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument('--kills', type=int, default=30, help='kills, over all kinds')
    ap.add_argument('--seed', type=int, default=None, help='seed of the moments')
    args = ap.parse_args()
    rng,bad = random.Random(args.seed),0
    with tempfile.TemporaryDirectory() as d:
        d = Path(d)
        save_npz(d)
        ways = [*kinds, 'folds', 'study']
        of = {k: whole(k, d) for k in ways}
        for i in range(args.kills):
            kind = ways[i%len(ways)]
            end,seconds = of[kind]
            said = killed(kind, d/f'{kind}-{i}', seconds, rng)
            equal = ends(d/f'{kind}-{i}')==end
            bad += not equal
            print(f"{kind}: {'; '.join(said)}: {'equal' if equal else 'DIFFERENT'}", flush=True)
    print(f"{args.kills-bad} of {args.kills} ended as the uninterrupted run did")
    return bool(bad)

if __name__=='__main__': raise SystemExit(main())
