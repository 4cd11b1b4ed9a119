"""Finds the newest valid checkpoint, and reads the windows that a rank needs, whatever ranks wrote it."""

import json
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from onecurve.checkpoint.folders import (
    BAD,
    STATE,
    clear_leftovers,
    folder_name,
    point_to_newest,
    set_aside,
    step_of,
    steps,
)
from onecurve.checkpoint.manifest import Damaged, Manifest, parse_manifest
from onecurve.checkpoint.peers import Peers, on_first_rank
from onecurve.checkpoint.staging import window_key
from onecurve.checkpoint.tensors import TensorWindow, dtype_name, gap_or_overlap
from onecurve.checkpoint.verification import check
from onecurve.errors import LaunchError

_PROBLEMS_SAID = 5


@dataclass(frozen=True)
class Found:
    """The checkpoint to start from."""

    folder: Path
    step: int
    refused: list[tuple[str, str]]
    """Newer ones that are not good: name and reason. Each was renamed to `<name>.bad`."""
    removed: list[str]
    """What a crash had left."""


def find(root: Path, peers: Peers, say: Callable[[str], None] = warnings.warn) -> Found | None:
    """Find the newest checkpoint that is complete and verified; every rank gets rank 0's answer.

    Args:
        root: The folder of the checkpoints.
        peers: The other ranks; each verifies its share of the files.
        say: Gets a line about each thing removed or refused, on rank 0.

    Returns:
        None where there is no checkpoint at all.

    Raises:
        LaunchError: There are checkpoints, and none is good: starting anew would hide that.
    """
    removed, names = on_first_rank(peers, lambda: (clear_leftovers(root), [folder_name(s) for s in steps(root)[::-1]]))
    tell = say if peers.rank == 0 else _nothing
    for name in removed:
        tell(f"{root / name} was left by a process that was killed; cleared away.")
    refused: list[tuple[str, str]] = []
    for name in names:
        problems = check(root / name, peers)
        if not problems:
            break
        refused.append((name, "; ".join(problems)))
    else:
        if refused:
            told = "; ".join(f"{name}: {reason}" for name, reason in refused)
            raise LaunchError(f"No checkpoint is valid. {told}.", where=str(root), fix="Start again in another folder.")
        return None
    for bad, reason in refused:
        aside = on_first_rank(peers, partial(set_aside, root / bad, BAD))
        tell(f"{root / bad} is not used, and is now {aside}: {reason}.")
    if refused:
        on_first_rank(peers, partial(point_to_newest, root))
        tell(f"{root / name} is used instead.")
    return Found(root / name, step_of(name) or 0, refused, list(removed))


def _nothing(line: str) -> None:
    pass


def read_manifest(folder: Path) -> Manifest:
    """Read what a checkpoint consists of.

    Raises:
        LaunchError: It has no good manifest.
    """
    try:
        return parse_manifest(folder)
    except Damaged as error:
        raise LaunchError(f"It is no complete checkpoint: {error}.", where=str(folder)) from None


def read_state(folder: Path) -> dict[str, Any]:
    """Read what is not a tensor.

    Raises:
        LaunchError: It cannot be read.
    """
    try:
        return json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LaunchError(f"{STATE} cannot be read: {error}.", where=str(folder)) from None


ELEMENTS_AT_A_TIME = 2**24
"""Read of a tensor where two checkpoints are compared: no whole tensor need fit in memory."""


class Windows:
    """A checkpoint's tensors, read by range; a context manager that keeps each file open once."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.manifest = folder, read_manifest(folder)
        self.files: dict[str, Any] = {}
        self.stack = ExitStack()

    def __enter__(self) -> "Windows":
        return self

    def __exit__(self, *exception: object) -> None:
        self.stack.close()

    def read(self, tensor: str, start: int, stop: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield (offset, values) of what is stored of elements [start, stop), reading nothing else."""
        for held in self.manifest.tensors[tensor].overlapping(start, stop):
            low, high = max(start, held.offset), min(stop, held.offset + held.length)
            try:
                values = self._file(held.file).get_slice(window_key(tensor, held.offset))[
                    low - held.offset : high - held.offset
                ]
            except (OSError, SafetensorError) as error:
                raise LaunchError(f"{held.file} cannot be read: {error}.", where=str(self.folder)) from None
            yield low, values

    def _file(self, name: str) -> Any:
        if name not in self.files:
            self.files[name] = self.stack.enter_context(safe_open(self.folder / name, framework="pt"))
        return self.files[name]


@torch.no_grad()
def load(
    folder: Path,
    pieces: Iterable[TensorWindow],
    peers: Peers | None = None,
    unread: Callable[[str], bool] = lambda name: False,
) -> None:
    """Fill each piece's values in place, reading only what it overlaps, whatever ranks wrote it.

    Args:
        folder: A checkpoint that `find` or `check` passed; hashes are not computed again.
        pieces: What this rank holds of each tensor.
        peers: The other ranks: then a mismatch is raised on all of them, and a stored tensor that no rank asked for
            is one. Absent: only this rank's own pieces are compared, before any value is written.
        unread: Says of which stored tensors it is right that no rank asks for them.

    Raises:
        LaunchError: The checkpoint and the pieces are not of the same tensors.
    """
    wanted = list(pieces)
    with Windows(folder) as windows:
        problems = [problem for piece in wanted if (problem := _mismatch(windows.manifest, piece))]
        if peers is not None:
            needed = {name for name in windows.manifest.tensors if not unread(name)}
            problems = _all_mismatches(needed, problems, {piece.tensor for piece in wanted}, peers)
        if problems:
            more = f"; and {len(problems) - _PROBLEMS_SAID} more" if len(problems) > _PROBLEMS_SAID else ""
            raise LaunchError(f"{'; '.join(problems[:_PROBLEMS_SAID])}{more}.", where=str(folder))
        for piece in wanted:
            for offset, values in windows.read(piece.tensor, piece.offset, piece.end):
                piece.values.narrow(0, offset - piece.offset, values.numel()).copy_(values)


def _mismatch(manifest: Manifest, piece: TensorWindow) -> str:
    stored = manifest.tensors.get(piece.tensor)
    if stored is None:
        return f"{piece.tensor} is not in the checkpoint"
    kind = (tuple(piece.shape), piece.numel, dtype_name(piece.values.dtype))
    if kind != (stored.shape, stored.numel, stored.dtype):
        return (
            f"{piece.tensor} is {stored.dtype} {list(stored.shape)} in the checkpoint, here {kind[2]} {list(kind[0])}"
        )
    runs = [
        (max(held.offset, piece.offset), min(held.offset + held.length, piece.end) - max(held.offset, piece.offset))
        for held in stored.overlapping(piece.offset, piece.end)
    ]
    problem = gap_or_overlap(runs, piece.offset, piece.end)
    return problem and f"{piece.tensor}: {problem}"


def _all_mismatches(stored: set[str], problems: list[str], asked: set[str], peers: Peers) -> list[str]:
    shares = peers.gather((problems, sorted(asked)))
    everywhere = dict.fromkeys(problem for share, _ in shares for problem in share)
    asked = {name for _, share in shares for name in share}
    return [
        *everywhere,
        *(f"{name} is in the checkpoint, and no rank has it" for name in sorted(stored - asked)),
    ]
