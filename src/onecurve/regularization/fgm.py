"""Adversarial training on embeddings, by the fast gradient method.

L(x) + L(x + r) with r = epsilon g / |g|, where x are the embeddings of one example's tokens and g is the gradient of
its loss with respect to them. Source: Miyato et al., Adversarial training methods for semi-supervised text
classification, 2017, equation 5, embeddings not normalised.

The usual short form takes the gradient of the embedding's weight and its norm over the micro-batch, so that the curve
depends on how a step is cut; here each example has its own.
"""

import torch
from torch import Tensor

from onecurve.regularization.base import Loss, Pass
from onecurve.regularization.embeddings import changed_embeddings


class Fgm:
    """A loss in two sweeps: the backward pass of the first, clean one gives the second its perturbation.

    Both count. A gradient asked for by `torch.autograd.grad` would go through DeepSpeed's own accounting of backward
    passes, and come out wrong without a word. Both sweeps draw the same dropout masks.
    """

    def __init__(self, loss: Loss, epsilon: float) -> None:
        self.loss, self.epsilon = loss, epsilon
        self.shift = torch.zeros(())
        """Of the latest clean sweep: zeros that were added to the embeddings, and their gradient."""

    def __call__(self, one: Pass) -> Tensor:
        with changed_embeddings(one.model, self._observe if one.sweep == 0 else self._perturb):
            return self.loss(one)

    def _observe(self, embedded: Tensor) -> Tensor:
        self.shift = torch.zeros_like(embedded, requires_grad=True)
        return embedded + self.shift

    def _perturb(self, embedded: Tensor) -> Tensor:
        assert self.shift.grad is not None, "the clean sweep had no backward pass"
        step = perturbation(self.shift.grad, self.epsilon)
        self.shift = torch.zeros(())
        return embedded + step


def perturbation(gradient: Tensor, epsilon: float) -> Tensor:
    """Return each example's gradient at the length epsilon; zero where it is zero or, as by an overflow, not finite.

    Args:
        gradient: float [examples, sequence, size], at any scale.
        epsilon: The Euclidean norm of what is returned for an example.
    """
    wide = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
    norms = torch.linalg.vector_norm(wide, dim=(1, 2), keepdim=True)
    usable = norms.isfinite() & (norms > 0)
    return torch.where(usable, wide / norms * epsilon, 0).to(gradient.dtype)
