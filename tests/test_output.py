"Files and names: what is written comes back, and what is shown is what was meant."
import csv, html, os, re, subprocess, sys, warnings
import matplotlib.pyplot as plt, numpy as np, pandas as pd, pytest
from balmix_fastai.output import as_text, check_folder, in_figure, in_markdown, read_predictions, read_table, save_picture, write_table, write_whole

names = ['NA', 'None', 'nan', '01', '1e3', 'True', '0.2', 'a,b', 'say "x"', 'two\nlines', 'carriage\rreturn', 'both\r\n', '=1+1', ' space ', 'läsion', '猫', '😀', '$10_$20', r'\frac', '<b>', 'x'*300, '']

def test_names_come_back_from_tables(tmp_path):
    "Read by pandas with types stated, and by the standard library"
    df = pd.DataFrame(dict(split='test', name=names, label=names[::-1], predicted='1', p_1=[.5, np.nan, *[1/3]*(len(names)-2)], p_NA=1))
    write_table(tmp_path/'t.csv', df)
    back = read_predictions(tmp_path/'t.csv')
    pd.testing.assert_frame_equal(back, df, check_exact=True, check_dtype=False)
    assert back.predicted.tolist()==['1']*len(names)
    with open(tmp_path/'t.csv', newline='', encoding='utf-8') as f: rows = list(csv.DictReader(f))
    assert [o['name'] for o in rows]==names and rows[1]['p_1']==''

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

@pytest.mark.parametrize('name', ['$10_$20', '*x*', '_x_', '__x__', '`x`', '<b>x</b>', 'a|b', '[a](b)', r'\alpha', '&lt;', 'a & b', '~~x~~', 'balanced_accuracy', '# x', '[54.1, 62.6]', '1. x'])
def test_markdown_shows_the_name_itself(name):
    page = pytest.importorskip('markdown_it').MarkdownIt('commonmark').enable(['table','strikethrough']).render(f'| a | b |\n|---|---|\n| {in_markdown(name)} | 1 |\n')
    assert html.unescape(re.search(r'<td[^>]*>(.*?)</td>', page, re.S)[1])==name
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
