"""Base class of the tasks that predict each token from those before it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from onecurve.losses.next_token import learnt, mark_learnt, next_token_logits, next_tokens, target_loss_sum
from onecurve.tasks import base
from onecurve.tasks._padding import pad, pad_text
from onecurve.tasks.base import IGNORE_INDEX, Batch, Example, Processing, Survey

if TYPE_CHECKING:
    from torch import Tensor, nn


class NextTokenTask(base.Task):
    """A causal language model's task: examples have `input_ids` and, of the same length, `labels`.

    It implements `Generates`, but for the prompt.
    """

    has_models_loss: ClassVar[bool] = True
    peft_task_type: ClassVar[str | None] = "CAUSAL_LM"
    metric_names: Sequence[str] = ("loss", "perplexity")
    lower_is_better: ClassVar[frozenset[str]] = frozenset({"loss", "perplexity"})

    def end_token(self, tokenizer: Any) -> int | None:
        eos: int | None = tokenizer.eos_token_id
        return eos

    def auto_model(self) -> type:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM

    def collate(self, examples: Sequence[Example], reading: Processing) -> Batch:
        labels = pad([e["labels"] for e in examples], IGNORE_INDEX)
        return pad_text(examples, reading.tokenizer.pad_token_id) | {"labels": labels}

    def num_items(self, batch: Batch) -> int:
        return int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())

    def forward(self, model: "nn.Module", batch: Batch) -> "Tensor":
        return next_token_logits(model, batch, IGNORE_INDEX)

    def loss_sum(self, outputs: "Tensor", batch: Batch) -> "Tensor":
        return target_loss_sum(outputs, next_tokens(batch["labels"], IGNORE_INDEX), IGNORE_INDEX)

    @property
    def classes(self) -> Literal["token"] | None:
        return "token"

    def classified(self, outputs: "Tensor", batch: Batch) -> "tuple[Tensor, Tensor]":
        return outputs, learnt(next_tokens(batch["labels"], IGNORE_INDEX), IGNORE_INDEX)[1]

    def metrics(self, pairs: Sequence[tuple[Any, Any]], loss: float, survey: Survey) -> dict[str, Any]:
        from onecurve.metrics.perplexity import perplexity

        return {"loss": loss, "perplexity": perplexity(loss)}

    def describe(self, example: Example, survey: Survey, tokenizer: Any) -> str:
        learnt = [place > 0 and label != IGNORE_INDEX for place, label in enumerate(example["labels"])]
        return mark_learnt(example["input_ids"], learnt, tokenizer)

    def generate(self, model: Any, examples: Sequence[Example], reading: Processing, **options: Any) -> list[str]:
        return reading.tokenizer.batch_decode(
            self.write_on(model, examples, reading, **options), skip_special_tokens=True
        )

    def write_on(self, model: Any, examples: Sequence[Example], reading: Processing, **options: Any) -> "Tensor":
        """Return the tokens that a model writes after each prompt: int64 [prompts, longest]; see `generate`."""
        import torch

        tokenizer = reading.tokenizer
        rows = [example["input_ids"] for example in examples]
        width = max(map(len, rows))
        # To the left, so that what is written follows each prompt
        ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(row)) + list(row) for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        options = {"pad_token_id": tokenizer.pad_token_id, **options}
        written: Tensor = model.generate(
            input_ids=ids.to(model.device), attention_mask=mask.to(model.device), **options
        )
        return written[:, width:]
