"""How a step runs across ranks: one file per strategy, chosen by the launch."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onecurve.config import Recipe
from onecurve.errors import ConfigError
from onecurve.machine.distributed import uses_deepspeed

if TYPE_CHECKING:
    from accelerate import Accelerator

    from onecurve.strategies.base import Strategy


_NOT_ON_SHARES = {
    "adafactor": "needs whole matrices, but ZeRO gives each rank a flat slice of them",
    "adamw_8bit": "scales its moments by blocks of a whole tensor, and where ZeRO cuts a rank's flat share depends on "
    "how many ranks there are",
}
"""Optimizers that ZeRO cannot carry out, each with its reason."""


def check_strategy(recipe: Recipe) -> None:
    """Check, before any process group, that the DeepSpeed file and the recipe do not contradict each other.

    Raises:
        ConfigError: A number or switch the recipe owns stands in the file with another value, or the optimizer
            cannot work on flat shares.
    """
    if not uses_deepspeed():
        return
    _check_optimizer(recipe)
    path = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "")
    if not path or path == "none":
        _check_stage(int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")), recipe)
        return
    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot be read: {error}.", where=path) from None
    _check_stage(config.get("zero_optimization", {}).get("stage", 0), recipe)
    owned: dict[str, tuple[str, Any]] = {
        "train_batch_size": ("train.global_batch_size", recipe.train.global_batch_size),
        "train_micro_batch_size_per_gpu": (recipe.train.cut_by, recipe.train.micro_batch_size),
        "gradient_clipping": ("optim.max_grad_norm", recipe.optim.max_grad_norm),
        "gradient_accumulation_steps": ("train.global_batch_size and the number of ranks", None),
        "optimizer": ("optim", None),
        "scheduler": ("optim.schedule", None),
        **dict.fromkeys(("bf16", "fp16", "torch_autocast", "amp"), ("train.mixed_precision", None)),
    }
    for key, (setting, value) in owned.items():
        if config.get(key, "auto") not in ("auto", value):
            raise ConfigError(
                f"'{key}' is {config[key]!r}, but the recipe's {setting} decides that"
                + (f" ({value})." if value is not None else "."),
                where=path,
                fix='Remove the key or write "auto".',
            )


def _check_stage(stage: int, recipe: Recipe) -> None:
    if stage == 3 and recipe.train.activations == "selective":
        # Where a layer is computed again, other parameters have to be gathered, and biases are added in place to what
        # was kept: measured, this fails with Llama and trains BERT wrongly without a word
        raise ConfigError(
            "selective does not work with ZeRO-3, which gathers a layer's parameters again for the recomputation.",
            where="train.activations",
            fix="Use recompute or offload, or ZeRO-2.",
        )
    if stage == 3 and recipe.train.compile:
        raise ConfigError(
            "a compiled graph needs all parameters, but ZeRO-3 gathers them while a layer runs.",
            where="train.compile",
            fix="Use ZeRO-2 or DDP, or set it to false.",
        )
    if stage == 3 and recipe.model.add_tokens and recipe.peft:
        raise ConfigError(
            "PEFT cannot train single rows of embeddings that ZeRO-3 has partitioned.",
            where="model.add_tokens",
            fix="Use ZeRO-2 or DDP, or remove peft.",
        )
    if stage == 3 and recipe.model.quantization:
        raise ConfigError(
            f"ZeRO-3 partitions single weights, but {recipe.model.quantization} weights can only be decoded with the "
            "scales of their whole block.",
            where="model.quantization",
            fix="Use ZeRO-2 or DDP, where every rank holds the quantised base, or remove it.",
        )


def _check_optimizer(recipe: Recipe) -> None:
    if recipe.optim.name in _NOT_ON_SHARES:
        raise ConfigError(
            f"{recipe.optim.name} {_NOT_ON_SHARES[recipe.optim.name]}.",
            where="optim.name",
            fix=f"Use adamw under ZeRO, or {recipe.optim.name} under DDP.",
        )
    if recipe.optim.rounding:
        raise ConfigError(
            f"ZeRO updates float32 master weights, so there is nothing to round ({recipe.optim.rounding}).",
            where="optim.rounding",
            fix="Remove it and model.dtype under ZeRO, or launch with ddp.yaml.",
        )


def build_strategy(accelerator: "Accelerator", recipe: Recipe, precision: str) -> "Strategy":
    """Build the strategy of the world that was started."""
    from accelerate.utils import DistributedType

    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        from onecurve.strategies.zero import Zero

        return Zero(accelerator, precision, recipe.optim.max_grad_norm, recipe.train.examples_a_pass)
    from onecurve.strategies.plain import Plain

    return Plain(accelerator, precision, recipe.optim.max_grad_norm)
