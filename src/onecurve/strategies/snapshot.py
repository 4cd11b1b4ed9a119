"""Weights set aside, such as the best so far: each rank keeps its share, in host memory, of what several hold alike."""

from collections.abc import Iterator

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

    def windows(self) -> Iterator[Window]:
        """Yield what was taken as windows, so that it can be saved and loaded like the rest."""
        for window in self._parameters() if self.kept else ():
            yield Window(window.name, "best", self.kept[window.name], window.offset, window.numel, window.shape)

    def _parameters(self) -> Iterator[Window]:
        return (window for window in self.strategy.windows(once=True) if window.key in ("param", "buffer"))


def _exchange(value: Tensor) -> None:
    """Make a tensor that every rank holds whole the same again, each rank's share of it being right on that rank."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        flat = value.view(-1)
        for rank, run in enumerate(flat.split(-(-flat.numel() // dist.get_world_size()))):
            dist.broadcast(run, src=rank)
