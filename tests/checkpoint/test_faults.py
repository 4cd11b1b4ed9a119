"""A disk that is full, too small or read-only, and errors of the thread: said, survived."""

import os
import resource
import shutil
import subprocess
import threading
from concurrent import futures
from pathlib import Path

import pytest
import torch

from onecurve.checkpoint import Alone, Retention, TensorWindow, Writer, find, verify
from onecurve.checkpoint.staging import Staging
from onecurve.errors import TrainingError
from tests.checkpoint.ranks import Processes, empty_tensors, load_all, on_threads, pieces_of, same_bits, tensors_at

CAN_MOUNT = os.geteuid() == 0 and shutil.which("mount") is not None


def big(step: int, num_bytes: int = 1_100_000) -> list[TensorWindow]:
    values = torch.full((num_bytes // 4,), float(step))
    return [TensorWindow("t", values, 0, values.numel(), (values.numel(),))]


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if not CAN_MOUNT or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root and the right to mount")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_said_and_the_run_goes_on(small_disk):
    root = small_disk / "checkpoints"
    writer = Writer(root, Alone(), Retention(9), "continue")
    reports = []
    for step in (1, 2, 3):
        writer.save(step, big(step), {})
        reports += writer.wait()
    assert [report.error for report in reports[:2]] == ["", ""]
    place = root / "step-00000003.incomplete"
    expected = f"The checkpoint of step 3 could not be saved: rank 0: No space left on device ({place}"
    assert reports[2].error.startswith(expected)
    assert reports[2].folder is None
    assert sorted(path.name for path in root.iterdir()) == ["latest", "step-00000001", "step-00000002"]
    assert verify(root / "step-00000002") == []
    shutil.rmtree(root / "step-00000001")
    writer.save(4, big(4), {})
    assert writer.wait()[0].error == ""
    found = find(root, Alone())
    assert found is not None
    assert found.step == 4


@pytest.mark.parametrize("asked", ["wait", "save"])
def test_a_full_disk_stops_the_run_where_the_recipe_says_so(small_disk, asked):
    writer = Writer(small_disk, Alone(), Retention(9), "stop")
    writer.save(1, big(1), {})
    writer.save(2, big(2, 4_000_000), {})
    with pytest.raises(TrainingError, match=r"step 2 could not be saved: rank 0: No space left on device"):
        writer.wait() if asked == "wait" else writer.save(3, big(3), {})
    assert [report.step for report in writer.finished()] == [1, 2]
    assert writer.wait() == []


def test_a_failure_that_is_still_to_be_raised_is_not_reported_before(tmp_path):
    (tmp_path / "checkpoints").write_text("a file where the folder has to be")
    writer = Writer(tmp_path / "checkpoints", Alone(), Retention(1))
    writer.save(1, big(1), {})
    futures.wait([writer.under_way])
    assert writer.finished() == []
    with pytest.raises(TrainingError, match="step 1 could not be saved"):
        writer.save(2, big(2), {})
    assert [report.step for report in writer.finished()] == [1]


def test_one_rank_with_a_full_disk_is_everybodys_failure(small_disk):
    def work(peers):
        writer = Writer(small_disk, peers, Retention(9), "continue")
        values = torch.zeros(10 if peers.rank else 1_000_000)
        writer.save(1, [TensorWindow(f"t{peers.rank}", values, 0, values.numel(), (values.numel(),))], {})
        return writer.wait()[0]

    reports = on_threads(2, work)
    assert all("rank 0: No space left on device" in report.error for report in reports)
    assert list(small_disk.iterdir()) == []


def test_a_disk_too_full_for_the_manifest_keeps_the_last_good_one(small_disk):
    writer = Writer(small_disk, Alone(), Retention(9), "continue")
    writer.save(1, big(1), {})
    writer.save(2, big(2), {})

    def phase(name):
        if name == "state":
            (small_disk / "filler").write_bytes(b"x" * (shutil.disk_usage(small_disk).free))

    writer.wait()
    writer.phase = phase
    writer.save(3, big(3, 100), {})
    (report,) = writer.wait()
    assert "No space left on device" in report.error
    found = find(small_disk, Alone(), pytest.fail)
    assert found is not None
    assert found.step == 2


def test_a_read_only_disk_is_said(small_disk):
    writer = Writer(small_disk, Alone(), Retention(9), "continue")
    writer.save(1, big(1), {})
    writer.wait()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    writer.save(2, big(2), {})
    assert "Read-only file system" in writer.wait()[0].error
    assert verify(small_disk / "step-00000001") == []


def save_with_files_of_100_kb(peers, tell, root: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    _save_and_tell(tell, root)


def save_as_nobody(peers, tell, root: Path) -> None:
    if os.geteuid() == 0:
        os.seteuid(65534)
    else:
        root.chmod(0o500)
    _save_and_tell(tell, root)


def _save_and_tell(tell, root: Path) -> None:
    writer = Writer(root, Alone(), Retention(), "continue")
    writer.save(2, big(2), {})
    tell(writer.wait()[0].error)


@pytest.mark.parametrize(
    ("work", "told"), [(save_with_files_of_100_kb, "File too large"), (save_as_nobody, "Permission denied")]
)
def test_what_the_system_refuses_is_said(tmp_path, work, told):
    writer = Writer(tmp_path, Alone(), Retention())
    writer.save(1, big(1), {})
    writer.wait()
    (error,) = Processes(1, work, tmp_path).messages()
    assert told in error
    tmp_path.chmod(0o700)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000001"]
    assert verify(tmp_path / "step-00000001") == []


class Gate:
    """Holds the writing thread at a phase until opened."""

    def __init__(self, phase: str) -> None:
        self.phase, self.reached, self.opened = phase, threading.Event(), threading.Event()

    def __call__(self, name: str) -> None:
        if name == self.phase:
            self.reached.set()
            assert self.opened.wait(30)


def saved_while_training_goes_on(root: Path, staging: Staging, phase: str) -> bool:
    """Overwrite the live tensors while a save is at `phase`; whether the checkpoint holds the old values."""
    gate = Gate(phase)
    writer = Writer(root, Alone(), Retention(), phase=gate)
    writer.staging = staging
    tensors = tensors_at(1)
    writer.save(1, pieces_of(tensors), {})
    assert gate.reached.wait(30)
    assert not (root / "step-00000001").exists()
    writer.secure()
    for tensor in tensors.values():
        tensor.zero_()
    gate.opened.set()
    (report,) = writer.wait()
    assert report.error == ""
    read = load_all(report.folder, empty_tensors())
    return all(same_bits(read[name], tensor) for name, tensor in tensors_at(1).items())


@pytest.mark.parametrize("phase", ["created", "half-written", "written"])
def test_training_may_go_on_while_the_thread_writes(phase, tmp_path):
    assert saved_while_training_goes_on(tmp_path, Staging(), phase)


class Forgetful(Staging):
    """The planted bug: lets values change that are not yet written."""

    def secure(self):
        pass


@pytest.mark.parametrize("phase", ["created", "half-written"])
def test_values_that_change_too_early_are_caught(phase, tmp_path):
    assert not saved_while_training_goes_on(tmp_path, Forgetful(), phase)


def test_what_is_written_is_not_copied(tmp_path):
    gate = Gate("half-written")
    writer = Writer(tmp_path, Alone(), Retention(), phase=gate)
    pieces = pieces_of(tensors_at(1))
    writer.save(1, pieces, {})
    assert gate.reached.wait(30)
    assert all(parts[0].data_ptr() == piece.values.data_ptr() for piece, parts in writer.staging.windows)
    live = {piece.tensor: piece.values.data_ptr() for piece in pieces}
    writer.staging.begun = 3  # as if the third window were being written
    writer.secure()
    copied = [parts[0].data_ptr() != live[piece.tensor] for piece, parts in writer.staging.windows]
    assert copied == [False, False, True, True, True]
    gate.opened.set()
    writer.wait()
    assert writer.staging.windows == []


def test_the_next_save_waits_for_the_last(tmp_path):
    gate = Gate("written")
    writer = Writer(tmp_path, Alone(), Retention(9), phase=gate)
    writer.save(1, big(1), {})
    assert gate.reached.wait(30)
    assert writer.finished() == []
    threading.Timer(0.3, gate.opened.set).start()
    stall = writer.save(2, big(2), {})
    assert stall > 0.2
    assert [report.step for report in writer.wait()] == [1, 2]
    for step in (1, 2):
        assert verify(tmp_path / f"step-{step:08d}") == []


def test_a_smaller_save_after_a_larger_one_is_whole(tmp_path):
    writer = Writer(tmp_path, Alone(), Retention(9))
    for step, size in enumerate((400, 40, 4000), start=1):
        writer.save(step, big(step, size), {})
    writer.wait()
    assert [verify(tmp_path / f"step-{step:08d}") for step in (1, 2, 3)] == [[], [], []]


def test_the_state_is_that_of_the_save(tmp_path):
    state = {"best": {"step": 1}}
    writer = Writer(tmp_path, Alone(), Retention())
    writer.save(1, big(1), state)
    state["best"]["step"] = 2
    writer.wait()
    assert '"step": 1' in (tmp_path / "step-00000001" / "state.json").read_text()


@pytest.mark.parametrize("asked", ["wait", "save", "finished"])
def test_a_bug_in_the_thread_reaches_the_caller(tmp_path, asked):
    def phase(name):
        if name == "written":
            raise ZeroDivisionError

    writer = Writer(tmp_path, Alone(), Retention(), "continue", phase=phase)
    writer.save(1, big(1), {})
    assert writer.under_way is not None
    writer.under_way.exception(30)
    with pytest.raises(ZeroDivisionError):
        writer.save(2, big(2), {}) if asked == "save" else getattr(writer, asked)()


def test_an_error_after_the_commit_does_not_hide_the_checkpoint(tmp_path):
    (tmp_path / "latest").mkdir()  # cannot be replaced by a file
    writer = Writer(tmp_path, Alone(), Retention(), "continue")
    writer.save(1, big(1), {})
    (report,) = writer.wait()
    assert report.error.startswith("The checkpoint of step 1 is saved, but rank 0: Is a directory")
    assert report.folder is not None
    assert verify(report.folder) == []


def test_what_json_cannot_hold_is_refused_before_anything_is_written(tmp_path):
    writer = Writer(tmp_path / "c", Alone(), Retention())
    with pytest.raises(TypeError):
        writer.save(1, big(1), {"x": object()})
    assert not (tmp_path / "c").exists()
