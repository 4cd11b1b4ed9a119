"""Parameter groups, the optimizer, and the learning rate as a function of the step."""

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from onecurve.config import OptimSection, explain, meant
from onecurve.errors import ConfigError
from onecurve.model.quantization import require_bitsandbytes
from onecurve.optim import optimizers, schedules

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


def check_optim(section: OptimSection) -> dict[str, Any]:
    """Check the optimizer's and schedule's settings; return the optimizer's own settings, resolved.

    Raises:
        ConfigError: No such optimizer or schedule, or a setting that it does not know, cannot take or would ignore.
    """
    build = _pick(optimizers, "optim.name", section.name)
    if build is optimizers.adamw_8bit:
        require_bitsandbytes("optim.name", section.name)
    _pick(schedules, "optim.schedule", section.schedule)
    schema = _settings_of(build)
    if unknown := section.extras.keys() - schema.model_fields.keys():
        key, known = f"optim.{min(unknown)}", {**type(section).model_fields, **schema.model_fields}
        told = meant(key, [f"optim.{name}" for name in known], section.extras)
        raise ConfigError(f"Unknown setting '{key}' of {section.name}. {told}")
    try:
        settings = schema.model_validate(section.extras).model_dump()
    except ValidationError as error:
        raise explain(error, schema, prefix="optim.") from None
    if settings.get("nesterov") and not settings["momentum"]:
        raise ConfigError("needs momentum.", where="optim.nesterov", fix="Set optim.momentum, such as 0.9.")
    return settings


def _settings_of(build: Callable[..., Any]) -> type[BaseModel]:
    """Return the schema of an optimizer's own settings: its keyword arguments."""
    own = {
        name: (parameter.annotation, parameter.default)
        for name, parameter in inspect.signature(build).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    fields: dict[str, Any] = own
    return create_model(build.__name__, __config__=ConfigDict(strict=True, allow_inf_nan=False), **fields)


_GAINS = ("ia3_l", "lora_magnitude_vector", "boft_s", "road_alpha", "vector_a", "vector_b")
"""PEFT's factors of a layer's input, output or weights. They start at 1, or at the weights' norm: decay towards 0 would
switch the layer off, as it would a normalisation's. transformers' Trainer decays them like any weight."""


def build_optimizer(model: "nn.Module", section: OptimSection) -> "Optimizer":
    """Build the optimizer over what is trained; weight decay leaves out biases, normalisation weights and gains.

    Prompts and prefixes are decayed, as embeddings are: they start around 0.

    Args:
        model: Whose trained parameters it updates. Where it has `learning_rates`, their shares of the learning rate,
            and `first_steps` (see `model.depth`), those of one share and step are a group of their own.
        section: The recipe's `optim`.
    """
    rates, first_steps = getattr(model, "learning_rates", {}), getattr(model, "first_steps", {})
    groups: dict[tuple[int, float, bool], dict[str, Any]] = {}
    for name, parameter, module in _trained(model):
        exempt = name.endswith("bias") or "norm" in type(module).__name__.lower() or _is_gain(name)
        groups.setdefault((first_steps.get(name, 1), -rates.get(name, 1.0), exempt), {})[name] = parameter
    if not groups:
        raise ConfigError("nothing is left to train: every weight is frozen.", where="peft")
    of_groups = [_group(*kind, section.weight_decay, groups[kind]) for kind in sorted(groups)]
    build = partial(_pick(optimizers, "optim.name", section.name), lr=section.lr, **check_optim(section))
    if section.rounding:
        from onecurve.optim.rounding import Rounded

        names = {parameter: name for name, parameter in model.named_parameters()}
        return Rounded(of_groups, section.lr, names, build, section.rounding)
    return build(of_groups)


def _group(
    first_step: int, minus_scale: float, exempt: bool, weight_decay: float, parameters: dict[str, Any]
) -> dict[str, Any]:
    decay = 0.0 if exempt else weight_decay
    group = {"params": [*parameters.values()], "weight_decay": decay, "lr_scale": -minus_scale}
    if first_step > 1:
        from onecurve.strategies.rates import Gate

        gate = group["gate"] = Gate(first_step)
        for name, parameter in parameters.items():
            gate.hold(name, parameter)
    return group


def _is_gain(name: str) -> bool:
    return any(part in _GAINS for part in name.split("."))


def lr_at(step: int, max_steps: int, section: OptimSection) -> float:
    """Return the learning rate of update `step` (1-based)."""
    decay_steps = section.decay_steps if section.decay_steps is not None else max(1, max_steps // 10)
    schedule = _pick(schedules, "optim.schedule", section.schedule)
    return section.lr * schedules.lr_factor(
        schedule, step - 1, max_steps, section.warmup_steps, decay_steps, section.min_lr_ratio
    )


def _trained(model: "nn.Module") -> Iterator[tuple[str, Any, "nn.Module"]]:
    # Groups go by name and owner's type: under ZeRO-3 every parameter looks one-dimensional
    seen = set()
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(prefix=prefix, recurse=False):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                yield name, parameter, module


def _pick(module: Any, key: str, name: str) -> Callable[..., Any]:
    own = {n: f for n, f in vars(module).items() if getattr(f, "__module__", "") == module.__name__}
    names = [n for n, f in own.items() if inspect.isfunction(f) and not n.startswith("_") and n != "lr_factor"]
    if name not in names:
        raise ConfigError(f"must be one of {', '.join(names)}; got {name!r}.", where=key)
    return getattr(module, name)
