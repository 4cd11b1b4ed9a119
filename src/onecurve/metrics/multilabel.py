"""Scores of predictions that are any number of labels out of several."""

from collections.abc import Sequence
from typing import Any

import evaluate
from datasets import Features, Value
from datasets import Sequence as ListOf
from numpy import asarray, nan, pad
from sklearn.metrics import accuracy_score, f1_score

from onecurve.metrics.offline import compute
from onecurve.metrics.per_class import defined, mean, score_per_class


class Multilabel(evaluate.Metric):
    """Micro and macro F1, the share of examples with exactly the right labels, and per-label scores."""

    def _info(self) -> evaluate.MetricInfo:
        vector = ListOf(Value("int64"))
        return evaluate.MetricInfo(
            description="Scores of predictions that are any number of labels out of several.",
            citation="",
            inputs_description="predictions, references: 0/1 vectors; names: the label names in the order of the ids.",
            features=Features({"predictions": vector, "references": vector}),
        )

    def _compute(self, predictions: Any, references: Any, names: list[str]) -> dict[str, Any]:
        predictions, references = _matrix(predictions), _matrix(references)
        per_class = score_per_class(references, predictions, names)
        return {
            "micro_f1": defined(f1_score(references, predictions, average="micro", zero_division=nan)),
            "macro_f1": mean([scores["f1"] for scores in per_class.values()]),
            "subset_accuracy": float(accuracy_score(references, predictions)),
            "per_class": per_class,
        }


def _matrix(vectors: list[list[int]]) -> Any:
    """Return [example, label], with a column that is always 0 beside a single label's.

    scikit-learn takes a matrix of one column for the two classes 0 and 1, and scores the absence of the label.
    """
    matrix = asarray(list(vectors))
    return matrix if matrix.shape[1] > 1 else pad(matrix, ((0, 0), (0, 1)))


def score_multilabel(pairs: Sequence[tuple[list[int], list[int]]], names: list[str]) -> dict[str, Any]:
    """Score pairs of (predicted 0/1 vector, reference 0/1 vector)."""
    predictions, references = zip(*pairs, strict=True)
    return compute(Multilabel, predictions=predictions, references=references, names=names)
