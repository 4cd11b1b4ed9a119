"""The windows a strategy yields make up the whole training state, read and written; held against others who know it.

This guards the private attributes of DeepSpeed that `strategies/zero.py` reads.
"""

import json

import pytest

pytestmark = pytest.mark.distributed

QUICK = [("ddp", 2, "no"), ("zero3", 1, "no"), ("zero3", 2, "no")]
REST = [
    ("ddp", 1, "no"),
    *((how, groups, p) for how in ("zero1", "zero2", "zero3") for groups in (1, 2) for p in ("no", "bf16")),
]


def check(forks, folder, how, groups, precision):
    ended = forks.run_script("tests.parity.window_ranks", how, str(folder), str(groups), precision)
    assert ended.exit_code == 0, ended.stderr[-4000:]
    for rank in (0, 1):
        found = json.loads((folder / f"rank-{rank}.json").read_text())
        assert found["problems"] == []
        # Seven tensors with three values and a step count each, in four looks at two kinds of windows
        assert found["compared"] >= 7 * 4 * 4 * 2


@pytest.mark.parametrize(("how", "groups", "precision"), QUICK)
def test_windows_are_the_whole_state(forks, tmp_path, how, groups, precision):
    check(forks, tmp_path, how, groups, precision)


@pytest.mark.slow
@pytest.mark.parametrize(("how", "groups", "precision"), [case for case in REST if case not in QUICK])
def test_windows_are_the_whole_state_elsewhere_too(forks, tmp_path, how, groups, precision):
    check(forks, tmp_path, how, groups, precision)
