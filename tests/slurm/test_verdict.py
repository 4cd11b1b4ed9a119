"""What becomes of a job: a table of how runs end, and the directory it is read from."""

import json

import pytest

from slurm.verdict import FAILED, MISTAKE, REQUEUE, Progress, judge, look

BEFORE = Progress(40, [1, 1], {"status": "stopped", "step": 40, "exit_code": 75, "reason": "SIGTERM"})


def ended(step, exit_code, status="failed"):
    return Progress(step, [2, 2], {"status": status, "step": step, "exit_code": exit_code, "reason": "so it is"})


@pytest.mark.parametrize(
    ("now", "code", "restarts", "verdict"),
    [
        (ended(200, 0, "done"), 0, 3, 0),
        (ended(200, 0, "done"), 137, 3, 0),  # a rank was lost once the run was done
        (ended(60, 0, "stopped"), 0, 0, 0),  # train.stop_after
        (ended(60, 75, "stopped"), 75, 0, REQUEUE),
        (ended(40, 75, "stopped"), 143, 7, REQUEUE),  # stopped at once, again
        (ended(60, 75, "stopped"), 75, 20, 1),
        (ended(60, MISTAKE), 143, 0, MISTAKE),
        (ended(40, FAILED), FAILED, 0, FAILED),  # the first step does not fit: nor will it next time
        (ended(57, FAILED), FAILED, 0, REQUEUE),
        (ended(57, FAILED), FAILED, 4, REQUEUE),
        (ended(40, 1), 1, 0, REQUEUE),
        (ended(40, 1), 1, 1, 1),
        (ended(40, None, "running"), 137, 0, REQUEUE),  # killed before the first checkpoint: once more
        (ended(40, None, "running"), 137, 1, 1),
        (ended(60, FAILED), FAILED, 20, 1),
        (ended(60, None, "running"), 137, 9, REQUEUE),
        (ended(60, None, "running"), 137, 20, 1),
        (BEFORE, 0, 2, 0),  # finished long ago
        (BEFORE, MISTAKE, 0, MISTAKE),  # the old status says 75
        (BEFORE, 1, 0, REQUEUE),
        (BEFORE, 1, 2, 1),
        (BEFORE, 75, 2, REQUEUE),
    ],
)
def test_the_verdict_on_a_launch(now, code, restarts, verdict):
    given, reason = judge(BEFORE, now, code, restarts, most=20)
    assert given == verdict, reason
    assert ("Back to the queue" in reason) == (verdict == REQUEUE)


def test_how_far_a_run_is_comes_from_its_directory(tmp_path):
    assert look(tmp_path / "none").step == 0
    (tmp_path / "status.json").write_text(json.dumps({"status": "running", "step": 20, "exit_code": None}))
    first = look(tmp_path)
    assert (first.step, first.status["status"]) == (20, "running")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "latest").write_text("step-00000040\n")
    (tmp_path / "new").write_text((tmp_path / "status.json").read_text())
    (tmp_path / "new").rename(tmp_path / "status.json")
    second = look(tmp_path)
    assert second.step == 40
    assert second.written != first.written, "the same words, written anew, are another launch's"
