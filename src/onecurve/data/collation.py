"""From the numbers of examples to a batch: read, transformed where the task does that, and collated."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from onecurve.seeds import stream_key
from onecurve.tasks.base import Batch, Example, Processing, Task, Transforms

if TYPE_CHECKING:
    from onecurve.data.splits import Split


class Wanted(NamedTuple):
    """The examples of a micro-batch, and what their draws are keyed by."""

    seed: int
    passes: bytes
    """Of each example, the pass over its source, 0-based: int64 [examples]."""
    ids: bytes
    """int64 [examples]."""


@dataclass(frozen=True)
class Collation:
    """Makes batches of one split's examples."""

    split: "Split"
    task: Task
    reading: Processing

    def __call__(self, wanted: Wanted) -> Batch:
        """Return the batch, on the CPU."""
        ids = np.frombuffer(wanted.ids, np.int64)
        training = self.split.name == "train"
        seed, passes = wanted.seed if training else 0, np.frombuffer(wanted.passes, np.int64)
        keys = (
            stream_key(seed, "example", number if training else self.split.name, example)
            for number, example in zip(passes.tolist(), ids.tolist(), strict=True)
        )
        examples = transformed(self.task, self.split.take(ids), keys, training, self.reading)
        return self.task.collate(examples, self.reading)


def transformed(
    task: Task, examples: Sequence[Example], keys: Iterable[int], training: bool, reading: Processing
) -> Sequence[Example]:
    """Return examples as `collate` takes them.

    Args:
        task: Transforms them, or leaves them as they are.
        examples: As they were encoded.
        keys: Of the stream that each example's draws are taken from.
        training: Whether to augment.
        reading: Made them.
    """
    if not isinstance(task, Transforms):
        return examples
    # Philox: its streams are frozen, and keys that differ by one bit are unrelated
    streams = (np.random.Generator(np.random.Philox(key=key)) for key in keys)
    return [task.transform(example, rng, training, reading) for example, rng in zip(examples, streams, strict=False)]


def as_scored(task: Task, examples: Sequence[Example], reading: Processing, training: bool = False) -> Batch:
    """Return a batch of examples that belong to no split, by their place: what a trained model is asked.

    Args:
        task: Collates them.
        examples: As they were encoded.
        reading: Made them.
        training: Whether they are augmented and masked as in training.
    """
    keys = (stream_key(0, "example", place) for place in range(len(examples)))
    return task.collate(transformed(task, examples, keys, training, reading), reading)
