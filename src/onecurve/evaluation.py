"""Scoring a split: each example exactly once at any world size; sums and counts only."""

from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from onecurve.config import EvalSection, Recipe
from onecurve.data.loader import Loader
from onecurve.data.plan import plan_scoring
from onecurve.errors import ConfigError
from onecurve.losses import terms
from onecurve.machine.cores import return_memory
from onecurve.model.attention_kernels import fastest_attention
from onecurve.ranks.heartbeat import beat
from onecurve.strategies.base import Strategy
from onecurve.strategies.snapshot import Snapshot
from onecurve.tasks.base import Survey, Task

Scores = dict[str, Any]


@dataclass(frozen=True)
class Evaluator:
    """Scores whole splits; every rank calls it and gets the same scores."""

    strategy: Strategy
    recipe: Recipe
    """Says how much a forward pass takes."""
    survey: Survey
    """The label names."""

    def __call__(self, loader: Loader) -> Scores:
        """Return `loss` (true mean over items) and the task's metrics of the split that `loader` reads.

        Of a task with several terms, `loss/NAME` is each term's mean.
        """
        task, accelerator, counts = loader.task, loader.accelerator, loader.split.num_items
        step = plan_scoring(loader.split, self.recipe)
        total = torch.zeros(len(task.terms), dtype=torch.float64, device=accelerator.device)
        pairs: list[tuple[int, list[Any]]] = []
        self.strategy.model.eval()
        with torch.no_grad(), fastest_attention(accelerator.device):
            for micro_batch in loader.micro_batches(step):
                beat("evaluation")
                with self.strategy.autocast():
                    outputs = task.forward(self.strategy.model, micro_batch.batch)
                if micro_batch.counts:
                    total += task.loss_sum(outputs, micro_batch.batch).view(-1)
                    pairs.append((micro_batch.position, task.predict(outputs, micro_batch.batch)))
                del outputs  # large: not beside the next ones
        beat("evaluation")
        losses = terms.means(task.terms, accelerator.reduce(total, "sum").tolist(), step.num_items)
        loss = terms.total(task.terms, losses)
        of_ids = {
            number: pair
            for position, part in gather_object(pairs)
            for number, pair in zip(step.micro_batches[position].tolist(), part, strict=bool(part))
        }
        assert not of_ids or len(of_ids) == len(counts), (len(of_ids), len(counts))
        flat = [of_ids[number] for number in sorted(of_ids)]
        return_memory()  # metrics import what they need
        scores = [task.metrics(flat, loss, self.survey)] if accelerator.is_main_process else [None]
        of_terms = {f"loss/{name}": value for name, value in losses.items()} if len(losses) > 1 else {}
        return _broadcast(scores, accelerator) | of_terms


def _broadcast(values: list[Any], accelerator: Accelerator) -> Any:
    if accelerator.num_processes > 1:
        torch.distributed.broadcast_object_list(values)
    return values[0]


class Best:
    """The best step so far by the recipe's metric, its weights kept; none where the recipe asks for no metric."""

    def __init__(self, task: Task, section: EvalSection, strategy: Strategy) -> None:
        self.metric, self.patience = section.best_metric, section.patience
        self.sign = -1 if self.metric == "loss" or self.metric in task.lower_is_better else 1
        self.snapshot = Snapshot(strategy)
        self.step = 0
        self.value: float | None = None
        self.scores: Scores = {}
        self.last_scores: Scores = {}
        self.without = 0
        """Scorings since the best one."""

    def consider(self, step: int, scores: Scores) -> None:
        """Take in the scores after `step`.

        Raises:
            ConfigError: The metric that was asked for is not among them.
        """
        self.last_scores = scores
        if self.metric is None:
            self.scores = scores
            return
        value = scores.get(self.metric)
        if self.metric not in scores or isinstance(value, (dict, list)):
            numbers = sorted(name for name, v in scores.items() if isinstance(v, (int, float)))
            raise ConfigError(f"no metric {self.metric!r}; there are {', '.join(numbers)}.", where="eval.best_metric")
        self.without += 1
        if value is None or not isfinite(value):  # undefined, as a correlation with constant predictions is
            return
        if self.value is None or self.sign * value > self.sign * self.value:
            self.step, self.value, self.scores, self.without = step, value, scores, 0
            self.snapshot.take()

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it, besides the weights in its snapshot."""
        return {"step": self.step, "value": self.value, "scores": self.scores, "without": self.without}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.step, self.value, self.scores, self.without = (state[k] for k in ("step", "value", "scores", "without"))

    def restore(self) -> None:
        """Put the best step's weights back."""
        self.snapshot.restore()

    @property
    def exhausted(self) -> bool:
        """Whether patience has run out."""
        return self.patience is not None and self.without >= self.patience

    def __str__(self) -> str:
        return f"{self.metric} {self.value} at step {self.step} was not bettered in {self.without} scorings"
