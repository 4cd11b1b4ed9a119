"""Requests to stop or save: signals, time limit, files in the run directory. Any rank sees them, all ranks agree."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from math import inf
from typing import Any

import psutil
import torch
from accelerate import Accelerator

from onecurve.config import TrainSection
from onecurve.machine.speaker import spoken
from onecurve.resume import Checkpoints
from onecurve.run.directory import RunDirectory
from onecurve.run.lifecycle import EX_TEMPFAIL, SIGNALS, Decision

SAVE, STOP, TIME = "SAVE", "STOP", "the end of its time"
_STOP_AFTER = "train.stop_after (raise it or leave it out)"
_REASONS = (*SIGNALS, TIME, STOP, SAVE)

_SECONDS_BETWEEN_LOOKS = 1.0
"""Seconds between two looks at the files, to spare a shared disk."""
_SECONDS_TO_LEAVE = 10.0
"""Seconds for the process to exit after its last save."""


class Stopping:
    """Handles signals from here on: the run acts on them after the current step. A second signal changes nothing.

    Args:
        section: The recipe's `train`.
        directory: Where the files SAVE and STOP are looked for.
        checkpoints: Tell how long a save takes and, once resumed, which step is the last.
        accelerator: The other ranks.
    """

    def __init__(
        self, section: TrainSection, directory: RunDirectory, checkpoints: Checkpoints, accelerator: Accelerator
    ) -> None:
        self.stop_after, self.checkpoints = section.stop_after, checkpoints
        self.directory, self.accelerator = directory.path, accelerator
        self.seen: set[str] = set()
        self.deadline = _deadline(section.time_limit.total_seconds() if section.time_limit else None)
        self.border = time.monotonic()
        self.made, self.longest = 0, 0.0
        """Steps of this launch, and the seconds of the longest: from one step boundary to the next, with the evaluation
        and save that may follow a step. The first, which compiles and warms up, counts only until there is another."""
        self.looked = 0.0
        self.told: set[str] = set()
        """Files that could not be removed, and of which that was said."""
        for name in SIGNALS:
            signal.signal(getattr(signal, name), self._hear)

    def behind(self, step: int) -> Decision:
        """The requests that a launch resumed after `step` received before it began; its first step begins now."""
        self.border = time.monotonic()  # not when this was made: reading a large checkpoint is no step
        if self.stop_after == self.checkpoints.plan.max_steps:
            self.stop_after = None
        return Decision(stop=_STOP_AFTER) if self.stop_after and step >= self.stop_after else Decision()

    def requests(self) -> list[float]:
        """Return what this rank was asked for, one number for each reason, when the passes of a step are made.

        Added up over ranks beside the step's loss, they are for `asked`: the host then waits for the device once. One
        process has nobody to tell.
        """
        if self.accelerator.num_processes == 1:
            return []
        spent = time.monotonic() - self.border
        # When this step ends, at the latest; the first two are measured by themselves
        ends = self.border + max(spent, self.longest if self.made > 1 else 0.0)
        return self._requests(ends, max(spent, self.longest))

    def asked(self, step: int, known: Sequence[float] | None = None) -> Decision:
        """Agree, after `step`, on the requests that any rank received since the last one; every rank calls it.

        Args:
            step: The step that was made.
            known: The sums over ranks of what `requests` returned in it; None or empty: what has come since counts too.
        """
        now = time.monotonic()
        spent, self.border, self.made = now - self.border, now, self.made + 1
        self.longest = spent if self.made <= 2 else max(self.longest, spent)
        if not known:
            known = self._requests(now, self.longest)
            if self.accelerator.num_processes > 1:
                flags = torch.tensor(known, device=self.accelerator.device)
                known = self.accelerator.reduce(flags, "sum").tolist()
        counts = dict(zip(_REASONS, known, strict=True))
        self.seen.discard(SAVE)
        reasons = [name for name in (*SIGNALS, TIME) if counts[name]]
        if reasons:
            return Decision(save=True, stop=" and ".join(reasons), exit_code=EX_TEMPFAIL)
        if counts[STOP]:
            return Decision(save=True, stop=f"the file {STOP}")
        if step == self.stop_after:
            return Decision(save=True, stop=_STOP_AFTER)
        return Decision(save=bool(counts[SAVE]))

    def _requests(self, ends: float, longest: float) -> list[float]:
        """See `requests`; a step that ends so may be followed by one that takes as long as the longest."""
        if self.deadline - ends < longest + 2 * self.checkpoints.seconds + _SECONDS_TO_LEAVE:
            self.seen.add(TIME)
        if self.accelerator.is_main_process:
            self._look(time.monotonic())
        return [float(name in self.seen) for name in _REASONS]

    def _hear(self, number: int, frame: Any) -> None:
        name = signal.Signals(number).name
        if name not in self.seen:
            os.write(2, f"{spoken(name)}: saving after this step, then stopping\n".encode())
        self.seen.add(name)

    def _look(self, now: float) -> None:
        if now - self.looked < _SECONDS_BETWEEN_LOOKS:
            return
        self.looked = now
        for name in (SAVE, STOP):
            try:
                (self.directory / name).unlink()
            except FileNotFoundError:
                self.told.discard(name)
            except OSError as error:  # not a file, another user's, or a network disk's bad moment
                self._tell_once(name, error)
            else:
                self.told.discard(name)
                self.seen.add(name)

    def _tell_once(self, name: str, error: OSError) -> None:
        if name not in self.told:
            self.told.add(name)
            told = f"{self.directory / name} cannot be removed, so it is ignored: {error.strerror}"
            print(spoken(told), file=sys.stderr, flush=True)  # noqa: T201


def _deadline(time_limit: float | None) -> float:
    """When the process must have exited, on the monotonic clock: train.time_limit or the Slurm job's end, if any."""
    now = time.monotonic()
    left = [_seconds_left_in_job()]
    if time_limit is not None:
        left.append(time_limit - (time.time() - psutil.Process().create_time()))  # imports count too
    return now + min(left)


def _seconds_left_in_job() -> float:
    job, end = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_JOB_END_TIME", "")
    if end.isdigit():
        return int(end) - time.time()
    if job is None or not shutil.which("squeue"):
        return inf
    # Slurm before 23.02 does not set the end
    asked = subprocess.run(["squeue", "-h", "-j", job, "-o", "%L"], capture_output=True, text=True, check=False)
    match = re.fullmatch(r"(?:(\d+)-)?(?:(?:(\d+):)?(\d+):)?(\d+)", asked.stdout.strip())
    if match is None:  # UNLIMITED
        return inf
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
