"Files and names: what is written comes back, and what is shown is what was meant."
import csv, html, json, os, random, re, subprocess, sys, warnings
from pathlib import Path
import matplotlib.pyplot as plt, numpy as np, pandas as pd, pytest
from balmix_fastai.output import as_text, check_folder, from_sheet, in_figure, in_markdown, in_terminal, map_text
from balmix_fastai.output import read_predictions, read_table, save_picture, write_table, write_whole
from balmix_fastai.compare import compare
from balmix_fastai.report import ImbalanceReport, terminal_table
from balmix_fastai.tables import analyse, StudyResults

names = ['NA', 'None', 'nan', '01', '1e3', 'True', '0.2', 'a,b', 'say "x"', 'two\nlines', 'carriage\rreturn', 'both\r\n', '=1+1', ' space ', 'läsion', '猫', '😀', '$10_$20', r'\frac', '<b>', 'x'*300, '']

def test_names_come_back_from_tables(tmp_path):
    "Read by pandas with types stated, and by the standard library"
    df = pd.DataFrame(dict(split='test', name=names, label=names[::-1], predicted='1', p_1=[.5, np.nan, *[1/3]*(len(names)-2)], p_NA=1))
    write_table(tmp_path/'t.csv', df)
    back = read_predictions(tmp_path/'t.csv')
    pd.testing.assert_frame_equal(back, df, check_exact=True, check_dtype=False)
    assert back.predicted.tolist()==['1']*len(names)
    with open(tmp_path/'t.csv', newline='', encoding='utf-8') as f: rows = list(csv.DictReader(f))
    assert [from_sheet(o['name']) for o in rows]==names and rows[1]['p_1']=='' and [o['name'] for o in rows if o['name'] not in names]==["'=1+1"]

def test_only_columns_of_names_are_text(tmp_path):
    write_table(tmp_path/'t.csv', pd.DataFrame(dict(arm=['01','NA'], lr=[.1,np.nan], epochs=[1,2])))
    t = read_table(tmp_path/'t.csv', ('arm','no such column'))
    assert t.arm.tolist()==['01','NA'] and t.lr.isna().tolist()==[False,True] and t.epochs.tolist()==[1,2]

@pytest.mark.parametrize('raw,want', [('läsion'.encode(), 'läsion'), ('猫'.encode(), '猫'), (b'caf\xe9', r'caf\xe9'), (b'plain', 'plain')])
def test_file_names_that_are_not_utf8(tmp_path, raw, want):
    "Names as Python has them in the locale C, and a name in Latin 1"
    for name in (raw.decode('ascii', 'surrogateescape'), raw.decode('utf-8', 'surrogateescape')):
        assert as_text(name)==want
        write_table(tmp_path/'t.csv', pd.DataFrame(dict(name=[as_text(name)])))
        assert read_table(tmp_path/'t.csv', ['name']).name[0]==want
    assert as_text('\ud800x')==r'\ud800x'

def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    write_whole(tmp_path/'a.txt', 'old')
    def full(*args): raise OSError('disk full')
    monkeypatch.setattr(os, 'replace', full)
    with pytest.raises(OSError, match='disk full'): write_whole(tmp_path/'a.txt', 'new')
    assert [o.name for o in tmp_path.iterdir()]==['a.txt'] and (tmp_path/'a.txt').read_text(encoding='utf-8')=='old'

@pytest.mark.parametrize('name', ['$10_$20', '$', 'a$b$c', r'\$5', r'\frac{1}{2}', '_private', '__x__', 'a^b_c', '50 % {x} #1', '<b>&amp;', 'a|b', '"q"', "it's", 'ä 猫'])
def test_pictures_show_the_name_itself(tmp_path, name):
    "The text of an SVG, in a title, on an axis and in a legend"
    def draw():
        fig,ax = plt.subplots()
        ax.plot([1], label=in_figure(name))
        ax.set(title=in_figure(name), xticks=[0], xticklabels=[in_figure(name)])
        ax.legend()
        return fig
    with plt.rc_context({'svg.fonttype': 'none'}), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert save_picture(tmp_path/'p.svg', draw)
    shown = [html.unescape(o).strip() for o in re.findall(r'<text[^>]*>(.*?)</text>', (tmp_path/'p.svg').read_text(encoding='utf-8'))]
    assert shown.count(name)==3

@pytest.mark.parametrize('name', ['$10_$20', '*x*', '_x_', '__x__', '`x`', '<b>x</b>', 'a|b', '[a](b)', r'\alpha', '&lt;', 'a & b', '~~x~~', 'balanced_accuracy', '# x', '[54.1, 62.6]', '1. x',
    '# x #', '- x', '+ x', '-', '1) x', '---', '===', '[ ] x', '[x]: y', '[^1]', '![a](b)', '{{< x >}}', '@x', '<script>x</script>', r'a\|b', 'a^b^', '12.5'])
def test_markdown_shows_the_name_itself(name):
    page = pytest.importorskip('markdown_it').MarkdownIt('commonmark').enable(['table','strikethrough']).render(f'| a | b |\n|---|---|\n| {in_markdown(name)} | 1 |\n')
    assert html.unescape(re.search(r'<td[^>]*>(.*?)</td>', page, re.S)[1])==name
    item = pytest.importorskip('markdown_it').MarkdownIt('commonmark').render(f'- {in_markdown(name)}\n')
    assert html.unescape(item)==f'<ul>\n<li>{name}</li>\n</ul>\n'
    assert not re.search(r'(?<!\\)\$', in_markdown(name)) # mathematics in Jupyter and Quarto

def test_a_picture_that_cannot_be_drawn_is_a_warning(tmp_path):
    (tmp_path/'p.png').write_bytes(b'of an earlier run')
    def fails(): raise ValueError('no sign for it')
    with pytest.warns(UserWarning, match='p.png could not be drawn .*no sign for it'): assert not save_picture(tmp_path/'p.png', fails)
    assert not list(tmp_path.iterdir())

def test_missing_signs_are_one_warning(tmp_path):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        assert save_picture(tmp_path/'p.png', lambda: plt.figure().suptitle('\ue000\ue001\ue000').figure)
    assert ['2 characters' in str(o.message) and 'p.png' in str(o.message) for o in said]==[True]

def test_a_folder_that_cannot_be_one(tmp_path):
    (tmp_path/'file').write_text('x')
    for o in ('file', 'file/run', 'file/a/b'):
        with pytest.raises(ValueError, match='file is a file'): check_folder(tmp_path/o)
    assert check_folder(tmp_path/'new'/'run')==tmp_path/'new'/'run' and not (tmp_path/'new').exists()

script = '''
import sys, warnings
warnings.filterwarnings('error', category=EncodingWarning, module='balmix_fastai')
from balmix_fastai.cli import balmix_study, balmix_train
kw = dict(arch='small_cnn', epochs=1, size=8, bs=4, augment='none', tta='none')
balmix_train(sys.argv[1], out='run', **kw)
balmix_study('own.yml', out='study')
balmix_study('own.yml', out='study', report=True)
'''

def test_files_are_utf8_in_the_locale_c(tmp_path):
    "Class folders and arms with letters beyond ASCII; no file of the package is opened with the locale's encoding"
    from PIL import Image
    rng = np.random.default_rng(0)
    for k,name in enumerate(('läsion','猫')):
        for i in range(8):
            (tmp_path/'d'/name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 100+100*k, (8,8,3), dtype=np.uint8)).save(tmp_path/'d'/name/f'{i}.png')
    (tmp_path/'own.yml').write_text('data: {read: digits, n_max: 20, ratio: 2}\nseeds: 1\nprotocol: {arch: small_cnn, epochs: 1, bs: 8, size: null, augment: none, tta: none}\narms: {größer: {}, 猫: {alpha: .2}}', encoding='utf-8')
    (tmp_path/'go.py').write_text(script)
    env = {**os.environ, 'PYTHONUTF8': '0', 'LC_ALL': 'C', 'PYTHONCOERCECLOCALE': '0'}
    res = subprocess.run([sys.executable, '-X', 'warn_default_encoding', 'go.py', 'd'], cwd=tmp_path, env=env, capture_output=True)
    assert res.returncode==0, res.stderr.decode(errors='replace')[-2000:]
    df = read_predictions(tmp_path/'run'/'predictions.csv')
    assert set(df.label)=={'läsion','猫'} and {'p_läsion','p_猫'}<=set(df.columns)
    assert read_table(tmp_path/'study'/'runs.csv', ['arm']).arm.tolist()==['größer','猫']
    assert 'größer' in (tmp_path/'study'/'report.md').read_text(encoding='utf-8')

def cells(path):
    with open(path, newline='', encoding='utf-8') as f: return [o for r in csv.reader(f) for o in r]

def predictions_with(name, tmp_path):
    write_table(tmp_path/'t.csv', pd.DataFrame({'split': 'test', 'name': ['a','b'], 'label': name, 'predicted': name, f'p_{name}': [.5,1]}))
    back = read_predictions(tmp_path/'t.csv')
    assert list(back)==['split','name','label','predicted',f'p_{name}'] and back.label.tolist()==[name]*2 and back.iloc[:,4].tolist()==[.5,1]
    return cells(tmp_path/'t.csv')

def table_with(name, tmp_path):
    write_table(tmp_path/'t.csv', pd.DataFrame(dict(a=[name], x=[-.5]), index=pd.Index([name], name=name)), index=True)
    back = read_table(tmp_path/'t.csv', ('a', name))
    assert list(back)==[name,'a','x'] and [*back[name], *back.a]==[name]*2 and back.x.tolist()==[-.5]
    found = cells(tmp_path/'t.csv')
    assert found[0]==found[3]==found[4] and found[5]=='-0.5'
    return found

def recalls_with(name, tmp_path):
    "A study one of whose classes and one of whose arms has the name"
    vocab,arms,y = [name,'other'],[name,'plain'],np.arange(40)%2
    runs = pd.DataFrame([dict(arm=a, seed=s, fold=0) for a in arms for s in range(3)])
    p = np.random.default_rng(0).dirichlet(np.ones(2), (6,40))
    meta = dict(title=name, vocab=vocab, ordinal=False, split='test', counts=[[20,20]], n=[40], reference=name, table=['mcc'], paper={}, centre='mean',
        arms=dict.fromkeys(arms, {}), label_mass=dict.fromkeys(arms, [.5,.5]), missing=0)
    res = analyse(meta, runs, {0: dict(targs=y, probs=p)}, 0)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore') # fonts without the sign
        res.save(tmp_path)
    back = StudyResults.load(tmp_path)
    assert back.to_markdown()==res.to_markdown() and back.arms==list(back.summary.index)==arms and list(back.recalls)==list(res.recalls)
    return cells(tmp_path/'recalls.csv')[:5]

def report(name):
    y = np.arange(30)%2
    return ImbalanceReport(np.random.default_rng(0).dirichlet(np.ones(2), 30), y, [name,'other'], title=name, n_boot=0)

def drawn_with(name):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        fig = report(name).plot_recall()
    return [o.get_text() for o in fig.axes[0].get_xticklabels()]

places = {'table': table_with, 'predictions.csv': predictions_with, 'recalls.csv': recalls_with, 'terminal': lambda o,d: re.split(' {2,}|\n', repr(report(o))),
    'HTML': lambda o,d: re.findall('<t[hd]>(.*?)</t[hd]>', report(o)._repr_html_()), 'Markdown': lambda o,d: re.findall(r'^\| (.*?) (?=\| \d)', report(o).to_markdown(), re.M),
    'picture': lambda o,d: drawn_with(o)}

def table_of_names():
    "Name, place and what is there, from the page of the module"
    page = json.loads((Path(__file__).parents[1]/'nbs'/'output.ipynb').read_text(encoding='utf-8'))
    text = next(t for c in page['cells'] if '## Names that could do harm' in (t := ''.join(c['source'])))
    rows = [re.split(r'(?<!\\)\|', o)[1:4] for o in text.splitlines() if o.startswith('|')][2:]
    code = lambda o: re.fullmatch('(`+) ?(.*?) ?\\1', o.strip())[2].replace(r'\|', '|')
    plain = lambda o: re.sub(r'\\(n|t|x..|u....)', lambda m: m[0].encode().decode('unicode_escape'), o)
    return [(plain(code(name)), place.strip(), code(what)) for name,place,what in rows]

@pytest.mark.parametrize('name,place,what', table_of_names())
def test_the_table_of_names_is_true(name, place, what, tmp_path): assert what in places[place](name, tmp_path)

def test_any_name_comes_back_from_a_table(tmp_path):
    "Made of what is guarded, of what guards it, and of what is skipped before it; no cell begins as a formula does, unless it is a number"
    rng,signs = random.Random(0), [*'=+-@\'"; \t\r\n,ax15.e', '＝', '－', '\u2212', '\ufeff', '\u202e', '\x1b']
    names = list(dict.fromkeys(''.join(rng.choices(signs, k=rng.randint(0, 6))) for _ in range(3000)))
    df = pd.DataFrame({'name': names, 'x': range(len(names))})
    write_table(tmp_path/'t.csv', df)
    assert read_table(tmp_path/'t.csv', ['name']).name.tolist()==names
    for o in cells(tmp_path/'t.csv'):
        assert not re.match('[=+@＝－\u2212\t\r\n-]', o) or re.fullmatch(r'[+-]?(\d+\.?\d*|\.\d+)(e\d+)?', o), repr(o)
        assert not re.search(r'[;\t\r\n]\s*[=+@-]', o), repr(o)

def test_tables_without_such_names_are_as_pandas_writes_them(tmp_path):
    df = pd.DataFrame({'split': 'test', 'name': ['a/1.png', "it's", 'x-y', '01'], 'label': ['-1','a b','c=d','NA'], 'p_-1': [-.5, 1e-9, np.nan, -np.inf]}, index=[0,0,1,1])
    write_table(tmp_path/'t.csv', df)
    assert (tmp_path/'t.csv').read_text(encoding='utf-8')==df.to_csv(index=False)

def test_text_alone_is_changed():
    df = pd.DataFrame(dict(a=['x',None,'y'], n=[1,2,3], f=[.1,np.nan,.3]), index=pd.Index(['i','j','i'], name='k'))
    res = map_text(df, str.upper)
    assert list(res)==['A','N','F'] and res.index.tolist()==['I','J','I'] and res.index.name=='K' and res.A.tolist()[::2]==['X','Y'] and pd.isna(res.A.iloc[1])
    assert res.N.tolist()==[1,2,3] and res.N.dtype==df.n.dtype and res.F.dtype==float and df.a.iloc[0]=='x'

steering = ['\x1b[31mred', 'a\nb', 'a\rb', '\x9b2J', '\u202eabc', '\u2066x', '\x07', 'a\x08b', '\u2028l', '\x1b]0;t\x07', '\x7fd', '\u200e', '\x85', '\x00', '\ufeff']

@pytest.mark.parametrize('name', steering)
def test_no_name_steers_the_terminal(name):
    "Reports, comparisons, studies and tables; each name is on one line"
    a,b = report(name),report('plain')
    a.vocab = b.vocab
    table = pd.DataFrame({name: [name]}, index=pd.Index([name], name=name))
    shown = [repr(report(name)), repr(compare(a, b)), terminal_table(table), report(name)._repr_html_(), report(name).to_markdown()]
    for o in shown: assert not re.search('[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u2028-\u202e\u2066-\u2069\ufeff]', o)
    assert len(shown[0].splitlines())==len(repr(report('plain')).splitlines()) and in_terminal(name).isprintable()
    assert in_terminal(in_terminal(name))==in_terminal(name)
