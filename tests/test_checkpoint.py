"Checkpoints: the state of each callback comes back to it, wherever it was given, or the resumed fit is refused."
import pandas as pd, pytest, torch
from fastai.basics import Callback, CrossEntropyLossFlat, DataLoaders, Learner, nn, noop, set_seed
from fastai.callback.progress import ProgressCallback
from balmix_fastai.checkpoint import Checkpoint
from balmix_fastai.mixup import BalancedMixUp

class Count(Callback):
    "Steps so far, which are added to the weights, so that a lost state shows"
    def __init__(self, add=1e-3): self.add,self.steps = add,0
    def after_step(self):
        self.steps += 1
        with torch.no_grad(): self.learn.model.bias += self.add*self.steps
    def state_dict(self): return dict(steps=self.steps)
    def load_state_dict(self, state): self.steps = state['steps']

class Other(Count): "Another class with a state"

class Stop(Callback):
    order = 65 # after `Checkpoint`
    def after_epoch(self):
        if self.epoch==1: raise KeyboardInterrupt

def tiny(cbs=None):
    set_seed(0)
    items = [(torch.randn(2)+k%3, k%3) for k in range(40)]
    learn = Learner(DataLoaders.from_dsets(items, items, bs=8, num_workers=0), nn.Linear(2, 3), CrossEntropyLossFlat(), cbs=cbs)
    learn.remove_cb(ProgressCallback).logger = noop
    return learn

def fit(path, in_learner=(), in_fit=(), stop=False):
    "A fit of four epochs with a checkpoint, resumed if there is one"
    learn,ckpt = tiny([f() for f in in_learner]),Checkpoint(path, 'valid_loss')
    learn.fit(4, 1e-2, start_epoch=ckpt.load(learn), cbs=[*[f() for f in in_fit], ckpt, *([Stop()] if stop else [])])
    return learn.model.bias.detach().clone()

a,b,c = lambda: Count(1e-3),lambda: Other(5e-3),lambda: Count(.02)
mix = lambda: BalancedMixUp(.2, seed=0, partners='pool')
@pytest.mark.parametrize('first,then', [(([a],[]), ([a],[])), (([],[a]), ([],[a])), (([a],[]), ([],[a])), (([],[a]), ([a],[])), (([a,b],[]), ([b,a],[])),
    (([a],[b]), ([b],[a])), (([a,c],[]), ([a],[c])), (([mix],[a]), ([a],[mix])), (([],[mix]), ([mix],[]))])
def test_states_find_their_callbacks(tmp_path, first, then):
    "The same weights as without an interruption, wherever the callbacks were given"
    want = fit(tmp_path/'whole', *first)
    with pytest.raises(KeyboardInterrupt): fit(tmp_path/'cut', *first, stop=True)
    assert torch.allclose(fit(tmp_path/'cut', *then), want, atol=1e-5) # sums in another order are rounded otherwise
    log = [pd.read_csv(tmp_path/o/'log.csv').drop(columns='time', errors='ignore') for o in ('whole','cut')]
    pd.testing.assert_frame_equal(*log, atol=1e-5)
    assert len(log[0])==4

@pytest.mark.parametrize('then', [([],[]), ([a,b],[]), ([b],[]), ([a,a],[]), ([],[b])])
def test_other_callbacks_are_refused(tmp_path, then):
    with pytest.raises(KeyboardInterrupt): fit(tmp_path, [a], stop=True)
    state = (tmp_path/'state.pth').read_bytes()
    with pytest.raises(ValueError, match='these callbacks: Count 1; and this fit has: .*Resume with'): fit(tmp_path, *then)
    assert (tmp_path/'state.pth').read_bytes()==state

def test_a_state_of_unnamed_callbacks_is_refused(tmp_path):
    with pytest.raises(KeyboardInterrupt): fit(tmp_path, [a], stop=True)
    s = torch.load(tmp_path/'state.pth', weights_only=True)
    s['own'][0]['cbs'] = list(s['own'][0]['cbs'].values()) # as version 0.1.0 wrote it
    torch.save(s, tmp_path/'state.pth')
    with pytest.raises(ValueError, match='0.1.0'): fit(tmp_path, [a])

def test_a_second_fit_with_the_same_checkpoint_is_written(tmp_path):
    learn,ckpt = tiny(),Checkpoint(tmp_path, 'last')
    learn.fit(2, 1e-2, cbs=ckpt)
    learn.fit(3, 1e-2, cbs=ckpt)
    assert len(ckpt.rows)==len(pd.read_csv(tmp_path/'log.csv'))==3 and ckpt.best_epoch==2
    assert torch.equal(torch.load(tmp_path/'best.pth')['bias'], learn.model.bias)

def test_a_finished_fit_can_be_followed_by_another(tmp_path):
    fit(tmp_path)
    learn,ckpt = tiny(),Checkpoint(tmp_path, 'last')
    assert ckpt.load(learn)==4
    learn.fit(4, 1e-2, start_epoch=4, cbs=ckpt)
    torch.manual_seed(7)
    learn.fit(6, 1e-2, cbs=ckpt)
    assert len(ckpt.rows)==6
