"""Parameter-efficient fine-tuning: PEFT's methods by PEFT's names, and the bottleneck adapter registered with PEFT.

PEFT is imported only where a recipe asks for a method.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from onecurve.config import PeftSection

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

__all__ = ["add_adapter", "check_adapter", "virtual_tokens"]


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


def add_adapter(
    model: "PreTrainedModel",
    section: PeftSection | None,
    *,
    task_type: str | None,
    new_modules: list[str],
    revision: str | None = None,
    new_tokens: Sequence[int] = (),
) -> "nn.Module":
    """Freeze a model and add what the recipe's PEFT method trains, drawn from torch's global generator.

    Args:
        model: The base model, partitioned by ZeRO-3 or not; changed in place.
        section: The recipe's `peft` section; None trains every weight.
        task_type: PEFT's name for the kind of model, such as SEQ_CLS or CAUSAL_LM.
        new_modules: Names of modules whose weights no checkpoint held (a new head): trained and saved in any case.
        revision: Of the hub's repository that the base came from: saved with the adapter.
        new_tokens: Ids of tokens whose embeddings no checkpoint held: their rows are trained and saved in any case.

    Returns:
        The model itself without a section, else a `PeftModel` whose trained parameters are float32.
    """
    if section is None:
        return model
    from onecurve.adapters.attach import attach

    return attach(model, section, task_type, new_modules, revision, new_tokens)
