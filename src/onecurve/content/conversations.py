"""Renders conversations with a chat template and locates the answers in the text."""

import json
from contextlib import suppress
from datetime import date as Date
from datetime import datetime
from functools import cache
from string import ascii_letters
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from onecurve.errors import ConfigError

Message = dict[str, str]
"""Role and content."""

DATE = Date(2024, 7, 26)
"""Default date for templates that print the date: the fallback of Llama 3.1's own template."""


class CannotRender(ValueError):
    """Messages that the chat template rejects, or renders so that the answers cannot be located."""


class Document(NamedTuple):
    """A row as text, and the positions of the answers."""

    text: str
    answers: list[tuple[int, int]]
    """Start and end of each answer, in characters, with the end token that the template writes after it."""
    is_ended: bool
    """Whether the last answer ends with such a token."""
    add_special_tokens: bool
    """Whether the tokenizer's start token must be added; a chat template writes it itself."""


def render(messages: list[Message], tokenizer: Any, date: Date, add_generation_prompt: bool = False) -> str:
    """Render messages with the tokenizer's chat template, with `date` as today's date.

    Raises:
        CannotRender: The template rejects them.
    """
    from jinja2 import TemplateError

    try:
        template = tokenizer.get_chat_template()
        if "strftime_now" in template:
            template = _stopped_clock(date) + template
        return tokenizer.apply_chat_template(
            messages,
            chat_template=template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            date_string=date.strftime("%d %b %Y"),  # what the Llama 3 family prints instead, where it is given
        )
    except (TemplateError, ValueError) as error:
        raise CannotRender(f"the chat template rejects these messages: {error}") from None


@cache
def _stopped_clock(date: Date) -> str:
    """Return Jinja to put before a template, where it hides transformers' own `strftime_now`.

    A function given as a variable would not: transformers hands templates plain data only. The line break at the end
    is Jinja's to remove after a block; the template then still begins at the start of a line.
    """
    midnight = datetime(date.year, date.month, date.day)
    codes = [f"%{flag}{letter}" for flag in ("-", "") for letter in ascii_letters if letter != "s"]
    told = [("%%", "\0"), *((code, midnight.strftime(code)) for code in codes), ("\0", "%")]
    table = json.dumps([pair for pair in told if pair[0] != pair[1]])
    return (
        "{% macro strftime_now(format) %}{% set told = namespace(text=format) %}"
        f"{{% for code, value in {table} %}}{{% set told.text = told.text.replace(code, value) %}}{{% endfor %}}"
        "{{ told.text }}{% endmacro %}\n"
    )


def render_conversation(messages: list[Message], tokenizer: Any, date: Date) -> Document:
    """Render a conversation and locate its answers: each is the text that rendering it adds to rendering its prompt.

    Raises:
        CannotRender: The template rejects the messages, or renders earlier turns differently once later turns follow.
    """
    text = render(messages, tokenizer, date)
    answers: list[tuple[int, int]] = []
    for place, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = render(messages[:place], tokenizer, date, add_generation_prompt=True)
        after = render(messages[: place + 1], tokenizer, date)
        end = len(after.rstrip())  # the line break after an end-of-turn token is the template's, not the model's
        if not (after.startswith(before) and text.startswith(after) and len(before) < end):
            raise CannotRender(
                f"this model's chat template rewrites earlier turns: the text up to messages[{place}] changes once "
                "later turns follow (it may drop earlier reasoning, or start the answer with extra text), so the "
                "answer's tokens cannot be located; set model.chat_template to one that only appends"
            )
        answers.append((len(before), end))
    is_ended = _ends_with_special(text[: answers[-1][1]], tokenizer)
    if not is_ended:  # what the template still writes would stand between the answer and its end token
        text = text[: answers[-1][1]]
    return Document(text, answers, is_ended, add_special_tokens=False)


_Ends = dict[int, frozenset[str]]
_ADDED: "WeakKeyDictionary[Any, _Ends]" = WeakKeyDictionary()
"""A tokenizer's added special tokens by length: asking for thousands of them takes longer than to render a row."""


def _ends_with_special(text: str, tokenizer: Any) -> bool:
    """Whether a text ends with a special token; one at an answer's end is its end-of-turn token."""
    added = _ADDED.get(tokenizer)
    if added is None:
        tokens = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        added = {width: frozenset(t for t in tokens if len(t) == width) for width in set(map(len, tokens))}
        _ADDED[tokenizer] = added
    named = tuple(tokenizer.all_special_tokens)
    return text.endswith(named) or any(text[-width:] in tokens for width, tokens in added.items())


def tokenise(document: Document, tokenizer: Any) -> tuple[list[int], list[bool]]:
    """Return the ids, the end token after the last answer among them, and which of them are learnt.

    Raises:
        ConfigError: A tokenizer that does not tell which characters a token stands for, or has no end token.
    """
    if not tokenizer.is_fast:
        raise ConfigError(
            "sft needs a fast tokenizer, one that maps tokens to character positions.",
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
    learnt = [
        any(start < right and left < end for start, end in document.answers)
        for left, right in encoded["offset_mapping"]
    ]
    if not document.is_ended:
        eos = tokenizer.eos_token_id
        if eos is None:
            raise ConfigError(
                "has no end-of-text token to learn after an answer.",
                where="model.tokenizer",
                fix="Use one that has an eos_token.",
            )
        if ids[-1] == eos:  # some tokenizers end with it by themselves
            learnt[-1] = True
        else:
            ids.append(eos)
            learnt.append(True)
    return ids, learnt


def answer_end(tokenizer: Any, date: Date) -> int | None:
    """Return the token that answers end with under the tokenizer's chat template.

    It is read off a conversation of one turn each; None where the template refuses it, with or without a system turn.

    Raises:
        ConfigError: As `tokenise`.
    """
    turns = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "That."}]
    for messages in (turns, [{"role": "system", "content": "Answer."}, *turns]):
        with suppress(CannotRender):
            ids, learnt = tokenise(render_conversation(messages, tokenizer, date), tokenizer)
            return next(token for token, is_learnt in reversed([*zip(ids, learnt, strict=True)]) if is_learnt)
    return None
