"""The differences between two runs: per step in their logs, per tensor in their checkpoints."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf, sqrt
from pathlib import Path
from typing import Any

import torch

from onecurve.checkpoint.reader import ELEMENTS_AT_A_TIME, Windows

_FIRST_MOMENTS = ("exp_avg", "momentum_buffer")
"""What optimizers call a running mean of gradients: after step 1, a multiple of that step's clipped gradient."""

Curve = list[dict[str, Any]]
"""The train lines of a run, a step each."""


@dataclass(frozen=True)
class Largest:
    """The largest relative difference of a logged number, and the step that has it."""

    value: float
    step: int


@dataclass(frozen=True)
class Distance:
    """How far all tensors of a kind are apart, by Euclidean norms over all elements together."""

    absolute: float
    relative: float
    """Over the norm of the other run's tensors; 0 where both are zero."""
    tensor: str
    """The one that contributes most."""
    share: float
    """That tensor's own difference, over the same norm."""


def relative(ours: float | None, theirs: float | None) -> float:
    """Return |ours - theirs| over |theirs|; None (an overflow) equals only itself."""
    if ours is None or theirs is None:
        return 0.0 if ours is theirs else inf
    return _over(abs(ours - theirs), abs(theirs))


def largest(ours: Curve, theirs: Curve, key: str) -> Largest:
    """Find the largest relative difference of a number over the steps both runs have."""
    found = [Largest(relative(a[key], b[key]), b["step"]) for a, b in zip(ours, theirs, strict=False)]
    return max(found, key=lambda one: one.value)


def same_samples(ours: Curve, theirs: Curve) -> bool:
    """Whether both runs saw the same samples in the same order, in as many steps."""
    return [(a["step"], a["sample_digest"]) for a in ours] == [(b["step"], b["sample_digest"]) for b in theirs]


def moved(curve: Curve) -> bool:
    """Whether the loss changed and a gradient was not zero: what a run that trains nothing does not do."""
    return (len({entry["loss"] for entry in curve}) > 1 or len(curve) == 1) and any(e["grad_norm"] for e in curve)


def num_clipped(curve: Curve, max_grad_norm: float) -> int:
    """Count the steps whose gradient was scaled down; a limit of 0 never clips."""
    return sum((entry["grad_norm"] or 0.0) > max_grad_norm > 0 for entry in curve)


def first_moment(folder: Path) -> str | None:
    """Name the optimizer's running mean of gradients in a checkpoint; None where it keeps none."""
    with Windows(folder) as windows:
        kinds = {name.partition("/")[0] for name in windows.manifest.tensors}
    return next((kind for kind in _FIRST_MOMENTS if kind in kinds), None)


def distance(ours: Path, theirs: Path, kind: str) -> Distance:
    """Compare the tensors of one kind (`param`, or the optimizer's name of a moment) of two checkpoints.

    A tensor that one of them lacks counts as zeros: where a parameter got no gradient, one process keeps no moment for
    it, and ZeRO's flat groups keep zeros.
    """
    with Windows(ours) as left, Windows(theirs) as right:
        names = sorted({n for side in (left, right) for n in side.manifest.tensors if n.startswith(f"{kind}/")})
        apart, size = {}, 0.0
        for name in names:
            squares = [_squares(a, b) for a, b in _pairs(name, left, right)]
            apart[name.partition("/")[2]] = sum(difference for difference, _ in squares)
            size += sum(norm for _, norm in squares)
    total, norm = sqrt(sum(apart.values())), sqrt(size)
    worst = max(apart, key=lambda name: apart[name])
    return Distance(total, _over(total, norm), worst, _over(sqrt(apart[worst]), norm))


def _over(difference: float, norm: float) -> float:
    if norm:
        return difference / norm
    return inf if difference else 0.0


def _squares(ours: torch.Tensor, theirs: torch.Tensor) -> tuple[float, float]:
    """Return the squared norms of the difference and of `theirs`."""
    return float((ours - theirs).square().sum()), float(theirs.square().sum())


def _pairs(name: str, left: Windows, right: Windows) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    numel = next(side.manifest.tensors[name].numel for side in (left, right) if name in side.manifest.tensors)
    for start in range(0, numel, ELEMENTS_AT_A_TIME):
        stop = min(numel, start + ELEMENTS_AT_A_TIME)
        yield _values(left, name, start, stop), _values(right, name, start, stop)


def _values(windows: Windows, name: str, start: int, stop: int) -> torch.Tensor:
    if name not in windows.manifest.tensors:
        return torch.zeros(stop - start, dtype=torch.float64)
    return torch.cat([values.double() for _, values in windows.read(name, start, stop)])
