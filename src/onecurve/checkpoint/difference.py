"""How two checkpoints differ, tensor by tensor and setting by setting, whatever ranks wrote them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from onecurve.checkpoint.reader import ELEMENTS_AT_A_TIME, Windows


@dataclass(frozen=True)
class Difference:
    tensor: str
    num_different: int
    """Elements whose bits differ in value."""
    largest: float
    """Of |a - b|."""
    relative: float
    """`largest` over the largest |a|."""


def compare_tensors(a: Path, b: Path) -> Iterator[Difference | str]:
    """Yield what differs, in the tensors' order: a difference, or a sentence where there is nothing to subtract."""
    with Windows(a) as left, Windows(b) as right:
        for name in sorted(left.manifest.tensors.keys() | right.manifest.tensors.keys()):
            one, other = left.manifest.tensors.get(name), right.manifest.tensors.get(name)
            if one is None or other is None:
                yield f"{name} is only in {b if one is None else a}"
            elif (one.shape, one.dtype) != (other.shape, other.dtype):
                yield f"{name} is {one.dtype} {list(one.shape)} and {other.dtype} {list(other.shape)}"
            elif (difference := _compare(name, one.numel, left, right)).num_different:
                yield difference


def _compare(name: str, numel: int, left: Windows, right: Windows) -> Difference:
    different, largest, scale = 0, 0.0, 0.0
    for start in range(0, numel, ELEMENTS_AT_A_TIME):
        one, other = (_range(windows, name, start, min(numel, start + ELEMENTS_AT_A_TIME)) for windows in (left, right))
        different += int((one != other).sum())
        largest = max(largest, float((one.double() - other.double()).abs().max()))
        scale = max(scale, float(one.double().abs().max()))
    return Difference(name, different, largest, largest / scale if scale else float(different > 0))


def _range(windows: Windows, name: str, start: int, stop: int) -> torch.Tensor:
    return torch.cat([values for _, values in windows.read(name, start, stop)])


def compare_states(a: Any, b: Any, key: str = "") -> Iterator[str]:
    """Yield a line for each setting in which two states differ, by dotted key."""
    if isinstance(a, dict) and isinstance(b, dict):
        for name in sorted(a.keys() | b.keys()):
            yield from compare_states(a.get(name), b.get(name), f"{key}.{name}" if key else name)
    elif a != b:
        yield f"{key}: {a!r} and {b!r}"
