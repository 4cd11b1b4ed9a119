"""Supervised fine-tuning on prompts and conversations; only the answers are in the loss."""

from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar

from onecurve.content.conversations import answer_end, documents, unread
from onecurve.content.documents import Document, tokenise
from onecurve.content.messages import Conversation, Learn, Turn, read_history, read_tools, read_turns, text_of
from onecurve.content.templates import CannotRender, ChatTemplate
from onecurve.errors import ConfigError
from onecurve.tasks._next_token import NextTokenTask
from onecurve.tasks._rendering import TemplateSettings, template_of
from onecurve.tasks._writing import WritingSettings, WritingTask
from onecurve.tasks.base import IGNORE_INDEX, TALLY, BadRow, Example, Processing, Row, Settings, Survey


class SftSettings(WritingSettings, TemplateSettings):
    learn: Learn = "all"
    """Which answers of a conversation are learnt: all, the last, or those marked with train: true or weight: 1. An
    answer marked with false or 0 never is."""


class Task(WritingTask, NextTokenTask):
    """Learn the answers of conversations.

    With a chat template a conversation is rendered by it, to one text where the template only appends and to several
    where it renders earlier turns differently later (`content.conversations`). The template's own end-of-turn token is
    learnt too; where there is none after the last answer, the tokenizer's end token is put there.
    """

    Settings: ClassVar[type[Settings]] = SftSettings
    columns: ClassVar[Mapping[str, str]] = {
        "prompt?": "the question or instruction: non-empty text, or the messages before the answer, with response",
        "response?": "the answer to learn: non-empty text, or messages, with prompt",
        "input?": "further input, placed below the prompt: text",
        "history?": "earlier turns, before the prompt: a list of [question, answer] pairs (in CSV: as JSON)",
        "messages?": "instead of these: a list of {role, content} or of {from, value} (in CSV: as JSON)",
        "system?": "a system prompt, placed before the other turns: text",
        "tools?": "the tools that the answers may call: a list of JSON schemas (in CSV: as JSON)",
        "text?": "where a row has nothing else: text to learn whole",
    }
    shapes: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "Alpaca": {
            "prompt": "instruction",
            "input?": "input",
            "response": "output",
            "system?": "system",
            "history?": "history",
            "text?": "",
        },
        "Dolly": {"prompt": "instruction", "input?": "context", "response": "response", "text?": ""},
        "ShareGPT": {"messages": "conversations", "system?": "system", "tools?": "tools", "text?": ""},
        "conversation": {"messages": "conversation", "system?": "system", "tools?": "tools", "text?": ""},
        "prompt and completion": {
            "prompt": "prompt",
            "response": "completion",
            "system?": "system",
            "tools?": "tools",
            "text?": "",
        },
    }
    encoder_version: ClassVar[int] = 4
    targets: ClassVar[frozenset[str]] = frozenset({"response"})

    def without_effect(self, reading: Processing | None = None) -> Mapping[str, str]:
        template = reading.tokenizer.chat_template if reading else None
        joined = {"task.separator": "this model's chat template joins prompt and response"} if template else {}
        return {**super().without_effect(reading), **joined}

    def read_text(self, text: str) -> Row:
        return {"prompt": text}

    def check_input(self, row: Row) -> None:
        if not _is_text(row):
            _question(row)

    def check(self, row: Row) -> None:
        if not _is_text(row):
            _conversation(row)

    def encode(self, row: Row, survey: Survey, reading: Processing, truncate: bool) -> list[Example]:
        tokenizer = reading.tokenizer
        examples = []
        for document in self._documents(row, tokenizer):
            ids, learnt = tokenise(document, tokenizer)
            labels = [token if is_learnt else IGNORE_INDEX for token, is_learnt in zip(ids, learnt, strict=True)]
            if truncate:
                ids, labels = ids[: reading.max_length], labels[: reading.max_length]
            num_items = sum(label != IGNORE_INDEX for label in labels[1:])
            example = {"input_ids": ids, "labels": labels, "num_items": num_items, TALLY: dict(document.found)}
            examples += [example] if num_items else []
        return examples

    def end_token(self, tokenizer: Any) -> int | None:
        eos: int | None = tokenizer.eos_token_id
        return answer_end(tokenizer, self._template(tokenizer)) if tokenizer.chat_template else eos

    def asked(self, row: Row) -> tuple[Row, str] | None:
        if _is_text(row):
            return None
        messages = _conversation(row).messages
        reference = messages[-1].get("content")
        if messages[-1]["role"] != "assistant" or not isinstance(reference, str) or not reference:
            return None  # such as a tool call
        self.check_reference(reference)
        if _given(row, "messages") or not isinstance(row["response"], str):
            return {"messages": messages[:-1], "tools": row.get("tools")}, reference
        return {name: value for name, value in row.items() if name != "response"}, reference

    def prompt(self, row: Row, reading: Processing) -> Example:
        tokenizer = reading.tokenizer
        is_text = _is_text(row)
        if is_text:
            text = row["text"]
        elif tokenizer.chat_template:
            question = _question(row)
            try:
                text = self._template(tokenizer).render(question.messages, question.tools, add_generation_prompt=True)
            except CannotRender as error:
                raise BadRow(str(error)) from None
        else:
            question = _question(row)
            if _given(row, "messages") or not _is_single(question):
                raise BadRow("has a conversation, and this model's tokenizer has no chat template")
            text = question.messages[0]["content"] + self.settings.separator
        special = is_text or not tokenizer.chat_template
        encoded = tokenizer(text, add_special_tokens=special, return_attention_mask=False, verbose=False)
        ids = encoded["input_ids"]
        if special and ids[-1:] == [tokenizer.eos_token_id]:  # some tokenizers end with it by themselves
            ids.pop()
        return {"input_ids": ids}

    def _documents(self, row: Row, tokenizer: Any) -> list[Document]:
        if _is_text(row):
            text, start = row["text"], tokenizer.bos_token
            begins = bool(start) and text.startswith(start)  # as text that a template wrote
            return [Document(text, [(0, len(text))], False, not begins, Counter({"texts learnt whole": 1}))]
        conversation = _conversation(row)
        places = conversation.answers(self.settings.learn)
        if not tokenizer.chat_template:
            return self._plain(conversation, places, _given(row, "messages"))
        try:
            template = self._template(tokenizer)
            found = documents(conversation, places, template)
        except CannotRender as error:
            raise BadRow(str(error)) from None
        for document in found[:1]:
            notes = [f"conversations whose key {key!r} is not read" for key in unread(conversation, template)]
            notes += ["rows made into several examples"] * (len(found) > 1)
            has_system = conversation.messages[0]["role"] in ("system", "developer")
            moved = has_system and not template.takes_system
            notes += ["system turns put before the first question, as the template has none"] * moved
            notes += ["rows whose text is not read, as they have more"] * _given(row, "text")
            document.found.update(notes)
        return found

    def _plain(self, conversation: Conversation, places: list[int], has_messages: bool) -> list[Document]:
        """Return prompt and response as one text, where there is no chat template."""
        if has_messages or not _is_single(conversation, 2):
            raise ConfigError(
                "this tokenizer has no chat template, and the data has conversations.",
                where="model.chat_template",
                fix="Set it to a Jinja file.",
            )
        prompt, response = (message["content"] for message in conversation.messages)
        prompt += self.settings.separator
        text = prompt + response
        answers = [(len(prompt), len(text))] if places else []
        return [Document(text, answers, is_ended=False, add_special_tokens=True)] if answers else []

    def _template(self, tokenizer: Any) -> ChatTemplate:
        return template_of(tokenizer, self.settings)


def _given(row: Row, column: str) -> bool:
    """Whether a row uses an optional column; other rows of the file leave it null, or empty in CSV."""
    return row.get(column) not in (None, "")


def _is_text(row: Row) -> bool:
    """Whether a row has a text and nothing else."""
    if not _given(row, "text") or any(_given(row, column) for column in ("prompt", "response", "messages")):
        return False
    text_of(row["text"], "text")
    if also := [column for column in ("system", "tools", "input", "history") if _given(row, column)]:
        raise BadRow(
            f"has text and also {also[0]}, but text is learnt as it is. To ignore {also[0]}, set "
            f"data.columns.{also[0]} to ''"
        )
    return True


def _is_single(conversation: Conversation, num_turns: int = 1) -> bool:
    """Whether a conversation is no more than a prompt, and its response, need no chat template."""
    messages = conversation.messages
    roles = [message["role"] for message in messages]
    plain = all(message.keys() == {"role", "content"} for message in messages)
    return plain and not conversation.tools and roles == ["user", "assistant"][:num_turns]


def _question(row: Row) -> Conversation:
    """Return the turns that an answer follows."""
    if not _given(row, "messages"):
        return _with_context([*_history(row), *_prompt(row)], row)
    turns = read_turns(row["messages"])
    if turns[-1].message["role"] == "assistant":
        raise BadRow("messages ends with an assistant turn; the last turn must be the one to answer")
    return _with_context(turns, row)


def _conversation(row: Row) -> Conversation:
    """Return a row as a conversation up to its last answer, after which there is nothing to learn."""
    if _given(row, "messages"):
        turns = read_turns(row["messages"])
        _check_one_form(row, turns)
        last = max((n for n, turn in enumerate(turns) if turn.message["role"] == "assistant"), default=None)
        if last is None:
            raise BadRow("messages has no assistant turn, so there is nothing to learn")
        return _with_context(turns[: last + 1], row)
    if not _given(row, "prompt") and not _given(row, "response"):
        raise BadRow("has neither prompt and response nor messages")
    # What a prompt says is read: its answers are not learnt
    prompt = [turn._replace(is_marked=False) for turn in _prompt(row)]
    return _with_context([*_history(row), *prompt, *_turns(row.get("response"), "response", "assistant")], row)


def _check_one_form(row: Row, turns: list[Turn]) -> None:
    also = [column for column in ("prompt", "input", "response", "history") if _given(row, column)]
    questions = [turn.message["content"] for turn in turns if turn.message["role"] == "user"]
    if also == ["prompt"] and row["prompt"] in questions[:1]:  # as in UltraChat, where it says nothing more
        return
    if also:
        raise BadRow(
            f"has messages and also {', '.join(also)}; use one of the two forms. To ignore {also[0]}, set "
            f"data.columns.{also[0]} to ''"
        )


def _with_context(turns: list[Turn], row: Row) -> Conversation:
    if _given(row, "system"):
        if any(turn.message["role"] == "system" for turn in turns[:1]):
            raise BadRow(
                "has a system turn and also system; use one of the two. To ignore system, set data.columns.system to ''"
            )
        turns = [Turn({"role": "system", "content": text_of(row["system"], "system")}), *turns]
    return Conversation(turns, read_tools(row["tools"]) if _given(row, "tools") else None)


def _history(row: Row) -> list[Turn]:
    return read_history(row["history"]) if _given(row, "history") else []


def _prompt(row: Row) -> list[Turn]:
    prompt, about = _turns(row.get("prompt"), "prompt", "user"), row.get("input")
    if not _given(row, "input") or (isinstance(about, str) and about.isspace()):
        return prompt
    message = prompt[-1].message
    content = f"{message['content']}\n{text_of(about, 'input')}"  # as LLaMA-Factory joins them
    return [*prompt[:-1], Turn({**message, "content": content})]


def _turns(value: Any, where: str, role: str) -> list[Turn]:
    """Return text as one turn, and messages as they are."""
    is_list = isinstance(value, list | tuple) and value and isinstance(value[0], Mapping)
    if not is_list:
        return [Turn({"role": role, "content": text_of(value, where)})]
    return read_turns(value, where)
