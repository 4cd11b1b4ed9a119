"""The rows that text embedding learns from: a query, a positive, and negatives or a score, by the names they have."""

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
    "question and answer": {"query": "question", "positive": "answer"},
    "query and answer": {"query": "query", "positive": "answer"},
    "a query alone": {"query": "query"},
    "a document alone": {"positive": "document"},
}


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
