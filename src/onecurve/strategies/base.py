"""What a strategy is: how one step's gradients become an update across ranks, and which windows each rank holds."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from onecurve.strategies.precision import LossScale


@dataclass(frozen=True)
class Window:
    """A run of one flattened tensor that this rank holds."""

    name: str
    """The parameter's name in the model."""
    key: str
    """`param` (the float32 master where there is one) or the optimizer's name for a piece of its state."""
    view: Tensor
    """The live values, one-dimensional: writing to it writes to the training state."""
    offset: int
    """Where the run starts in the flattened tensor."""
    numel: int
    """Elements of the whole tensor."""
    shape: tuple[int, ...]
    """Of the whole tensor."""


class Strategy(Protocol):
    """One file in this folder a strategy. The loop calls the first six; saving calls the rest."""

    model: nn.Module
    """What to call forward on."""
    loss_scale: LossScale
    """Of fp16; 1 and unchanging elsewhere."""
    optimizer: Any
    """Holds `param_groups`, whose `lr` the loop sets."""
    before_update: Callable[[], None]
    """Called before `update` changes weights or moments; whoever still reads them sets it."""

    def prepare(self, model: nn.Module, optimizer: Optimizer, num_passes: int) -> None:
        """Take the model and optimizer over. `num_passes`: the most passes a step makes on one rank."""

    def begin_pass(self, last: bool) -> None:
        """Say, before its forward, whether a pass is the step's last: only then do ranks need to agree."""

    def autocast(self) -> AbstractContextManager[Any]:
        """The context the forward pass runs in: mixed precision."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss that is already scaled for the mean over ranks (see `step`)."""

    def update(self) -> tuple[Tensor | float, bool]:
        """Clip, update, clear the gradients; a gradient that is not finite updates nothing.

        Returns:
            The global gradient norm before clipping, the same on all ranks, and whether an fp16 overflow was answered
            with a lower loss scale.
        """

    def discard(self) -> None:
        """Clear the gradients of a whole step instead of updating; nothing else changes."""

    def unwrapped(self) -> nn.Module:
        """The model as it was handed to `prepare`."""

    def windows(self, once: bool = False) -> Iterator[Window]:
        """Yield what this rank holds of every trained parameter and its optimizer state, in the parameters' order.

        With `once`, every element comes from exactly one rank: what several hold alike is shared out.
        """

    def create_state(self, entries: Iterable[tuple[str, str, tuple[int, ...], torch.dtype]]) -> None:
        """Have the optimizer, which makes its state as it steps, hold just these: (key, parameter, shape, dtype)."""

    def refresh(self) -> None:
        """Bring the model in line after windows were written to."""

    def full_parameters(self, trained_only: bool) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, whole value) on every rank, one at a time; aliases of tied parameters too."""
