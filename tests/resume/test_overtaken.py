"""A checkpoint that the next update overtakes while it is written: it is saved as it was."""

import pytest

from onecurve.checkpoint.difference import compare_tensors
from onecurve.checkpoint.folders import folder_name

pytestmark = pytest.mark.distributed


@pytest.fixture
def saved_differently(forks, recipes, tmp_path):
    """Whether step 3, saved by a run that goes on while it is written, is step 3 of a run that ends there."""

    def differs(how, staging):
        ended = forks.train(recipes["causal_lm"], tmp_path / "ended", how, "--train.stop_after", "3")
        words = [staging, str(recipes["causal_lm"]), "--output_dir", str(tmp_path / "went on")]
        went_on = forks.run_script("tests.resume.slow_writer", how, *words, "--checkpoint.also", "[3]")
        assert went_on.exit_code == 0, went_on.stderr
        folders = [path / "checkpoints" / folder_name(3) for path in (ended.output_dir, tmp_path / "went on")]
        return bool([*compare_tensors(*folders)])

    return differs


@pytest.mark.parametrize(
    "how",
    ["python", "ddp", pytest.param("zero2", marks=pytest.mark.slow), pytest.param("zero3", marks=pytest.mark.slow)],
)
def test_what_an_update_overtakes_is_saved_as_it_was(saved_differently, how):
    assert not saved_differently(how, "late")


def test_what_nobody_keeps_is_caught(saved_differently):
    assert saved_differently("python", "forgetful")
