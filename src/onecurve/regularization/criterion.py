"""The criteria of classifiers and language models in training: cross-entropy with what the recipe adds to it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onecurve.losses.cross_entropy import cross_entropy_sum
from onecurve.machine.accelerator import to_device
from onecurve.regularization.focal import focal_binary_sum, focus
from onecurve.regularization.label_smoothing import smoothed


@dataclass(frozen=True)
class OfOneLabel:
    """Of items with one label each: the sum over classes of -w_c t_c (1 - p_c)^gamma log p_c.

    Without focal loss it is what `torch.nn.functional.cross_entropy` computes with `weight` and `label_smoothing`. It
    is linear in the targets, so it also takes mixed ones.
    """

    smoothing: float = 0.0
    gamma: float = 0.0
    weights: Sequence[float] = ()

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        scores = torch.log_softmax(logits.float(), 1)
        losses = -smoothed(targets, logits.shape[1], self.smoothing) * scores
        if self.gamma:
            losses = losses * focus(scores, self.gamma)
        if self.weights:
            losses = losses * to_device(torch.tensor(self.weights), losses.device)
        return losses.sum()


@dataclass(frozen=True)
class OfAnyLabels:
    """Of items with any number of labels: binary cross-entropy of each, with focal loss."""

    gamma: float = 0.0

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        return focal_binary_sum(logits.float(), targets, self.gamma)


@dataclass(frozen=True)
class OfTokens:
    """Of tokens from a large vocabulary, without float32 copies of all logits."""

    smoothing: float = 0.0

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy_sum(logits, targets, self.smoothing)
