"""How a run ends: one voice, one message, an exit code, and the status that scripts trust."""

import logging
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from typing import NoReturn

from onecurve.config import manual
from onecurve.distributed import launched_rank
from onecurve.errors import NothingToDo, TrainingError, UserError
from onecurve.run_directory import RunDirectory

_SECONDS_TO_SPEAK = 20
"""How long other ranks leave rank 0 to say a mistake that all of them found."""


class Run:
    """What is known of a run at any moment: where it writes and how far it is."""

    directory: RunDirectory | None = None
    """Absent until the run has begun; what was there before stays untouched."""
    step = 0
    outcome = "done"
    """What the status will say when nothing fails: done or stopped."""

    def begin(self, directory: RunDirectory, config: str, after: int) -> None:
        """Take the directory over, to go on after a step: from here on its status is this run's to write."""
        self.step = after
        if launched_rank() == 0:
            directory.open(config, after)
        self.directory = directory

    def stops_at(self, stop_after: int | None, max_steps: int) -> bool:
        """Whether the run ends here for now: where it was asked to, before its last step."""
        if self.step != stop_after or self.step == max_steps:
            return False
        self.outcome = "stopped"
        return True

    def finish(self, status: str, exit_code: int, reason: str = "") -> None:
        """Write how it ended."""
        if self.directory is not None and launched_rank() == 0:
            self.directory.set_status(status, step=self.step, exit_code=exit_code, reason=reason)


def due(step: int, every: int, max_steps: int) -> bool:
    """Whether what happens every `every` steps (0: only at the end) happens after `step`."""
    return step == max_steps or (every > 0 and step % every == 0)


def execute(body: Callable[[list[str], Run], None], argv: list[str]) -> int:
    """Run `body` and return the exit code: 0 done, 1 a bug, 2 the user's mistake, 3 training failed."""
    if "--help" in argv or "-h" in argv:
        print(manual())  # noqa: T201
        return 0
    _hush()
    run = Run()
    try:
        body(argv, run)
    except NothingToDo as reason:
        if launched_rank() == 0:
            print(reason)  # noqa: T201
        return 0
    except (UserError, TrainingError) as error:
        return _fail(run, str(error), error.exit_code)
    except BaseException as error:  # noqa: BLE001  a bug or an interrupt: shown whole, and the status must say so
        if launched_rank() == 0:
            traceback.print_exc()
        run.finish("failed", 1, f"{type(error).__name__}: {error}")
        return 1
    run.finish(run.outcome, 0)
    return 0


def leave(exit_code: int) -> NoReturn:
    """End the process at once.

    Without the interpreter's farewell: gloo's process group joins its threads in a destructor that holds the lock
    those threads wait for, and one run in a few never ended.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


def _fail(run: Run, message: str, exit_code: int) -> int:
    if launched_rank() != 0:
        # The launcher ends everybody once one rank ends: let rank 0 speak first
        time.sleep(_SECONDS_TO_SPEAK)
    run.finish("failed", exit_code, message)
    print(f"train.py: {message}", file=sys.stderr, flush=True)  # noqa: T201
    return exit_code


def _hush() -> None:
    """Keep off the terminal what upstream says and a user can do nothing about."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for name in ("DeepSpeed", "accelerate.accelerator"):
        logging.getLogger(name).addFilter(lambda record: record.levelno >= logging.ERROR)
    warnings.filterwarnings("ignore")
