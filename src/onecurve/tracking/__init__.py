"""Output of a run: the terminal, metrics.jsonl and Accelerate's trackers."""

from onecurve.tracking.tracker import Tracker

__all__ = ["Tracker"]
