"""What becomes of a job: a table of how runs end, and the directory it is read from."""

import json

import pytest

from onecurve.run.directory import RunDirectory
from onecurve.run.lifecycle import Run
from slurm.verdict import FAILED, MISTAKE, NOT_STARTED, STOPPED, Launch, Progress, judge, look

JOB, OTHER = "118", "119"
REQUEUE = "requeue"
BEGAN, LATER = 1, 2
"""When a checkpoint was written."""


def left(checkpoint, exit_code, status="failed", job=JOB, restarts=0, **more):
    """A run directory whose latest status was written by a launch of a job, and whose step 40 was there before."""
    told = {"status": status, "step": checkpoint, "exit_code": exit_code, "reason": "so it is."}
    return Progress(told | {"job": job, "restarts": restarts} | more, {40: BEGAN, checkpoint: LATER} | {40: BEGAN})


BEFORE = left(40, STOPPED, "stopped", job="117")


@pytest.mark.parametrize(
    ("now", "code", "restarts", "verdict"),
    [
        (left(200, 0, "done", restarts=3), 0, 3, 0),
        (left(200, 0, "done", restarts=3), 137, 3, 0),  # a rank was lost once the run was done
        (left(60, 0, "stopped"), 0, 0, 0),  # train.stop_after
        (left(60, STOPPED, "stopped"), STOPPED, 0, REQUEUE),
        (left(40, STOPPED, "stopped"), STOPPED, 0, REQUEUE),
        (left(40, STOPPED, "stopped", restarts=7), 143, 7, STOPPED),  # a limit that lets nothing be done
        (left(60, STOPPED, "stopped", restarts=20), STOPPED, 20, STOPPED),
        (left(60, MISTAKE), 143, 0, MISTAKE),
        (left(40, FAILED), FAILED, 0, FAILED),  # the first step does not fit: nor will it next time
        (left(40, FAILED, step=57), FAILED, 0, FAILED),  # NaN, and no checkpoint but the one it came from
        (left(40, FAILED, step=57, lost=True), FAILED, 0, REQUEUE),  # but a rank that was lost may live next time
        (left(40, FAILED, step=57, lost=True, restarts=1), FAILED, 1, FAILED),
        (left(57, FAILED), FAILED, 0, REQUEUE),
        (left(57, FAILED, restarts=4), FAILED, 4, REQUEUE),
        (left(40, 1), 1, 0, REQUEUE),
        (left(40, 1, restarts=1), 1, 1, 1),
        (left(40, None, "running"), 137, 0, REQUEUE),  # killed before the first checkpoint: once more
        (left(40, None, "running", restarts=1), 137, 1, 137),
        (left(60, FAILED, restarts=20), FAILED, 20, FAILED),
        (left(60, None, "running", restarts=9), 137, 9, REQUEUE),
        (left(60, None, "running", restarts=20), 137, 20, 137),
        (left(60, None, "running"), FAILED, 0, REQUEUE),  # a full disk: not even the status could be written
        (left(40, None, "running"), FAILED, 0, FAILED),
        (left(40, None, "running"), 0, 0, REQUEUE),
        (BEFORE, 0, 2, 0),  # finished long ago
        (BEFORE, MISTAKE, 0, MISTAKE),  # the old status says 75
        (BEFORE, 1, 0, REQUEUE),
        (BEFORE, 1, 2, 1),
        (BEFORE, STOPPED, 0, REQUEUE),
        (BEFORE, STOPPED, 1, STOPPED),
        (BEFORE, NOT_STARTED, 0, 1),
        # Another job has used the directory in the meantime: nothing of what it says is this job's
        (left(60, None, "running", job=OTHER), MISTAKE, 1, MISTAKE),  # refused, because the other runs
        (left(200, 0, "done", job=OTHER), MISTAKE, 1, MISTAKE),
        (left(60, STOPPED, "stopped", job=OTHER), MISTAKE, 1, MISTAKE),
        (left(200, 0, "done", job=OTHER), 137, 1, 137),
        (left(200, 0, "done", job=OTHER), FAILED, 0, FAILED),
        (left(60, FAILED, job=OTHER), STOPPED, 0, REQUEUE),  # ours stopped, and the other began at once
        (left(60, FAILED, job=OTHER), 1, 1, 1),  # that the other moved is not our progress
        (left(60, STOPPED, "stopped", restarts=0), 1, 1, 1),  # this job's own, of the launch before
        # A rank's mistake is one, whatever another rank made of it
        (left(60, None, "running"), MISTAKE, 0, MISTAKE),
        (left(60, STOPPED, "stopped"), MISTAKE, 0, MISTAKE),
        # A run without Slurm wrote it, or an onecurve that did not say the job
        (left(60, STOPPED, "stopped", job=""), 1, 1, 1),
        (Progress({"status": "stopped", "step": 60, "exit_code": STOPPED, "reason": ""}), 1, 1, 1),
    ],
)
def test_the_verdict_on_a_launch(now, code, restarts, verdict):
    given = judge(BEFORE, now, code, Launch(JOB, restarts, most=20))
    assert (REQUEUE if given.requeue else given.exit_code) == verdict, given.why
    assert ("Back to the queue" in given.why) == given.requeue
    assert ("ubmit" in given.why) == (not given.requeue and given.exit_code not in (0, MISTAKE)), "what to do"


@pytest.mark.parametrize(
    ("now", "code", "launch", "said"),
    [
        (Progress(), NOT_STARTED, {}, "srun could not start the ranks, for the reason above. It would fail again"),
        (Progress(), 0, {}, "the run was finished already"),
        (Progress(), MISTAKE, {}, "because of the mistake reported above"),
        (Progress(), 138, {}, "a rank was killed by SIGUSR1 before training began"),
        (Progress(), STOPPED, {"restarts": 1}, "the limit is too short to load model and data: raise --time"),
        (left(60, FAILED), FAILED, {"most": 0}, "Restarted 0 times already (ONECURVE_MAX_RESTARTS)"),
        (
            Progress(left(9000, FAILED).status),
            FAILED,
            {},
            "from the beginning and the job is not requeued. Fix the cau",
        ),
        (
            Progress(left(9000, FAILED).status),
            FAILED,
            {},
            "failed at step 9000: so it is. No checkpoint was written sin",
        ),
        (Progress(left(9000, FAILED).status), FAILED, {}, "set checkpoint.every"),
        (left(40, FAILED), FAILED, {}, "would repeat the same steps from step 40 and"),
        (left(60, None, "running"), FAILED, {}, "the ranks ended with code 3 after step 60 or later, for the reason"),
        (left(60, None, "running"), 137, {}, "a rank was killed by SIGKILL after step 60 or later"),
        (
            left(60, STOPPED, "stopped"),
            STOPPED,
            {"may_requeue": False},
            "(--no-requeue, or the site's settings): submit",
        ),
        (left(60, STOPPED, "stopped"), STOPPED, {"ending": "COMPLETING"}, "already ending the job (COMPLETING)"),
    ],
)
def test_its_words_say_why_and_what_to_do(now, code, launch, said):
    assert said in judge(BEFORE, now, code, Launch(**{"job": JOB, "restarts": 0, "most": 20} | launch)).why


def test_a_job_that_must_give_way_before_its_first_step_is_tried_again():
    for preempted in (False, True):
        assert judge(Progress(), Progress(), STOPPED, Launch(JOB, 3, 20, preempted=preempted)).requeue == preempted


def test_a_job_that_slurm_ends_or_may_not_requeue_is_not_requeued():
    stopped = left(60, STOPPED, "stopped")
    for launch in (Launch(JOB, 0, 20, may_requeue=False), Launch(JOB, 0, 20, ending="COMPLETING")):
        given = judge(BEFORE, stopped, STOPPED, launch)
        assert (given.exit_code, given.requeue) == (STOPPED, False)


def test_steps_written_anew_after_going_back_count():
    """A run that goes back sets its later checkpoints aside: the newest is then of an earlier step than before."""
    before = Progress({}, {500: BEGAN, 1000: BEGAN})
    status = left(700, FAILED).status
    assert not judge(before, Progress(status, {500: BEGAN}), FAILED, Launch(JOB, 0, 20)).requeue
    assert judge(before, Progress(status, {500: BEGAN, 700: LATER}), FAILED, Launch(JOB, 0, 20)).requeue
    assert judge(before, Progress(status, {500: BEGAN, 1000: LATER}), FAILED, Launch(JOB, 0, 20)).requeue


def test_a_status_says_which_launch_wrote_it(tmp_path, monkeypatch):
    for job, count in (("", ""), (JOB, ""), (JOB, "3")):
        monkeypatch.setenv("SLURM_JOB_ID", job)
        monkeypatch.setenv("SLURM_RESTART_COUNT", count)
        RunDirectory(tmp_path).set_status("stopped", step=60, exit_code=75, reason="SIGUSR1")
        status = look(tmp_path).status
        assert [status.get(name) for name in ("job", "restarts")] == ([job, int(count or 0)] if job else [None, None])
    write_checkpoint(tmp_path, 60)
    assert judge(BEFORE, look(tmp_path), 1, Launch(JOB, 3, 20)).why == (
        "stopped at step 60: SIGUSR1. Back to the queue, restart 4 of at most 20"
    )
    assert not judge(BEFORE, look(tmp_path), 1, Launch(OTHER, 3, 20)).requeue


def test_a_status_says_whether_a_rank_was_lost(tmp_path):
    for lost in (True, False):
        run = Run()
        run.directory = RunDirectory(tmp_path)
        run.give_up("so it is", lost=lost)
        assert look(tmp_path).status.get("lost", False) == lost


def write_checkpoint(directory, step):
    folder = directory / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")


def test_how_far_a_run_is_comes_from_its_complete_checkpoints(tmp_path):
    assert look(tmp_path / "none") == Progress()
    (tmp_path / "status.json").write_text(json.dumps({"status": "running", "step": 20, "exit_code": None}))
    write_checkpoint(tmp_path, 40)
    for name in ("step-00000060.incomplete", "step-00000080.superseded"):
        (tmp_path / "checkpoints" / name).mkdir()
        (tmp_path / "checkpoints" / name / "manifest.json").write_text("{}")
    assert look(tmp_path).newest == 40
    before = look(tmp_path)
    assert not look(tmp_path).beyond(before)
    write_checkpoint(tmp_path, 60)
    assert look(tmp_path).beyond(before)


def test_what_cannot_be_read_is_for_the_ranks_to_report(tmp_path):
    (tmp_path / "file").write_text("")
    assert look(tmp_path / "file") == Progress()
    for text in ("", "[]", "not JSON"):
        (tmp_path / "status.json").write_text(text)
        assert look(tmp_path) == Progress()
