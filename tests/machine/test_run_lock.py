"""One run at a time in a directory: living owners are respected, dead ones replaced by exactly one successor."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from threading import enumerate as enumerate_threads
from time import monotonic

import pytest

from onecurve.errors import LaunchError, TrainingError
from onecurve.machine.run_lock import RunLock, ourselves
from onecurve.run.directory import RunDirectory

HERE = ourselves()
ELSEWHERE = replace(HERE, host="node7", machine="another boot", pid=4, job="77", token="theirs")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "lock"


def held_by(path, owner):
    path.write_text(json.dumps(asdict(owner)))


def quick(path, gone_after=1.0, **fields):
    return RunLock(path, renewed_every=0.05, gone_after=gone_after, us=replace(HERE, token="ours", **fields))


def holder(path):
    return json.loads(path.read_text())["token"]


@pytest.fixture
def process():
    """A process that lives until it is told otherwise."""
    started = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield started
    started.kill()
    started.wait()


def started_of(pid):
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[19]


def test_a_living_owner_on_this_machine_is_refused_at_once_and_named(path, process, capsys):
    held_by(path, replace(HERE, pid=process.pid, started=started_of(process.pid), job="12", token="theirs"))
    with pytest.raises(LaunchError, match=f"process {process.pid} on {HERE.host}, Slurm job 12"):
        RunLock(path).acquire()
    assert "watching" not in capsys.readouterr().err, "it watched instead of looking"
    assert holder(path) == "theirs"


@pytest.mark.parametrize("how", ["ended", "zombie", "another process of that number"])
def test_a_dead_owner_on_this_machine_is_replaced_at_once(path, process, how):
    started = started_of(process.pid)
    if how == "another process of that number":
        started = str(int(started) - 1)
    else:
        process.kill()
        if how == "ended":
            process.wait()
        else:
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    held_by(path, replace(HERE, pid=process.pid, started=started, token="theirs"))
    RunLock(path, us=replace(HERE, token="ours")).acquire()  # with the 60 seconds' watch, were it needed
    assert holder(path) == "ours"
    assert [entry.name for entry in path.parent.iterdir()] == ["lock"]


def test_an_owner_elsewhere_is_alive_while_it_renews_whatever_the_clocks_say(path, capsys):
    theirs = RunLock(path, renewed_every=0.2, us=ELSEWHERE)
    theirs.acquire()
    os.utime(path, (0, 0))
    for _ in range(2):
        with pytest.raises(LaunchError, match="process 4 on node7, Slurm job 77"):
            quick(path, gone_after=60.0).acquire()  # until the next sign, however late it comes
        os.utime(path, (2**33, 2**33))
    assert "waiting up to" in capsys.readouterr().err
    theirs.release()
    quick(path).acquire()


@pytest.mark.parametrize("mtime", [0, None, 2**33])
@pytest.mark.parametrize("content", ["theirs", "", "{"])
def test_one_that_falls_silent_elsewhere_or_left_no_name_is_replaced(path, mtime, content):
    path.write_text(json.dumps(asdict(ELSEWHERE)) if content == "theirs" else content)
    if mtime is not None:
        os.utime(path, (mtime, mtime))
    started = monotonic()
    lock = quick(path)
    lock.check()
    assert monotonic() - started > 0.9, "it was not watched"
    lock.acquire()
    assert holder(path) == "ours"


def test_a_silence_that_was_watched_is_not_watched_again(path):
    held_by(path, ELSEWHERE)
    lock = quick(path)
    lock.check()
    lock.gone_after = 1000.0
    lock.acquire()
    assert holder(path) == "ours"


def test_slurm_requeueing_our_job_ended_the_run_before(path, capsys):
    held_by(path, ELSEWHERE)
    quick(path, job="77", restarts=1).acquire()
    assert holder(path) == "ours"
    assert capsys.readouterr().err == "", "it watched instead of knowing"


def test_a_lock_that_another_has_replaced_meanwhile_is_left_alone(path):
    held_by(path, ELSEWHERE)
    assert not quick(path)._take_over(replace(ELSEWHERE, token="dead"))
    assert holder(path) == "theirs"
    assert [entry.name for entry in path.parent.iterdir()] == ["lock"]


def test_another_step_of_our_own_job_is_another_run(path):
    theirs = RunLock(path, renewed_every=0.1, us=ELSEWHERE)
    theirs.acquire()
    with pytest.raises(LaunchError):
        quick(path, gone_after=60.0, job="77").acquire()
    theirs.release()


def test_of_many_that_find_a_dead_owner_one_takes_over(path):
    script = (
        "import sys; from pathlib import Path; from onecurve.errors import LaunchError\n"
        "from onecurve.machine.run_lock import RunLock\n"
        "lock = RunLock(Path(sys.argv[1])); print('ready', flush=True); input()\n"
        "try: lock.acquire(); print('mine', flush=True); input()\n"
        "except LaunchError: print('refused')\n"
    )
    for attempt in range(5):
        held_by(path, replace(HERE, pid=2**22 + 1, token=f"dead-{attempt}"))
        runs = [
            subprocess.Popen(
                [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            for _ in range(6)
        ]
        assert [run.stdout.readline() for run in runs] == ["ready\n"] * 6
        for run in runs:
            run.stdin.write("\n")
            run.stdin.flush()
        said = sorted(run.stdout.readline() for run in runs)
        for run in runs:
            run.communicate("\n", timeout=120)
        assert said == ["mine\n", *["refused\n"] * 5]


def test_letting_go_removes_our_own_lock_only(path):
    ours = quick(path)
    ours.acquire()
    ours.confirm()
    held_by(path, ELSEWHERE)
    with pytest.raises(TrainingError, match="taken over by another run: process 4 on node7"):
        ours.confirm()
    ours.release()
    assert holder(path) == "theirs"
    path.unlink()
    ours.release()


def test_a_lock_is_renewed_while_its_owner_lives_and_no_longer(path):
    before = set(enumerate_threads())
    ours = quick(path)
    ours.acquire()
    watcher = quick(path, gone_after=60.0, machine="another boot")
    with pytest.raises(LaunchError):
        watcher.check()  # at the next renewal, however late a busy machine makes it
    ours._released.set()  # as when the process dies: nothing renews, the file stays
    for thread in set(enumerate_threads()) - before:
        thread.join(60)
        assert not thread.is_alive()
    watcher.gone_after = 0.3
    watcher.check()


def test_a_process_number_that_now_belongs_to_another_user_blocks_nobody(path, process, monkeypatch):
    """What the kernel answers who may not signal a process; whether it is the same one its start time tells."""

    def kill(pid, number):
        raise PermissionError

    monkeypatch.setattr(os, "kill", kill)
    mine = replace(HERE, pid=process.pid, started=started_of(process.pid), token="theirs")
    held_by(path, mine)
    with pytest.raises(LaunchError, match="is in use"):
        RunLock(path).check()
    held_by(path, replace(mine, started="1"))
    RunLock(path).check()


@pytest.mark.parametrize(
    "text", [b"\xff\xfe{", b'{"token": "../a"}', b'{"pid": "7", "machine": "%s"}' % HERE.machine.encode(), b"[]", b"3"]
)
def test_a_lock_that_no_run_wrote_is_waited_for_and_replaced(path, text):
    path.write_bytes(text)
    lock = quick(path, gone_after=0.2)
    lock.acquire()
    assert holder(path) == "ours"
    lock.release()


def test_a_rank_beside_rank_0_sees_the_lock_too_where_no_launcher_ends_it(path, process, monkeypatch, capsys):
    held_by(path, replace(HERE, pid=process.pid, started=started_of(process.pid), token="theirs"))
    for name in ("TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(LaunchError, match="is in use by another run"):
        RunDirectory(path.parent).check("never", {})
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")  # torchrun ends it when rank 0 refuses
    RunDirectory(path.parent).check("never", {})
