"""Which dropout a recipe leaves active: with it, another micro-batch split draws other masks."""

from collections.abc import Iterator
from typing import Any

from onecurve.config import Recipe
from onecurve.tasks.base import Task


def active_dropout(recipe: Recipe, task: Task) -> list[str]:
    """List, as `name value`, every non-zero dropout setting of the model's config and of the adapter's.

    Read off the settings' names; one that the model ignores is listed too.

    Raises:
        ConfigError: The model's config or the adapter's settings cannot be read.
    """
    from onecurve.model.reading import load_config

    found = list(_non_zero(load_config(recipe.model).to_dict()))
    if recipe.peft:
        from onecurve.adapters.fields import build_config

        found += _non_zero(build_config(recipe.peft, task.peft_task_type).to_dict())
    return found


def _non_zero(settings: dict[Any, Any]) -> Iterator[str]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _non_zero(value)
        elif "drop" in str(name) and isinstance(value, (int, float)) and value > 0:
            yield f"{name} {value}"
