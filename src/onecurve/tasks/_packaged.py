"""The interface of tasks whose model folders hold files by which other tools know how the model is used."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from onecurve.tasks.base import Task


@runtime_checkable
class Packaged(Protocol):
    """A task whose model folders hold further files, by which other tools know how the model is to be used."""

    def beside(self, config: Any, max_length: int) -> Mapping[str, Any]:
        """Return what to write as JSON: path within the folder -> content.

        Args:
            config: The model's.
            max_length: The length that a text might have in training.
        """
        ...


@runtime_checkable
class Follows(Protocol):
    """A task some of whose settings are by default what such files of the model that it starts from say."""

    @property
    def followed(self) -> Mapping[str, str]:
        """Setting that is not in the recipe -> the file that said it, once `following` was asked."""
        ...

    @property
    def undecided(self) -> list[str]:
        """These settings, but for those that the recipe sets: where there are none, the files need not be there."""
        ...

    @property
    def notes(self) -> list[str]:
        """What the summary says of that, once `following` was asked."""
        ...

    @property
    def longest(self) -> int | None:
        """The length that the files give to a text."""
        ...

    def following(self, read: Callable[[str], Any], path: str) -> "Task":
        """Return the task with the settings that the files say.

        Args:
            read: Returns the content of a JSON file by its path within the folder; None where it is not there.
            path: The model's, for messages.

        Raises:
            ConfigError: They describe a model that this task does not train.
        """
        ...
