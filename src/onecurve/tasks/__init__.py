"""The tasks: the files of this folder, or a task of the user's own."""

import pkgutil
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError, create_model

from onecurve import user_code
from onecurve.config import TaskSection, closest, explain
from onecurve.errors import ConfigError
from onecurve.tasks.base import Pools, RollsOut, Task, Transforms


def task_names() -> list[str]:
    """Every task the folder holds."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name != "base" and not m.name.startswith("_"))


def load_task(section: TaskSection, key: str = "task", beside: type[BaseModel] = TaskSection) -> Task:
    """Build the task a recipe names and check its own settings.

    Args:
        section: Its name and its settings.
        key: Where the recipe has them.
        beside: The schema of what stands beside the settings there, for suggestions.

    Raises:
        ConfigError: No such task, one that lacks a member, a setting it does not know or cannot take, or code that
            has changed.
    """
    kind, settings = find_task(section.name, f"{key}.name"), section.extras
    known_hash = settings.pop("source_hash", None) if user_code.is_external(section.name) else None
    if known_hash not in (None, source_hash := user_code.source_hash(kind)):
        raise ConfigError(
            f"is {known_hash}, but the code of {section.name} has changed: it is {source_hash} now.",
            where=f"{key}.source_hash",
            fix="Remove it to train with the current code.",
        )
    try:
        return kind(kind.Settings(**settings))
    except ValidationError as error:
        known = create_model("Known", __base__=(kind.Settings, beside))
        raise explain(error, known, prefix=f"{key}.") from None


def find_task(name: str, where: str = "task.name") -> Any:
    """Return the class of the task a recipe names: a file of this folder, or the user's own.

    Raises:
        ConfigError: There is none, or it lacks a member.
    """
    if user_code.is_external(name):
        return _complete(user_code.load(name, where), name, where)
    names = task_names()
    if name not in names:
        raise ConfigError(
            f"no task '{name}'; the tasks are {', '.join(names)}. For your own, write {user_code.FORM}.",
            where=where,
            fix=closest(name, names),
        )
    return import_module(f"{__name__}.{name}").Task


def locate_task(section: TaskSection, folder: Path) -> TaskSection:
    """Return a recipe's task section with its user's files as they are found from the working directory.

    Args:
        section: As the recipe has it; its heads may name tasks too, and its rewards name functions.
        folder: The recipe's.
    """
    found = {**section.extras, "name": user_code.locate(section.name, folder)}
    if isinstance(rewards := found.get("rewards"), str | list):
        names = [rewards] if isinstance(rewards, str) else rewards
        found["rewards"] = [user_code.locate(one, folder) if isinstance(one, str) else one for one in names]
    if isinstance(heads := found.get("heads"), dict):
        found["heads"] = {
            name: {**head, "name": user_code.locate(head["name"], folder)}
            if isinstance(head, dict) and isinstance(head.get("name"), str)
            else head
            for name, head in heads.items()
        }
    return TaskSection(**found)


def resolve_task(task: Task) -> dict[str, Any]:
    """Return a task's settings as plain data, with the hash of its code where that is the user's own."""
    source_hash = user_code.source_hash(type(task))
    return task.settings.model_dump(mode="json") | ({"source_hash": source_hash} if source_hash else {})


def members() -> set[str]:
    """The names that a task's class must define itself: what its base class leaves abstract, and its columns."""
    return {*Task.__abstractmethods__, "columns"}


def _complete(kind: Any, name: str, where: str) -> Any:
    if not isinstance(kind, type):
        raise ConfigError(f"{name} is not a class: {kind!r}.", where=where)
    if not issubclass(kind, Task):
        raise ConfigError(f"{name} does not inherit from onecurve.tasks.base.Task.", where=where)
    if missing := sorted(member for member in members() if not _has(kind, member)):
        raise ConfigError(f"{name} lacks {', '.join(missing)}.", where=where, fix="See Task in onecurve.tasks.base.")
    settings: Any = getattr(kind, "Settings", None)
    if not (isinstance(settings, type) and issubclass(settings, BaseModel)):
        raise ConfigError(
            f"{name}.Settings must be a class that inherits from onecurve.tasks.base.Settings; got {settings!r}.",
            where=where,
        )
    return kind


def _has(kind: type, member: str) -> bool:
    return hasattr(kind, member) and member not in getattr(kind, "__abstractmethods__", ())


def unread_keys(task: Task, adapted: bool = False) -> Mapping[str, str]:
    """Return the keys of the recipe that a task does not read, and why; `adapted`: under an adapter."""
    own: dict[str, str] = {}
    if not (isinstance(task, Transforms) or task.augmentation):
        own["data.workers"] = "this task's examples are read as they are kept"
    if isinstance(task, RollsOut):
        own["eval.predictions"] = (
            "an evaluation has its completions written anew; onecurve predict writes one for each row"
        )
    if isinstance(task, Pools):
        own["eval.predictions"] = "an example has no loss of its own: it depends on all others of its split"
    return {**own, **task.without_effect(), **(task.needs_whole_model if adapted else {})}
