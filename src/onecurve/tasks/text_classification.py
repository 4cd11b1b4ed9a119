"""Text classification of a text or a pair: single-label, multi-label, or regression."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from onecurve.tasks._labelled import Labelled, LabelSettings
from onecurve.tasks._padding import pad_text
from onecurve.tasks.base import Batch, Example, Processing, Row, Settings, Survey, check_text, reads_last_position


class TextClassificationSettings(LabelSettings):
    """Those of any task with labels."""


class Task(Labelled):
    """Predict one of several labels, any number of labels, or a number."""

    Settings: ClassVar[type[Settings]] = TextClassificationSettings
    columns: ClassVar[Mapping[str, str]] = {
        "text": "non-empty text",
        "text_pair?": "a second text, such as the hypothesis to a premise",
        "label": "a name or whole number; multi-label: a list of names or a 0/1 vector; regression: a number",
    }
    reworded: ClassVar[Sequence[str]] = ("text", "text_pair")
    encoder_version: ClassVar[int] = 2
    peft_task_type: ClassVar[str | None] = "SEQ_CLS"

    def check_input(self, row: Row) -> None:
        check_text(row.get("text"), "text")
        if row.get("text_pair") is not None:
            check_text(row["text_pair"], "text_pair")

    def encode(self, row: Row, survey: Survey, reading: Processing, truncate: bool) -> list[Example]:
        limit = {"truncation": True, "max_length": reading.max_length} if truncate else {"truncation": False}
        # verbose=False: what happens to a long example is the caller's to decide and to report
        encoded = reading.tokenizer(row["text"], row.get("text_pair"), verbose=False, **limit)
        example = {"input_ids": encoded["input_ids"], **self.labelled(row, survey)}
        # All zero for a single text, which is also what a model takes them for when it is given none
        if any(encoded.get("token_type_ids") or ()):
            example["token_type_ids"] = encoded["token_type_ids"]
        return [example]

    def auto_model(self) -> type:
        from transformers import AutoModelForSequenceClassification

        return AutoModelForSequenceClassification

    def collate(self, examples: Sequence[Example], reading: Processing) -> Batch:
        batch = pad_text(examples, reading.tokenizer.pad_token_id, reads_last_position(reading.config))
        return batch | self.collate_labels(examples)

    def describe(self, example: Example, survey: Survey, tokenizer: Any) -> str:
        text = tokenizer.decode(example["input_ids"], clean_up_tokenization_spaces=False)
        return f"{text} -> «{self.shown_label(example, survey)}»"
