"""Reads conversations as people keep them: OpenAI's messages, ShareGPT's turns, tools and calls of them."""

import json
from collections.abc import Mapping
from reprlib import repr as short
from typing import Any, Literal, NamedTuple

from onecurve.errors import BadRow

Message = dict[str, Any]
"""What chat templates read: role and content; tool_calls, reasoning_content, name, ... where a row has them."""
Learn = Literal["all", "last", "marked"]
"""Which answers of a conversation are learnt."""

_ROLES = {
    **{name: name for name in ("system", "developer", "user", "assistant", "tool")},
    **dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "model", "bot"), "assistant"),
    **dict.fromkeys(("function", "observation", "tool_response", "tool_results", "function_response"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), "function_call"),
    "human": "user",
}
"""Role, also as ShareGPT and other tools write it -> role as chat templates know it."""
_MARKS = ("train", "training", "weight")
_REASONING = ("reasoning_content", "reasoning", "thinking")
_OWN = {"role", "content", "from", "value", "tool_calls", "function_call", *_MARKS, *_REASONING}
KNOWN = frozenset({"role", "content", "reasoning_content", "tool_calls", "tool_call_id", "name"})
"""The keys of a message that every template may be expected to know."""


class Turn(NamedTuple):
    """One message, and whether the row says that it is learnt."""

    message: Message
    is_marked: bool | None = None


class Conversation(NamedTuple):
    """A row's messages and the tools that they may call."""

    turns: list[Turn]
    tools: list[dict[str, Any]] | None = None

    @property
    def messages(self) -> list[Message]:
        """What the chat template is given."""
        return [turn.message for turn in self.turns]

    def answers(self, learn: Learn) -> list[int]:
        """Return the places of the answers that are learnt.

        Where no turn of the user comes before an assistant's, that is no answer: a model is never asked for it. It is
        learnt only where the row marks it.
        """
        asked = next((place for place, turn in enumerate(self.turns) if turn.message["role"] == "user"), None)
        places = [place for place, turn in enumerate(self.turns) if turn.message["role"] == "assistant"]
        places = [n for n in places if self.turns[n].is_marked or (asked is not None and n > asked)]
        if learn == "last":
            places = places[-1:]
        marks = [self.turns[place].is_marked for place in places]
        wanted = (True,) if learn == "marked" else (True, None)
        return [place for place, mark in zip(places, marks, strict=True) if mark in wanted]


def read_turns(value: Any, where: str = "messages") -> list[Turn]:
    """Read a list of messages, or JSON text of one.

    Raises:
        BadRow: It is something else, or a message is invalid; says which.
    """
    value = _from_json(value, where)
    if not isinstance(value, list | tuple) or not value:
        raise BadRow(f"{where} must be a non-empty list of {{role, content}}; got {type(value).__name__}")
    return [_read_turn(message, f"{where}[{place}]") for place, message in enumerate(value)]


def read_history(value: Any) -> list[Turn]:
    """Read the turns before a prompt: [question, answer] pairs, as LLaMA-Factory has them, or JSON text of them.

    Raises:
        BadRow: It is something else; says which pair.
    """
    turns = []
    for place, pair in enumerate(_list(_from_json(value, "history"), "history")):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise BadRow(f"history[{place}] must be a pair [question, answer]; got {short(pair)}")
        for role, text in zip(("user", "assistant"), pair, strict=True):
            turns.append(Turn({"role": role, "content": text_of(text, f"history[{place}], the {role}'s part,")}))
    return turns


def read_tools(value: Any) -> list[dict[str, Any]] | None:
    """Read the tools of a row: JSON schemas of functions, or JSON text of them; None where there are none.

    Raises:
        BadRow: It is something else.
    """
    tools = [_from_json(tool, f"tools[{n}]") for n, tool in enumerate(_list(_from_json(value, "tools"), "tools"))]
    for place, tool in enumerate(tools):
        if not isinstance(tool, Mapping) or not isinstance(tool.get("function", tool), Mapping):
            raise BadRow(f"tools[{place}] must be the JSON schema of a function; got {type(tool).__name__}")
        if not isinstance(tool.get("function", tool).get("name"), str):
            raise BadRow(f"tools[{place}] has no name")
    wrapped = [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]
    return [_without_nulls(tool) for tool in wrapped] or None


def text_of(value: Any, where: str, may_be_empty: bool = False) -> str:
    """Return text, or the text of several content parts put together.

    Raises:
        BadRow: It is missing, blank, of another type, or has a part that is no text.
    """
    if isinstance(value, list | tuple):
        value = "".join(_part(part, f"{where}[{place}]") for place, part in enumerate(value))
    if value is None:
        raise BadRow(f"{where} is missing")
    if not isinstance(value, str):
        raise BadRow(f"{where} must be text; got {type(value).__name__}")
    if not may_be_empty and not value.strip():
        raise BadRow(f"{where} is empty")
    return value


def _part(part: Any, where: str) -> str:
    if isinstance(part, Mapping):
        kind = part.get("type") or "text"
        if kind not in ("text", "input_text", "output_text"):
            raise BadRow(f"{where} is of type {kind}; only text can be learnt from")
        part = part.get("text")
    if not isinstance(part, str):
        raise BadRow(f"{where} must be text or {{type: text, text: ...}}; got {type(part).__name__}")
    return part


def _read_turn(message: Any, where: str) -> Turn:
    if not isinstance(message, Mapping):
        raise BadRow(f"{where} must be a map with role and content; got {type(message).__name__}")
    given = {key: value for key, value in message.items() if value is not None}  # as columnar files fill up
    is_sharegpt = "role" not in given and "from" in given
    name, key = ("from", "value") if is_sharegpt else ("role", "content")
    said = given.get(name)
    role = _ROLES.get(said) if isinstance(said, str) else None
    if role is None:
        raise BadRow(f"{where}.{name} must be one of {', '.join(_ROLES)}; got {said!r}")
    read: Message = {"role": role}
    calls = given.get("tool_calls") or given.get("function_call")
    if role == "function_call":
        read["role"], calls = "assistant", given.get(key)
        given[key] = ""
    if calls:
        read["tool_calls"] = _calls(calls, f"{where}.tool_calls")
    may_be_empty = bool(calls) or role not in ("user", "assistant")
    read["content"] = text_of(given.get(key, "" if calls else None), f"{where}.{key}", may_be_empty)
    reasoning = next((given[field] for field in _REASONING if given.get(field)), None)
    if reasoning is not None:
        read["reasoning_content"] = text_of(reasoning, f"{where}.reasoning_content")
    read |= {field: value for field, value in given.items() if field not in _OWN}
    return Turn(read, _mark(given, read["role"], where))


def _mark(given: Message, role: str, where: str) -> bool | None:
    marks = {key: given[key] for key in _MARKS if key in given}
    for key, value in marks.items():
        if value not in (0, 1):
            raise BadRow(f"{where}.{key} must be 0 or 1 (false or true): an answer is learnt or not; got {value!r}")
        if value and role != "assistant":
            raise BadRow(f"{where}.{key} is {value!r}, but only an assistant turn can be learnt, not one of {role}")
    if len({bool(value) for value in marks.values()}) > 1:
        raise BadRow(f"{where} has {' and '.join(marks)}, which disagree")
    return next((bool(value) for value in marks.values()), None)


def _calls(value: Any, where: str) -> list[dict[str, Any]]:
    value = _from_json(value, where)
    return [_call(call, f"{where}[{n}]") for n, call in enumerate([value] if isinstance(value, Mapping) else value)]


def _call(call: Any, where: str) -> dict[str, Any]:
    """Return a call as transformers' templates expect it: the arguments as a map, which OpenAI writes as JSON text."""
    call = _from_json(call, where)
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise BadRow(f"{where} must be a map with the function's name and arguments")
    arguments = _from_json(function.get("arguments", function.get("parameters")) or {}, f"{where}.arguments")
    if not isinstance(arguments, Mapping):
        raise BadRow(f"{where}.arguments must be a map; got {type(arguments).__name__}")
    kept = {"id": call["id"]} if call.get("id") is not None else {}
    told = {"name": function["name"], "arguments": _without_nulls(arguments)}
    return {**kept, "type": call.get("type") or "function", "function": told}


def _from_json(value: Any, where: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise BadRow(f"{where} is text but not JSON: {error}") from None


def _list(value: Any, where: str) -> list[Any]:
    if isinstance(value, Mapping):
        return [value]
    if not isinstance(value, list | tuple):
        raise BadRow(f"{where} must be a list; got {type(value).__name__}")
    return list(value)


def _without_nulls(value: Any) -> Any:
    """Return a value without keys that are null: Parquet gives each map the keys of all others."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(part) for key, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list | tuple) else value
