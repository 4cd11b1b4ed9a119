"""Weights set aside, such as the best so far: each rank keeps its share, in host memory, of what several hold alike."""

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from onecurve.strategies.base import Strategy, Window


class Snapshot:
    """Empty until `take` is called, unless it is given what it keeps."""

    def __init__(self, strategy: Strategy, kept: dict[str, Tensor] | None = None) -> None:
        self.strategy = strategy
        self.kept: dict[str, Tensor] = kept or {}
        """Parameter's name -> the values of this rank's window."""

    def take(self) -> None:
        """Remember the trained parameters, and the buffers that training moves, as they are."""
        self.kept = {w.name: w.view.detach().to("cpu", copy=True) for w in self._parameters()}

    @torch.no_grad()
    def restore(self) -> None:
        """Put back what was taken; every rank calls this."""
        self.strategy.before_update()  # a save in progress may still read the weights
        for window in self._parameters():
            window.view.copy_(self.kept[window.name])
        for value in self.strategy.replicas():
            _exchange(value)
        self.strategy.refresh()

    def windows(self, key: str = "best") -> Iterator[Window]:
        """Yield what was taken as windows, so that it can be saved and loaded like the rest, under a key."""
        for window in self._parameters() if self.kept else ():
            yield Window(window.name, key, self.kept[window.name], window.offset, window.numel, window.shape)

    def _parameters(self) -> Iterator[Window]:
        return (window for window in self.strategy.windows(once=True) if window.key in ("param", "buffer"))


def mean_of_weights(values: Sequence[Tensor]) -> Tensor:
    """Return the mean, summed in float64 and rounded once; of counts, which are no floats, the latest."""
    if len(values) == 1 or not values[0].is_floating_point():
        return values[-1]
    total = values[0].to(torch.float64, copy=True)
    for value in values[1:]:
        total += value
    return (total / len(values)).to(values[0].dtype)


def _exchange(value: Tensor) -> None:
    """Make a tensor that every rank holds whole the same again, each rank's share of it being right on that rank."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        flat = value.view(-1)
        for rank, run in enumerate(flat.split(-(-flat.numel() // dist.get_world_size()))):
            dist.broadcast(run, src=rank)
