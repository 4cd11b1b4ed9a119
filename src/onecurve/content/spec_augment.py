"""Spans of frames to mask in training, drawn for one example: the time masks of SpecAugment."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy import ndarray
    from numpy.random import Generator


def draw_spans(length: int, prob: float, span: int, fewest: int, rng: "Generator") -> "ndarray":
    """Return which positions are masked: bool [length].

    The rule of transformers' `_compute_mask_indices`, by which wav2vec2 and its kin mask: about `prob * length / span`
    spans, rounded up or down at random, begin at different positions; they may overlap, so that fewer positions than
    `prob` of them are masked. Upstream draws for a whole batch from numpy's global state; here each example has its own
    stream.

    Args:
        length: Positions.
        prob: Share of the positions to mask, were there no overlap.
        span: Positions of a span.
        fewest: Spans to draw at least, as far as they fit.
        rng: Of the example; drawn from only where something may be masked.

    Source:
        Park et al., SpecAugment, 2019; Baevski et al., wav2vec 2.0, 2020, section 4.2.
    """
    import numpy as np

    masked = np.zeros(length, dtype=bool)
    if prob <= 0 or length < span:
        return masked
    count = max(int(prob * length / span + rng.random()), fewest)
    count = min(count, length // span, length - span + 1)
    for start in np.argsort(rng.random(length - span + 1), kind="stable")[:count]:
        masked[start : start + span] = True
    return masked
