"""Puts what ranks computed of a step's examples together, in plan order, on every rank."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from onecurve.data.plan import Step

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor


def wide(outputs: "Tensor") -> "Tensor":
    """Return what a model said in float32, or float64 where a task says it so."""
    import torch

    return outputs.to(torch.promote_types(outputs.dtype, torch.float32))


class Pool:
    """The examples of one step, whoever computes them and in whichever micro-batch."""

    def __init__(self, step: Step, accelerator: "Accelerator") -> None:
        self.accelerator = accelerator
        self.sizes = [len(ids) for ids in step.micro_batches]
        self.starts = np.cumsum([0, *self.sizes])
        computed = np.concatenate(step.micro_batches)
        self.order = np.empty_like(computed)
        """Where each example of the plan stands among the micro-batches' examples; an id may occur several times."""
        self.order[np.argsort(step.sample_ids, kind="stable")] = np.argsort(computed, kind="stable")
        self.places = np.argsort(self.order)
        """The reverse."""

    def of(self, position: int) -> np.ndarray:
        """Return the places in the pool of the examples computed at a position: int64.

        Where the position is a stand-in's, those of the last micro-batch.
        """
        at = min(position, len(self.sizes) - 1)
        return self.places[self.starts[at] : self.starts[at + 1]]

    def joined(self, parts: "Sequence[Tensor]") -> "Tensor":
        """Return the rows of all examples in plan order: [examples, ...]. Every rank calls it.

        Args:
            parts: Of each of this rank's passes, [examples of the pass, ...]. Further dimensions may differ between
                passes, though not in number: shorter ones are filled with zeros.
        """
        import torch

        from onecurve.machine.accelerator import to_device

        first, rows = parts[0], max(self.sizes)
        largest = self._largest([part.shape[1:] for part in parts], first.device)
        own = first.new_zeros((len(parts), rows, *largest))
        for of_pass, part in zip(own, parts, strict=True):
            of_pass[tuple(slice(size) for size in part.shape)] = part
        everyone = self.accelerator.gather(own).unflatten(0, (-1, len(parts)))  # [ranks, passes, rows, ...]
        by_position = everyone.transpose(0, 1).flatten(0, 1)
        joined = torch.cat([by_position[at, :size] for at, size in enumerate(self.sizes)])
        return joined[to_device(torch.from_numpy(self.order), joined.device)]

    def _largest(self, shapes: "Sequence[Sequence[int]]", device: Any) -> list[int]:
        import torch

        own = torch.tensor([list(shape) for shape in shapes], dtype=torch.int64, device=device)
        if not own.numel():
            return []
        found: list[int] = self.accelerator.gather(own.amax(0)[None]).amax(0).tolist()
        return found
