"""Loads the base of an adapter that is trained further, and gives the adapter the values that were saved."""

from dataclasses import replace
from typing import Any

import torch

from onecurve.adapters import continued_by
from onecurve.adapters.folder import Continued
from onecurve.config import ModelSection, Recipe
from onecurve.model.drawing import place
from onecurve.model.pretrained import Fit


def base_section(recipe: Recipe) -> tuple[ModelSection, Continued | None]:
    """Return the model section of what is loaded, and the adapter to put on it where model.path is one."""
    continued = continued_by(recipe)
    if continued is None:
        return recipe.model, None
    return recipe.model.model_copy(update={"path": continued.base, "revision": continued.revision}), continued


@torch.no_grad()
def continue_adapter(adapted: Any, continued: Continued | None, fit: Fit | None) -> None:
    """Give an adapter its saved values, and correct what the model says is drawn at random: a head may be among them.

    Args:
        adapted: A PEFT model, partitioned by ZeRO-3 or not, with the adapter as PEFT begins it.
        continued: The saved adapter; None: nothing is done.
        fit: What the base's checkpoint gave.

    Raises:
        ConfigError: The adapter's file does not fit.
    """
    if continued is None:
        return
    from onecurve.adapters.continued import saved_values

    values = saved_values(adapted, continued.folder)
    parameters = dict(adapted.named_parameters(remove_duplicate=False))
    place(adapted, {name: value for name, value in values.items() if name in parameters})
    for name in values.keys() - parameters.keys():
        adapted.get_buffer(name).copy_(values[name])
    model = adapted.get_base_model()
    model.continued_from = str(continued.folder)
    saved = [f".{name.replace('.modules_to_save.default', '')}" for name in values]
    if fit is not None:
        new = {name: shape for name, shape in fit.new.items() if not any(s.endswith(f".{name}") for s in saved)}
        model.new_weights = replace(fit, new=new, reshaped={}).describe_new()
