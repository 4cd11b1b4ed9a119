"""Who is using a run directory: one run at a time, also where several machines share the disk."""

import json
import os
import platform
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from threading import Event, Thread
from time import monotonic, sleep
from typing import Any
from uuid import uuid4

from onecurve.errors import LaunchError, TrainingError
from onecurve.machine.speaker import spoken

_POLL_SECONDS = 0.5
_CLAIM_SECONDS = 5.0
"""How long another run may take between claiming a dead run's lock and having replaced it."""


@dataclass(frozen=True)
class Owner:
    """The process that holds a lock, as its file tells it."""

    host: str = "an unknown machine"
    pid: int = 0
    machine: str = ""
    """Boot and process namespace: where it equals ours, `pid` can be looked up here. Host names need not be unique."""
    started: str = ""
    """When the process started, in the kernel's ticks since boot: tells it from a later one with its number."""
    job: str = ""
    """Slurm's job id."""
    restarts: int = 0
    """How often Slurm has requeued that job."""
    since: str = ""
    """Told to people only; nothing is decided by it."""
    token: str = ""

    def __str__(self) -> str:
        job = f", Slurm job {self.job}" if self.job else ""
        return f"process {self.pid} on {self.host}{job}" + (f", since {self.since}" if self.since else "")


def ourselves() -> Owner:
    """Describe this process."""
    return Owner(
        host=platform.node(),
        pid=os.getpid(),
        machine=_machine(),
        started=_process_state(os.getpid())[1],
        job=os.environ.get("SLURM_JOB_ID", ""),
        restarts=int(os.environ.get("SLURM_RESTART_COUNT") or 0),
        since=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC"),
        token=uuid4().hex,
    )


@dataclass
class RunLock:
    """The file that says which process uses a run directory; renewed while that process lives.

    A file made exclusively and renewed, not `flock`: that is local to a machine on many shared file systems. Clocks
    are never compared: whether an owner on another machine lives is seen by watching its file change.

    Args:
        path: The file.
        renewed_every: Seconds between two renewals.
        gone_after: Seconds without a renewal after which an owner on another machine is gone.
        quiet: Whether to wait for such an owner without saying so.
    """

    path: Path
    renewed_every: float = 10.0
    gone_after: float = 60.0
    us: Owner = field(default_factory=ourselves)
    quiet: bool = False
    _watched: tuple[str, int] | None = None
    """The lock, as it was last seen to be a dead run's."""
    _released: Event = field(default_factory=Event)

    def check(self) -> None:
        """Check, changing nothing, that no living run holds the directory; waits where only time can tell.

        Raises:
            LaunchError: One does; the message names it.
        """
        self._dead_owner()

    def acquire(self) -> None:
        """Take the directory, a dead run's too, and renew the lock until it is released.

        Raises:
            LaunchError: A living run holds it.
            OSError: The file cannot be written.
        """
        while not self._create():
            dead = self._dead_owner()
            if dead is not None and self._take_over(dead):
                break
        Thread(target=self._renew, name="run lock", daemon=True).start()

    def release(self) -> None:
        """Let go of the directory, where it is ours; a directory that is gone needs no letting go."""
        if not self._released.is_set():
            self._released.set()
            with suppress(OSError):
                found = self._read()
                if found is not None and found[0].token == self.us.token:
                    self.path.unlink()

    def holder(self) -> str:
        """Return the token of whoever holds the directory; empty where nobody does, or none can be read."""
        with suppress(OSError):
            found = self._read()
            return found[0].token if found else ""
        return ""

    def confirm(self) -> None:
        """Check that the directory is still ours.

        Raises:
            TrainingError: Another run took it: this one was suspended, or cut off the disk, for too long.
        """
        with suppress(OSError):
            found = self._read()
            if found is not None and found[0].token not in ("", self.us.token):
                raise TrainingError(
                    f"{str(self.path.parent)!r} was taken over by another run: {found[0]}. This one had not renewed "
                    f"its lock for {self.gone_after:.0f} seconds and stops, so that the two do not mix."
                )

    def _create(self) -> bool:
        try:
            file = open(self.path, "x", encoding="utf-8")
        except FileExistsError:
            return False
        try:
            with file:
                file.write(json.dumps(asdict(self.us)) + "\n")
        except OSError:
            self.path.unlink(missing_ok=True)
            raise
        return True

    def _dead_owner(self) -> Owner | None:
        """Return whose lock may be taken over; None where there is no lock."""
        found = self._read()
        if found is not None and not self._is_gone(*found):
            raise LaunchError(
                f"{str(self.path.parent)!r} is in use by another run: {found[0]}.",
                where="output_dir",
                fix="Choose another, or end that run first.",
            )
        return found[0] if found else None

    def _read(self) -> tuple[Owner, int] | None:
        """Return the owner and when the file was renewed; None where there is no lock.

        The file is opened anew each time: network file systems ask their server then, and not before.
        """
        try:
            with open(self.path, encoding="utf-8", errors="replace") as file:
                renewed, text = os.fstat(file.fileno()).st_mtime_ns, file.read()
        except FileNotFoundError:
            return None
        try:
            return _owner(json.loads(text)), renewed
        except (ValueError, TypeError):  # cut short by a crash, or another version's
            return Owner(), renewed

    def _is_gone(self, owner: Owner, renewed: int) -> bool:
        if owner.machine and owner.machine == self.us.machine:
            return not is_running(owner)
        if owner.job and owner.job == self.us.job and owner.restarts < self.us.restarts:
            return True  # Slurm requeued our job: what ran before is over
        return self._watched == (owner.token, renewed) or self._falls_silent(owner, renewed)

    def _falls_silent(self, owner: Owner, renewed: int) -> bool:
        told = f"{self.path.parent} was last used by {owner}; waiting up to {self.gone_after:.0f} s for a renewal"
        if not self.quiet:
            print(spoken(told), file=sys.stderr, flush=True)  # noqa: T201
        until = monotonic() + self.gone_after
        while monotonic() < until:
            sleep(min(_POLL_SECONDS, self.renewed_every))
            found = self._read()
            if found is None:
                return True
            if (found[0].token, found[1]) != (owner.token, renewed):
                return False
        self._watched = (owner.token, renewed)
        return True

    def _take_over(self, dead: Owner) -> bool:
        """Replace a dead run's lock; of several runs that want to, one does."""
        claim = self.path.with_name(f"{self.path.name}.claim-{dead.token}")
        try:
            claim.touch(exist_ok=False)
        except FileExistsError:
            self._await_claimant(dead, claim)
            return False
        try:
            found = self._read()
            if found is None or found[0].token != dead.token:
                return False
            unfinished = self.path.with_name(f"{self.path.name}.{self.us.token}")
            unfinished.write_text(json.dumps(asdict(self.us)) + "\n", encoding="utf-8")
            os.replace(unfinished, self.path)
            return True
        finally:
            claim.unlink(missing_ok=True)

    def _await_claimant(self, dead: Owner, claim: Path) -> None:
        until = monotonic() + _CLAIM_SECONDS
        while claim.exists():
            if monotonic() > until:
                raise LaunchError(
                    f"a run ended while it was taking over the lock of {dead}.",
                    where="output_dir",
                    fix=f"Remove {claim} and {self.path} if no run uses this directory.",
                )
            sleep(0.1)

    def _renew(self) -> None:
        while not self._released.wait(self.renewed_every):
            with suppress(OSError):  # a disk that is away for a moment; another run's lock shows in `confirm`
                found = self._read()
                if found is not None and found[0].token == self.us.token:
                    os.utime(self.path)


def _owner(values: Any) -> Owner:
    """Check what a lock's file says: its token becomes part of a file's name.

    Raises:
        TypeError: It is not what a run writes.
    """
    owner = replace(Owner(), **values)
    kinds = {key: type(value) for key, value in asdict(Owner()).items()}
    if any(type(value) is not kinds[key] for key, value in asdict(owner).items()) or "/" in owner.token:
        raise TypeError("not a lock of a run")
    return owner


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def is_running(owner: Owner) -> bool:
    """Whether a process of this machine runs; a zombie does not."""
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's: perhaps a later process with that number
        pass
    state, started = _process_state(owner.pid)
    return not state or (state not in "ZX" and started == owner.started)


def _process_state(pid: int) -> tuple[str, str]:
    """Return a process's state letter and when it started; empty where the system does not tell."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return "", ""
    fields = text.rpartition(")")[2].split()  # after the name, which may hold anything
    return fields[0], fields[19]
