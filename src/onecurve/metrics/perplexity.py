"""Perplexity of a language model."""

import math


def perplexity(loss: float) -> float:
    """Return the perplexity of a split, infinite where it is too large for a float.

    Not an `evaluate.Metric`: importing those takes a second and 40 MB, and this is one exponential.

    Args:
        loss: Mean cross-entropy per token over the whole split, in nats.
    """
    try:
        return math.exp(loss)
    except OverflowError:  # above a loss of 709
        return math.inf
