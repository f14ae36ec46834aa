"The benchmark's arithmetic, and that every part of it runs at a small size. No test looks at how fast anything is."
import json, pytest
from PIL import Image
from balmix_fastai import bench
from balmix_fastai.bench import BenchResults, make_jpegs, ratio, report_memory, take_turns
from balmix_fastai.cli import CliError, balmix_bench

def test_turns_alternate_and_ratios_are_of_turns():
    order = []
    def f(name, secs):
        it = iter(secs)
        def run():
            order.append(name)
            return next(it)
        return run
    t = take_turns(dict(a=f('a', [9,1,2,3]), b=f('b', [9,1,1,6])), rounds=3)
    assert order==['a','b','b','a','a','b','b','a']
    assert t.a.tolist()==[1,2,3] and t.b.tolist()==[1,1,6]
    assert ratio(t, 'a', 'b')==dict(ratio=1, low=.5, high=2, seconds=2, against_seconds=1)

def test_what_gives_no_seconds_is_clocked():
    t = take_turns(dict(a=lambda: None), rounds=2, warm=False)
    assert (t.a>=0).all() and len(t)==2

@pytest.mark.parametrize('up,r,says', [(False, 1.2, 'at most 1.15: missed'), (False, 1.1, 'met'), (True, 12.5, 'at least 1.15: met'), (True, 1., 'missed')])
def test_goals(up, r, says):
    res = BenchResults([dict(what='w', ours='a', against='b', ratio=r, low=r, high=r, goal=1.15, more_is_better=up)], dict(CPU='c'))
    assert says in res.to_frame().goal.iloc[0]

def test_pictures_are_long_tailed_and_as_large_as_photographs(tmp_path):
    make_jpegs(tmp_path, 60, 256)
    n = [len(list((tmp_path/f'class{k}').iterdir())) for k in range(10)]
    assert n[0]>10*n[-1]>=10 and n==sorted(n, reverse=True) and 50<=sum(n)<=75
    f = tmp_path/'class0'/'0.jpg'
    assert Image.open(f).size==(256,256) and f.stat().st_size>20_000

def test_all_of_it_runs(tmp_path):
    res = balmix_bench(out=str(tmp_path/'b'), rounds=1, quick=True)
    whats = set(res.rows.what)
    for o in ('waits for its loader', 'the same', 'own time in a step', 'drawing', 'first batch', 'peak memory', 'tables of a study of', 'report of 5,000 predictions'): assert any(o in w for w in whats), o
    assert (res.rows.ratio>0).all() and {o.name for o in (tmp_path/'b').iterdir()}=={'bench.json','bench.md','bench.png'}
    again = BenchResults.load(tmp_path/'b')
    assert again.to_markdown()==res.to_markdown()==(tmp_path/'b'/'bench.md').read_text()
    assert json.loads((tmp_path/'b'/'bench.json').read_text())['meta']['GPU']

def test_growth_is_measured_over_sizes():
    t = bench.bench_study((2,4,3), seeds=2, n=20, rounds=2)
    assert list(t.columns)==['2 arms','4 arms','3 arms'] and len(t)==2 and (t>0).all(axis=None)
    m = report_memory(300, 50)
    assert m['probs']==8*300*50 and m['report']>m['probs'], 'a report keeps its probabilities'

def test_bad_options(tmp_path):
    with pytest.raises(CliError, match='choose from loader'): balmix_bench(out=str(tmp_path), only='speed')
    with pytest.raises(CliError, match='--rounds 0'): balmix_bench(out=str(tmp_path), rounds=0)
