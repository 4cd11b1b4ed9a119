"""The best weights so far, kept in host memory: each rank keeps the windows it holds."""

from collections.abc import Iterator

from torch import Tensor

from onecurve.strategies.base import Strategy, Window


class Snapshot:
    """Empty until `take` is called."""

    def __init__(self, strategy: Strategy) -> None:
        self.strategy = strategy
        self.kept: dict[str, tuple[int, Tensor]] = {}
        """Parameter's name -> where this rank's window starts, and its values."""

    def take(self) -> None:
        """Remember the trained parameters, and the buffers that training moves, as they are."""
        self.kept = {w.name: (w.offset, w.view.detach().to("cpu", copy=True)) for w in self._parameters()}

    def restore(self) -> None:
        """Put back what was taken."""
        for window in self._parameters():
            window.view.copy_(self.kept[window.name][1])
        self.strategy.refresh()

    def windows(self, once: bool) -> Iterator[Window]:
        """Yield what was taken as windows, so that it can be saved and loaded like the rest."""
        for window in self._parameters(once) if self.kept else ():
            start, values = self.kept[window.name]
            run = values.narrow(0, window.offset - start, len(window.view))
            yield Window(window.name, "best", run, window.offset, window.numel, window.shape)

    def _parameters(self, once: bool = False) -> Iterator[Window]:
        return (window for window in self.strategy.windows(once) if window.key in ("param", "buffer"))
