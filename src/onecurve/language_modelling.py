"""Next-token prediction: what the language-modelling tasks compute alike."""

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


def next_token_logits(model: "nn.Module", input_ids: "Tensor", attention_mask: "Tensor") -> "Tensor":
    """Return logits: float [batch, sequence, vocabulary], one row per token of `input_ids` [batch, sequence]."""
    logits = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
    # PEFT's prompt learning prepends virtual tokens that are nobody's targets
    return logits[:, -input_ids.shape[1] :]


def next_token_loss_sum(logits: "Tensor", labels: "Tensor", ignore_index: int) -> "Tensor":
    """Return the cross-entropy of each token given those before it, summed: float32 [], in nats.

    Args:
        logits: float [batch, sequence, vocabulary].
        labels: int64 [batch, sequence], not shifted; `ignore_index` where nothing is learnt.
        ignore_index: The label that takes no part.
    """
    from torch.nn import functional

    # Shifting the labels and not the logits spares a copy of the largest tensor of the run
    targets = functional.pad(labels[:, 1:], (0, 1), value=ignore_index)
    return functional.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), ignore_index=ignore_index, reduction="sum"
    )


def mark_learnt(input_ids: Sequence[int], learnt: Sequence[bool], tokenizer: Any) -> str:
    """Decode tokens, special ones included, with what is learnt between guillemets."""
    parts = []
    for is_learnt, tokens in groupby(zip(learnt, input_ids, strict=True), key=lambda pair: pair[0]):
        text = tokenizer.decode([token for _, token in tokens], clean_up_tokenization_spaces=False)
        parts.append(f"«{text}»" if is_learnt else text)
    return "".join(parts)
