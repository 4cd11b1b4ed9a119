"""The best weights so far, kept in host memory: each rank keeps the windows it holds."""

from torch import Tensor

from onecurve.strategies.base import Strategy


class Snapshot:
    """Holds nothing until `take` is called."""

    def __init__(self, strategy: Strategy) -> None:
        self.strategy = strategy
        self.values: list[Tensor] = []

    def take(self) -> None:
        """Remember the trained parameters as they are."""
        self.values = [w.view.detach().to("cpu", copy=True) for w in self.strategy.windows() if w.key == "param"]

    def restore(self) -> None:
        """Put back what was taken."""
        windows = [w for w in self.strategy.windows() if w.key == "param"]
        assert len(windows) == len(self.values), "nothing was taken"
        for window, value in zip(windows, self.values, strict=True):
            window.view.copy_(value)
        self.strategy.refresh()
