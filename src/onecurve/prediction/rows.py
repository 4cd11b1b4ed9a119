"""The rows that a trained model is asked about: texts, lines, or a file of any format that training reads."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from onecurve.config import DataSection
from onecurve.data.rows import Broken, Located
from onecurve.data.sources import read_rows
from onecurve.prediction.trained import Trained
from onecurve.tasks.base import Row, Task


def rows_of_texts(task: Task, texts: Iterable[str]) -> Iterator[Located]:
    """Yield the row that each text stands for."""
    for number, text in enumerate(texts):
        yield Located(f"text {number}", task.read_text(text))


def rows_of_inputs(trained: Trained, inputs: Iterable[str | Mapping[str, Any]]) -> Iterator[Located | Broken]:
    """Yield a row for each text or map."""
    for number, given in enumerate(inputs):
        place = f"input {number}"
        if isinstance(given, str):
            yield Located(place, trained.task.read_text(given))
        elif isinstance(given, Mapping):
            yield Located(place, _renamed(given, trained))
        else:
            yield Broken(place, f"must be a text or a map; got {type(given).__name__}")


def rows_of_lines(trained: Trained, lines: Iterable[str]) -> Iterator[Located | Broken]:
    """Yield a row for each line that is not empty: a JSON object, or a text."""
    for number, line in enumerate(lines, 1):
        place, line = f"line {number}", line.strip()
        if line.startswith("{"):
            try:
                yield Located(place, _renamed(json.loads(line), trained))
            except ValueError as error:
                yield Broken(place, f"broken JSON: {error}")
        elif line:
            yield Located(place, trained.task.read_text(line))


def rows_of_file(trained: Trained, path: str) -> Iterator[Located | Broken]:
    """Yield the rows of a file, a folder or a hub data set; its columns are called as the training data's, or as the
    task calls them.

    Raises:
        UserError: Nothing there, or it cannot be read.
    """
    columns = {"id?": "what an answer is told by"}
    columns |= {_optional(name, trained.task): what for name, what in trained.task.columns.items()}
    renamed = {name: column for name, column in trained.columns.items() if name not in trained.task.targets}
    return read_rows("--input", path, DataSection(train=path, columns=renamed), columns)


def _optional(name: str, task: Task) -> str:
    return f"{name}?" if name in task.targets else name


def _renamed(record: Mapping[str, Any], trained: Trained) -> Row:
    """Return a record under the task's names, as they are or as the training data called them."""
    names = [name.removesuffix("?") for name in trained.task.columns]
    found = {name: record.get(trained.columns.get(name, name), record.get(name)) for name in ("id", *names)}
    return {name: value for name, value in found.items() if value is not None}
