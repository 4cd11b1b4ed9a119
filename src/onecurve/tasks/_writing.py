"""What tasks share whose models write texts: how evaluations have them written, and by what they are scored."""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from onecurve.metrics.texts import NAMES, PACKAGES, answer_of, score_texts
from onecurve.tasks import base
from onecurve.tasks.base import BadRow, Processing, Settings

_OF_SAMPLING = ("temperature", "top_k", "top_p")
_OF_BEAMS = ("length_penalty", "early_stopping")


class GenerateSettings(Settings):
    """How texts are written, by transformers' names; `generation_config.json` of the saved model has what is set."""

    max_new_tokens: int = Field(default=128, gt=0)
    """The most tokens of a text."""
    num_beams: int | None = Field(default=None, gt=0)
    """Beams of the search; default: what the model's generation_config.json says, else one, which is greedy."""
    length_penalty: float | None = None
    """Of beam search: above 0 longer texts are preferred, below 0 shorter ones."""
    early_stopping: bool | None = None
    """Of beam search: whether it ends as soon as there are num_beams finished texts."""
    do_sample: bool = False
    """Whether tokens are drawn, by a key of the seed, the example and the position: the same whatever the batch."""
    temperature: float | None = Field(default=None, gt=0)
    """Of drawing; default: 1."""
    top_k: int | None = Field(default=None, gt=0)
    """Of drawing: only from so many of the likeliest tokens; default: from all."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Of drawing: only from the likeliest tokens that have this probability together; default: from all."""
    repetition_penalty: float | None = Field(default=None, gt=0)
    """Above 1: tokens that are there already become less likely."""
    no_repeat_ngram_size: int | None = Field(default=None, ge=0)
    """No sequence of so many tokens occurs twice."""

    @model_validator(mode="after")
    def _agree(self) -> "GenerateSettings":
        if self.do_sample and (self.num_beams or 1) > 1:
            raise ValueError(f"num_beams {self.num_beams} and do_sample exclude each other: remove one of them")
        if not self.do_sample:
            self._need(_OF_SAMPLING, "do_sample: true")
        if (self.num_beams or 1) == 1:
            self._need(_OF_BEAMS, "num_beams of 2 or more")
        return self

    def _need(self, names: Sequence[str], what: str) -> None:
        if idle := [name for name in names if getattr(self, name) is not None]:
            raise ValueError(f"{', '.join(idle)} has no effect without {what}")


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class WritingSettings(Settings):
    """The settings of a task whose models write texts."""

    generate: GenerateSettings | None = None
    """Have evaluations write a text for each row, as these keys say ({max_new_tokens: 64, num_beams: 4}). Default:
    only the loss is computed."""
    metrics: Annotated[list[Literal["bleu", "chrf", "rouge", "exact_match"]], BeforeValidator(_listed)] = Field(
        default_factory=list
    )
    """What the texts are scored by; bleu and chrf need sacrebleu (pip install 'onecurve[text]')."""
    bleu_tokenizer: Literal["13a", "intl", "zh", "char", "none"] = "13a"
    """sacrebleu's tokenizer: zh for Chinese; char for Japanese, Thai and others without spaces."""
    answer_pattern: str | None = None
    """Regular expression; exact_match compares its last match (of its last group, if it has one), such as
    '#### (-?[0-9,]+)' for GSM8K. Default: whole texts are compared, without space around them."""

    @field_validator("answer_pattern")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"is no regular expression: {error}; got {value!r}") from None
        return value


class WritingTask(base.Task):
    """Implements `Writes`, but for `asked`, `prompt` and `generate`."""

    scoring_settings: ClassVar[frozenset[str]] = frozenset(WritingSettings.model_fields)

    def __init__(self, settings: Any) -> None:
        super().__init__(settings)
        if settings.generate:
            numbers = [number for metric in dict.fromkeys(settings.metrics) for number in NAMES[metric]]
            self.metric_names: Sequence[str] = [*type(self).metric_names, *numbers]
            self.packages = type(self).packages.union(*(PACKAGES.get(metric, ()) for metric in settings.metrics))

    @property
    def generation(self) -> Mapping[str, Any] | None:
        """What the recipe says of `generate`."""
        return self.settings.generate and self.settings.generate.model_dump(exclude_none=True)

    def generation_config(self, tokenizer: Any) -> dict[str, Any]:
        return {}

    def without_effect(self, reading: Processing | None = None) -> Mapping[str, str]:
        settings, told = self.settings, dict(super().without_effect(reading))
        if settings.generate is None:
            return told | dict.fromkeys(
                [f"task.{name}" for name in WritingSettings.model_fields if name != "generate"],
                "nothing is generated, as task.generate is not set",
            )
        if "bleu" not in settings.metrics:
            told["task.bleu_tokenizer"] = "task.metrics has no bleu"
        if "exact_match" not in settings.metrics:
            told["task.answer_pattern"] = "task.metrics has no exact_match"
        return told

    def score_texts(self, pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
        settings = self.settings
        return score_texts(pairs, settings.metrics, settings.bleu_tokenizer, settings.answer_pattern)

    def check_reference(self, reference: str) -> None:
        """Raise `BadRow` unless a reference has the answer that is compared."""
        pattern = self.settings.answer_pattern
        if answer_of(reference, pattern) is None:
            raise BadRow(f"the reference has nothing that task.answer_pattern ({pattern}) matches")
