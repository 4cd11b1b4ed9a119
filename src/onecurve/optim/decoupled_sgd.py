"""SGD whose weight decay shrinks the weights beside the gradient's step; torch's adds it to the gradient (L2)."""

from typing import Any

import torch
from torch.optim import SGD


class DecoupledSGD(SGD):
    """SGDW without its schedule multiplier: each step first multiplies the weights by 1 - lr x weight_decay.

    With momentum, L2 puts the decay into the momentum too, and so decays more. Source: Loshchilov & Hutter, Decoupled
    weight decay regularization, ICLR 2019, algorithm 1.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update every parameter that has a gradient."""
        decays = [group["weight_decay"] for group in self.param_groups]
        for group in self.param_groups:
            for parameter in group["params"] if group["weight_decay"] else ():
                if parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
            group["weight_decay"] = 0.0
        try:
            return super().step(closure)
        finally:
            for group, decay in zip(self.param_groups, decays, strict=True):
                group["weight_decay"] = decay
