"""Yields this rank's micro-batches of a step, on its device."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from onecurve.data.encoding import Split
from onecurve.data.plan import Step
from onecurve.data.prefetch import Ahead
from onecurve.ranks.heartbeat import beat
from onecurve.tasks.base import Batch, Processing, Task

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class MicroBatch:
    """One forward-backward pass's worth."""

    position: int
    """Its place in the step, whoever computes it."""
    batch: Batch
    counts: bool
    """False where it only keeps this rank in step with the others."""


@dataclass(frozen=True)
class Loader:
    """Reads, collates and moves what the plan asks of one rank."""

    split: Split
    task: Task
    reading: Processing
    accelerator: "Accelerator"

    def micro_batches(self, step: Step) -> Iterator[MicroBatch]:
        """Yield this rank's micro-batches of a step, each collated when it is asked for; on a GPU one ahead of that."""
        ours = self._of_rank(step)
        for number, (position, ids, counts) in enumerate(ours, 1):
            beat("data")
            if self._ahead is None:
                batch = self._read(ids)
            else:
                rest = ours[number:] or self._of_rank(step.following())
                batch = self._ahead.get(ids.tobytes(), rest[0][1].tobytes() if rest else None)
            yield MicroBatch(position, batch, counts)

    def _of_rank(self, step: Step | None) -> list[tuple[int, np.ndarray, bool]]:
        return list(step.of_rank(self.accelerator.process_index, self.accelerator.num_processes)) if step else []

    def _read(self, ids: np.ndarray) -> Batch:
        from onecurve.machine.accelerator import to_device

        batch, device = self.task.collate(self.split.take(ids), self.reading), self.accelerator.device
        return {name: to_device(tensor, device) for name, tensor in batch.items()}

    @cached_property
    def _ahead(self) -> Ahead[Batch] | None:
        from onecurve.machine.accelerator import accelerator_of

        device = accelerator_of(self.accelerator.device)
        if device is None:
            return None
        return Ahead(lambda name: self._read(np.frombuffer(name, np.int64)), device.enter)

    def num_tokens(self, step: Step) -> int:
        """Tokens of a step on all ranks, without padding."""
        return int(self.split.num_tokens[step.sample_ids].sum())
