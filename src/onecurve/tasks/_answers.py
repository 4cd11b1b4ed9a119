"""What tasks share that learn from how likely a language model finds whole answers, beside what a reference says."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from onecurve.content.conversations import answer_end
from onecurve.content.preferences import read_question
from onecurve.content.templates import CannotRender
from onecurve.losses import preference
from onecurve.losses.next_token import learnt, next_token_logits, next_tokens
from onecurve.tasks._next_token import NextTokenTask
from onecurve.tasks._other_model import check_folder, check_tokens
from onecurve.tasks._rendering import template_of
from onecurve.tasks.base import IGNORE_INDEX, BadRow, Example, OtherModel, Processing, Row, Survey

if TYPE_CHECKING:
    from torch import Tensor, nn


class AnswersTask(NextTokenTask):
    """A language model's task whose items are answers, not tokens. Its settings have a `reference`."""

    def without_effect(self, reading: Processing | None = None) -> Mapping[str, str]:
        whole = {"train.logits": "each answer's own log-probability is needed, and chunks add up those of a batch"}
        return {**super().without_effect(reading), **whole}

    @property
    def classes(self) -> None:  # type: ignore[override]
        """None: the loss compares answers, and no other criterion stands in for it."""
        return None

    @property
    def reference_model(self) -> OtherModel | None:
        name: str | None = self.settings.reference
        return OtherModel(name, None, "task.reference") if name else None

    def check_other_model(self, reading: Processing, survey: Survey) -> None:
        if other := self.reference_model:
            check_folder(other)
            check_tokens(other, reading.tokenizer)

    # Writing

    def end_token(self, tokenizer: Any) -> int | None:
        eos: int | None = tokenizer.eos_token_id
        return answer_end(tokenizer, template_of(tokenizer, self.settings)) if tokenizer.chat_template else eos

    def prompt(self, row: Row, reading: Processing) -> Example:
        tokenizer, question = reading.tokenizer, read_question(row)
        if isinstance(question, str):
            text = question
        elif tokenizer.chat_template:
            template = template_of(tokenizer, self.settings)
            try:
                text = template.render(question.messages, question.tools, add_generation_prompt=True)
            except CannotRender as error:
                raise BadRow(str(error)) from None
        elif [message["role"] for message in question.messages] == ["user"] and not question.tools:
            text = question.messages[0]["content"] + self.settings.separator
        else:
            raise BadRow("has a conversation, and this model's tokenizer has no chat template")
        special = isinstance(question, str) or not tokenizer.chat_template
        ids = tokenizer(text, add_special_tokens=special, return_attention_mask=False, verbose=False)["input_ids"]
        if special and ids[-1:] == [tokenizer.eos_token_id]:  # some tokenizers end with it by themselves
            ids.pop()
        return {"input_ids": ids}


def answer_logps(model: "nn.Module", inputs: "Mapping[str, Tensor]") -> "Tensor":
    """Return the summed log-probability of the answer of each sequence: float32 [sequences].

    Args:
        model: A causal language model, wrapped or not.
        inputs: `input_ids`, `attention_mask`, and `completion_mask`, which is 1 at an answer's tokens: int64
            [sequences, longest].
    """
    ids = inputs["input_ids"]
    labels = ids.masked_fill(inputs["completion_mask"] == 0, IGNORE_INDEX)
    batch = {"input_ids": ids, "attention_mask": inputs["attention_mask"], "labels": labels}
    logits = next_token_logits(model, batch, IGNORE_INDEX)
    places, targets = learnt(next_tokens(labels, IGNORE_INDEX), IGNORE_INDEX)
    return preference.token_logps(logits, places, targets, (labels.shape[0], labels.shape[1]))
