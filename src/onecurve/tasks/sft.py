"""Supervised fine-tuning: prompts and conversations of which only the answers are learnt."""

import json
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from onecurve.errors import ConfigError
from onecurve.tasks._next_token import NextTokenTask
from onecurve.tasks.base import IGNORE_INDEX, BadRow, Example, Processing, Row, Settings, Survey

_ROLES = ("system", "user", "assistant")

Message = dict[str, str]


class SftSettings(Settings):
    separator: str = "\n"
    """What stands between prompt and response when the tokenizer has no chat template."""


class _Document(NamedTuple):
    """A row as text, and where in it the answers are."""

    text: str
    answers: list[tuple[int, int]]
    """Start and end of each answer, in characters, with the end token that the template writes after it."""
    is_ended: bool
    """Whether the last answer ends with such a token."""
    add_special_tokens: bool
    """Whether the tokenizer's own start token still has to come first; a chat template writes it itself."""


class Task(NextTokenTask):
    """Learn the answers of conversations.

    With a chat template the row is rendered by it once and tokenised once. An answer is what rendering the messages
    up to it adds to rendering the prompt before it, so the template's own end-of-turn token is learnt too; where
    there is none after the last answer, the tokenizer's end token is put there.
    """

    Settings: ClassVar[type[Settings]] = SftSettings
    columns: ClassVar[Mapping[str, str]] = {
        "prompt?": "what is asked: non-empty text, with response",
        "response?": "the answer to learn: non-empty text, with prompt",
        "messages?": "in place of both: a list of {role, content}, role system, user or assistant (in CSV: as JSON)",
    }

    targets: ClassVar[frozenset[str]] = frozenset({"response"})

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
            document = _render_conversation(messages, tokenizer)
        elif _given(row, "messages"):
            raise ConfigError(
                "this tokenizer has no chat template, and the data has messages.",
                where="model.chat_template",
                fix="Set it to a Jinja file.",
            )
        else:
            prompt = row["prompt"] + self.settings.separator
            text = prompt + row["response"]
            document = _Document(text, [(len(prompt), len(text))], is_ended=False, add_special_tokens=True)
        ids, labels = _tokenise(document, tokenizer)
        if truncate:
            ids, labels = ids[: reading.max_length], labels[: reading.max_length]
        num_items = sum(label != IGNORE_INDEX for label in labels[1:])
        return [{"input_ids": ids, "labels": labels, "num_items": num_items}] if num_items else []

    def prompt(self, row: Row, reading: Processing) -> Example:
        tokenizer = reading.tokenizer
        if tokenizer.chat_template:
            text, special = _render(_question(row), tokenizer, add_generation_prompt=True), False
        else:
            text, special = row["prompt"] + self.settings.separator, True
        encoded = tokenizer(text, add_special_tokens=special, return_attention_mask=False, verbose=False)
        ids = encoded["input_ids"]
        if special and ids[-1:] == [tokenizer.eos_token_id]:  # some tokenizers end with it by themselves
            ids.pop()
        return {"input_ids": ids}


def _question(row: Row) -> list[Message]:
    """Return the turns that an answer follows."""
    if not _given(row, "messages"):
        return [{"role": "user", "content": _text(row.get("prompt"), "prompt")}]
    messages = _read_messages(row["messages"])
    if messages[-1]["role"] == "assistant":
        raise BadRow("messages ends with an assistant turn; what is to be answered must come last")
    return messages


def _given(row: Row, column: str) -> bool:
    """Whether a row uses an optional column; other rows of the file leave it null, or empty in CSV."""
    return row.get(column) not in (None, "")


def _messages(row: Row) -> list[Message]:
    """Return a row as messages up to its last answer, after which there is nothing to learn."""
    if _given(row, "messages"):
        if _given(row, "prompt") or _given(row, "response"):
            raise BadRow("has messages and also prompt or response; give one of the two forms")
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


def _render_conversation(messages: list[Message], tokenizer: Any) -> _Document:
    text = _render(messages, tokenizer)
    answers: list[tuple[int, int]] = []
    for place, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _render(messages[:place], tokenizer, add_generation_prompt=True)
        after = _render(messages[: place + 1], tokenizer)
        end = len(after.rstrip())  # the line break after an end-of-turn token is the template's, not the model's
        if not (after.startswith(before) and text.startswith(after) and len(before) < end):
            raise BadRow(
                f"the chat template writes the messages up to messages[{place}] otherwise on their own than within the "
                "whole (it may drop earlier reasoning, or open the answer with text of its own), so what to learn "
                "cannot be found; set model.chat_template to one that only appends"
            )
        answers.append((len(before), end))
    is_ended = text[: answers[-1][1]].endswith(_end_tokens(tokenizer))
    if not is_ended:  # what the template still writes would stand between the answer and its end token
        text = text[: answers[-1][1]]
    return _Document(text, answers, is_ended, add_special_tokens=False)


def _render(messages: list[Message], tokenizer: Any, add_generation_prompt: bool = False) -> str:
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    except TemplateError as error:
        raise BadRow(f"the chat template refuses these messages: {error}") from None


def _end_tokens(tokenizer: Any) -> tuple[str, ...]:
    """Return the text of every special token; one of them at an answer's end is its end-of-turn token."""
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return tuple({*tokenizer.all_special_tokens, *added})


def _tokenise(document: _Document, tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return ids, and labels that are ids where an answer is and IGNORE_INDEX elsewhere."""
    if not tokenizer.is_fast:
        raise ConfigError(
            "sft needs a tokenizer that tells which characters a token stands for (a fast one).",
            where="model.tokenizer",
        )
    encoded = tokenizer(
        document.text,
        add_special_tokens=document.add_special_tokens,
        return_offsets_mapping=True,
        return_attention_mask=False,
        verbose=False,
    )
    ids = encoded["input_ids"]
    # A token that reaches across an answer's edge is learnt: it carries a part of the answer. So is one of no width
    # inside: some tokenizers trim the spaces off a token's span, which leaves nothing of a code line's indentation
    labels = [
        token if any(start < right and left < end for start, end in document.answers) else IGNORE_INDEX
        for token, (left, right) in zip(ids, encoded["offset_mapping"], strict=True)
    ]
    if not document.is_ended:
        eos = tokenizer.eos_token_id
        if eos is None:
            raise ConfigError(
                "has no end-of-text token to learn after an answer.",
                where="model.tokenizer",
                fix="Give one that has an eos_token.",
            )
        if ids[-1] == eos:  # some tokenizers end with it by themselves
            labels[-1] = eos
        else:
            ids.append(eos)
            labels.append(eos)
    return ids, labels
