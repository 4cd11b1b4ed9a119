"""Optimizers: to add one, add a function here; its keyword arguments are the extra `optim` keys of the recipe."""

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

if TYPE_CHECKING:
    from torch.optim import Optimizer

Groups = list[dict[str, Any]]
Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Negative = Annotated[float, Field(le=0)]
AtLeastOne = Annotated[float, Field(ge=1)]


def adamw(groups: Groups, lr: float, *, beta1: Share = 0.9, beta2: Share = 0.999, eps: Positive = 1e-8) -> "Optimizer":
    """AdamW, fused. Source: Loshchilov & Hutter, Decoupled weight decay regularization, ICLR 2019."""
    from torch.optim import AdamW

    return AdamW(groups, lr=lr, betas=(beta1, beta2), eps=eps, fused=True)


def adamw_8bit(
    groups: Groups, lr: float, *, beta1: Share = 0.9, beta2: Share = 0.999, eps: Positive = 1e-8
) -> "Optimizer":
    """AdamW of bitsandbytes with moments of 8 bits; needs the extra `quant`."""
    from onecurve.optim.adamw_8bit import AdamW8bit

    return AdamW8bit(groups, lr=lr, betas=(beta1, beta2), eps=eps)


def adafactor(
    groups: Groups, lr: float, *, beta2_decay: Negative = -0.8, clip_threshold: AtLeastOne = 1.0
) -> "Optimizer":
    """Adafactor with factored second moments. Source: Shazeer & Stern, ICML 2018."""
    from torch.optim import Adafactor

    return Adafactor(groups, lr=lr, beta2_decay=beta2_decay, d=clip_threshold)


def sgd(groups: Groups, lr: float, *, momentum: Share = 0.0, nesterov: bool = False) -> "Optimizer":
    """Stochastic gradient descent, with momentum if asked for; weight decay is decoupled, as AdamW's."""
    from onecurve.optim.decoupled_sgd import DecoupledSGD

    return DecoupledSGD(groups, lr=lr, momentum=momentum, nesterov=nesterov)
