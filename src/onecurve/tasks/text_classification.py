"""Text classification of a text or a pair: single-label, multi-label, or regression."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from onecurve.config import nearest
from onecurve.content.labels import in_natural_order, label_name
from onecurve.errors import DataError
from onecurve.metrics import NUMBERS
from onecurve.tasks import base
from onecurve.tasks._problems import PROBLEMS, Problem
from onecurve.tasks.base import (
    Answer,
    BadRow,
    Batch,
    Example,
    Processing,
    Row,
    Settings,
    Survey,
    check_text,
    pad_text,
    reads_last_position,
)

if TYPE_CHECKING:
    from torch import Tensor


class TextClassificationSettings(Settings):
    problem_type: Literal["single_label_classification", "multi_label_classification", "regression"] = (
        "single_label_classification"
    )
    """Kind of `label`: one name, any number of names, or a number."""
    labels: list[str | int | bool] | dict[str | int | bool, str | int | bool] | None = None
    """Every label name in the order of the ids, which is also that of 0/1 vectors. Or a map from what the data has to
    the name: {1: World, 2: Sports}. Absent: the training split's, in the order of the model's config where it names the
    same ones, else of a dataset's feature, else numbers by value and names from A to Z."""
    label_separator: str = Field(default=",", min_length=1)
    """Separator of the names in a multi-label row that is text."""

    @property
    def label_names(self) -> list[str]:
        """The label names that are set, as text."""
        labels = self.labels.values() if isinstance(self.labels, dict) else self.labels or ()
        return [label_name(label) for label in labels]

    @property
    def renamed(self) -> dict[str, str]:
        """What the data has -> the label's name, where `labels` is a map."""
        pairs = self.labels.items() if isinstance(self.labels, dict) else ()
        return {label_name(value): label_name(name) for value, name in pairs}

    @model_validator(mode="after")
    def _labels_fit_the_problem(self) -> "TextClassificationSettings":
        if self.labels is None:
            return self
        if self.problem_type == "regression":
            raise ValueError("regression has no labels: leave labels out or set another problem_type")
        names, least = self.label_names, PROBLEMS[self.problem_type].least_labels
        if len(set(names)) < len(names) or "" in names:
            raise ValueError(f"labels must be distinct and not empty; got {names}")
        if len(names) < least:
            raise ValueError(f"labels must name at least {least} for {self.problem_type}; got {names}")
        return self


class Task(base.Task):
    """Predict one of several labels, any number of labels, or a number."""

    Settings: ClassVar[type[Settings]] = TextClassificationSettings
    columns: ClassVar[Mapping[str, str]] = {
        "text": "non-empty text",
        "text_pair?": "a second text, such as the hypothesis to a premise",
        "label": "a name or whole number; multi-label: a list of names or a 0/1 vector; regression: a number",
    }
    encoder_version: ClassVar[int] = 2
    peft_task_type: ClassVar[str | None] = "SEQ_CLS"
    lower_is_better: ClassVar[frozenset[str]] = frozenset({"loss", "mse", "mae"})

    def __init__(self, settings: TextClassificationSettings) -> None:
        super().__init__(settings)
        self.metric_names: Sequence[str] = ("loss", *NUMBERS[settings.problem_type])
        self._problem: Problem = PROBLEMS[settings.problem_type](
            settings.label_separator, tuple(settings.label_names), settings.renamed
        )

    def without_effect(self, reading: Processing | None = None) -> Mapping[str, str]:
        if self.settings.problem_type == "multi_label_classification":
            return base.NO_TEXT_OUT
        return {**base.NO_TEXT_OUT, "task.label_separator": "a row has several labels only if multi-label"}

    def check_input(self, row: Row) -> None:
        check_text(row.get("text"), "text")
        if row.get("text_pair") is not None:
            check_text(row["text_pair"], "text_pair")

    def check(self, row: Row) -> None:
        self.check_input(row)
        if row.get("label") is None:
            raise BadRow("label is missing")
        names = self._problem.names(row["label"])
        if self.settings.labels is not None:
            _check_known(names, self.settings.label_names, "is not in task.labels", self._numbers_advice(names))

    def _numbers_advice(self, names: list[str]) -> str:
        if isinstance(self.settings.labels, dict) or not all(name.lstrip("-").isdigit() for name in names):
            return ""
        return " To name numbers, map them, as in task.labels: {0: NAME, 1: OTHER}."

    def row_labels(self, row: Row) -> Sequence[str]:
        return self._problem.names(row["label"])

    def survey(self, rows: Iterable[Row]) -> Survey:
        if self._problem.least_labels == 0:
            return Survey()
        names = self._problem.seen(row["label"] for row in rows)
        if given := self.settings.label_names:
            return Survey(given, "recipe", [name for name in given if name not in names])
        if len(names) < self._problem.least_labels:
            raise DataError(
                f"{self.settings.problem_type} needs at least {self._problem.least_labels} different labels; "
                f"the training split has {', '.join(map(repr, names)) or 'none'}.",
                where="data.train",
                fix="Check data.columns (is `label` the right column?) or set task.labels.",
            )
        return Survey(in_natural_order(names))

    def check_label(self, row: Row, survey: Survey) -> None:
        names = self._problem.names(row["label"])
        _check_known(names, survey.labels, "was never seen in training")

    def encode(self, row: Row, survey: Survey, reading: Processing, truncate: bool) -> list[Example]:
        limit = {"truncation": True, "max_length": reading.max_length} if truncate else {"truncation": False}
        # verbose=False: what happens to a long example is the caller's to decide and to report
        encoded = reading.tokenizer(row["text"], row.get("text_pair"), verbose=False, **limit)
        example = {"input_ids": encoded["input_ids"], "num_items": 0}
        if row.get("label") is not None:
            label = self._problem.target(row["label"], survey.labels)
            example |= {"labels": label, "num_items": len(label) if isinstance(label, list) else 1}
        # All zero for a single text, which is also what a model takes them for when it is given none
        if any(encoded.get("token_type_ids") or ()):
            example["token_type_ids"] = encoded["token_type_ids"]
        return [example]

    def auto_model(self) -> type:
        from transformers import AutoModelForSequenceClassification

        return AutoModelForSequenceClassification

    def model_config(self, survey: Survey) -> dict[str, Any]:
        config: dict[str, Any] = {"problem_type": self.settings.problem_type, "num_labels": len(survey.labels) or 1}
        if survey.labels:
            config["id2label"] = dict(enumerate(survey.labels))
            config["label2id"] = {name: index for index, name in enumerate(survey.labels)}
        return config

    def collate(self, examples: Sequence[Example], reading: Processing) -> Batch:
        import torch

        batch = pad_text(examples, reading.tokenizer.pad_token_id, reads_last_position(reading.config))
        dtype = torch.int64 if self.settings.problem_type == "single_label_classification" else torch.float32
        if all("labels" in e for e in examples):
            batch["labels"] = torch.tensor([e["labels"] for e in examples], dtype=dtype)
        return batch

    def num_items(self, batch: Batch) -> int:
        return batch["labels"].numel()

    def loss_sum(self, logits: "Tensor", batch: Batch) -> "Tensor":
        return self._problem.loss_sum(logits.float(), batch["labels"])

    def predict(self, logits: "Tensor", batch: Batch) -> list[tuple[Any, Any]]:
        return list(zip(self._problem.predict(logits), batch["labels"].tolist(), strict=True))

    def metrics(self, pairs: Sequence[tuple[Any, Any]], loss: float, survey: Survey) -> dict[str, Any]:
        return {"loss": loss, **self._problem.metrics(pairs, survey.labels)}

    def answers(self, outputs: Any, batch: Batch, examples: Sequence[Example], survey: Survey) -> list[Answer]:
        return [self._problem.answer(row, survey.labels) for row in outputs.float()]

    def reference(self, example: Example, survey: Survey) -> Answer:
        return {"reference": self._problem.reference(example["labels"], survey.labels)}

    def describe(self, example: Example, survey: Survey, tokenizer: Any) -> str:
        text = tokenizer.decode(example["input_ids"], clean_up_tokenization_spaces=False)
        return f"{text} -> «{self._problem.show(example['labels'], survey.labels)}»"


def _check_known(names: list[str], known: list[str], what: str, advice: str = "") -> None:
    for name in names:
        if name not in known:
            raise BadRow(f"label {name!r} {what}. {nearest(name, known)}{advice}")
