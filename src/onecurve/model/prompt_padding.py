"""Finds out by trying whether the padding beside a prompt changes what a model writes after it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from onecurve.tasks.base import Example, Generates, Processing

_NEW_TOKENS = 3
"""The first may be given, as a target language is; one later is beyond the prompt's own positions."""
_LONGER_BY = 32
"""Padding that shows it, where there are such prompts: none has to be as long as the longest."""
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
_TOLERANCE_HALF = 5e-2
"""Share of the logits' spread. In float32, models that leave padding out came to 2e-6, and those that read it to 4; in
half precision, another shape rounds otherwise."""


class _Kept(LogitsProcessor):
    """Changes nothing: keeps the logits of the first row."""

    def __init__(self) -> None:
        self.logits: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.logits.append(scores[0].float().clone())
        return scores


def unequal(lengths: Sequence[int]) -> tuple[int, int] | None:
    """Return the places of the shortest prompt and of a longer one; None where all have one length."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    longer = [place for place in order if lengths[place] > lengths[order[0]]] if order else []
    if not longer:
        return None
    near = [place for place in longer if lengths[place] <= lengths[order[0]] + _LONGER_BY]
    return order[0], (near or longer[:1])[-1]


def reads_prompt_padding(model: Any, task: Generates, prompts: Sequence[Example], reading: Processing) -> bool:
    """Whether the logits after the first prompt are others where the second, which is longer, is in its batch.

    Models whose positions do not come from the attention mask, and such as carry padding into their state, do so.

    Args:
        model: In evaluation mode, as `generate` needs it. Under ZeRO-3 every rank calls this.
        task: Pads the prompts.
        prompts: Two, of different lengths.
        reading: Made them.
    """
    padded, alone = (_logits(model, task, batch, reading) for batch in (prompts, prompts[:1]))
    weights = next(model.parameters()).dtype
    half = torch.is_autocast_enabled(model.device.type)
    tolerance = _TOLERANCE_HALF if half else _TOLERANCE.get(weights, _TOLERANCE_HALF)
    return any(_differ(one, other, tolerance) for one, other in zip(padded, alone, strict=False))


def _differ(one: Tensor, other: Tensor, tolerance: float) -> bool:
    kept = one.isfinite() & other.isfinite()  # tokens that must not follow are at minus infinity
    spread = other[kept].std(correction=0)
    return bool((one[kept] - other[kept]).abs().max() > tolerance * spread) if kept.any() else False


def _logits(model: Any, task: Generates, prompts: Sequence[Example], reading: Processing) -> list[Tensor]:
    kept = _Kept()
    options = {"max_new_tokens": _NEW_TOKENS, "do_sample": False, "num_beams": 1}
    task.generate(model, prompts, reading, logits_processor=LogitsProcessorList([kept]), **options)
    return kept.logits
