"""When a run is saved, and what is kept."""

from typing import Literal

from pydantic import Field, NonNegativeInt

from onecurve.config.sections.base import Section


class CheckpointSection(Section):
    every: int = Field(default=0, ge=0)
    """Steps between two checkpoints; 0: none."""
    also: list[NonNegativeInt] = Field(default_factory=list)
    """Further steps to save after, always kept; 0 is the start, before the first update."""
    keep: int = Field(default=2, gt=0)
    """Newest checkpoints to keep; the best step's is kept besides."""
    on_error: Literal["stop", "continue"] = "stop"
    """What a save that fails (a full disk) does to the run; the last good checkpoint stays either way."""
    keep_every: int = Field(default=0, ge=0)
    """Keep every checkpoint whose step is a multiple of this; 0: none for that reason."""
