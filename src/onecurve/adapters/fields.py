"""Checks a PEFT method's name, fields and their types, before any weights load."""

import dataclasses
import types
from copy import deepcopy
from importlib.util import find_spec
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from onecurve.adapters import bottleneck  # noqa: F401  (registers itself with PEFT)
from onecurve.adapters.ranges import out_of_range
from onecurve.adapters.refused import METHODS, refusal
from onecurve.config import PeftSection, meant, nearest
from onecurve.errors import ConfigError

_OURS = {field.name for field in dataclasses.fields(PeftConfig)}
"""Fields that describe the run rather than the method (task type, base model, versions): filled in, never asked for."""
_DERIVED = {"token_dim", "encoder_hidden_size", "target_modules"}
"""Fields whose absence PEFT fills in from the model."""
_PROMPTS = {"prefix_tuning", "prompt_tuning", "p_tuning"}
_COMMON = {*_PROMPTS, "lora", "ia3", "adaption_prompt", "bottleneck"}
"""Asked first for what a misspelt method means: `lroa` is as near to `road` as to `lora`."""
_BESIDE_LINEAR = {*_PROMPTS, "adaption_prompt", "bottleneck", "ln_tuning", "trainable_tokens"}
"""Methods that never touch linear layers, so they work on quantised ones."""
_SPELT = {
    "dora": "lora with use_dora: true",
    "qlora": "lora, with model.quantization: nf4",
    "rslora": "lora with use_rslora: true",
    "llama_adapter": "adaption_prompt",
    "houlsby": "bottleneck with variant: houlsby",
    "pfeiffer": "bottleneck with variant: pfeiffer",
}
"""Common name of a method -> how to write it in a recipe."""
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", dict: "a map", list: "a list"}


def virtual_tokens(section: PeftSection) -> int:
    """Count the positions that a method takes from the model's longest sequence."""
    if _canonical(section.method) not in _PROMPTS:
        return 0
    return int(section.extras.get("num_virtual_tokens") or 0)


def check_adapter(section: PeftSection, quantized: bool) -> None:
    """Do what `onecurve.adapters.check_adapter` says with a section that is there."""
    build_config(section, task_type=None)
    if quantized and not _takes_quantized(_canonical(section.method)):
        # Measured: others fail in the first pass, or take the codes of int8 for weights and train on
        raise ConfigError(
            f"{section.method} does not work on quantised layers.",
            where="peft.method",
            fix="Use lora, ia3, bottleneck or prefix_tuning, or remove model.quantization.",
        )


def build_config(section: PeftSection, task_type: str | None) -> PeftConfig:
    """Build the method's own PEFT config.

    Args:
        section: The recipe's `peft` section.
        task_type: PEFT's name for the kind of model, such as SEQ_CLS.
    """
    method = _canonical(section.method)
    kinds = _settable(_config_class(method))
    problems = [line for key, value in section.extras.items() if (line := _problem(method, key, value, kinds))]
    problems += [
        f"Missing setting 'peft.{name}': {method} needs it."
        for name in _required(_config_class(method), kinds)
        if section.extras.get(name) is None
    ]
    if len(section.extras.keys() - kinds.keys()) > 1:  # another method's
        problems.append(f"To replace the whole section on the command line: --peft '{{method: {method}, ...}}'.")
    if problems:
        raise ConfigError("\n".join(problems))
    try:
        # A copy: PEFT extends modules_to_save in place, and the recipe is frozen.
        return _config_class(method)(task_type=task_type, **deepcopy(section.extras))
    except (ValueError, TypeError, NotImplementedError, ImportError) as error:
        raise ConfigError(f"invalid settings of {method}: {error}", where="peft") from error


def _takes_quantized(method: str) -> bool:
    # PEFT keeps what a method does on layers of bitsandbytes in a file of its own
    package = _config_class(method).__module__.rpartition(".")[0]
    return method in _BESIDE_LINEAR or find_spec(f"{package}.bnb") is not None


def _canonical(method: str) -> str:
    return method.lower().replace("-", "_")


def _config_class(method: str) -> type[PeftConfig]:
    known = {str(kind.value).lower(): config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if method in METHODS:
        raise ConfigError(f"{method} is not supported: {METHODS[method]}.", where="peft.method")
    if method not in known:
        hint = _meant(method, known.keys() - METHODS.keys())
        raise ConfigError(f"'{method}' is not a method of PEFT. {hint}", where="peft.method")
    return known[method]


def _meant(method: str, choices: set[str]) -> str:
    if method in _SPELT:
        return f"Write {_SPELT[method]}."
    common = nearest(method, _COMMON)
    return common if common.startswith("Did") else nearest(method, choices)


def _settable(config_class: type[PeftConfig]) -> dict[str, Any]:
    kinds = get_type_hints(config_class)
    return {field.name: kinds[field.name] for field in dataclasses.fields(config_class) if field.name not in _OURS}


def _required(config_class: type[PeftConfig], kinds: dict[str, Any]) -> list[str]:
    # PEFT writes `num_virtual_tokens: int = None` for what must be given, and fails far away when it is not.
    return [
        field.name
        for field in dataclasses.fields(config_class)
        if field.default is None and kinds.get(field.name) in (int, str) and field.name not in _DERIVED
    ]


def _problem(method: str, key: str, value: Any, kinds: dict[str, Any]) -> str | None:
    if key not in kinds:
        return f"Unknown setting 'peft.{key}'. {meant(f'peft.{key}', [f'peft.{name}' for name in kinds])}"
    if reason := refusal(key, value):
        return f"peft.{key}: {value!r} is not supported: {reason}."
    if not _fits(value, kinds[key]):
        return f"peft.{key}: must be {_describe(kinds[key])}; got {value!r}."
    if rule := out_of_range(method, key, value):
        return f"peft.{key}: {rule}; got {value!r}."
    return None


def _fits(value: Any, kind: Any) -> bool:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin is Literal:
        return value in arguments
    if origin in (list, tuple):  # YAML has lists only
        return isinstance(value, (list, tuple)) and all(_fits(item, arguments[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(item, arguments[1]) for item in value.values())
    if kind in (int, float):  # a bool is an int to Python, never to a reader
        return isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
    return kind is Any or isinstance(value, kind)


def _describe(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(argument) for argument in arguments if argument is not type(None))
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (list, tuple):
        return f"a list of {_describe(arguments[0]).removeprefix('a ')}"
    return _WORDS.get(origin or kind, getattr(kind, "__name__", str(kind)))
