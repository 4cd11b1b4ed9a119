"""From a step of the plan to this rank's micro-batches on its device."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onecurve.data.encoding import Split
from onecurve.data.plan import Step
from onecurve.ranks.heartbeat import beat
from onecurve.tasks.base import Batch, Task

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
    pad_id: int
    accelerator: "Accelerator"

    def micro_batches(self, step: Step) -> Iterator[MicroBatch]:
        """Yield this rank's micro-batches of a step, each collated when it is asked for."""
        rank, world_size, device = (
            self.accelerator.process_index,
            self.accelerator.num_processes,
            self.accelerator.device,
        )
        for position, ids, counts in step.of_rank(rank, world_size):
            beat("data")
            batch = self.task.collate(self.split.take(ids), self.pad_id)
            moved = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
            yield MicroBatch(position, moved, counts)

    def num_tokens(self, step: Step) -> int:
        """Tokens of a step on all ranks, without padding."""
        return int(self.split.lengths[step.sample_ids].sum())
