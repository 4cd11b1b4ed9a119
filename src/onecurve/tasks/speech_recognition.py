"""Speech recognition: a clip's text, letter by letter, by connectionist temporal classification (CTC)."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from onecurve.content.audio import beep
from onecurve.content.clips import Clips
from onecurve.content.ctc_vocabulary import SPECIAL, CtcProcessor
from onecurve.errors import ConfigError
from onecurve.tasks._padding import pad
from onecurve.tasks._sound import SoundSettings, SoundTask
from onecurve.tasks.base import (
    IGNORE_INDEX,
    Answer,
    BadRow,
    Batch,
    Example,
    Processing,
    Row,
    Settings,
    Survey,
    check_text,
)

if TYPE_CHECKING:
    from torch import Tensor

_CASES: Mapping[str | None, Callable[[str], str]] = {"lower": str.lower, "upper": str.upper, None: str}


class SpeechRecognitionSettings(SoundSettings):
    vocabulary: str | None = Field(default=None, min_length=1)
    """The characters that the model is to learn, in the order of their ids, such as "abcdefghijklmnopqrstuvwxyz'"; the
    space between words is always there. For a model whose folder has no tokenizer. Absent: the model's own."""
    case: Literal["lower", "upper"] | None = None
    """What the letters of the texts are turned into. Absent: they stay."""
    remove: str = ""
    """Characters that are left out of the texts, such as ",.?!"."""

    @field_validator("vocabulary")
    @classmethod
    def _are_distinct(cls, value: str | None) -> str | None:
        if value and (twice := sorted({c for c in value if value.count(c) > 1})):
            raise ValueError(f"vocabulary has {', '.join(map(repr, twice))} more than once")
        if value and (taken := sorted({c for c in value if c.isspace() or c == "|"})):
            raise ValueError(f"vocabulary must not have {', '.join(map(repr, taken))}: words are told apart anyway")
        return value


class Task(SoundTask):
    """Write down what is said in a clip."""

    Settings: ClassVar[type[Settings]] = SpeechRecognitionSettings
    columns: ClassVar[Mapping[str, str]] = {
        "audio": "a sound file: WAV, FLAC, Ogg, MP3",
        "text": "what is said in it",
    }
    sample: ClassVar[Sequence[Row]] = [
        {"audio": beep(hertz), "text": text} for hertz, text in [(300, "1"), (900, "2")] * 6
    ]
    targets: ClassVar[frozenset[str]] = frozenset({"text"})
    packages: frozenset[str] = SoundTask.packages | {"jiwer"}
    metric_names: Sequence[str] = ("loss", "wer", "cer")
    lower_is_better: ClassVar[frozenset[str]] = frozenset(metric_names)

    def __init__(self, settings: SpeechRecognitionSettings) -> None:
        super().__init__(settings)
        self._processor: Any = None

    def auto_processor(self) -> type:
        # Decoding needs the tokenizer where only outputs are at hand: it is kept when it is loaded
        own: type = type(
            "CtcProcessor", (), {"from_pretrained": partial(self._load, CtcProcessor(self.settings.vocabulary))}
        )
        return own

    def _load(self, loader: CtcProcessor, path: str, **options: Any) -> Any:
        self._processor = loader.from_pretrained(path, **options)
        return self._processor

    @property
    def _tokenizer(self) -> Any:
        assert self._processor is not None, "the processor comes from `auto_processor`"
        return self._processor.tokenizer

    # Rows

    def check(self, row: Row) -> None:
        check_text(row.get("text"), "text")

    def text(self, row: Row) -> str:
        """Return the text that is learnt: in one case, without what is removed, with single spaces."""
        kept = _CASES[self.settings.case](row["text"]).translate({ord(c): None for c in self.settings.remove})
        return " ".join(kept.split())

    def encode(self, row: Row, survey: Survey, reading: Processing, truncate: bool) -> list[Example]:
        if row.get("text") is None:
            return [{**self.clip(row, reading, truncate), "num_items": 0}]
        example = self.clip(row, reading, truncate=False)
        if truncate and example["frames"] > self.limit(reading).length:
            raise BadRow(
                f"audio has {example['frames']} frames, more than the maximum of {self.limit(reading).length}, and "
                "cannot be cut, because its text would not be said in it: set data.on_long to drop"
            )
        labels = self._ids(self.text(row))
        frames = Clips.of(reading).outputs(example["frames"])
        needed = len(labels) + sum(one == other for one, other in pairwise(labels))
        if needed > frames:
            raise BadRow(
                f"text is too long for its audio: {len(labels)} tokens need at least {needed} frames (one more between "
                f"two that are alike), and the clip has {frames}"
            )
        return [{**example, "labels": labels, "num_items": len(labels)}] if labels else []

    def _ids(self, text: str) -> list[int]:
        tokenizer = self._tokenizer
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        none = {None, tokenizer.unk_token_id}
        if none & {*ids}:
            unknown = [c for c in dict.fromkeys(text) if none & {*tokenizer(c, add_special_tokens=False)["input_ids"]}]
            raise BadRow(
                f"text has {', '.join(map(repr, unknown)) or 'characters'} that the tokenizer does not know. Set "
                f"task.case ({self._known_case()}), name them in task.remove, or change the text"
            )
        if tokenizer.pad_token_id in ids:
            raise BadRow(f"text has {tokenizer.pad_token!r}, the name of the blank token")
        return ids

    def _known_case(self) -> str:
        letters = [c for c in self._tokenizer.get_vocab() if len(c) == 1 and c.isalpha()]
        kinds = {"upper" if c.isupper() else "lower" for c in letters if c.upper() != c.lower()}
        return f"the tokenizer's letters are {' and '.join(sorted(kinds)) or 'of no'} case"

    # The model

    def auto_model(self) -> type:
        from transformers import AutoModelForCTC

        return AutoModelForCTC

    def model_config(self, survey: Survey) -> dict[str, Any]:
        new = self.settings.vocabulary
        own = {"vocab_size": len(SPECIAL) + len(new), "pad_token_id": 0} if new else {}
        return {**super().model_config(survey), **own}

    def settle(self, model: Any, pretrained: bool) -> str:
        tokens, rows = len(self._tokenizer), model.config.vocab_size
        if tokens > rows:
            raise ConfigError(
                f"has {tokens} tokens, and the model's vocab_size is {rows}.",
                where="model.tokenizer",
                fix="Take the tokenizer that belongs to the model.",
            )
        return super().settle(model, pretrained)

    def collate(self, examples: Sequence[Example], reading: Processing) -> Batch:
        import torch

        batch = super().collate(examples, reading)
        if all("labels" in example for example in examples):
            batch["labels"] = pad([example["labels"] for example in examples], IGNORE_INDEX)
        batch["num_frames"] = torch.tensor([Clips.of(reading).outputs(example["frames"]) for example in examples])
        return batch

    def num_items(self, batch: Batch) -> int:
        return int((batch["labels"] != IGNORE_INDEX).sum())

    def loss_sum(self, outputs: "Tensor", batch: Batch) -> "Tensor":
        """Negative log-likelihood of the texts, summed; an item is a token of a text.

        Source:
            Graves et al., Connectionist temporal classification, 2006. Infinite losses are not set to zero: `encode`
            has refused the texts that fit no alignment.
        """
        import torch
        from torch.nn import functional

        from onecurve.machine.accelerator import on_host, to_device

        labels = on_host(batch["labels"])  # so that nothing waits for a device to say how long they are
        is_token = labels != IGNORE_INDEX
        return functional.ctc_loss(
            outputs.float().log_softmax(-1).transpose(0, 1),
            to_device(torch.from_numpy(labels.numpy()[is_token.numpy()]), outputs.device),
            on_host(batch["num_frames"]),
            is_token.sum(-1),
            blank=self._tokenizer.pad_token_id,
            reduction="sum",
        )

    # Scores

    def predict(self, outputs: "Tensor", batch: Batch) -> list[tuple[Any, Any]]:
        texts = [[token for token in row if token != IGNORE_INDEX] for row in batch["labels"].tolist()]
        said = [self._tokenizer.decode(ids, group_tokens=False) for ids in texts]
        return list(zip(self._greedy(outputs, batch), said, strict=True))

    def _greedy(self, outputs: "Tensor", batch: Batch) -> list[str]:
        rows = zip(outputs.argmax(-1).tolist(), batch["num_frames"].tolist(), strict=True)
        return [self._tokenizer.decode(row[:frames]) for row, frames in rows]

    def metrics(self, pairs: Sequence[tuple[Any, Any]], loss: float, survey: Survey) -> dict[str, Any]:
        from onecurve.metrics.transcripts import score_transcripts

        return {"loss": loss, **score_transcripts(pairs)}

    # Predictions

    def answers(self, outputs: Any, batch: Batch, examples: Sequence[Example], survey: Survey) -> list[Answer]:
        return [{"text": text} for text in self._greedy(outputs, batch)]

    def reference(self, example: Example, survey: Survey) -> Answer:
        return {"reference": self._tokenizer.decode(example["labels"], group_tokens=False)}

    def describe(self, example: Example, survey: Survey, tokenizer: Any) -> str:
        return f"{self.shown(example)} -> «{tokenizer.decode(example['labels'], group_tokens=False)}»"
