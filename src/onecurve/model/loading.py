"""Loads or initialises the model and its head, with the same weights under every strategy."""

import re
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from onecurve.adapters import add_adapter, check_adapter, continued_by, try_adapter
from onecurve.config import ModelSection, Recipe
from onecurve.errors import ConfigError
from onecurve.losses.chunked_head import chunk_logits
from onecurve.losses.float32_output import return_float32
from onecurve.machine.distributed import computes_natively, resolve_precision
from onecurve.model.activations import keep_activations
from onecurve.model.architectures import check_architecture
from onecurve.model.attention_choice import check_attention
from onecurve.model.batch_norm import check_adapted, settle_batch_norm
from onecurve.model.compilation import check_compilation, compile_layers
from onecurve.model.construction import dtype_of_weights, loading_options, partitioned_in, whole_parameters
from onecurve.model.continuing import base_section, continue_adapter
from onecurve.model.drawing import draw, place, reorder
from onecurve.model.float8 import check_float8, compute_in_float8
from onecurve.model.head import HeadRows, settle_head
from onecurve.model.pretrained import Fit, read_fit
from onecurve.model.quantization import require_bitsandbytes, settle_quantized
from onecurve.model.reading import load_tokenizer
from onecurve.model.unloadable import explained
from onecurve.model.vocabulary import grow
from onecurve.regularization.preparation import check_model as check_cures
from onecurve.regularization.preparation import prepare
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
    continued_by(recipe)
    check_attention(recipe.model.attn_implementation)
    if recipe.model.quantization:
        require_bitsandbytes("model.quantization", recipe.model.quantization)
    if recipe.peft is None and recipe.model.dtype not in ("auto", "float32") and not recipe.optim.rounding:
        raise ConfigError(
            f"{recipe.model.dtype} is for frozen weights; trained ones are kept in float32.",
            where="model.dtype",
            fix="Remove it, set peft.method, or train in bfloat16 with optim.rounding.",
        )
    if recipe.peft and recipe.model.init == "random":
        raise ConfigError(
            "an adapter on weights drawn at random could not be loaded again: no file holds those weights.",
            where="model.init",
            fix="Set it to pretrained, or remove peft.",
        )
    if recipe.train.compile:
        check_compilation(recipe)
    precision, remark = resolve_precision(recipe.train)
    if precision == "fp8":
        check_float8(recipe)
    return precision, remark


def load_model(
    recipe: Recipe, task: Task, config: Any, survey: Survey, precision: str, device: torch.device | None = None
) -> Any:
    """Load or draw the model a recipe names, with a head for the labels and the adapter it asks for.

    Args:
        recipe: The run.
        task: Names the kind of model and what its config must know.
        config: The model's config.
        survey: The label names.
        precision: What the run computes in: no, bf16, fp16, fp8.
        device: An accelerator to read pretrained weights onto, so that the ranks of a machine do not hold as many
            copies in its memory; what is drawn is drawn on the CPU all the same. Default: the CPU.

    Raises:
        ConfigError: The weights cannot be read or are another model's, or the adapter does not fit.
        TrainingError: The device's memory does not hold the weights.
    """
    section, continued = base_section(recipe)
    auto_model: Any = task.auto_model()
    check_architecture(recipe, auto_model, config)
    head = HeadRows.find(config, survey)
    head.check_continued(continued, survey.order == "recipe")
    config.update(task.model_config(survey))
    with whole_parameters():
        check_cures(recipe, auto_model, config)
    dtype = dtype_of_weights(recipe, precision)
    options = loading_options(section, auto_model, config, dtype, DTYPES.get(precision, dtype), device)
    fit: Fit | None = None
    with explained(section.path, dtype, device):
        if section.init == "random":
            if new := _new_tokens(recipe):
                text = config.get_text_config()
                text.vocab_size = max(text.vocab_size, *(number + 1 for number in new.values()))
            # Outside ZeRO-3's partitioned construction, which would draw other weights from the same seed
            with whole_parameters():
                start_stream(recipe.seed, "weights")
                drawing = {key: value for key, value in options.items() if key != "device_map"}
                model = auto_model.from_config(config, trust_remote_code=True, **drawing)
        else:
            model, fit = _load_pretrained(section, recipe, auto_model, config, options, head, task.peft_task_type)
    _pad_without_effect(model, recipe)
    settle_batch_norm(model, section.batch_norm)
    prepare(model, recipe)
    model.task_remark = task.settle(model, pretrained=fit is not None)
    tokens = _new_tokens(recipe)
    grown = grow(model, tokens, recipe.seed) if tokens and fit else ""
    drawn = fit.describe_new() if fit else "all weights, drawn at random: model.init"
    model.new_weights = "; ".join(filter(None, [drawn, grown]))
    model.has_other_shapes = bool(grown or (fit and fit.reshaped))  # than its checkpoint
    model.drawn = frozenset(fit.new) if fit else frozenset()
    model.config.architectures = [type(model).__name__]  # what an adapter's folder says of its base
    # transformers and PEFT then ask for the inputs' gradients, which only reentrant checkpointing needs
    model.enable_input_require_grads = lambda: None
    keep_activations(model, recipe.train.activations)
    return_float32(model)
    if precision == "fp8":
        compute_in_float8(model, emulated=not computes_natively(precision))
    start_stream(recipe.seed, "adapter")
    adapted = add_adapter(
        model,
        recipe.peft,
        task_type=task.peft_task_type,
        new_modules=fit.new_modules if fit else [],
        revision=section.revision,
        continued=continued,
        new_tokens=list(tokens.values()),
    )
    continue_adapter(adapted, continued, fit)
    check_adapted(adapted)
    del model.enable_input_require_grads
    if recipe.train.logits == "chunked":
        chunk_logits(adapted, recipe.regularization.label_smoothing or 0.0)
    if recipe.train.compile:
        compile_layers(adapted)
    return adapted


def _new_tokens(recipe: Recipe) -> dict[str, int]:
    """Return the tokens that `model.add_tokens` names and their ids."""
    if not (names := recipe.model.add_tokens):
        return {}
    return dict(zip(names, load_tokenizer(recipe.model).convert_tokens_to_ids(names), strict=True))


def _load_pretrained(
    section: ModelSection,
    recipe: Recipe,
    auto_model: Any,
    config: Any,
    options: dict[str, Any],
    head: HeadRows,
    task_type: str | None,
) -> tuple[Any, Fit]:
    # A local folder by its full path: an adapter remembers where its base lies
    path = Path(section.path).expanduser()
    from_pretrained = partial(
        auto_model.from_pretrained,
        str(path.resolve()) if path.is_dir() else section.path,
        config=config,
        revision=section.revision or "main",
        trust_remote_code=section.trust_remote_code,
    )
    with whole_parameters():
        fit, axes, remark = settle_head(
            read_fit(from_pretrained, section.path, frozen=recipe.peft is not None), head, auto_model, config
        )
        if section is recipe.model:  # an adapter that is trained further fits: it has been trained
            try_adapter(fit.skeleton, recipe.peft, task_type, fit.new_modules)
    with whole_parameters() if _reads_its_weights(fit.skeleton) else partitioned_in(options["dtype"]):
        model, found = from_pretrained(
            ignore_mismatched_sizes=True,  # of the head, which `read_fit` has made sure of
            key_mapping=_set_aside(fit),
            output_loading_info=True,
            **options,
        )
    lost = {name for name, _ in model.named_parameters() if name in found["missing_keys"]} - fit.new.keys()
    assert not lost, f"the checkpoint gives {sorted(lost)}, which were not loaded"
    if any(hasattr(p, "ds_id") for p in model.parameters()):
        # Under ZeRO-3 transformers remembers every renaming it knows, not those this file needed, and would save
        # under names from before
        del model._weight_conversions
    if section.quantization:
        settle_quantized(model, fit.new_modules)
    place(model, draw(fit.skeleton, fit.new, recipe.seed))
    model.head_remark = remark
    if axes:
        reorder(model, axes, head.rows or [])
    return model, fit


@torch.no_grad()
def _pad_without_effect(model: Any, recipe: Recipe) -> None:
    """Train the padding token's embedding like any other, and have what generates pad with the same token.

    torch leaves that row out of the gradient, and transformers starts it at zero: right for a token that only pads, and
    of no effect, since no loss depends on padding. But the end of a text that also pads is read and learnt from.
    """
    try:
        table = model.get_input_embeddings()
    except NotImplementedError:  # CANINE hashes characters
        table = None
    for module in model.modules() if isinstance(table, nn.Module) and hasattr(table, "weight") else ():
        if isinstance(module, nn.Embedding) and module.weight is table.weight and module.padding_idx is not None:
            if recipe.model.init == "random":
                row = nn.Embedding(1, module.embedding_dim)
                start_stream(recipe.seed, "weights", "padding")
                model._init_weights(row)
                module.weight[module.padding_idx] = row.weight[0].to(module.weight.dtype)
            module.padding_idx = None
    if generation := getattr(model, "generation_config", None):
        generation.pad_token_id = getattr(model.config.get_text_config(), "pad_token_id", None)


def _reads_its_weights(skeleton: nn.Module) -> bool:
    """Whether building a model reads weights, so that ZeRO-3 cannot partition them meanwhile: its engine does later.

    DETR and its kin copy those of batch normalisation; wav2vec2 and its kin compute those of a convolution.
    """
    return any(is_parametrized(module) or "FrozenBatchNorm" in type(module).__name__ for module in skeleton.modules())


def _set_aside(fit: Fit) -> dict[str, str] | None:
    """Rename what has another shape to what the model does not have: under ZeRO-3 transformers cannot leave it out."""
    from transformers.integrations import is_deepspeed_zero3_enabled

    if not is_deepspeed_zero3_enabled():
        return None
    return {f"^{re.escape(name)}$": f"of_another_shape.{name}" for name in fit.reshaped} or None
