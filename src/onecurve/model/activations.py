"""What of a layer's activations stays in memory for the backward pass, and what is computed or fetched again."""

from functools import partial
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from onecurve.errors import ConfigError
from onecurve.model.host_activations import OnHost

_SHORT = 64
"""A matrix product over so short an inner dimension, such as LoRA's second, costs no more than reading its result."""


def keep_activations(model: Any, what: str) -> None:
    """Have a model's layers keep for the backward pass what `train.activations` says; gradients stay the same.

    Args:
        model: A transformers model, before adapters are added.
        what: keep: all. recompute: each layer's input. selective: what matrix products and attention return besides;
            the rest of a layer is cheap to compute again. offload: each layer's input, in host memory.

    Raises:
        ConfigError: The model's layers do not know how to be computed again.
    """
    if what == "keep":
        return
    options: dict[str, Any] = {"use_reentrant": False}
    if what == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    try:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    except ValueError as error:
        raise ConfigError(f"{what}: {str(error).rstrip('.')}.", where="train.activations", fix="Set keep.") from None
    if what == "offload":
        latest: list[Any] = []
        for module in model.modules():
            if checkpoint := getattr(module, "_gradient_checkpointing_func", None):
                module._gradient_checkpointing_func = partial(_from_host, checkpoint, latest)


def _from_host(checkpoint: Any, latest: Any, function: Any, *args: Any) -> Any:
    # Inside, the checkpoint's own hooks come first: these see nothing but the layer's inputs
    with OnHost(latest):
        return checkpoint(function, *args)


def _policy(_: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Keep the outputs that are expensive to compute relative to their size.

    After Chen et al., Training deep nets with sublinear memory cost, 2016, section 4, which keeps convolutions and
    matrix products and computes the rest again.
    """
    name = operator._schema.name.partition("::")[2]
    is_attention = "attention" in name or "attn" in name
    if is_attention or (name in ("mm", "addmm", "_grouped_mm") and _inner_size(name, args) > _SHORT):
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


def _inner_size(name: str, args: tuple[Any, ...]) -> int:
    left: Tensor = args[1] if name == "addmm" else args[0]
    return left.shape[-1]
