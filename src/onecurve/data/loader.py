"""Yields this rank's micro-batches of a step, on its device."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from onecurve.data.collation import Collation, Mixed, Wanted
from onecurve.data.plan import Step
from onecurve.data.prefetch import Ahead
from onecurve.data.splits import Split
from onecurve.ranks.heartbeat import beat
from onecurve.regularization.base import Objective
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
    wanted: Wanted
    """Its examples, and what their draws are keyed by."""


class Completed(NamedTuple):
    """A step with all that it learns from."""

    loader: "Loader"
    step: Step
    facts: dict[str, float]
    """What there is to tell of what was added."""


@dataclass(frozen=True)
class Loader:
    """Moves what the plan asks of one rank onto its device, micro-batch by micro-batch."""

    split: Split
    task: Task
    reading: Processing
    accelerator: "Accelerator"
    objective: Objective | None = None
    """What training computes of a micro-batch; None: the task's own loss."""
    complete: Callable[["Loader", Step], Completed] | None = None
    """Makes the examples of a step of its prompts; None: they are what they were encoded to."""

    def completed(self, step: Step) -> Completed:
        """Return a step as it is computed, with what loads it; every rank calls it."""
        return self.complete(self, step) if self.complete else Completed(self, step, {})

    def micro_batches(self, step: Step) -> Iterator[MicroBatch]:
        """Yield this rank's micro-batches of a step, each collated when it is asked for.

        On a GPU one is made ready ahead of that; where there are workers (`data.workers`), each has one more in hand.
        """
        workers = self.split.workers
        for number, (position, ids, counts) in enumerate(self._of_rank(step)):
            beat("data")
            following = list(islice(self._after(step, number), workers.count if workers else 1))
            if workers:
                workers.expect(self.split.name, following)
            wanted = self._wanted(step, position, ids)
            batch = self._ahead.get(wanted, next(iter(following), None)) if self._ahead else self._read(wanted)
            yield MicroBatch(position, batch, counts, wanted)

    def _of_rank(self, step: Step) -> list[tuple[int, np.ndarray, bool]]:
        return list(step.of_rank(self.accelerator.process_index, self.accelerator.num_processes))

    def _after(self, step: Step, number: int) -> Iterable[Wanted]:
        """Yield what this rank is asked for after micro-batch `number` of a step, in this step and those after it."""
        current: Step | None = step
        start = number + 1
        while current:
            yield from (self._wanted(current, place, ids) for place, ids, _ in self._of_rank(current)[start:])
            current, start = current.following(), 0

    def _wanted(self, step: Step, position: int, ids: np.ndarray) -> Wanted:
        wanted = Wanted(step.seed, step.passes_at(position).tobytes(), ids.tobytes())
        mixing = self.objective.mixing if self.objective and self.split.name == "train" else None
        if not mixing:
            return wanted
        partners, passes = step.partners(position)
        return wanted._replace(mixed=Mixed(mixing, step.number, partners.tobytes(), passes.tobytes()))

    def _read(self, wanted: Wanted) -> Batch:
        from onecurve.machine.accelerator import to_device

        workers, device = self.split.workers, self.accelerator.device
        batch = workers.get(self.split.name, wanted) if workers else self._collate(wanted)
        return {name: to_device(tensor, device) for name, tensor in batch.items()}

    @cached_property
    def _collate(self) -> Collation:
        return Collation(self.split, self.task, self.reading)

    @cached_property
    def _ahead(self) -> Ahead[Wanted, Batch] | None:
        from onecurve.machine.accelerator import accelerator_of

        device = accelerator_of(self.accelerator.device)
        if device is None:
            return None
        return Ahead(self._read, device.enter)

    @cached_property
    def sets(self) -> tuple["Loader", ...]:
        """A loader of each named set of the split; none where it has none."""
        return tuple(replace(self, split=one) for one in self.split.sets)

    def num_tokens(self, step: Step) -> int:
        """Tokens of a step on all ranks, without padding."""
        return int(self.split.num_tokens[np.concatenate(step.micro_batches)].sum())
