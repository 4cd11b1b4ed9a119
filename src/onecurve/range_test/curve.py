"""The losses of a range test: when it stops, how they are smoothed, and the rates that they suggest.

Sources: Smith, Cyclical learning rates for training neural networks, WACV 2017, section 3.3 (the test; there the rate
rises linearly); Howard & Gugger, fastai: a layered API for deep learning, 2020, section 4.1.4 (an exponential rise, the
stop at 4 times the lowest loss, a tenth of the rate at the minimum).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import log10
from statistics import pstdev

KEPT = 0.9
"""Share of a running average that each step keeps: about ten steps count."""
RISE = 4.0
"""The test stops where the running average is above this many times its lowest value."""

_AT_START = 10
"""Steps whose losses tell how high the curve begins and how much it scatters."""


def rate_at(step: int, first: float, last: float, steps: int) -> float:
    """Return the rate of a step (1-based): each is the one before times the same factor, from `first` to `last`."""
    return first * (last / first) ** ((step - 1) / (steps - 1))


@dataclass
class Running:
    """An exponential moving average of losses, corrected for its start as Adam's moments are, and its lowest value."""

    total: float = 0.0
    count: int = 0
    lowest: float = float("inf")
    value: float = float("nan")

    def take(self, loss: float) -> float:
        """Take in the loss of one more step; return the average."""
        self.count += 1
        self.total = KEPT * self.total + (1 - KEPT) * loss
        self.value = self.total / (1 - KEPT**self.count)
        self.lowest = min(self.lowest, self.value)
        return self.value

    @property
    def has_risen(self) -> bool:
        """Whether it is above `RISE` times its lowest value; never where that is not positive."""
        return 0 < RISE * self.lowest < self.value


def averages(losses: Iterable[float]) -> list[float]:
    """Return the running average after each loss."""
    running = Running()
    return [running.take(loss) for loss in losses]


def smoothed(losses: Sequence[float]) -> list[float]:
    """Return the running averages of the running averages, taken backwards: unlike these, they lag behind nothing.

    A running average alone lags about nine steps behind, which of a hundred from 1e-7 to 1 is a factor of four.
    """
    return averages(averages(losses)[::-1])[::-1]


@dataclass(frozen=True)
class Curve:
    """What a range test has found."""

    rates: list[float]
    losses: list[float]
    """Of each step that was made: the mean over its items, before the update at its rate."""
    num_steps: int
    """How many steps were asked for."""
    stopped: str = ""
    """Why it ended before them; empty if it did not."""
    smoothed: list[float] = field(init=False)
    """Of losses at most as high as the highest of the first ten: how far off a diverging loss is would be smeared over
    the steps before it."""

    def __post_init__(self) -> None:
        highest = max(self.losses[:_AT_START], default=0.0)
        object.__setattr__(self, "smoothed", smoothed([min(loss, highest) for loss in self.losses]))

    @property
    def lowest(self) -> int:
        """Where the smoothed loss is lowest."""
        return min(range(len(self.smoothed)), key=self.smoothed.__getitem__)

    @property
    def falls(self) -> bool:
        """Whether the smoothed loss falls from its start by more than the first losses scatter."""
        start = self.losses[:_AT_START]
        if len(start) < _AT_START:
            return False
        noise = pstdev(start) + 1e-6 * abs(start[0])  # the latter of float32
        return self.smoothed[0] - self.smoothed[self.lowest] > noise

    @property
    def ends_falling(self) -> bool:
        """Whether the lowest smoothed loss is the last one of a test that nothing stopped."""
        return not self.stopped and self.lowest == len(self.smoothed) - 1

    def suggestions(self) -> dict[str, float]:
        """Return rates by rule; none where the loss never falls, and no `minimum/10` where it still falls at the end.

        steepest: where the smoothed loss falls most from the step before to the step after. minimum/10: a tenth of the
        rate at its lowest value.
        """
        if not self.falls:
            return {}
        inner = range(1, max(2, self.lowest))
        steepest = min(inner, key=lambda i: self.smoothed[i + 1] - self.smoothed[i - 1])
        found = {"steepest": self.rates[steepest]}
        return found if self.ends_falling else found | {"minimum/10": self.rates[self.lowest] / 10}

    def remarks(self) -> list[str]:
        """Say what a user should know of the suggestions, or of there being none."""
        told = [f"stopped after step {len(self.losses)} of {self.num_steps}: {self.stopped}"] if self.stopped else []
        if not self.falls:
            told.append(
                "the loss never falls by more than it scatters: nothing is suggested. Try other --from and --to"
            )
        elif self.ends_falling:
            told.append("the loss still falls at the highest rate: raise --to")
        return told


def decades(rates: Sequence[float]) -> float:
    """Return the powers of ten that rates span."""
    return log10(rates[-1] / rates[0])
