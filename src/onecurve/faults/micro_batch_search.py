"""`train.micro_batch_size: auto`: finds the largest that fits by trying growing sizes on the longest examples."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from onecurve.config import Recipe
from onecurve.data.loader import Loader
from onecurve.data.plan import BatchPlan, Step
from onecurve.errors import LaunchError
from onecurve.machine import memory
from onecurve.machine.accelerator import accelerator_of
from onecurve.machine.cores import ranks_here
from onecurve.planning.disk_forecast import moments_per_parameter
from onecurve.preflight import Checked
from onecurve.step import accumulate
from onecurve.strategies.base import Strategy

_USED_AT_MOST = 0.9
"""Share of the memory to use: allocators fragment it, and peaks vary a little between passes."""


def fit(checked: Checked, plan: BatchPlan, strategy: Strategy, loader: Loader) -> tuple[Checked, Recipe, BatchPlan]:
    """Replace a micro-batch size of auto with the largest that fits on every rank; every rank calls it.

    Sizes are the powers of two that divide the global batch and leave no rank without work. Each is tried with two
    forward and backward passes over the longest examples, with the optimizer's memory reserved and without an update:
    the run is unchanged afterwards. A size is tried only if the smaller ones predict that it fits, because a strategy
    that communicates between layers does not survive a rank that runs out of memory.

    Raises:
        LaunchError: The system does not allow a process to measure its memory.
    """
    recipe = checked.recipe
    if recipe.train.micro_batch_size != "auto":
        return checked, recipe, plan
    size = _largest(recipe, plan, strategy, loader)
    recipe = recipe.model_copy(update={"train": recipe.train.with_found(size)})
    return replace(checked, recipe=recipe), recipe, replace(plan, micro_batch_size=size)


def _largest(recipe: Recipe, plan: BatchPlan, strategy: Strategy, loader: Loader) -> int:
    device = loader.accelerator.device
    own = sum(window.view.nbytes for window in strategy.windows() if window.key == "param")
    room = torch.ones(int(own * moments_per_parameter(recipe.optim)), dtype=torch.uint8, device=device)
    shared_by = 1 if accelerator_of(device) else ranks_here()
    there = _USED_AT_MOST * (memory.used(device) + memory.free(device) / shared_by)
    trained = sum(p.nbytes for p in strategy.unwrapped().parameters() if p.requires_grad)
    peaks = {0: memory.used(device) + trained}
    fitting = 1
    for size in _sizes(plan, loader.accelerator.num_processes):
        if not _all(_expected(peaks, size) <= there, loader.accelerator):
            break
        peaks[size] = _measure(size, strategy, loader, recipe.seed)
        if not _all(peaks[size] <= there, loader.accelerator):
            break
        fitting = size
    del room
    return fitting


def _sizes(plan: BatchPlan, world_size: int) -> Iterator[int]:
    size = 1
    while plan.global_batch_size % size == 0 and size * world_size <= max(plan.global_batch_size, world_size):
        yield size
        size *= 2


def _expected(peaks: dict[int, int], size: int) -> float:
    """Extrapolate from the last two sizes: activations grow linearly with the examples, the rest is constant."""
    if len(peaks) == 1:  # the smallest is tried whatever it takes
        return 0.0
    (small, least), (large, most) = list(peaks.items())[-2:]
    return most + max(0, most - least) * (size - large) / (large - small)


def _measure(size: int, strategy: Strategy, loader: Loader, seed: int) -> int:
    ids = loader.split.examples.longest(size)
    passes = 2 * loader.accelerator.num_processes  # gradients lie there only from the second pass on
    try:
        memory.reset_peak(loader.accelerator.device)
    except OSError as error:
        raise LaunchError(
            f"auto needs to measure memory, which this system does not allow: {error.strerror}.",
            where="train.micro_batch_size",
            fix="Set a number.",
        ) from None
    items = (loader.split.num_items[ids].sum(0) * passes).tolist()
    accumulate(strategy, loader, Step(1, np.tile(ids, passes), [ids] * passes, items, 0), seed)
    strategy.discard()
    return memory.peak(loader.accelerator.device)


def _all(fits: bool, accelerator: Any) -> bool:
    votes = accelerator.reduce(torch.tensor([float(not fits)], device=accelerator.device), "sum")
    return not bool(votes.any())
