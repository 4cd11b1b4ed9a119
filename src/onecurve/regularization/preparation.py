"""What cures ask of a model: checked on its skeleton before any weights load, and done to the loaded model."""

from typing import Any

import torch

from onecurve.config import Recipe
from onecurve.errors import ConfigError
from onecurve.regularization.dropout import largest, set_in_config, set_in_modules
from onecurve.regularization.embeddings import input_embedding


def check_model(recipe: Recipe, auto_model: Any, config: Any) -> None:
    """Check that a model has what the recipe's cures act on.

    Args:
        recipe: The run.
        auto_model: Builds the model, on `meta`: nothing is allocated or computed.
        config: The model's.

    Raises:
        ConfigError: It has no dropout, or no token embeddings.
    """
    section = recipe.regularization
    if section.dropout is None and not section.r_drop and not section.on_embeddings:
        return
    with torch.device("meta"):
        skeleton = auto_model.from_config(config, trust_remote_code=True)
    kind, found = type(skeleton).__name__, largest(skeleton)
    if section.dropout is not None and found is None:
        raise ConfigError(f"{kind} has no dropout.", where="regularization.dropout", fix="Remove it.")
    dropout = found if section.dropout is None else section.dropout
    if section.r_drop and not dropout and not _of_adapter(recipe):
        raise ConfigError(
            f"compares predictions under different dropout masks, and {kind} has no dropout above 0.",
            where="regularization.r_drop",
            fix="Remove it." if found is None else "Set regularization.dropout, such as 0.1.",
        )
    if section.on_embeddings and input_embedding(skeleton) is None:
        where = f"regularization.{section.on_embeddings[0]}"
        raise ConfigError(f"{kind} looks up no token embeddings.", where=where, fix="Remove it.")


def prepare(model: Any, recipe: Recipe) -> None:
    """Do to a loaded model, before any adapter, what the recipe's cures ask for; it remembers what was changed."""
    value = recipe.regularization.dropout
    if value is not None:
        set_in_config(model.config, value)
        model.dropout_remark = set_in_modules(model, value)


def _of_adapter(recipe: Recipe) -> bool:
    extras = recipe.peft.extras if recipe.peft else {}
    return any("dropout" in name and value for name, value in extras.items())
