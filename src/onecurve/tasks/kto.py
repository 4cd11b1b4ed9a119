"""Preference optimisation without pairs: each answer was judged alone, as desirable or not."""

from collections.abc import Mapping, Sequence
from reprlib import repr as short
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from onecurve.content.documents import tokenise
from onecurve.content.preferences import read_answer, read_question
from onecurve.losses import preference
from onecurve.losses.next_token import mark_learnt
from onecurve.tasks._answers import AnswersTask, answer_logps
from onecurve.tasks._padding import pad, pad_text
from onecurve.tasks._preferences import JudgedTask
from onecurve.tasks._rendering import TemplateSettings
from onecurve.tasks.base import TALLY, BadRow, Batch, Example, Processing, Row, Settings, Survey

if TYPE_CHECKING:
    from torch import Tensor, nn

_REFERENCE = "reference_logps"
_OTHER = "other_"
"""Before the names of what the prompt and another example's answer are made of."""
_JUDGEMENTS = {"true": True, "false": False, "1": True, "0": False}


class KtoSettings(TemplateSettings):
    beta: float = Field(default=0.1, gt=0)
    """How closely the model is held to the reference: higher is closer."""
    desirable_weight: float = Field(default=1.0, gt=0)
    """Of desirable answers in the loss. The paper has the numbers of both kinds, each times its weight, at a ratio of 1
    to 4/3."""
    undesirable_weight: float = Field(default=1.0, gt=0)
    """Of undesirable answers."""
    reference: str | None = None
    """Another model as reference: a folder or hub name. Default: the model as it is before step 1."""


class Task(JudgedTask, AnswersTask):
    """Learn from answers that were judged one by one as desirable or not (KTO).

    How far the model has gone from the reference is estimated over the global batch, from each example's prompt with
    the answer of another example. What a frozen reference model says of all of these is computed once, before step 1,
    and kept with the data.
    """

    is_guessed: ClassVar[bool] = False
    Settings: ClassVar[type[Settings]] = KtoSettings
    columns: ClassVar[Mapping[str, str]] = {
        "prompt?": "the question: non-empty text, or the messages before the answer; absent where completion has them",
        "completion": "the answer: non-empty text, or messages of which the last is the answer",
        "label": "whether the answer is desirable: true or false",
        "system?": "a system prompt, placed before the other turns: text",
        "tools?": "the tools that the answers may call: a list of JSON schemas (in CSV: as JSON)",
    }
    targets: ClassVar[frozenset[str]] = frozenset({"completion", "label"})
    metric_names: Sequence[str] = (
        "loss",
        "kl",
        "rewards/chosen",
        "rewards/rejected",
        "rewards/margins",
        "logps/chosen",
        "logps/rejected",
    )
    lower_is_better: ClassVar[frozenset[str]] = frozenset({"loss", "kl"})
    loss_settings: ClassVar[frozenset[str]] = frozenset(KtoSettings.model_fields) - set(TemplateSettings.model_fields)
    annotator_version: ClassVar[int] = 2
    pooled: ClassVar[Sequence[str]] = ("label", _REFERENCE)

    def without_effect(self, reading: Processing | None = None) -> Mapping[str, str]:
        why = "each prompt is also read with another example's answer, whose length is not counted"
        return {**super().without_effect(reading), "train.micro_batch_tokens": why}

    # Rows

    def check_input(self, row: Row) -> None:
        read_question(row)

    def check(self, row: Row) -> None:
        _judgement(row)
        answer = read_answer(row, "completion")
        if isinstance(answer, str) or len(answer.messages) < 2:
            raise BadRow("prompt is missing")
        if answer.messages[-1]["role"] != "assistant":
            raise BadRow("completion must end with an answer of the assistant")

    def encode(self, row: Row, survey: Survey, reading: Processing, truncate: bool) -> list[Example]:
        document = self.answer_document(row, "completion", reading.tokenizer)
        ids, mask = tokenise(document, reading.tokenizer)
        if truncate:
            ids, mask = ids[: reading.max_length], mask[: reading.max_length]
        if not any(mask[1:]):
            return []
        is_desirable = _judgement(row)
        found = f"{'desirable' if is_desirable else 'undesirable'} answers"
        return [
            {
                "input_ids": ids,
                "mask": [0, *map(int, mask[1:])],
                "label": int(is_desirable),
                "num_items": 1,
                TALLY: {found: 1},
            }
        ]

    def mismatch(self, example: Example, other: Example) -> Example:
        start, other_start = (one["mask"].index(1) for one in (example, other))
        ids = example["input_ids"][:start] + other["input_ids"][other_start:]
        return {**example, f"{_OTHER}ids": ids, f"{_OTHER}mask": [0] * start + other["mask"][other_start:]}

    def collate(self, examples: Sequence[Example], reading: Processing) -> Batch:
        import torch

        batch = _sequences(examples, "input_ids", "mask", reading)
        # Where there is no other example, as in a look at single ones, its own answer stands for another's
        others = [one if f"{_OTHER}ids" in one else self.mismatch(one, one) for one in examples]
        mismatched = _sequences(others, f"{_OTHER}ids", f"{_OTHER}mask", reading)
        batch |= {f"{_OTHER}{name}": tensor for name, tensor in mismatched.items()}
        batch["label"] = torch.tensor([example["label"] for example in examples])
        if _REFERENCE in examples[0]:
            batch[_REFERENCE] = torch.tensor([example[_REFERENCE] for example in examples], dtype=torch.float64)
        return batch

    def num_items(self, batch: Batch) -> int:
        return len(batch["input_ids"])

    def describe(self, example: Example, survey: Survey, tokenizer: Any) -> str:
        told = mark_learnt(example["input_ids"], [bool(one) for one in example["mask"]], tokenizer)
        return f"{told} is {'desirable' if example['label'] else 'undesirable'}"

    # The model

    def forward(self, model: "nn.Module", batch: Batch) -> "Tensor":
        """Return the log-probability of each answer after its prompt, and of another's: float64 [examples, 2]."""
        import torch

        with torch.no_grad():
            others = {name.removeprefix(_OTHER): value for name, value in batch.items() if name.startswith(_OTHER)}
            mismatched = answer_logps(model, others)
        return torch.stack([answer_logps(model, batch), mismatched], 1)

    def losses(self, outputs: "Tensor", batch: Batch) -> "Tensor":
        settings, ratios = self.settings, outputs.double() - batch[_REFERENCE]
        weights = settings.desirable_weight, settings.undesirable_weight
        return preference.kto(ratios[:, 0], ratios[:, 1], batch["label"] > 0, settings.beta, weights)

    def loss_sum(self, outputs: "Tensor", batch: Batch) -> "Tensor":
        return self.losses(outputs, batch).sum().float()

    # What the reference says

    @property
    def annotations(self) -> Mapping[str, Any]:
        return {_REFERENCE: [0.0, 0.0]}

    def annotate(self, outputs: "Tensor", batch: Batch) -> Mapping[str, Sequence[Any]]:
        return {_REFERENCE: outputs.double().tolist()}

    # Scores

    def predict(self, outputs: "Tensor", batch: Batch) -> list[tuple[Any, Any]]:
        """Return (log-probability, reward, how much likelier another's answer became) and label of each example."""
        import torch

        ratios = outputs.double() - batch[_REFERENCE]
        told = torch.stack([outputs[:, 0].double(), self.settings.beta * ratios[:, 0], ratios[:, 1]], 1)
        return list(zip(told.tolist(), batch["label"].tolist(), strict=True))

    def metrics(self, pairs: Sequence[tuple[Any, Any]], loss: float, survey: Survey) -> dict[str, Any]:
        def mean(values: Sequence[float]) -> float | None:
            return sum(values) / len(values) if values else None

        judged = [[told for told, label in pairs if label == wanted] for wanted in (1, 0)]
        rewards, logps = ([mean([told[place] for told in of_one]) for of_one in judged] for place in (1, 0))
        return {
            "loss": loss,
            "kl": max(mean([told[2] for told, _ in pairs]) or 0.0, 0.0),
            "rewards/chosen": rewards[0],
            "rewards/rejected": rewards[1],
            "rewards/margins": None if None in rewards else rewards[0] - rewards[1],  # type: ignore[operator]
            "logps/chosen": logps[0],
            "logps/rejected": logps[1],
        }


def _judgement(row: Row) -> bool:
    """Return whether the answer is desirable."""
    value = row.get("label")
    if value is None:
        raise BadRow("label is missing")
    found = _JUDGEMENTS.get(str(value).strip().lower()) if isinstance(value, bool | int | str) else None
    if found is None:
        raise BadRow(f"label must be true or false; got {short(value)}")
    return found


def _sequences(examples: Sequence[Example], ids: str, mask: str, reading: Processing) -> Batch:
    """Return `input_ids`, `attention_mask` and `completion_mask`: int64 [examples, longest], cut at the end."""
    longest = reading.max_length
    rows = [{"input_ids": example[ids][:longest]} for example in examples]
    masks = pad([example[mask][:longest] for example in examples], 0)
    return pad_text(rows, reading.tokenizer.pad_token_id) | {"completion_mask": masks}
