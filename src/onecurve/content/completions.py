"""What a model wrote after a prompt in training, and what it was rewarded with."""

from collections.abc import Mapping
from dataclasses import dataclass, field


class RewardError(Exception):
    """A reward function failed; the message says which and why.

    Args:
        what: The message.
        place: The completion that is to blame, by its number in the call; None where none is.
    """

    def __init__(self, what: str, place: int | None = None) -> None:
        super().__init__(what)
        self.what, self.place = what, place


@dataclass(frozen=True)
class Completion:
    """One text after one prompt."""

    ids: list[int]
    """Its tokens, the end token included where it came."""
    logps: list[float]
    """Of each token, its log-probability when it was drawn, before top_k and top_p."""
    entropy: float
    """Mean over the tokens, in nats, of what they were drawn from."""
    ended: bool
    """Whether the end token came; else the text was cut off."""
    text: str
    """Without special tokens."""
    rewards: Mapping[str, float] = field(default_factory=dict)
    """Reward function -> reward."""
    reference: list[float] | None = None
    """Of each token, its log-probability by the reference; None where there is none."""
