"""One optimizer step: the only place where a loss becomes a gradient and a gradient an update."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from math import isfinite
from time import perf_counter
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from onecurve.data.loader import Loader, MicroBatch
from onecurve.data.plan import Step, num_passes
from onecurve.data.pool import Pool, wide
from onecurve.losses import terms
from onecurve.machine.accelerator import to_device
from onecurve.model.attention_kernels import fastest_attention
from onecurve.model.batch_norm import statistics_of
from onecurve.ranks.heartbeat import beat
from onecurve.regularization.base import Objective, Pass, plain
from onecurve.run.history import History
from onecurve.seeds import start_stream
from onecurve.strategies.base import Strategy
from onecurve.strategies.rates import hold_back, set_rates
from onecurve.tasks.base import Batch, Pools, Task


def train_step(
    strategy: Strategy,
    loader: Loader,
    step: Step,
    lr: float,
    seed: int,
    history: History,
    requests: Callable[[], Sequence[float]] = tuple,
) -> dict[str, Any]:
    """Update the model once, unless the loss or gradient is bad; all ranks decide the same.

    Args:
        strategy: Turns costs into an update.
        loader: Reads the training split.
        step: The step of the plan.
        lr: Learning rate of this update.
        seed: The run's seed.
        history: Recent losses, and the steps to skip.
        requests: Returns numbers of this rank, asked for when its passes are made; all ranks learn their sums.

    Returns:
        fault (empty where the update was made; else `loss`, `gradient` or `spike`, or why the step was to be left out
        before it was computed, and then there is nothing more), loss (mean over items, nats; of a task with several
        terms, their weighted sum, and losses has each), grad_norm (before clipping; None where no update was made), lr,
        num_items, num_tokens (without padding), num_samples (so far), sample_digest, seconds, ranks (those whose share
        of the loss is not finite), requests (their sums over ranks), num_samples_by_source (so far) of a mixture,
        skipped where an fp16 overflow left the weights as they were, and what is to be told of examples that the step
        made itself.
    """
    if step.number in history.left_out:
        return {"fault": history.left_out[step.number]}
    started, accelerator = perf_counter(), loader.accelerator
    loader, step, facts = loader.completed(step)
    set_rates(strategy.optimizer, lr, step.number)
    sums = torch.stack([loss_sums for _, loss_sums in accumulate(strategy, loader, step, seed)])
    beat("update")
    shares, asked, norm = _known(strategy, accelerator, sums, requests())
    losses = terms.means(loader.task.terms, [sum(of_term) for of_term in zip(*shares, strict=True)], step.num_items)
    loss, overflow = terms.total(loader.task.terms, losses), False
    if fault := history.fault(loss):
        strategy.discard()
        norm = None
    else:
        start_stream(seed, "update", step.number)
        update, overflow = strategy.update(norm)
        norm = float(update)
        fault = "" if overflow or isfinite(norm) else "gradient"
    if not (fault or overflow):
        history.updated(loss)
        statistics_of(strategy.unwrapped()).move(accelerator, len(step.micro_batches))
        hold_back(strategy)
        strategy.after_update(step.number)
    beat("between steps")
    outcome = {
        "fault": fault,
        "loss": loss,
        "grad_norm": norm if norm is not None and isfinite(norm) else None,
        "lr": lr,
        "num_items": step.num_items,
        "num_tokens": loader.num_tokens(step),
        "num_samples": step.num_samples,
        "sample_digest": step.sample_digest,
        "seconds": perf_counter() - started,
        "ranks": [rank for rank, share in enumerate(shares) if not all(map(isfinite, share))],
        "requests": asked,
    }
    if step.seen:
        outcome["num_samples_by_source"] = step.seen
    if len(losses) > 1:
        outcome["losses"] = losses
    return outcome | facts | ({"skipped": True} if overflow else {})


def _known(
    strategy: Strategy, accelerator: Accelerator, sums: Tensor, requests: Sequence[float]
) -> tuple[list[list[float]], list[float], float | None]:
    """Learn what a step has to know of its passes, in the one time that the host waits for the device.

    Args:
        strategy: Has the gradients.
        accelerator: The other ranks.
        sums: Loss of each pass, summed over its items, float32 [passes, terms].
        requests: This rank's.

    Returns:
        Each rank's sums, the requests summed over ranks, and the gradient norm where the strategy knows it by now.
    """
    asked = [to_device(torch.tensor(requests, dtype=torch.float64), sums.device)] if requests else []
    of_ranks = accelerator.gather(torch.cat([sums.double().sum(0), *asked])[None])
    norm = strategy.gradient_norm()
    values: list[float] = torch.cat([of_ranks.flatten(), *([] if norm is None else [norm.double().view(1)])]).tolist()
    known = None if norm is None else values.pop()
    width, num_terms = of_ranks.shape[1], sums.shape[1]
    rows = [values[start : start + width] for start in range(0, len(values), width)]
    totals = [sum(of_one) for of_one in zip(*(row[num_terms:] for row in rows), strict=True)]
    return [row[:num_terms] for row in rows], totals, known


def accumulate(strategy: Strategy, loader: Loader, step: Step, seed: int) -> list[tuple[int, Tensor]]:
    """Add up the gradients of a step's micro-batches, for an update or to be discarded.

    The loss is the sum over the global batch's items divided by their number, for each term, so the gradient does not
    depend on how that batch is cut into ranks and micro-batches. Both kinds of engine average gradients over ranks; the
    factor `world_size` cancels that.

    Returns:
        (position in the step, loss summed over its items, float32 [terms]) of each pass that this rank made: of each
        micro-batch, one for each sweep; zero for one that only kept it in step with the others.
    """
    task, world_size = loader.task, loader.accelerator.num_processes
    objective = loader.objective or Objective(plain(task))
    factors = [world_size * scale for scale in terms.scales(task.terms, step.num_items)]
    last = num_passes(len(step.micro_batches), world_size) * objective.sweeps - 1
    sums: list[tuple[int, Tensor]] = []
    statistics = statistics_of(strategy.unwrapped())
    statistics.forget()
    strategy.model.train()
    beat("data", step.number)
    with fastest_attention(loader.accelerator.device):
        micro_batches: Iterable[MicroBatch] = loader.micro_batches(step)
        pooled = None
        if isinstance(task, Pools):
            micro_batches = list(micro_batches)
            pool = Pool(step, loader.accelerator)
            pooled = _pooled(task, strategy, pool, micro_batches, (seed, step.number), factors)
        for micro_batch, sweep in ((one, sweep) for one in micro_batches for sweep in range(objective.sweeps)):
            strategy.begin_pass(last=len(sums) == last)
            start_stream(seed, "micro_batch", step.number, micro_batch.position)
            beat("forward")
            observed = statistics.observed(micro_batch.counts) if sweep == 0 else nullcontext()
            forward = partial(_forward, strategy, task, observed)
            if pooled:
                loss_sums, cost = pooled.share(micro_batch, forward(micro_batch.batch))
            else:
                keys = micro_batch.wanted.keys("noise")
                one = Pass(strategy.unwrapped(), forward, micro_batch.batch, keys, sweep)
                loss_sums = objective.loss(one).view(-1) * micro_batch.counts
                cost = terms.weighted(loss_sums, factors)
            beat("backward")
            strategy.backward(cost)
            sums.append((micro_batch.position, loss_sums.detach()))
    return sums


def _forward(strategy: Strategy, task: Task, observed: AbstractContextManager[Any], batch: Batch) -> Any:
    with strategy.autocast(), observed:
        return task.forward(strategy.model, batch)


@dataclass(frozen=True)
class _Pooled:
    """The loss of a global batch whose examples are compared with each other, and its gradient."""

    pool: Pool
    losses: Tensor
    """Of each example, as `wide`: [examples, terms]."""
    gradient: Tensor
    """Of the scaled loss with respect to the outputs of the task's `forward`, as `wide`: [examples, ...]."""

    def share(self, micro_batch: MicroBatch, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the losses of a pass's examples, summed, and what has the loss's gradient: outputs times gradient."""
        places = to_device(torch.from_numpy(self.pool.of(micro_batch.position)), outputs.device)
        within = tuple(slice(size) for size in outputs.shape)  # others may have had more rows an example
        cost = (wide(outputs) * self.gradient[places][within]).sum() * micro_batch.counts
        return self.losses[places].sum(0) * micro_batch.counts, cost


def _pooled(
    task: Pools,
    strategy: Strategy,
    pool: Pool,
    micro_batches: Sequence[MicroBatch],
    keys: tuple[int, int],
    factors: Sequence[float],
) -> _Pooled:
    """Compute a global batch's outputs without a graph, the loss of all of them, and its gradient.

    A second sweep carries that gradient on into the weights, a micro-batch at a time: exactly what one pass over the
    whole batch would do, in the memory of one micro-batch. It draws the same masks, because dropout is keyed by
    position. Every rank computes the loss of all examples.

    Source: Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup (GradCache), 2021.

    Args:
        task: Knows the loss.
        strategy: Has the model, in training mode. The first sweep goes through it too: it autocasts there.
        pool: The step's examples.
        micro_batches: This rank's, stand-ins too.
        keys: The run's seed, and the step's number.
        factors: Of the loss's terms.
    """
    parts: list[list[Tensor]] = []
    with torch.no_grad():
        for micro_batch in micro_batches:
            strategy.begin_pass(last=False)
            start_stream(keys[0], "micro_batch", keys[1], micro_batch.position)
            beat("forward")
            with strategy.autocast():
                outputs = task.forward(strategy.model, micro_batch.batch)
            parts.append([wide(outputs), *(micro_batch.batch[name] for name in task.pooled)])
    whole, *others = (pool.joined(of_one) for of_one in zip(*parts, strict=True))
    whole.requires_grad_()
    losses = task.losses(whole, dict(zip(task.pooled, others, strict=True))).view(len(whole), -1)
    (gradient,) = torch.autograd.grad(terms.weighted(losses.sum(0), factors), whole)
    return _Pooled(pool, losses.detach(), gradient)
