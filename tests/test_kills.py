"Runs and studies that are killed at random moments end as uninterrupted ones; the long form is `python tests/kills.py`."
import pytest, random
from kills import ends, kinds, killed, save_npz, whole

@pytest.mark.parametrize('kind', [*kinds, 'folds', 'study'])
def test_killed_runs_go_on_exactly(kind, tmp_path):
    "Kills at moments that nobody chose: whenever they come, the end must be equal"
    save_npz(tmp_path)
    end,seconds = whole(kind, tmp_path)
    said = killed(kind, tmp_path/'cut', seconds, random.Random(), kills=1 if kind=='study' else 2)
    assert ends(tmp_path/'cut')==end, said
