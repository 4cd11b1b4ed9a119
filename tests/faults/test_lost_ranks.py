"""Ranks and launchers that die: the others end within a stated time, name the dead, and a restart goes on exactly."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from onecurve.checkpoint.folders import steps
from onecurve.machine.run_lock import RunLock
from onecurve.run.directory import RunDirectory
from onecurve.run.lifecycle import Decision, Run
from tests.faults.test_hangs import start_planted
from tests.launching import ROOT, Finished, command, environment
from tests.resume.curves import partings

pytestmark = pytest.mark.distributed

ENDLESS = ["--train.max_steps", "1000000", "--checkpoint.every", "2"]
PATIENCE_SECONDS = 300


def wait_until(condition, what, unless=lambda: False):
    ends = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert not unless(), f"ended before {what}"
        assert time.monotonic() < ends, f"waited for {what}"
        time.sleep(0.05)


def saved(folder):
    return lambda: (folder / "checkpoints" / "latest").exists()


def signs(folder):
    return [json.loads(path.read_text()) for path in sorted((folder / "ranks").glob("rank-*.json"))]


def left_alive(folder):
    """Processes that have this run's directory in their command line."""
    processes = psutil.process_iter(["cmdline", "status"])
    mine = [process for process in processes if str(folder) in " ".join(process.info["cmdline"] or ())]
    return [process.pid for process in mine if process.info["status"] != psutil.STATUS_ZOMBIE]


def wait_until_all_are_gone(folder):
    wait_until(lambda: not left_alive(folder), "every process to end")


def reason(ended, lost):
    """What a run said that lost a rank, after checking that it said so once and in its status."""
    said = [line for line in ended.stderr.splitlines() if line.startswith("train.py: a rank was lost")]
    assert len(said) == 1, ended.stderr
    assert (ended.status["status"], ended.status["exit_code"]) == ("failed", 3)
    assert said == [f"train.py: {ended.status['reason']}"]
    assert f"rank {lost} on {os.uname().nodename} (process " in said[0]
    assert f"rank {1 - lost} on " not in said[0]
    return said[0]


@contextmanager
def launched(how, recipe, folder, *overrides, launcher=()):
    """A launch as a user makes it, with its output in files; whatever is left of it at the end is killed."""
    words = command(how)
    position = words.index("--config_file") if "--config_file" in words else len(words)
    words = [*words[:position], *launcher, *words[position:], "train.py", str(recipe), "--output_dir", str(folder)]
    out, err = folder.with_suffix(".out"), folder.with_suffix(".err")
    with open(out, "w") as stdout, open(err, "w") as stderr:
        process = subprocess.Popen([*words, *overrides], cwd=ROOT, env=environment(), stdout=stdout, stderr=stderr)
    try:
        yield process, lambda: Finished(folder, process.wait(PATIENCE_SECONDS), out.read_text(), err.read_text())
    finally:
        for pid in left_alive(folder):
            os.kill(pid, signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize(("how", "rank"), [("ddp", 0), ("ddp", 1), pytest.param("zero2", 1, marks=pytest.mark.slow)])
def test_a_rank_that_is_killed_ends_the_others_and_is_named(forks, recipe, tmp_path, how, rank):
    folder = tmp_path / "run"
    started = forks.start(recipe, folder, how, *ENDLESS)
    wait_until(saved(folder), "a checkpoint", unless=lambda: not started.under_way)
    started.kill(rank)
    killed = time.monotonic()
    wait_until(lambda: not started.under_way, "the other to end")
    print(f"{how}: the other was gone {time.monotonic() - killed:.1f} s after")
    ended = started.wait()
    assert "Traceback" not in ended.stderr
    said = reason(ended, lost=rank)
    assert f"(process {started.pids[rank]}) is gone, last seen at " in said
    assert re.search(r"Launch again with train\.resume auto to resume from the newest checkpoint, step-\d{8}\.$", said)
    newest = max(steps(folder / "checkpoints"))
    again = forks.train(recipe, folder, how, *ENDLESS, "--train.stop_after", str(newest + 1))
    assert again.events("resume")[0]["step"] == newest
    assert not (folder / "ranks").exists()


def test_a_rank_that_fails_alone_has_its_reason_told_by_the_others(forks, recipe, tmp_path):
    ended = start_planted(forks, recipe, tmp_path / "run", "ddp", "failing:1:5").wait()
    assert "rank 1: Traceback" in ended.stderr and "rank 0: Traceback" not in ended.stderr
    assert "ended at data of step 5: ValueError: planted" in reason(ended, lost=1)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


@contextmanager
def ranks_without_a_launcher(recipe, folder, *arguments):
    """Two ranks that nothing looks after, as when each is started by hand."""
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    ranks = []
    for rank in range(2):
        given = environment() | world | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        words = [sys.executable, "train.py", str(recipe), "--output_dir", str(folder), *arguments]
        with open(f"{folder}-{rank}.err", "w") as stderr:
            ranks.append(subprocess.Popen(words, cwd=ROOT, env=given, stdout=subprocess.DEVNULL, stderr=stderr))
    try:
        yield ranks
    finally:
        for process in ranks:
            process.kill()
            process.wait()


def test_without_a_launcher_a_rank_that_is_killed_still_ends_the_other(recipe, tmp_path):
    folder = tmp_path / "run"
    with ranks_without_a_launcher(recipe, folder, *ENDLESS) as ranks:
        wait_until(saved(folder), "a checkpoint", unless=lambda: any(r.poll() is not None for r in ranks))
        ranks[0].kill()
        killed = time.monotonic()
        assert ranks[1].wait(PATIENCE_SECONDS) == 3
        print(f"the other was gone {time.monotonic() - killed:.1f} s after")
    reason(Finished(folder, 3, "", Path(f"{folder}-1.err").read_text()), lost=0)


def test_a_rank_is_missed_also_by_one_that_is_busy_with_something_else(forks, recipe, tmp_path):
    """Rank 0 sleeps in data loading, and would find out only when it talks to rank 1 again."""
    folder = tmp_path / "run"
    started = start_planted(forks, recipe, folder, "ddp", "data:0:5", "--train.hang_timeout", "30")
    wait_until(lambda: any(sign["step"] == 5 for sign in signs(folder)), "step 5", lambda: not started.under_way)
    started.kill(1)
    ended = started.wait()
    assert f"(process {started.pids[1]}) is gone, last seen at " in reason(ended, lost=1)


@pytest.mark.slow
def test_a_rank_killed_while_it_loads_deepspeeds_operator_holds_no_later_start_up(recipe, tmp_path, monkeypatch):
    from torch.utils.cpp_extension import _get_build_directory

    operator = "deepspeed_shm_comm"
    compiled, ours = Path(_get_build_directory(operator, verbose=False)), tmp_path / "extensions"
    shutil.copytree(compiled, ours / operator)
    (ours / operator / "lock").touch()  # what torch's own lock is, and stays when its holder is killed
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(ours))
    with launched("zero2", recipe, tmp_path / "run") as (_, finish):
        assert finish().exit_code == 0


@pytest.mark.parametrize(("how", "ranks"), [("single", 1), ("ddp", 2)])
def test_ranks_do_not_outlive_their_launcher(recipe, tmp_path, how, ranks):
    folder = tmp_path / "run"
    with launched(how, recipe, folder, *ENDLESS) as (process, _):
        wait_until(saved(folder), "a checkpoint", unless=lambda: process.poll() is not None)
        assert len(left_alive(folder)) == ranks + 1
        process.kill()
        killed = time.monotonic()
        wait_until_all_are_gone(folder)
        print(f"all {ranks} were gone {time.monotonic() - killed:.1f} s after their launcher")
    status = json.loads((folder / "status.json").read_text())
    assert (status["status"], status["exit_code"], status["reason"]) == ("stopped", 75, "SIGTERM")
    assert max(steps(folder / "checkpoints")) == status["step"]
    assert not (folder / "ranks").exists()


@pytest.mark.slow
def test_a_launcher_that_may_restart_goes_on_exactly_after_a_rank_was_killed(forks, recipe, tmp_path):
    several = ["--train.max_steps", "60", "--checkpoint.every", "5"]
    whole = forks.train(recipe, tmp_path / "whole", "ddp", *several)
    folder = tmp_path / "run"
    with launched("ddp", recipe, folder, *several, launcher=["--max_restarts", "1"]) as (process, finish):
        wait_until(saved(folder), "a checkpoint", unless=lambda: process.poll() is not None)
        os.kill(signs(folder)[1]["process"]["pid"], signal.SIGKILL)
        ended = finish()
    assert ended.exit_code == 0, ended.stderr
    assert ended.status["status"] == "done"
    assert len(ended.events("resume")) == 1
    assert list(partings(whole, ended, exactly=True)) == []
    assert not (folder / "ranks").exists()


def test_a_rank_that_outlives_its_run_leaves_its_successors_status_alone(tmp_path):
    run, directory = Run(), RunDirectory(tmp_path / "run")
    saves = SimpleNamespace(resume=lambda: 0, let_finish=lambda seconds: None)
    run.begin(directory, "", timedelta(hours=1), saves, lambda step: Decision())
    directory.lock.path.unlink()
    successor = RunLock(directory.lock.path)
    successor.acquire()
    run.give_up("a rank was lost")
    assert directory.status()["status"] == "running"
    run.watch.stop()
    successor.release()
