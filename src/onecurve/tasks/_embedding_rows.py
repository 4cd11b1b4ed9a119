"""The rows that text embedding and ranking learn from: a query, documents, and a label or score, by their names."""

from collections.abc import Mapping
from typing import Any

from onecurve.tasks.base import BadRow, Row

MORE = tuple(f"negative_{number}" for number in range(1, 17))
"""Columns of further negatives, as sentence-transformers calls them."""
COLUMNS: Mapping[str, str] = {
    "query": "text to search with",
    "positive": "a text that belongs to it",
    "negative?": "a text that does not, or a list of them",
    **{f"{name}?": "a further text that does not" for name in MORE},
    "score?": "with `task.loss: cosine`: how alike query and positive are, a number from -1 to 1",
}
_BESIDE_ANSWERS = {"negative?": "negative", **{f"{name}?": name for name in MORE}, "score?": "label"}
"""What sentence-transformers' mine_hard_negatives adds to a question and its answer."""
SHAPES: Mapping[str, Mapping[str, str]] = {
    "sentence-transformers (anchor)": {
        "query": "anchor",
        "positive": "positive",
        "negative?": "negative",
        **{f"{name}?": name for name in MORE},
        "score?": "score",
    },
    "sentence-transformers (scored pair)": {"query": "sentence1", "positive": "sentence2", "score": "score"},
    "sentence-transformers (pair)": {"query": "sentence1", "positive": "sentence2", "score?": "label"},
    "question and answer": {"query": "question", "positive": "answer", **_BESIDE_ANSWERS},
    "query and answer": {"query": "query", "positive": "answer", **_BESIDE_ANSWERS},
    "a query alone": {"query": "query"},
    "a document alone": {"positive": "document"},
}

_ASKED = (("question", "answer"), ("query", "answer"))
RANKING_SHAPES: Mapping[str, Mapping[str, str]] = {
    f"sentence-transformers ({', '.join(name.rstrip('?') for name in told)})": shape
    for told, shape in (
        *(
            ((query, positive, first), {"query": query, "positive": positive, first: first, **rest})
            for query, positive in (("anchor", "positive"), *_ASKED)
            for first, rest in (("negative", {}), ("negative_1", {f"{name}?": name for name in MORE[1:]}))
        ),
        *(
            ((query, documents, labels), {"query": query, "documents": documents, "labels": labels})
            for query, documents in (("query", "docs"), *_ASKED)
            for labels in ("labels", "scores")
        ),
        *(
            ((query, document, label), {"query": query, "document": document, column: label})
            for query, document in (("sentence1", "sentence2"), ("query", "response"), *_ASKED, ("anchor", "positive"))
            for column, label in (("label", "score"), ("label?", "label"))
        ),
    )
}
"""Rows of the datasets that sentence-transformers documents for the losses of its CrossEncoder, or mines."""


def negatives(row: Row) -> list[Any]:
    """Return what stands in any of the columns for negatives."""
    found = row.get("negative")
    first = found if isinstance(found, list) else [found]
    return [text for text in (*first, *map(row.get, MORE)) if text is not None]


def score(row: Row) -> float:
    """Return how alike the texts of a scored pair are."""
    if negatives(row):
        raise BadRow("has a negative, and task.loss cosine compares pairs alone")
    try:
        found = float(row["score"])
    except (KeyError, TypeError, ValueError):
        raise BadRow(f"score must be a number; got {row.get('score')!r}") from None
    if not -1 <= found <= 1:
        raise BadRow(f"score must be from -1 to 1, as cosines are; got {found:g}: divide it by the scale's maximum")
    return found
