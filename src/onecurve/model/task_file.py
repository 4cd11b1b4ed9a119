"""task.json next to the weights, so that predictions use the same encoding as training, and what other tools read."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from onecurve.data.checked import survey_of
from onecurve.errors import ConfigError
from onecurve.tasks.base import Borrows, Packaged, Survey, Task

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
    task: Task | None = field(default=None, repr=False, compare=False)
    """Not written: what it asks for is written beside this file."""

    @classmethod
    def of(cls, name: str, task: Task, survey: Survey, columns: dict[str, str], max_length: int) -> "TaskFile":
        """Describe what a run trains."""
        name, settings = task.saved_as() if isinstance(task, Borrows) else (name, task.settings.model_dump(mode="json"))
        return cls(name, settings, survey, columns, max_length, task)

    def write(self, folder: Path, config: Any = None) -> None:
        """Write it into a model folder, and where the task is `Packaged` the files by which other tools know it.

        Args:
            folder: Where the weights lie.
            config: The model's; None where the task is not known.
        """
        values = {key: value for key, value in vars(self).items() if key not in ("task", "survey")}
        files = {NAME: {"version": _VERSION, **values, "survey": asdict(self.survey)}}
        files |= self.task.beside(config, self.max_length) if isinstance(self.task, Packaged) else {}
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

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
