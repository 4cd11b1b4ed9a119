"""The examples of a run, by split."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from typing import TYPE_CHECKING

import numpy as np

from onecurve.data.checking import Report
from onecurve.data.examples import Examples
from onecurve.data.joined_examples import joined_examples
from onecurve.data.order import shuffled
from onecurve.data.prompts import Prompt
from onecurve.data.rows import ColumnUse
from onecurve.data.shards import Lengths, Numbers, ShardedExamples
from onecurve.data.sources import Source
from onecurve.seeds import stream_key
from onecurve.tasks.base import Example, Survey

if TYPE_CHECKING:
    from onecurve.data.collation_workers import CollationWorkers


@dataclass(frozen=True)
class Split:
    """The examples of one split, in the order of its rows."""

    name: str
    report: Report
    examples: Examples | ShardedExamples
    columns: ColumnUse = field(default_factory=ColumnUse)
    source: Source | None = None
    """The rows that the examples came from."""
    stamp: tuple[str, ...] = ()
    """What the source's was when they were read."""
    prompts: list[Prompt] = field(default_factory=list)
    """What the model is asked where evaluations generate; of the training split none."""
    annotations: Examples | None = None
    """What a frozen model says of each example, by the same numbers; None: nothing."""
    workers: "CollationWorkers | None" = None
    """Processes that make its batches; None: the loader does."""
    key: str = ""
    """Equal where the examples are; of one with named sources or sets: where they and their names are."""
    each: int = 1
    """Examples that a training step makes of each, by having the model answer it."""
    growth: int = 0
    """The most tokens that an answer then adds to each."""
    sets: tuple["Split", ...] = ()
    """The named sources or sets that it is made of, in the order of their examples; none where it is one."""

    @property
    def title(self) -> str:
        """Of a named source or set, its name: `news` of the split `train/news`."""
        return self.name.partition("/")[2]

    @property
    def parts(self) -> tuple["Split", ...]:
        """Its named sources or sets; where it has none, the split itself."""
        return self.sets or (self,)

    @cached_property
    def others(self) -> np.ndarray:
        """For each example the number of another one of its part, in no order: int64 [examples]; each comes once."""
        starts = np.cumsum([0, *map(len, self.parts)])
        orders = (shuffled(len(part), stream_key(0, "others")).astype(np.int64) for part in self.parts)
        found = np.empty(len(self), np.int64)
        for start, order in zip(starts, orders, strict=False):
            found[start + order] = start + np.roll(order, 1)
        return found

    @property
    def lengths(self) -> np.ndarray | Lengths:
        """Length of each example's longest sequence: int32 [examples]."""
        return self.examples.lengths

    @property
    def num_tokens(self) -> np.ndarray | Numbers:
        """Tokens that a model computes for each example, without padding: int32 [examples]."""
        return self.examples.num_tokens

    @property
    def num_items(self) -> np.ndarray | Numbers:
        """Terms of the loss of each example: int32 [examples], or [examples, terms] where a task has several terms."""
        return self.examples.num_items

    @property
    def rows(self) -> np.ndarray:
        """Number of the row that each example came from, from 0: int32 [examples]. Shards do not say."""
        assert isinstance(self.examples, Examples)
        return self.examples.rows

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index] | ({} if self.annotations is None else self.annotations[index])

    def take(self, indices: Sequence[int] | np.ndarray) -> list[Example]:
        """Return the examples of these numbers, in this order."""
        return [self[index] for index in indices]


@dataclass(frozen=True)
class Data:
    """All data of a run."""

    train: Split
    eval: Split | None
    test: Split | None
    survey: Survey
    fingerprint: str
    """Equal where the training examples are equal: a hash of all that they are made from."""
    max_length: int
    """Tokens an example may have."""
    cached: bool
    """Whether nothing had to be encoded."""
    reference: str = ""
    """Equal where the model is that annotated the examples; empty: none did."""

    def label_counts(self) -> np.ndarray:
        """Count the items of the training split with each label, in the order of the ids: int64 [labels]."""
        return self.train.examples.counts("labels", len(self.survey.labels))

    @property
    def parts(self) -> list[Split]:
        """Every named source and set, and the splits that have none."""
        return [part for split in self.splits for part in split.parts]

    @property
    def splits(self) -> list[Split]:
        """Those that the recipe names."""
        return [split for split in (self.train, self.eval, self.test) if split is not None]


def joined(name: str, parts: Sequence[Split]) -> Split:
    """Return the split whose examples are those of its named sources or sets, one after the other.

    Args:
        name: Of the split: train, eval or test.
        parts: The sources or sets; one that has no name is the split.
    """
    if [part.name for part in parts] == [name]:
        return parts[0]
    report = reduce(Report.add, (part.report for part in parts))
    examples = joined_examples([part.examples for part in parts])
    told = json.dumps([[part.title, part.key] for part in parts])
    key = hashlib.blake2b(told.encode(), digest_size=16).hexdigest()
    whole = Split(name, report, examples, workers=parts[0].workers, key=key, sets=tuple(parts))
    return replace(whole, each=parts[0].each, growth=parts[0].growth)
