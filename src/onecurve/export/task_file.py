"""task.json next to the weights: task and settings, so that predictions use the same encoding as training."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from onecurve.data.checked import survey_of
from onecurve.errors import ConfigError
from onecurve.tasks.base import Survey, Task

NAME = "task.json"
_VERSION = 1


@dataclass(frozen=True)
class TaskFile:
    """What is needed to use a trained model."""

    name: str
    """Of the task, as a recipe names it."""
    settings: dict[str, Any]
    """The task's own, resolved."""
    survey: Survey
    columns: dict[str, str]
    """What the task needs -> what the training data called it."""
    max_length: int
    """The length that an example might have in training."""

    @classmethod
    def of(cls, name: str, task: Task, survey: Survey, columns: dict[str, str], max_length: int) -> "TaskFile":
        """Describe what a run trains."""
        return cls(name, task.settings.model_dump(mode="json"), survey, columns, max_length)

    def write(self, folder: Path) -> None:
        """Write it into a model folder."""
        text = json.dumps({"version": _VERSION, **asdict(self)}, indent=1, ensure_ascii=False)
        (folder / NAME).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "TaskFile | None":
        """Read that of a model folder; None where it has none.

        Raises:
            ConfigError: It cannot be read, or another version wrote it.
        """
        path = folder / NAME
        if not path.is_file():
            return None
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values.pop("version") != _VERSION:
                raise ConfigError("another version of onecurve wrote it.", where=str(path))
            return cls(**{**values, "survey": survey_of(values["survey"])})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"cannot be read: {error}.", where=str(path)) from None


def is_model_folder(folder: Path) -> bool:
    """Whether a model or an adapter lies there; a long text is no folder's name either."""
    try:
        return any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))
    except OSError:
        return False
