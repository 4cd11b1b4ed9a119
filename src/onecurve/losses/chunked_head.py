"""An output layer that returns the loss of its rows, to avoid storing all logits."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from onecurve.errors import ConfigError
from onecurve.losses.cross_entropy import linear_cross_entropy_sum


class LossHead(nn.Linear):
    """What a model's output layer becomes: a module as before, called where the model calls it."""

    targets: Tensor | None = None
    """int64 [rows], of the rows of the next call, which then returns their summed loss, a scalar; None: logits."""

    smoothing = 0.0
    """Label smoothing of what is trained; evaluation has none."""

    def forward(self, input: Tensor) -> Tensor:
        if self.targets is None:
            return super().forward(input)
        smoothing = self.smoothing if self.training else 0.0
        return linear_cross_entropy_sum(input.flatten(0, -2), self.weight, self.targets, smoothing)


def chunk_logits(model: Any, smoothing: float = 0.0) -> None:
    """Have a language model's output layer compute the loss itself, a chunk of logits at a time.

    Args:
        model: A transformers or PEFT model, as it is trained.
        smoothing: Label smoothing of the loss in training mode.

    Raises:
        ConfigError: It has no output layer, or one that is more than a matrix product.
    """
    head = model.get_output_embeddings()
    obstacle = ""
    if head is None:
        obstacle = f"{type(model).__name__} predicts no tokens"
    elif type(head) is not nn.Linear:
        obstacle = f"the output layer is not a plain nn.Linear but {type(head).__module__}.{type(head).__name__}"
    elif head.bias is not None:
        obstacle = "the output layer has a bias"
    if obstacle:
        raise ConfigError(f"logits cannot be chunked: {obstacle}.", where="train.logits", fix="Set it to whole.")
    head.__class__, head.smoothing = LossHead, smoothing


@contextmanager
def whole_logits(model: Any) -> Iterator[None]:
    """Have a model return logits for a while, whatever its output layer has become."""
    head = model.get_output_embeddings()
    kind = type(head)
    if kind is LossHead:
        head.__class__ = nn.Linear
    try:
        yield
    finally:
        if kind is LossHead:
            head.__class__ = LossHead
