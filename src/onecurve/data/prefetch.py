"""Prefetching: prepares the next item in a thread while the current one is in use."""

from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Name = TypeVar("Name", bound=Hashable)
Made = TypeVar("Made")


class Ahead(Generic[Name, Made]):
    """Makes things in a thread of its own, one more than is asked for.

    Args:
        make: Makes the thing of a name; called in that thread only.
        begin: Called once in that thread, before anything else.
    """

    def __init__(self, make: Callable[[Name], Made], begin: Callable[[], None]) -> None:
        self._make = make
        self._thread = ThreadPoolExecutor(1, "data", begin)
        self._name: Name | None = None
        self._future: Future[Made]

    def get(self, name: Name, following: Name | None) -> Made:
        """Return the thing of a name, and begin with that of the following one.

        A guess that was wrong costs the time that it took. What `make` raises is raised here, by the call for its name.
        """
        future = self._future if name == self._name else self._thread.submit(self._make, name)
        self._name = None
        made = future.result()
        if following is not None:
            self._name, self._future = following, self._thread.submit(self._make, following)
        return made
