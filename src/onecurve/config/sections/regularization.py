"""What keeps a model close to where it started, and averages of its weights."""

from typing import Literal

from pydantic import Field

from onecurve.config.sections.base import Section


class RegularizationSection(Section):
    average: Literal["ema", "last", "swa"] | None = None
    """Average the weights over the run; the average is what is scored, chosen as the best, and exported, while training
    goes on from its own weights. ema: exponential moving average. swa: running mean. last: mean of the last
    `average_count`. Default: none."""
    average_count: int = Field(default=5, gt=1)
    """last only: how many weights are averaged."""
    average_decay: float = Field(default=0.999, gt=0, lt=1)
    """ema only: the share of the average that each step keeps; about 1 / (1 - decay) steps count."""
    average_every: int = Field(default=1, gt=0)
    """Steps between the weights that are averaged."""
    average_start: int = Field(default=1, gt=0)
    """The first step whose weights are averaged."""
    freeze: list[str] = Field(default_factory=list)
    """Parameters that are not trained: patterns of their names, such as `*.layer.0.*`, or the word `embeddings`, for
    all below the first block."""
    freeze_blocks: int = Field(default=0, ge=0)
    """How many of the lowest blocks are not trained, with the embeddings below them."""
    layer_decay: float | None = Field(default=None, gt=0, lt=1)
    """Layer-wise learning-rate decay: each block's learning rate is this factor times that of the block above it. The
    head has the full rate, the embeddings the lowest. Default: one rate."""
    unfreeze_every: int | None = Field(default=None, gt=0)
    """Gradual unfreezing: train the head alone for this many steps, then a block more from the top after each as many
    steps, and the embeddings at last. Default: train all from the start."""

    @property
    def copies(self) -> int:
        """How many copies of the trained weights, in float32, the average takes."""
        return {None: 0, "last": self.average_count}.get(self.average, 1)

    @property
    def freezes(self) -> bool:
        """Whether some of the model stays as it was loaded, which a checkpoint then does not hold."""
        return bool(self.freeze or self.freeze_blocks)
