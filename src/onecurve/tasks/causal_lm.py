"""Causal language modelling: documents cut into blocks in which each token is predicted from those before it."""

from collections.abc import Mapping
from typing import ClassVar

from onecurve.errors import ConfigError
from onecurve.tasks._next_token import NextTokenTask
from onecurve.tasks.base import NO_CONVERSATIONS, BadRow, Example, Processing, Row, Survey


class Task(NextTokenTask):
    """Continue a text.

    A document becomes its tokens and the end token, with the start token first where the tokenizer adds one by
    itself. It is cut into blocks of `max_length` tokens that overlap by one, so that each token after the first
    is a target exactly once, in whichever block it falls. A document is therefore never too long; later blocks see
    no start token and nothing of the block before but its last token.
    """

    columns: ClassVar[Mapping[str, str]] = {"text": "a document: non-empty text"}

    def without_effect(self, reading: Processing | None = None) -> Mapping[str, str]:
        return {**NO_CONVERSATIONS, "data.on_long": "a document is cut into blocks, so none is too long"}

    def check_input(self, row: Row) -> None:
        text = row.get("text")
        if not isinstance(text, str):
            raise BadRow(f"text must be text; got {type(text).__name__}" if text is not None else "text is missing")
        if not text.strip():
            raise BadRow("text is empty")

    def check(self, row: Row) -> None:
        self.check_input(row)

    def encode(self, row: Row, survey: Survey, reading: Processing, truncate: bool) -> list[Example]:
        tokenizer, size = reading.tokenizer, reading.max_length
        eos = tokenizer.eos_token_id
        if eos is None:
            raise ConfigError(
                "has no end-of-text token, which causal_lm puts after each document.",
                where="model.tokenizer",
                fix="Use one that has an eos_token. Encoders such as BERT have none and cannot be used.",
            )
        # verbose=False: upstream would warn that the document is longer than the model, which blocks never are
        ids = tokenizer(row["text"], verbose=False, return_attention_mask=False)["input_ids"]
        if not ids or ids[-1] != eos:  # some tokenizers end with it by themselves
            ids.append(eos)
        blocks = [ids[start : start + size] for start in range(0, len(ids) - 1, size - 1)]
        return [{"input_ids": block, "labels": block, "num_items": len(block) - 1} for block in blocks]

    def prompt(self, row: Row, reading: Processing) -> Example:
        ids = reading.tokenizer(row["text"], verbose=False, return_attention_mask=False)["input_ids"]
        if ids[-1:] == [reading.tokenizer.eos_token_id]:  # the text goes on
            ids.pop()
        return {"input_ids": ids}
