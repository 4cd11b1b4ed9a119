"""Mixes two images and their targets: mixup and CutMix."""

from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray


class Mixing(NamedTuple):
    """How examples are mixed; of both, each example is given one at random."""

    mixup_alpha: float | None = None
    cutmix_alpha: float | None = None


def mixed(image: NDArray, partner: NDArray, mixing: Mixing, rng: Generator) -> tuple[NDArray, float]:
    """Return an image mixed with another of the same shape, and the first one's share of it.

    Args:
        image: float [channels, height, width].
        partner: The other.
        mixing: How.
        rng: Gives all draws.
    """
    pastes = not mixing.mixup_alpha or (bool(mixing.cutmix_alpha) and rng.random() < 0.5)
    if pastes:
        return cutmix(image, partner, mixing.cutmix_alpha or 0.0, rng)
    return mixup(image, partner, mixing.mixup_alpha or 0.0, rng)


def mixup(image: NDArray, partner: NDArray, alpha: float, rng: Generator) -> tuple[NDArray, float]:
    """Return l x + (1 - l) x' and l, drawn from Beta(alpha, alpha).

    Source: Zhang et al., mixup: beyond empirical risk minimization, 2018, section 2.
    """
    share = float(rng.beta(alpha, alpha))
    return (share * image + (1 - share) * partner).astype(image.dtype), share


def cutmix(image: NDArray, partner: NDArray, alpha: float, rng: Generator) -> tuple[NDArray, float]:
    """Return x with a rectangle of x' in it, and the share of the area that is left of x.

    The rectangle's sides are sqrt(1 - l) of the image's, with l drawn from Beta(alpha, alpha), about a centre drawn
    uniformly; what lies outside of the image is cut off. Source: Yun et al., CutMix, 2019, section 3.1.
    """
    height, width = image.shape[1:]
    side = float(np.sqrt(1 - rng.beta(alpha, alpha)))
    rows, columns = _run(height, side, rng), _run(width, side, rng)
    pasted = image.copy()
    pasted[:, rows, columns] = partner[:, rows, columns]
    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    return pasted, 1 - area / (height * width)


def _run(length: int, share: float, rng: Generator) -> slice:
    """Return where a rectangle lies along one axis."""
    cut, centre = int(length * share), int(rng.integers(length))
    return slice(max(0, centre - cut // 2), min(length, centre + cut // 2))
