"""Audio classification: one label for a clip."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import field_validator

from onecurve.config import nearest
from onecurve.content.audio import beep
from onecurve.content.labels import in_natural_order, label_name
from onecurve.errors import DataError
from onecurve.metrics import NUMBERS
from onecurve.tasks._problems import SingleLabel
from onecurve.tasks._sound import SoundSettings, SoundTask
from onecurve.tasks.base import Answer, BadRow, Batch, Example, Processing, Row, Settings, Survey

if TYPE_CHECKING:
    from torch import Tensor

Labels = list[str | int | bool] | dict[str | int | bool, str | int | bool]


class AudioClassificationSettings(SoundSettings):
    labels: Labels | None = None
    """Every label name in the order of the ids. Or a map from what the data has to the name: {0: yes, 1: no}. Absent:
    the training split's, in the order of the model's config where it names the same ones, else of a dataset's feature,
    else numbers by value and names from A to Z."""

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

    @field_validator("labels")
    @classmethod
    def _are_several(cls, labels: Labels | None) -> Labels | None:
        if labels is not None:
            names = [label_name(label) for label in (labels.values() if isinstance(labels, dict) else labels)]
            if len(set(names)) < max(len(names), SingleLabel.least_labels) or "" in names:
                raise ValueError(f"labels must be distinct, not empty, and two at least; got {names}")
        return labels


class Task(SoundTask):
    """Predict one of several labels of a clip."""

    Settings: ClassVar[type[Settings]] = AudioClassificationSettings
    columns: ClassVar[Mapping[str, str]] = {
        "audio": "a sound file: WAV, FLAC, Ogg, MP3",
        "label": "a name or whole number",
    }
    sample: ClassVar[Sequence[Row]] = [
        {"audio": beep(hertz), "label": label} for hertz, label in [(300, "low"), (900, "high")] * 6
    ]
    metric_names: Sequence[str] = ("loss", *NUMBERS["single_label_classification"])

    def __init__(self, settings: AudioClassificationSettings) -> None:
        super().__init__(settings)
        self._problem = SingleLabel("", tuple(settings.label_names), settings.renamed)

    def check(self, row: Row) -> None:
        if row.get("label") is None:
            raise BadRow("label is missing")
        if known := self.settings.label_names:
            self._check_known(row, known, "is not in task.labels")

    def row_labels(self, row: Row) -> Sequence[str]:
        return self._problem.names(row["label"])

    def survey(self, rows: Iterable[Row]) -> Survey:
        names = self._problem.seen(row["label"] for row in rows)
        if given := self.settings.label_names:
            return Survey(given, "recipe", [name for name in given if name not in names])
        if len(names) < self._problem.least_labels:
            raise DataError(
                f"audio_classification needs at least two different labels; the training split has "
                f"{', '.join(map(repr, names)) or 'none'}.",
                where="data.train",
                fix="Check data.columns (is `label` the right column?) or set task.labels.",
            )
        return Survey(in_natural_order(names))

    def check_label(self, row: Row, survey: Survey) -> None:
        self._check_known(row, survey.labels, "was never seen in training")

    def _check_known(self, row: Row, known: list[str], what: str) -> None:
        (name,) = self._problem.names(row["label"])
        if name not in known:
            raise BadRow(f"label {name!r} {what}. {nearest(name, known)}")

    def auto_processor(self) -> type:
        from transformers import AutoFeatureExtractor

        return AutoFeatureExtractor

    def encode(self, row: Row, survey: Survey, reading: Processing, truncate: bool) -> list[Example]:
        example = {**self.clip(row, reading, truncate), "num_items": 0}
        if row.get("label") is not None:
            example |= {"labels": self._problem.target(row["label"], survey.labels), "num_items": 1}
        return [example]

    def auto_model(self) -> type:
        from transformers import AutoModelForAudioClassification

        return AutoModelForAudioClassification

    def model_config(self, survey: Survey) -> dict[str, Any]:
        ids = dict(enumerate(survey.labels))
        names = {"id2label": ids, "label2id": {name: index for index, name in ids.items()}}
        return {**super().model_config(survey), "num_labels": len(ids), **names}

    def collate(self, examples: Sequence[Example], reading: Processing) -> Batch:
        import torch

        batch = super().collate(examples, reading)
        if all("labels" in example for example in examples):
            batch["labels"] = torch.tensor([example["labels"] for example in examples])
        return batch

    def num_items(self, batch: Batch) -> int:
        return len(batch["labels"])

    def loss_sum(self, outputs: "Tensor", batch: Batch) -> "Tensor":
        return self._problem.loss_sum(outputs.float(), batch["labels"])

    def predict(self, outputs: "Tensor", batch: Batch) -> list[tuple[Any, Any]]:
        return list(zip(self._problem.predict(outputs), batch["labels"].tolist(), strict=True))

    def metrics(self, pairs: Sequence[tuple[Any, Any]], loss: float, survey: Survey) -> dict[str, Any]:
        return {"loss": loss, **self._problem.metrics(pairs, survey.labels)}

    def answers(self, outputs: Any, batch: Batch, examples: Sequence[Example], survey: Survey) -> list[Answer]:
        return [self._problem.answer(row, survey.labels) for row in outputs.float()]

    def reference(self, example: Example, survey: Survey) -> Answer:
        return {"reference": self._problem.reference(example["labels"], survey.labels)}

    def describe(self, example: Example, survey: Survey, tokenizer: Any) -> str:
        return f"{self.shown(example)} -> «{self._problem.show(example['labels'], survey.labels)}»"
