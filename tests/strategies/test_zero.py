"""What ZeRO-3 gathers, the order in which it sums a gradient, and how long DeepSpeed's groups wait."""

import json

import pytest

pytestmark = pytest.mark.distributed


def told(forks, folder, what, live=-1):
    ended = forks.run_script("tests.strategies.zero_ranks", "zero3", what, str(live), str(folder))
    assert ended.exit_code == 0, ended.stderr[-4000:]
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


def test_frozen_weights_are_not_gathered_again(forks, tmp_path):
    for found in told(forks, tmp_path, "gathers"):
        assert 0 < found["elements"] <= 1.01 * found["trained"]


def test_without_memory_for_them_they_are(forks, tmp_path):
    for found in told(forks, tmp_path, "gathers", live=0):
        assert found["elements"] > 2 * found["frozen"]


def test_a_gradient_is_summed_as_in_one_process(forks, tmp_path):
    for found in told(forks, tmp_path, "gradients"):
        assert len(found["nonzero"]) == 21  # embedding, head, last norm, and nine a layer
        assert found["differing"] == []


@pytest.mark.parametrize(("how", "groups"), [("ddp", 2), ("zero2", 3), ("zero3", 3)])
def test_every_group_waits_as_long_as_the_run_says(forks, tmp_path, how, groups):
    """Ten minutes longer than the watch; by default NCCL gives groups ten minutes in all, and gloo thirty."""
    ended = forks.run_script("tests.strategies.timeout_ranks", how, "7", str(tmp_path))
    assert ended.exit_code == 0, ended.stderr[-4000:]
    for rank in (0, 1):
        assert json.loads((tmp_path / f"rank-{rank}.json").read_text()) == [17.0] * groups
