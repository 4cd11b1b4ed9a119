"""Reads pairs of answers to one prompt, of which one is preferred, in the forms that people keep them."""

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

from onecurve.content.messages import Conversation, Turn, read_tools, read_turns, text_of
from onecurve.errors import BadRow

SIDES = ("chosen", "rejected")
_ANSWERS = (*SIDES, "completion")
"""Columns that a prompt may stand in, before an answer."""


class Texts(NamedTuple):
    """Two whole texts: what they begin with alike is the prompt."""

    chosen: str
    rejected: str

    @property
    def num_shared(self) -> int:
        """Characters of the prompt; a space before the answers is the answers'."""
        return num_alike(*self) - self.chosen[: num_alike(*self)].endswith(" ")


class Pair(NamedTuple):
    """Two conversations that differ after the prompt."""

    chosen: Conversation
    rejected: Conversation
    num_shared: int
    """Turns of the prompt."""


def read_answer(row: Mapping[str, Any], side: str, may_be_empty: bool = False) -> str | Conversation:
    """Read one side of a row, with its prompt: a text where there is no prompt and no message.

    Raises:
        BadRow: It is missing or invalid.
    """
    value = row.get(side)
    if isinstance(value, Mapping):  # a single message, as LLaMA-Factory has it
        value = [value]
    prompt = _prompt(row)
    if isinstance(value, list | tuple) and value and isinstance(value[0], Mapping):
        turns = read_turns(value, side)
    elif not _given(row, "prompt"):
        if _given(row, "system") or _given(row, "tools"):
            raise BadRow(f"has text in {side} and no prompt, so system and tools have no conversation to stand in")
        return text_of(value, side, may_be_empty)
    else:
        turns = [Turn({"role": "assistant", "content": text_of(value, side, may_be_empty)})]
    return Conversation(_joined(prompt, turns, side), read_tools(row["tools"]) if _given(row, "tools") else None)


def read_pair(row: Mapping[str, Any]) -> Texts | Pair:
    """Read a row's prompt and its two answers.

    A prompt may stand in its own column, at the beginning of both answers, or, as in UltraFeedback, in both places.

    Raises:
        BadRow: Something is missing or invalid, or the two are the same.
    """
    chosen, rejected = (read_answer(row, side) for side in SIDES)
    if isinstance(chosen, str) or isinstance(rejected, str):
        if isinstance(chosen, str) and isinstance(rejected, str):
            return Texts(*_differing(chosen, rejected))
        raise BadRow("has text on one side and messages on the other; chosen and rejected must have the same form")
    _differing(chosen.messages, rejected.messages)
    num_shared = num_alike(chosen.messages, rejected.messages)
    for side, conversation in zip(SIDES, (chosen, rejected), strict=True):
        own = conversation.messages[num_shared:]
        if not own or own[-1]["role"] != "assistant" or own[0]["role"] not in ("assistant", "tool"):
            raise BadRow(f"{side} must end with an answer of the assistant to the same prompt as the other side's")
    if not num_shared:
        raise BadRow("has no prompt: neither in prompt, nor as the messages with which both answers begin")
    return Pair(chosen, rejected, num_shared)


def num_alike(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Return how many elements two sequences begin with alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _differing(chosen: Any, rejected: Any) -> tuple[Any, Any]:
    if chosen == rejected:
        raise BadRow("chosen and rejected are the same, so neither is preferred")
    return chosen, rejected


def _prompt(row: Mapping[str, Any]) -> list[Turn]:
    turns: list[Turn] = []
    if _given(row, "prompt"):
        value = row["prompt"]
        is_list = isinstance(value, list | tuple) and value and isinstance(value[0], Mapping)
        turns = read_turns(value, "prompt") if is_list else [_user(text_of(value, "prompt"))]
    if not _given(row, "system"):
        return turns
    if turns and turns[0].message["role"] == "system":
        raise BadRow("has a system turn and also system; to ignore system, set data.columns.system to ''")
    return [Turn({"role": "system", "content": text_of(row["system"], "system")}), *turns]


def _joined(prompt: list[Turn], turns: list[Turn], side: str) -> list[Turn]:
    """Put a prompt before an answer that does not begin with it already."""
    if turns[0].message["role"] == "assistant" or not prompt:
        return [*prompt, *turns]
    ours, given = ([turn.message for turn in part] for part in (prompt, turns))
    if given[: len(ours)] == ours:
        return turns
    if given[0]["role"] == "tool":  # goes on after a call in the prompt
        return [*prompt, *turns]
    asked = [message for message in given if message["role"] == "user"]
    if len(ours) == 1 and ours[0] in asked:  # such as after a system turn of the answer's own
        return turns
    raise BadRow(f"{side} begins with another prompt than prompt; to ignore prompt, set data.columns.prompt to ''")


def _user(text: str) -> Turn:
    return Turn({"role": "user", "content": text})


def _given(row: Mapping[str, Any], column: str) -> bool:
    return row.get(column) not in (None, "")


def read_question(row: Mapping[str, Any]) -> str | Conversation:
    """Read what an answer follows: `messages`, as a chat has them, or `prompt`; else what the answers begin with.

    Returns:
        Turns; a text where both answers are whole texts.

    Raises:
        BadRow: They are missing or invalid, or end with an answer.
    """
    if not _given(row, "messages") and not _given(row, "prompt") and any(_given(row, side) for side in _ANSWERS):
        return _before_answers(row)
    turns = _prompt({**row, "prompt": row["messages"]} if _given(row, "messages") else row)
    if not turns:
        raise BadRow("prompt is missing")
    if turns[-1].message["role"] == "assistant":
        raise BadRow("prompt ends with an assistant turn; the last turn must be the one to answer")
    return Conversation(turns, read_tools(row["tools"]) if _given(row, "tools") else None)


def _before_answers(row: Mapping[str, Any]) -> str | Conversation:
    """Read the prompt with which the answers begin."""
    if all(_given(row, side) for side in SIDES):
        pair = read_pair(row)
        if isinstance(pair, Pair):
            return Conversation(pair.chosen.turns[: pair.num_shared], pair.chosen.tools)
        if not pair.num_shared:
            raise BadRow("prompt is missing: chosen and rejected have no common beginning")
        return pair.chosen[: pair.num_shared]
    side = next(side for side in _ANSWERS if _given(row, side))
    answer = read_answer(row, side)
    if isinstance(answer, str):
        raise BadRow(f"prompt is missing, and {side} alone does not tell where its answer begins")
    turns = answer.turns[:-1] if answer.messages[-1]["role"] == "assistant" else answer.turns
    if not turns:
        raise BadRow("prompt is missing")
    return Conversation(turns, answer.tools)
