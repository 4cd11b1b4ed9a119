"""Scores of predictions that are numbers."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import evaluate
from datasets import Features, Value
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import mean_absolute_error, mean_squared_error

from onecurve.metrics.offline import compute
from onecurve.metrics.per_class import defined


class Regression(evaluate.Metric):
    """Pearson and Spearman correlation, mean squared and mean absolute error."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Scores of predictions that are numbers.",
            citation="",
            inputs_description="predictions, references: numbers.",
            features=Features({"predictions": Value("float64"), "references": Value("float64")}),
        )

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float | None]:
        predictions, references = list(predictions), list(references)
        if not all(map(math.isfinite, predictions)):  # a model that diverged: its loss says so, no score can
            return dict.fromkeys(("pearson", "spearman", "mse", "mae"))
        return {
            "pearson": _correlation(pearsonr, predictions, references),
            "spearman": _correlation(spearmanr, predictions, references),
            "mse": float(mean_squared_error(references, predictions)),
            "mae": float(mean_absolute_error(references, predictions)),
        }


def _correlation(measure: Any, predictions: list[float], references: list[float]) -> float | None:
    """Return a correlation; none where one side is constant and there is nothing to correlate."""
    if len(set(predictions)) < 2 or len(set(references)) < 2:
        return None
    with warnings.catch_warnings():  # nearly constant predictions, as a model gives at its first step
        warnings.simplefilter("ignore")
        return defined(measure(predictions, references).statistic)


def score_regression(pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Score pairs of (predicted number, reference number)."""
    predictions, references = zip(*pairs, strict=True)
    return compute(Regression, predictions=predictions, references=references)
