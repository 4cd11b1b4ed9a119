"""What this rank is doing at the moment: the loop says it as it goes, and nothing is written."""

from collections.abc import Callable
from typing import NamedTuple


class Beat(NamedTuple):
    """How far a rank is."""

    beats: int = 0
    """So far: ranks do the same work, so the one with fewer is behind."""
    phase: str = "beginning"
    step: int = 0


_last = Beat()
_listener: Callable[[str], None] | None = None


def beat(phase: str, step: int | None = None) -> None:
    """Say that `phase` begins now, of `step` where that is another one than before."""
    global _last
    beats, _, before = _last
    _last = Beat(beats + 1, phase, before if step is None else step)
    if _listener is not None:
        _listener(phase)


def listen(listener: Callable[[str], None] | None) -> None:
    """Have `listener` told of each phase as it begins, on the loop's own thread; None: nobody."""
    global _listener
    _listener = listener


def last_beat() -> Beat:
    """Return the newest one; any thread may ask."""
    return _last
