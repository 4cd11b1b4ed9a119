"""Reward models: a score for each answer, higher for the preferred one of a pair."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from onecurve.content.documents import Document
from onecurve.content.labels import read_number
from onecurve.losses.preference import bradley_terry
from onecurve.tasks._preferences import PreferenceTask, flattened, pad_pairs
from onecurve.tasks._rendering import TemplateSettings
from onecurve.tasks.base import (
    Answer,
    BadRow,
    Batch,
    Example,
    Processing,
    Row,
    Settings,
    Survey,
    reads_last_position,
)

if TYPE_CHECKING:
    from torch import Tensor, nn


class RewardSettings(TemplateSettings):
    center_rewards_coefficient: float | None = Field(default=None, gt=0)
    """Weight of (chosen score + rejected score) squared, which keeps scores around zero, such as 0.01; default: 0."""


class Task(PreferenceTask):
    """Learn to score answers from pairs of a chosen and a rejected one.

    The loss of a pair is that of Bradley and Terry: -log sigmoid(chosen score - rejected score - margin).
    """

    is_guessed: ClassVar[bool] = False
    Settings: ClassVar[type[Settings]] = RewardSettings
    columns: ClassVar[Mapping[str, str]] = {
        **PreferenceTask.columns,
        "margin?": "by how much the chosen answer's score is to be higher: a number; default: 0",
    }
    shapes: ClassVar[Mapping[str, Mapping[str, str]]] = {
        name: {**shape, "margin?": "margin"} for name, shape in PreferenceTask.shapes.items()
    }
    targets: ClassVar[frozenset[str]] = frozenset({"rejected", "margin"})
    peft_task_type: ClassVar[str | None] = "SEQ_CLS"
    metric_names: Sequence[str] = ("loss", "accuracy", "margin")
    loss_settings: ClassVar[frozenset[str]] = frozenset({"center_rewards_coefficient"})

    def without_effect(self, reading: Processing | None = None) -> Mapping[str, str]:
        return {**super().without_effect(reading), "train.logits": "this task's models have no language model head"}

    def read_text(self, text: str) -> Row:
        return {"chosen": text}

    def encode(self, row: Row, survey: Survey, reading: Processing, truncate: bool) -> list[Example]:
        limit = reading.max_length if truncate else None
        chosen, rejected = (_ids(one, reading.tokenizer, limit) for one in self.documents(row, reading.tokenizer))
        if chosen == rejected:  # what differs was cut off
            return []
        margin = {"margin": _margin(row)} if "margin" in row else {}
        return [{"chosen_ids": chosen, "rejected_ids": rejected, **margin, "num_items": 1}]

    def check(self, row: Row) -> None:
        super().check(row)
        _margin(row)

    def auto_model(self) -> type:
        from transformers import AutoModelForSequenceClassification

        return AutoModelForSequenceClassification

    def model_config(self, survey: Survey) -> dict[str, Any]:
        # A regression's output layer computes in float32: differences of scores are small beside the scores
        return {"num_labels": 1, "problem_type": "regression"}

    def collate(self, examples: Sequence[Example], reading: Processing) -> Batch:
        """Pad the answers; `margin`, where an example has one: float32 [pairs]."""
        batch = pad_pairs(examples, reading.tokenizer.pad_token_id, reads_last_position(reading.config))
        if not any("margin" in example for example in examples):
            return batch
        import torch

        return batch | {"margin": torch.tensor([example.get("margin", 0.0) for example in examples])}

    def describe(self, example: Example, survey: Survey, tokenizer: Any) -> str:
        chosen, rejected = (
            tokenizer.decode(example[name], clean_up_tokenization_spaces=False)
            for name in ("chosen_ids", "rejected_ids")
        )
        return f"«{chosen}» is better than «{rejected}»"

    def forward(self, model: "nn.Module", batch: Batch) -> "Tensor":
        scores = model(**flattened(batch, "input_ids", "attention_mask")).logits
        return scores.view(batch["input_ids"].shape[:2])

    def loss_sum(self, outputs: "Tensor", batch: Batch) -> "Tensor":
        chosen, rejected = outputs.float().unbind(1)
        margin = batch.get("margin", 0.0)
        return bradley_terry(chosen, rejected, margin, self.settings.center_rewards_coefficient or 0.0).sum()

    def predict(self, outputs: "Tensor", batch: Batch) -> list[tuple[Any, Any]]:
        return [(pair, None) for pair in outputs.float().tolist()]

    def metrics(self, pairs: Sequence[tuple[Any, Any]], loss: float, survey: Survey) -> dict[str, Any]:
        margins = [chosen - rejected for (chosen, rejected), _ in pairs]
        return {
            "loss": loss,
            "accuracy": sum(margin > 0 for margin in margins) / len(margins),
            "margin": sum(margins) / len(margins),
        }

    def answers(self, outputs: "Tensor", batch: Batch, examples: Sequence[Example], survey: Survey) -> list[Answer]:
        return [{"score": chosen, "rejected_score": rejected} for chosen, rejected in outputs.float().tolist()]

    def question(self, row: Row, reading: Processing, truncate: bool) -> Example:
        """Encode one answer, which stands in `chosen` and may be empty, with its prompt."""
        document = self.answer_document(row, "chosen", reading.tokenizer, may_be_empty=True)
        return {"chosen_ids": _ids(document, reading.tokenizer, reading.max_length if truncate else None)}

    def replies(self, outputs: "Tensor", batch: Batch, reading: Processing) -> list[Answer]:
        """Return the `score` of each answer."""
        return [{"score": score} for (score,) in outputs.float().tolist()]


def _margin(row: Row) -> float:
    try:
        return read_number(row.get("margin", 0.0))
    except BadRow:
        raise BadRow(
            f"margin must be a finite number; got {row['margin']!r}. Set data.columns to the columns to read to leave "
            "it out, such as {chosen: chosen, rejected: rejected, margin: ''}"
        ) from None


def _ids(document: Document, tokenizer: Any, max_length: int | None) -> list[int]:
    """Return a text's tokens, with the tokenizer's end token, if it has one, where the text has none of its own."""
    limit = {"truncation": True, "max_length": max_length} if max_length else {}
    ids: list[int] = tokenizer(document.text, add_special_tokens=document.add_special_tokens, verbose=False, **limit)[
        "input_ids"
    ]
    end = tokenizer.eos_token_id
    if not document.is_ended and end is not None and ids[-1:] != [end]:
        ids.append(end)
    return ids[:max_length]
