"""What stays and what goes, and the disk that takes."""

import errno
import os
import stat
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onecurve.checkpoint import Alone, Retention, TensorWindow, Writer, find, forecast, supersede, verify
from onecurve.checkpoint.folders import steps
from onecurve.errors import LaunchError, TrainingError
from onecurve.planning import disk_forecast
from onecurve.planning.disk_forecast import require_room

ALSO = st.lists(st.integers(0, 60), max_size=3).map(tuple)
RULES = st.builds(Retention, st.integers(1, 4), st.integers(0, 4), st.booleans(), ALSO)


def pieces(step: int) -> list[TensorWindow]:
    return [TensorWindow("t", torch.full((5,), float(step)), 0, 5, (5,))]


@given(RULES, st.sets(st.integers(0, 60), min_size=1), st.none() | st.integers(0, 60), st.data())
def test_only_what_no_rule_keeps_is_doomed(keep, found, best_step, data):
    newest = data.draw(st.sampled_from(sorted(found)))
    doomed = set(keep.doomed(found, newest, best_step))
    kept = found - doomed
    assert doomed <= found
    assert newest in kept
    assert max(found) in kept
    assert len(kept) >= min(keep.last, len(found))
    for step in found:
        newer = sum(1 for other in found if other > step)
        wanted = [
            newer < keep.last,
            step == newest,
            keep.best and step == best_step,
            keep.every and step % keep.every == 0,
            step in keep.also,
        ]
        assert (step in kept) == any(wanted)


@settings(max_examples=25, deadline=None)
@given(RULES, st.lists(st.integers(1, 5), min_size=1, max_size=8), st.data())
def test_a_run_keeps_what_the_rules_say_and_never_more_than_forecast(keep, gaps, data):
    saves = [sum(gaps[: i + 1]) for i in range(len(gaps))]
    most, best, expected = 0, None, set()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)

        def phase(name):
            nonlocal most
            if name in ("manifest", "renamed", "latest"):
                most = max(most, len([path for path in root.iterdir() if path.is_dir()]))

        writer = Writer(root, Alone(), keep, phase=phase)
        for step in saves:
            best = data.draw(st.sampled_from([best, step]))
            writer.save(step, pieces(step), {"best_step": best})
            writer.wait()
            expected |= {step}
            expected -= set(keep.doomed(expected, step, best))
            assert steps(root) == sorted(expected)
            assert (root / "latest").read_text() == f"step-{step:08d}\n"
        assert all(verify(root / f"step-{step:08d}") == [] for step in expected)
        assert {path.name for path in root.iterdir()} == {"latest", *(f"step-{step:08d}" for step in expected)}
    assert most <= keep.most(saves) + (len(saves) > keep.most(saves))


def test_the_forecast_is_not_merely_generous(tmp_path):
    """With last 2, best and every fourth, all that was counted lies there at once."""
    keep, most = Retention(2, 4), []
    saves = range(1, 9)
    writer = Writer(tmp_path, Alone(), keep, phase=lambda name: most.append(len(list(tmp_path.glob("step-*")))))
    for step in saves:
        writer.save(step, pieces(step), {"best_step": 1})
        writer.wait()
    assert steps(tmp_path) == [1, 4, 7, 8]
    assert max(most) == keep.most(saves)  # one kept for two reasons, one more while it is written


def test_nothing_is_deleted_unless_a_newer_one_is_complete(tmp_path):
    writer = Writer(tmp_path, Alone(), Retention(1), "continue")
    writer.save(1, pieces(1), {})
    poisoned = pieces(2)
    poisoned[0].values[0] = torch.nan
    writer.save(2, poisoned, {})
    assert [bool(report.error) for report in writer.wait()] == [False, True]
    assert steps(tmp_path) == [1]
    writer.save(3, pieces(3), {})
    writer.wait()
    assert steps(tmp_path) == [3]


def test_going_back_keeps_what_is_written_then(tmp_path):
    """A run resumed from step 1 beside later ones that nobody set aside."""
    writer = Writer(tmp_path, Alone(), Retention(1))
    for step in (1, 8, 9):
        writer.save(step, pieces(step), {})
        writer.wait()
    writer.save(2, pieces(2), {})
    writer.wait()
    assert steps(tmp_path) == [2, 9]


def test_age_is_the_step_and_never_the_clock(tmp_path):
    writer = Writer(tmp_path, Alone(), Retention(2))
    for step in (1, 2):
        writer.save(step, pieces(step), {})
        writer.wait()
        os.utime(tmp_path / f"step-{step:08d}", (0, 10**9 - step * 10**6))
    writer.save(3, pieces(3), {})
    writer.wait()
    assert steps(tmp_path) == [2, 3]


def test_a_folder_without_a_manifest_counts_for_nothing_and_is_left(tmp_path):
    (tmp_path / "step-00000009").mkdir()
    writer = Writer(tmp_path, Alone(), Retention(1))
    for step in (1, 2):
        writer.save(step, pieces(step), {})
    writer.wait()
    assert steps(tmp_path) == [2, 9]


@pytest.mark.parametrize(
    ("free", "final_model", "present", "told"),
    [
        (3000, 0, 0, ""),
        (2999, 0, 0, "2 checkpoints of 1 kB, one more while it is written: 3 kB in all, and 3 kB can be used."),
        (2000, 0, 1000, ""),
        (3000, 500, 0, "and the model of 500 B: 3.5 kB in all, and 3 kB can be used."),
        (3500, 500, 0, ""),
    ],
)
def test_the_forecast_says_what_is_short(free, final_model, present, told):
    said = forecast(1000, 2, free, final_model, present)
    assert said.endswith(told)
    assert bool(said) == bool(told)


def test_a_run_that_saves_once_needs_room_for_one(tmp_path):
    keep, saves = Retention(2), [8]
    one_more = len(saves) > keep.most(saves)
    assert forecast(1000, keep.most(saves), 1500, 500, one_more=one_more) == ""
    assert forecast(1000, keep.most(saves), 1499, 500, one_more=one_more) == (
        "1 checkpoint of 1 kB, and the model of 500 B: 1.5 kB in all, and 1.5 kB can be used."
    )


def test_a_forecast_of_terabytes_reads_well():
    assert forecast(847 * 10**9, 2, 10**12) == (
        "2 checkpoints of 847 GB, one more while it is written: 2.5 TB in all, and 1.0 TB can be used."
    )


def saved(root: Path, *saves: int, keep: Retention | None = None) -> Writer:
    root.mkdir(exist_ok=True)
    writer = Writer(root, Alone(), keep or Retention(9))
    for step in saves:
        writer.save(step, pieces(step), {})
        writer.wait()
    return writer


def test_what_is_never_deleted_gives_no_room(tmp_path, monkeypatch):
    saved(tmp_path, 1, 2, 3, 4)
    os.rename(tmp_path / "step-00000004", tmp_path / "step-00000004.superseded")
    os.rename(tmp_path / "step-00000003", tmp_path / "step-00000003.bad")
    size = sum(file.stat().st_size for file in (tmp_path / "step-00000001").iterdir())
    disk = SimpleNamespace(free=0)
    monkeypatch.setattr(disk_forecast.shutil, "disk_usage", lambda path: disk)

    def room(free, steps, after, **keep):
        disk.free = free
        require_room(tmp_path, size, 0, Retention(**{"last": 1, "best": False, **keep}), steps, after)

    room(0, [3], 2)  # the two there are deleted in time, and one of them after the next was written
    with pytest.raises(LaunchError, match=r"2 folders set aside.*step-00000003.bad, step-00000004.superseded"):
        room(0, [2, 3], 1)  # step 2 is about to be trained again, and its checkpoint set aside
    with pytest.raises(LaunchError):
        room(0, [3], 2, also=(1, 2))  # both stay for ever
    room(size, [2, 3], 1)


def test_an_abandoned_future_goes_when_the_run_has_come_as_far(tmp_path):
    saved(tmp_path, 1, 2, 3)
    supersede(tmp_path, 1)
    writer = saved(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == [
        "step-00000001", "step-00000002", "step-00000003.superseded",
    ]  # fmt: skip
    writer.save(5, pieces(5), {})
    writer.wait()
    assert not [*tmp_path.glob("*.superseded*")]


def test_latest_names_what_is_there_after_going_back(tmp_path):
    saved(tmp_path, 1, 2, 3)
    supersede(tmp_path, 1)
    assert (tmp_path / "latest").read_text() == "step-00000001\n"
    (tmp_path / "step-00000001" / "state.json").write_text("{}")
    saved(tmp_path, 2)
    (tmp_path / "step-00000002" / "state.json").write_text("{ ")
    saved(tmp_path / "other", 1)
    os.rename(tmp_path / "other" / "step-00000001", tmp_path / "step-00000000")
    with pytest.raises(LaunchError):
        find(tmp_path, Alone(), lambda line: None)
    supersede(tmp_path, -1)
    assert not (tmp_path / "latest").exists()


def test_latest_names_what_is_there_after_a_bad_one_was_set_aside(tmp_path):
    saved(tmp_path, 1, 2)
    (tmp_path / "step-00000002" / "state.json").write_text("{ ")
    assert find(tmp_path, Alone(), lambda line: None).step == 1
    assert (tmp_path / "latest").read_text() == "step-00000001\n"


def test_a_checkpoint_that_was_moved_and_linked_to_is_one_and_its_target_is_not_deleted(tmp_path):
    root, bigger = tmp_path / "checkpoints", tmp_path / "bigger"
    bigger.mkdir()
    saved(root, 1, 2)
    for name in ("step-00000001", "step-00000002"):
        os.rename(root / name, bigger / name)
        (root / name).symlink_to(bigger / name)
    assert find(root, Alone(), lambda line: None).step == 2
    writer = saved(root, 2, 3, keep=Retention(1, best=False))  # the same step again, and one that thins both
    assert steps(root) == [3]
    assert not [path for path in root.iterdir() if path.is_symlink()]
    assert verify(bigger / "step-00000001") == []
    assert writer.root == root


def test_a_disk_whose_folders_cannot_be_flushed_is_written_all_the_same(tmp_path, monkeypatch):
    """As FUSE, CIFS and object stores answer; what an ordinary disk says is an error still."""
    real, said = os.fsync, 0

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(said, os.strerror(said))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    said = errno.EINVAL
    saved(tmp_path, 1)
    said = errno.ENOTSUP
    saved(tmp_path, 2)
    assert steps(tmp_path) == [1, 2]
    said = errno.EIO
    with pytest.raises(TrainingError, match="Input/output error"):
        saved(tmp_path, 3)
