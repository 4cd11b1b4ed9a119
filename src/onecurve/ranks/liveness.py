"""The heartbeats that ranks write to the run directory, and how to read them."""

import json
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from onecurve.machine.run_lock import Owner, is_running, ourselves

_FRAME = re.compile(r'File "(.+?)", line (\d+) in (.+)')
_FRAMES_TOLD = 4
_RANKS_TOLD = 4


@dataclass(frozen=True)
class Sign:
    """The last heartbeat of a rank."""

    rank: int
    process: Owner
    number: int
    """Number of the heartbeat: a rank is silent if it no longer grows. Clocks are never compared."""
    step: int
    phase: str
    beats: int
    collectives: int
    """Collectives that it has begun."""
    silent: float
    """Seconds without progress."""
    ended: str = ""
    """Why it ended; empty while it runs."""
    time: str = ""
    """For messages only."""

    @property
    def is_gone(self) -> bool:
        """Whether its process is known to have ended; only known on its own machine."""
        return self.is_near and not is_running(self.process)

    @property
    def is_near(self) -> bool:
        """Whether it runs on this machine."""
        return bool(self.process.machine) and self.process.machine == ourselves().machine

    @property
    def is_stopped(self) -> bool:
        """Whether the process, which runs on this machine, is suspended."""
        return _status(self.process.pid) == psutil.STATUS_STOPPED

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.process.host} (process {self.process.pid})"


@dataclass(frozen=True)
class Signs:
    """The folder of the heartbeat files."""

    folder: Path

    def path(self, rank: int) -> Path:
        """Return the heartbeat file of a rank."""
        return self.folder / f"rank-{rank:05d}.json"

    def stacks(self, rank: int) -> Path:
        """Return the file with the stacks of a hung rank's threads."""
        return self.folder / f"rank-{rank:05d}.stacks"

    def leave(self, sign: Sign) -> None:
        """Replace a rank's heartbeat. A write error is ignored: the run itself reports a full disk."""
        with suppress(OSError):
            unfinished = self.folder / f"rank-{sign.rank:05d}.incomplete"
            unfinished.write_text(json.dumps(asdict(sign), indent=1) + "\n", encoding="utf-8")
            os.replace(unfinished, self.path(sign.rank))  # not flushed to the disk: nobody needs it after a power cut

    def read(self, ranks: Iterable[int]) -> dict[int, Sign]:
        """Return the last heartbeats of these ranks, without those that have none."""
        found = {}
        for rank in ranks:
            with suppress(OSError, ValueError, TypeError):
                entry = json.loads(self.path(rank).read_text(encoding="utf-8"))
                found[rank] = Sign(**{**entry, "process": Owner(**entry["process"])})
        return found

    def remove(self, rank: int) -> None:
        """Remove a rank's heartbeat, and the folder after the last one."""
        with suppress(OSError):
            for path in (self.path(rank), self.stacks(rank)):
                path.unlink(missing_ok=True)
            self.folder.rmdir()

    def where(self, rank: int) -> str:
        """Describe the innermost frames of a rank's main thread; empty if it left no stacks."""
        try:
            text = self.stacks(rank).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
        frames = _FRAME.findall(text.strip().rpartition("\n\n")[2])[:_FRAMES_TOLD]  # the main thread is told last
        told = " < ".join(f"{function} ({os.path.basename(file)}:{line})" for file, line, function in frames)
        return f", at {told}; its threads: {self.stacks(rank)}" if frames else ""


def answering(before: Mapping[int, Sign], after: Mapping[int, Sign]) -> set[int]:
    """Return the ranks with a new heartbeat between two checks."""
    return {rank for rank, sign in after.items() if rank not in before or sign.number > before[rank].number}


def lost(signs: Iterable[Sign]) -> list[Sign]:
    """Return the ranks that are known to have ended."""
    return [sign for sign in signs if sign.ended or sign.is_gone]


def late(before: Mapping[int, Sign], after: Mapping[int, Sign]) -> list[Sign]:
    """Return the ranks that the others wait for: ended ones, else silent ones, else those furthest behind."""
    alive = answering(before, after)
    least = min((sign.beats, sign.collectives) for sign in after.values())
    return (
        lost(after.values())
        or [sign for rank, sign in after.items() if rank not in alive]
        or [sign for sign in after.values() if (sign.beats, sign.collectives) == least]
    )


def tell(culprits: Iterable[Sign], alive: set[int], files: Signs) -> str:
    """Describe the ranks that a run waits for or has lost, and what they were doing.

    Args:
        culprits: Those ranks.
        alive: Ranks with recent heartbeats.
        files: Gives the files with their stacks.
    """
    told = [f"{sign} {_state(sign, sign.rank in alive)}{files.where(sign.rank)}" for sign in culprits]
    more = [f"and {len(told) - _RANKS_TOLD} more"] if len(told) > _RANKS_TOLD else []
    return "; ".join(told[:_RANKS_TOLD] + more)


def _state(sign: Sign, alive: bool) -> str:
    place = f"at {sign.phase} of step {sign.step}"
    if sign.ended:
        return f"ended {place}: {sign.ended}"
    if sign.is_gone:
        return f"is gone, last seen {place}"
    if alive:
        return f"has been {place} for {sign.silent:.0f} s"
    return f"gives no sign of life{_process_state(sign)}, last seen {place}"


def _process_state(sign: Sign) -> str:
    """The kernel's state of a process on this machine: stopped, disk-sleep, running, ..."""
    status = _status(sign.process.pid) if sign.is_near else ""
    return f" ({status})" if status else ""


def _status(pid: int) -> str:
    try:
        return str(psutil.Process(pid).status())
    except psutil.Error:
        return ""
