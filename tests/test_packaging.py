"The files that describe the package agree with each other, and with what is in it."
import importlib, inspect, json, os, pkgutil, re, runpy, subprocess, tomllib
from configparser import ConfigParser
from importlib import metadata
from pathlib import Path
import pytest, balmix_fastai
from fastcore.docments import docments

root = Path(__file__).resolve().parents[1]

@pytest.fixture(scope='module')
def ini():
    "settings.ini"
    cp = ConfigParser(delimiters=['='])
    cp.read(root/'settings.ini', encoding='utf-8')
    return cp['DEFAULT']

@pytest.fixture(scope='module')
def proj():
    "pyproject.toml"
    return tomllib.loads((root/'pyproject.toml').read_text(encoding='utf-8'))

@pytest.fixture(scope='module')
def meta():
    "What setup.py hands to setuptools"
    import setuptools as st
    kw = {}
    with pytest.MonkeyPatch.context() as mp:
        mp.setattr(st, 'setup', lambda **k: kw.update(k))
        mp.chdir(root)
        runpy.run_path(str(root/'setup.py'))
    return kw

def tracked(*suffixes):
    "Files of the project, new ones too, less the ignored ones"
    try: out = subprocess.run(['git', 'ls-files', '-coz', '--exclude-standard'], cwd=root, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError): pytest.skip('needs a git checkout')
    ps = [root/o for o in out.split('\0') if o]
    return [p for p in ps if p.is_file() and (not suffixes or p.suffix in suffixes)]

def test_one_version(ini, meta):
    assert ini['version'] == meta['version'] == balmix_fastai.__version__ == metadata.version('balmix_fastai')
    assert f"[{ini['version']}]" in (root/'CHANGELOG.md').read_text(encoding='utf-8')

def test_pyproject_agrees(ini, proj, meta):
    p = proj['project']
    assert p['name'] == ini['lib_name'] == meta['name']
    assert p['description'] == ini['description'] == meta['description']
    assert p['requires-python'] == f">={ini['min_python']}" == meta['python_requires']
    assert p['urls'] == dict(Repository=ini['git_url'], Documentation=ini['doc_url'])

def test_every_dynamic_field_is_set(proj, meta):
    src = dict(dependencies='install_requires', readme='long_description', license='license_expression', authors='author', scripts='entry_points')
    src |= {'optional-dependencies':'extras_require', 'entry-points':'entry_points'}
    missing = [f for f in proj['project']['dynamic'] if not meta.get(src.get(f, f))]
    assert not missing

def test_requirements_come_from_settings(ini, meta):
    assert meta['install_requires'] == ini['requirements'].split()
    assert {'dev','medmnist','distributed'} <= meta['extras_require'].keys()
    assert meta['extras_require']['dev'] == ini['dev_requirements'].split()

def test_nbdev_finds_the_package(meta):
    assert meta['entry_points']['nbdev'] == ['balmix_fastai=balmix_fastai._modidx:d']
    assert 'balmix_fastai' in meta['packages'] and all(p.split('.')[0] == 'balmix_fastai' for p in meta['packages'])
    assert 'balmix_fastai' in importlib.import_module('balmix_fastai._modidx').d['settings']['lib_path']

def test_console_scripts_exist(meta):
    cmds = dict(o.split('=') for o in meta['entry_points']['console_scripts'])
    assert {'balmix-demo','balmix-train','balmix-study','balmix-bench'} <= cmds.keys()
    for o in cmds.values():
        mod,fn = o.split(':')
        assert callable(getattr(importlib.import_module(mod), fn)), o

def test_ci_run_is_executable(): assert os.access(root/'.ci/run', os.X_OK)

def test_notebooks_have_their_modules():
    nbs = tracked('.ipynb')
    assert nbs
    for nb in nbs:
        cells = json.loads(nb.read_text(encoding='utf-8'))['cells']
        m = re.search(r'^#\|\s*default_exp\s+(\S+)', '\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'code'), re.M)
        if m: assert (root/'balmix_fastai'/(m[1].replace('.', '/')+'.py')).exists(), nb.name

def test_no_torchvision_shims():
    # an environment in which torchvision does not import is mended there, not by registering its operators here
    bad = [p.name for p in tracked('.py','.ipynb') if p != Path(__file__) and re.search(r'library\.Library|torchvision::', p.read_text(encoding='utf-8'))]
    assert not bad

def test_no_machine_paths():
    pat = re.compile(r'(?<![\w.])/(?:home|root|Users|work)/\w|\bsite-packages[/\\]|[A-Z]:\\+Users\b')
    bad = [f'{p.relative_to(root)}: {m[0]}' for p in tracked() if p.suffix not in ('.png','.jpg','.gz','.zip')
        and (m := pat.search(p.read_text(encoding='utf-8', errors='ignore')))]
    assert not bad

def _public():
    "Name and value of everything public that is defined here"
    for m in pkgutil.iter_modules(balmix_fastai.__path__):
        if m.name.startswith('_') or m.name=='all': continue
        mod = importlib.import_module(f'balmix_fastai.{m.name}')
        yield from ((f'{m.name}.{n}', getattr(mod, n)) for n in getattr(mod, '__all__', []))

def test_everything_public_explains_itself():
    "A docstring for each, and a docment for each parameter that is not fastai's"
    for name,o in _public():
        if not callable(o): continue
        assert o.__doc__, name
        f = o.__dict__.get('__init__', o) if isinstance(o, type) else o
        if isinstance(o, type) and '__init__' not in o.__dict__: continue
        own = set(f.__code__.co_varnames[:f.__code__.co_argcount+f.__code__.co_kwonlyargcount])-{'self','cls'} if hasattr(f, '__code__') else set()
        doc = docments(f, full=True)
        missing = [k for k in own if not doc[k].docment]
        assert not missing or '@delegates' in inspect.getsource(f), (name, missing)

def test_objects_say_what_they_are():
    "No public class is shown as an address in memory"
    for name,o in _public():
        if isinstance(o, type) and not issubclass(o, BaseException): assert o.__repr__ is not object.__repr__, name

def test_the_page_of_changes_is_the_changelog():
    "nbs/changelog.ipynb shows CHANGELOG.md as it is (run the notebook again)"
    cells = json.loads((root/'nbs/changelog.ipynb').read_text(encoding='utf-8'))['cells']
    shown = [''.join(o['data']['text/markdown']) for c in cells for o in c.get('outputs', []) if 'text/markdown' in o.get('data', {})]
    assert shown and shown[0]==(root/'CHANGELOG.md').read_text(encoding='utf-8').split('\n', 2)[2]

def test_citation_has_the_version(ini): assert f"\nversion: {ini['version']}\n" in (root/'CITATION.cff').read_text(encoding='utf-8')

def test_one_lowest_python_everywhere(ini):
    "settings.ini, Makefile, and the pages that tell how to install"
    says = {'Makefile': r'sys\.version_info < \((\d+,\s*\d+)\)', 'README.md': r'With Python (\d+\.\d+) or newer', 'nbs/index.ipynb': r'With Python (\d+\.\d+) or newer',
        'nbs/contributing.ipynb': r'With Python (\d+\.\d+) or newer'}
    for f,pat in says.items():
        assert [re.sub(r',\s*', '.', o) for o in re.findall(pat, (root/f).read_text(encoding='utf-8'))]==[ini['min_python']], f
