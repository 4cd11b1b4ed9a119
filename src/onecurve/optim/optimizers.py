"""Optimizers: to add one, add a function here; its keyword arguments are the extra `optim` keys of the recipe."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.optim import Optimizer

Groups = list[dict[str, Any]]


def adamw(groups: Groups, lr: float, *, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> "Optimizer":
    """AdamW, fused. Source: Loshchilov & Hutter, Decoupled weight decay regularization, ICLR 2019."""
    from torch.optim import AdamW

    return AdamW(groups, lr=lr, betas=(beta1, beta2), eps=eps, fused=True)


def adamw_8bit(
    groups: Groups, lr: float, *, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8
) -> "Optimizer":
    """AdamW of bitsandbytes with moments of 8 bits; needs the extra `quant`."""
    from onecurve.optim.adamw_8bit import AdamW8bit

    return AdamW8bit(groups, lr=lr, betas=(beta1, beta2), eps=eps)


def adafactor(groups: Groups, lr: float, *, beta2_decay: float = -0.8, clip_threshold: float = 1.0) -> "Optimizer":
    """Adafactor with factored second moments. Source: Shazeer & Stern, ICML 2018."""
    from torch.optim import Adafactor

    return Adafactor(groups, lr=lr, beta2_decay=beta2_decay, d=clip_threshold)


def sgd(groups: Groups, lr: float, *, momentum: float = 0.0, nesterov: bool = False) -> "Optimizer":
    """Stochastic gradient descent, with momentum if asked for."""
    from torch.optim import SGD

    return SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov)
