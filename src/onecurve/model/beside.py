"""The small JSON files beside a model's weights, in its folder or on the hub."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from onecurve.adapters.folder import Continued, is_adapter
from onecurve.config import ModelSection
from onecurve.errors import ConfigError, NotCached
from onecurve.machine.hub import file_of
from onecurve.tasks.base import Follows


def following(task: Follows, section: ModelSection) -> Any:
    """Return a task, still one that `Follows`, with the settings that the files beside its model say.

    An adapter's files are those of its own folder, or, where it has none that say it, of its base.

    Raises:
        ConfigError: They describe a model that the task does not train, or cannot be read.
    """
    try:
        return task.following(*_reader(section))
    except NotCached as error:
        if not task.undecided:
            return task
        error.fix += f" Or set what such a file may say: {', '.join(f'task.{name}' for name in task.undecided)}."
        raise


def _reader(section: ModelSection) -> tuple[Callable[[str], Any], str]:
    path, revision = section.path, section.revision
    if is_adapter(path) and not (Path(path).expanduser() / "modules.json").is_file():
        continued = Continued.read(path)
        path, revision = continued.base, continued.revision

    def read(name: str) -> Any:
        """Return the content of a JSON file by its path within the folder; None where it is not there.

        Raises:
            ConfigError: It is no JSON, or the hub cannot be asked for it.
        """
        file = _place(path, revision, name)
        if file is None or not file.is_file():
            return None
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{str(file)!r} cannot be read: {error}.", where="model.path") from None

    return read, path


def _place(path: str, revision: str | None, name: str) -> Path | None:
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder / name
    if folder.is_absolute() or path.startswith((".", "~")) or path.count("/") > 1 or folder.exists():
        return None  # no hub name: that the folder is missing is told when its config is read
    return file_of(path, revision, name)
