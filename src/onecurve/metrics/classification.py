"""Scores of predictions that are one class out of several."""

from collections.abc import Sequence
from typing import Any

import evaluate
from datasets import Features, Value
from sklearn.metrics import accuracy_score, confusion_matrix

from onecurve.metrics.offline import compute
from onecurve.metrics.per_class import mean, score_per_class


class Classification(evaluate.Metric):
    """Accuracy, macro F1, Matthews correlation, per-class scores and the confusion matrix."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Scores of predictions that are one class out of several.",
            citation="",
            inputs_description="predictions, references: class ids; names: the class names in the order of the ids.",
            features=Features({"predictions": Value("int64"), "references": Value("int64")}),
        )

    def _compute(self, predictions: list[int], references: list[int], names: list[str]) -> dict[str, Any]:
        predictions, references = list(predictions), list(references)
        per_class = score_per_class(references, predictions, names)
        confusion = confusion_matrix(references, predictions, labels=range(len(names)))
        return {
            "accuracy": float(accuracy_score(references, predictions)),
            "macro_f1": mean([scores["f1"] for scores in per_class.values()]),
            "matthews": matthews(confusion.tolist()),
            "per_class": per_class,
            "confusion_matrix": confusion.tolist(),
        }


def matthews(confusion: list[list[int]]) -> float:
    """Return the Matthews correlation of a confusion matrix (rows: references); 0 where either side is constant.

    Source:
        Gorodkin, Comparing two K-category assignments by a K-category correlation coefficient, 2004, eq. 8.
    """
    true, predicted = [sum(row) for row in confusion], [sum(column) for column in zip(*confusion, strict=True)]
    total, correct = sum(true), sum(confusion[n][n] for n in range(len(confusion)))
    covariance = correct * total - sum(t * p for t, p in zip(true, predicted, strict=True))
    spread = (total**2 - sum(t * t for t in true)) * (total**2 - sum(p * p for p in predicted))
    return covariance / spread**0.5 if spread else 0.0


def score_classification(pairs: Sequence[tuple[int, int]], names: list[str]) -> dict[str, Any]:
    """Score pairs of (predicted id, reference id); the confusion matrix has a row per reference class."""
    predictions, references = zip(*pairs, strict=True)
    return compute(Classification, predictions=predictions, references=references, names=names)
