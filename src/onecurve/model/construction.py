"""How a model is built: the dtype and device of its weights, and whether ZeRO-3 partitions them as they are made."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from onecurve.config import ModelSection, Recipe
from onecurve.machine.accelerator import accelerator_of
from onecurve.model.quantization import quantized_loading


def dtype_of_weights(recipe: Recipe, precision: str) -> torch.dtype:
    """Return what the weights are loaded in: half precision only where they stay frozen."""
    asked: str = recipe.model.dtype
    if asked == "auto":
        asked = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}[precision] if recipe.peft else "float32"
    return getattr(torch, asked)


def loading_options(
    section: ModelSection,
    auto_model: Any,
    config: Any,
    dtype: torch.dtype,
    computed_in: torch.dtype,
    device: torch.device | None,
) -> dict[str, Any]:
    """Return the keyword arguments of `from_pretrained`."""
    options = {"dtype": dtype, **quantized_loading(section, auto_model, config, computed_in)}
    options |= onto(device, quantized=bool(section.quantization))
    if section.attn_implementation:
        options["attn_implementation"] = section.attn_implementation
    return options


def onto(device: torch.device | None, quantized: bool) -> dict[str, Any]:
    """Return what has transformers read weights straight onto an accelerator, where nothing else decides that."""
    from transformers.integrations import is_deepspeed_zero3_enabled

    if device is None or accelerator_of(device) is None or quantized or is_deepspeed_zero3_enabled():
        return {}
    return {"device_map": {"": device}}


@contextmanager
def partitioned_in(dtype: torch.dtype) -> Iterator[None]:
    """Have ZeRO-3 create parameters in a dtype: it goes by its own config, which says nothing of precision."""
    from transformers.integrations import deepspeed

    config = deepspeed.deepspeed_config() if deepspeed.is_deepspeed_zero3_enabled() else None
    key = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype)
    if config is None or key is None:
        yield
        return
    before = config.get(key)
    config[key] = {"enabled": True}
    try:
        yield
    finally:
        del config[key]
        config |= {key: before} if before is not None else {}


@contextmanager
def whole_parameters() -> Iterator[None]:
    """Build and load models whole, also where ZeRO-3 would partition them as they are created."""
    from transformers.integrations import deepspeed

    saved = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = saved
