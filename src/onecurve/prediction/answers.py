"""What a trained model says of rows, one answer a row, in their order."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby, islice
from typing import Any

from onecurve.data.collation import as_scored
from onecurve.data.rows import Broken, Located
from onecurve.errors import ConfigError
from onecurve.model.architectures import reads_padding
from onecurve.model.attention_kernels import fastest_attention
from onecurve.model.prompt_padding import reads_prompt_padding, unequal
from onecurve.model.trained import Trained
from onecurve.tasks.base import Answer, Asked, BadRow, Example, Generates, Row, Task, Votes

_CUT = "truncated"
_NOTHING = "nothing to read"
_BATCHES_SORTED = 16
"""Batches among which rows are put together by length."""


def answer(
    trained: Trained, rows: Iterable[Located | Broken], batch_size: int, max_new_tokens: int, votes: bool = False
) -> Iterator[Answer]:
    """Ask a model about rows.

    Args:
        trained: The model.
        rows: By the task's own column names; labels need not be there.
        batch_size: Rows of one forward pass.
        max_new_tokens: How far a model that writes text writes.
        votes: Of a task that `Votes`: the probabilities in place of the answer.

    Yields:
        The answer to each row, in their order: what the task says (and `truncated`, where the row is longer than the
        model reads), or `error` where the row cannot be used.
    """
    rows = iter(rows)
    while window := list(islice(rows, batch_size * _BATCHES_SORTED)):
        encoded = [_encode(trained, row, max_new_tokens) for row in window]
        answers = [value if isinstance(value, str) else None for value in encoded]
        examples = {place: value for place, value in enumerate(encoded) if not isinstance(value, str)}
        lengths = {place: trained.task.length(example) for place, example in examples.items()}
        said: dict[int, Answer] = {}
        for places in _batches(lengths, batch_size, _of_one_length(trained, examples, lengths)):
            found = _ask(trained, [examples[place] for place in places], max_new_tokens, votes)
            said.update(zip(places, found, strict=True))
        for place, error in enumerate(answers):
            if error is None:
                yield said[place] | ({"truncated": True} if examples[place].get(_CUT) else {})
            else:
                yield {"error": error}


def _of_one_length(trained: Trained, examples: Mapping[int, Example], lengths: Mapping[int, int]) -> bool:
    """Whether a pass must have rows of one length; a model that writes texts is tried once, with two of its prompts."""
    import torch

    task, model = trained.task, trained.model
    if not isinstance(task, Generates):
        return reads_padding(trained.config)
    pair = unequal(list(lengths.values()))
    if pair and not hasattr(model, "prompts_apart"):
        prompts = [list(examples.values())[place] for place in pair]
        with torch.inference_mode(), fastest_attention(model.device):
            model.prompts_apart = reads_prompt_padding(model, task, prompts, trained)
    apart: bool = getattr(model, "prompts_apart", False)
    return apart


def _batches(lengths: Mapping[int, int], batch_size: int, of_one_length: bool) -> Iterator[list[int]]:
    """Yield the places of the rows of each pass, the longest first.

    Args:
        lengths: By place.
        batch_size: Rows of a pass, at most.
        of_one_length: Whether a pass may only have rows of the same length, so that none is padded.
    """
    order = sorted(lengths, key=lambda place: -lengths[place])
    parts = [list(part) for _, part in groupby(order, key=lengths.__getitem__)] if of_one_length else [order]
    for part in parts:
        yield from (part[start : start + batch_size] for start in range(0, len(part), batch_size))


def _encode(trained: Trained, found: Located | Broken, max_new_tokens: int) -> Example | str:
    """Return a row as an example, or why it is none."""
    if isinstance(found, Broken):
        return found.reason
    try:
        trained.task.check_input(found.row)
        if isinstance(trained.task, Generates):
            return encode_prompt(trained, trained.task, found.row, max_new_tokens)
        row = _unlabelled(trained.task, found.row)
        examples = _examples(trained, row, truncate=False)
        if max(map(trained.task.length, examples), default=0) > trained.max_length:
            examples = [{**example, _CUT: True} for example in _examples(trained, row, truncate=True)]
    except BadRow as error:
        return str(error)
    return examples[0] if examples else _NOTHING


def _examples(trained: Trained, row: Row, truncate: bool) -> list[Example]:
    if isinstance(trained.task, Asked):
        return [trained.task.question(row, trained, truncate)]
    return trained.task.encode(row, trained.survey, trained, truncate)


def encode_prompt(trained: Trained, task: Generates, row: Row, max_new_tokens: int) -> Example | str:
    """Return what a model reads before it writes, or why it cannot.

    Raises:
        BadRow: The row has no prompt.
    """
    prompt = task.prompt(row, trained)
    length = trained.task.length(prompt)
    if length == 0:
        return _NOTHING
    if getattr(trained.config, "is_encoder_decoder", False):  # reads one sequence and writes another
        if length <= trained.max_length:
            return prompt
        (cut,) = trained.task.encode(_unlabelled(trained.task, row), trained.survey, trained, truncate=True)
        return {**cut, _CUT: True}
    if length >= trained.max_length:
        return f"has {length} tokens, and the model reads and writes {trained.max_length} in all"
    if trained.positions and length + max_new_tokens > trained.positions:
        return (
            f"has {length} tokens; with {max_new_tokens} new ones that is more than the {trained.positions} that the "
            f"model has. max_new_tokens may be at most {trained.positions - length} here"
        )
    return prompt


def _unlabelled(task: Task, row: Row) -> Row:
    return {name: value for name, value in row.items() if name not in task.targets}


def _ask(trained: Trained, examples: list[Example], max_new_tokens: int, votes: bool) -> list[Answer]:
    import torch

    task = trained.task
    with torch.inference_mode(), fastest_attention(trained.model.device):
        if isinstance(task, Generates):
            texts = task.generate(trained.model, examples, trained, max_new_tokens=max_new_tokens, do_sample=False)
            return [{"text": text} for text in texts]
        batch = {name: tensor.to(trained.model.device) for name, tensor in as_scored(task, examples, trained).items()}
        outputs = task.forward(trained.model, batch)
        if isinstance(task, Asked):
            return task.replies(outputs, batch, trained)
        if votes and isinstance(task, Votes):
            return task.vote(outputs, batch, examples, trained.survey)
        return task.answers(outputs, batch, examples, trained.survey)


def check_askable(task: Task, name: str) -> None:
    """Raise `ConfigError` where a task's models have nothing to say of a row."""
    if not isinstance(task, Generates | Asked) and type(task).answers is Task.answers:
        raise ConfigError(f"a model trained for {name} has no answers to give.")


def plain(told: Answer, text: Any) -> str:
    """Return an answer as a line for a terminal: what is said, then what it was said of."""
    if "text" in told:
        return str(told["text"])
    return f"{_said(told)}\t{' '.join(map(str, text)) if isinstance(text, list) else text}"


def _said(told: Answer) -> str:
    if "error" in told:
        return f"error: {told['error']}"
    if heads := {name: said for name, said in told.items() if isinstance(said, dict) and name != "probabilities"}:
        return "; ".join(f"{name}: {_said(said)}" for name, said in heads.items())
    for name in ("value", "score", "scores", "embedding"):
        if name in told:
            return _numbers(told[name])
    if "entities" in told:
        return ", ".join(f"{one['type']} {one['text']!r}" for one in told["entities"]) or "(none)"
    if "tags" in told:
        return " ".join(told["tags"])
    return _fills(told["fills"]) if "fills" in told else _labels(told)


def _numbers(told: float | list[float]) -> str:
    return " ".join(f"{number:.4f}" for number in (told if isinstance(told, list) else [told]))


def _fills(masks: list[list[Answer]]) -> str:
    return "; ".join(", ".join(f"{one['token']!r} {one['probability']:.3f}" for one in mask) for mask in masks)


def _labels(told: Answer) -> str:
    label, probabilities = told["label"], told["probabilities"]
    if isinstance(label, list):
        return ", ".join(f"{name} {probabilities[name]:.3f}" for name in label) or "(none)"
    return f"{label} {told['probability']:.3f}"
