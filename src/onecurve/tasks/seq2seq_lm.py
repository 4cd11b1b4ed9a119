"""Sequence to sequence: a source text, of which an encoder-decoder writes the target, such as its translation."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from onecurve.errors import ConfigError
from onecurve.losses.next_token import learnt, target_logits, target_loss_sum
from onecurve.tasks import base
from onecurve.tasks._languages import language_to_write, set_languages
from onecurve.tasks._padding import pad, pad_text
from onecurve.tasks._writing import WritingSettings, WritingTask
from onecurve.tasks.base import IGNORE_INDEX, Batch, Example, Processing, Row, Settings, Survey, check_text

if TYPE_CHECKING:
    from torch import Tensor, nn


class Seq2SeqLmSettings(WritingSettings):
    prefix: str = ""
    """Text put before every source, such as T5's "translate English to German: "."""
    source_lang: str | None = None
    """The language of the sources, by the name that the tokenizer of mBART (en_XX), M2M100 (en) or NLLB (eng_Latn)
    gives it. Default: what the tokenizer was saved with."""
    target_lang: str | None = None
    """The language of the targets; the saved model's `generate` writes it."""


class Task(WritingTask):
    """Write the target of a source.

    The decoder reads the target shifted by one, as the model itself shifts it (T5 and BART begin with a start token,
    mBART with the language), and every token of the target, its end token included, is learnt.
    """

    has_models_loss: ClassVar[bool] = True
    Settings: ClassVar[type[Settings]] = Seq2SeqLmSettings
    columns: ClassVar[Mapping[str, str]] = {"source": "the input: non-empty text", "target": "the output to learn"}
    sample: ClassVar[Sequence[Row]] = (
        {"source": "forty-two", "target": "4 2"},
        {"source": "seven", "target": "7"},
        {"source": "one hundred and five", "target": "1 0 5"},
        {"source": "ninety", "target": "9 0"},
        {"source": "thirteen", "target": "1 3"},
        {"source": "two hundred", "target": "2 0 0"},
    )
    reworded: ClassVar[Sequence[str]] = ("source",)
    targets: ClassVar[frozenset[str]] = frozenset({"target"})
    peft_task_type: ClassVar[str | None] = "SEQ_2_SEQ_LM"
    metric_names: Sequence[str] = ("loss", "perplexity")
    lower_is_better: ClassVar[frozenset[str]] = frozenset({"loss", "perplexity"})

    def without_effect(self, reading: Processing | None = None) -> Mapping[str, str]:
        return {**super().without_effect(reading), **base.NO_CONVERSATIONS}

    def check_input(self, row: Row) -> None:
        check_text(row.get("source"), "source")

    def check(self, row: Row) -> None:
        self.check_input(row)
        check_text(row.get("target"), "target")

    def encode(self, row: Row, survey: Survey, reading: Processing, truncate: bool) -> list[Example]:
        if not reading.config.is_encoder_decoder:
            raise ConfigError(
                f"seq2seq_lm needs an encoder-decoder model; {reading.config.model_type} is not one.",
                where="model.path",
                fix="Use a model such as T5, BART, mBART or Marian, or the task sft.",
            )
        set_languages(reading.tokenizer, self.settings.source_lang, self.settings.target_lang)
        options: dict[str, Any] = {"verbose": False, "return_attention_mask": False}
        limit = {"truncation": True, "max_length": reading.max_length} if truncate else {}
        source = reading.tokenizer(self.settings.prefix + row["source"], **options, **limit)["input_ids"]
        if row.get("target") is None:
            return [{"input_ids": source, "num_items": 0}]
        labels, eos = (
            reading.tokenizer(text_target=row["target"], **options)["input_ids"],
            reading.tokenizer.eos_token_id,
        )
        # Most tokenizers end with it by themselves; mBART's puts the language behind it
        if labels and eos is not None and eos not in labels[-2:]:
            labels.append(eos)
        if truncate:
            labels = labels[: reading.max_length]
        return [{"input_ids": source, "labels": labels, "num_items": len(labels)}] if labels else []

    def length(self, example: Example) -> int:
        return max(len(example["input_ids"]), len(example.get("labels", ())))

    def num_tokens(self, example: Example) -> int:
        return len(example["input_ids"]) + len(example.get("labels", ()))

    def auto_model(self) -> type:
        from transformers import AutoModelForSeq2SeqLM

        return AutoModelForSeq2SeqLM

    def collate(self, examples: Sequence[Example], reading: Processing) -> Batch:
        batch = pad_text(examples, reading.tokenizer.pad_token_id)
        if all("labels" in e for e in examples):
            batch["labels"] = pad([e["labels"] for e in examples], IGNORE_INDEX)
        return batch

    def num_items(self, batch: Batch) -> int:
        return int((batch["labels"] != IGNORE_INDEX).sum())

    def forward(self, model: "nn.Module", batch: Batch) -> "Tensor":
        unwrapped: Any = getattr(model, "module", model)
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        inputs["decoder_input_ids"] = _read_by_decoder(unwrapped, batch["labels"])
        return target_logits(model, inputs, batch["labels"], IGNORE_INDEX)

    def loss_sum(self, outputs: "Tensor", batch: Batch) -> "Tensor":
        return target_loss_sum(outputs, batch["labels"], IGNORE_INDEX)

    @property
    def classes(self) -> Literal["token"]:
        return "token"

    def classified(self, outputs: "Tensor", batch: Batch) -> "tuple[Tensor, Tensor]":
        return outputs, learnt(batch["labels"], IGNORE_INDEX)[1]

    def metrics(self, pairs: Sequence[tuple[Any, Any]], loss: float, survey: Survey) -> dict[str, Any]:
        from onecurve.metrics.perplexity import perplexity

        return {"loss": loss, "perplexity": perplexity(loss)}

    def end_token(self, tokenizer: Any) -> int | None:
        eos: int | None = tokenizer.eos_token_id
        return eos

    def generation_config(self, tokenizer: Any) -> dict[str, Any]:
        return language_to_write(tokenizer)

    def asked(self, row: Row) -> tuple[Row, str] | None:
        self.check_reference(row["target"])
        return {"source": row["source"]}, row["target"]

    def prompt(self, row: Row, reading: Processing) -> Example:
        (example,) = self.encode({"source": row["source"]}, Survey(), reading, truncate=False)
        return example

    def generate(self, model: Any, examples: Sequence[Example], reading: Processing, **options: Any) -> list[str]:
        batch = pad_text(examples, reading.tokenizer.pad_token_id)
        inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
        return reading.tokenizer.batch_decode(model.generate(**inputs, **options), skip_special_tokens=True)

    def describe(self, example: Example, survey: Survey, tokenizer: Any) -> str:
        source, target = (tokenizer.decode(example[name]) for name in ("input_ids", "labels"))
        return f"{source} -> «{target}»"


def _read_by_decoder(model: Any, labels: "Tensor") -> "Tensor":
    """Return the labels shifted by one, as the model itself shifts them."""
    if prepare := getattr(model, "prepare_decoder_input_ids_from_labels", None):
        shifted: Tensor = prepare(labels=labels)
        return shifted
    # M2M100, NLLB and Blenderbot do so within their forward pass alone
    shifted = labels.roll(1, 1).masked_fill(labels.roll(1, 1) == IGNORE_INDEX, model.config.pad_token_id)
    shifted[:, 0] = model.config.decoder_start_token_id
    return shifted
