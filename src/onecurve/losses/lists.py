"""Losses of scored documents against their labels: each alone, in pairs, or all of a query's list together."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# scores and labels are float32 [lists, most documents]; `there` is False where a list has no further document


def pointwise_sum(scores: "Tensor", labels: "Tensor", there: "Tensor") -> "Tensor":
    """Return the binary cross-entropy of each document, whose label is a share of 1, summed: float32 [], in nats."""
    from torch.nn import functional

    each = functional.binary_cross_entropy_with_logits(scores, labels.where(there, 0.0), reduction="none")
    return each.where(there, 0.0).sum()


def pairwise_sum(scores: "Tensor", labels: "Tensor", there: "Tensor") -> "Tensor":
    """Return the logistic loss of each pair in which one document has a higher label, summed: float32 [], in nats.

    Source: Burges et al., Learning to Rank using Gradient Descent (RankNet), 2005.
    """
    return _of_pairs(scores).where(ordered(labels, there), 0.0).sum()


def listwise_sum(scores: "Tensor", labels: "Tensor", there: "Tensor") -> "Tensor":
    """Return the cross-entropy of each list's shares, the softmax of its labels, summed: float32 [], in nats.

    Source: Cao et al., Learning to Rank: From Pairwise Approach to Listwise Approach (ListNet), 2007.
    """
    import torch

    wanted = labels.masked_fill(~there, -torch.inf).softmax(1)
    logarithms = scores.masked_fill(~there, -torch.inf).log_softmax(1)
    return -(wanted * logarithms.masked_fill(~there, 0.0)).sum()


def lambda_sum(scores: "Tensor", labels: "Tensor", there: "Tensor") -> "Tensor":
    """Return the pairs' logistic loss, times what exchanging the two would change of NDCG, summed: float32 [].

    The gain of a label l is 2^l - 1. Sources: Burges, From RankNet to LambdaRank to LambdaMART, 2010; Wang et al., The
    LambdaLoss Framework for Ranking Metric Optimization, 2018.
    """
    import torch

    with torch.no_grad():
        gains = (2.0**labels - 1).where(there, 0.0)
        discounts = 1 / torch.log2(torch.arange(2, scores.shape[1] + 2, device=scores.device, dtype=torch.float32))
        places = scores.masked_fill(~there, -torch.inf).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        discounted = discounts[places]
        best = (gains.sort(1, descending=True).values * discounts).sum(1).clamp_min(1e-10)
        change = (gains[:, :, None] - gains[:, None]).abs() * (discounted[:, :, None] - discounted[:, None]).abs()
        weights = (change / best[:, None, None]).where(ordered(labels, there), 0.0)
    return (weights * _of_pairs(scores)).sum()


def ordered(labels: "Tensor", there: "Tensor") -> "Tensor":
    """Return which document has a higher label than which other: bool [lists, documents, documents]."""
    both = there[:, :, None] & there[:, None]
    return both & (labels[:, :, None] > labels[:, None])


def _of_pairs(scores: "Tensor") -> "Tensor":
    from torch.nn import functional

    return functional.softplus(scores[:, None] - scores[:, :, None])
