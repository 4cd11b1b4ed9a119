"""What encoded examples depend on, as one hash: equal keys mean equal examples, wherever the files lie."""

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

from onecurve.config import DataSection
from onecurve.tasks.base import Survey, Task

_LAYOUT = 1
"""Raised whenever what is stored, or how, changes."""
_SETTINGS = {"columns", "encoding", "format", "header", "on_bad_row", "on_long", "sample_by"}
_UNTOLD = {"is_local", "local_files_only", "name_or_path", "padding", "truncation"}
"""What a saved tokenizer says of where it came from and of its latest call; neither changes what we encode."""


def content_key(data: str, processor: str, task: Task, survey: Survey, settings: DataSection, max_length: int) -> str:
    """Return the key of one split's examples.

    Args:
        data: The split's digest.
        processor: The digest of what reads the rows.
        task: Its module, settings and encoder version count.
        survey: What the training split told; label ids depend on it.
        settings: How files are read and which rows and examples are left out.
        max_length: Tokens an example may have, resolved.
    """
    parts = {
        "layout": _LAYOUT,
        "data": data,
        "tokenizer": processor,
        "task": f"{type(task).__module__}.{type(task).__qualname__}",
        "encoder_version": task.encoder_version,
        "task_settings": task.settings.model_dump(mode="json"),
        "survey": _names(survey),
        "settings": settings.model_dump(include=_SETTINGS),
        "max_length": max_length,
    }
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()


def _names(survey: Survey) -> dict[str, Any]:
    """Return what of a survey the ids depend on: the names; how many rows have each may change."""
    heads = {name: _names(head) for name, head in survey.heads.items()}
    return {"labels": survey.labels} | ({"heads": heads} if heads else {})


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
