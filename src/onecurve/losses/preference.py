"""Losses of a pair of answers of which one is preferred."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def bradley_terry(chosen: "Tensor", rejected: "Tensor", margin: "Tensor | float", centre: float) -> "Tensor":
    """Return -log sigmoid(chosen - rejected - margin) + centre * (chosen + rejected)^2 of each pair: float32 [pairs].

    Bradley and Terry (1952); the margin is that of Touvron et al. 2023 (arXiv:2307.09288), equation 2; the last term
    keeps the rewards' mean near zero (Eisenstein et al. 2023, arXiv:2312.09244), which the first one leaves open.
    """
    from torch.nn import functional

    chosen, rejected = chosen.float(), rejected.float()
    loss = -functional.logsigmoid(chosen - rejected - margin)
    return loss + centre * (chosen + rejected) ** 2 if centre else loss


def sigmoid(margin: "Tensor", label_smoothing: float) -> "Tensor":
    """Return the logistic loss of a margin, with a share of the labels taken for flipped, as the margin.

    Rafailov et al. 2023 (arXiv:2305.18290), equation 7; smoothed as in Mitchell 2023, "A note on DPO with noisy
    preferences" (cDPO).
    """
    from torch.nn import functional

    loss = -functional.logsigmoid(margin) * (1 - label_smoothing)
    return loss - functional.logsigmoid(-margin) * label_smoothing if label_smoothing else loss


def odds_ratio(chosen: "Tensor", rejected: "Tensor") -> "Tensor":
    """Return the log of the ratio of two odds, p / (1 - p), of mean log-probabilities, of their shape.

    Hong et al. 2024 (arXiv:2403.07691), equation 4.
    """
    import torch

    return (chosen - rejected) - (torch.log1p(-torch.exp(chosen)) - torch.log1p(-torch.exp(rejected)))


def kto(
    ratios: "Tensor", mismatched: "Tensor", desirable: "Tensor", beta: float, weights: tuple[float, float]
) -> "Tensor":
    """Return the loss of each answer that was judged alone: float [answers].

    Ethayarajh et al. 2024 (arXiv:2402.01306), equations 7 and 8: an answer is valued against how far the model has gone
    from the reference altogether, which answers to other prompts tell; that is at least zero and has no gradient.

    Args:
        ratios: Log-probability of each answer less the reference's: float64 [answers].
        mismatched: The same of each prompt with an answer to another one: float64 [answers].
        desirable: bool [answers].
        beta: How closely the model is held to the reference.
        weights: Of desirable and of undesirable answers.
    """
    import torch

    gone = mismatched.detach().mean().clamp(min=0)
    # sigmoid(-x) is 1 - sigmoid(x) without the digits that this loses where sigmoid(x) is close to 1
    good = weights[0] * torch.sigmoid(beta * (gone - ratios))
    bad = weights[1] * torch.sigmoid(beta * (ratios - gone))
    return torch.where(desirable, good, bad)
