"""Precision, recall and F1 of each class by its name, and what becomes of a class that is not there."""

import math
from typing import Any

from sklearn.metrics import precision_recall_fscore_support


def defined(value: float) -> float | None:
    """Return a score as a plain number; none where it is 0/0, because NaN is not JSON."""
    return float(value) if math.isfinite(value) else None


def mean(values: list[float | None]) -> float | None:
    """Return the mean of the scores that are defined."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def score_per_class(references: Any, predictions: Any, names: list[str]) -> dict[str, dict[str, Any]]:
    """Return precision, recall, f1 and support by class name, in the order of the ids.

    A score that is 0/0 is none: the recall of a class that is not in the split, the precision of one never
    predicted, the F1 of one that is neither. Macro averages leave it out, so that a class missing from a small dev
    split does not pull them down.
    """
    # NaN and not scikit-learn's 0 (with a warning), which nobody can tell from a real zero
    scores = precision_recall_fscore_support(references, predictions, labels=range(len(names)), zero_division=math.nan)
    rows = zip(names, *scores, strict=True)
    return {
        name: {"precision": defined(p), "recall": defined(r), "f1": defined(f1), "support": int(support)}
        for name, p, r, f1, support in rows
    }
