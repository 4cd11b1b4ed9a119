"""Optimizer state missing in a checkpoint, for parameters that had no gradient yet when it was saved."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from onecurve.checkpoint.manifest import Stored

AVERAGE = "average-"
"""Begins the keys of averages of the weights; a number follows."""

BEST = "best"
"""Key of the best weights so far; where several are kept, `best-1` and so on are the next best."""
_NO_STATE = ("param", BEST, "buffer")


def is_state(key: str) -> bool:
    """Whether a key of a checkpoint's tensors is the optimizer's."""
    return key not in _NO_STATE and not key.startswith((AVERAGE, f"{BEST}-"))


@dataclass(frozen=True)
class Absent:
    """A tensor that stands for one which the checkpoint lacks."""

    shape: tuple[int, ...]
    dtype: str
    like: str
    """A tensor of the checkpoint with the same value, as of a count of steps; empty: all zeros."""


def absent_state(tensors: Mapping[str, Stored]) -> dict[str, Absent]:
    """Return what the optimizer would hold of parameters of which a checkpoint has no optimizer state at all.

    A gradient of zero in every step so far: zeros where a key's tensors have their parameters' shapes, and another
    parameter's value where they are single numbers. Nothing where they have shapes of their own, as Adafactor's rows
    and columns; the optimizer then begins anew with these parameters.
    """
    names = {name.partition("/")[2] for name in tensors if name.startswith("param/")}
    held: dict[str, list[str]] = {}
    for name in tensors:
        key, _, parameter = name.partition("/")
        if is_state(key):
            held.setdefault(key, []).append(parameter)
    lacking = sorted(names.difference(*held.values())) if held else []
    found: dict[str, Absent] = {}
    for key, parameters in held.items() if lacking else ():
        shapes = {name: tensors[f"{key}/{name}"].shape for name in parameters}
        one = tensors[like := f"{key}/{parameters[0]}"]
        if all(not shape for shape in shapes.values()):
            found |= {f"{key}/{name}": Absent((), one.dtype, like) for name in lacking}
        elif all(shape == tensors[f"param/{name}"].shape for name, shape in shapes.items() if name in names):
            found |= {f"{key}/{name}": Absent(tensors[f"param/{name}"].shape, one.dtype, "") for name in lacking}
        else:
            return {}
    return found


def without(tensors: Mapping[str, Stored], parameters: Collection[str]) -> dict[str, Stored]:
    """Return the tensors of all other parameters."""
    return {name: stored for name, stored in tensors.items() if name.partition("/")[2] not in parameters}
