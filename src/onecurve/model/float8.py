"""Linear layers that multiply in float8, by torchao; everything else is as with bf16."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from torch import nn

from onecurve.config import Recipe
from onecurve.errors import ConfigError, LaunchError

_MULTIPLE = 16
"""Of which both sizes of a weight must be."""


def check_float8(recipe: Recipe) -> None:
    """Check, before any weights load, that a recipe with fp8 can run.

    Raises:
        ConfigError: It trains an adapter.
        LaunchError: torchao is not installed.
    """
    if recipe.peft:
        raise ConfigError(
            f"fp8 is only for full fine-tuning, but peft.method is {recipe.peft.method}: torchao would compute "
            "the gradients of frozen weights too.",
            where="train.mixed_precision",
            fix="Set it to bf16.",
        )
    if find_spec("torchao") is None:
        raise LaunchError(
            "fp8 needs the package torchao, which is not installed.",
            where="train.mixed_precision",
            fix='Install it with `pip install "onecurve[fp8]"`.',
        )


def compute_in_float8(model: Any, emulated: bool) -> None:
    """Have a model's linear layers multiply in float8, but for its head and those whose sizes do not allow it.

    Of torchao's recipes, rowwise_with_gw_hp is the one in which what a token gives depends on no other token of its
    pass, so that how a step is cut into passes does not decide its curve: activations and their gradients are scaled
    token by token, and the product over tokens, which gives the gradient of the weight, stays in bfloat16. So the
    number of tokens need not be a multiple of 16 either. Measured in float32 outside the products, one pass of 16
    examples against 16 passes, with a token of large activations: gradients 2e-7 apart, as without float8; 3e-7 with
    rowwise, 0.11 with tensorwise, which torchao calls the fastest, and this the most accurate. The formats and the
    scaling are those of Micikevicius et al., FP8 formats for deep learning, 2022, but for e4m3 for gradients too and
    scales rounded down to powers of two.

    What is left of a cut is bfloat16's rounding, magnified where it changes which of float8's values is nearest.
    Measured with tiny models against one process, on two and three ranks, packed and in other micro-batches: over 30
    steps losses within 7e-4 (bf16: 3e-4), over 6 steps, under ZeRO too, within 5e-4, gradient norms within 2e-2.

    Args:
        model: A transformers model without adapter, changed in place: its parameters and their names stay.
        emulated: Round to float8 and multiply in float32, which any device can.

    Raises:
        ConfigError: No layer can be computed so.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    from onecurve.model.float8_linear import Float8Linear

    layers = {
        module
        for module in model.base_model.modules()
        # Not of a subclass, which may do something else with its weight
        if type(module) is nn.Linear and module.in_features % _MULTIPLE == module.out_features % _MULTIPLE == 0
    }
    if not layers:
        raise ConfigError(
            f"below its head {type(model).__name__} has no linear layer with sizes that are multiples of {_MULTIPLE}.",
            where="train.mixed_precision",
            fix="Set it to bf16.",
        )
    config = replace(Float8LinearConfig.from_recipe_name("rowwise_with_gw_hp"), emulate=emulated)
    convert_to_float8_training(model, config=config, module_filter_fn=lambda module, _: module in layers)
    for layer in _float8_layers(model):
        layer.__class__ = Float8Linear


@contextmanager
def in_full_precision(model: nn.Module) -> Iterator[None]:
    """Have layers that multiply in float8 multiply what they are given as it is, for a while."""
    layers = _float8_layers(model)
    kinds = [type(layer) for layer in layers]
    for layer in layers:
        layer.__class__ = nn.Linear
    try:
        yield
    finally:
        for layer, kind in zip(layers, kinds, strict=True):
            layer.__class__ = kind


def describe_float8(model: nn.Module) -> str:
    """Return how many linear layers multiply in float8; empty where none does."""
    converted, total = len(_float8_layers(model)), sum(isinstance(module, nn.Linear) for module in model.modules())
    return f"float8    {converted} of {total} linear layers multiply in it" if converted else ""


def _float8_layers(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if hasattr(module, "linear_mm_config")]
