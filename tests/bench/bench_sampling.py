"Drawing one epoch of indices: `ClassSampler` beside what fastai's `WeightedDL` and torch's `WeightedRandomSampler` do."
import numpy as np, pytest, torch
from torch.utils.data import WeightedRandomSampler
from balmix_fastai.sampling import ClassSampler, class_counts

sizes = [10**5, 10**6]

@pytest.fixture(params=sizes, ids=lambda n: f'n={n:.0e}')
def labels(request): return np.random.default_rng(0).choice(10, request.param, p=np.arange(10,0,-1)/55)

@pytest.fixture
def wgts(labels): return 1/class_counts(labels)[labels]

def bench_class_sampler(benchmark, labels):
    sampler = ClassSampler(labels, seed=0)
    benchmark(sampler.draw, len(labels))

def bench_class_sampler_build(benchmark, labels): benchmark(ClassSampler, labels, seed=0)

def bench_numpy_choice(benchmark, labels, wgts):
    p = wgts/wgts.sum()
    benchmark(np.random.choice, len(p), len(p), p=p)

def bench_torch_sampler(benchmark, wgts):
    sampler = WeightedRandomSampler(torch.from_numpy(wgts), len(wgts))
    benchmark(lambda: list(sampler))
