"""What training computes of a micro-batch: an objective, which cures wrap."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onecurve.content.mixing import Mixing
from onecurve.tasks.base import Batch, Task

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass over a micro-batch."""

    model: "nn.Module"
    """Unwrapped, for hooks; it is run through `forward` alone."""
    forward: Callable[[Batch], Any]
    """Runs the task's forward pass as the strategy wants it run."""
    batch: Batch
    keys: Sequence[int]
    """Of each example: the key of the stream that its draws are taken from."""
    sweep: int = 0
    """How many passes over the same micro-batch came before, each with its backward pass."""


Loss = Callable[[Pass], "Tensor"]
"""Returns the loss of a pass, summed over the batch's items: float32 [terms], or [] of one term."""
Criterion = Callable[["Tensor", "Tensor"], "Tensor"]
"""Returns the loss of logits, float [items, classes], with their targets, summed over items: float32 []."""


@dataclass(frozen=True)
class Objective:
    """What training minimises: the sum of `loss` over all sweeps, divided by the global batch's items."""

    loss: Loss
    sweeps: int = 1
    """Passes over each micro-batch: the loss is called with `sweep` 0, 1, ..., each followed by a backward pass."""
    mixing: Mixing | None = None
    """How the loader mixes each example with another of the step."""


def plain(task: Task) -> Loss:
    """Return the task's own loss, as evaluation computes it."""
    return lambda one: task.loss_sum(one.forward(one.batch), one.batch)
