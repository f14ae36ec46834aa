"""Simulations of the page of statistics: how often intervals contain the true value, and how often verdicts are false.

python tests/statistics/simulate.py --out nbs/results/statistics          # about ten minutes on two cores
"""
import argparse, time, warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
import numpy as np, pandas as pd
from balmix_fastai.compare import mean_estimate
from balmix_fastai.intervals import Estimate, Frame, decision_influences, grade_influences, pooled_error, rank_influences, sign_flip, study_power
from balmix_fastai.metrics import classwise_ece, decision_metrics, ece, grade_metrics, ranking_metrics
from balmix_fastai.report import ImbalanceReport

grades = (.435, .115, .23, .17, .05) # of RetinaMNIST's test images
tail = tuple(np.array([50, 30, 18, 11, 6.5, 4, 3, 2, 1.6, 1.3])/127.4)
# Test sets: class proportions, items, and how they are drawn
designs = {'100 items, rarest class 4': dict(pi=(.80, .16, .04), n=100), '100 items, rarest class 12': dict(pi=(.60, .28, .12), n=100),
    '400 items, rarest class 12': dict(pi=(.80, .17, .03), n=400), '400 items, rarest class 20': dict(pi=(.85, .10, .05), n=400),
    '400 items, the same, very good model': dict(pi=(.85, .10, .05), n=400, skill=3.),
    '400 items, the same, fixed class counts': dict(pi=(.85, .10, .05), n=400, stratify=True), '400 items, five grades': dict(pi=grades, n=400),
    '400 items, five grades, overconfident': dict(pi=grades, n=400, sharp=3.), '2,000 items, rarest class 50': dict(pi=(.85, .125, .025), n=2000),
    '2,000 items, two classes, rarest 40': dict(pi=(.98, .02), n=2000), '2,000 items, ten classes, rarest 20': dict(pi=tail, n=2000),
    '15 patients of 20 images, five grades': dict(pi=grades, n=300, group=20), '40 patients of 10 images, five grades': dict(pi=grades, n=400, group=10),
    '100 patients of 4 images, rarest class 20': dict(pi=(.85, .10, .05), n=400, group=4),
    '300 patients of 3 images, five grades': dict(pi=grades, n=900, group=3)}

def images(rng, pi, n, group=0, stratify=False):
    "Classes, groups (or `None`) and logits of the images that all models share, without what a model adds"
    k,pi = len(pi),np.array(pi)
    draw = lambda *shape: rng.choice(k, shape, p=pi)
    if stratify: y = np.repeat(np.arange(k), np.round(pi*n).astype(int))
    elif group: y = np.where(rng.random((n//group, group))<.7, draw(n//group, 1), draw(n//group, group)).ravel() # most images of a patient share a class
    else: y = draw(n)
    ids = np.repeat(np.arange(n//group), group) if group else None
    return y, ids, rng.normal(0, .9, (len(y), k)) + (rng.normal(0, .7, (n//group, k))[ids] if group else 0)

def predict(rng, y, base, pi, skill=2., sharp=1., noise=.6, ordered=True):
    "Probabilities of a model with noise of its own; grades are mistaken for their neighbours"
    k = len(pi)
    near = -.9*abs(np.arange(k)[:,None]-np.arange(k)) + .8*np.eye(k) if k>3 and ordered else skill*np.eye(k)
    z = sharp*(near[y] + base + rng.normal(0, noise, base.shape) + .8*np.log(pi))
    p = np.exp(z-z.max(1, keepdims=True))
    return p/p.sum(1, keepdims=True)

def _report(rng, pi, n, group=0, stratify=False, **model):
    y,ids,base = images(rng, pi, n, group, stratify)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore') # of metrics that a small draw does not define
        return ImbalanceReport(predict(rng, y, base, pi, **model), y, vocab=range(len(pi)), ordinal=len(pi)>3, groups=ids, stratify=stratify, n_boot=0)

def _figures(rep):
    "Name to value, low and high, of the metrics and of the rarest class"
    row = rep.per_class.iloc[-1]
    rare = {f'{k} of the rarest class': row[[k, f'{k}_low', f'{k}_high']].tolist() for k in ('prevalence','recall','precision','f1','auroc','mean_prob')}
    return {k: v.tolist() for k,v in rep.metrics[['value','low','high']].T.items()} | rare

def coverage(name, reps, seed=0):
    "How often the intervals of a report contain the true value, for each metric"
    d,rng = designs[name],np.random.default_rng([seed, list(designs).index(name)])
    big = 300_000 # a multiple of every size of groups
    truth = {k: v[0] for k,v in _figures(_report(rng, **d | dict(n=big))).items()}
    got = [_figures(_report(rng, **d)) for _ in range(reps)]
    rows = []
    for k,v in truth.items():
        ends = np.array([o[k][1:] for o in got if k in o])
        ends = ends[~np.isnan(ends).any(1)]
        hit = (ends[:,0]<=v) & (v<=ends[:,1])
        width = np.diff(ends, axis=1).mean() if len(ends) else np.nan
        rows.append(dict(design=name, metric=k, truth=v, reps=reps, printed=len(ends), covered=int(hit.sum()), below=int((v<ends[:,0]).sum()), width=width))
    return pd.DataFrame(rows)

def _both(p, y):
    "Values and influences of metrics of one model"
    g = p.argmax(1)
    ids = [k for k in range(p.shape[1]) if 0<(y==k).sum()<len(y)]
    loss = -np.log(p[np.arange(len(y)),y])
    ranks = np.mean([rank_influences(p[:,k], y==k) for k in ids], 0)
    r = ranking_metrics(p, y)
    val = decision_metrics(g, y) | grade_metrics(g, y) | dict(macro_auroc=r['macro_auroc'], macro_auprc=r['macro_auprc'], nll=loss.mean())
    return val,decision_influences(y, g) | grade_influences(y, g) | dict(macro_auroc=ranks[0], macro_auprc=ranks[1], nll=loss-loss.mean())

def differences(name, reps, seed=1):
    "How often the interval of the difference of two models of the same images, one of them less sure of rare classes, contains the true one"
    d,rng = dict(designs[name]),np.random.default_rng([seed, list(designs).index(name)])
    pi,n,group,stratify,model = d.pop('pi'),d.pop('n'),d.pop('group', 0),d.pop('stratify', False),d
    other = tuple(np.array(pi)**.7/sum(np.array(pi)**.7))
    def pair(n):
        y,ids,base = images(rng, pi, n, group, stratify)
        return y,ids,*[_both(predict(rng, y, base, o, **model), y) for o in (pi,other)]
    _,_,(va,_),(vb,_) = pair(300_000)
    hits = {k: [] for k in va}
    for _ in range(reps):
        y,ids,(a,ia),(b,ib) = pair(n)
        frame = Frame(y, len(pi), ids, stratify)
        for k in va:
            if group and frame.size<frame.least_groups or k in ('balanced_accuracy','macro_f1','macro_auroc','macro_auprc') and frame.units.min()<frame.least: continue
            low,high = Estimate(a[k]-b[k], *frame.error(ia[k]-ib[k])).ends()
            if not np.isnan(low): hits[k].append(low<=va[k]-vb[k]<=high)
    return pd.DataFrame([dict(design=name, metric=k, truth=va[k]-vb[k], reps=reps, printed=len(v), covered=int(sum(v))) for k,v in hits.items()])

# Studies of two arms that are equal: seeds on one test set. `own` is what an arm does to images in all its runs, `run` what a run does
seed_designs = {'runs differ little': dict(own=.6, run=.3), 'as images do': dict(own=.4, run=.7), 'runs differ much': dict(own=.2, run=1.2)}

def _study(rng, seeds, n, own, run, shift=0.):
    "Values (seeds,M) of the differences of two arms, and their errors over items"
    y,_,base = images(rng, grades, n)
    vals,infs = [],[]
    for arm in (0,1):
        mine = base + rng.normal(0, own, base.shape) + shift*arm*np.eye(len(grades))[y]
        g = [predict(rng, y, mine + rng.normal(0, run/4, base.shape[1]), grades, noise=run).argmax(1) for _ in range(seeds)] # a run favours some grades, too
        vals.append([decision_metrics(o, y) | grade_metrics(o, y) for o in g])
        infs.append([decision_influences(y, o) | grade_influences(y, o) for o in g])
    names = list(vals[0][0])
    d = np.array([[a[k]-b[k] for k in names] for a,b in zip(*vals)])
    inf = np.stack([np.mean([a[k]-b[k] for a,b in zip(*infs)], 0) for k in names], 1)
    return names,d,Frame(y, len(grades)).error(inf)

def seeds_size(name, seeds, reps, seed=2):
    "How often two equal arms are called different at level .05, by the t test over runs and items, and by the sign flip over runs"
    rng = np.random.default_rng([seed, list(seed_designs).index(name), seeds])
    found,flips,ratio = [],[],[]
    for _ in range(reps):
        names,d,error = _study(rng, seeds, 400, **seed_designs[name])
        found.append(mean_estimate(d, error).p()<.05)
        flips.append(sign_flip(d[:,0])[0]<.05)
        ratio.append(d.std(0, ddof=1)/np.sqrt(seeds)/error[0])
    return pd.DataFrame([dict(design=f'{seeds} seeds, {name}', metric=k, reps=reps, found=int(np.sum(found, 0)[j]), sign_flip=np.nan if j else np.mean(flips),
        seed_to_item_error=np.mean(ratio, 0)[j]) for j,k in enumerate(names)])

def _fit(rng, x, y, ids):
    "A ridge classifier on some of the features, of a bootstrap of its training items"
    i = rng.integers(0, len(y), len(y))
    a,t = x[i][:,ids],np.eye(3)[y[i]]
    return ids,np.linalg.solve(a.T@a+np.eye(len(ids)), a.T@t)

def folds_size(folds, seeds, reps, n=500, seed=3):
    "How often two recipes that are equal by symmetry are called different: by fold means with Nadeau and Bengio's variance, by their plain t test, and by a t test of all pairs"
    rng = np.random.default_rng([seed, folds, seeds])
    found = []
    for _ in range(reps):
        y = rng.choice(3, n, p=(.6,.3,.1))
        x = rng.normal(size=(n,24)) + .45*np.eye(3)[y]@np.tile(np.eye(3), 8)
        part = rng.permutation(np.arange(n)%folds)
        d,at = [],[]
        for f in range(folds):
            tr,te = part!=f,part==f
            for _ in range(seeds):
                acc = []
                for ids in (np.arange(12), np.arange(12, 24)): # both halves of the features say as much
                    ids,w = _fit(rng, x[tr], y[tr], ids)
                    acc.append(decision_metrics((x[te][:,ids]@w).argmax(1), y[te])['accuracy'])
                d.append([acc[0]-acc[1]])
                at.append(f)
        size = dict(n_train=n-n/folds, n_test=n/folds)
        nb,plain = (mean_estimate(d, folds=at, **o).p()[0] for o in (size, size | dict(n_train=np.inf)))
        pairs = mean_estimate(d, folds=np.arange(len(d)), **size | dict(n_train=np.inf)).p()[0]
        found.append([nb<.05, plain<.05, pairs<.05])
    return pd.DataFrame([dict(design=f'{folds} folds x {seeds} seeds', metric='accuracy', reps=reps, found=int(np.sum(found, 0)[0]), plain_t=np.mean(found, 0)[1], all_pairs=np.mean(found, 0)[2])])

def calibration(over, n, reps, seed=4):
    "Calibration errors of labels that follow the probabilities to the power 1/`over`: plain and debiased means, the true one, and how often the range under calibration holds the plain one"
    rng = np.random.default_rng([seed, int(10*over), n])
    def draw(n):
        y,_,base = images(rng, grades, n)
        p = predict(rng, y, base, grades)
        t = np.minimum((rng.random((n,1)) > p.cumsum(1)).sum(1), len(grades)-1)
        q = p**over
        return q/q.sum(1, keepdims=True),t
    big,rows = draw(300_000),[]
    got = {o: [[f(*d), f(*d, debias=True)] for d in (draw(n) for _ in range(reps))] for o,f in (('ece',ece), ('classwise_ece',classwise_ece))}
    inside = {o: 0 for o in got}
    for _ in range(few := min(reps, 200)):
        c = ImbalanceReport(*draw(n), n_boot=200).calibration
        for o in inside: inside[o] += c.calibrated_low[o]<=c.value[o]<=c.calibrated_high[o]
    for o,f in (('ece',ece), ('classwise_ece',classwise_ece)):
        v = np.array(got[o])
        rows.append(dict(design=f'{n} items, probabilities to the power {over:g}', metric=o, truth=f(*big), reps=reps, plain=v[:,0].mean(), debiased=v[:,1].mean(), range_reps=few, in_range=int(inside[o])))
    return pd.DataFrame(rows)

def power(reps, seed=5):
    "How often the smallest difference of `study_power` is found, in studies of normal numbers"
    rows = []
    for seeds,seed_sd,item_sd,n in ((5,.02,.45,400), (10,.03,.3,400), (3,.01,.45,2000)):
        rng = np.random.default_rng([seed, seeds])
        d = study_power(seed_sd, item_sd, n, seeds)
        items,runs = rng.normal(0, item_sd/np.sqrt(n), reps),rng.normal(0, seed_sd, (reps, seeds))
        s,i = runs.std(1, ddof=1)/np.sqrt(seeds),item_sd/np.sqrt(n)*np.sqrt(rng.chisquare(n-1, reps)/(n-1))
        df = (s**2+i**2)**2/(s**4/(seeds-1)+i**4/(n-1))
        rows.append(dict(design=f'{seeds} seeds, {n} items', metric='any', reps=reps, found=int((Estimate(d+items+runs.mean(1), np.hypot(s, i), df).p()<.05).sum()), smallest=d))
    return pd.DataFrame(rows)

def levels(reps, seed=6):
    "False positives of the t test over runs and items at the levels of Holm's correction, of normal numbers whose error over runs is `ratio` times that over items"
    rng,rows = np.random.default_rng(seed),[]
    for runs in (3,5,10,20):
        for ratio in (.5,1,2):
            s = ratio*np.sqrt(rng.chisquare(runs-1, reps)/(runs-1))
            p = Estimate(rng.normal(0, np.hypot(1, ratio), reps), *pooled_error((s, runs-1), (np.ones(reps), 399))).p()
            rows += [dict(design=f'{runs} runs, ratio {ratio:g}', tests=m, reps=reps, found=int((p<.05/m).sum())) for m in (1,8,37)]
    return pd.DataFrame(rows)

def jobs(scale=1.):
    "Name of a table to its simulations: function and arguments"
    r = lambda n: max(20, round(n*scale))
    seeds = [(seeds_size, name, n, r(1500)) for name in seed_designs for n in (3,5,10)]
    folds = [(folds_size, f, s, r(2000)) for f,s in ((5,1), (5,3), (5,5), (10,1), (2,5))]
    errors = [(calibration, over, n, r(1000)) for over in (1.,1.5,3.) for n in (100,400,2000)]
    pairs = [(differences, name, r(2000)) for name in designs if 'very good' not in name]
    single = [(coverage, name, r(2000)) for name in designs]
    return dict(coverage=single, differences=pairs, seeds=seeds, folds=folds, calibration=errors, power=[(power, r(100_000))], levels=[(levels, r(1_000_000))])

def _do(job): return job[0](*job[1:])

def main(out, scale, workers):
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(workers) as pool:
        for name,todo in jobs(scale).items():
            file,start = out/f'{name}.csv',time.time()
            if file.exists(): continue # delete a table to make it anew
            pd.concat(pool.map(_do, todo)).to_csv(file, index=False, float_format='%.6g')
            print(f'{name}: {len(todo)} simulations, {time.time()-start:.0f} s', flush=True)

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--out', default='nbs/results/statistics', help='folder of the tables; those that are there are kept')
    p.add_argument('--scale', type=float, default=1, help='factor of the number of repetitions')
    p.add_argument('--jobs', type=int, default=2, help='processes')
    main(*(getattr(p.parse_args(), k) for k in ('out','scale','jobs')))
