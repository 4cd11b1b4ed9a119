"""The errors a run can end with: the user's mistakes (exit code 2) and failed training (exit code 3)."""


class UserError(Exception):
    """A mistake the user can fix: one message, exit code 2, nothing loaded or overwritten.

    Args:
        what: What is wrong, with the offending value in it.
        where: Where the mistake is: a setting, or a file and row.
        fix: What to do about it.
    """

    exit_code = 2

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__(what)

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        return f"{place}{self.what}" + (f" {self.fix}" if self.fix else "")


class ConfigError(UserError):
    """An invalid recipe, override or launch file."""


class NotCached(ConfigError):
    """Whether a hub's model has a file is not known here, and the hub cannot be reached."""


class BetweenUpdates(ConfigError):
    """A mistake that every rank meets at the same point between two updates, such as a reward function that fails.

    What was trained until then is whole: it is saved before the run ends.
    """


class DataError(UserError):
    """An invalid data file or row."""


class BadRow(ValueError):
    """A row that the task cannot use; the message says why. The code that read the row adds file and row number."""


class LaunchError(UserError):
    """An environment that does not match the request: world size, device, missing package, unwritable directory."""


class TrainingError(Exception):
    """Training itself failed; the message says what to do."""

    exit_code = 3


class NothingToDo(Exception):
    """The requested result already exists; the message says where. Exit code 0."""
