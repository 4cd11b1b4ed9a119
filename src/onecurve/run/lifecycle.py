"""How a run ends: one message from one rank, an exit code, and the final status."""

import os
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, Protocol

from onecurve.config import manual
from onecurve.errors import BetweenUpdates, NothingToDo, TrainingError, UserError
from onecurve.machine.cores import let_segments_grow
from onecurve.machine.determinism import mistake_of_determinism
from onecurve.machine.distributed import asked_world_size, launched_rank
from onecurve.machine.log_noise import hush_optional
from onecurve.machine.run_lock import RunLock
from onecurve.machine.speaker import spoken
from onecurve.ranks.launcher import end_with_launcher
from onecurve.ranks.lost_rank import is_loss
from onecurve.ranks.watch import Watch
from onecurve.run.directory import RunDirectory

_SECONDS_TO_SAVE = 600
"""Maximum seconds that a failed run waits for the save in progress."""
_SECONDS_TO_SPEAK = 20
"""Seconds that other ranks wait for rank 0 to report a mistake that all of them found."""


EX_TEMPFAIL = 75
"""EX_TEMPFAIL of sysexits.h: not done; launch again to resume."""

SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2")
"""Signals that make a run save and stop."""

MESSAGE_FILE = "ONECURVE_MESSAGE_FILE"
"""The environment variable with the path of a file that is also given the message a run fails with."""


@dataclass(frozen=True)
class Decision:
    """What all ranks agreed to do after a step."""

    save: bool = False
    stop: str = ""
    """Why the run ends here; empty if it continues."""
    exit_code: int = 0
    """What it then ends with: 0, or `EX_TEMPFAIL` where it was interrupted."""


class Saves(Protocol):
    """What a run's beginning and its end need of its checkpoints."""

    def resume(self) -> int:
        """Load the checkpoint to start from; return its step."""

    def rescue(self, step: int) -> str:
        """Save the run after `step`, unless it is saved; say what is not, and why."""

    def let_finish(self, seconds: float) -> None:
        """Wait at most so long for the save in progress."""


class Run:
    """The state of a run: its directory and its progress."""

    directory: RunDirectory | None = None
    """None until the run has begun; until then existing files are not changed."""
    step = 0
    asked = Decision()
    """What was agreed after that step; a reason to stop is how the run ends when nothing fails."""

    explain: Callable[[BaseException], str] | None = None
    """Explains a failure that is not a bug; empty for a bug."""

    lock: RunLock | None = None
    watch: Watch | None = None
    saves: Saves | None = None
    holder = ""
    """The token of this run's lock, on every rank."""

    def begin(
        self,
        directory: RunDirectory,
        config: str,
        hang_timeout: timedelta,
        saves: Saves,
        behind: Callable[[int], Decision],
    ) -> None:
        """Take the directory over and go on after the step resumed from, unless a stop already lies `behind` it.

        The directory's status is now this run's to write, and from here on the ranks are watched.
        """
        if launched_rank() == 0:  # before `resume`, which moves checkpoints that are no longer meant
            directory.take()
            self.lock = directory.lock
            shutil.rmtree(directory.ranks, ignore_errors=True)  # an earlier launch's; ours come after `resume`
        self.saves = saves
        self.step = saves.resume()
        self.asked = behind(self.step)
        if launched_rank() == 0:
            directory.open(config, self.step)
        self.directory, self.holder = directory, directory.lock.holder()
        self.watch = Watch(
            directory.ranks,
            launched_rank(),
            asked_world_size(),
            hang_timeout.total_seconds(),
            self.give_up,
            lambda: directory.status().get("status") == "failed",
        )
        self.watch.again = directory.again
        self.watch.start()

    def give_up(self, message: str, *, lost: bool = True) -> None:
        """Report that training failed; on any rank, since rank 0 may be the one that failed.

        Args:
            message: Why, and what to do.
            lost: Whether a rank was lost or hangs, rather than that training itself failed.
        """
        if self.directory is not None and self.directory.lock.holder() == self.holder:  # else it is another run's now
            with suppress(TrainingError):  # it cannot be written: the message is for the terminal then
                code = TrainingError.exit_code
                self.directory.set_status("failed", step=self.step, exit_code=code, reason=message, lost=lost)
        if self.lock is not None:
            self.lock.release()
        os.write(2, f"{spoken(message)}\n".encode())  # the loop's thread may hang in the middle of a print
        _hand_over(message)

    def finish_save(self, lost: bool) -> None:
        """Wait for the save in progress, for a while; not where a rank is `lost`, and with it its share."""
        if self.saves is not None and not lost:
            self.saves.let_finish(_SECONDS_TO_SAVE)

    def rescue(self, error: BaseException) -> None:
        """Save what was trained before a mistake that all ranks met alike between updates; its message then says so."""
        if self.saves is None or self.directory is None or not isinstance(error, BetweenUpdates):
            return
        trouble = self.saves.rescue(self.step)
        again = self.directory.again()
        error.fix = " ".join(part for part in (trouble, again, error.fix) if part)

    def finish(self, status: str, exit_code: int, reason: str = "") -> None:
        """Write the final status and release the directory.

        Raises:
            TrainingError: It cannot be written.
        """
        if self.watch is not None:
            if status == "failed":
                self.watch.leave(reason)
            else:
                self.watch.stop()
        try:
            if self.directory is not None and launched_rank() == 0:
                self.directory.set_status(status, step=self.step, exit_code=exit_code, reason=reason)
        finally:
            if self.lock is not None:
                self.lock.release()


def due(step: int, every: int, max_steps: int) -> bool:
    """Whether what happens every `every` steps (0: only at the end) happens after `step`."""
    return step == max_steps or (every > 0 and step % every == 0)


def execute(body: Callable[[list[str], Run], None], argv: list[str]) -> int:
    """Run `body` and return the exit code: 0 done, 1 a bug, 2 the user's mistake, 3 training failed,
    75 interrupted after a complete checkpoint.
    """
    if "--help" in argv or "-h" in argv:
        print(manual())  # noqa: T201
        return 0
    _hush()
    let_segments_grow()
    end_with_launcher()
    for name in SIGNALS:  # until the loop takes them over
        signal.signal(getattr(signal, name), _leave_unbegun)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [getattr(signal, name) for name in SIGNALS])  # see launching
    run = Run()
    try:
        body(argv, run)
        run.finish("stopped" if run.asked.stop else "done", run.asked.exit_code, run.asked.stop)
    except NothingToDo as reason:
        if launched_rank() == 0:
            print(reason)  # noqa: T201
        return 0
    except BaseException as error:  # noqa: BLE001  every end is reported
        return _end(run, error)
    return run.asked.exit_code


def _end(run: Run, error: BaseException) -> int:
    """Report how a run failed, and return the exit code."""
    error = mistake_of_determinism(error) or error
    run.rescue(error)
    told = run.explain(error) if run.explain else ""
    run.finish_save(lost=not told and is_loss(error))
    if told:
        run.give_up(told, lost=False)
        if run.watch:
            run.watch.leave(told)
        return TrainingError.exit_code
    if is_loss(error):
        message = run.watch.explain(str(error)) if run.watch else f"a rank was lost before the run began: {error}"
        if message:
            run.give_up(message)
        if run.watch:
            run.watch.stop()
        return TrainingError.exit_code
    if isinstance(error, (UserError, TrainingError)):
        return _fail(run, str(error), error.exit_code)
    # A bug or an interrupt: shown whole, and the status must say so
    print(f"rank {launched_rank()}: {traceback.format_exc()}", end="", file=sys.stderr, flush=True)  # noqa: T201
    if run.directory is not None and launched_rank() == 0:
        print(spoken(run.directory.again()), file=sys.stderr, flush=True)  # noqa: T201
    with suppress(TrainingError):
        run.finish("failed", 1, f"{type(error).__name__}: {error}")
    return 1


def leave(exit_code: int) -> NoReturn:
    """End the process at once.

    Skips the interpreter's shutdown: gloo's process group joins its threads in a destructor that holds the lock
    those threads wait for, so some runs never ended.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


def _leave_unbegun(number: int, frame: Any) -> None:
    """Handle a signal before there is anything to save: by default it would look like a crash."""
    if launched_rank() == 0:  # another rank's launcher may only be ending it after a mistake that rank 0 has told
        os.write(2, spoken(f"{signal.Signals(number).name}: nothing has begun; launch again to start\n").encode())
    os._exit(EX_TEMPFAIL)


def _fail(run: Run, message: str, exit_code: int) -> int:
    if launched_rank() != 0:
        if run.watch is not None:
            run.watch.leave(message)
        # The launcher ends everybody once one rank ends: let rank 0 speak first, and alone
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(_SECONDS_TO_SPEAK)
    with suppress(TrainingError):  # it cannot be written either: then that was the message, or it is no worse
        run.finish("failed", exit_code, message)
    print(spoken(message), file=sys.stderr, flush=True)  # noqa: T201
    _hand_over(message)
    return exit_code


def _hand_over(message: str) -> None:
    if path := os.environ.get(MESSAGE_FILE):
        Path(path).write_text(message, encoding="utf-8")


def _hush() -> None:
    """Hide upstream messages that a user can do nothing about."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    hush_optional()
    warnings.filterwarnings("ignore")
