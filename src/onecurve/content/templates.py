"""A tokenizer's chat template, rendered with what a run always gives it."""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import date as Date
from datetime import datetime
from functools import cache, cached_property
from string import ascii_letters
from typing import Any
from weakref import WeakKeyDictionary

from onecurve.content.messages import Message

DATE = Date(2024, 7, 26)
"""Default date for templates that print the date: the fallback of Llama 3.1's own template."""
SENTINEL = "xAnswerX9c41e7b0d2x"
"""Stands in an answer's place: letters that no template changes and no conversation has."""
_ASKED = {"role": "user", "content": "What?"}
_MASK = re.compile(r"\{%-?\s*generation\s*-?%\}")


class CannotRender(ValueError):
    """Messages that the chat template rejects, or renders so that the answers cannot be located."""


class ChatTemplate:
    """Renders messages; what only depends on the template is found once.

    Args:
        tokenizer: Has one.
        date: Today's date, for templates that print it.
        variables: Further variables of the template, such as enable_thinking.
    """

    def __init__(self, tokenizer: Any, date: Date = DATE, variables: Mapping[str, Any] | None = None) -> None:
        self._tokenizer, self._date, self._variables = tokenizer, date, dict(variables or {})
        named = set(tokenizer.all_special_tokens)
        special = named | {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        self._special = {width: {t for t in special if len(t) == width} for width in set(map(len, special))}

    def render(self, messages: Sequence[Message], tools: Any = None, add_generation_prompt: bool = False) -> str:
        """Return the text of messages.

        Raises:
            CannotRender: The template rejects them.
        """
        return self._render(self._placed(messages), tools, add_generation_prompt, self._text)

    def render_masked(self, messages: Sequence[Message], tools: Any) -> tuple[str, list[tuple[int, int]]]:
        """Return the text of messages and the spans, in characters, that the template marks as generated.

        Raises:
            CannotRender: As `render`.
        """
        return self._render(self._placed(messages), tools, False, self._marked)

    def has_masks(self, tools: Any) -> bool:
        """Whether the template marks what the model generates."""
        return bool(_MASK.search(self.source(tools)))

    def mentions(self, word: str) -> bool:
        """Whether a variable or key of this name occurs in the template."""
        return bool(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", self.source(None) + self.source([{}])))

    def source(self, tools: Any) -> str:
        """Return the Jinja text that is used with or without tools."""
        try:
            found: str = self._tokenizer.get_chat_template(tools=tools)
        except ValueError as error:
            raise CannotRender(f"the chat template cannot be used: {error}") from None
        return found

    def ends_with_special(self, text: str) -> bool:
        """Whether a text ends with a special token; one at an answer's end is its end-of-turn token."""
        return self._special_at(text) > 0

    def start_of_special(self, text: str) -> int:
        """Return where the special tokens begin, in characters, with which a text ends."""
        start = len(text)
        while width := self._special_at(text[:start].rstrip()):
            start = len(text[:start].rstrip()) - width
        return start

    def _special_at(self, text: str) -> int:
        """Return the width of the special token at a text's end; 0 where there is none."""
        return next((width for width, tokens in self._special.items() if text[-width:] in tokens), 0)

    def end_of(self, text: str) -> int:
        """Return where the last answer of a rendered conversation ends, in characters: with its end-of-turn token."""
        return len(text.rstrip().removesuffix(self._leftover).rstrip())

    @cached_property
    def takes_system(self) -> bool:
        """Whether the template writes a system turn; otherwise it is put before the first question, as Gemma 3 does."""
        asked = [{"role": "system", "content": SENTINEL}, _ASKED]
        try:
            return SENTINEL in self._render(asked, None, True, self._text)
        except CannotRender:
            return False

    @cached_property
    def _takes_parts_only(self) -> bool:
        """Whether text must be a list of one part, as for some models that see."""
        for content in (SENTINEL, _parts(SENTINEL)):
            try:
                text = self._apply([{"role": "user", "content": content}], None, True, self._text)
            except CannotRender:
                continue
            if SENTINEL in text:
                return content != SENTINEL
        return False

    @cached_property
    def _leftover(self) -> str:
        """What the template writes after a conversation's last turn and is no part of it.

        Phi-4-mini ends with the end token there and Command A with the head of the next turn, whoever's it is.
        """
        answered, probe = {"role": "assistant", "content": SENTINEL}, {"role": "user", "content": SENTINEL}
        try:
            tail = self.render([_ASKED, answered]).rpartition(SENTINEL)[2].rstrip()
            going_on = self.render([_ASKED, answered, _ASKED]).rpartition(SENTINEL)[2]
            after_user = self.render([probe], add_generation_prompt=True).rpartition(SENTINEL)[2]
        except CannotRender:
            return ""
        shared = [tail[:width] for width in range(1, len(tail) + 1) if going_on.startswith(tail[:width])]
        closings = [text for text in reversed(shared) if self.ends_with_special(text)]
        known = [self._tokenizer.eos_token, self._first_special(after_user)]
        sure = [text for stop in known if stop for text in closings if text.endswith(stop)]
        return tail.removeprefix((sure or closings)[0]).strip() if closings else ""

    def _first_special(self, text: str) -> str:
        found = [(text.find(token), token) for tokens in self._special.values() for token in tokens if token in text]
        return min(found, default=(0, ""))[1]

    def _text(self, source: str, messages: list[Message], **given: Any) -> str:
        text: str = self._tokenizer.apply_chat_template(messages, chat_template=source, tokenize=False, **given)
        return text

    def _marked(self, source: str, messages: list[Message], **given: Any) -> tuple[str, list[tuple[int, int]]]:
        from transformers.utils.chat_template_utils import render_jinja_template

        # What apply_chat_template calls; itself it gives the marks of tokens only
        given = {**self._tokenizer.special_tokens_map, **given}
        rendered: Any = render_jinja_template(
            [messages], chat_template=source, return_assistant_tokens_mask=True, **given
        )
        (text,), (spans,) = rendered
        return text, [(start, end) for start, end in spans]

    def _render(self, messages: Sequence[Message], tools: Any, add_generation_prompt: bool, how: Any) -> Any:
        known = [self._known(message) for message in messages]
        if self._takes_parts_only:
            known = [{**message, "content": _parts(message["content"])} for message in known]
        return self._apply(known, tools, add_generation_prompt, how)

    def _apply(self, plain: list[Message], tools: Any, add_generation_prompt: bool, how: Any) -> Any:
        from jinja2 import TemplateError

        source = self.source(tools)
        if "strftime_now" in source:
            source = _stopped_clock(self._date) + source
        given = {
            "tools": tools,
            "add_generation_prompt": add_generation_prompt,
            "date_string": self._date.strftime("%d %b %Y"),  # what the Llama 3 family prints, where it is given
            **self._variables,
        }
        forms = [plain, _with_text_arguments(plain)] if any("tool_calls" in message for message in plain) else [plain]
        for form in forms:  # a few templates put a call's arguments together as text
            try:
                return how(source, form, **given)
            except (TemplateError, ValueError, TypeError, LookupError, AttributeError) as error:
                reason = str(error) or type(error).__name__
        raise CannotRender(f"the chat template rejects these messages: {reason}")

    def _placed(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Return messages with a first system turn where the template can have it."""
        if not messages or messages[0]["role"] not in ("system", "developer") or self.takes_system:
            return messages
        system, *others = messages
        if not others or others[0]["role"] != "user":
            return messages
        asked = others[0]["content"]
        content = f"{system['content']}\n\n{asked}" if system["content"] else asked
        return [{**others[0], "content": content}, *others[1:]]

    def _known(self, message: Message) -> Message:
        # OpenAI's newer name of the same role, which most templates do not know and some would leave out
        is_new = message["role"] == "developer" and not self.mentions("developer")
        return {**message, "role": "system"} if is_new else message


_TEMPLATES: "WeakKeyDictionary[Any, dict[str, ChatTemplate]]" = WeakKeyDictionary()


def chat_template(tokenizer: Any, date: Date = DATE, variables: Mapping[str, Any] | None = None) -> ChatTemplate:
    """Return a tokenizer's chat template, the same object each time: what it finds out takes longer than a row."""
    known = _TEMPLATES.setdefault(tokenizer, {})
    key = f"{tokenizer.chat_template} {date} {json.dumps(variables, sort_keys=True)}"
    if key not in known:
        known[key] = ChatTemplate(tokenizer, date, variables)
    return known[key]


def _parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


def _with_text_arguments(messages: list[Message]) -> list[Message]:
    return [
        {**message, "tool_calls": [_with_text(call) for call in message["tool_calls"]]}
        if "tool_calls" in message
        else message
        for message in messages
    ]


def _with_text(call: dict[str, Any]) -> dict[str, Any]:
    arguments = json.dumps(call["function"]["arguments"], ensure_ascii=False)
    return {**call, "function": {**call["function"], "arguments": arguments}}


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
