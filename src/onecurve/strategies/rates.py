"""The learning rate of each parameter group in a step, and groups that stay frozen until a step."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from onecurve.strategies.base import Strategy


@dataclass
class Gate:
    """Keeps a group's parameters as they are before `first_step`, whatever is partitioned over ranks.

    Meanwhile their gradient counts as zero, so that it is in no norm and moves no moment, their learning rate is 0, and
    the optimizer counts no steps of theirs: with AdamW's count going on over moments of zero, the first updates after
    1,000 steps would be 5 times the learning rate, since nothing corrects the young moments' bias.
    """

    first_step: int
    names: set[str] = field(default_factory=set)
    closed: bool = False

    def hold(self, name: str, parameter: Tensor) -> None:
        """Let the gradients of a parameter of this name through only while the gate is open."""
        self.names.add(name)
        parameter.register_hook(lambda gradient: torch.zeros_like(gradient) if self.closed else None)


def set_rates(optimizer: Any, lr: float, step: int) -> None:
    """Set each group's learning rate to its `lr_scale` of the step's `lr`, or to 0 where its gate is closed."""
    for group in optimizer.param_groups:
        if gate := group.get("gate"):
            gate.closed = step < gate.first_step
        group["lr"] = 0.0 if gate and gate.closed else lr * group.get("lr_scale", 1.0)


@torch.no_grad()
def hold_back(strategy: Strategy) -> None:
    """Have the optimizer's count of steps stay at 0 where gates are closed; called after each update."""
    gates = [gate for group in strategy.optimizer.param_groups if (gate := group.get("gate")) and gate.closed]
    held = {name for gate in gates for name in gate.names}
    for window in strategy.windows() if held else ():
        if window.key == "step" and window.name in held:
            window.view.zero_()
