"""How far a run has come in its data, so that it continues there when its batch size or its data change."""

from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from typing import Any

_PLACES = ("data", "data.weights", "data.shuffle_window")
"""What decides which example stands at a place of a pass, besides the seed."""


@dataclass(frozen=True)
class Position:
    """What a run has seen after a step. A plan that starts here is the same as one that came here by itself."""

    step: int = 0
    """Steps done."""
    samples: int = 0
    """Examples seen in these steps."""
    epoch: int = 0
    """The current pass over the data, 0-based."""
    offset: int = 0
    """Examples of that pass already seen."""
    seed: int | None = None
    """Seed of that pass's order; None: the recipe's."""

    def after_changes(self, changed: Container[str]) -> "Position":
        """Return where a run continues whose recipe has changed since.

        With another seed the current pass is finished in its order: no example is repeated or left out. Other data, or
        other windows of shards, begin with a pass of their own: places in the old pass mean nothing there.

        Args:
            changed: The settings that differ, `data` where the examples do, `data.weights` where a mixture's shares do.
        """
        if self.offset and any(key in changed for key in _PLACES):
            return replace(self, epoch=self.epoch + 1, offset=0, seed=None)
        return self if self.offset else replace(self, seed=None)


def stored_position(state: Mapping[str, Any]) -> Position:
    """Read the position from a checkpoint's state.

    Checkpoints of earlier versions do not have it; in them the batch size never changed along the run.
    """
    if "position" in state:
        return Position(**state["position"])
    size, num_examples, seed = state["curve"]["train.global_batch_size"], state["num_examples"], state["curve"]["seed"]
    epoch, within = divmod(state["step"], -(-num_examples // size))
    return Position(state["step"], epoch * num_examples + within * size, epoch, within * size, seed)
