"""Freezes what `regularization.freeze` names, before anything is trained."""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from onecurve.config import RegularizationSection
from onecurve.errors import ConfigError
from onecurve.model.depth import find_depths
from onecurve.strategies.base import leave_out

EMBEDDINGS = "embeddings"
_NAMED = 3


def freeze(model: Any, section: RegularizationSection, called: Iterable[nn.Module]) -> str:
    """Freeze the parameters that a recipe names by pattern or by depth; they are saved as they were loaded.

    Args:
        model: With or without an adapter.
        section: The recipe's `regularization`.
        called: The model's modules in the order of their first calls.

    Returns:
        What is frozen, for the summary; empty where nothing is.

    Raises:
        ConfigError: A pattern names nothing that is trained, or what was drawn at random, or nothing would be left.
    """
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    chosen: dict[str, None] = {}
    for pattern in section.freeze:
        depths = find_depths(model, called, "regularization.freeze") if pattern == EMBEDDINGS else None
        found = [n for n in trained if (depths.is_embedding(n) if depths else fnmatchcase(n, pattern))]
        if not found:
            raise ConfigError(
                f"{pattern!r} matches no trained parameter; their names are such as {', '.join(trained[:_NAMED])}.",
                where="regularization.freeze",
                fix="Use * for any text, as in *.layer.0.*.",
            )
        chosen |= dict.fromkeys(found)
    if section.freeze_blocks:
        chosen |= dict.fromkeys(_lowest(model, section.freeze_blocks, called, trained))
    if chosen and len(chosen) == len(trained):
        raise ConfigError("nothing would be left to train.", where="regularization.freeze")
    if drawn := [name for name in chosen if name in getattr(model, "drawn", ())]:
        raise ConfigError(
            f"{', '.join(drawn[:_NAMED])} would stay as drawn at random: the model's folder has no such weights.",
            where="regularization.freeze",
            fix="Leave them out of the patterns.",
        )
    parameters = dict(model.named_parameters())
    for name in chosen:
        leave_out(parameters[name])
    more = f" and {len(chosen) - _NAMED} more" if len(chosen) > _NAMED else ""
    return f"frozen    {', '.join([*chosen][:_NAMED])}{more}: regularization.freeze" if chosen else ""


def _lowest(model: Any, number: int, called: Iterable[nn.Module], trained: list[str]) -> list[str]:
    key = "regularization.freeze_blocks"
    depths = find_depths(model, called, key)
    if number > depths.num_blocks:
        raise ConfigError(f"is {number}, and the model has {depths.num_blocks} blocks.", where=key, fix="Lower it.")
    return [name for name in trained if depths.of[name] > depths.num_blocks - number]
