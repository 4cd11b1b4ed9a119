"""Adds an adapter to a model: target modules, modules trained in full, and checks that method and model fit."""

import inspect
from collections.abc import Sequence
from typing import Any

from peft import PeftConfig, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from onecurve.adapters.continued import check_targets, continued_config
from onecurve.adapters.fields import build_config
from onecurve.adapters.folder import Continued
from onecurve.adapters.targets import fill_targets
from onecurve.adapters.trained_dtype import train_in_float32
from onecurve.config import PeftSection
from onecurve.errors import ConfigError
from onecurve.machine.cpu_draws import DrawnOnCpu

_HEADS = {"SEQ_CLS": ("classifier", "score"), "TOKEN_CLS": ("classifier", "score")}
"""Heads that PEFT itself trains and saves, by task type."""


def attach(
    model: PreTrainedModel,
    section: PeftSection,
    task_type: str | None,
    new_modules: list[str],
    revision: str | None,
    continued: Continued | None,
    new_tokens: Sequence[int] = (),
) -> nn.Module:
    """Do what `add_adapter` says with a section that is there."""
    config = _config(model, section, task_type, continued)
    method = str(config.peft_type.value)  # type: ignore[union-attr]
    if config.is_prompt_learning:
        _check_prompt(model, config, method)
        _fill_sizes(model, config)
    fill_targets(model, config, method)
    new_modules = [*new_modules, *(name for name in _of_several_heads(model) if name not in new_modules)]
    _train_new_modules(model, config, method, new_modules)
    _train_new_tokens(model, config, method, new_tokens)
    _check_copied(model, config, method)
    try:
        with DrawnOnCpu():  # some methods draw where the base lies, which may be a GPU
            adapted = get_peft_model(model, config, revision=revision)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise _misfit(method, model, str(error)) from error
    train_in_float32(adapted)
    _check_trained(adapted, model, method, new_modules)
    return adapted


def _of_several_heads(model: PreTrainedModel) -> list[str]:
    """Return what PEFT would train whole and save if each head were alone: of several, no task type tells it so."""
    if not hasattr(model.config, "task_heads"):
        return []
    heads: Any = model.heads
    return [f"heads.{head}.{name}" for head, part in heads.items() for name in _HEADS["SEQ_CLS"] if hasattr(part, name)]


def _config(
    model: PreTrainedModel, section: PeftSection, task_type: str | None, continued: Continued | None
) -> PeftConfig:
    config = build_config(section, task_type)
    if continued is None:
        return config
    own = continued_config(continued, task_type)
    if section.extras.get("target_modules") == "all-linear":
        check_targets(own, config, model, continued.folder)
    return own


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


def _train_new_modules(model: PreTrainedModel, config: Any, method: str, new_modules: list[str]) -> None:
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
            _check_untied(model, name, method)
            kept.append(name)
            covered.append(name)
    config.modules_to_save = kept or None


def _check_untied(model: PreTrainedModel, name: str, method: str) -> None:
    """Refuse to train a new module of which a part is the embeddings, as in a masked language model's head."""
    table = model.get_input_embeddings().weight if model.get_output_embeddings() is not None else None
    if any(parameter is table for parameter in model.get_submodule(name).parameters()):
        raise ConfigError(
            f"{method.lower()} cannot train the new {name}: it shares a weight with the embeddings, and PEFT would "
            "train a copy that is lost when the adapter is merged.",
            where="peft.method",
            fix="Use a checkpoint that has this head, or remove peft.",
        )


def _train_new_tokens(model: PreTrainedModel, config: Any, method: str, ids: Sequence[int]) -> None:
    """Have the rows of new tokens trained and saved with the adapter, of the output layer too where it has its own."""
    if not ids:
        return
    if getattr(config, "trainable_token_indices", False) is not None:
        raise ConfigError(
            f"{method.lower()} cannot train the embeddings of new tokens, or is told by the recipe which to train.",
            where="model.add_tokens",
            fix="Use lora without trainable_token_indices, or remove peft.",
        )
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    names = {module: name for name, module in model.named_modules()}
    tables = [inputs] if outputs is None or outputs.weight is inputs.weight else [inputs, outputs]
    config.trainable_token_indices = {names[table]: list(ids) for table in tables}


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
