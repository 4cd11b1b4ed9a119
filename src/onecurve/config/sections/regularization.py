"""What keeps a model close to where it started, and averages of its weights."""

from pydantic import Field

from onecurve.config.sections.base import Section


class RegularizationSection(Section):
    layer_decay: float | None = Field(default=None, gt=0, lt=1)
    """Layer-wise learning-rate decay: each block's learning rate is this factor times that of the block above it. The
    head has the full rate, the embeddings the lowest. Default: one rate."""
