"""Label smoothing: a share of the target probability is spread evenly over all classes.

t' = (1 - e) t + e / K, for K classes. Source: Szegedy et al., Rethinking the Inception architecture, 2016, section 7.
"""

import torch
from torch import Tensor
from torch.nn import functional


def smoothed(targets: Tensor, num_classes: int, share: float) -> Tensor:
    """Return the target distributions, float32 [items, classes].

    Args:
        targets: int64 [items], or the distributions before smoothing, float [items, classes].
        num_classes: K.
        share: e; 0 leaves the distributions as they are.
    """
    if not targets.is_floating_point():
        targets = functional.one_hot(targets, num_classes)
    return targets.to(torch.float32) * (1 - share) + share / num_classes
