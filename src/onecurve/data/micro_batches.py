"""Splits a step's examples into micro-batches by length or tokens: a pure function, independent of ranks."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from onecurve.data.shards import Lengths


@dataclass(frozen=True)
class Cut:
    """Splits any list of examples; the plan decides which ones a step has."""

    lengths: np.ndarray | Lengths
    """Tokens of each example of the split: int [num_examples]."""
    by_length: bool
    """Group examples of similar length; else keep their order."""
    tokens: int | None = None
    """Maximum tokens of a micro-batch; None: a fixed number of examples."""
    padded: bool = True
    """Whether a micro-batch costs its examples times the longest; else the sum of their lengths."""
    alike: np.ndarray | None = None
    """Only examples with the same number here share a micro-batch: int [num_examples]; None: any may."""

    def __call__(self, ids: np.ndarray, size: int) -> list[np.ndarray]:
        """Split examples into micro-batches, the most expensive ones first.

        Ranks compute neighbours at the same time, so that they finish at about the same time: over all passes of a
        step, they wait no longer than the most expensive micro-batch takes.

        Args:
            ids: Of the examples, int64 [examples].
            size: Examples of a micro-batch where no tokens are counted; the cheapest may have fewer.

        Returns:
            The ids of each, int64.
        """
        return [ids[places] for places in self.places(ids, size)]

    def places(self, ids: np.ndarray, size: int) -> list[np.ndarray]:
        """Return the same as places in `ids`: where an example comes twice, they tell its occurrences apart."""
        order = np.argsort(-self.lengths[ids], kind="stable") if self.by_length else np.arange(len(ids))
        parts = [part for group in self._groups(ids, order) for part in self._parts(ids, group, size)]
        return [parts[i] for i in np.argsort([-self.cost(ids[part]) for part in parts], kind="stable")]

    def _groups(self, ids: np.ndarray, order: np.ndarray) -> list[np.ndarray]:
        """Return the places of those that may share a micro-batch, in their order."""
        if self.alike is None:
            return [order]
        kinds = self.alike[ids[order]]
        return [order[kinds == kind] for kind in dict.fromkeys(kinds.tolist())]

    def _parts(self, ids: np.ndarray, places: np.ndarray, size: int) -> list[np.ndarray]:
        lengths = self.lengths[ids[places]]
        starts = range(0, len(places), size) if self.tokens is None else self._starts(lengths, self.tokens)
        return [places[start:stop] for start, stop in pairwise([*starts, len(places)])]

    def cost(self, ids: np.ndarray) -> int:
        """Return the tokens that a micro-batch of these examples computes."""
        lengths = self.lengths[ids]
        return len(ids) * int(lengths.max()) if self.padded else int(lengths.sum())

    @cached_property
    def longest(self) -> int:
        """The number of the split's longest example."""
        return int(self.lengths.argmax())

    def fewest(self, size: int) -> int:
        """Return the fewest examples of a micro-batch, the one with what was left over aside."""
        if self.alike is not None:
            return 1
        # One is closed where another example would not fit, and none is longer than the longest
        return size if self.tokens is None else self.tokens // int(self.lengths[self.longest])

    def _starts(self, lengths: np.ndarray, tokens: int) -> Iterator[int]:
        start = longest = total = 0
        yield start
        for i, length in enumerate(lengths.tolist()):
            longest, total = max(longest, length), total + length
            if (longest * (i + 1 - start) if self.padded else total) > tokens:
                yield (start := i)
                longest = total = length
