"""The cache key: a hash of everything that encoded examples depend on, except where the files are."""

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from onecurve.config import DataSection
from onecurve.tasks.base import BadRow, Example, Row, Survey, Task
from onecurve.user_code import source_hash

_LAYOUT = 2
"""Raised whenever what is stored, or how, changes."""
SETTINGS = {"columns", "delimiter", "encoding", "format", "header", "on_bad_row", "on_long", "quoting", "sample_by"}
"""Keys of the data section that change how rows are read or encoded."""
_UNTOLD = {"is_local", "local_files_only", "name_or_path", "padding", "truncation"}
"""What a saved tokenizer says of where it came from and of its latest call; neither changes what we encode."""
_SAMPLE_TEXT, _SAMPLE_SIZE = 10_000, 100_000
"""Characters of one text, and of all rows, that are encoded at each start: a tenth of a second's work at most."""


def content_key(parts: Mapping[str, Any]) -> str:
    """Return the key of one split's examples, from what `content_parts` returned."""
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()


def content_parts(
    data: str, sample: str, processor: str, task: Task, survey: Survey, settings: DataSection, max_length: int
) -> dict[str, Any]:
    """Return what one split's examples depend on, as values for JSON.

    Args:
        data: The split's digest.
        sample: What some of its rows are encoded to: `sample_digest`.
        processor: The digest of what reads the rows.
        task: Its module, settings and encoder version count, and its code where that is the user's own.
        survey: What the training split told; label ids depend on it.
        settings: How files are read and which rows and examples are left out.
        max_length: Tokens an example may have, resolved.
    """
    return {
        "layout": _LAYOUT,
        "data": data,
        "sample": sample,
        "tokenizer": processor,
        **task_identity(task),
        "survey": names_of(survey),
        "settings": settings.model_dump(include=SETTINGS),
        "max_length": max_length,
    }


def task_identity(task: Task) -> dict[str, Any]:
    """Return what tells a task from others that read or encode rows otherwise."""
    parts: dict[str, Any] = {
        "task": f"{type(task).__module__}.{type(task).__qualname__}",
        "encoder_version": task.encoder_version,
        "task_settings": task.settings.model_dump(mode="json", exclude={*task.scoring_settings, *task.loss_settings}),
    }
    if code := source_hash(type(task)):  # the user's own, whose author need not know of encoder versions
        parts["task_code"] = code
    return parts


def sample_digest(rows: Sequence[Row], encode: Callable[[Row], list[Example]]) -> str:
    """Return a hash of what some rows are encoded to.

    So the key tells of what no file and no setting says: the code that renders and tokenises, that of transformers,
    tokenizers and Jinja among it. Their versions would not do: most of them encode alike, and a run goes on under
    another.

    Args:
        rows: A few, of which the shortest are taken, one at least. Long text is cut.
        encode: Turns a row into examples.
    """
    digest, size = hashlib.blake2b(digest_size=16), 0
    for length, row in sorted(((len(repr(row)), row) for row in map(cut_row, rows)), key=itemgetter(0)):
        if size and size + length > _SAMPLE_SIZE:
            break
        size += length
        digest.update(json.dumps(_unplaced(_encoded(row, encode)), sort_keys=True, default=repr).encode() + b"\n")
    return digest.hexdigest()


def cut_row(row: Row) -> Row:
    """Return a row whose long texts are cut to what `sample_digest` reads of them."""
    return {name: value[:_SAMPLE_TEXT] if isinstance(value, str) else value for name, value in row.items()}


def _encoded(row: Row, encode: Callable[[Row], list[Example]]) -> list[Example] | str:
    try:
        return encode(row)
    except BadRow as error:  # it is refused, or skipped and counted, when the split is encoded
        return str(error)


def _unplaced(value: Any) -> Any:
    """Return what a row is encoded to without the places of the files that it refers to."""
    if isinstance(value, dict):
        return {key: _unplaced(part) for key, part in value.items() if not (key == "path" and "digest" in value)}
    return list(map(_unplaced, value)) if isinstance(value, list) else value


def names_of(survey: Survey) -> dict[str, Any]:
    """Return what of a survey the ids depend on: the names; how many rows have each may change."""
    heads = {name: names_of(head) for name, head in survey.heads.items()}
    return {"labels": survey.labels} | ({"heads": heads} if heads else {})


def located(key: str, location: str) -> str:
    """Return the key of examples that refer to files at a place: elsewhere the same examples refer to others."""
    return hashlib.blake2b(f"{key} {location}".encode(), digest_size=16).hexdigest() if location else key


def with_texts(key: str, columns: Sequence[str]) -> str:
    """Return the key of examples that keep the texts of these columns beside what they are encoded to."""
    return hashlib.blake2b(f"{key} texts {' '.join(columns)}".encode(), digest_size=16).hexdigest() if columns else key


def processor_digest(processor: Any) -> str:
    """Return a hash of everything that a tokenizer or another processor would save, chat templates included."""
    digest = hashlib.blake2b(digest_size=16)
    with tempfile.TemporaryDirectory() as folder:
        processor.save_pretrained(folder)
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                content = _told(path)
                digest.update(f"{path.relative_to(folder).as_posix()} {len(content)} ".encode() + content)
    return digest.hexdigest()


def _told(path: Path) -> bytes:
    content = path.read_bytes()
    if path.suffix != ".json":
        return content
    value = json.loads(content)
    if isinstance(value, dict):
        value = {key: part for key, part in value.items() if key not in _UNTOLD}
    return json.dumps(value, sort_keys=True).encode()
