"""The run directory's disk: free space, permissions, locks, and whether all machines share it."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from time import monotonic, perf_counter, sleep
from uuid import uuid4

from onecurve.doctor.findings import Finding, Level, Patient

_LITTLE_ROOM, _NO_ROOM = 10e9, 1e9
"""Bytes."""
_SECONDS_TO_SHOW = 15.0
"""Network file systems may show an old listing for some seconds."""


def check_storage(patient: Patient) -> Iterator[Finding]:
    """Say how much room there is, and whether this machine may write and lock files."""
    free = shutil.disk_usage(patient.folder).free
    level: Level = "failure" if free < _NO_ROOM else "warning" if free < _LITTLE_ROOM else "ok"
    yield Finding("disk", f"{free / 1e9:.1f} GB free in {patient.folder}", level, "Make room." if level != "ok" else "")
    probe = patient.folder / f".onecurve-doctor-{uuid4().hex}"
    try:
        started = perf_counter()
        probe.write_bytes(b"x")
        with open(probe, "rb+") as file:
            os.fsync(file.fileno())
        yield Finding("writing", f"in {patient.folder}" + _slow(perf_counter() - started))
        yield _check_lock(probe)
    except OSError as error:
        told = f"not in {patient.folder}: {error.strerror}"
        yield Finding("writing", told, "failure", "Choose an output_dir that this user can write.")
    finally:
        with suppress(OSError):
            probe.unlink()


def _slow(seconds: float) -> str:
    return f"; {seconds:.1f} s for one byte" if seconds > 1 else ""


def _check_lock(path: Path) -> Finding:
    advice = "Set data.cache_dir to a disk with locks, such as one of each machine's own."
    with open(path, "rb+") as first, open(path, "rb+") as second:
        try:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return Finding("locks", "held")
        except OSError as error:
            return Finding("locks", f"none: {error.strerror}", "failure", advice)
    return Finding("locks", "two processes held one lock at once", "failure", advice)


def check_shared(patient: Patient) -> Iterator[Finding]:
    """Say whether each machine sees what the others write, rename and lock."""
    world = patient.world
    if world.missing or not any(world.gather(bool(world.neighbours))):
        return
    folder = patient.folder / f".onecurve-doctor-{world.gather(uuid4().hex)[0]}"
    mine = folder / f"{world.rank}.{uuid4().hex}"
    problem = ""
    try:
        folder.mkdir(exist_ok=True)
        (folder / f"{world.rank}.unfinished").write_text("x")
        (folder / f"{world.rank}.unfinished").rename(mine)
    except OSError as error:
        problem = str(error.strerror)
    yield from _look(patient, folder, world.gather((mine.name, problem)))
    yield from _lock_together(patient, folder)
    world.gather(None)  # all have looked
    shutil.rmtree(folder, ignore_errors=True)


def _look(patient: Patient, folder: Path, written: list[tuple[str, str]]) -> Iterator[Finding]:
    hosts = patient.world.hosts
    expected = {name: hosts[rank] for rank, (name, problem) in enumerate(written) if not problem}
    started, seen = monotonic(), set[str]()
    while not expected.keys() <= seen and monotonic() - started < _SECONDS_TO_SHOW:
        seen = set(os.listdir(folder)) if folder.is_dir() else set()
        sleep(0.05)
    seconds = monotonic() - started
    hidden = sorted({host for name, host in expected.items() if name not in seen})
    half = sorted(name for name in seen if name.endswith(".unfinished"))
    if hidden:
        told = f"{patient.folder}: what {', '.join(hidden)} writes is not seen here"
        yield Finding("shared disk", told, "failure", "Put output_dir on a disk that all machines share.")
    elif half:
        yield Finding("shared disk", "a renamed file is still seen under its old name", "warning")
    else:
        late = f", {seconds:.0f} s late" if seconds > 1 else ""
        yield Finding("shared disk", f"all machines see one {patient.folder}{late}", "warning" if late else "ok")


def _lock_together(patient: Patient, folder: Path) -> Iterator[Finding]:
    """Rank 0 holds a lock while the others ask for it."""
    world, path = patient.world, folder / "lock"
    elsewhere = world.hosts[world.rank] != world.hosts[0]
    with ExitStack() as opened:
        held = world.gather(world.rank == 0 and _take_lock(opened, path))[0]
        given = held and elsewhere and _take_lock(opened, path)
        world.gather(None)  # before rank 0 lets go
    if given:
        yield Finding(
            "locks between machines",
            f"{world.hosts[0]}'s are not seen here",
            "warning",
            "Encode the data before the run: `onecurve data stage RECIPE`.",
        )


def _take_lock(opened: ExitStack, path: Path) -> bool:
    with suppress(OSError):
        fcntl.flock(opened.enter_context(open(path, "ab")), fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False
