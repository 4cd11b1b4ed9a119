"""What is told of a run, and to whom."""

from pydantic import Field

from onecurve.config.sections.base import Section


class TrackingSection(Section):
    trackers: list[str] = Field(default_factory=list)
    """Accelerate's trackers, such as tensorboard, wandb, mlflow."""
    project: str = "onecurve"
    """The project's name in those trackers."""
    log_every: int = Field(default=1, gt=0)
    """Steps between two train lines of metrics.jsonl."""
    profile: int = Field(default=0, ge=0)
    """Steps to measure, after three that warm up: `<output_dir>/profile/` then says where their time went. 0: none."""
