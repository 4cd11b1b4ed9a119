"""The model: loaded or drawn, its head adapted to the labels, the same weights under every strategy."""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from onecurve.adapters import add_adapter, check_adapter
from onecurve.config import Recipe
from onecurve.errors import ConfigError
from onecurve.losses.chunked_head import chunk_logits
from onecurve.machine.distributed import computes_natively, resolve_precision
from onecurve.model.activations import keep_activations
from onecurve.model.compilation import check_compilation, compile_layers
from onecurve.model.float8 import check_float8, compute_in_float8
from onecurve.model.quantization import quantized_loading, require_bitsandbytes, settle_quantized
from onecurve.seeds import start_stream
from onecurve.strategies.precision import DTYPES
from onecurve.tasks.base import Survey, Task


def check_model(recipe: Recipe) -> tuple[str, str]:
    """Check, before any data is encoded, what the model and adapter sections and the precision ask for.

    Returns:
        The precision to compute in (no, bf16, fp16, fp8), and why it is that one where it needs saying.

    Raises:
        UserError: An adapter that PEFT does not know or cannot build so, weights trained in half precision, or a
            precision that the device can only emulate or that lacks its package.
    """
    check_adapter(recipe.peft, quantized=bool(recipe.model.quantization))
    if recipe.model.quantization:
        require_bitsandbytes("model.quantization", recipe.model.quantization)
    rounds = recipe.peft is None and recipe.model.dtype == "bfloat16"
    if recipe.optim.rounding and not rounds:
        raise ConfigError(
            f"{recipe.optim.rounding} is for trained weights in bfloat16, and here they are float32.",
            where="optim.rounding",
            fix="Remove it, or set model.dtype to bfloat16 and remove peft.",
        )
    if recipe.peft is None and recipe.model.dtype not in ("auto", "float32") and not recipe.optim.rounding:
        raise ConfigError(
            f"{recipe.model.dtype} is for frozen weights; trained ones are kept in float32.",
            where="model.dtype",
            fix="Remove it, set peft.method, or train in bfloat16 with optim.rounding.",
        )
    if recipe.train.compile:
        check_compilation(recipe)
    precision, remark = resolve_precision(recipe.train)
    if precision == "fp8":
        check_float8(recipe)
    return precision, remark


def load_model(recipe: Recipe, task: Task, config: Any, survey: Survey, precision: str) -> Any:
    """Load or draw the model a recipe names, with a head for the labels and the adapter it asks for.

    Args:
        recipe: The run.
        task: Names the kind of model and what its config must know.
        config: The model's config.
        survey: The label names.
        precision: What the run computes in: no, bf16, fp16, fp8.

    Raises:
        ConfigError: The weights cannot be read or are another model's, or the adapter does not fit.
    """
    section = recipe.model
    config.update(task.model_config(survey))
    dtype = _dtype(recipe, precision)
    auto_model: Any = task.auto_model()
    options: dict[str, Any] = {"dtype": dtype}
    options |= quantized_loading(section, auto_model, config, DTYPES.get(precision, dtype))
    if section.attn_implementation:
        options["attn_implementation"] = section.attn_implementation
    new_modules: list[str] = []
    try:
        if section.init == "random":
            # Outside ZeRO-3's partitioned construction, which would draw other weights from the same seed
            with whole_parameters():
                start_stream(recipe.seed, "weights")
                model = auto_model.from_config(config, **options)
        else:
            model, new_modules = _load_pretrained(recipe, auto_model, config, options)
    except pickle.UnpicklingError:
        raise ConfigError(
            f"{section.path!r} has weights in a pickle with more than tensors, which could run anything: not loaded.",
            where="model.path",
            fix="Take a folder with model.safetensors.",
        ) from None
    except (OSError, ValueError, SafetensorError) as error:
        line = str(error).strip().split("\n")[0]
        raise ConfigError(f"{section.path!r} cannot be used: {line}", where="model.path") from None
    model.config.architectures = [type(model).__name__]  # what an adapter's folder says of its base
    # transformers and PEFT then ask for the inputs' gradients, which only reentrant checkpointing needs
    model.enable_input_require_grads = lambda: None
    keep_activations(model, recipe.train.activations)
    if precision == "fp8":
        compute_in_float8(model, emulated=not computes_natively(precision))
    start_stream(recipe.seed, "adapter")
    adapted = add_adapter(model, recipe.peft, task_type=task.peft_task_type, new_modules=new_modules)
    del model.enable_input_require_grads
    if recipe.train.logits == "chunked":
        chunk_logits(adapted)
    if recipe.train.compile:
        compile_layers(adapted)
    return adapted


def _load_pretrained(recipe: Recipe, auto_model: Any, config: Any, options: dict[str, Any]) -> tuple[Any, list[str]]:
    section = recipe.model
    # A local folder by its full path: an adapter remembers where its base lies
    path = Path(section.path).expanduser()
    with _partitioned_in(options["dtype"]):
        model, found = auto_model.from_pretrained(
            str(path.resolve()) if path.is_dir() else section.path,
            config=config,
            revision=section.revision or "main",
            ignore_mismatched_sizes=True,  # a head for other labels: drawn anew below, and said
            output_loading_info=True,
            **options,
        )
    if any(hasattr(p, "ds_id") for p in model.parameters()):
        # Under ZeRO-3 transformers remembers every renaming it knows, not those this file needed, and would save
        # under names from before
        del model._weight_conversions
    new = {*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])}
    total = len(dict(model.named_parameters()))
    if len(new) * 2 > total:
        raise ConfigError(
            f"{section.path!r} gives {total - len(new)} of the {total} tensors of a {type(model).__name__}: "
            "these are another model's weights.",
            where="model.path",
        )
    modules = sorted({name.rpartition(".")[0] for name in new})
    if section.quantization:
        settle_quantized(model, modules)
    for name in modules:
        _draw(model, name, recipe.seed)
    return model, modules


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
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters(parameters, modifier_rank=0):
            yield
    else:
        yield


@contextmanager
def _partitioned_in(dtype: torch.dtype) -> Iterator[None]:
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


def _dtype(recipe: Recipe, precision: str) -> torch.dtype:
    """Return what the weights are loaded in: half precision only where they stay frozen."""
    asked: str = recipe.model.dtype
    if asked == "auto":
        asked = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}[precision] if recipe.peft else "float32"
    return getattr(torch, asked)
