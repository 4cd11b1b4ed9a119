"""Evaluates a split: each example exactly once at any world size, by adding up sums and counts."""

from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from onecurve.config import Recipe
from onecurve.data.checking import Report
from onecurve.data.loader import Loader
from onecurve.data.plan import plan_scoring
from onecurve.evaluation.writing import samples_of, write_texts
from onecurve.losses import terms
from onecurve.machine.cores import return_memory
from onecurve.model.attention_kernels import fastest_attention
from onecurve.ranks.heartbeat import beat
from onecurve.strategies.base import Strategy
from onecurve.tasks.base import Survey, Task, Writes

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

        Where the task writes texts, their scores follow, and `samples` of them.

        For a task with several loss terms, `loss/NAME`, or as the task calls it, is the mean of each term; None where
        there is no item of it.
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
        of_terms = _of_terms(task, losses, step.num_items)
        scored: Scores = _broadcast(scores, accelerator) | of_terms
        if loader.split.prompts:
            scored |= self._texts(loader)
        return scored | left_out(loader.split.report)

    def _texts(self, loader: Loader) -> Scores:
        """Have texts written, and return their scores and a few `samples`."""
        task, split = loader.task, loader.split
        assert isinstance(task, Writes)
        texts = write_texts(self.strategy, self.recipe, loader)
        pairs = [(text, prompt.reference) for text, prompt in zip(texts, split.prompts, strict=True)]
        scores = [task.score_texts(pairs)] if loader.accelerator.is_main_process else [None]
        samples = samples_of(loader, texts, self.recipe.eval.samples)
        return _broadcast(scores, loader.accelerator) | ({"samples": samples} if samples else {})


def _of_terms(task: Task, losses: dict[str, float], num_items: terms.Count) -> Scores:
    """Return each term's mean under its metric's name; nothing where there is one term."""
    if not isinstance(num_items, list) or len(losses) < 2:
        return {}
    counted = zip(losses.items(), num_items, strict=True)
    return {task.metric_of_term(name): value if count else None for (name, value), count in counted}


def left_out(report: Report) -> Scores:
    """Return how many of a split's rows no score is of, and why; nothing where every row was scored."""
    reasons = {"invalid": report.skipped, "too_long": report.dropped, "nothing_to_score": report.empty}
    told = {why: count for why, count in reasons.items() if count}
    return {"left_out": {"of_rows": report.rows, **told}} if told else {}


def _broadcast(values: list[Any], accelerator: Accelerator) -> Any:
    if accelerator.num_processes > 1:
        torch.distributed.broadcast_object_list(values)
    return values[0]
