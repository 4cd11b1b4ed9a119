"""How prompts are batched where a model writes after each, and how the watch over hanging ranks hears of it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import StoppingCriteria

from onecurve.config import Recipe
from onecurve.data.micro_batches import Cut
from onecurve.data.plan import BatchPlan, Step
from onecurve.ranks.heartbeat import beat


class Beats(StoppingCriteria):
    """Stops nothing: tells the watch over hanging ranks that another token is there."""

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        beat("generation")
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def plan_texts(lengths: Sequence[int], new: int, recipe: Recipe, apart: bool) -> Step:
    """Cut prompts as evaluation cuts examples; where tokens are counted, those to come count too.

    Args:
        lengths: Of the prompts.
        new: How many tokens are to come.
        recipe: Says how many prompts a pass has.
        apart: Whether prompts of different lengths must not share a pass.
    """
    whole = np.array(lengths) + new
    tokens = None if recipe.eval.micro_batch_size else recipe.train.micro_batch_tokens
    cut = Cut(whole, by_length=True, tokens=tokens, alike=whole if apart else None)
    ones = np.ones(len(whole), np.int64)
    return BatchPlan(ones, 0, len(whole), recipe.eval_micro_batch_size, shuffle=False, cut=cut).step(1)
