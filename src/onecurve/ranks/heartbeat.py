"""The current step and phase of this rank, set by the loop; in memory only."""

from collections.abc import Callable
from typing import NamedTuple


class Beat(NamedTuple):
    """How far a rank is."""

    beats: int = 0
    """Number of phases so far: ranks do the same work, so the one with fewer is behind."""
    phase: str = "beginning"
    step: int = 0


_last = Beat()
_listener: Callable[[str], None] | None = None


def beat(phase: str, step: int | None = None) -> None:
    """Record that `phase` begins now, and `step` if it has changed."""
    global _last
    beats, _, before = _last
    _last = Beat(beats + 1, phase, before if step is None else step)
    if _listener is not None:
        _listener(phase)


def listen(listener: Callable[[str], None] | None) -> None:
    """Call `listener` with each phase as it begins, on the loop's thread; None: no listener."""
    global _listener
    _listener = listener


def last_beat() -> Beat:
    """Return the newest one; may be called from any thread."""
    return _last
