"The checks behind `make test`, in order, stopping at the first that fails. Names of steps as arguments run only those."
import os, re, shutil, subprocess, sys, sysconfig, tempfile, time, nbformat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from nbclient import NotebookClient

root,bins = Path(__file__).resolve().parents[1],Path(sys.executable).parent
parts = 'nbs balmix_fastai tests .ci settings.ini setup.py pyproject.toml README.md LICENSE CHANGELOG.md CITATION.cff'.split()
# One thread each: the networks here are tiny, and threads of two processes that share the cores wait for each other 20 times longer than they work
env = {k:v for k,v in os.environ.items() if k!='PYTHONPATH'} | dict(MPLBACKEND='Agg', OMP_NUM_THREADS='1')

steps = {}

class Failed(Exception): pass

def step(
    hint, # What to do when the step fails
): # Decorator
    "Add a function to the steps, which run in the order of their definition."
    def _f(f): steps[f.__name__] = f,hint
    return _f

def run(
    *cmd,        # Command and its arguments
    cwd=root,    # Where it runs
    quiet=False, # Show its output only if it fails?
): # What it printed, if `quiet`
    "Run a command, or raise `Failed`."
    kw = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) if quiet else {}
    p = subprocess.run([str(o) for o in cmd], cwd=cwd, env=env, **kw)
    if p.returncode: raise Failed(f"{p.stdout or ''}`{Path(cmd[0]).name} {' '.join(str(o) for o in cmd[1:])}` gave exit status {p.returncode}")
    return p.stdout

def copy(
    dest, # Folder to make
): # The folder
    "A copy of what belongs to the project, so that a check never changes the checkout."
    dest.mkdir()
    ignore = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints', 'models', '*.egg-info')
    for p in parts:
        if (root/p).is_dir(): shutil.copytree(root/p, dest/p, ignore=ignore)
        elif (root/p).exists(): shutil.copy2(root/p, dest/p)
    return dest

def contents(d): return {str(p.relative_to(d)):p.read_bytes() for p in sorted(d.rglob('*')) if p.is_file() and '__pycache__' not in p.parts}

@step('run `make export`, and look at what it changed')
def export(
    tmp, # Scratch folder
):
    "Exporting and cleaning the notebooks of a copy must change no file of it."
    src = copy(tmp/'src')
    before = contents(src)
    run(bins/'nbdev-export', cwd=src, quiet=True)
    out = run(bins/'nbdev-clean', cwd=src, quiet=True)
    if 'Failed to clean' in out: raise Failed(out) # nbdev-clean only warns of it
    after = contents(src)
    diff = [p for p in sorted(before|after) if before.get(p)!=after.get(p)]
    if diff: raise Failed('out of step with the notebooks, or not cleaned: ' + ', '.join(diff))

@step('run `make readme`')
def readme(tmp):
    "README.md must be what nbs/index.ipynb gives."
    run(sys.executable, root/'.ci/readme.py', '--check')

def blind(
    path, # Notebook
): # Its name and the first line of each cell that shows a picture without a text for it
    "Cells whose pictures readers who do not see them cannot tell."
    cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type=='code' and '#| fig-alt:' not in c.source]
    return [f'{path.name}: {c.source.splitlines()[0]}' for c in cells if any('image/png' in o.get('data', {}) for o in c.outputs)]

@step('change what chkstyle lists above (`chkstyle --fix PATH` changes some of it), and give pictures a text (`#| fig-alt: "..."`)')
def style(tmp):
    run(bins/'chkstyle', '--show-rule', 'nbs', 'tests', 'setup.py', '.ci')
    bad = [o for p in sorted((root/'nbs').glob('*.ipynb')) for o in blind(p)]
    if bad: raise Failed('pictures without a text:\n' + '\n'.join(bad))

pages = r'^(tutorial|howto)\.|^(index|contributing|changelog)\.'

@step('run `nbdev-test nbs/NAME.ipynb --do-print` on the notebook named above')
def notebooks(tmp):
    "The notebooks of the rooms and results run."
    run(bins/'nbdev-test', '--n-workers', 2, '--skip-file-re', rf'^[_.]|{pages}')

starting = Lock()

def in_kernel(
    path, # Notebook
): # What went wrong, or an empty string
    "Run a notebook from top to bottom in a fresh kernel, as a reader would."
    nb = nbformat.read(path, as_version=4)
    for c in nb.cells:
        if c.cell_type=='code' and re.search(r'^#\|\s*eval:\s*false', c.source, re.M): c.cell_type = 'raw'
    client = NotebookClient(nb, timeout=600, kernel_name='python3', resources=dict(metadata=dict(path=str(path.parent))))
    try:
        with starting: # two kernels that start at once may be given the same port
            client.create_kernel_manager()
            client.start_new_kernel()
            client.start_new_kernel_client()
        client.execute()
    except Exception as e: return f'{path.name}: {e}'
    return ''

@step('run the notebook named above in Jupyter')
def tutorials(tmp):
    "Tutorials and how-tos run in a fresh kernel each; those on real data only where it is."
    src = copy(tmp/'src')
    names = [p for p in sorted((src/'nbs').glob('*.ipynb')) if re.search(pages, p.name) and (env.get('BALMIX_DATA') or p.name!='tutorial.retina.ipynb')]
    os.environ.update(env)
    with ThreadPoolExecutor(2) as pool: bad = [o for o in pool.map(in_kernel, names) if o]
    if bad: raise Failed('\n'.join(bad))
    print(f'   {len(names)} pages')

@step('look at settings.ini, setup.py and balmix_fastai/cli.py')
def wheel(
    tmp, # Scratch folder
):
    "The wheel must work away from the checkout, next to the packages of this environment."
    src,venv,work = copy(tmp/'src'),tmp/'venv',tmp/'work'
    run(sys.executable, '-m', 'build', '--wheel', '--outdir', tmp, src, quiet=True)
    run(sys.executable, '-m', 'venv', '--without-pip', venv)
    py,whl = venv/'bin/python',next(tmp.glob('*.whl'))
    run(sys.executable, '-m', 'pip', '--python', py, 'install', '-q', '--no-deps', '--no-index', '--disable-pip-version-check', whl)
    # Python reads no .pth files of a folder that itself came from a .pth, so the checkout's editable install stays out of reach.
    # Written after the install, or pip would take that editable install for the wheel's.
    site = Path(sysconfig.get_path('purelib', 'venv', dict(base=str(venv), platbase=str(venv))))
    (site/'tested_environment.pth').write_text(sysconfig.get_path('purelib'))
    work.mkdir()
    code = 'from balmix_fastai.all import *; import balmix_fastai as b; print(b.__version__); print(b.__file__)'
    ver,fname = run(py, '-c', code, cwd=work, quiet=True).strip().splitlines()[-2:]
    if site not in Path(fname).parents: raise Failed('balmix_fastai was imported from elsewhere than the wheel')
    run(venv/'bin/balmix-demo', '--epochs', 1, '--seeds', 1, '--out', work/'demo', cwd=work, quiet=True)
    run(venv/'bin/balmix-study', 'digits', '--arms', 'instance', '--seeds', 1, '--set', 'epochs=1', '--out', work/'study', cwd=work, quiet=True)
    missing = [ext for ext in ('csv','png') if not any(p.stat().st_size for p in (work/'demo').rglob(f'*.{ext}'))]
    if missing: raise Failed(f"balmix-demo wrote no {' and no '.join(missing)} file")
    print(f'{whl.name}: imports as {ver}, balmix-demo wrote its table and picture, balmix-study found its studies')

@step('run `make docs` and look at the page named above')
def site(tmp):
    "The site builds without a warning, and works in a browser."
    src = copy(tmp/'src')
    run(sys.executable, src/'.ci/docs.py', '--strict', cwd=src)
    has = env.get('CHROMIUM') or any(map(shutil.which, ('chromium','chromium-browser','google-chrome')))
    if has: run(sys.executable, '-m', 'pytest', '-q', '-n', 'auto', '-p', 'no:cacheprovider', '-c', os.devnull, '--rootdir', src, src/'.ci/test_site.py', cwd=tmp)
    elif env.get('CI'): raise Failed('Chromium is missing: install it, or let CHROMIUM name it')
    else: print('   no Chromium on the path or in CHROMIUM: the site was built, but not opened in a browser')

@step('') # pytest says it all, and its closing line ends the output
def tests(tmp): run(sys.executable, '-m', 'pytest', '-n', 'auto', '--dist', 'worksteal')

def main(
    names, # Steps to run, all if empty
): # Exit status
    "Run the steps; pytest is the last, and its closing line ends the output."
    unknown = set(names)-steps.keys()
    if unknown: return f"no such step: {', '.join(sorted(unknown))}; there are: {', '.join(steps)}"
    data = env.get('BALMIX_DATA')
    if data: env['BALMIX_DATA'] = str(Path(data).resolve())
    if not data or not Path(data).is_dir():
        env.pop('BALMIX_DATA', None)
        print('BALMIX_DATA names no folder: what needs its data sets (tutorial.retina and some tests) will be skipped')
    for nm in names or steps:
        f,hint = steps[nm]
        print(f'== {nm}', flush=True)
        start = time.time()
        try:
            with tempfile.TemporaryDirectory(prefix='balmix-') as d: f(Path(d))
        except Failed as e: return 1 if nm=='tests' else f'{e}\n\n`make test` stopped at: {nm}. To mend it: {hint}'
        if nm!='tests': print(f'   {nm}: {time.time()-start:.1f} s', flush=True)

if __name__=='__main__': sys.exit(main(sys.argv[1:]))
