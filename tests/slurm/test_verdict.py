"""What becomes of a job: a table of how runs end, and the directory it is read from."""

import json

import pytest

from onecurve.run.directory import RunDirectory
from slurm.verdict import FAILED, MISTAKE, REQUEUE, Progress, judge, look

JOB, OTHER = "118", "119"


def left(step, exit_code, status="failed", job=JOB, restarts=0):
    """A run directory whose latest status was written by a launch of a job."""
    told = {"status": status, "step": step, "exit_code": exit_code, "reason": "so it is"}
    return Progress(step, told | {"job": job, "restarts": restarts})


BEFORE = left(40, 75, "stopped", job="117")


@pytest.mark.parametrize(
    ("now", "code", "restarts", "verdict"),
    [
        (left(200, 0, "done", restarts=3), 0, 3, 0),
        (left(200, 0, "done", restarts=3), 137, 3, 0),  # a rank was lost once the run was done
        (left(60, 0, "stopped"), 0, 0, 0),  # train.stop_after
        (left(60, 75, "stopped"), 75, 0, REQUEUE),
        (left(40, 75, "stopped", restarts=7), 143, 7, REQUEUE),  # stopped at once, again
        (left(60, 75, "stopped", restarts=20), 75, 20, 1),
        (left(60, MISTAKE), 143, 0, MISTAKE),
        (left(40, FAILED), FAILED, 0, FAILED),  # the first step does not fit: nor will it next time
        (left(57, FAILED), FAILED, 0, REQUEUE),
        (left(57, FAILED, restarts=4), FAILED, 4, REQUEUE),
        (left(40, 1), 1, 0, REQUEUE),
        (left(40, 1, restarts=1), 1, 1, 1),
        (left(40, None, "running"), 137, 0, REQUEUE),  # killed before the first checkpoint: once more
        (left(40, None, "running", restarts=1), 137, 1, 1),
        (left(60, FAILED, restarts=20), FAILED, 20, 1),
        (left(60, None, "running", restarts=9), 137, 9, REQUEUE),
        (left(60, None, "running", restarts=20), 137, 20, 1),
        (BEFORE, 0, 2, 0),  # finished long ago
        (BEFORE, MISTAKE, 0, MISTAKE),  # the old status says 75
        (BEFORE, 1, 0, REQUEUE),
        (BEFORE, 1, 2, 1),
        (BEFORE, 75, 2, REQUEUE),
        # Another job has used the directory in the meantime: nothing of what it says is this job's
        (left(60, None, "running", job=OTHER), MISTAKE, 1, MISTAKE),  # refused, because the other runs
        (left(200, 0, "done", job=OTHER), MISTAKE, 1, MISTAKE),
        (left(60, 75, "stopped", job=OTHER), MISTAKE, 1, MISTAKE),
        (left(200, 0, "done", job=OTHER), 137, 1, 137),
        (left(200, 0, "done", job=OTHER), FAILED, 0, FAILED),
        (left(60, FAILED, job=OTHER), 75, 0, REQUEUE),  # ours stopped, and the other began at once
        (left(60, FAILED, job=OTHER), 1, 1, 1),  # that the other moved is not our progress
        (left(60, 75, "stopped", restarts=0), 1, 1, 1),  # this job's own, of the launch before
        # A rank's mistake is one, whatever another rank made of it
        (left(60, None, "running"), MISTAKE, 0, MISTAKE),
        (left(60, 75, "stopped"), MISTAKE, 0, MISTAKE),
        # A run without Slurm wrote it, or an onecurve that did not say the job
        (left(60, 75, "stopped", job=""), 1, 1, 1),
        (Progress(60, {"status": "stopped", "step": 60, "exit_code": 75, "reason": ""}), 1, 1, 1),
    ],
)
def test_the_verdict_on_a_launch(now, code, restarts, verdict):
    given, reason = judge(BEFORE, now, code, JOB, restarts, most=20)
    assert given == verdict, reason
    assert ("Back to the queue" in reason) == (verdict == REQUEUE)


def test_a_status_says_which_launch_wrote_it(tmp_path, monkeypatch):
    for job, count in (("", ""), (JOB, ""), (JOB, "3")):
        monkeypatch.setenv("SLURM_JOB_ID", job)
        monkeypatch.setenv("SLURM_RESTART_COUNT", count)
        RunDirectory(tmp_path).set_status("stopped", step=60, exit_code=75, reason="SIGUSR1")
        status = look(tmp_path).status
        assert [status.get(name) for name in ("job", "restarts")] == ([job, int(count or 0)] if job else [None, None])
    assert judge(BEFORE, look(tmp_path), 1, JOB, 3, most=20) == (
        REQUEUE,
        "stopped at step 60: SIGUSR1. Back to the queue, restart 4 of at most 20",
    )
    assert judge(BEFORE, look(tmp_path), 1, OTHER, 3, most=20)[0] == 1


def test_how_far_a_run_is_comes_from_its_directory(tmp_path):
    assert look(tmp_path / "none").step == 0
    (tmp_path / "status.json").write_text(json.dumps({"status": "running", "step": 20, "exit_code": None}))
    assert look(tmp_path).step == 20
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "latest").write_text("step-00000040\n")
    assert look(tmp_path).step == 40


def test_a_run_that_went_back_and_came_further_has_moved_and_says_where_it_is():
    before = Progress(1000, {}, latest=1000)
    now = Progress(700, left(700, FAILED).status, latest=500)  # went back to 500, and was lost at 700
    code, reason = judge(before, now, FAILED, JOB, 0, 20)
    assert (code, reason.partition(":")[0]) == (REQUEUE, "failed at step 700")
    again = Progress(700, left(700, FAILED, restarts=1).status, latest=500)  # from 500 to 700 once more
    assert judge(now, again, FAILED, JOB, 1, 20)[0] == FAILED
