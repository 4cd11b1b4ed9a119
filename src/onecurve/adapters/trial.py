"""Tries an adapter on a model without weights, so that one that does not fit is refused before any weights load."""

import re
from collections.abc import Iterable
from copy import deepcopy
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from onecurve.adapters.attach import attach
from onecurve.config import PeftSection
from onecurve.errors import ConfigError

_FROM_WEIGHTS = "init_lora_weights"
"""The field by which some methods start from the base's weights, which are not there yet."""
_LISTS = ("target_modules", "modules_to_save")


def try_adapter(skeleton: Any, section: PeftSection, task_type: str | None, new_modules: list[str]) -> None:
    """Add the adapter to a copy of a model on the meta device, and forget that.

    Raises:
        ConfigError: The method does not fit the model, or a module that the recipe names is not there.
    """
    for key in _LISTS:
        if named := section.extras.get(key):
            _check_names(skeleton, f"peft.{key}", named)
    settings = {name: value for name, value in section.extras.items() if name != _FROM_WEIGHTS}
    try:
        trial = PeftSection(method=section.method, **settings)
        attach(deepcopy(skeleton), trial, task_type, new_modules, revision=None, continued=None)
    except ConfigError as error:
        if not isinstance(error.__cause__, NotImplementedError):  # it computes from the weights
            raise


def _check_names(model: nn.Module, key: str, named: str | Iterable[str]) -> None:
    """Refuse a name or pattern that no module has; PEFT passes over one of several without a word."""
    names = [name for name, _ in model.named_modules()]
    if isinstance(named, str):
        if named == "all-linear" or any(_pattern(key, named).fullmatch(name) for name in names):
            return
        absent = [named]
    else:
        absent = [one for one in named if not any(f".{name}".endswith(f".{one}") for name in names)]
    if absent:
        layers = (name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D))
        known = dict.fromkeys(name.rpartition(".")[-1] for name in layers)
        raise ConfigError(
            f"no module of {type(model).__name__} is called {', '.join(absent)}.",
            where=key,
            fix=f"Its linear layers are {', '.join(known)}; all-linear means all but the head.",
        )


def _pattern(key: str, text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise ConfigError(f"{text!r} is not a regular expression: {error}.", where=key) from None
