"""Passes that do not reach every parameter: a gradient of zero, or the run ends and says so; never a wrong update."""

import json

import pytest

pytestmark = pytest.mark.distributed

NOISE = 1e-6
TENSORS = 10 * 4
"""Of five layers: a value, two moments and a step count each."""


def ran(forks, folder, how, told="told", saved="", source=""):
    ended = forks.run_script("tests.strategies.branch_ranks", how, str(folder), told, str(saved), str(source))
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("rank-*.json"))]
    return ended, found


def apart(ended, found):
    assert ended.exit_code == 0, ended.stderr[-4000:]
    together = {}
    for rank in found:
        together |= rank["apart"]
    assert len(together) == TENSORS
    return max(together.values())


@pytest.mark.parametrize("how", ["python", "ddp"])
def test_no_gradient_is_a_gradient_of_zero(forks, tmp_path, how):
    assert apart(*ran(forks, tmp_path, how)) < NOISE


def test_ddp_that_was_told_nothing_ends_before_it_updates(forks, tmp_path):
    ended, found = ran(forks, tmp_path, "ddp", told="nothing")
    assert ended.exit_code == 3
    assert any("got no gradient on rank" in rank["error"] and "branches.2.weight" in rank["error"] for rank in found)
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize("how", ["zero1", "zero2"])
def test_zero_that_was_told_nothing_ends_too(forks, tmp_path, how):
    ended, found = ran(forks, tmp_path, how, told="nothing")
    assert ended.exit_code == 3
    assert any("got no gradient on rank" in rank["error"] and "branches.2.weight" in rank["error"] for rank in found)
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
def test_zero_refuses_what_it_is_told_of(forks, tmp_path):
    ended, found = ran(forks, tmp_path, "zero2")
    assert ended.exit_code == 2
    assert "branches.0.weight and 5 more" in found[0]["error"] and "ddp.yaml" in found[0]["error"]


@pytest.mark.parametrize(
    ("source", "target"),
    [("python", "python"), *(pytest.param("ddp", how, marks=pytest.mark.slow) for how in ("zero2", "zero3"))],
)
def test_state_that_a_checkpoint_lacks_is_that_of_zero_gradients(forks, tmp_path, source, target):
    checkpoints = tmp_path / "checkpoints"
    apart(*ran(forks, tmp_path, source, saved=checkpoints))
    assert apart(*ran(forks, tmp_path, target, "nothing", source=checkpoints)) < NOISE
