"The files that describe the package agree with each other, and with what is in it."
import importlib, json, os, re, runpy, subprocess, tomllib
from configparser import ConfigParser
from importlib import metadata
from pathlib import Path
import pytest, balmix_fastai

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
