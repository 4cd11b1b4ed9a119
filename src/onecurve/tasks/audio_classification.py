"""Audio classification: one label of a clip, several labels, or a number."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from onecurve.content.audio import beep
from onecurve.tasks._labelled import Labelled, LabelSettings
from onecurve.tasks._sound import SoundSettings, SoundTask
from onecurve.tasks.base import Batch, Example, Processing, Row, Settings, Survey


class AudioClassificationSettings(SoundSettings, LabelSettings):
    """What clips and labels are set by."""


class Task(SoundTask, Labelled):
    """Predict one of several labels of a clip, any number of labels, or a number."""

    Settings: ClassVar[type[Settings]] = AudioClassificationSettings
    columns: ClassVar[Mapping[str, str]] = {
        "audio": "a sound file: WAV, FLAC, Ogg, MP3",
        "label": "a name or whole number; multi-label: a list of names or a 0/1 vector; regression: a number",
    }
    sample: ClassVar[Sequence[Row]] = [
        {"audio": beep(hertz), "label": label} for hertz, label in [(300, "low"), (900, "high")] * 6
    ]

    def without_effect(self, reading: Processing | None = None) -> Mapping[str, str]:
        return {**Labelled.without_effect(self, reading), **SoundTask.without_effect(self, reading)}

    def auto_processor(self) -> type:
        from transformers import AutoFeatureExtractor

        return AutoFeatureExtractor

    def encode(self, row: Row, survey: Survey, reading: Processing, truncate: bool) -> list[Example]:
        return [{**self.clip(row, reading, truncate), **self.labelled(row, survey)}]

    def auto_model(self) -> type:
        from transformers import AutoModelForAudioClassification

        return AutoModelForAudioClassification

    def model_config(self, survey: Survey) -> dict[str, Any]:
        return {**SoundTask.model_config(self, survey), **Labelled.model_config(self, survey)}

    def collate(self, examples: Sequence[Example], reading: Processing) -> Batch:
        return {**SoundTask.collate(self, examples, reading), **self.collate_labels(examples)}

    def describe(self, example: Example, survey: Survey, tokenizer: Any) -> str:
        return f"{self.shown(example)} -> «{self.shown_label(example, survey)}»"
