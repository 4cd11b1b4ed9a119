"""What tasks share that learn from pairs of a chosen and a rejected answer."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from onecurve.content.conversations import documents
from onecurve.content.documents import Document
from onecurve.content.messages import Conversation
from onecurve.content.preferences import Texts, read_answer, read_pair
from onecurve.content.templates import CannotRender
from onecurve.errors import ConfigError
from onecurve.tasks import base
from onecurve.tasks._padding import pad_text
from onecurve.tasks._rendering import TemplateSettings, template_of
from onecurve.tasks.base import BadRow, Batch, Example, Processing, Row

if TYPE_CHECKING:
    from torch import Tensor


class JudgedTask(base.Task):
    """A task over answers that somebody has judged, each after its prompt."""

    Settings: ClassVar[type[base.Settings]] = TemplateSettings

    def without_effect(self, reading: Processing | None = None) -> Mapping[str, str]:
        template = reading.tokenizer.chat_template if reading else None
        joined = {"task.separator": "this model's chat template joins prompt and answer"} if template else {}
        return {**super().without_effect(reading), **joined}

    def answer_document(self, row: Row, side: str, tokenizer: Any, may_be_empty: bool = False) -> Document:
        """Return the text of one side alone, as `documents` does; the last turn is the answer."""
        answer = read_answer(row, side, may_be_empty)
        if isinstance(answer, str):
            return _text(answer, 0)
        if answer.messages[-1]["role"] != "assistant":
            raise BadRow(f"{side} must end with an answer of the assistant")
        return self._document(answer, len(answer.messages) - 1, tokenizer)

    def _document(self, conversation: Conversation, start: int, tokenizer: Any) -> Document:
        messages = conversation.messages
        places = [place for place in range(start, len(messages)) if messages[place]["role"] == "assistant"]
        if not tokenizer.chat_template:
            return self._plain(conversation)
        try:
            found = documents(conversation, places, template_of(tokenizer, self.settings))
        except CannotRender as error:
            raise BadRow(str(error)) from None
        if len(found) != 1:
            raise BadRow(
                f"has {len(places)} assistant turns after the prompt, and this model's chat template does not keep the "
                "earlier ones as they were; move them into the prompt"
            )
        return found[0]

    def _plain(self, conversation: Conversation) -> Document:
        messages = conversation.messages
        if conversation.tools or [message["role"] for message in messages] != ["user", "assistant"]:
            raise ConfigError(
                "this tokenizer has no chat template, and the data has conversations.",
                where="model.chat_template",
                fix="Set it to a Jinja file.",
            )
        prompt = messages[0]["content"] + self.settings.separator
        return _text(prompt + messages[1]["content"], len(prompt))


class PreferenceTask(JudgedTask):
    """A task over pairs: an example is a pair, and so is an item of its loss.

    A batch has both sequences of each pair side by side, [pairs, 2, longest]: the chosen one first.
    """

    columns: ClassVar[Mapping[str, str]] = {
        "prompt?": "the question: non-empty text, or the messages before the answers; absent where both answers begin "
        "with it",
        "chosen": "the better answer: non-empty text, or messages",
        "rejected": "the worse answer, in the same form",
        "system?": "a system prompt, placed before the other turns: text",
        "tools?": "the tools that the answers may call: a list of JSON schemas (in CSV: as JSON)",
    }
    shapes: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "ShareGPT pairs": {"prompt": "conversations", "chosen": "chosen", "rejected": "rejected", "system?": "system"},
        "question and answers": {
            "prompt": "question",
            "chosen": "chosen",
            "rejected": "rejected",
            "system?": "system",
        },
        "instruction and answers": {
            "prompt": "instruction",
            "chosen": "chosen",
            "rejected": "rejected",
            "system?": "system",
        },
    }

    def check(self, row: Row) -> None:
        read_pair(row)

    def documents(self, row: Row, tokenizer: Any) -> list[Document]:
        """Return the chosen and the rejected text; the answer of each is what follows the prompt.

        Raises:
            BadRow: The chat template cannot render them so that all of an answer stands in one text.
            ConfigError: Conversations without a chat template.
        """
        pair = read_pair(row)
        if isinstance(pair, Texts):
            return [_text(text, pair.num_shared) for text in pair]
        return [self._document(side, pair.num_shared, tokenizer) for side in (pair.chosen, pair.rejected)]

    def length(self, example: Example) -> int:
        return max(len(example[name]) for name in ("chosen_ids", "rejected_ids") if name in example)

    def num_tokens(self, example: Example) -> int:
        return sum(len(example[name]) for name in ("chosen_ids", "rejected_ids") if name in example)

    def num_items(self, batch: Batch) -> int:
        return len(batch["input_ids"])


def _text(text: str, start: int) -> Document:
    return Document(text, [(start, len(text))], is_ended=False, add_special_tokens=True)


def pad_pairs(examples: Sequence[Example], pad_id: int, left: bool = False) -> Batch:
    """Return `input_ids` and `attention_mask`: int64 [pairs, 2, longest], or [pairs, 1, longest] of single answers."""
    names = [name for name in ("chosen_ids", "rejected_ids") if name in examples[0]]
    rows = [{"input_ids": example[name]} for example in examples for name in names]
    padded = pad_text(rows, pad_id, left)
    return {name: value.view(len(examples), len(names), -1) for name, value in padded.items()}


def flattened(batch: Batch, *names: str) -> "dict[str, Tensor]":
    """Return what a model takes: each pair as two rows, int64 [2 * pairs, longest]."""
    return {name: batch[name].flatten(0, 1) for name in names}
