"""R-Drop: two predictions for each example, under different dropout masks, are to agree.

L = (CE(p) + CE(q)) / 2 + alpha (KL(p || q) + KL(q || p)) / 2. Source: Liang et al., R-Drop, 2021, equations 2 to 4,
but with the mean of the two cross-entropies in place of their sum, so that the learning rate keeps its meaning.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from onecurve.machine.accelerator import on_host, remember
from onecurve.regularization.base import Criterion, Pass
from onecurve.tasks.base import Batch, Classifies


@dataclass(frozen=True)
class RDrop:
    """The loss of a batch that runs twice in one forward pass; its items are counted once."""

    task: Classifies
    criterion: Criterion
    alpha: float

    def __call__(self, one: Pass) -> Tensor:
        twice = doubled(one.batch)
        logits, targets = self.task.classified(one.forward(twice), twice)
        first, second = logits.float().chunk(2)
        apart = divergence(first, second, independent=self.task.classes == "labels")
        return self.criterion(logits, targets) / 2 + self.alpha * apart / 2


def doubled(batch: Batch) -> Batch:
    """Return the examples of a batch followed by the same again."""
    return {name: _twice(tensor) for name, tensor in batch.items()}


def _twice(tensor: Tensor) -> Tensor:
    known = on_host(tensor)
    whole = torch.cat([tensor, tensor])
    return whole if known is tensor else remember(whole, torch.cat([known, known]))


def divergence(first: Tensor, second: Tensor, independent: bool) -> Tensor:
    """Return KL(p || q) + KL(q || p), summed over items: float32 [].

    That is the sum of (p - q)(log p - log q) over classes, and of independent labels, each true or not, of
    (p - q)(logit p - logit q).

    Args:
        first: Logits of p: float32 [items, classes].
        second: Logits of q.
        independent: Whether each class has a sigmoid, not all together a softmax.
    """
    if independent:
        return ((first.sigmoid() - second.sigmoid()) * (first - second)).sum()
    log_p, log_q = torch.log_softmax(first, 1), torch.log_softmax(second, 1)
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum()
