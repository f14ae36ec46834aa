"Fixtures for all tests."
import importlib.util, os, sys, types
from pathlib import Path
import matplotlib, pytest, torch

matplotlib.use('Agg')

@pytest.fixture(scope='session')
def data_dir():
    "Folder of the real data sets: `BALMIX_DATA`, else `../shared/data` beside the checkout; skips the test where there is none."
    p = Path(os.environ.get('BALMIX_DATA') or Path(__file__).resolve().parents[2]/'shared/data')
    if not p.is_dir(): pytest.skip('needs the data sets: set BALMIX_DATA to the folder that holds them')
    return p.resolve()

@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    "Run each test in a folder of its own, since fastai saves models below the current one"
    monkeypatch.chdir(tmp_path)

@pytest.fixture
def seed():
    "Seed Python, NumPy and PyTorch; the value is the seed."
    from fastai.torch_core import set_seed
    set_seed(42, reproducible=True)
    return 42

@pytest.fixture
def distributed(monkeypatch):
    "`fastai.distributed`, with a stand-in for accelerate where it is not installed, and no process group"
    if not importlib.util.find_spec('accelerate'):
        monkeypatch.setitem(sys.modules, 'accelerate', types.ModuleType('accelerate'))
        sys.modules['accelerate'].Accelerator = object
    monkeypatch.delitem(sys.modules, 'fastai.distributed', raising=False)
    import fastai.distributed as res
    monkeypatch.setattr(res.DistributedDL, '_broadcast', lambda self, t, rank: torch.LongTensor(t).tolist())
    yield res
    sys.modules.pop('fastai.distributed', None)
