"""From the numbers of examples to a batch: read, transformed where the task does that, and collated."""

from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from onecurve.content.mixing import Mixing
from onecurve.seeds import stream_key
from onecurve.tasks.base import Annotates, Batch, Example, Mismatches, Mixes, Processing, RollsOut, Task, Transforms

if TYPE_CHECKING:
    from onecurve.data.splits import Split


class Mixed(NamedTuple):
    """What each example of a micro-batch is mixed with."""

    mixing: Mixing
    step: int
    """Keys the draws."""
    partners: bytes
    """int64 [examples]."""
    passes: bytes
    """Of each partner: int64 [examples]."""


class Wanted(NamedTuple):
    """The examples of a micro-batch, and what their draws are keyed by."""

    seed: int
    passes: bytes
    """Of each example, the pass over its source, 0-based: int64 [examples]."""
    ids: bytes
    """int64 [examples]."""
    mixed: Mixed | None = None

    @property
    def numbers(self) -> list[int]:
        """The ids."""
        return np.frombuffer(self.ids, np.int64).tolist()

    def keys(self, purpose: str) -> list[int]:
        """Return the key of the stream that each example's draws in training are taken from."""
        passes = np.frombuffer(self.passes, np.int64).tolist()
        return [stream_key(self.seed, purpose, *of_one) for of_one in zip(passes, self.numbers, strict=True)]


@dataclass(frozen=True)
class Collation:
    """Makes batches of one split's examples."""

    split: "Split"
    task: Task
    reading: Processing

    def __call__(self, wanted: Wanted) -> Batch:
        """Return the batch, on the CPU."""
        examples = self._ready(wanted)
        if wanted.mixed is not None:
            mixing, step, partners, passes = wanted.mixed
            others = self._ready(wanted._replace(ids=partners, passes=passes))
            keys = [stream_key(wanted.seed, "mixing", step, number) for number in wanted.numbers]
            assert isinstance(self.task, Mixes), "checked before anything was loaded"
            pairs = zip(examples, others, _streams(keys), strict=True)
            examples = [self.task.mix(example, partner, mixing, rng) for example, partner, rng in pairs]
        return self.task.collate(examples, self.reading)

    def _ready(self, wanted: Wanted) -> Sequence[Example]:
        name, numbers = self.split.name, wanted.numbers
        training = name == "train"
        keys = wanted.keys("example") if training else [stream_key(0, "example", name, number) for number in numbers]
        examples = self.split.take(numbers)
        if isinstance(self.task, Mismatches):
            others = self.split.take(self.split.others[numbers])
            examples = [self.task.mismatch(one, other) for one, other in zip(examples, others, strict=True)]
        if training and (augmentation := self.task.augmentation):
            drawn = zip(examples, _streams(wanted.keys("texts")), strict=True)
            examples = [augmentation(self.task, example, rng, self._own_reading) for example, rng in drawn]
        return transformed(self.task, examples, keys, training, self.reading)

    @cached_property
    def _own_reading(self) -> Processing:
        """Reads texts beside a thread that reads others: a tokenizer can do one at a time."""
        return deepcopy(self.reading)


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
    pairs = zip(examples, _streams(keys), strict=False)
    return [task.transform(example, rng, training, reading) for example, rng in pairs]


def _streams(keys: Iterable[int]) -> Iterator[np.random.Generator]:
    # Philox: its streams are frozen, and keys that differ by one bit are unrelated
    return (np.random.Generator(np.random.Philox(key=key)) for key in keys)


def stand_in(task: Task, example: Example) -> Example:
    """Return an example with what a run adds to it, made up, for a pass whose loss is of no interest."""
    if isinstance(task, Annotates):  # what the loss is made of, whatever the reference will say
        example = {**example, **task.annotations}
    return task.stand_in(example) if isinstance(task, RollsOut) else example


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
