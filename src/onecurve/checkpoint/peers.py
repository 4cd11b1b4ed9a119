"""The other ranks, as far as checkpoints need them: exchange small values, wait for each other."""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from onecurve.errors import LaunchError, UserError

T = TypeVar("T")


class Peers(Protocol):
    """Every call is made by all ranks in the same order; the writer makes its own from a background thread.

    A call whose peer is lost raises `RankLost`.
    """

    @property
    def rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    def gather(self, value: Any) -> list[Any]:
        """Give every rank all ranks' values, in rank order."""

    def broadcast(self, value: Any) -> Any:
        """Give every rank the value of rank 0."""

    def barrier(self) -> None:
        """Return when every rank has called."""


class Alone:
    """Implements `Peers` for one process."""

    rank = 0
    world_size = 1

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def broadcast(self, value: Any) -> Any:
        return value

    def barrier(self) -> None:
        pass


def on_first_rank(peers: Peers, work: Callable[[], T]) -> T:
    """Do `work` on rank 0 alone and give every rank what came of it, an error included.

    Raises:
        LaunchError: On every rank, where rank 0 could not.
    """
    value: Any = None
    error = ""
    if peers.rank == 0:
        try:
            value = work()
        except (OSError, UserError) as failure:
            error = str(failure)
    value, error = peers.broadcast((value, error))
    if error:
        raise LaunchError(error)
    return value
