"""Where token embeddings are changed in training: what a model's embedding returns for its input."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from onecurve.errors import TrainingError


def input_embedding(model: Any) -> nn.Module | None:
    """Return the module that looks up the tokens of a model's input, of an encoder-decoder's encoder; None without."""
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    reader = base.get_encoder() if base.config.is_encoder_decoder else base
    try:
        found = reader.get_input_embeddings()
    except NotImplementedError:
        return None
    return found if isinstance(found, nn.Module) else None


@contextmanager
def changed_embeddings(model: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Have the model read other embeddings of its input in the forward pass inside.

    Args:
        model: Unwrapped.
        change: Gets the embeddings, float [examples, sequence, size], and returns what is read in their place.

    Raises:
        TrainingError: The forward pass looked up none.
    """
    module, seen = input_embedding(model), False

    def look(_: nn.Module, __: Any, embedded: Tensor) -> Tensor:
        nonlocal seen
        if seen:  # a decoder's, which shares the module with its encoder
            return embedded
        seen = True
        return change(embedded)

    assert module is not None, "checked before the weights were loaded"
    handle = module.register_forward_hook(look)
    try:
        yield
    finally:
        handle.remove()
    if not seen:
        raise TrainingError(
            f"{type(model).__name__} did not call {type(module).__name__}, its input embedding, in its forward pass: "
            "regularization.fgm and regularization.neftune_alpha had no effect. Remove them."
        )
