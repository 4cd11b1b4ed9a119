"""When a run stops for its time or for a file, in one process."""

from datetime import timedelta
from types import SimpleNamespace

import pytest
from accelerate import Accelerator

from onecurve.config import TrainSection
from onecurve.faults import stopping as module
from onecurve.faults.stopping import TIME, Stopping
from onecurve.run.directory import RunDirectory

LIMIT = 100.0


class Clock:
    """The time of the process, by hand."""

    now = 1000.0

    def monotonic(self):
        return self.now

    def time(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(module, "psutil", SimpleNamespace(Process=lambda: SimpleNamespace(create_time=lambda: 1000.0)))
    monkeypatch.setattr(module.signal, "signal", lambda number, handler: None)
    for name in ("SLURM_JOB_ID", "SLURM_JOB_END_TIME"):
        monkeypatch.delenv(name, raising=False)
    return clock


def stopping(directory, limit=LIMIT, stop_after=None):
    checkpoints = SimpleNamespace(seconds=1.0, plan=SimpleNamespace(max_steps=1000))
    section = TrainSection(max_steps=1000, time_limit=timedelta(seconds=limit), stop_after=stop_after)
    return Stopping(section, RunDirectory(directory), checkpoints, Accelerator(cpu=True))


def steps_until_stopped(clock, asked, seconds):
    for number, spent in enumerate(seconds, start=1):
        clock.now += spent
        if (found := asked.asked(number)).stop:
            return number, found.stop
    return None


def test_loading_a_checkpoint_and_the_first_step_are_no_measure_of_a_step(clock, tmp_path):
    asked = stopping(tmp_path)
    clock.now += 40  # reads a large checkpoint
    asked.behind(7)
    # the first step compiles; then 2 s a step: there must be 2 + 2 x 1 + 10 left, that is until 86 s of 100
    assert steps_until_stopped(clock, asked, [20, *[2] * 40]) == (1 + 14, TIME)


def test_a_launch_that_has_time_for_one_more_step_only_by_its_first_makes_none(clock, tmp_path):
    asked = stopping(tmp_path)
    asked.behind(0)
    assert steps_until_stopped(clock, asked, [50, 50]) == (1, TIME)


def test_the_longest_step_counts_with_what_followed_it(clock, tmp_path):
    asked = stopping(tmp_path)
    asked.behind(0)
    assert steps_until_stopped(clock, asked, [1, 1, 30, *[1] * 90]) == (3 + 27, TIME)


def test_ranks_that_agree_within_a_step_leave_time_for_its_end_and_one_more(clock, tmp_path):
    asked = stopping(tmp_path)
    asked.accelerator = SimpleNamespace(num_processes=2, is_main_process=True)
    asked.behind(0)
    for number, (passes, update) in enumerate([(20, 5), *[(1, 1)] * 40], start=1):
        clock.now += passes
        known = asked.requests()
        clock.now += update
        if asked.asked(number, known).stop:
            break
    # 25 s, then 2 s a step: one must fit after it, with 2 x 1 + 10 left; so the last ends at 85 or 87 s of 100
    assert number == 1 + 31


def test_a_stop_at_the_last_step_is_the_runs_own_end(clock, tmp_path):
    asked = stopping(tmp_path, limit=10_000, stop_after=1000)
    assert not asked.behind(1000).stop
    assert stopping(tmp_path, stop_after=7).behind(7).stop


def test_a_file_that_cannot_be_removed_is_told_once_and_ends_no_run(clock, tmp_path, capsys):
    asked = stopping(tmp_path, limit=10_000)
    asked.behind(0)
    (tmp_path / "SAVE").mkdir()
    for number in range(1, 4):
        clock.now += 2
        assert not asked.asked(number).save
    assert capsys.readouterr().err.count("SAVE cannot be removed, so it is ignored: Is a directory") == 1
    (tmp_path / "SAVE").rmdir()
    (tmp_path / "SAVE").touch()
    clock.now += 2
    assert asked.asked(4).save
    (tmp_path / "SAVE").mkdir()
    clock.now += 2
    asked.asked(5)
    assert "SAVE cannot be removed" in capsys.readouterr().err, "said of the next one too"
