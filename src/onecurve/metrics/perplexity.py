"""Perplexity: how many tokens a language model hesitates between."""

import math

import evaluate
from datasets import Features, Value

from onecurve.metrics.offline import compute


class Perplexity(evaluate.Metric):
    """The exponential of the mean loss per token."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="The exponential of the mean loss per token.",
            citation="",
            inputs_description="losses: mean cross-entropy per token, in nats.",
            features=Features({"losses": Value("float64")}),
        )

    def _compute(self, losses: list[float]) -> dict[str, float]:
        try:
            return {"perplexity": math.exp(losses[0])}
        except OverflowError:  # above a loss of 709
            return {"perplexity": math.inf}


def perplexity(loss: float) -> float:
    """Return the perplexity of a split, infinite where it is too large for a float.

    Args:
        loss: Mean cross-entropy per token over the whole split, in nats.
    """
    return compute(Perplexity, losses=[loss])["perplexity"]
