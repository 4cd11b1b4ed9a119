"""When checkpoints are saved, and which are kept."""

from typing import Literal

from pydantic import Field, NonNegativeInt

from onecurve.config.sections.base import Section


class CheckpointSection(Section):
    every: int | None = Field(default=0, ge=0)
    """Steps between checkpoints; the last step is always saved. 0: only the last step. null: no checkpoints."""
    also: list[NonNegativeInt] = Field(default_factory=list)
    """Additional steps to save and never delete; 0 is the state before the first update."""
    keep: int = Field(default=2, gt=0)
    """How many of the newest checkpoints to keep; the best step's is kept as well."""
    on_error: Literal["stop", "continue"] = "stop"
    """What to do when a save fails during training, such as on a full disk. The last good checkpoint stays."""
    keep_every: int = Field(default=0, ge=0)
    """Also keep every checkpoint whose step is a multiple of this; 0: off."""
