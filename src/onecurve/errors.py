"""The mistakes a run can end with, by kind: the user's (exit code 2) and training's own (exit code 3)."""


class UserError(Exception):
    """A mistake the user can mend: one message, exit code 2, nothing loaded or written over.

    Args:
        what: What is wrong, with the offending value in it.
        where: The place to look at: a setting, or a file and row.
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
    """A recipe, an override or a launch file that cannot be meant."""


class DataError(UserError):
    """A data file or row that cannot be trained on."""


class BadRow(ValueError):
    """A row that the task cannot use; the message says why. File and row are added by whoever read it."""


class LaunchError(UserError):
    """An environment that is not the one asked for: world, device, missing package, unwritable directory."""


class TrainingError(Exception):
    """Training itself failed; the message says what to do."""

    exit_code = 3


class NothingToDo(Exception):
    """What was asked for is there already; the message says where. Exit code 0."""
