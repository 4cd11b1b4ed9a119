"""Writes what the trained model says of each example of a split, with the reference and the example's own loss."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from onecurve.config import Recipe
from onecurve.data.loader import Loader
from onecurve.data.plan import plan_scoring
from onecurve.data.rows import Located
from onecurve.data.splits import Split
from onecurve.errors import ConfigError, TrainingError
from onecurve.evaluation.writing import write_texts
from onecurve.losses import terms
from onecurve.losses.chunked_head import whole_logits
from onecurve.machine.atomic_write import write_atomically
from onecurve.model.attention_kernels import fastest_attention
from onecurve.ranks.heartbeat import beat
from onecurve.run.directory import RunDirectory
from onecurve.strategies.base import Strategy
from onecurve.tasks.base import Batch, Survey, Task

_FILES = {"eval": "predictions-dev.jsonl", "test": "predictions-test.jsonl"}


def write_predictions(
    loaders: Mapping[str, Loader],
    strategy: Strategy,
    recipe: Recipe,
    survey: Survey,
    directory: RunDirectory,
    scored: Mapping[str, Mapping[str, Any]],
) -> None:
    """Write a file for each scored split, one line an example, where `eval.predictions` asks for it; by every rank.

    A line has `set` (of named sets, the set's name), `row` (the row's number in its data, from 0), `place` (file and
    line), what `onecurve predict` says of it (where evaluations generate, the `text`), `reference`, `loss` (mean over
    the example's items, in nats; squared units in regression) and `num_items`. The losses, weighted by `num_items`,
    make the loss of the split.

    Args:
        loaders: Of the run's splits, by name.
        strategy: Its model's weights are those that `scored` is of.
        recipe: The run.
        survey: The label names.
        directory: Where the files go.
        scored: Split -> its scores by these weights. The texts that were written for them are not written again; they
            are gone where the scores come from a checkpoint.

    Raises:
        TrainingError: A file cannot be written.
        ConfigError: The task's outputs do not tell its examples apart.
    """
    for name, loader in loaders.items():
        if name not in _FILES or not recipe.eval.predictions:
            continue
        told: list[dict[str, Any]] = []
        for one in loader.sets or (loader,):
            found = _predict(one, strategy, recipe, survey)
            if one.split.prompts:
                texts = getattr(scored.get(name), "texts", {}).get(one.split.title)
                _add_texts(found, one, write_texts(strategy, recipe, one) if texts is None else texts)
            if one.accelerator.is_main_process:
                of_set = {"set": one.split.title} if one.split.title else {}
                told += (of_set | line for line in _with_places(found, one.split))
        if loader.accelerator.is_main_process:
            path = directory.path / _FILES[name]
            lines = (json.dumps(line, ensure_ascii=False) + "\n" for line in told)
            try:
                write_atomically(path, "".join(lines))
            except OSError as error:
                raise TrainingError(f"'{path}' cannot be written: {error.strerror}.") from None


def _predict(loader: Loader, strategy: Strategy, recipe: Recipe, survey: Survey) -> dict[int, dict[str, Any]]:
    """Return what is said of each example, by its number; on every rank."""
    if recipe.train.logits == "chunked":  # whole ones here: of one example at a time
        recipe = recipe.model_copy(update={"eval": recipe.eval.model_copy(update={"micro_batch_size": 1})})
    step = plan_scoring(loader.split, recipe)
    pairs: list[tuple[int, dict[str, Any]]] = []
    strategy.model.eval()
    with torch.no_grad(), fastest_attention(loader.accelerator.device), whole_logits(strategy.unwrapped()):
        for micro_batch in loader.micro_batches(step):
            beat("evaluation")
            with strategy.autocast():
                outputs = loader.task.forward(strategy.model, micro_batch.batch)
            if micro_batch.counts:
                numbers = step.micro_batches[micro_batch.position].tolist()
                pairs += zip(numbers, _tell(loader, outputs, micro_batch.batch, numbers, survey), strict=True)
            del outputs
    found = dict(gather_object(pairs))
    assert len(found) == len(loader.split), (len(found), len(loader.split))
    return found


def _add_texts(found: dict[int, dict[str, Any]], loader: Loader, texts: Sequence[str]) -> None:
    """Add the text that was written for a row, and its reference, to the row's last example: that has its last answer.

    Args:
        found: What is said of each example, by its number.
        loader: Of the split.
        texts: Of its prompts.
    """
    last = {int(row): number for number, row in enumerate(loader.split.rows)}
    for prompt, text in zip(loader.split.prompts, texts, strict=True):
        number = last[prompt.row]
        found[number] = {"text": text, "reference": prompt.reference, **found[number]}


def _tell(loader: Loader, outputs: Any, batch: Batch, numbers: list[int], survey: Survey) -> Iterator[dict[str, Any]]:
    task, examples = loader.task, loader.split.take(numbers)
    answers: Sequence[dict[str, Any]] = [{}] * len(examples)
    if type(task).answers is not Task.answers:
        answers = task.answers(outputs, batch, examples, survey)
    num_items = [_targets(example["num_items"]) for example in examples]
    for place, (example, answer) in enumerate(zip(examples, answers, strict=True)):
        own = _of_example(outputs, place, num_items)
        sums = task.loss_sum(own, {name: tensor[place : place + 1] for name, tensor in batch.items()}).view(-1)
        loss = terms.total(task.terms, terms.means(task.terms, sums.tolist(), example["num_items"]))
        reference = task.reference(example, survey)
        yield answer | reference | {"loss": loss, "num_items": example["num_items"]}


def _targets(num_items: int | list[int]) -> int:
    """Return how many rows an example has in outputs with a row a target, which is an item of every term."""
    return max(num_items) if isinstance(num_items, list) else num_items


def _of_example(outputs: Any, place: int, num_items: list[int]) -> Any:
    """Return the rows of a pass's outputs that belong to one example.

    Args:
        outputs: A tensor or tensors by name, whose first dimension is the example or the target.
        place: The example's, in the batch.
        num_items: The targets of each example of the batch; at least one each.
    """
    if isinstance(outputs, Mapping):
        return {name: _of_example(tensor, place, num_items) for name, tensor in outputs.items()}
    if isinstance(outputs, Tensor) and outputs.dim() and len(outputs) == len(num_items):
        return outputs[place : place + 1]
    if isinstance(outputs, Tensor) and outputs.dim() and len(outputs) == sum(num_items):
        start = sum(num_items[:place])
        return outputs[start : start + num_items[place]]
    raise ConfigError("this task's outputs do not tell examples apart; set it to false.", where="eval.predictions")


def _with_places(found: Mapping[int, dict[str, Any]], split: Split) -> Iterator[dict[str, Any]]:
    """Yield what was said in the order of the examples, with the row that each came from."""
    places = _places(split)
    for number in sorted(found):
        row = int(split.rows[number])
        yield {"row": row, **places.get(row, {}), **found[number]}


def _places(split: Split) -> dict[int, dict[str, Any]]:
    """Return where each row of a split stands, by its number; nothing where its data has changed since the start."""
    source = split.source
    if source is None or source.stamp() != split.stamp:
        return {}
    return {row.number: {"place": row.place} for row in source.rows() if isinstance(row, Located)}
