"""Runs that are asked to stop or to save while they train: they do, and launched again they draw the same curve."""

import os
import signal
import time

import pytest

from onecurve.checkpoint import verify
from tests.resume.curves import partings

pytestmark = pytest.mark.distributed

LONG = ["--train.max_steps", "100000"]
"""More steps than any machine makes before it is asked to stop."""


def wait_for_step(started, step):
    metrics = started.output_dir / "metrics.jsonl"
    while not (metrics.exists() and f'"event": "train", "step": {step},' in metrics.read_text()):
        assert started.under_way, started.wait().stderr
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("how", "ranks", "names", "task"),
    [
        pytest.param("python", 1, ["SIGINT"], "text_classification", marks=pytest.mark.slow),
        ("ddp", 2, ["SIGUSR1", "SIGTERM", "SIGUSR1"], "causal_lm"),
        pytest.param("zero2", 2, ["SIGTERM"], "sft", marks=pytest.mark.slow),
    ],
)
def test_a_signal_to_any_one_rank_saves_and_ends_the_run_which_then_goes_on(
    forks, recipes, tmp_path, how, ranks, names, task
):
    steps = ["--train.max_steps", "60"]
    whole = forks.train(recipes[task], tmp_path / "whole", how, *steps, num_processes=ranks)
    folder = tmp_path / "parts"
    started = forks.start(recipes[task], folder, how, *steps, num_processes=ranks)
    wait_for_step(started, 5)
    for name in names:
        os.kill(started.pids[-1], getattr(signal, name))
    ended = started.wait()
    assert ended.exit_code == 75, ended.stderr
    status = ended.status
    assert (status["status"], status["exit_code"]) == ("stopped", 75)
    assert names[0] in status["reason"]
    assert 5 <= status["step"] < 60
    checkpoint = folder / "checkpoints" / f"step-{status['step']:08d}"
    assert verify(checkpoint) == []
    assert ended.events("stop")[0]["step"] == status["step"]
    again = forks.train(recipes[task], folder, how, *steps, num_processes=ranks)
    assert again.events("resume")[0]["step"] == status["step"]
    assert list(partings(whole, again, exactly=True)) == []


def test_a_run_ends_before_its_time_is_up(forks, recipes, tmp_path):
    ended = forks.launch(recipes["causal_lm"], tmp_path / "run", "ddp", *LONG, "--train.time_limit", "00:00:14")
    assert ended.exit_code == 75, ended.stderr
    assert ended.status["reason"] == "the end of its time"
    assert verify(tmp_path / "run" / "checkpoints" / f"step-{ended.status['step']:08d}") == []


def test_files_in_the_run_directory_ask_for_a_checkpoint_and_for_an_end(forks, recipes, tmp_path):
    folder = tmp_path / "run"
    started = forks.start(recipes["causal_lm"], folder, "python", *LONG)
    wait_for_step(started, 1)
    (folder / "SAVE").touch()
    while not (folder / "checkpoints" / "latest").exists():
        assert started.under_way, started.wait().stderr
        time.sleep(0.02)
    (folder / "STOP").touch()
    ended = started.wait()
    assert ended.exit_code == 0, ended.stderr
    assert (ended.status["status"], ended.status["reason"]) == ("stopped", "the file STOP")
    assert not (folder / "SAVE").exists() and not (folder / "STOP").exists()
    assert len(ended.events("checkpoint")) == 2


def test_a_stop_whose_save_fails_is_no_good_end(forks, recipes, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "checkpoints").write_text("a file where the folder has to be")
    settings = [*LONG, "--checkpoint.on_error", "continue", "--train.resume", "never"]
    started = forks.start(recipes["causal_lm"], folder, "python", *settings)
    wait_for_step(started, 1)
    os.kill(started.pids[0], signal.SIGTERM)
    ended = started.wait()
    assert ended.exit_code == 3, ended.stderr
    assert ended.status["status"] == "failed"
