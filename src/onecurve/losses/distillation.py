"""How far a student's distribution over classes is from a teacher's, of which the likeliest classes are known."""

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Divergence = Literal["forward_kl", "reverse_kl", "jsd"]


def likeliest(logits: "Tensor", top_k: int, temperature: float) -> "tuple[Tensor | None, Tensor]":
    """Return a teacher's `top_k` likeliest classes and what it says of them and of all others together.

    Args:
        logits: float [items, classes].
        top_k: How many; all where there are no more.
        temperature: Divides the logits first.

    Returns:
        The classes, int64 [items, k], and their log-probabilities with that of all others, float32 [items, k + 1]. Of
        all classes: None, and the log-probabilities in the order of the classes, float32 [items, classes].
    """
    import torch

    whole = torch.log_softmax(logits.float() / temperature, 1)
    if top_k >= logits.shape[1]:
        return None, whole
    ids = whole.topk(top_k, dim=1).indices
    return ids, _buckets(whole, ids)


def divergence_sum(
    logits: "Tensor", ids: "Tensor | None", teacher: "Tensor", temperature: float, kind: Divergence, beta: float
) -> "Tensor":
    """Return the divergence of a student from its teacher, summed over items: float32 [], in nats.

    The classes that the teacher's list leaves out are one class to both: its probability is the sum of theirs. By that
    the divergence can only become smaller, and with all classes listed it is exact. It is multiplied by the square of
    the temperature, so that its gradient keeps its size (Hinton et al. 2015, arXiv:1503.02531, section 2). The kinds
    are those of GKD (Agarwal et al. 2024, arXiv:2306.13649, section 2).

    Args:
        logits: The student's: float [items, classes].
        ids: What `likeliest` returned of the teacher.
        teacher: Likewise.
        temperature: As there.
        kind: forward_kl: KL(teacher || student); reverse_kl: KL(student || teacher); jsd: beta KL(teacher || mixture) +
            (1 - beta) KL(student || mixture), of the mixture beta teacher + (1 - beta) student.
        beta: Of jsd.
    """
    from math import log

    import torch

    student = torch.log_softmax(logits.float() / temperature, 1)
    if ids is not None:
        student = _buckets(student, ids)
    if kind == "forward_kl":
        found = teacher.exp() * (teacher - student)
    elif kind == "reverse_kl":
        found = student.exp() * (student - teacher)
    else:
        mixture = torch.logaddexp(teacher + log(beta), student + log(1 - beta))
        found = beta * teacher.exp() * (teacher - mixture) + (1 - beta) * student.exp() * (student - mixture)
    return found.sum() * temperature**2


def _buckets(whole: "Tensor", ids: "Tensor") -> "Tensor":
    """Return the log-probabilities of some classes and, last, of all others together: float32 [items, k + 1].

    1 less the sum of the others would lose its digits where that is close to 1.
    """
    import torch

    others = whole.scatter(1, ids, float("-inf")).logsumexp(1, keepdim=True)
    return torch.cat([whole.gather(1, ids), others], 1)
