"""Supervised fine-tuning: prompts and conversations of which only the answers are learnt."""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import date as Date
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BeforeValidator

from onecurve.content.conversations import (
    DATE,
    CannotRender,
    Document,
    Message,
    answer_end,
    render_conversation,
    tokenise,
)
from onecurve.errors import ConfigError
from onecurve.losses.next_token import mark_learnt, next_token_logits, next_token_loss_sum
from onecurve.tasks.base import IGNORE_INDEX, BadRow, Batch, Example, Row, Settings, Survey, pad

if TYPE_CHECKING:
    from torch import Tensor, nn

_ROLES = ("system", "user", "assistant")


def _read_date(value: Any) -> Date:
    # YAML has a type of its own for 2024-07-26, which text in quotes and a saved recipe lack
    if type(value) is Date:
        return value
    try:
        return Date.fromisoformat(value)
    except (TypeError, ValueError):
        raise ValueError(f"must be a date such as {DATE}; got {value!r}") from None


class SftSettings(Settings):
    separator: str = "\n"
    """What stands between prompt and response when the tokenizer has no chat template."""
    date: Annotated[Date, BeforeValidator(_read_date)] = DATE
    """What a chat template that prints today's date prints, so that the examples are the same every day."""


class Task:
    """Learn the answers of conversations.

    With a chat template the row is rendered by it once and tokenised once. An answer is what rendering the messages
    up to it adds to rendering the prompt before it, so the template's own end-of-turn token is learnt too; where
    there is none after the last answer, the tokenizer's end token is put there.
    """

    Settings: ClassVar[type[Settings]] = SftSettings
    columns: ClassVar[Mapping[str, str]] = {
        "prompt?": "what is asked: non-empty text, with response",
        "response?": "the answer to learn: non-empty text, with prompt",
        "input?": "what the prompt is about, read below it: text",
        "messages?": "in place of these: a list of {role, content}, role system, user or assistant (in CSV: as JSON)",
    }
    shapes: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "Alpaca": {"prompt": "instruction", "input?": "input", "response": "output"},
        "Dolly": {"prompt": "instruction", "input?": "context", "response": "response"},
    }
    encoder_version: ClassVar[int] = 2
    peft_task_type: ClassVar[str | None] = "CAUSAL_LM"
    metric_names: Sequence[str] = ("loss", "perplexity")
    lower_is_better: ClassVar[frozenset[str]] = frozenset({"loss", "perplexity"})

    def __init__(self, settings: SftSettings) -> None:
        self.settings = settings

    def check(self, row: Row) -> None:
        _messages(row)

    def survey(self, rows: Iterable[Row]) -> Survey:
        return Survey()

    def check_label(self, row: Row, survey: Survey) -> None:
        """Nothing to check: any answer is a target."""

    def encode(self, row: Row, survey: Survey, tokenizer: Any, max_length: int, truncate: bool) -> list[Example]:
        messages = _messages(row)
        if tokenizer.chat_template:
            try:
                document = render_conversation(messages, tokenizer, self.settings.date)
            except CannotRender as error:
                raise BadRow(str(error)) from None
        elif _given(row, "messages"):
            raise ConfigError(
                "this tokenizer has no chat template, and the data has messages.",
                where="model.chat_template",
                fix="Set it to a Jinja file.",
            )
        else:
            prompt = messages[0]["content"] + self.settings.separator
            text = prompt + row["response"]
            document = Document(text, [(len(prompt), len(text))], is_ended=False, add_special_tokens=True)
        ids, learnt = tokenise(document, tokenizer)
        labels = [token if is_learnt else IGNORE_INDEX for token, is_learnt in zip(ids, learnt, strict=True)]
        if truncate:
            ids, labels = ids[:max_length], labels[:max_length]
        num_items = sum(label != IGNORE_INDEX for label in labels[1:])
        return [{"input_ids": ids, "labels": labels, "num_items": num_items}] if num_items else []

    def end_token(self, tokenizer: Any) -> int | None:
        eos: int | None = tokenizer.eos_token_id
        return answer_end(tokenizer, self.settings.date) if tokenizer.chat_template else eos

    def auto_model(self) -> type:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM

    def model_config(self, survey: Survey) -> dict[str, Any]:
        return {}

    def collate(self, examples: Sequence[Example], pad_id: int) -> Batch:
        # Mask and labels come from lengths, never from pad_id: where it is also the end token, that one is learnt
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
        learnt = [place > 0 and label != IGNORE_INDEX for place, label in enumerate(example["labels"])]
        return mark_learnt(example["input_ids"], learnt, tokenizer)


def _given(row: Row, column: str) -> bool:
    """Whether a row uses an optional column; other rows of the file leave it null, or empty in CSV."""
    return row.get(column) not in (None, "")


def _messages(row: Row) -> list[Message]:
    """Return a row as messages up to its last answer, after which there is nothing to learn."""
    if _given(row, "messages"):
        if also := [column for column in ("prompt", "input", "response") if _given(row, column)]:
            raise BadRow(
                f"has messages and also {', '.join(also)}; give one of the two forms. data.columns with "
                f"{also[0]}: '' reads no {also[0]}"
            )
        messages = _read_messages(row["messages"])
        last = max((n for n, message in enumerate(messages) if message["role"] == "assistant"), default=None)
        if last is None:
            raise BadRow("messages has no assistant turn, so there is nothing to learn")
        if messages[0]["role"] == "assistant":
            raise BadRow("messages starts with an assistant turn; what it answers must come first")
        return messages[: last + 1]
    if not _given(row, "prompt") and not _given(row, "response"):
        raise BadRow("has neither prompt and response nor messages")
    prompt, response = (_text(row.get(column), column) for column in ("prompt", "response"))
    about = row.get("input")
    if _given(row, "input") and not (isinstance(about, str) and about.isspace()):
        prompt = f"{prompt}\n{_text(about, 'input')}"  # as LLaMA-Factory joins them
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]


def _read_messages(value: Any) -> list[Message]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise BadRow(f"messages is text but not JSON: {error}") from None
    if not isinstance(value, list | tuple) or not value:
        raise BadRow(f"messages must be a non-empty list of {{role, content}}; got {type(value).__name__}")
    return [_read_message(message, f"messages[{place}]") for place, message in enumerate(value)]


def _read_message(message: Any, where: str) -> Message:
    if not isinstance(message, Mapping):
        raise BadRow(f"{where} must be a map with role and content; got {type(message).__name__}")
    if message.get("role") not in _ROLES:
        raise BadRow(f"{where}.role must be one of {', '.join(_ROLES)}; got {message.get('role')!r}")
    # Columnar files give every message every key, null where it is not used. A used one (tool calls, a weight)
    # would change what is learnt, so it is not dropped in silence
    unknown = [key for key, value in message.items() if key not in ("role", "content") and value is not None]
    if unknown:
        raise BadRow(f"{where} has {', '.join(map(str, unknown))}; only role and content are understood")
    return {"role": message["role"], "content": _text(message.get("content"), f"{where}.content")}


def _text(value: Any, where: str) -> str:
    if value is None:
        raise BadRow(f"{where} is missing")
    if not isinstance(value, str):
        raise BadRow(f"{where} must be text; got {type(value).__name__}")
    if not value.strip():
        raise BadRow(f"{where} is empty")
    return value
