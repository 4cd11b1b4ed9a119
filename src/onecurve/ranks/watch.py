"""The watch over a run's ranks: a thread on each leaves signs of life, and ends the run when one is lost or hangs."""

import faulthandler
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from threading import Event, Lock, RLock, Thread
from time import monotonic, sleep
from typing import Any, TextIO

from onecurve.errors import TrainingError
from onecurve.machine.run_lock import ourselves
from onecurve.ranks.heartbeat import last_beat
from onecurve.ranks.liveness import Sign, Signs, answering, late, lost, tell

_PERIOD_SECONDS = 5.0
"""Between two signs, at most: a shared disk is asked no more often."""
_SECONDS_TO_SHOW = 2.0
"""For a sign to reach the other ranks, beside three periods."""
_POLL_SECONDS = 0.2
_BYTES_THAT_COUNT = 2**20
"""Read or written between two looks: who moves so much gets on, as when one rank writes a large model."""
_AGAIN = "Nothing was saved since; launched again, the run goes on from its newest checkpoint."


class Watch:
    """Watches from `start` until `stop`, `leave` or the end of the process.

    Args:
        folder: Where signs are left; all ranks share it.
        rank: This one.
        world_size: How many there are.
        hang_timeout: Seconds.
        end: Says why the run ends, for all to see; called on one rank.
        said: Whether any rank has said so.
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
        self.hang_timeout, self.end, self.said = hang_timeout, end, said
        self.period = min(_PERIOD_SECONDS, hang_timeout / 10)
        self.patience = 3 * self.period + _SECONDS_TO_SHOW
        """Seconds in which every rank that lives leaves another sign."""
        self.us, self.number, self.silent = ourselves(), 0, 0.0
        self.looked, self.progress = monotonic(), (0, 0)
        self.suspected: tuple[float, dict[int, Sign]] | None = None
        """Since when a hang is, on the monotonic clock, and what the ranks said then."""
        self.near: dict[int, Sign] = {}
        """The other ranks on this machine."""
        self.stacks: TextIO | None = None
        self._ending = RLock()
        """Held by the thread that ends this process: the loop's or ours."""
        self._stopped = Event()
        self._writing = Lock()
        """So that no sign is left after the last one."""

    def start(self) -> None:
        """Leave the first sign, and go on in a thread."""
        with suppress(OSError):  # a full disk: the run says so itself
            self.signs.folder.mkdir(exist_ok=True)
            self.stacks = open(self.signs.stacks(self.rank), "w", encoding="utf-8")
        self._leave_sign()
        self._arm()
        Thread(target=self._watch, name="watch over ranks", daemon=True).start()

    def stop(self) -> None:
        """End the watch at a good end, or where another rank is to blame; nothing is left of it."""
        self._halt()
        with self._writing:
            self.signs.remove(self.rank)

    def leave(self, reason: str) -> None:
        """End the watch because this rank ends, for a reason of its own that the others will want to tell."""
        self._halt()
        self._leave_sign(reason.strip().partition("\n")[0] or "for no reason given")

    def explain(self, error: str) -> str:
        """Find out, after a collective failed, whom the run has lost; returns when it is this rank's turn to say so.

        Returns:
            What there is to say; empty where another rank has said it.
        """
        self._ending.acquire()
        before, deadline = self._read(), monotonic() + self.patience
        while not (gone := lost(self._others())) and monotonic() < deadline:
            sleep(_POLL_SECONDS)
        after = self._read()
        alive = answering(before, after) | {self.rank}
        gone = gone or [sign for rank, sign in after.items() if rank not in alive]
        why = tell(gone, alive, self.signs) or f"none is gone, but they no longer reach each other: {error}"
        return f"a rank was lost: {why}. {_AGAIN}" if self._is_our_turn(gone, after) else ""

    def _halt(self) -> None:
        self._ending.acquire()
        with self._writing:
            self._stopped.set()
            faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        while not self._stopped.wait(self.period):
            self._look()
            if self.silent < self.hang_timeout:
                self.suspected = None
                self._judge_loss()
            elif self.suspected is None:
                self._dump()
                self.suspected = monotonic(), self._read()
            elif monotonic() - self.suspected[0] > self.patience:
                self._judge_hang(self.suspected[1])

    def _look(self) -> None:
        """See whether this rank got on since the last look, and leave a sign."""
        now = monotonic()
        passed, self.looked = min(now - self.looked, 2 * self.period), now  # more: we were suspended, all of us
        (count, moved), self.progress = self.progress, (last_beat().beats, _bytes_moved())
        gets_on = self.progress[0] != count or self.progress[1] - moved > _BYTES_THAT_COUNT
        self.silent = 0.0 if gets_on else self.silent + passed
        self._leave_sign()
        self._arm()

    def _arm(self) -> None:
        """Have the stacks written if this thread does not run again: the interpreter lock is held, and C needs none."""
        with self._writing:
            if self.stacks is not None and not self._stopped.is_set():
                faulthandler.dump_traceback_later(self.hang_timeout, file=self.stacks)

    def _dump(self) -> None:
        if self.stacks is not None:
            with suppress(OSError):
                faulthandler.dump_traceback(file=self.stacks)

    def _judge_loss(self) -> None:
        """End the process where another of this machine has ended, though the loop waits for it without an error."""
        if len(self.near) + 1 < _ranks_here(len(self.ranks)):
            first = self.rank - int(os.environ.get("LOCAL_RANK", self.rank))
            here = self.signs.read(range(first, first + _ranks_here(len(self.ranks))))
            self.near = {rank: sign for rank, sign in here.items() if rank != self.rank and sign.is_near}
        if any(sign.is_gone for sign in self.near.values()):
            after = self._read()  # one that came to a good end has taken its sign away
            self._end("a rank was lost", lost(self._others()), after)

    def _judge_hang(self, before: Mapping[int, Sign]) -> None:
        """End the process where whom the others wait for has been silent for too long as well."""
        after = self._read()
        alive, culprits = answering(before, after), late(before, after)
        if not any(sign.rank in alive and sign.silent < self.hang_timeout for sign in culprits):
            self._end(f"no progress for {self.silent:.0f} s (train.hang_timeout)", culprits, after, alive)

    def _end(
        self, what: str, culprits: list[Sign], signs: Mapping[int, Sign], alive: Iterable[int] | None = None
    ) -> None:
        if culprits and self._ending.acquire(blocking=False):
            message = f"{what}: {tell(culprits, set(alive or signs), self.signs)}. {_AGAIN}"
            if self._is_our_turn(culprits, signs):
                self.end(message)
            os._exit(TrainingError.exit_code)

    def _is_our_turn(self, culprits: list[Sign], signs: Mapping[int, Sign]) -> bool:
        """Leave it to the lowest rank that is not to blame; where it does not speak, this one does."""
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


def _ranks_here(world_size: int) -> int:
    """How many ranks the launcher says it started on this machine; all of them where it does not say."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size))


def _bytes_moved() -> int:
    """What this process has read and written so far; 0 where the kernel does not tell."""
    try:
        with open("/proc/self/io", encoding="ascii") as file:
            told = dict(line.split(": ") for line in file)
    except OSError:
        return 0
    return int(told["rchar"]) + int(told["wchar"])


def _collectives() -> int:
    """How many collectives this rank has begun: of two in the same phase, the other waits for the one with fewer."""
    from torch.distributed import distributed_c10d

    groups: list[Any] = list(distributed_c10d._world.pg_map)
    return sum(group._get_sequence_number_for_group() for group in groups)
