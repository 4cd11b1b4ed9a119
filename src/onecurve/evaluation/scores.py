"""Evaluates a split: each example exactly once at any world size, by adding up sums and counts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from onecurve.config import Recipe
from onecurve.data.checking import Report
from onecurve.data.loader import Loader
from onecurve.data.plan import plan_scoring
from onecurve.data.pool import Pool, wide
from onecurve.evaluation.writing import completions_of, samples_of, write_texts
from onecurve.losses import terms
from onecurve.machine.cores import return_memory
from onecurve.model.attention_kernels import fastest_attention
from onecurve.ranks.heartbeat import beat
from onecurve.strategies.base import Strategy
from onecurve.tasks.base import Pools, RollsOut, Survey, Task, Writes


class Scores(dict[str, Any]):
    """Scores by name."""

    texts: Mapping[str, Sequence[str]] = MappingProxyType({})
    """Named set, or "" for a whole split, -> the text that was written for each of its prompts; kept where
    `eval.predictions` will ask for them."""


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

        Where the task writes texts, their scores follow, and `samples` of them. Where the split has named sets, the
        scores of each follow too, as `NAME/loss`; each example is scored once.

        For a task with several loss terms, `loss/NAME`, or as the task calls it, is the mean of each term; None where
        there is no item of it. Of a task that compares examples, each is compared with those of the whole split.
        """
        outcomes = {one.split.title: self._outcome(one) for one in loader.sets or (loader,)}
        scored = self._scores(loader, _together(outcomes) if loader.sets else outcomes[loader.split.title])
        if self.recipe.eval.predictions:
            scored.texts = {name: [text for text, _ in one.written] for name, one in outcomes.items() if one.written}
        for one in loader.sets:
            own = self._scores(one, outcomes[one.split.title])
            scored |= {f"{one.split.title}/{name}": value for name, value in own.items() if name != "samples"}
        return scored

    def _outcome(self, loader: Loader) -> "_Outcome":
        """Run the model over a split or a set."""
        task, accelerator, counts = loader.task, loader.accelerator, loader.split.num_items
        loader, step, _ = loader.completed(plan_scoring(loader.split, self.recipe))
        total = torch.zeros(len(task.terms), dtype=torch.float64, device=accelerator.device)
        pairs: list[tuple[int, list[Any]]] = []
        parts: list[list[torch.Tensor]] = []
        self.strategy.model.eval()
        with torch.no_grad(), fastest_attention(accelerator.device):
            for micro_batch in loader.micro_batches(step):
                beat("evaluation")
                with self.strategy.autocast():
                    outputs = task.forward(self.strategy.model, micro_batch.batch)
                if isinstance(task, Pools):
                    parts.append([wide(outputs), *(micro_batch.batch[name] for name in task.pooled)])
                elif micro_batch.counts:
                    total += task.loss_sum(outputs, micro_batch.batch).view(-1)
                    pairs.append((micro_batch.position, task.predict(outputs, micro_batch.batch)))
                del outputs  # large: not beside the next ones
            if isinstance(task, Pools):
                sums, pairs = _score_pool(task, Pool(step, accelerator), parts)
                total += sums
        beat("evaluation")
        sums = accelerator.reduce(total, "sum").tolist()
        of_ids = {
            number: pair
            for position, part in gather_object(pairs)
            for number, pair in zip(step.micro_batches[position].tolist(), part, strict=bool(part))
        }
        assert not of_ids or len(of_ids) == len(counts), (len(of_ids), len(counts))
        texts = write_texts(self.strategy, self.recipe, loader) if loader.split.prompts else []
        written = [(text, prompt.reference) for text, prompt in zip(texts, loader.split.prompts, strict=True)]
        samples = samples_of(loader, texts, self.recipe.eval.samples) if texts else []
        if isinstance(task, RollsOut):
            samples = completions_of(loader, self.recipe.eval.samples)
        return _Outcome(sums, step.num_items, [of_ids[number] for number in sorted(of_ids)], written, samples)

    def _scores(self, loader: Loader, outcome: "_Outcome") -> Scores:
        """Return the scores of what the model said of a split or a set."""
        task, accelerator = loader.task, loader.accelerator
        losses = terms.means(task.terms, outcome.sums, outcome.num_items)
        loss = terms.total(task.terms, losses)
        return_memory()  # metrics import what they need
        scores: list[Any] = [None]
        if accelerator.is_main_process:
            scores = [task.metrics(outcome.pairs, loss, self.survey)]
            if outcome.written:
                assert isinstance(task, Writes)
                scores[0] |= task.score_texts(outcome.written)
        of_terms = _of_terms(task, losses, outcome.num_items)
        samples = {"samples": outcome.samples} if outcome.samples else {}
        return Scores(_broadcast(scores, accelerator) | of_terms | samples | left_out(loader.split.report))


@dataclass(frozen=True)
class _Outcome:
    """What a model said of a split or a set, on every rank."""

    sums: list[float]
    """Of the loss, one a term."""
    num_items: int | list[int]
    pairs: list[Any]
    """What the task predicted of each example, with the reference."""
    written: list[tuple[str, str]]
    """The texts that were generated, with the references."""
    samples: list[dict[str, Any]]


def _together(outcomes: dict[str, _Outcome]) -> _Outcome:
    """Return the outcome of all sets of a split, from those of each."""
    every = list(outcomes.values())
    items = [one.num_items if isinstance(one.num_items, list) else [one.num_items] for one in every]
    num_items = [sum(of_term) for of_term in zip(*items, strict=True)]
    return _Outcome(
        [sum(of_term) for of_term in zip(*(one.sums for one in every), strict=True)],
        num_items if isinstance(every[0].num_items, list) else num_items[0],
        [pair for one in every for pair in one.pairs],
        [pair for one in every for pair in one.written],
        [{"set": name, **sample} for name, one in outcomes.items() for sample in one.samples],
    )


def _score_pool(
    task: Any, pool: Pool, parts: Sequence[Sequence[torch.Tensor]]
) -> tuple[torch.Tensor | float, list[tuple[int, list[Any]]]]:
    """Score all examples of a split together, on rank 0; every rank calls it.

    Args:
        task: `Pools`.
        pool: The split's examples.
        parts: Of each of this rank's passes, the outputs and what of its batch is pooled.

    Returns:
        The sums of the losses, [terms], and the predictions of each micro-batch; nothing on other ranks.
    """
    outputs, *others = (pool.joined(of_one) for of_one in zip(*parts, strict=True))
    if not pool.accelerator.is_main_process:
        return 0.0, []
    batch = dict(zip(task.pooled, others, strict=True))
    told = task.predict(outputs, batch)
    pairs = [(at, [told[place] for place in pool.of(at).tolist()]) for at in range(len(pool.sizes))]
    return task.loss_sum(outputs, batch).view(-1), pairs


def _of_terms(task: Task, losses: dict[str, float], num_items: terms.Count) -> dict[str, Any]:
    """Return each term's mean under its metric's name; nothing where there is one term."""
    if not isinstance(num_items, list) or len(losses) < 2:
        return {}
    counted = zip(losses.items(), num_items, strict=True)
    return {task.metric_of_term(name): value if count else None for (name, value), count in counted}


def left_out(report: Report) -> dict[str, Any]:
    """Return how many of a split's rows no score is of, and why; nothing where every row was scored."""
    reasons = {"invalid": report.skipped, "too_long": report.dropped, "nothing_to_score": report.empty}
    told = {why: count for why, count in reasons.items() if count}
    return {"left_out": {"of_rows": report.rows, **told}} if told else {}


def _broadcast(values: list[Any], accelerator: Accelerator) -> Any:
    if accelerator.num_processes > 1:
        torch.distributed.broadcast_object_list(values)
    return values[0]
