"""How good lists are, how sure that is, and how different from each other the listed items are."""

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from onecurve.metrics.ranking import score_search

TOP = 10
METRICS = ("ndcg@10", "recall@10", "mrr")
RESAMPLES, SEED = 10_000, 20260126


def score(listed: Sequence[str], relevant: Collection[str]) -> dict[str, float]:
    """Score one user's list, of which only the first ten items count; relevance is yes or no.

    NDCG is by the product's own code: relevant items that are not listed stand behind all others.
    """
    ranks = sorted(rank for rank, item in enumerate(listed[:TOP], 1) if item in relevant)
    ranks += [math.inf] * (len(relevant) - len(ranks))  # type: ignore[list-item]
    found = score_search({"user": ranks}, TOP)
    return {name: found[name] for name in METRICS}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of a mean over users."""
    draws = np.random.default_rng(SEED).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.percentile(np.asarray(values)[draws].mean(1), [2.5, 97.5])
    return float(low), float(high)


def diversity(lists: Sequence[Sequence[str]], vectors: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return how diverse lists are.

    Args:
        lists: Each user's ten items.
        vectors: Of every item that could have been listed, of length 1.

    Returns:
        `distance`: the mean of 1 - cosine over the pairs of a list, then over users; `coverage`: the share of items
        that any list has; `gini`: of how often items are listed, 0 where all equally, near 1 where few are.
    """
    distances = []
    for listed in lists:
        there = np.asarray([vectors[item] for item in listed])
        pairs = len(listed) * (len(listed) - 1)
        distances.append(1 - ((there @ there.T).sum() - len(listed)) / pairs)
    times = np.sort([sum(item in listed for listed in lists) for item in vectors])
    n = len(times)
    gini = (2 * np.arange(1, n + 1) - n - 1) @ times / (n * times.sum())
    return {"distance": float(np.mean(distances)), "coverage": float((times > 0).mean()), "gini": float(gini)}
