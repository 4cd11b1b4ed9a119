"""A regression's output layer, which computes in float32 where the layers below it compute in half precision."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class Float32Linear(nn.Linear):
    """What the output layer becomes: a module as before, whose result no half precision rounds.

    bfloat16 has 2008 and 2016 and nothing between: a loss in float32 comes too late for such an output.
    """

    def forward(self, input: Tensor) -> Tensor:
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        with torch.autocast(input.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.to(wide)
            return functional.linear(input.to(wide), self.weight.to(wide), bias)


def return_float32(model: Any) -> None:
    """Have a model whose config says regression return its numbers in float32; any other stays as it is.

    Args:
        model: A transformers model, before an adapter wraps its head; its parameters and their names stay.
    """
    if getattr(model.config, "problem_type", None) != "regression":
        return
    below = {model, *model.base_model.modules()}
    for module in model.modules():
        if module not in below and type(module) is nn.Linear and module.out_features == model.config.num_labels:
            module.__class__ = Float32Linear
