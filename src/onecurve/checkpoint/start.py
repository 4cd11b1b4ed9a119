"""Where a launch starts: at the run's beginning, at a checkpoint that was named, or at the run's own newest one."""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from onecurve.checkpoint.folders import MANIFEST, folder_name, steps
from onecurve.checkpoint.peers import Peers, on_first_rank
from onecurve.checkpoint.reader import find, read_state
from onecurve.checkpoint.verification import check
from onecurve.errors import ConfigError, UserError
from onecurve.machine.latest import LATEST, follow
from onecurve.ranks.launcher import launched_by, starts_again


@dataclass(frozen=True)
class Start:
    folder: Path | None
    """The checkpoint to load; None at the beginning."""
    began: dict[str, Any]
    """How the run began, for its checkpoints to keep: `from`, the checkpoint that was named (None: from none), by its
    path and its manifest's hash; and `by`, the launch, as `launched_by` identifies it."""
    remark: str = ""
    """What a user should be told of the choice."""


def choose_start(resume: str, root: Path, peers: Peers, say: Callable[[str], None]) -> Start:
    """Choose where a launch starts; every rank gets the same answer.

    A path only begins a run: where the newest checkpoint here is of a run that began from it, that run goes on.
    `never` begins anew, except where Slurm or torchrun starts the very launch again that began the run here. Whoever
    puts an interrupted run back to work so does not undo what it has done.

    Args:
        resume: The recipe's train.resume.
        root: The run's own checkpoints.
        peers: The other ranks.
        say: Gets a line about each checkpoint that is not used, on rank 0.

    Raises:
        ConfigError: The checkpoint named is none, or damaged.
        LaunchError: The run has checkpoints, and none is good.
    """
    if resume == "auto":
        found = find(root, peers, say)
        return Start(found.folder, _began(found.folder)) if found else _anew(peers)
    if resume == "never":
        remark = "this launch was restarted, so train.resume never does not apply: resuming the run that it began"
        ours = _go_on(root, peers, say, lambda began: starts_again(began.get("by") or {}), remark)
        return ours or _anew(peers)
    folder = Path(on_first_rank(peers, lambda: str(follow(Path(resume)))))
    named = on_first_rank(peers, lambda: _identity(folder) | {"asked": resume})
    remark = f"the run began from {resume} and resumes; to start from there again, choose another output_dir"
    ours = _go_on(root, peers, say, lambda began: _is_same(began.get("from"), named), remark)
    if ours is not None:
        return ours
    if not named["manifest"]:
        raise ConfigError(f"{resume!r} is not a complete checkpoint.", where="train.resume")
    if problems := check(folder, peers):
        raise ConfigError(f"{resume!r} is damaged: {'; '.join(problems)}.", where="train.resume")
    return Start(folder, {**_anew(peers).began, "from": named})


def _anew(peers: Peers) -> Start:
    return Start(None, {"from": None, "by": peers.broadcast(launched_by())})


def _go_on(
    root: Path, peers: Peers, say: Callable[[str], None], ours: Callable[[dict[str, Any]], bool], remark: str
) -> Start | None:
    """Find the newest checkpoint, where it is of a run that began as `ours` says; else None."""
    # Before `find`, which sets aside what is damaged and refuses a folder of nothing else: not another run's
    if not on_first_rank(peers, lambda: any(ours(_began(root / folder_name(step))) for step in steps(root))):
        return None
    found = find(root, peers, say)
    began = on_first_rank(peers, lambda: _began(found.folder) if found else {})
    if found is None or not peers.broadcast(ours(began)):
        return None
    return Start(found.folder, began, remark)


def _began(folder: Path) -> dict[str, Any]:
    try:
        return read_state(folder).get("began", {})
    except UserError:  # damaged, which is for `find` to say
        return {}


def _identity(folder: Path) -> dict[str, str]:
    """Tell a checkpoint from every other, by content where it is still there: retention may have deleted it."""
    path = folder / MANIFEST
    return {
        "path": str(folder.resolve()),
        "manifest": sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
    }


def _is_same(began: dict[str, str] | None, named: dict[str, str]) -> bool:
    if began is None:
        return False
    if Path(named["asked"]).name == LATEST and began.get("asked") == named["asked"]:
        return True  # whatever it names by now
    key = "manifest" if named["manifest"] else "path"
    return began[key] == named[key]
