"""Monitors a run's ranks: a thread on each writes heartbeats, and ends the run when a rank is lost or hangs."""

import faulthandler
import os
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from threading import Event, Lock, RLock, Thread
from time import monotonic, sleep
from typing import Any, TextIO

from onecurve.errors import TrainingError
from onecurve.machine import backend_errors
from onecurve.machine.run_lock import ourselves
from onecurve.machine.speaker import spoken
from onecurve.ranks.heartbeat import last_beat
from onecurve.ranks.liveness import Sign, Signs, answering, late, lost, tell

_PERIOD_SECONDS = 5.0
"""Maximum seconds between heartbeats; not shorter, to spare a shared disk."""
_SECONDS_TO_SHOW = 2.0
"""Seconds for a heartbeat to reach the other ranks, on top of three periods."""
_POLL_SECONDS = 0.2
_ASK = signal.SIGRTMIN + 9
"""The signal at which a rank writes its stacks from C code: in a rank that gives no sign, a thread may hold the
interpreter lock. Only on request, not by a timer of its own as `faulthandler.dump_traceback_later`: after a suspension
that would be due at once, and read the frames of threads that run again, which ends the process with signal 11."""
_SECONDS_TO_WRITE = 0.5
"""Seconds for these stacks to be written."""
_BYTES_THAT_COUNT = 2**20
"""Bytes read or written between two checks that count as progress, as when one rank writes a large model."""


class Watch:
    """Watches from `start` until `stop`, `leave` or the end of the process.

    Args:
        folder: Where heartbeats are written; shared by all ranks.
        rank: This rank.
        world_size: Number of ranks.
        hang_timeout: Seconds.
        end: Reports why the run ends; called on one rank.
        said: Whether any rank has reported it.
    """

    def __init__(
        self,
        folder: Path,
        rank: int,
        world_size: int,
        hang_timeout: float,
        end: Callable[[str], None],
        said: Callable[[], bool],
    ) -> None:
        self.signs, self.rank, self.ranks = Signs(folder), rank, range(world_size)
        self.again: Callable[[], str] = lambda: "Launch again."
        """Returns a sentence on what launching again does, for the end of messages."""
        self.hang_timeout, self.end, self.said = hang_timeout, end, said
        self.period = min(_PERIOD_SECONDS, hang_timeout / 10)
        self.patience = 3 * self.period + _SECONDS_TO_SHOW
        """Seconds within which every live rank writes another heartbeat."""
        self.us, self.number, self.silent = ourselves(), 0, 0.0
        self.looked, self.progress = monotonic(), (0, 0)
        self.suspected: tuple[float, dict[int, Sign]] | None = None
        """When the hang began, on the monotonic clock, and the ranks' heartbeats then."""
        self.near: dict[int, Sign] = {}
        """The other ranks on this machine."""
        self.stacks: TextIO | None = None
        self._ending = RLock()
        """Held by the thread that ends this process: the training loop's or the monitor's."""
        self._stopped = Event()
        self._writing = Lock()
        """Prevents a heartbeat after the last one."""

    def start(self) -> None:
        """Write the first heartbeat, and continue in a thread."""
        with suppress(OSError):  # a full disk: the run says so itself
            self.signs.folder.mkdir(exist_ok=True)
            self.stacks = open(self.signs.stacks(self.rank), "w", encoding="utf-8")
        self._leave_sign()
        if self.stacks is not None:
            faulthandler.register(_ASK, file=self.stacks, all_threads=True)
        Thread(target=self._watch, name="watch over ranks", daemon=True).start()
        backend_errors.guard.stop()

    def stop(self) -> None:
        """Stop monitoring after success, or when another rank is to blame; removes the heartbeat."""
        self._halt()
        with self._writing:
            self.signs.remove(self.rank)

    def leave(self, reason: str) -> None:
        """Stop monitoring because this rank failed, and leave its reason for the other ranks to report."""
        self._halt()
        self._leave_sign(reason.strip().partition("\n")[0] or "for no reason given")

    def explain(self, error: str) -> str:
        """Find out, after a collective failed, which rank is lost; returns when it is this rank's turn to report it.

        Returns:
            The message; empty if another rank has reported it.
        """
        self._ending.acquire()
        before, deadline = self._read(), monotonic() + self.patience
        while not (gone := lost(self._others())) and monotonic() < deadline:
            sleep(_POLL_SECONDS)
        after = self._read()
        alive = answering(before, after) | {self.rank}
        gone = gone or [sign for rank, sign in after.items() if rank not in alive]
        why = tell(gone, alive, self.signs) or f"all are alive, but they cannot reach each other: {error}"
        return f"a rank was lost: {why}. {self.again()}" if self._is_our_turn(gone, after) else ""

    def _halt(self) -> None:
        self._ending.acquire()
        with self._writing:
            self._stopped.set()

    def _watch(self) -> None:
        broken = ""
        while not self._stopped.wait(self.period):
            try:
                self._look_and_judge()
            except Exception as error:  # noqa: BLE001  whatever it is, watching goes on, and a run is not ended by it
                if broken != (broken := f"{type(error).__name__}: {error}"):
                    told = f"the watch over hanging ranks met {broken}; it tries again every {self.period:g} s"
                    print(spoken(told), file=sys.stderr, flush=True)  # noqa: T201

    def _look_and_judge(self) -> None:
        self._look()
        self._judge_backend()
        if self.silent < self.hang_timeout:
            self.suspected = None
            self._judge_loss()
        elif self.suspected is None:
            self._dump()
            self.suspected = monotonic(), self._read()
        elif monotonic() - self.suspected[0] > self.patience:
            self._judge_hang(self.suspected[1])

    def _look(self) -> None:
        """Check whether this rank made progress since the last check, and write a heartbeat."""
        now = monotonic()
        passed, self.looked = min(now - self.looked, 2 * self.period), now  # more: we were suspended, all of us
        (count, moved), self.progress = self.progress, (last_beat().beats, _bytes_moved())
        gets_on = self.progress[0] != count or self.progress[1] - moved > _BYTES_THAT_COUNT
        self.silent = 0.0 if gets_on else self.silent + passed
        self._leave_sign()

    def _dump(self) -> None:
        if self.stacks is not None:
            with suppress(OSError):
                faulthandler.dump_traceback(file=self.stacks)

    def _judge_loss(self) -> None:
        """End the process if another on this machine has exited while the loop waits for it without an error."""
        if len(self.near) + 1 < _ranks_here(len(self.ranks)):
            first = self.rank - int(os.environ.get("LOCAL_RANK", self.rank))
            here = self.signs.read(range(first, first + _ranks_here(len(self.ranks))))
            self.near = {rank: sign for rank, sign in here.items() if rank != self.rank and sign.is_near}
        if any(sign.is_gone for sign in self.near.values()):
            after = self._read()  # one that came to a good end has taken its sign away
            self._end("a rank was lost", lost(self._others()), after)

    def _judge_backend(self) -> None:
        """End the process if its backend has found that a peer is gone: the loop may wait on the device for ever."""
        if (found := backend_errors.error()) and self._ending.acquire(blocking=False):
            if message := self.explain(found):
                self.end(message)
            os._exit(TrainingError.exit_code)

    def _judge_hang(self, before: Mapping[int, Sign]) -> None:
        """End the process if the rank that the others wait for has made no progress for hang_timeout either."""
        after = self._read()
        alive, culprits = answering(before, after), late(before, after)
        if not any(sign.rank in alive and sign.silent < self.hang_timeout for sign in culprits):
            _ask_for_stacks(sign for sign in culprits if sign.rank not in alive)
            self._end(f"no progress for {self.silent:.0f} s (train.hang_timeout)", culprits, after, alive)

    def _end(
        self, what: str, culprits: list[Sign], signs: Mapping[int, Sign], alive: Iterable[int] | None = None
    ) -> None:
        if culprits and self._ending.acquire(blocking=False):
            message = f"{what}: {tell(culprits, set(alive or signs), self.signs)}. {self.again()}"
            if self._is_our_turn(culprits, signs):
                self.end(message)
            os._exit(TrainingError.exit_code)

    def _is_our_turn(self, culprits: list[Sign], signs: Mapping[int, Sign]) -> bool:
        """Leave the report to the lowest rank that is not to blame; if it does not report, this one does."""
        to_blame = {sign.rank for sign in culprits}
        first = min({*signs, self.rank} - to_blame or {*signs, self.rank})
        deadline = monotonic() + (self.patience if first != self.rank else 0)
        while monotonic() < deadline and not self.said():
            self._leave_sign()
            sleep(_POLL_SECONDS)
        return not self.said()

    def _read(self) -> dict[int, Sign]:
        return self.signs.read(self.ranks) | {self.rank: self._sign()}

    def _others(self) -> list[Sign]:
        return list(self.signs.read(rank for rank in self.ranks if rank != self.rank).values())

    def _sign(self, ended: str = "") -> Sign:
        beat, now = last_beat(), datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
        return Sign(
            self.rank, self.us, self.number, beat.step, beat.phase, beat.beats, _collectives(), self.silent, ended, now
        )

    def _leave_sign(self, ended: str = "") -> None:
        with self._writing:
            if ended or not self._stopped.is_set():
                self.number += 1
                self.signs.leave(self._sign(ended))


def _ask_for_stacks(silent: Iterable[Sign]) -> None:
    """Have ranks on this machine that give no sign write where they are; not those that are stopped, and later run."""
    asked = [sign.process.pid for sign in silent if sign.is_near and not sign.is_gone and not sign.is_stopped]
    for pid in asked:
        with suppress(OSError):
            os.kill(pid, _ASK)
    if asked:
        sleep(_SECONDS_TO_WRITE)


def _ranks_here(world_size: int) -> int:
    """Ranks that the launcher started on this machine; all ranks if it does not tell."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size))


def _bytes_moved() -> int:
    """Bytes that this process has read and written so far; 0 if the kernel does not tell."""
    try:
        with open("/proc/self/io", encoding="ascii") as file:
            told = dict(line.split(": ") for line in file)
    except OSError:
        return 0
    return int(told["rchar"]) + int(told["wchar"])


def _collectives() -> int:
    """Collectives begun by this rank: of two ranks in the same phase, the one with fewer is behind."""
    from torch.distributed import distributed_c10d

    groups: list[Any] = list(distributed_c10d._world.pg_map)
    return sum(map(_sequence_number, groups))


def _sequence_number(group: Any) -> int:
    try:
        return int(group._get_sequence_number_for_group())
    except RuntimeError:  # a backend that does not count
        return 0
