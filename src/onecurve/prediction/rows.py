"""The rows that a trained model is asked about: texts, lines, or a file of any format that training reads."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from onecurve.config import DataSection
from onecurve.data.media import MediaColumns
from onecurve.data.rows import Broken, Columns, Located
from onecurve.data.sources import open_source
from onecurve.model.trained import Trained
from onecurve.tasks.base import Recognises, Row, Task

_ID = "id?"


def rows_of_texts(task: Task, texts: Iterable[str]) -> Iterator[Located | Broken]:
    """Yield the row that each text stands for: of a task that reads files, the path of one."""
    for number, text in enumerate(texts):
        yield _read(Located(f"text {number}", task.read_text(text)), task)


def rows_of_inputs(trained: Trained, inputs: Iterable[str | Mapping[str, Any]]) -> Iterator[Located | Broken]:
    """Yield a row for each text or map."""
    for number, given in enumerate(inputs):
        place = f"input {number}"
        if isinstance(given, str):
            yield _read(Located(place, trained.task.read_text(given)), trained.task)
        elif isinstance(given, Mapping):
            yield _read(Located(place, _renamed(given, trained)), trained.task)
        else:
            yield Broken(place, f"must be a text or a map; got {type(given).__name__}")


def rows_of_lines(trained: Trained, lines: Iterable[str], keep: Sequence[str] = ()) -> Iterator[Located | Broken]:
    """Yield a row for each line that is not empty: a JSON object, or a text.

    Args:
        trained: The model.
        lines: The lines.
        keep: Keys of the objects that are passed on with the row; None where an object lacks one.
    """
    for number, line in enumerate(lines, 1):
        place, line = f"line {number}", line.strip()
        if line.startswith("{"):
            try:
                record = json.loads(line)
                kept = {name: record.get(name) for name in keep}
                yield _read(Located(place, _renamed(record, trained), kept=kept), trained.task)
            except ValueError as error:
                yield Broken(place, f"broken JSON: {error}")
        elif line:
            yield _read(Located(place, trained.task.read_text(line), kept=dict.fromkeys(keep)), trained.task)


def rows_of_file(trained: Trained, path: str, keep: Sequence[str] = ()) -> Iterator[Located | Broken]:
    """Yield the rows of a file, a folder or a hub data set; its columns are called as the training data's.

    Args:
        trained: The model.
        path: What to read.
        keep: Columns of the file that are passed on with the row, by the file's own names.

    Raises:
        UserError: Nothing there, it cannot be read, or no row has a column to keep.
    """
    settings = DataSection(train=path, columns=_mapping(trained))
    source = open_source("--input", path, settings, *_known(trained.task), trained.task.media)
    return replace(source, columns=replace(source.columns, kept=tuple(keep))).rows()


def _read(found: Located, task: Task) -> Located | Broken:
    """Return a row whose files are found; paths are relative to the working directory."""
    if not task.media:
        return found
    columns = MediaColumns(task.media)
    return columns.read(replace(found, row=columns.placed(found.row, Path())))


def _mapping(trained: Trained) -> dict[str, str]:
    known = {column.removesuffix("?") for column in trained.task.columns} - trained.task.targets
    return {name: column for name, column in trained.columns.items() if name in known}


def _known(task: Task) -> tuple[dict[str, str], list[dict[str, str]]]:
    """Return the columns of a row whose labels may be absent, and its other forms: the fuller ones first.

    Without the labels two forms may differ in an optional column alone.
    """
    columns = {_ID: "what an answer is told by"}
    columns |= {_optional(name, task): what for name, what in task.columns.items()}
    forms = task.shapes.values() if isinstance(task, Recognises) else ()
    bare = [{name: column for name, column in form.items() if name not in task.targets} for form in forms]
    full = [{name.removesuffix("?"): column for name, column in form.items()} for form in bare]
    return columns, [{_ID: "id", **form} for form in (*full, *bare)]


def _optional(name: str, task: Task) -> str:
    return f"{name}?" if name in task.targets else name


def _renamed(record: Mapping[str, Any], trained: Trained) -> Row:
    """Return a record under the task's names, as they are or as the training data called them."""
    names = Columns.resolve(_mapping(trained), *_known(trained.task)).names_in(record)
    found = {name: record.get(column, record.get(name)) for name, column in names.items()}
    return {name: value for name, value in found.items() if value is not None}
