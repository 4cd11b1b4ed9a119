"""Ranks that go no further: the run ends, and says which rank, where it stands, and for how long."""

import json
import os
import signal
import time

import pytest

from onecurve.checkpoint.folders import steps

pytestmark = pytest.mark.distributed

TIMEOUT = 8
PATIENCE_SECONDS = 120
SAVING = ["--checkpoint.every", "2", "--train.hang_timeout", str(TIMEOUT)]
ENDLESS = ["--train.max_steps", "1000000"]


def start_planted(forks, recipe, folder, how, plant, *overrides, num_processes=2):
    arguments = [plant, str(recipe), "--output_dir", str(folder), *SAVING, *overrides]
    return forks._start("tests.faults.planted", folder, how, num_processes, arguments, None)


def report(started):
    """What a run said that hung, after checking that it said so once, in its status too, and with exit code 3."""
    ends = time.monotonic() + PATIENCE_SECONDS
    while started.under_way:
        assert time.monotonic() < ends or started.kill(), "nobody noticed"
        time.sleep(0.1)
    ended = started.wait()
    assert ended.exit_code == 3, ended.stderr
    said = [line for line in ended.stderr.splitlines() if line.startswith("train.py: no progress")]
    assert len(said) == 1, ended.stderr
    status = ended.status
    assert (status["status"], status["exit_code"]) == ("failed", 3)
    assert said == [f"train.py: {status['reason']}"]
    assert "Traceback" not in ended.stderr
    return status["reason"]


@pytest.mark.parametrize(
    ("how", "ranks", "plant", "state", "frame"),
    [
        ("ddp", 2, "data:1:5", "has been at data of step 5 for", "sleep_for_ever"),
        pytest.param(
            "ddp", 2, "backward:0:5", "has been at backward of step 5 for", "sleep_for_ever", marks=pytest.mark.slow
        ),
        pytest.param(
            "zero2", 2, "backward:1:5", "has been at backward of step 5 for", "sleep_for_ever", marks=pytest.mark.slow
        ),
        pytest.param(
            "python", 1, "data:0:5", "has been at data of step 5 for", "sleep_for_ever", marks=pytest.mark.slow
        ),
        pytest.param(
            "ddp",
            2,
            "locked:1:5",
            "gives no sign of life (sleeping), last seen at ",
            "keep_the_interpreter_for_ever",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_rank_that_hangs_is_named_with_its_phase_and_its_stack(
    forks, recipe, tmp_path, how, ranks, plant, state, frame
):
    folder = tmp_path / "run"
    started = start_planted(forks, recipe, folder, how, plant, num_processes=ranks)
    said = report(started)
    rank = int(plant.split(":")[1])
    assert f"rank {rank} on {os.uname().nodename} (process {started.pids[rank]}) {state}" in said
    assert f"at {frame} (planted.py:" in said
    assert f"rank {1 - rank} on " not in said
    stacks = folder / "ranks" / f"rank-{rank:05d}.stacks"
    assert str(stacks) in said
    assert "train_step" in stacks.read_text()
    newest = max(steps(folder / "checkpoints"))
    assert newest in (2, 4)  # a rank that holds the interpreter writes nothing either
    ended = forks.train(recipe, folder, how, *SAVING, num_processes=ranks)
    assert ended.events("resume")[0]["step"] == newest
    assert not (folder / "ranks").exists()


@pytest.mark.slow
def test_a_process_that_is_stopped_is_named(forks, recipe, tmp_path):
    folder = tmp_path / "run"
    started = forks.start(recipe, folder, "ddp", *SAVING, *ENDLESS)
    while not (folder / "checkpoints" / "latest").exists():
        assert started.under_way, started.wait().stderr
        time.sleep(0.05)
    os.kill(started.pids[0], signal.SIGSTOP)
    said = report(started)
    assert f"rank 0 on {os.uname().nodename} (process {started.pids[0]}) gives no sign of life (stopped), last" in said


@pytest.mark.slow
def test_a_run_that_was_suspended_whole_goes_on(forks, recipe, tmp_path):
    """As by Slurm, for a job of more weight: time in which nobody ran is no silence."""
    folder, sign = tmp_path / "run", tmp_path / "run" / "ranks" / "rank-00001.json"
    started = start_planted(forks, recipe, folder, "ddp", "slow:1:5", "--train.hang_timeout", "12")
    while not (sign.exists() and json.loads(sign.read_text())["step"] == 5):
        assert started.under_way, started.wait().stderr
        time.sleep(0.05)
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for pid in started.pids:
            os.kill(pid, number)
        time.sleep(15 if number == signal.SIGSTOP else 0)
    ended = started.wait()
    assert ended.exit_code == 0, ended.stderr
    assert not (folder / "ranks").exists()
