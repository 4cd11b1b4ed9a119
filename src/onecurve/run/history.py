"""Recent losses (for spike detection) and the steps whose update was skipped."""

from collections import deque
from math import fsum, isfinite, sqrt
from typing import Any

from onecurve.config import TrainSection


class History:
    """The same on every rank, and in every checkpoint: a run that goes on decides as one that never stopped."""

    def __init__(self, section: TrainSection) -> None:
        self.section = section
        self.losses: deque[float] = deque(maxlen=section.spike_window)
        """Of the latest updates."""
        self.left_out: dict[int, str] = {}
        """Step -> why it has no update."""

    def fault(self, loss: float) -> str:
        """Return what is wrong with a step's loss, before its update: `loss`, `spike` or nothing.

        It is a spike where it lies more than spike_sigma standard deviations above the mean of the last spike_window.
        """
        if not isfinite(loss):
            return "loss"
        if self.section.on_spike == "ignore" or len(self.losses) < self.section.spike_window:
            return ""
        mean = fsum(self.losses) / len(self.losses)
        deviation = sqrt(fsum((earlier - mean) ** 2 for earlier in self.losses) / len(self.losses))
        return "spike" if loss > mean + self.section.spike_sigma * deviation else ""

    def updated(self, loss: float) -> None:
        """Take in the loss of a step whose update was made."""
        self.losses.append(loss)

    def in_a_row(self, step: int) -> int:
        """Count the steps left out that end with this one."""
        first = step
        while first in self.left_out:
            first -= 1
        return step - first

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {"losses": list(self.losses), "left_out": [[step, why] for step, why in sorted(self.left_out.items())]}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.losses.clear()
        self.losses.extend(state["losses"])
        self.left_out = {step: why for step, why in state["left_out"]}
