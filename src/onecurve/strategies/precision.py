"""Mixed precision, the same in every strategy: autocast dtypes, and the loss scale of fp16."""

from dataclasses import dataclass
from typing import Any

import torch

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.bfloat16}
"""What the forward pass is autocast to; under fp8 linear layers multiply in float8 what they are given in this."""


@dataclass
class LossScale:
    """A factor that keeps small fp16 gradients from vanishing; one policy, so that strategies skip the same steps.

    Halved when a gradient overflows, down to 1, doubled after 2,000 updates that did not. Source: Micikevicius et al.,
    Mixed precision training, ICLR 2018, section 3.2, with the constants of torch.amp.GradScaler.
    """

    enabled: bool
    world_size: int = 1
    value: float = 65536.0
    updates: int = 0
    """Updates since the last change."""

    def __post_init__(self) -> None:
        if not self.enabled:
            self.value = 1.0

    @property
    def factor(self) -> float:
        """What a rank multiplies its loss by, which carries the factor `world_size` already (see `step`).

        On any number of ranks the same small gradients are then lost, and the same large ones overflow.
        """
        return self.value / self.world_size if self.enabled else 1.0

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {"value": self.value, "updates": self.updates}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        if self.enabled:
            self.value, self.updates = state["value"], state["updates"]

    def update(self, overflow: bool) -> bool:
        """Take in whether a step's gradient was not finite; return whether a lower scale may mend that."""
        if not self.enabled:
            return False
        self.updates = 0 if overflow else self.updates + 1
        lowered = overflow and self.value > 1
        if lowered:
            self.value /= 2
        elif self.updates == 2000:
            self.value, self.updates = self.value * 2, 0
        return lowered
