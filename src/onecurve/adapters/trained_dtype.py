"""Keeps trained parameters in float32, whatever the dtype of the frozen weights."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from onecurve.errors import ConfigError
from onecurve.losses.float32_output import Float32Linear

_HALVES = (torch.bfloat16, torch.float16)


def train_in_float32(model: nn.Module) -> None:
    """Make every trained parameter float32, and have its module accept and return what the model computes in.

    PEFT does so for the layers of most methods, but not for `modules_to_save` (a new classification head), layer
    normalisation and LLaMA-Adapter, where a bfloat16 weight would swallow small updates.

    Args:
        model: A PEFT model, before an optimizer holds its parameters.

    Raises:
        ConfigError: A module has frozen and trained weights of its own, which cannot differ in dtype.
    """
    for module in model.modules():
        own = dict(module.named_parameters(recurse=False))
        halves = {name: p for name, p in own.items() if p.requires_grad and p.dtype in _HALVES}
        if not halves:
            continue
        if any(not p.requires_grad for p in own.values()):
            raise ConfigError(
                "this method trains single weights of the base model, which is stored in half precision.",
                where="peft.method",
                fix="Set model.dtype: float32 (or peft.bias: none).",
            )
        dtype = next(iter(halves.values())).dtype
        for name, parameter in halves.items():
            setattr(module, name, nn.Parameter(_widened(parameter)))
        module.register_forward_pre_hook(_widen)
        if not isinstance(module, Float32Linear):
            module.register_forward_hook(partial(_narrow, dtype=dtype))


def _widened(parameter: Any) -> Tensor:
    if not hasattr(parameter, "ds_id"):
        return parameter.data.float()
    from deepspeed.runtime.zero import GatheredParameters

    with GatheredParameters([parameter]):  # ZeRO-3 shares it out again, with what PEFT has added
        return parameter.data.to(torch.float32, copy=True)


def _widen(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    dtype = next(module.parameters(recurse=False)).dtype
    return tuple(arg.to(dtype) if isinstance(arg, Tensor) and arg.is_floating_point() else arg for arg in args)


def _narrow(module: nn.Module, args: tuple[Any, ...], output: Any, dtype: torch.dtype) -> Any:
    return output.to(dtype) if isinstance(output, Tensor) and output.is_floating_point() else output
