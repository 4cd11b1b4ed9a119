"""Scores of rankings: how far up the relevant documents of each query stand."""

import math
from collections.abc import Mapping, Sequence
from typing import Any


def names(cutoff: int, searches: bool) -> list[str]:
    """Return the numbers that are scored.

    Args:
        cutoff: How many documents from the top count for those with an @.
        searches: Whether relevant documents are searched among all of a split; else among those of the query.
    """
    return ["mrr", f"ndcg@{cutoff}", *(dict.fromkeys(["recall@1", f"recall@{cutoff}"]) if searches else ["map"])]


def score_search(ranks: Mapping[Any, Sequence[int]], cutoff: int) -> dict[str, Any]:
    """Score a search in one corpus: means over queries.

    Args:
        ranks: Query -> ranks of its relevant documents, from 1, the best first; at least one.
        cutoff: The @ of NDCG and recall.
    """
    found = ranks.values()
    scores = {
        "mrr": _mean([1 / one[0] for one in found]),
        f"ndcg@{cutoff}": _mean([_ndcg_of_ranks(one, cutoff) for one in found]),
    }
    for at in dict.fromkeys((1, cutoff)):
        scores[f"recall@{at}"] = _mean([sum(rank <= at for rank in one) / len(one) for one in found])
    return {**scores, "queries": {"scored": len(ranks)}}


def score_reranking(lists: Mapping[Any, Sequence[tuple[float, float]]], cutoff: int) -> dict[str, Any]:
    """Score the order of each query's own documents: means over the queries that have a relevant one.

    Relevant is a label above 0; NDCG takes the label as the gain (Jarvelin and Kekalainen, 2002). Of documents with the
    same score the less relevant one comes first.

    Args:
        lists: Query -> (score, label) of each document.
        cutoff: The @ of NDCG.

    Returns:
        The numbers, None where no query has a relevant document; and how many queries were scored, and were not.
    """
    orders = [
        [label for _, label in sorted(documents, key=lambda one: (-one[0], one[1]))]
        if all(math.isfinite(score) for score, _ in documents)
        else None  # of a model that diverged: its loss says so, no score can
        for documents in lists.values()
        if any(label > 0 for _, label in documents)
    ]
    finite = [order for order in orders if order is not None] if None not in orders else []
    places = [[place for place, label in enumerate(order, 1) if label > 0] for order in finite]
    return {
        "mrr": _mean([1 / found[0] for found in places]),
        f"ndcg@{cutoff}": _mean([_dcg(o, cutoff) / _dcg(sorted(o, reverse=True), cutoff) for o in finite]),
        "map": _mean([sum(n / place for n, place in enumerate(found, 1)) / len(found) for found in places]),
        "queries": {"scored": len(finite), "without_relevant": len(lists) - len(orders)},
    }


def _ndcg_of_ranks(ranks: Sequence[int], cutoff: int) -> float:
    best = sum(1 / math.log2(1 + rank) for rank in range(1, min(len(ranks), cutoff) + 1))
    return sum(1 / math.log2(1 + rank) for rank in ranks if rank <= cutoff) / best


def _dcg(gains: Sequence[float], cutoff: int) -> float:
    return sum(gain / math.log2(1 + rank) for rank, gain in enumerate(gains[:cutoff], 1))


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
