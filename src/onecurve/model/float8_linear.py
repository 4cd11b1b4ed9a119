"""torchao's linear layer, for every device's autocast and every strategy."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torchao.float8 import Float8LinearConfig
from torchao.float8.float8_linear import matmul_with_hp_or_float8_args as torchao_product


class Float8Linear(nn.Linear):
    """What one that torchao has converted becomes: its own asks CUDA's autocast alone what to compute in."""

    config: Float8LinearConfig
    linear_mm_config: Any

    def forward(self, input: Tensor) -> Tensor:
        device = input.device.type
        if torch.is_autocast_enabled(device):
            input = input.to(torch.get_autocast_dtype(device))
        output = _Product.apply(input, self.weight, self.linear_mm_config, self.config)
        return output if self.bias is None else output + self.bias.to(output.dtype)


@torch._dynamo.allow_in_graph
class _Product(torch.autograd.Function):
    """torchao's product, remembering the weight itself for the backward pass.

    torchao remembers its transpose, which ZeRO-3 cannot release between the passes: every rank would hold the model.
    """

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, mm_config: Any, config: Float8LinearConfig) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.configs = {"linear_mm_config": mm_config, "config": config}
        theirs = SimpleNamespace(save_for_backward=lambda *_: None)
        return torchao_product.forward(theirs, input, weight.t(), mm_config, config)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        input, weight = ctx.saved_tensors
        theirs = SimpleNamespace(saved_tensors=(input, weight.t()), **ctx.configs)
        of_input, of_weight, *_ = torchao_product.backward(theirs, gradient)
        return of_input, of_weight.t(), None, None
