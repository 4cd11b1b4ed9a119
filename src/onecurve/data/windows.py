"""The order of data that is too large to shuffle whole: keyed windows of shards, a pure function of seed and pass."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import numpy as np

from onecurve.data.examples import Examples
from onecurve.data.order import shuffled
from onecurve.data.shards import ShardedExamples
from onecurve.seeds import stream_key


@dataclass(frozen=True)
class Windows:
    """In each pass the shards are put in a random order and cut into windows; each window is shuffled whole.

    A pass has every example once. What is held grows with a window and with the number of shards, never with all
    examples, and seeking costs the same anywhere: one window is ordered. Examples meet only those of their window.
    """

    sizes: tuple[int, ...]
    """Examples of each shard, in the order of their ids."""
    shards: int
    """Shards of a window; the last one of a pass may have fewer."""
    name: str = ""
    """Of a mixture's source, whose order has a key of its own."""
    ahead: Callable[[list[int]], None] | None = field(default=None, compare=False, repr=False)
    """Is told the shards of each window whose ids are asked for and of the next one, in the order of their use."""

    @property
    def examples(self) -> int:
        """Examples of a window, about: its shards times the mean shard."""
        return min(self.shards, len(self.sizes)) * sum(self.sizes) // len(self.sizes)

    def ids(self, start: int, stop: int, seed: int, epoch: int) -> np.ndarray:
        """Return the ids of a pass's examples from one place to before another: int64 [stop - start].

        Args:
            start: Place in the pass, from 0.
            stop: At most the number of all examples.
            seed: Of the pass.
            epoch: The pass, from 0.
        """
        _, ends = self._pass(seed, epoch)
        first, last = np.searchsorted(ends, [start, stop - 1], side="right").tolist()
        parts = []
        for number in range(first, last + 1):
            begins = int(ends[number - 1]) if number else 0
            parts.append(self._window(seed, epoch, number)(max(start - begins, 0), stop - begins))
        if self.ahead:
            self.ahead(self._upcoming(seed, epoch, first, last))
        return np.concatenate(parts)

    def _upcoming(self, seed: int, epoch: int, first: int, last: int) -> list[int]:
        windows = self._pass(seed, epoch)[0]
        if last + 1 == len(windows):
            windows = [*windows, self._pass(seed, epoch + 1)[0][0]]
        return list(dict.fromkeys(np.concatenate(windows[first : last + 2]).tolist()))

    @property
    def _names(self) -> list[str]:
        return [self.name] if self.name else []

    @cached_property
    def _pass(self) -> Callable[[int, int], tuple[list[np.ndarray], np.ndarray]]:
        """For a seed and a pass: the shards of each window, and the examples up to and with each."""
        sizes = np.array(self.sizes, np.int64)

        def of(seed: int, epoch: int) -> tuple[list[np.ndarray], np.ndarray]:
            order = shuffled(len(sizes), stream_key(seed, "shards", *self._names, epoch)).astype(np.int64)
            # In the order of their ids, so that one window with every shard is the shuffle of all examples
            windows = [np.sort(order[at : at + self.shards]) for at in range(0, len(order), self.shards)]
            return windows, np.cumsum([sizes[window].sum() for window in windows])

        return lru_cache(maxsize=2)(of)

    @cached_property
    def _window(self) -> Callable[[int, int, int], Callable[[int, int], np.ndarray]]:
        """For a seed, a pass and a window: what returns a slice of its ids; two are kept, for a step in both."""
        sizes = np.array(self.sizes, np.int64)
        starts = np.cumsum(sizes) - sizes

        def of(seed: int, epoch: int, number: int) -> Callable[[int, int], np.ndarray]:
            members = self._pass(seed, epoch)[0][number]
            ends = np.cumsum(sizes[members])
            shifts = starts[members] - (ends - sizes[members])
            # The first window's key is that of the shuffle of all examples
            key = stream_key(seed, "order", *self._names, epoch, *([number] if number else []))
            order = shuffled(int(ends[-1]), key)

            def ids(start: int, stop: int) -> np.ndarray:
                places = order[start:stop].astype(np.int64)
                found: np.ndarray = places + shifts[np.searchsorted(ends, places, side="right")]
                return found

            return ids

        return lru_cache(maxsize=2)(of)


def windows_of(examples: Examples | ShardedExamples, shards: int, name: str = "") -> Windows | None:
    """Return the windows of so many shards; None where the examples are not in shards.

    Args:
        examples: Of a split or of a source.
        shards: The recipe's `data.shuffle_window`.
        name: Of the source, in a mixture.
    """
    if not isinstance(examples, ShardedExamples):
        return None
    ahead = examples.staging.ahead if examples.staging else None
    return Windows(tuple(shard.examples for shard in examples.shards), shards, name, ahead)
