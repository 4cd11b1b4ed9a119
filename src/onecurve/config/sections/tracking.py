"""Logging, trackers and profiling."""

from typing import Any

from pydantic import Field, field_validator

from onecurve.config.sections.base import Section
from onecurve.config.suggest import nearest

TRACKERS = {
    **{name: (name,) for name in ("aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "trackio", "wandb")},
    "tensorboard": ("tensorboard", "tensorboardX"),
}
"""Accelerate's trackers, and the packages of which one must be installed."""


class TrackingSection(Section):
    trackers: list[str] = Field(default_factory=list)
    """Trackers supported by Accelerate, such as tensorboard, wandb, mlflow."""
    project: str = "onecurve"
    """Project name in the trackers."""
    log_every: int = Field(default=1, gt=0)
    """Steps between train lines in metrics.jsonl; those of a log without a terminal are at least as far apart."""
    profile: int = Field(default=0, ge=0)
    """Number of steps to profile, after three warm-up steps; the result is in `<output_dir>/profile/`. 0: off."""

    @field_validator("trackers", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("trackers")
    @classmethod
    def _are_known(cls, value: list[str]) -> list[str]:
        for name in value:
            if name not in TRACKERS:
                raise ValueError(f"no tracker {name!r}. {nearest(name, TRACKERS)}")
        return value
