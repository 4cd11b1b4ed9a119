"""What all tasks share that give an input one label, several labels, or a number."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from onecurve.config import nearest
from onecurve.content.labels import in_natural_order, label_name
from onecurve.errors import DataError
from onecurve.metrics import NUMBERS
from onecurve.tasks import base
from onecurve.tasks._problems import PROBLEMS, Problem
from onecurve.tasks.base import Answer, BadRow, Batch, Example, Processing, Row, Settings, Survey

if TYPE_CHECKING:
    from torch import Tensor


class LabelSettings(Settings):
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
    def _labels_fit_the_problem(self) -> "LabelSettings":
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


class Labelled(base.Task):
    """A task whose rows have a `label`. What it is a label of, its subclass reads."""

    has_models_loss: ClassVar[bool] = True
    Settings: ClassVar[type[Settings]] = LabelSettings
    lower_is_better: ClassVar[frozenset[str]] = frozenset({"loss", "mse", "mae"})

    def __init__(self, settings: LabelSettings) -> None:
        super().__init__(settings)
        self.metric_names: Sequence[str] = ("loss", *NUMBERS[settings.problem_type])
        self._problem: Problem = PROBLEMS[settings.problem_type](
            settings.label_separator, tuple(settings.label_names), settings.renamed
        )

    def without_effect(self, reading: Processing | None = None) -> Mapping[str, str]:
        if self.settings.problem_type == "multi_label_classification":
            return base.NO_TEXT_OUT
        return {**base.NO_TEXT_OUT, "task.label_separator": "a row has several labels only if multi-label"}

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

    def labelled(self, row: Row, survey: Survey) -> Example:
        """Return `labels` and `num_items` of a row's example; no `labels` where the row, to be predicted, has none."""
        if row.get("label") is None:
            return {"num_items": 0}
        label = self._problem.target(row["label"], survey.labels)
        return {"labels": label, "num_items": len(label) if isinstance(label, list) else 1}

    def model_config(self, survey: Survey) -> dict[str, Any]:
        config: dict[str, Any] = {"problem_type": self.settings.problem_type, "num_labels": len(survey.labels) or 1}
        if survey.labels:
            config["id2label"] = dict(enumerate(survey.labels))
            config["label2id"] = {name: index for index, name in enumerate(survey.labels)}
        return config

    def collate_labels(self, examples: Sequence[Example]) -> Batch:
        """Return `labels`, [examples] or [examples, labels], where the examples have them.

        Of mixed examples also `partner_labels`, and `share`, float32 [examples]: how much the labels themselves count.
        """
        import torch

        dtype = torch.int64 if self.settings.problem_type == "single_label_classification" else torch.float32
        if not all("labels" in example for example in examples):
            return {}
        kinds = {"labels": dtype} | (
            {"partner_labels": dtype, "share": torch.float32} if "share" in examples[0] else {}
        )
        return {name: torch.tensor([e[name] for e in examples], dtype=kind) for name, kind in kinds.items()}

    def num_items(self, batch: Batch) -> int:
        return batch["labels"].numel()

    def loss_sum(self, logits: "Tensor", batch: Batch) -> "Tensor":
        return self._problem.loss_sum(*self.classified(logits, batch))

    @property
    def classes(self) -> Literal["label", "labels"] | None:
        return self._problem.classes

    def classified(self, outputs: "Tensor", batch: Batch) -> "tuple[Tensor, Tensor]":
        targets = batch["labels"]
        if "share" in batch:
            targets = self._problem.mixed(targets, batch["partner_labels"], batch["share"], outputs.shape[1])
        return outputs.float(), targets

    def predict(self, logits: "Tensor", batch: Batch) -> list[tuple[Any, Any]]:
        return list(zip(self._problem.predict(logits), batch["labels"].tolist(), strict=True))

    def metrics(self, pairs: Sequence[tuple[Any, Any]], loss: float, survey: Survey) -> dict[str, Any]:
        return {"loss": loss, **self._problem.metrics(pairs, survey.labels)}

    def answers(self, outputs: Any, batch: Batch, examples: Sequence[Example], survey: Survey) -> list[Answer]:
        return [self._problem.answer(row, survey.labels) for row in outputs.float()]

    def reference(self, example: Example, survey: Survey) -> Answer:
        return {"reference": self._problem.reference(example["labels"], survey.labels)}

    def shown_label(self, example: Example, survey: Survey) -> str:
        """Return an example's label for people."""
        return self._problem.show(example["labels"], survey.labels)


def _check_known(names: list[str], known: list[str], what: str, advice: str = "") -> None:
    for name in names:
        if name not in known:
            raise BadRow(f"label {name!r} {what}. {nearest(name, known)}{advice}")
