"""The optimizer and its learning rate."""

from typing import Literal

from pydantic import Field

from onecurve.config.sections.base import OpenSection


class OptimSection(OpenSection):
    name: str = "adamw"
    """A function of `onecurve/optim/optimizers.py`. Further keys are its keyword arguments."""
    lr: float = Field(gt=0, default=2e-5)
    """Peak learning rate."""
    schedule: str = "linear"
    """A function of `onecurve/optim/schedules.py`: constant, linear, cosine, wsd."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the learning rate rises linearly from zero to its peak."""
    decay_steps: int | None = Field(default=None, ge=0)
    """wsd only: steps of the last descent; a tenth of the run when absent."""
    min_lr_ratio: float = Field(default=0.0, ge=0, le=1)
    """The learning rate's floor, as a share of its peak."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled; never on biases and normalisation weights."""
    rounding: Literal["stochastic", "kahan"] | None = None
    """How trained weights are rounded where they are kept in bfloat16 (`model.dtype`): by chance, or with what was left
    over added to the next update. Plain rounding loses small updates."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Gradients are scaled down to this global norm; 0 never clips."""
