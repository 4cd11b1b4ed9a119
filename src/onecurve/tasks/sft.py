"""Supervised fine-tuning on prompts and conversations; only the answers are in the loss."""

import json
from collections.abc import Mapping
from datetime import date as Date
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator

from onecurve.content.conversations import (
    DATE,
    CannotRender,
    Document,
    Message,
    answer_end,
    render,
    render_conversation,
    tokenise,
)
from onecurve.errors import ConfigError
from onecurve.tasks._next_token import NextTokenTask
from onecurve.tasks.base import IGNORE_INDEX, BadRow, Example, Processing, Row, Settings, Survey

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
    """Text between prompt and response if the tokenizer has no chat template."""
    date: Annotated[Date, BeforeValidator(_read_date)] = DATE
    """Date for chat templates that print today's date, so that the examples are the same every day."""


class Task(NextTokenTask):
    """Learn the answers of conversations.

    With a chat template the row is rendered by it once and tokenised once. An answer is what rendering the messages
    up to it adds to rendering the prompt before it, so the template's own end-of-turn token is learnt too; where
    there is none after the last answer, the tokenizer's end token is put there.
    """

    Settings: ClassVar[type[Settings]] = SftSettings
    columns: ClassVar[Mapping[str, str]] = {
        "prompt?": "the question or instruction: non-empty text, with response",
        "response?": "the answer to learn: non-empty text, with prompt",
        "input?": "further input, placed below the prompt: text",
        "messages?": "instead of these: a list of {role, content}, role system, user or assistant (in CSV: as JSON)",
    }
    shapes: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "Alpaca": {"prompt": "instruction", "input?": "input", "response": "output"},
        "Dolly": {"prompt": "instruction", "input?": "context", "response": "response"},
    }
    encoder_version: ClassVar[int] = 2
    targets: ClassVar[frozenset[str]] = frozenset({"response"})

    def without_effect(self, reading: Processing | None = None) -> Mapping[str, str]:
        template = reading.tokenizer.chat_template if reading else None
        return {"task.separator": "this model's chat template joins prompt and response"} if template else {}

    def read_text(self, text: str) -> Row:
        return {"prompt": text}

    def check_input(self, row: Row) -> None:
        _question(row)

    def check(self, row: Row) -> None:
        _messages(row)

    def encode(self, row: Row, survey: Survey, reading: Processing, truncate: bool) -> list[Example]:
        tokenizer = reading.tokenizer
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
            ids, labels = ids[: reading.max_length], labels[: reading.max_length]
        num_items = sum(label != IGNORE_INDEX for label in labels[1:])
        return [{"input_ids": ids, "labels": labels, "num_items": num_items}] if num_items else []

    def end_token(self, tokenizer: Any) -> int | None:
        eos: int | None = tokenizer.eos_token_id
        return answer_end(tokenizer, self.settings.date) if tokenizer.chat_template else eos

    def prompt(self, row: Row, reading: Processing) -> Example:
        tokenizer = reading.tokenizer
        if tokenizer.chat_template:
            try:
                text = render(_question(row), tokenizer, self.settings.date, add_generation_prompt=True)
            except CannotRender as error:
                raise BadRow(str(error)) from None
        elif _given(row, "messages"):
            raise BadRow("has messages, and this model's tokenizer has no chat template")
        else:
            text = _question(row)[0]["content"] + self.settings.separator
        special = not tokenizer.chat_template
        encoded = tokenizer(text, add_special_tokens=special, return_attention_mask=False, verbose=False)
        ids = encoded["input_ids"]
        if special and ids[-1:] == [tokenizer.eos_token_id]:  # some tokenizers end with it by themselves
            ids.pop()
        return {"input_ids": ids}


def _question(row: Row) -> list[Message]:
    """Return the turns that an answer follows."""
    if not _given(row, "messages"):
        return [{"role": "user", "content": _prompt(row)}]
    messages = _read_messages(row["messages"])
    if messages[-1]["role"] == "assistant":
        raise BadRow("messages ends with an assistant turn; the last turn must be the one to answer")
    return messages


def _given(row: Row, column: str) -> bool:
    """Whether a row uses an optional column; other rows of the file leave it null, or empty in CSV."""
    return row.get(column) not in (None, "")


def _messages(row: Row) -> list[Message]:
    """Return a row as messages up to its last answer, after which there is nothing to learn."""
    if _given(row, "messages"):
        if also := [column for column in ("prompt", "input", "response") if _given(row, column)]:
            raise BadRow(
                f"has messages and also {', '.join(also)}; use one of the two forms. To ignore {also[0]}, set "
                f"data.columns.{also[0]} to ''"
            )
        messages = _read_messages(row["messages"])
        last = max((n for n, message in enumerate(messages) if message["role"] == "assistant"), default=None)
        if last is None:
            raise BadRow("messages has no assistant turn, so there is nothing to learn")
        if messages[0]["role"] == "assistant":
            raise BadRow("messages starts with an assistant turn; a user turn must come first")
        return messages[: last + 1]
    if not _given(row, "prompt") and not _given(row, "response"):
        raise BadRow("has neither prompt and response nor messages")
    prompt, response = _prompt(row), _text(row.get("response"), "response")
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]


def _prompt(row: Row) -> str:
    prompt, about = _text(row.get("prompt"), "prompt"), row.get("input")
    if not _given(row, "input") or (isinstance(about, str) and about.isspace()):
        return prompt
    return f"{prompt}\n{_text(about, 'input')}"  # as LLaMA-Factory joins them


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
        raise BadRow(f"{where} has {', '.join(map(str, unknown))}; only role and content are supported")
    return {"role": message["role"], "content": _text(message.get("content"), f"{where}.content")}


def _text(value: Any, where: str) -> str:
    if value is None:
        raise BadRow(f"{where} is missing")
    if not isinstance(value, str):
        raise BadRow(f"{where} must be text; got {type(value).__name__}")
    if not value.strip():
        raise BadRow(f"{where} is empty")
    return value
