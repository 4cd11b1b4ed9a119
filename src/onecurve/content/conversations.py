"""Locates the answers of a conversation in the text that a chat template renders it to.

What is trained for an answer begins with what the model is given at inference: the conversation before it, rendered
with the generation prompt. docs/conversations.md says how the rest is found.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from onecurve.content.documents import Document, Span, tokenise
from onecurve.content.messages import KNOWN, Conversation, Message, Turn
from onecurve.content.templates import SENTINEL, CannotRender, ChatTemplate

_MASK = "answers by the template's generation mask"
_DIFF = "answers by the difference of two renderings"
_SENTINEL = "answers by a sentinel in their place"
_PUT_BACK = "answers whose reasoning the template drops and that is put back"
_CLOSED = "answers without reasoning, which begin by closing the prompt's <think>"
_OPEN, _CLOSE = "<think>", "</think>"


class _Answer(NamedTuple):
    """An answer as the last turn of what is rendered."""

    text: str
    spans: list[Span]
    found: list[str]

    @property
    def end(self) -> int:
        return self.spans[-1][1]


def documents(conversation: Conversation, places: Sequence[int], template: ChatTemplate) -> list[Document]:
    """Render a conversation to as few texts as hold each answer just as the model writes it.

    That is one text where the template only appends. Where it renders earlier turns differently once later ones
    follow, an answer that would change is the last of a text of its own, and so is one that no token ends.

    Args:
        conversation: The messages and their tools.
        places: Of the answers to learn.
        template: Renders them.

    Raises:
        CannotRender: The template rejects the messages, leaves some out, or no answer can be found.
    """
    found: list[Document] = []
    answers = [_locate(conversation, place, template) for place in places]
    if not answers:
        return []
    _check_is_whole(conversation, places[-1], answers[-1], template)
    for answer in reversed(answers):
        head = answer.text[: answer.end]
        fits = (document for document in found if document.text.startswith(head))
        # Without an end token of the template's own, the tokenizer's must follow, so nothing else can
        document = next(fits, None) if template.ends_with_special(head) else None
        if document is None:
            document = _document(answer, template)
            found.append(document)
        document.answers = answer.spans + document.answers
        document.found.update(answer.found)
    return found[::-1]


def unread(conversation: Conversation, template: ChatTemplate) -> list[str]:
    """Return the keys of messages that the template does not read."""
    keys = dict.fromkeys(key for message in conversation.messages for key in message if key not in KNOWN)
    return [key for key in keys if not template.mentions(key)]


def _document(answer: _Answer, template: ChatTemplate) -> Document:
    is_ended = template.ends_with_special(answer.text[: answer.end])
    # Without one, what the template still writes would stand between the answer and its end token
    return Document(answer.text if is_ended else answer.text[: answer.end], [], is_ended, add_special_tokens=False)


def _locate(conversation: Conversation, place: int, template: ChatTemplate) -> _Answer:
    messages, tools = conversation.messages[: place + 1], conversation.tools
    text = template.render(messages, tools)
    try:
        prompt: str | None = template.render(messages[:place], tools, add_generation_prompt=True)
    except CannotRender:
        if any(message["role"] == "user" for message in messages[:place]):
            raise
        prompt = None  # the conversation begins with this turn: nobody asks for it
    end = template.end_of(text)
    if prompt is None or not (text.startswith(prompt) and len(prompt) < end):
        answer = _by_sentinel(conversation, place, template, prompt, text)
    else:
        answer = _Answer(text, [(len(prompt), end)], [_DIFF])
        if template.has_masks(tools):
            answer = _by_mask(answer, template, messages, tools)
    answer = _with_reasoning(answer, conversation, place, template, prompt)
    written = answer.text[answer.spans[0][0] if prompt is None else len(prompt) :]
    _check_is_written(written, conversation.messages[place], place)
    return answer


def _by_mask(answer: _Answer, template: ChatTemplate, messages: list[Message], tools: Any) -> _Answer:
    """Keep of an answer what the template marks as generated, and its end token in any case."""
    ((start, end),) = answer.spans
    text, marked = template.render_masked(messages, tools)
    spans = [(max(left, start), min(right, end)) for left, right in marked if right > start and left < end]
    if text != answer.text or not spans:
        return answer
    closing = template.start_of_special(text[:end])
    if spans[-1][1] >= closing:
        spans[-1] = (spans[-1][0], end)
    else:
        spans.append((closing, end))
    return _Answer(text, spans, [_MASK])


def _by_sentinel(
    conversation: Conversation, place: int, template: ChatTemplate, prompt: str | None, text: str
) -> _Answer:
    """Find where the answer begins by another text in its place, and put it behind the prompt."""
    probed = _probe(conversation, place, template)
    head = probed[: probed.find(SENTINEL)]
    if not text.startswith(head):
        raise CannotRender(
            f"the answer messages[{place}] cannot be found in what the chat template renders: it writes other text "
            "before it for another answer. Set model.chat_template to a template that does not"
        )
    end = template.end_of(text)
    if prompt is None:
        return _Answer(text, [(len(head), end)], [_SENTINEL])
    written, rest, found = text[len(head) : end], text[end:], [_SENTINEL]
    if prompt.rstrip().endswith(_OPEN) and _CLOSE not in written:
        if not _reasoning(conversation.messages[place])[0]:
            written, found = f"\n{_CLOSE}\n\n{written.lstrip()}", [_SENTINEL, _CLOSED]
    elif prompt.rstrip().endswith(_CLOSE) and _CLOSE in written:
        raise CannotRender(
            f"messages[{place}] has reasoning, but the generation prompt closes it before the answer. Remove the "
            "reasoning, or set task.template_kwargs so that the template leaves room for it"
        )
    return _Answer(prompt + written + rest, [(len(prompt), len(prompt) + len(written))], found)


def _with_reasoning(
    answer: _Answer, conversation: Conversation, place: int, template: ChatTemplate, prompt: str | None
) -> _Answer:
    """Put back the reasoning of an answer where the template drops it, which is meant for the turns before."""
    message = conversation.messages[place]
    reasoning, content = _reasoning(message)
    if not reasoning or prompt is None or reasoning in answer.text[len(prompt) :]:
        return answer
    if not template.mentions("think"):
        raise CannotRender(
            f"messages[{place}] has reasoning_content, which this model's chat template does not write. Put it into "
            f"the content, such as {_OPEN}...{_CLOSE}, or remove it"
        )
    if prompt.rstrip().endswith(_CLOSE):
        raise CannotRender(
            f"messages[{place}] has reasoning, but the generation prompt closes it before the answer. Remove the "
            "reasoning, or set task.template_kwargs so that the template leaves room for it"
        )
    bare = {key: value for key, value in message.items() if key != "reasoning_content"}
    probed = _render_with(conversation, place, {**bare, "content": SENTINEL}, template)
    tail = probed.rpartition(SENTINEL)[2]
    opening = "" if prompt.rstrip().endswith(_OPEN) else f"{_OPEN}\n"
    start, text = len(prompt), f"{prompt}{opening}{reasoning}\n{_CLOSE}\n\n{content}{tail}"
    return _Answer(text, [(start, template.end_of(text))], [*answer.found, _PUT_BACK])


def _reasoning(message: Message) -> tuple[str, str]:
    """Return an answer's reasoning, empty where it has none, and the rest of it."""
    content = message["content"]
    if message.get("reasoning_content"):
        return message["reasoning_content"].strip(), content.strip()
    before, found, after = content.rpartition(_CLOSE)
    return (before.strip().removeprefix(_OPEN).strip(), after.strip()) if found else ("", content.strip())


def _probe(conversation: Conversation, place: int, template: ChatTemplate) -> str:
    """Render a conversation up to an answer, with sentinels instead of its reasoning and its content."""
    message = conversation.messages[place]
    content = SENTINEL
    if message.get("reasoning_content"):
        message = {**message, "reasoning_content": SENTINEL}
    elif _reasoning(message)[0]:
        content = f"{_OPEN}\n{SENTINEL}\n{_CLOSE}\n\n{SENTINEL}"
    probed = _render_with(conversation, place, {**message, "content": content}, template)
    if SENTINEL not in probed:
        raise CannotRender(f"the chat template leaves out messages[{place}], which is to be learnt")
    return probed


def _render_with(conversation: Conversation, place: int, message: Message, template: ChatTemplate, end: int = 0) -> str:
    messages = conversation.messages[: max(end, place) + 1]
    return template.render([*messages[:place], message, *messages[place + 1 :]], conversation.tools)


def _check_is_written(written: str, message: Message, place: int) -> None:
    for call in message.get("tool_calls", ()):
        if call["function"]["name"] not in written:
            raise CannotRender(
                f"this model's chat template leaves out messages[{place}].tool_calls. Set model.chat_template to one "
                "that writes them"
            )
    content = _reasoning(message)[1]
    words = content.split()
    if words and not all(word in written for word in (words[0], words[-1])):
        raise CannotRender(
            f"this model's chat template leaves out the content of messages[{place}], which is to be learnt. Set "
            "model.chat_template to one that writes it"
        )


def _check_is_whole(conversation: Conversation, last: int, answer: _Answer, template: ChatTemplate) -> None:
    """Refuse a row of which the template leaves something out: it would be learnt without a word."""
    for place, message in enumerate(conversation.messages[:last]):
        content = message["content"].strip()
        if message["role"] == "assistant" or content in answer.text:
            continue  # of earlier answers a template may drop the reasoning
        probed = _render_with(conversation, place, {**message, "content": SENTINEL}, template, last)
        if SENTINEL not in probed:
            raise CannotRender(
                f"this model's chat template leaves out messages[{place}], of role {message['role']}. Remove it, or "
                "set model.chat_template to a template that writes it"
            )
    for tool in conversation.tools or ():
        if tool["function"]["name"] not in answer.text:
            raise CannotRender(
                "this model's chat template leaves out the tools. To ignore them, set data.columns.tools to ''; or "
                "set model.chat_template to a template that writes them"
            )


def answer_end(tokenizer: Any, template: ChatTemplate) -> int | None:
    """Return the token that answers end with under a chat template.

    It is read off a conversation of one turn each; None where the template refuses it, with or without a system turn.

    Raises:
        ConfigError: As `tokenise`.
    """
    turns = [Turn({"role": "user", "content": "What?"}), Turn({"role": "assistant", "content": "That."})]
    for before in ([], [Turn({"role": "system", "content": "Answer."})]):
        with suppress(CannotRender):
            conversation = Conversation([*before, *turns])
            (document,) = documents(conversation, [len(before) + 1], template)
            ids, learnt = tokenise(document, tokenizer)
            return next(token for token, is_learnt in reversed([*zip(ids, learnt, strict=True)]) if is_learnt)
    return None
