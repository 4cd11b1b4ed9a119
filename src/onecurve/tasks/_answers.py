"""What tasks share that learn from how likely a language model finds whole answers, beside what a reference says."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from onecurve.losses.next_token import learnt, next_token_logits, next_tokens, token_logps
from onecurve.tasks._other_model import check_folder, check_tokens
from onecurve.tasks._questions import QuestionTask
from onecurve.tasks.base import IGNORE_INDEX, OtherModel, Processing, Row, Survey

if TYPE_CHECKING:
    from torch import Tensor, nn


class AnswersTask(QuestionTask):
    """A language model's task whose items are answers, not tokens. Its settings have a `reference`."""

    def without_effect(self, reading: Processing | None = None) -> Mapping[str, str]:
        whole = {"train.logits": "each answer's own log-probability is needed, and chunks add up those of a batch"}
        return {**super().without_effect(reading), **whole}

    @property
    def reference_model(self) -> OtherModel | None:
        name: str | None = self.settings.reference
        return OtherModel(name, None, "task.reference") if name else None

    def check_other_model(self, reading: Processing, survey: Survey, rows: Sequence[Row] = ()) -> None:
        if other := self.reference_model:
            check_folder(other)
            check_tokens(other, reading.tokenizer, rows)


def answer_logps(model: "nn.Module", inputs: "Mapping[str, Tensor]") -> "Tensor":
    """Return the summed log-probability of the answer of each sequence: float64 [sequences].

    What is learnt is how these differ, from the reference's and from each other, which is small beside them: of an
    answer of a thousand tokens float32 would keep 6e-5.
    """
    import torch

    return answer_token_logps(model, inputs).sum(1, dtype=torch.float64)


def answer_token_logps(model: "nn.Module", inputs: "Mapping[str, Tensor]", temperature: float = 1.0) -> "Tensor":
    """Return the log-probability of each token of an answer where it is predicted: float32 [sequences, longest].

    Args:
        model: A causal language model, wrapped or not.
        inputs: `input_ids`, `attention_mask`, and `completion_mask`, which is 1 at an answer's tokens: int64
            [sequences, longest].
        temperature: Of the distribution that the probabilities are of.
    """
    ids = inputs["input_ids"]
    labels = ids.masked_fill(inputs["completion_mask"] == 0, IGNORE_INDEX)
    batch = {"input_ids": ids, "attention_mask": inputs["attention_mask"], "labels": labels}
    logits = next_token_logits(model, batch, IGNORE_INDEX)
    places, targets = learnt(next_tokens(labels, IGNORE_INDEX), IGNORE_INDEX)
    logits = logits if temperature == 1 else logits.float() / temperature
    return token_logps(logits, places, targets, (labels.shape[0], labels.shape[1]))
