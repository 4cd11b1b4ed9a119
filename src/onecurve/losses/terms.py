"""A loss of one or several terms: each a sum and a count, divided once, over the global batch."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Count = int | list[int]
"""Items of a batch: of a task with one term, their number; of one with several, a number for each."""


def scales(terms: Mapping[str, float], num_items: Count) -> list[float]:
    """Return what each term's sum is multiplied by: its weight over the global batch's items, 0 where it has none."""
    counts = _counts(num_items)
    return [weight / count if count else 0.0 for weight, count in zip(terms.values(), counts, strict=True)]


def weighted(sums: "Tensor", factors: Sequence[float]) -> "Tensor":
    """Return the sum of a loss's terms, each times its factor.

    Args:
        sums: float32 [terms].
        factors: One for each term; Python numbers, so that no copy to a device waits.
    """
    first, *others = (term * factor for term, factor in zip(sums.unbind(), factors, strict=True))
    return sum(others, start=first)


def means(terms: Mapping[str, float], sums: Sequence[float], num_items: Count) -> dict[str, float]:
    """Return each term's mean over its items, in the order of the terms; 0 where there is no item of it."""
    counts = _counts(num_items)
    return {name: value / count if count else 0.0 for name, value, count in zip(terms, sums, counts, strict=True)}


def total(terms: Mapping[str, float], term_means: Mapping[str, float]) -> float:
    """Return the loss that is minimised: the weighted sum of the terms' means."""
    return sum(terms[name] * value for name, value in term_means.items())


def _counts(num_items: Count) -> list[int]:
    return num_items if isinstance(num_items, list) else [num_items]
