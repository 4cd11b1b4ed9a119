"""The optimizer and its learning rate."""

from typing import Literal

from pydantic import Field

from onecurve.config.sections.base import OpenSection


class OptimSection(OpenSection):
    name: str = "adamw"
    """Optimizer: a function of `onecurve/optim/optimizers.py`. Extra keys are its keyword arguments."""
    lr: float = Field(gt=0, default=2e-5)
    """Peak learning rate."""
    schedule: str = "linear"
    """Learning-rate schedule: constant, linear, cosine, wsd (see `onecurve/optim/schedules.py`)."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps of linear warm-up from zero to the peak learning rate."""
    decay_steps: int | None = Field(default=None, ge=0)
    """wsd only: steps of the final decay; default: a tenth of the run."""
    min_lr_ratio: float = Field(default=0.0, ge=0, le=1)
    """Lowest learning rate of the decay, as a fraction of the peak."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay; not applied to biases, normalisation weights, and factors such as IA3's and DoRA's."""
    rounding: Literal["stochastic", "kahan"] | None = None
    """How updates of bfloat16 weights (`model.dtype`) are rounded. stochastic: up or down at random. kahan: the
    rounding error is added to the next update. Plain rounding would lose small updates."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Clip the gradient to this global norm; 0: no clipping."""
