"""Evaluates a split: each example exactly once at any world size, by adding up sums and counts."""

from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from onecurve.config import EvalSection, Recipe
from onecurve.data.encoding import Split
from onecurve.data.loader import Loader
from onecurve.data.plan import plan_scoring
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
    """Evaluates whole splits; every rank calls it and gets the same scores."""

    strategy: Strategy
    recipe: Recipe
    """The recipe: gives the size of a forward pass."""
    survey: Survey
    """The label names."""

    def __call__(self, loader: Loader) -> Scores:
        """Return `loss` (exact mean over items) and the task's metrics on the split that `loader` reads.

        For a task with several loss terms, `loss/NAME` is the mean of each term.
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
    """The best step so far by eval.best_metric, with a copy of its weights; unused without eval.best_metric.

    Args:
        task: Tells which metrics are better when lower.
        section: The recipe's `eval`.
        strategy: Whose weights are kept.
        dev: The dev split, if any.
    """

    def __init__(self, task: Task, section: EvalSection, strategy: Strategy, dev: Split | None) -> None:
        self.metric, self.patience = section.best_metric, section.patience
        self.dev = dev.examples.folder.name if dev else ""
        """Fingerprint of the dev examples (their cache key)."""
        self.sign = -1 if self.metric == "loss" or self.metric in task.lower_is_better else 1
        self.snapshot = Snapshot(strategy)
        self._forget()

    def _forget(self) -> None:
        self.step = 0
        """The best step; 0 before the first evaluation."""
        self.value: float | None = None
        self.scores: Scores = {}
        """The metric at the best step; before there is one, at the last evaluation."""
        self.without = 0
        """Evaluations since the best step."""
        self.last_step = 0
        self.last_scores: Scores = {}

    def consider(self, step: int, scores: Scores) -> None:
        """Record the scores after `step`."""
        self.last_step, self.last_scores = step, scores
        if not self.step:
            self.scores = scores
        if self.metric is None:
            return
        value = scores[self.metric]  # it is one of the task's metric_names
        self.without += 1
        if value is None or not isfinite(value):  # undefined, as a correlation with constant predictions is
            return
        if self.value is None or self.sign * value > self.sign * self.value:
            self.step, self.value, self.scores, self.without = step, value, scores, 0
            self.snapshot.take()

    def state(self) -> dict[str, Any]:
        """The state saved in a checkpoint, besides the weights in the snapshot."""
        names = ("metric", "dev", "step", "value", "scores", "without", "last_step", "last_scores")
        return {name: getattr(self, name) for name in names}

    def differs(self, state: dict[str, Any]) -> str:
        """Explain why the best step in a checkpoint's `state` cannot be used in this run; empty if it can.

        Scores of another metric, or on other examples, are not comparable with later ones.
        """
        if state["metric"] != self.metric:
            return f"eval.best_metric was {state['metric']} and is {self.metric}"
        return "" if state["dev"] == self.dev else "data.eval has other examples"

    def load(self, state: dict[str, Any], step: int) -> str:
        """Restore a `state` saved after `step`, with the weights of that step.

        Returns:
            What was dropped, and why; empty if nothing was.
        """
        self._forget()
        why = self.differs(state)
        if not why:
            for name in ("step", "value", "scores", "without", "last_step", "last_scores"):
                setattr(self, name, state[name])
        elif state["dev"] == self.dev and state["last_step"] == step:  # these very weights were scored
            self.consider(step, state["last_scores"])
        return f"{why}: step {state['step']}, the best so far, is dropped" if why and state["step"] else ""

    def restore(self) -> None:
        """Put the best step's weights back."""
        self.snapshot.restore()

    @property
    def exhausted(self) -> bool:
        """Whether there was no improvement for `eval.patience` evaluations."""
        return self.patience is not None and self.without >= self.patience

    def __str__(self) -> str:
        return f"no improvement in {self.without} evaluations: best {self.metric} {self.value} at step {self.step}"
