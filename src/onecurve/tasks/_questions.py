"""Base class of the tasks whose language models answer a question: a prompt, or the turns before an answer."""

from typing import Any, ClassVar

from onecurve.content.conversations import answer_end
from onecurve.content.preferences import read_question
from onecurve.content.templates import CannotRender
from onecurve.tasks._next_token import NextTokenTask
from onecurve.tasks._rendering import template_of
from onecurve.tasks.base import BadRow, Example, Processing, Row


class QuestionTask(NextTokenTask):
    """Its settings are `TemplateSettings`; it implements `Generates`. Its loss is of whole answers, not of tokens."""

    has_models_loss: ClassVar[bool] = False

    @property
    def classes(self) -> None:
        """None: the loss is of answers, and no other criterion stands in for it."""
        return None

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
