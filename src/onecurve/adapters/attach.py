"""Adds an adapter to a model: target modules, modules trained in full, and checks that method and model fit."""

import inspect
from typing import Any

from peft import PeftConfig, get_peft_model
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING
from torch import nn
from transformers import PreTrainedModel

from onecurve.adapters.fields import build_config
from onecurve.adapters.trained_dtype import train_in_float32
from onecurve.config import PeftSection
from onecurve.errors import ConfigError
from onecurve.machine.cpu_draws import DrawnOnCpu

_HEADS = {"SEQ_CLS": ("classifier", "score"), "TOKEN_CLS": ("classifier", "score")}
"""Heads that PEFT itself trains and saves, by task type."""
_NOT_LINEAR = {"BEFT", "BOTTLENECK", "LN_TUNING", "TRAINABLE_TOKENS"}
"""Methods whose targets are not linear layers at large: for them `all-linear` is no default."""


def attach(
    model: PreTrainedModel,
    section: PeftSection,
    task_type: str | None,
    new_modules: list[str],
    revision: str | None,
) -> nn.Module:
    """Do what `add_adapter` says with a section that is there."""
    config = build_config(section, task_type)
    method = str(config.peft_type.value)  # type: ignore[union-attr]
    if config.is_prompt_learning:
        _check_prompt(model, config, method)
        _fill_sizes(model, config)
    _fill_targets(model, config, method)
    _train_new_modules(config, method, new_modules)
    _check_copied(model, config, method)
    try:
        with DrawnOnCpu():  # some methods draw where the base lies, which may be a GPU
            adapted = get_peft_model(model, config, revision=revision)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise _misfit(method, model, str(error)) from error
    train_in_float32(adapted)
    _check_trained(adapted, model, method, new_modules)
    return adapted


def _misfit(method: str, model: PreTrainedModel, reason: str) -> ConfigError:
    return ConfigError(
        f"{method.lower()} does not fit {type(model).__name__}: {reason.rstrip('.')}.", where="peft.method"
    )


def _check_prompt(model: PreTrainedModel, config: PeftConfig, method: str) -> None:
    if config.task_type is None:
        raise _misfit(method, model, "its virtual tokens need a task type of PEFT, and this task has none")
    if method == "PREFIX_TUNING":
        if not _takes_a_cache(model):
            raise _misfit(method, model, "a prefix is a key-value cache, which this model does not support")
    elif config.task_type == "SEQ_CLS" and (hasattr(model, "score") or model.config.is_encoder_decoder):
        # Measured: logits of a padded text differ by 0.1 from those of the text alone, without an error.
        raise _misfit(
            method,
            model,
            "it passes embeddings to the model, but this model finds a text's last token by its id, so a padded text "
            "would be classified from its padding; use prefix_tuning or lora",
        )


def _takes_a_cache(model: PreTrainedModel) -> bool:
    # PEFT asks the model itself, then its first inner model, and only in the first forward pass.
    inner = next((child for child in model.children() if isinstance(child, PreTrainedModel)), model)
    return any("past_key_values" in inspect.signature(part.forward).parameters for part in (model, inner))


def _fill_sizes(model: PreTrainedModel, config: Any) -> None:
    # PEFT reads the config's dict, where DistilBERT and others spell these sizes in their own way.
    for field, name in (
        ("token_dim", "hidden_size"),
        ("num_attention_heads", "num_attention_heads"),
        ("num_layers", "num_hidden_layers"),
    ):
        if getattr(config, field) is None:
            setattr(config, field, getattr(model.config, name, None))


def _fill_targets(model: PreTrainedModel, config: Any, method: str) -> None:
    """Target all linear layers where the recipe names none and PEFT knows none for this type of model."""
    if config.is_prompt_learning or config.is_adaption_prompt or method in _NOT_LINEAR:
        return
    if config.target_modules is not None or getattr(config, "target_parameters", None):
        return
    tuner: Any = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]
    known = getattr(tuner, "target_module_mapping", TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING)
    if model.config.model_type in known:
        return
    config.target_modules = "all-linear"
    if method == "IA3" and config.feedforward_modules is None:
        config.feedforward_modules = set()  # every layer is scaled at its output


def _train_new_modules(config: Any, method: str, new_modules: list[str]) -> None:
    """Have the new modules trained whole and saved with the adapter."""
    if not new_modules:
        return
    if not hasattr(config, "modules_to_save"):
        raise ConfigError(
            f"{method.lower()} cannot train a new {', '.join(new_modules)} together with the adapter.",
            where="peft.method",
            fix="Use another method, or a checkpoint that has these weights.",
        )
    kept = list(config.modules_to_save or [])
    covered = [*kept, *_HEADS.get(str(config.task_type), ())]
    # Outermost first: a module wrapped whole must not be wrapped again inside, or half of it is saved twice.
    for name in sorted(set(new_modules), key=lambda name: (name.count("."), name)):
        if not any(f".{whole}." in f".{name}." for whole in covered):
            kept.append(name)
            covered.append(name)
    config.modules_to_save = kept or None


def _check_copied(model: PreTrainedModel, config: Any, method: str) -> None:
    """Refuse to train a copy of a module that is kept quantised: codes have no gradient."""
    copied = tuple(f".{name}" for name in getattr(config, "modules_to_save", None) or ())
    for name, parameter in model.named_parameters():
        owner = f".{name.rpartition('.')[0]}"
        if copied and owner.endswith(copied) and not parameter.is_floating_point():
            raise _misfit(method, model, f"modules_to_save has {owner[1:]}, which model.quantization keeps in codes")


def _check_trained(adapted: nn.Module, model: PreTrainedModel, method: str, new_modules: list[str]) -> None:
    trained = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    if any(p.numel() == 0 and not hasattr(p, "ds_shape") for p in trained.values()):
        raise _misfit(method, model, "it copies weights that ZeRO-3 has partitioned; use ZeRO-2 or another method")
    names = [f".{name.replace('.modules_to_save.default', '')}" for name in trained]
    for module in new_modules:
        assert any(f".{module}." in name for name in names), f"{module} is new, but PEFT left it frozen"
