"The page that maps the methods: complete, every row with a check, and the numbers are those of the published studies."
import json
from pathlib import Path
import pandas as pd, pytest
from fastai.learner import Learner
from balmix_fastai import decouple, flexible, heads, losses, mixers, mixup, posthoc, schedule

nbs = Path(__file__).parents[1]/'nbs'
columns = ['Method','Call','Changes','Use it when','Not with','Source','Checked against','Here']
results = dict(digits_methods='balanced_accuracy', retinamnist_methods='quadratic_kappa', retinamnist_flexible='quadratic_kappa')

@pytest.fixture(scope='module')
def page(): return '\n'.join(''.join(c['source']) for c in json.loads((nbs/'map.ipynb').read_text())['cells'])

@pytest.fixture(scope='module')
def rows(page):
    res = []
    for l in page.splitlines():
        if not l.startswith('|'): continue
        cells = [o.strip() for o in l.strip('|').split('|')]
        if cells==columns or set(l)<=set('|-: '): continue
        assert len(cells)==len(columns), l
        res.append(dict(zip(columns, cells)))
    return pd.DataFrame(res).set_index('Method')

def summary(name): return pd.read_csv(nbs/'results'/name/'summary.csv', header=[0,1], index_col=0)
def shown(v): return f"{100*v['mean']:.1f} ± {100*v['sd']:.1f}"

def test_every_row_has_a_call_and_a_check(rows):
    assert rows.index.is_unique and (rows[['Call','Changes','Use it when','Checked against','Here']]!='').all(axis=None)

def test_numbers_are_those_of_the_studies(rows, page):
    "Each in the column is an arm's of one of the studies, under its name; and so is plain training's in the text"
    digits,retina,flex = (summary(o)[k] for o,k in results.items())
    for name,here in rows.Here.items():
        if here=='see [posthoc](posthoc.html)': continue
        of = next(o for o in (digits, retina, flex) if name in o.index)
        assert here==shown(of.loc[name]), name
    assert f"plain training has {shown(digits.loc['instance'])}, and for grades" in page and f"plain training has {shown(retina.loc['instance'])}." in page
    assert f"plain training has {shown(flex.loc['instance'])}]" in page

def test_every_arm_on_digits_is_on_the_map(rows): assert set(summary('digits_methods').index)-{'instance'}<=set(rows.index)

parts = 'ClassLoss CELoss class_weights log_prior PairedMixer CosineLinear find_classifier replace_layer in_eval features find_layer weights_sum'.split()+\
    'Correction CutPoints TensorCorrected load_correction undo_stage2 attach corrected_preds uncorrected get_preds tta export'.split()

@pytest.mark.parametrize('room', [losses, mixers, mixup, schedule, decouple, flexible, posthoc, heads], ids=lambda o: o.__name__.split('.')[-1])
def test_every_method_is_on_the_map(room, rows):
    "All public callbacks, losses, fits, and methods of `Learner` but for parts of them"
    calls,methods = ' '.join(rows.Call),[k for k,v in vars(Learner).items() if getattr(v, '__module__', '')==room.__name__]
    names = [o for o in [*room.__all__, *methods] if o not in parts and not o.startswith('_')]
    assert names and [o for o in names if o not in calls]==[]
