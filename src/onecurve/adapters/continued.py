"""Puts the values of a saved adapter into a model that was given the same adapter anew, to train it further."""

from pathlib import Path
from typing import Any

from peft import PeftConfig, load_peft_weights
from torch import Tensor

from onecurve.adapters.buffers import adapter_buffers
from onecurve.adapters.folder import Continued
from onecurve.adapters.read_back import given_by
from onecurve.errors import ConfigError

_NAMED = 5


def continued_config(continued: Continued, task_type: str | None) -> Any:
    """Return the adapter's own PEFT config, ready to train.

    Raises:
        ConfigError: PEFT cannot read it, or it was made for another kind of model.
    """
    try:
        config = PeftConfig.from_pretrained(str(continued.folder))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{str(continued.folder)!r} cannot be read: {error}", where="model.path") from None
    made_for = getattr(config.task_type, "value", config.task_type)
    if None not in (made_for, task_type) and made_for != task_type:
        raise ConfigError(
            f"the adapter {str(continued.folder)!r} is of a model for {made_for}, and this task trains {task_type}.",
            where="model.path",
        )
    config.task_type, config.inference_mode, config.revision = task_type, False, None
    config.base_model_name_or_path = None  # filled in with the base that it is put on
    return config


def check_targets(config: Any, anew: Any, model: Any, folder: Path) -> None:
    """Compare the layers of an adapter with those that `target_modules: all-linear` means on this model.

    Raises:
        ConfigError: They differ.
    """
    from peft.tuners.tuners_utils import _maybe_include_all_linear_layers

    expanded: Any = _maybe_include_all_linear_layers(anew, model)
    layers = expanded.target_modules
    if isinstance(config.target_modules, set | list) and set(config.target_modules) != set(layers):
        own = ", ".join(sorted(config.target_modules))
        raise ConfigError(
            f"is all-linear, here {', '.join(sorted(layers))}; the adapter {str(folder)!r} has {own}.",
            where="peft.target_modules",
            fix="Remove the setting: the adapter has its own.",
        )


def saved_values(model: Any, folder: Path) -> dict[str, Tensor]:
    """Read an adapter's values by the names of the model's parameters and buffers; nothing is changed.

    Raises:
        ConfigError: The file cannot be read, or it does not have all that would be trained.
    """
    try:
        given = given_by(model, load_peft_weights(str(folder), device="cpu"))
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise _misfit(folder, f"PEFT cannot load it: {str(error).strip().splitlines()[0]}") from None
    groups: dict[int, list[str]] = {}
    trained = [(name, p) for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad]
    for name, parameter in trained:
        groups.setdefault(id(parameter), []).append(name)  # what modules share is stored under one of its names
    lacking = [names[0] for names in groups.values() if not given.keys() & set(names)]
    if lacking:
        more = f" and {len(lacking) - _NAMED} more" if len(lacking) > _NAMED else ""
        raise _misfit(folder, f"it does not hold {', '.join(lacking[:_NAMED])}{more}")
    held = dict(trained) | dict(adapter_buffers(model, aliases=True))
    shapes = {name: tuple(getattr(value, "ds_shape", value.shape)) for name, value in held.items()}
    values = {name: given[name] for name in held if name in given}
    wrong = [f"{n} {list(v.shape)} for {list(shapes[n])}" for n, v in values.items() if tuple(v.shape) != shapes[n]]
    if wrong:
        raise _misfit(folder, f"it has {', '.join(wrong[:_NAMED])}")
    return values


def _misfit(folder: Path, reason: str) -> ConfigError:
    return ConfigError(f"the adapter {str(folder)!r} cannot be trained further here: {reason}.", where="model.path")
