"""Next-token prediction, shared by the tasks that generate text."""

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from onecurve.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn


def next_token_logits(model: "nn.Module", batch: "dict[str, Tensor]", ignore_index: int) -> "Tensor":
    """Return the logits of what a causal language model learns; `target_logits` of each next token.

    Args:
        model: A causal language model, wrapped or not.
        batch: `input_ids`, `attention_mask` and `labels`, int64 [batch, sequence].
        ignore_index: The label that takes no part.

    Raises:
        ConfigError: The model does more to its logits than its output layer.
    """
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    return target_logits(model, inputs, next_tokens(batch["labels"], ignore_index), ignore_index)


def target_logits(model: "nn.Module", inputs: "dict[str, Tensor]", targets: "Tensor", ignore_index: int) -> "Tensor":
    """Return the logits of what is learnt: float [targets, vocabulary], in the order of the batch's targets.

    Or, from a model with a `LossHead`, what `target_loss_sum` makes of them: float [], and there are never all.

    The others are never computed: the model's output layer gets the hidden states of these positions only, inside the
    model's own forward pass, so that wrappers around the model and its layers see what they always see.

    Args:
        model: A language model, wrapped or not.
        inputs: Of its forward pass.
        targets: int64 [batch, sequence]: the token to predict at each position of the decoder.
        ignore_index: The target that takes no part.

    Raises:
        ConfigError: The model does more to its logits than its output layer.
    """
    from onecurve.losses.chunked_head import LossHead

    (places, wanted), width = learnt(targets, ignore_index), targets.shape[1]

    def select(_: Any, args: "tuple[Tensor, ...]") -> "tuple[Tensor, ...]":
        # PEFT's prompt learning prepends virtual tokens that are nobody's targets
        hidden = args[0][:, -width:].flatten(0, 1)
        return hidden.index_select(0, places)[None], *args[1:]

    unwrapped: Any = getattr(model, "module", model)
    head = unwrapped.get_output_embeddings()
    handle = head.register_forward_pre_hook(select)
    try:
        if isinstance(head, LossHead):
            return _loss_of_chunks(model, inputs, head, wanted)
        logits = model(**inputs, use_cache=False).logits
    finally:
        handle.remove()
    if logits.shape[:2] == (1, len(places)):
        return logits[0]
    # MobileBERT multiplies by its output layer's weight without calling the layer
    return logits[:, -width:].flatten(0, 1).index_select(0, places)


def _loss_of_chunks(model: "nn.Module", inputs: "dict[str, Tensor]", head: Any, targets: "Tensor") -> "Tensor":
    returned: list[int] = []
    handle = head.register_forward_hook(lambda _, __, output: returned.append(output.data_ptr()))
    head.targets = targets
    try:
        loss = model(**inputs, use_cache=False).logits
    finally:
        head.targets = None
        handle.remove()
    if loss.dim() or [loss.data_ptr()] != returned:
        raise ConfigError(
            "logits cannot be chunked: this model scales, caps or slices its output layer's result.",
            where="train.logits",
            fix="Set it to whole.",
        )
    return loss


def target_loss_sum(logits: "Tensor", targets: "Tensor", ignore_index: int) -> "Tensor":
    """Return the cross-entropy of the targets, summed: float32 [], in nats.

    Args:
        logits: Of `target_logits`: float [targets, vocabulary], or that sum already.
        targets: int64 [batch, sequence]; `ignore_index` where nothing is learnt.
        ignore_index: The target that takes no part.
    """
    from onecurve.losses.cross_entropy import cross_entropy_sum

    return logits if not logits.dim() else cross_entropy_sum(logits, learnt(targets, ignore_index)[1])


def token_logps(logits: "Tensor", places: "Tensor", targets: "Tensor", shape: "tuple[int, int]") -> "Tensor":
    """Return the log-probability of each target where it is predicted, 0 elsewhere: float32 [rows, longest].

    Args:
        logits: Of the targets: float [targets, vocabulary].
        places: Where each stands in the flattened batch: int64 [targets].
        targets: int64 [targets].
        shape: (rows, longest) of the batch.
    """
    from torch.nn import functional

    found = -functional.cross_entropy(logits.float(), targets, reduction="none")
    return found.new_zeros(shape[0] * shape[1]).index_copy(0, places, found).view(shape)


def learnt(targets: "Tensor", ignore_index: int) -> "tuple[Tensor, Tensor]":
    """Return where in the flattened batch something is learnt, and what: int64 [targets] each, on its device.

    Asked of a device, how many there are would have the host wait for all that is under way; so the host counts.
    """
    import numpy as np
    import torch

    from onecurve.machine.accelerator import on_host, to_device

    flat = on_host(targets).numpy().ravel()
    places = np.flatnonzero(flat != ignore_index)
    return tuple(to_device(torch.from_numpy(part), targets.device) for part in (places, flat[places]))  # type: ignore[return-value]


def next_tokens(labels: "Tensor", ignore_index: int) -> "Tensor":
    """Return, at each position, the label of the next: int64 [batch, sequence]."""
    from torch.nn import functional

    from onecurve.machine.accelerator import on_host, remember

    shifted = functional.pad(labels[:, 1:], (0, 1), value=ignore_index)
    known = on_host(labels)
    return shifted if known is labels else remember(shifted, functional.pad(known[:, 1:], (0, 1), value=ignore_index))


def mark_learnt(input_ids: Sequence[int], learnt: Sequence[bool], tokenizer: Any) -> str:
    """Decode tokens, special ones included, with what is learnt between guillemets."""
    parts = []
    for is_learnt, tokens in groupby(zip(learnt, input_ids, strict=True), key=lambda pair: pair[0]):
        text = tokenizer.decode([token for _, token in tokens], clean_up_tokenization_spaces=False)
        parts.append(f"«{text}»" if is_learnt else text)
    return "".join(parts)
