"""The tasks: the folder is the registry."""

import pkgutil
from importlib import import_module

from pydantic import ValidationError

from onecurve.config import TaskSection, explain, nearest
from onecurve.errors import ConfigError
from onecurve.tasks.base import Task


def task_names() -> list[str]:
    """Every task the folder holds."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name != "base" and not m.name.startswith("_"))


def load_task(section: TaskSection) -> Task:
    """Build the task a recipe names and check its own settings.

    Raises:
        ConfigError: No such task, or a setting it does not know or cannot take.
    """
    names = task_names()
    if section.name not in names:
        raise ConfigError(
            f"no task '{section.name}'; the tasks are {', '.join(names)}.",
            where="task.name",
            fix=nearest(section.name, names),
        )
    kind = import_module(f"{__name__}.{section.name}").Task
    try:
        return kind(kind.Settings(**section.extras))
    except ValidationError as error:
        raise explain(error, kind.Settings, prefix="task.") from None
