"""The adapter buffers in a checkpoint, besides the trained parameters.

Most could be drawn or derived again, but on another device, from a base in another dtype or under another release of
torch they would come out differently from those that were trained with.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import nn

from onecurve.adapters.buffers import adapter_buffers, take_dtypes
from onecurve.checkpoint import TensorWindow
from onecurve.checkpoint.manifest import Stored

_KEY = "buffer/"


def buffer_pieces(model: nn.Module, rank: int = 0, world_size: int = 1) -> Iterator[TensorWindow]:
    """Yield this rank's share of the adapter's buffers, which every rank holds whole.

    Those that training moves are windows of the strategy.
    """
    for name, buffer in adapter_buffers(model, moving=False):
        share = -(-buffer.numel() // world_size)
        run = buffer.detach().view(-1)[rank * share : (rank + 1) * share]
        if run.numel():
            yield TensorWindow(_KEY + name, run, rank * share, buffer.numel(), tuple(buffer.shape))


def stored_buffers(model: nn.Module, stored: Mapping[str, Stored]) -> list[TensorWindow]:
    """Return the buffers to fill from a checkpoint, in its dtypes; none where it is from before they were stored."""
    names = {name.removeprefix(_KEY): entry for name, entry in stored.items() if name.startswith(_KEY)}
    take_dtypes(model, {name: getattr(torch, entry.dtype) for name, entry in names.items()})
    return [piece for piece in buffer_pieces(model) if piece.tensor.removeprefix(_KEY) in names]
