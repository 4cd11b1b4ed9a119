"""The interface of a strategy: from one step's gradients to an update across ranks, and each rank's windows."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from onecurve.errors import TrainingError
from onecurve.machine.distributed import launched_rank
from onecurve.strategies.precision import LossScale

_NAMED = 3


@dataclass(frozen=True)
class Window:
    """A run of one flattened tensor that this rank holds."""

    name: str
    """The parameter's name in the model."""
    key: str
    """`param` (the float32 master where there is one), `buffer`, or the optimizer's name for a piece of its state."""
    view: Tensor
    """The live values, one-dimensional: writing to it writes to the training state."""
    offset: int
    """Where the run starts in the flattened tensor."""
    numel: int
    """Elements of the whole tensor."""
    shape: tuple[int, ...]
    """Of the whole tensor."""


def leave_out(parameter: Any) -> None:
    """Freeze a parameter that was to be trained and that the loss does not reach (see `reach`)."""
    parameter.requires_grad_(False)
    parameter.is_left_out = True


def is_left_out(parameter: Any) -> bool:
    """Whether `leave_out` was called on it: it is saved with what is trained, as it was loaded or drawn."""
    return hasattr(parameter, "is_left_out")


def is_trained(parameter: Any) -> bool:
    """Whether the optimizer has it. PEFT, when an adapter is switched on again, has all of it require gradients."""
    return parameter.requires_grad and not is_left_out(parameter)


def move_buffers(module: Any) -> None:
    """Have a module's persistent buffers be part of what a run trains: windows, checkpoints and the best weights."""
    module.buffers_move = True


def moving_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, live value) of each buffer that training moves; every rank holds all of each, the same."""
    for prefix, module in model.named_modules():
        # Where PEFT trains a copy, that one moves and not what it was copied from
        if hasattr(module, "buffers_move") and not prefix.endswith(".original_module"):
            yield from module.named_buffers(prefix, recurse=False)


def buffer_windows(model: nn.Module, rank: int, world_size: int) -> Iterator["Window"]:
    """Yield this rank's share of the buffers that training moves, under the key `buffer`."""
    for name, buffer in moving_buffers(model):
        share = -(-buffer.numel() // world_size)
        run = buffer.detach().view(-1)[rank * share : (rank + 1) * share]
        if run.numel():
            yield Window(name, "buffer", run, rank * share, buffer.numel(), tuple(buffer.shape))


def no_gradient(names: Sequence[str]) -> TrainingError:
    """Say that trained parameters got no gradient in a pass that has to reach all of them."""
    told = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
    return TrainingError(
        f"{told or 'a trained parameter'} got no gradient on rank {launched_rank()} in this pass, and got one in the "
        "examples tried before step 1. Ranks would train different models: nothing was updated. Launch with one "
        "process: there the gradient counts as zero."
    )


class Strategy(Protocol):
    """One file in this folder a strategy. The loop calls the first six; saving calls the rest."""

    model: nn.Module
    """What to call forward on."""
    precision: str
    """What is computed in: no, bf16, fp16, fp8; never auto."""
    loss_scale: LossScale
    """Of fp16; 1 and unchanging elsewhere."""
    optimizer: Any
    """Holds `param_groups`, whose `lr` the loop sets."""
    before_update: Callable[[], None]
    """Called before `update` changes weights or moments; whoever still reads them sets it."""
    after_update: Callable[[int], None]
    """Called with the step's number after each update that was made; whoever follows the weights sets it."""

    def prepare(self, model: nn.Module, optimizer: Optimizer, num_passes: int, sometimes: Sequence[str] = ()) -> None:
        """Take the model and optimizer over.

        Every trained parameter that is not named in `sometimes` has to get a gradient in every pass; where one of those
        gets none in any pass of a step, the gradient is zero.

        Args:
            model: On the device already, or partitioned by ZeRO-3.
            optimizer: Over its trained parameters.
            num_passes: The most passes a step makes on one rank.
            sometimes: Trained parameters that only some passes reach.

        Raises:
            ConfigError: There are such, and this strategy needs the same of every rank.
        """

    def begin_pass(self, last: bool) -> None:
        """Say, before its forward, whether a pass is the step's last: only then do ranks need to agree."""

    def autocast(self) -> AbstractContextManager[Any]:
        """The context the forward pass runs in: mixed precision."""

    def generating(self) -> AbstractContextManager[Any]:
        """The context in which `unwrapped()` generates: mixed precision as in training, and weights within reach.

        Every rank enters it, and generates equally often.
        """

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss that is already scaled for the mean over ranks (see `step`).

        Raises:
            TrainingError: Trained parameters got none that have to get one: ranks would part, or wait for ever.
        """

    def gradient_norm(self) -> Tensor | None:
        """Return the global gradient norm before clipping, float32 [] on the device, the same on all ranks.

        Called once, after a step's last pass and before `update` or `discard`. None: only the update finds it.
        """

    def update(self, norm: float | None = None) -> tuple[Tensor | float, bool]:
        """Clip, update, clear the gradients; a gradient that is not finite updates nothing.

        Args:
            norm: The value of what `gradient_norm` returned, where the host knows it; else this waits for the device.

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

        The buffers that training moves follow.

        With `once`, every element comes from exactly one rank: what several hold alike is shared out.
        """

    def replicas(self) -> Iterator[Tensor]:
        """Yield what all ranks hold alike: whole values, of which `windows(once=True)` gives each rank a share."""

    def create_state(self, entries: Iterable[tuple[str, str, tuple[int, ...], torch.dtype]]) -> None:
        """Have the optimizer, which makes its state as it steps, hold just these: (key, parameter, shape, dtype)."""

    def refresh(self) -> None:
        """Bring the model in line after windows were written to."""

    def full_parameters(self, trained_only: bool) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, whole value) on every rank, one at a time; aliases of tied parameters too.

        With `trained_only`, what is trained and what was left out of that.
        """
