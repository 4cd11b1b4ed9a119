"""Scoring a split: each example exactly once at any world size; sums and counts only."""

from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from onecurve.config import EvalSection
from onecurve.data.loader import Loader
from onecurve.data.plan import BatchPlan
from onecurve.errors import ConfigError
from onecurve.strategies.base import Strategy
from onecurve.tasks.base import Survey, Task

Scores = dict[str, Any]


def evaluate(strategy: Strategy, loader: Loader, micro_batch_size: int, survey: Survey) -> Scores:
    """Score a whole split; every rank calls it and gets the same scores.

    Args:
        strategy: Holds the model.
        loader: Reads the split.
        micro_batch_size: Examples per rank and forward pass.
        survey: The label names.

    Returns:
        `loss` (true mean over items) and the task's metrics.
    """
    task, accelerator, counts = loader.task, loader.accelerator, loader.split.num_items
    plan = BatchPlan(counts, seed=0, global_batch_size=len(counts), micro_batch_size=micro_batch_size, shuffle=False)
    total = torch.zeros((), dtype=torch.float64, device=accelerator.device)
    pairs: list[tuple[int, list[Any]]] = []
    strategy.model.eval()
    with torch.no_grad():
        for micro_batch in loader.micro_batches(plan.step(1)):
            with strategy.autocast():
                logits = task.forward(strategy.model, micro_batch.batch)
            if micro_batch.counts:
                total += task.loss_sum(logits, micro_batch.batch)
                pairs.append((micro_batch.position, task.predict(logits, micro_batch.batch)))
    loss = float(accelerator.reduce(total, "sum")) / int(counts.sum())
    gathered = sorted(gather_object(pairs), key=lambda entry: entry[0])
    flat = [pair for _, part in gathered for pair in part]
    assert not flat or len(flat) == len(counts), (len(flat), len(counts))
    scores = [task.metrics(flat, loss, survey)] if accelerator.is_main_process else [None]
    return _broadcast(scores, accelerator)


def _broadcast(values: list[Any], accelerator: Accelerator) -> Any:
    if accelerator.num_processes > 1:
        torch.distributed.broadcast_object_list(values)
    return values[0]


@dataclass
class Best:
    """The best score so far and where it stood; empty where no metric was asked for."""

    metric: str | None
    lower_is_better: bool
    patience: int | None
    value: float | None = None
    step: int = 0
    scores: Scores = field(default_factory=dict)
    without: int = field(default=0)
    """Scorings since the best one."""

    @classmethod
    def of(cls, task: Task, section: EvalSection) -> "Best":
        """Start with nothing seen."""
        metric = section.best_metric
        return cls(metric, metric == "loss" or metric in task.lower_is_better, section.patience)

    def improves(self, step: int, scores: Scores) -> bool:
        """Take in the scores after `step`; say whether they are the best so far.

        Raises:
            ConfigError: The metric that was asked for is not among them.
        """
        if self.metric is None:
            return False
        value = scores.get(self.metric)
        if self.metric not in scores or isinstance(value, (dict, list)):
            numbers = sorted(k for k, v in scores.items() if isinstance(v, (int, float)))
            raise ConfigError(f"no metric {self.metric!r}; there are {', '.join(numbers)}.", where="eval.best_metric")
        usable = value is not None and isfinite(value)
        sign = -1 if self.lower_is_better else 1
        if usable and (self.value is None or sign * value > sign * self.value):  # type: ignore[operator]
            self.value, self.step, self.scores, self.without = value, step, scores, 0
            return True
        self.without += 1
        return False

    @property
    def exhausted(self) -> bool:
        """Whether patience has run out."""
        return self.patience is not None and self.without >= self.patience
