"""Parameter-efficient fine-tuning: PEFT's methods by PEFT's names, and the bottleneck adapter registered with PEFT.

PEFT is imported only where a recipe asks for a method.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from onecurve.adapters.folder import Continued, is_adapter
from onecurve.config import PeftSection, Recipe
from onecurve.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

__all__ = ["add_adapter", "check_adapter", "continued_by", "try_adapter", "virtual_tokens"]


def continued_by(recipe: Recipe) -> Continued | None:
    """Return the adapter that a run trains further: the one that lies at model.path; None where none does.

    Raises:
        ConfigError: The recipe has no `peft` section, or one of another method or other settings.
    """
    path, section = recipe.model.path, recipe.peft
    if recipe.model.init == "random" or not is_adapter(path):
        return None
    found = Continued.read(path)
    if section is None:
        raise ConfigError(
            f"{path!r} is a PEFT adapter ({found.method}), and without a peft section every weight is trained.",
            where="model.path",
            fix=f"Set peft.method to {found.method} to train the adapter further, or merge it into its base: "
            f"onecurve checkpoint convert {path} FOLDER --merge",
        )
    if recipe.model.add_tokens:
        raise ConfigError(
            "an adapter that is trained further keeps its vocabulary.", where="model.add_tokens", fix="Remove it."
        )
    found.check(section.method.lower().replace("-", "_"), section.extras)
    return found


def virtual_tokens(section: PeftSection | None) -> int:
    """Count the positions that a method takes from the model's longest sequence."""
    if section is None:
        return 0
    from onecurve.adapters.fields import virtual_tokens

    return virtual_tokens(section)


def check_adapter(section: PeftSection | None, quantized: bool = False) -> None:
    """Raise `ConfigError` for an invalid method or field, on a quantised base or not. Needs no model."""
    if section is not None:
        from onecurve.adapters.fields import check_adapter

        check_adapter(section, quantized)


def try_adapter(
    skeleton: "PreTrainedModel", section: PeftSection | None, task_type: str | None, new_modules: list[str]
) -> None:
    """Raise `ConfigError` where an adapter does not fit a model, of which only names and shapes are there."""
    if section is not None:
        from onecurve.adapters.trial import try_adapter

        try_adapter(skeleton, section, task_type, new_modules)


def add_adapter(
    model: "PreTrainedModel",
    section: PeftSection | None,
    *,
    task_type: str | None,
    new_modules: list[str],
    revision: str | None = None,
    new_tokens: Sequence[int] = (),
    continued: Continued | None = None,
) -> "nn.Module":
    """Freeze a model and add what the recipe's PEFT method trains, drawn from torch's global generator.

    Args:
        model: The base model, partitioned by ZeRO-3 or not; changed in place.
        section: The recipe's `peft` section; None trains every weight.
        task_type: PEFT's name for the kind of model, such as SEQ_CLS or CAUSAL_LM.
        new_modules: Names of modules whose weights no checkpoint held (a new head): trained and saved in any case.
        revision: Of the hub's repository that the base came from: saved with the adapter.
        new_tokens: Ids of tokens whose embeddings no checkpoint held: their rows are trained and saved in any case.
        continued: The adapter to train further: gives the settings of the method. Its values are `saved_values`.

    Returns:
        The model itself without a section, else a `PeftModel` whose trained parameters are float32.
    """
    if section is None:
        return model
    from onecurve.adapters.attach import attach

    return attach(model, section, task_type, new_modules, revision, continued, new_tokens)
