"""The model: loaded or drawn, its head adapted to the labels, the same weights under every strategy."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from onecurve.config import Recipe
from onecurve.errors import ConfigError
from onecurve.seeds import start_stream


@dataclass(frozen=True)
class Loaded:
    """A model and which of its modules hold weights that no checkpoint gave."""

    model: Any
    new_modules: list[str]


def load_model(recipe: Recipe, auto_model: type[Any], config: Any, precision: str) -> Loaded:
    """Load or draw the model a recipe names.

    Args:
        recipe: The run.
        auto_model: The transformers `AutoModelFor...` class.
        config: The model's config, with what the task must tell it.
        precision: What the run computes in: no, bf16, fp16.

    Raises:
        ConfigError: The weights cannot be read, are another model's, or would be trained in half precision.
    """
    section = recipe.model
    options: dict[str, Any] = {"dtype": _dtype(recipe, precision)}
    if section.attn_implementation:
        options["attn_implementation"] = section.attn_implementation
    if section.init == "random":
        # Outside ZeRO-3's partitioned construction, which would draw other weights from the same seed
        with whole_parameters():
            start_stream(recipe.seed, "weights")
            loaded = Loaded(_read(auto_model.from_config, section.path, config, **options), [])  # type: ignore[attr-defined]
    else:
        loaded = _load_pretrained(recipe, auto_model, config, options)
    if recipe.train.gradient_checkpointing:
        loaded.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        loaded.model.enable_input_require_grads()
    return loaded


def _load_pretrained(recipe: Recipe, auto_model: Any, config: Any, options: dict[str, Any]) -> Loaded:
    section = recipe.model
    model, found = _read(
        auto_model.from_pretrained,
        section.path,
        config=config,
        revision=section.revision or "main",
        ignore_mismatched_sizes=True,  # a head for other labels: drawn anew below, and said
        output_loading_info=True,
        **options,
    )
    new = {*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])}
    total = len(dict(model.named_parameters()))
    if len(new) * 2 > total:
        raise ConfigError(
            f"{section.path!r} gives {total - len(new)} of the {total} tensors of a {type(model).__name__}: "
            "these are another model's weights.",
            where="model.path",
        )
    modules = sorted({name.rpartition(".")[0] for name in new})
    for name in modules:
        _draw(model, name, recipe.seed)
    return Loaded(model, modules)


def _read(load: Any, path: str, *args: Any, **options: Any) -> Any:
    try:
        return load(*args, **options) if args else load(path, **options)
    except (OSError, ValueError) as error:
        line = str(error).strip().split("\n")[0]
        raise ConfigError(f"the weights of {path!r} cannot be used: {line}", where="model.path") from None


def _draw(model: Any, name: str, seed: int) -> None:
    """Draw a module's own parameters from a stream named after it: the same ones under every strategy."""
    module = model.get_submodule(name)
    parameters = list(module.parameters(recurse=False))
    with _gathered(parameters):
        for parameter in parameters:
            parameter._is_hf_initialized = False  # transformers leaves flagged ones alone
        start_stream(seed, "weights", name)
        model._init_weights(module)


@contextmanager
def _gathered(parameters: list[nn.Parameter]) -> Iterator[None]:
    if any(hasattr(p, "ds_id") for p in parameters):
        from deepspeed.zero import GatheredParameters

        with GatheredParameters(parameters, modifier_rank=0):
            yield
    else:
        yield


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


def _dtype(recipe: Recipe, precision: str) -> torch.dtype:
    asked = recipe.model.dtype
    if recipe.peft is None:
        if asked not in ("auto", "float32"):
            raise ConfigError(
                f"{asked} is for frozen weights; trained ones are kept in float32.",
                where="model.dtype",
                fix="Remove it, or set peft.method.",
            )
        return torch.float32
    frozen = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}[precision] if asked == "auto" else asked
    return getattr(torch, frozen)
