"""Cross-entropy over a large vocabulary, without float32 copies of all its logits, or without all logits at once."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_CHUNK_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 27}
"""Logits turned to float32 at a time: what stays in a CPU's cache; half a GiB on a GPU."""
_CHUNK_OF_ALL = {"cpu": 1 << 24, "cuda": 1 << 27}
"""Logits that are there at a time where not all are: each chunk reads and writes the weight's gradient once."""


def cross_entropy_sum(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return the cross-entropy of each row's softmax with its target, summed: float32 [], in nats.

    What PyTorch's own computes, with one difference in memory: for float32 logits of n rows and V columns that keeps
    three n x V float32 tensors at its peak and converts half precision to a fourth; here the gradient is made in the
    forward pass, a chunk of rows at a time, in the logits' own dtype.

    Args:
        logits: float [rows, vocabulary].
        targets: int64 [rows].
        smoothing: Share of each target that is spread evenly over the vocabulary: label smoothing.
    """
    return _CrossEntropySum.apply(logits, targets, smoothing)


def _chunk_sum(scores: Tensor, wanted: Tensor, smoothing: float) -> Tensor:
    """Return the summed loss of log-probabilities, float [rows, vocabulary], with targets, int64 [rows, 1]."""
    total = -(1 - smoothing) * scores.gather(1, wanted).sum()
    return total - smoothing / scores.shape[1] * scores.sum() if smoothing else total


def _chunk_gradient(scores: Tensor, wanted: Tensor, smoothing: float) -> Tensor:
    """Return its gradient with respect to the logits, softmax less targets, in place of the log-probabilities."""
    gradient = scores.exp_().scatter_add_(1, wanted, scores.new_full(wanted.shape, smoothing - 1))
    return gradient.sub_(smoothing / scores.shape[1]) if smoothing else gradient


class _CrossEntropySum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        # Made where it is to lie; of half precision it is float32 first
        in_place = gradient is not None and gradient.dtype == torch.float32
        rows = max(1, _CHUNK_ELEMENTS.get(logits.device.type, 1 << 27) // logits.shape[1])
        total = torch.zeros((), device=logits.device)
        for start in range(0, len(logits), rows):
            here = slice(start, start + rows)
            wanted = targets[here, None]
            place = gradient[here] if gradient is not None and in_place else None
            scores = torch.log_softmax(logits[here], 1, dtype=torch.float32, out=place)
            total += _chunk_sum(scores, wanted, smoothing)
            if gradient is not None:
                made = _chunk_gradient(scores, wanted, smoothing)
                if not in_place:
                    gradient[here] = made
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient.mul_(scale), None, None  # in place: a second backward pass is told so by autograd


def linear_cross_entropy_sum(hidden: Tensor, weight: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return what `cross_entropy_sum` makes of the logits hidden x weight^T, a chunk of rows at a time.

    So n x V logits and their n x V gradient are never there at once. As there, the gradients are made in the forward
    pass; the three matrix products are the same. Source: Hsu et al., Liger Kernel, 2024, section 3.2.

    Args:
        hidden: float [rows, size].
        weight: float [vocabulary, size]; under autocast both are multiplied in its dtype.
        targets: int64 [rows].
        smoothing: As there.

    Returns:
        float32 [], in nats; float64 for inputs of that dtype.
    """
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    if not torch.is_grad_enabled():  # of which a function's own forward pass is not told
        hidden, weight = hidden.detach(), weight.detach()
    with torch.autocast(kind, enabled=False):
        return _LinearCrossEntropySum.apply(hidden, weight, targets, dtype, smoothing)


class _LinearCrossEntropySum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype, smoothing: float
    ) -> Tensor:
        wide = torch.promote_types(dtype, torch.float32)
        of_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        of_weight = torch.zeros_like(weight, dtype=wide) if ctx.needs_input_grad[1] else None
        given, matrix = hidden.to(dtype), weight.to(dtype)
        rows = max(1, _CHUNK_OF_ALL.get(hidden.device.type, 1 << 27) // len(weight))
        total = torch.zeros((), dtype=wide, device=hidden.device)
        for start in range(0, len(hidden), rows):
            here = slice(start, start + rows)
            wanted = targets[here, None]
            scores = torch.log_softmax(given[here] @ matrix.T, 1, dtype=wide)
            total += _chunk_sum(scores, wanted, smoothing)
            if of_hidden is None and of_weight is None:
                continue
            gradient = _chunk_gradient(scores, wanted, smoothing).to(dtype)
            if of_hidden is not None:
                of_hidden[here] = gradient @ matrix
            if of_weight is not None and dtype == wide:
                of_weight.addmm_(gradient.T, given[here])
            elif of_weight is not None:
                of_weight += gradient.T @ given[here]
        ctx.save_for_backward(of_hidden, of_weight)
        ctx.dtype = weight.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        of_hidden, of_weight = ctx.saved_tensors
        return (
            None if of_hidden is None else of_hidden.mul_(scale),
            None if of_weight is None else of_weight.mul_(scale).to(ctx.dtype),
            None,
            None,
            None,
        )
