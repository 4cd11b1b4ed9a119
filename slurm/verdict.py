"""What a batch script must know of its run: where it lies, how far it is, whether the job goes back to the queue."""

import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from onecurve.config import load_recipe
from onecurve.errors import UserError

MISTAKE, FAILED, REQUEUE = 2, 3, 75
MAX_RESTARTS = 20


@dataclass(frozen=True)
class Progress:
    """How a run stands, as its directory tells it."""

    step: int
    """The furthest that is told of."""
    status: dict[str, Any]
    """What status.json says; its `job` and `restarts` say which launch wrote it."""
    latest: int = 0
    """The newest checkpoint."""


def look(directory: Path) -> Progress:
    """Read how far a run is; step 0 and an empty status where it has not begun."""
    try:
        status = json.loads((directory / "status.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        status = {}
    try:
        latest = int((directory / "checkpoints" / "latest").read_text(encoding="utf-8").strip().removeprefix("step-"))
    except FileNotFoundError:
        latest = 0
    return Progress(max(latest, status.get("step", 0)), status, latest)


def judge(before: Progress, now: Progress, code: int, job: str, restarts: int, most: int) -> tuple[int, str]:
    """Decide what becomes of the job.

    Args:
        before: How the run stood when this launch began.
        now: How it stands when all ranks have ended. A status that another launch wrote says nothing of this one.
        code: The ranks' exit code. A mistake is one whatever the status says; any other counts only where this launch
            wrote no status.
        job: Slurm's id of this job.
        restarts: How often it has been requeued.
        most: How often it may be.

    Returns:
        The job's exit code, `REQUEUE` where it goes back to the queue and only there, and why.
    """
    ours = (now.status.get("job"), now.status.get("restarts")) == (job, restarts)
    if ours and (code != MISTAKE or now.status["exit_code"] == MISTAKE):
        ended = now.status["exit_code"]
        how, why = "killed" if ended is None else now.status["status"], now.status["reason"]
        reason = f"{how} at step {now.step}" + (f": {why.rstrip('.')}" if why else "")
    else:
        ended, reason = code, f"the ranks ended with code {code}" + ("" if ours else " before the run had begun")
    if ended in (0, MISTAKE):
        return ended, reason
    went_back = now.latest < before.latest  # to an earlier checkpoint, as train.on_spike rewind does
    moved = ours and (now.step > before.step or (went_back and now.step > now.latest))
    if ended != REQUEUE and not moved and (restarts > 0 or ended == FAILED):
        return ended or 1, f"{reason}. Nothing moved since the job was last started, so it is not started again"
    if restarts >= most:
        return 1, f"{reason}. Restarted {restarts} times already: submit it again to go on"
    return REQUEUE, f"{reason}. Back to the queue, restart {restarts + 1} of at most {most}"


def main(verb: str, *arguments: str) -> int:
    """Answer `directory RECIPE ...`, `before RECIPE ...` or `after BEFORE CODE RECIPE ...`."""
    told, recipe = (arguments[:2], arguments[2:]) if verb == "after" else ((), arguments)
    try:
        directory = Path(load_recipe(list(recipe))[0].output_dir)
    except UserError as error:
        print(f"slurm: {error}", file=sys.stderr)  # noqa: T201
        return MISTAKE
    if verb == "directory":
        print(directory)  # noqa: T201
    elif verb == "before":
        print(json.dumps(asdict(look(directory))))  # noqa: T201
    else:
        job, restarts = os.environ["SLURM_JOB_ID"], int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        most = int(os.environ.get("ONECURVE_MAX_RESTARTS", MAX_RESTARTS))
        before = Progress(**json.loads(told[0]))
        code, reason = judge(before, look(directory), int(told[1]), job, restarts, most)
        print(f"slurm: {reason}.")  # noqa: T201
        return code
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
