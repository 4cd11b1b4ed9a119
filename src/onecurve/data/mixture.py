"""The mixture: which example of which source each draw gives, as a pure function of the seed and the draw's number."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property, lru_cache
from math import gcd, lcm

import numpy as np

from onecurve.data.order import shuffled, uniform
from onecurve.data.windows import Windows
from onecurve.errors import ConfigError
from onecurve.seeds import stream_key

_DRAWS_AT_ONCE = 4096
"""About how many draws are ordered at a time: many small blocks, or one large one."""
_LARGEST_BLOCK = 1_000_000
_FINENESS = 1000
"""About what the weights that a temperature gives sum to."""


@dataclass(frozen=True)
class Mixture:
    """Draws from several sources. Every block of W draws, W the sum of the weights, holds exactly w of each source.

    Draw t lies in block t // W. In a block a source's draws are spread evenly, each at a random place in its share of
    the block, so that shares are nearly exact in every part of it too. As a block holds w draws of a source, the
    source's draws are numbered without counting earlier blocks, and seeking costs the same anywhere. Draw n of a source
    of N examples is in its pass n // N, at n % N of that pass's own random order, which for a source of shards may be
    one of windows.
    """

    sizes: Mapping[str, int]
    """Source -> its examples, in the order of their ids."""
    weights: Mapping[str, int]
    """Source -> draws of it in each block: whole numbers without a common divisor."""
    windows: Mapping[str, Windows] = field(default_factory=dict)
    """Source -> its windows; a source that is not named is shuffled whole."""

    def draws(self, start: int, stop: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the draws from number `start` to before `stop`, from 0.

        Returns:
            The ids of the examples, int64 [draws], and the pass over its source that each is of, from 0, int64 [draws].
        """
        sources, numbers = self._numbered(start, stop, seed)
        ids, passes = np.empty(len(numbers), np.int64), np.empty(len(numbers), np.int64)
        for source in np.unique(sources).tolist():
            size, places = self._sizes[source], np.flatnonzero(sources == source)
            done, within = np.divmod(numbers[places], size)
            passes[places] = done
            for number in np.unique(done).tolist():
                of_pass = done == number
                ids[places[of_pass]] = self._in_order(source, within[of_pass], seed, number)
            ids[places] += self._offsets[source]
        return ids, passes

    def counts(self, stop: int, seed: int) -> dict[str, int]:
        """Return how many of the draws before number `stop` are of each source; the cost is that of one block."""
        blocks, rest = divmod(stop, self._block)
        sources = self._numbered(stop - rest, stop, seed)[0] if rest else np.empty(0, np.int64)
        in_rest = np.bincount(sources, minlength=len(self.sizes)).tolist()
        return {
            name: blocks * weight + more for (name, weight), more in zip(self.weights.items(), in_rest, strict=True)
        }

    def passes(self, draws: int) -> dict[str, float]:
        """Return how often so many draws go over each source, on average over seeds."""
        return {name: draws * share / self.sizes[name] for name, share in self.shares.items()}

    @property
    def shares(self) -> dict[str, float]:
        """Source -> its share of the draws."""
        return {name: weight / self._block for name, weight in self.weights.items()}

    def _numbered(self, start: int, stop: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Return each draw's source and its number among all draws of that source."""
        size = self._block * self._blocks_at_once
        parts = []
        for chunk in range(start // size, -(-stop // size)):
            window = slice(max(start - chunk * size, 0), stop - chunk * size)
            parts.append([values[window] for values in self._chunk(seed, chunk)])
        sources, numbers = zip(*parts, strict=True)
        return np.concatenate(sources), np.concatenate(numbers)

    @cached_property
    def _chunk(self) -> Callable[[int, int], tuple[np.ndarray, np.ndarray]]:
        weights = np.array(list(self.weights.values()))
        owner = np.repeat(np.arange(len(weights)), weights)
        nth = np.concatenate([np.arange(weight) for weight in weights])
        count = self._blocks_at_once

        def chunk(seed: int, number: int) -> tuple[np.ndarray, np.ndarray]:
            draws = uniform(count * self._block, stream_key(seed, "mixture", number)).reshape(count, self._block)
            # Draws of one source stay in order: that of number n lies between n and n + 1 parts of the block
            order = np.argsort((nth + draws) / weights[owner], axis=1, kind="stable")
            blocks = number * count + np.arange(count)[:, None]
            return owner[order].ravel(), (blocks * weights[owner[order]] + nth[order]).ravel()

        return lru_cache(maxsize=2)(chunk)

    def _in_order(self, source: int, places: np.ndarray, seed: int, number: int) -> np.ndarray:
        """Return what stands at places, which rise, of a source's order in a pass: [places]."""
        if windows := self.windows.get(self._names[source]):
            first = int(places[0])
            found: np.ndarray = windows.ids(first, int(places[-1]) + 1, seed, number)[places - first]
            return found
        order: np.ndarray = self._orders[source](seed, number)
        return order[places]

    @cached_property
    def _names(self) -> list[str]:
        return list(self.sizes)

    @cached_property
    def _orders(self) -> list[Callable[[int, int], np.ndarray]]:
        """For each source, its order in a pass; two passes are kept, for a step that lies in both."""

        def of(name: str, size: int) -> Callable[[int, int], np.ndarray]:
            return lru_cache(maxsize=2)(lambda seed, number: shuffled(size, stream_key(seed, "order", name, number)))

        return [of(name, size) for name, size in self.sizes.items()]

    @cached_property
    def _sizes(self) -> list[int]:
        return list(self.sizes.values())

    @cached_property
    def _offsets(self) -> list[int]:
        return [0, *np.cumsum(self._sizes).tolist()]

    @cached_property
    def _block(self) -> int:
        return sum(self.weights.values())

    @property
    def _blocks_at_once(self) -> int:
        return max(1, _DRAWS_AT_ONCE // self._block)


def whole_weights(weights: Mapping[str, float]) -> dict[str, int]:
    """Return weights in the same proportions as whole numbers without a common divisor; 0.7 is read as 7/10.

    Raises:
        ConfigError: They sum to more than a block may have.
    """
    exact = {name: Fraction(str(weight)) for name, weight in weights.items()}
    scale = lcm(*(weight.denominator for weight in exact.values()))
    whole = {name: int(weight * scale) for name, weight in exact.items()}
    divisor = gcd(*whole.values())
    reduced = {name: weight // divisor for name, weight in whole.items()}
    if (total := sum(reduced.values())) > _LARGEST_BLOCK:
        told = ", ".join(f"{name} {weight:g}" for name, weight in weights.items())
        raise ConfigError(
            f"the weights {told} are in proportion only as whole numbers that sum to {total:,}; at most "
            f"{_LARGEST_BLOCK:,} is possible.",
            where="data.train",
            fix="Round them.",
        )
    return reduced


def weights_at(temperature: float, sizes: Mapping[str, int]) -> dict[str, int]:
    """Return whole weights in proportion to size ** temperature, rounded to about a thousandth; at least 1 each.

    0 is the same share for every source, 1 a share by size. (Multilingual BERT and XLM-R take 0.7 and 0.3.)
    """
    powers = {name: size**temperature for name, size in sizes.items()}
    total = len(sizes) * max(1, _FINENESS // len(sizes))  # a multiple of their number: 0 gives exactly equal shares
    exact = {name: power / sum(powers.values()) * total for name, power in powers.items()}
    return whole_weights({name: max(1, round(share)) for name, share in exact.items()})
