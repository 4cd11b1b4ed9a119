"""Focal loss: what the model is sure of counts less.

The loss of a class with the probability p is -(1 - p)^gamma log p. Source: Lin et al., Focal loss for dense object
detection, 2017, equation 4; without its alpha, which `class_weights` is here.
"""

import torch
from torch import Tensor
from torch.nn import functional


def focus(log_probabilities: Tensor, gamma: float) -> Tensor:
    """Return (1 - p)^gamma, of the same shape.

    By -expm1(log p), so that 1 - p keeps its digits where p is close to 1; kept away from 0, where a power below 1 has
    no gradient.
    """
    return (-torch.expm1(log_probabilities)).clamp_min(torch.finfo(log_probabilities.dtype).tiny) ** gamma


def focal_binary_sum(logits: Tensor, targets: Tensor, gamma: float) -> Tensor:
    """Return the focal loss of independent labels, each with a sigmoid, summed: float32 [].

    Args:
        logits: float [items, labels].
        targets: 1 where an item has the label, 0 where not, or a share between: float [items, labels].
        gamma: 0 is plain binary cross-entropy.
    """
    yes, no = functional.logsigmoid(logits), functional.logsigmoid(-logits)
    return -(targets * focus(yes, gamma) * yes + (1 - targets) * focus(no, gamma) * no).sum()
