"""One optimizer step: the only place where a loss becomes a gradient and a gradient an update."""

from math import isfinite
from time import perf_counter
from typing import Any

import torch

from onecurve.data.loader import Loader
from onecurve.data.plan import Step, num_passes
from onecurve.errors import TrainingError
from onecurve.seeds import start_stream
from onecurve.strategies.base import Strategy


def train_step(
    strategy: Strategy,
    loader: Loader,
    step: Step,
    lr: float,
    seed: int,
) -> dict[str, Any]:
    """Update the model once.

    The loss is the sum over the global batch's items divided by their number, so the update does not depend on how
    that batch is cut into ranks and micro-batches. Both kinds of engine average gradients over ranks; the factor
    `world_size` cancels that.

    Args:
        strategy: Turns costs into an update.
        loader: Reads the training split.
        step: The step of the plan.
        lr: Learning rate of this update.
        seed: The run's seed.

    Returns:
        loss (mean over items, nats), grad_norm (before clipping; None after an overflow), lr, num_items, num_tokens
        (without padding), num_samples (so far), sample_digest, seconds, and skipped where an fp16 overflow left the
        weights as they were.

    Raises:
        TrainingError: The loss or its gradient is not finite.
    """
    started, task, accelerator = perf_counter(), loader.task, loader.accelerator
    world_size = accelerator.num_processes
    last = num_passes(len(step.micro_batches), world_size) - 1
    total = torch.zeros((), dtype=torch.float64, device=accelerator.device)
    for group in strategy.optimizer.param_groups:
        group["lr"] = lr
    strategy.model.train()
    for i, micro_batch in enumerate(loader.micro_batches(step)):
        strategy.begin_pass(last=i == last)
        start_stream(seed, "micro_batch", step.number, micro_batch.position)
        with strategy.autocast():
            logits = task.forward(strategy.model, micro_batch.batch)
        loss_sum = task.loss_sum(logits, micro_batch.batch) * micro_batch.counts
        strategy.backward(loss_sum * (world_size / step.num_items))
        total += loss_sum.detach()
    norm, skipped = strategy.update()
    loss, grad_norm = float(accelerator.reduce(total, "sum")) / step.num_items, float(norm)
    if not skipped and not (isfinite(loss) and isfinite(grad_norm)):
        raise TrainingError(
            f"step {step.number}: loss {loss}, gradient norm {grad_norm}: not finite. "
            "Lower optim.lr, lengthen optim.warmup_steps, or set train.mixed_precision to bf16 or no."
        )
    outcome = {
        "loss": loss,
        "grad_norm": None if skipped else grad_norm,
        "lr": lr,
        "num_items": step.num_items,
        "num_tokens": loader.num_tokens(step),
        "num_samples": step.num_samples,
        "sample_digest": step.sample_digest,
        "seconds": perf_counter() - started,
    }
    return outcome | ({"skipped": True} if skipped else {})
