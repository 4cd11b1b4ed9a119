"""Decides what becomes of a job whose ranks have ended: it ends, or it goes back to the queue."""

import json
import signal
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MISTAKE, FAILED, STOPPED = 2, 3, 75
"""Exit codes of train.py."""
NOT_STARTED = 100
"""What srun is told to end with where it cannot start the ranks."""
_KILLED = 128
"""A shell adds a signal's number to it."""


@dataclass(frozen=True)
class Progress:
    """How far a run is, as its directory tells."""

    status: dict[str, Any] = field(default_factory=dict)
    """What status.json says; its `job` and `restarts` say which launch wrote it."""
    checkpoints: dict[int, int] = field(default_factory=dict)
    """The steps of the complete checkpoints, and when each was written: after going back, a run writes a step anew."""

    @property
    def newest(self) -> int:
        """The step that a restart resumes after; 0 without a checkpoint."""
        return max(self.checkpoints, default=0)

    def beyond(self, before: "Progress") -> bool:
        """Whether a restart would begin further on than it did before."""
        return bool(self.newest) and self.checkpoints[self.newest] != before.checkpoints.get(self.newest)


@dataclass(frozen=True)
class Launch:
    """One start of a job."""

    job: str
    """Slurm's id."""
    restarts: int
    """How often it has been requeued."""
    most: int
    """How often it may be."""
    may_requeue: bool = True
    """Whether Slurm allows it."""
    preempted: bool = False
    """Whether Slurm wants the nodes for another job."""
    ending: str = ""
    """The job's state where Slurm is already ending it, as after scancel."""


@dataclass(frozen=True)
class Verdict:
    """What becomes of the job, and why."""

    exit_code: int
    requeue: bool
    why: str


def look(directory: Path) -> Progress:
    """Read how far a run is. What is missing or cannot be read is left out: train.py reports it."""
    try:
        status = json.loads((directory / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        status = {}
    manifests = (directory / "checkpoints").glob("step-*/manifest.json")
    written = {}
    for path in manifests:
        with suppress(OSError):  # another run's retention may have removed it meanwhile
            written[path.parent.name.removeprefix("step-")] = path.stat().st_mtime_ns
    if not isinstance(status, dict):
        status = {}
    return Progress(status, {int(step): when for step, when in written.items() if step.isdigit()})


def judge(before: Progress, now: Progress, code: int, launch: Launch) -> Verdict:
    """Decide what becomes of the job.

    Args:
        before: How far the run was when this launch began.
        now: How far it is now. A status that another launch wrote says nothing of this one.
        code: srun's exit code: the highest of the ranks', or `NOT_STARTED`. A mistake is one whatever the status says;
            any other code counts only where this launch wrote no final status.
        launch: This start of the job.
    """
    ours = (now.status.get("job"), now.status.get("restarts")) == (launch.job, launch.restarts)
    ended, how = _end(now, code, ours)
    if ended in (0, MISTAKE):
        return Verdict(ended, False, how)
    if why := _why_not(ended, ours and now.beyond(before), now, launch, ours):
        return Verdict(1 if ended == NOT_STARTED else ended, False, f"{how}. {why}")
    return Verdict(ended, True, f"{how}. Back to the queue, restart {launch.restarts + 1} of at most {launch.most}")


def _end(now: Progress, code: int, ours: bool) -> tuple[int, str]:
    """Return what the launch ended with, and how."""
    told = now.status.get("exit_code") if ours else None
    if told is not None and (code != MISTAKE or told == MISTAKE):
        why = str(now.status["reason"]).rstrip(".")
        return told, f"{now.status['status']} at step {now.status['step']}" + (f": {why}" if why else "")
    when = f"after step {now.newest or now.status['step']} or later" if ours else "before training began"
    if code == NOT_STARTED:
        return code, "srun could not start the ranks, for the reason above"
    if code > _KILLED:
        return code, f"a rank was killed by {_signal(code)} {when}"
    known = {
        0: "the ranks ended with code 0, but the run is not done" if ours else "the run was finished already",
        MISTAKE: "the ranks ended with code 2, because of the mistake reported above",
        STOPPED: f"stopped by a signal {when}",
    }
    return code or int(ours), known.get(code, f"the ranks ended with code {code} {when}, for the reason above")


def _why_not(ended: int, moved: bool, now: Progress, launch: Launch, ours: bool) -> str:
    """Return why the job does not go back to the queue, and what to do; empty if it does."""
    if ended == NOT_STARTED:
        return "It would fail again, so the job is not requeued. Change what is asked of Slurm and submit it again"
    if launch.ending:
        return f"Slurm is already ending the job ({launch.ending}). Unless Slurm requeues it, submit it again to resume"
    if not moved and (why := _would_repeat(ended, now, launch, ours)):
        return why
    if launch.restarts >= launch.most:
        return f"Restarted {launch.restarts} times already (ONECURVE_MAX_RESTARTS): submit it again to resume"
    if not launch.may_requeue:
        return "Slurm may not requeue this job (--no-requeue, or the site's settings): submit it again to resume"
    return ""


def _would_repeat(ended: int, now: Progress, launch: Launch, ours: bool) -> str:
    """Return why a restart would only repeat what this launch did, which wrote no checkpoint; empty if it need not."""
    if ended == STOPPED:
        if launch.restarts == 0 or launch.preempted:
            return ""
        return (
            "This restart made no step, and the next would end the same way, so the job is not requeued. If the signal "
            "was Slurm's warning before the time limit, the limit is too short to load model and data: raise --time, "
            "or lower the seconds in --signal=USR1@120. Then submit it again"
        )
    if launch.restarts == 0 and (ended != FAILED or (ours and now.status.get("lost"))):
        return ""  # a rank, node or network was lost, which need not happen again
    again = f"from step {now.newest}" if now.newest else "from the beginning"
    rare = "" if now.newest else ", and set checkpoint.every"
    return (
        f"No checkpoint was written since the job was last started, so a restart would repeat the same steps {again} "
        f"and the job is not requeued. Fix the cause{rare}, then submit it again"
    )


def _signal(code: int) -> str:
    try:
        return signal.Signals(code - _KILLED).name
    except ValueError:
        return f"signal {code - _KILLED}"
