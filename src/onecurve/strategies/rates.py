"""The learning rate of each parameter group in a step: its share of the step's."""

from typing import Any


def set_rates(optimizer: Any, lr: float) -> None:
    """Set each group's learning rate to its `lr_scale` of the step's `lr`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
