"""Causal language modelling: documents cut into blocks in which each token is predicted from those before it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from onecurve.errors import ConfigError
from onecurve.losses.next_token import mark_learnt, next_token_logits, next_token_loss_sum
from onecurve.tasks.base import IGNORE_INDEX, BadRow, Batch, Example, Row, Settings, Survey, pad

if TYPE_CHECKING:
    from torch import Tensor, nn


class CausalLmSettings(Settings):
    """No settings of its own."""


class Task:
    """Continue a text.

    A document becomes its tokens and the end token, with the start token first where the tokenizer adds one by
    itself. It is cut into blocks of `max_length` tokens that overlap by one, so that each token after the first
    is a target exactly once, in whichever block it falls. A document is therefore never too long; later blocks see
    no start token and nothing of the block before but its last token.
    """

    Settings: ClassVar[type[Settings]] = CausalLmSettings
    columns: ClassVar[Mapping[str, str]] = {"text": "a document: non-empty text"}
    encoder_version: ClassVar[int] = 1
    peft_task_type: ClassVar[str | None] = "CAUSAL_LM"
    lower_is_better: ClassVar[frozenset[str]] = frozenset({"loss", "perplexity"})

    def __init__(self, settings: CausalLmSettings) -> None:
        self.settings = settings

    def check(self, row: Row) -> None:
        text = row.get("text")
        if not isinstance(text, str):
            raise BadRow(f"text must be text; got {type(text).__name__}" if text is not None else "text is missing")
        if not text.strip():
            raise BadRow("text is empty")

    def survey(self, rows: Iterable[Row]) -> Survey:
        return Survey()

    def check_label(self, row: Row, survey: Survey) -> None:
        """Nothing to check: any text is a target."""

    def encode(self, row: Row, survey: Survey, tokenizer: Any, max_length: int, truncate: bool) -> list[Example]:
        eos = tokenizer.eos_token_id
        if eos is None:
            raise ConfigError(
                "has no end-of-text token, which causal_lm puts after each document.",
                where="model.tokenizer",
                fix="Give one that has an eos_token.",
            )
        # verbose=False: upstream would warn that the document is longer than the model, which blocks never are
        ids = tokenizer(row["text"], verbose=False, return_attention_mask=False)["input_ids"]
        if not ids or ids[-1] != eos:  # some tokenizers end with it by themselves
            ids.append(eos)
        blocks = [ids[start : start + max_length] for start in range(0, len(ids) - 1, max_length - 1)]
        return [{"input_ids": block, "labels": block, "num_items": len(block) - 1} for block in blocks]

    def auto_model(self) -> type:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM

    def model_config(self, survey: Survey) -> dict[str, Any]:
        return {}

    def collate(self, examples: Sequence[Example], pad_id: int) -> Batch:
        return {
            "input_ids": pad([e["input_ids"] for e in examples], pad_id),
            "attention_mask": pad([[1] * len(e["input_ids"]) for e in examples], 0),
            "labels": pad([e["labels"] for e in examples], IGNORE_INDEX),
        }

    def num_items(self, batch: Batch) -> int:
        return int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())

    def forward(self, model: "nn.Module", batch: Batch) -> "Tensor":
        return next_token_logits(model, batch, IGNORE_INDEX)

    def loss_sum(self, logits: "Tensor", batch: Batch) -> "Tensor":
        return next_token_loss_sum(logits, batch["labels"], IGNORE_INDEX)

    def predict(self, logits: "Tensor", batch: Batch) -> list[tuple[Any, Any]]:
        return []

    def metrics(self, pairs: Sequence[tuple[Any, Any]], loss: float, survey: Survey) -> dict[str, Any]:
        from onecurve.metrics.perplexity import perplexity

        return {"loss": loss, "perplexity": perplexity(loss)}

    def describe(self, example: Example, survey: Survey, tokenizer: Any) -> str:
        ids = example["input_ids"]
        return mark_learnt(ids, [position > 0 for position in range(len(ids))], tokenizer)
