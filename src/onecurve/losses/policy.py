"""Policy-gradient losses of sampled completions: advantages, the clipped objective, the divergence from a reference."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

_NO_DIVISION_BY_ZERO = 1e-4
"""As in TRL."""


def advantages(rewards: np.ndarray, baseline: str, scale: str) -> np.ndarray:
    """Return how much better each completion is than others of its prompt: float64 [prompts, completions].

    Args:
        rewards: float64 [prompts, completions], two completions at least.
        baseline: `group`, the mean of all (Shao et al. 2024, arXiv:2402.03300); `rloo`, that of the others (Kool et al.
            2019; Ahmadian et al. 2024, arXiv:2402.14740).
        scale: What the difference is divided by: `none` (Liu et al. 2025, arXiv:2503.20783), or the standard deviation
            of the `group` or of the whole `batch`.
    """
    total, count = rewards.sum(1, keepdims=True), rewards.shape[1]
    found = rewards - (total / count if baseline == "group" else (total - rewards) / (count - 1))
    found[np.ptp(rewards, 1) == 0] = 0.0  # exactly, whatever their mean was rounded to
    if scale == "none":
        return found
    deviation = rewards.std(1, ddof=1, keepdims=True) if scale == "group" else rewards.std(ddof=1)
    return found / (deviation + _NO_DIVISION_BY_ZERO)


def clipped(logps: "Tensor", drawn: "Tensor", advantage: "Tensor", low: float, high: float) -> "tuple[Tensor, Tensor]":
    """Return the clipped loss of each token, and whether it is clipped: float32 and bool, as `logps`.

    Schulman et al. 2017 (arXiv:1707.06347), equation 7, negated; with two bounds as in Yu et al. 2025
    (arXiv:2503.14476).

    Args:
        logps: Log-probabilities of the tokens: float32 [completions, longest].
        drawn: What they were when the tokens were drawn, likewise.
        advantage: float32 [completions, 1].
        low: How far the ratio of the probabilities may fall below 1.
        high: How far it may rise above 1.
    """
    import torch

    ratio = (logps - drawn).exp()
    loss = -torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)
    below, above = (ratio < 1 - low) & (advantage < 0), (ratio > 1 + high) & (advantage > 0)
    return loss, below | above


def divergence(logps: "Tensor", reference: "Tensor") -> "Tensor":
    """Return an estimate of KL(model || reference) for each token, never negative: float32, as `logps`.

    Schulman 2020, "Approximating KL divergence", the estimator k3.
    """
    apart = reference - logps
    return apart.exp() - apart - 1
