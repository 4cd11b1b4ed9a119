"""What a run that fails still does before it ends."""

import time

import pytest
import torch

from onecurve.checkpoint import Alone, Retention, TensorWindow, Writer
from onecurve.checkpoint.folders import steps
from onecurve.errors import TrainingError, UserError
from onecurve.machine.speaker import SPEAKER
from onecurve.ranks.lost_rank import RankLost
from onecurve.run import lifecycle


def saving(root):
    """A writer in the middle of a save that takes half a second more."""
    writer = Writer(root, Alone(), Retention(), phase=lambda name: time.sleep(0.5) if name == "written" else None)
    root.mkdir()
    writer.save(3, [TensorWindow("t", torch.ones(5), 0, 5, (5,))], {})
    return writer


@pytest.mark.parametrize(
    ("error", "code", "saved"),
    [
        (TrainingError("not finite"), 3, [3]),
        (UserError("a mistake found late"), 2, [3]),
        (ValueError("a bug"), 1, [3]),
        (MemoryError("full"), 3, [3]),
        (RankLost("gone"), 3, []),  # whose writer nobody would wait for long enough
    ],
)
def test_a_save_in_progress_is_finished_where_all_ranks_live(tmp_path, monkeypatch, capfd, error, code, saved):
    run = lifecycle.Run()
    run.saves = saving(tmp_path / "checkpoints")
    run.explain = lambda found: "out of memory" if isinstance(found, MemoryError) else ""
    assert lifecycle._end(run, error) == code
    assert steps(tmp_path / "checkpoints") == saved
    run.saves.let_finish(5)


@pytest.mark.parametrize("name", [None, "onecurve lr"])
def test_a_message_begins_with_the_command_that_was_run(monkeypatch, capfd, name):
    if name:
        monkeypatch.setenv(SPEAKER, name)
    for error in (UserError("a mistake"), TrainingError("not finite"), RankLost("gone")):
        lifecycle._end(lifecycle.Run(), error)
        assert capfd.readouterr().err.startswith(f"{name or 'train.py'}: ")


def test_it_is_not_waited_for_without_end(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(lifecycle, "_SECONDS_TO_SAVE", 0.05)
    run = lifecycle.Run()
    run.saves = saving(tmp_path / "checkpoints")
    started = time.monotonic()
    lifecycle._end(run, TrainingError("not finite"))
    assert time.monotonic() - started < 0.4
    run.saves.let_finish(5)


def test_a_black_box_on_a_full_disk_says_so():
    """What safetensors raises there is no OSError."""
    from safetensors import SafetensorError

    from onecurve.faults.blackbox import _error

    def write():
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    assert _error(write) == "I/O error: No space left on device (os error 28)"
