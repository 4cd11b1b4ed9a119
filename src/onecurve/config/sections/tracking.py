"""Logging, trackers and profiling."""

from pydantic import Field

from onecurve.config.sections.base import Section


class TrackingSection(Section):
    trackers: list[str] = Field(default_factory=list)
    """Trackers supported by Accelerate, such as tensorboard, wandb, mlflow."""
    project: str = "onecurve"
    """Project name in the trackers."""
    log_every: int = Field(default=1, gt=0)
    """Steps between train lines in metrics.jsonl."""
    profile: int = Field(default=0, ge=0)
    """Number of steps to profile, after three warm-up steps; the result is in `<output_dir>/profile/`. 0: off."""
