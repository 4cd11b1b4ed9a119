"""A row, the place it stands at, and which of its columns a task reads under which name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onecurve.config import nearest
from onecurve.errors import ConfigError
from onecurve.tasks.base import Row


@dataclass(frozen=True)
class Located:
    """A row and its place: the line it begins on (JSONL, CSV, TSV, text) or its row number; both from 1."""

    place: str
    row: Row


@dataclass(frozen=True)
class Broken:
    """A place where no usable row stands, and why."""

    place: str
    reason: str


@dataclass(frozen=True)
class Columns:
    """What a task reads of a file's columns."""

    names: Mapping[str, str]
    """Task column -> file column."""
    required: frozenset[str]
    """Task columns that every row must have."""
    needed: frozenset[str]
    """File columns that must exist: the required ones, and those the recipe maps itself."""

    @classmethod
    def resolve(cls, mapping: Mapping[str, str], task_columns: Mapping[str, str]) -> "Columns":
        """Combine `data.columns` with the task's columns, where a name ending in `?` is optional.

        Raises:
            ConfigError: `data.columns` names a column that the task does not read.
        """
        known = [column.removesuffix("?") for column in task_columns]
        for column in mapping:
            if column not in known:
                raise ConfigError(
                    f"this task reads no column '{column}'.", where="data.columns", fix=nearest(column, known)
                )
        names = {column: mapping.get(column, column) for column in known}
        required = frozenset(column for column in known if column in task_columns)
        needed = frozenset(names[column] for column in required | set(mapping))
        return cls(names, required, needed)

    def select(self, there: Sequence[str]) -> list[str]:
        """Return which of a file's columns to read: all of them where one is missing, for the message to list."""
        wanted = set(self.names.values()) & set(there)
        return [name for name in there if name in wanted] if wanted and self.needed <= wanted else list(there)

    def is_optional(self, name: str) -> bool:
        """Whether rows may be without this file column."""
        return name not in {self.names[column] for column in self.required}

    def pick(self, record: Located) -> Located | Broken:
        """Return the row under the task's names, without what the task does not read."""
        row: Row = {}
        for column, name in self.names.items():
            value = record.row.get(name)
            if value is not None:
                row[column] = value
            elif column in self.required:
                missing = name not in record.row
                return Broken(record.place, self.missing(record.row, name) if missing else f"column '{name}' is null.")
        if not any(name in record.row for name in self.names.values()):
            return Broken(record.place, self.missing(record.row, *self.names.values()))
        for column, value in row.items():
            if not _is_unicode(value):
                return Broken(record.place, f"column '{self.names[column]}' holds half of a surrogate pair.")
        return Located(record.place, row)

    def missing(self, there: Mapping[str, Any], *names: str) -> str:
        """Say that these file columns are not there, what is, and how to map it."""
        wanted = " or ".join(f"'{name}'" for name in names)
        settings = " or ".join(f"data.columns.{column}" for column, name in self.names.items() if name in names)
        listed = ", ".join(map(str, there)) or "none"
        return f"there is no column {wanted}; the columns are: {listed}. {settings} says which one to read."


def _is_unicode(value: Any) -> bool:
    """Whether every string can be written as UTF-8; tokenizers raise on a lone surrogate, which JSON can spell."""
    if isinstance(value, str):
        try:
            return value.isascii() or bool(value.encode())
        except UnicodeEncodeError:
            return False
    if isinstance(value, list):
        return all(map(_is_unicode, value))
    if isinstance(value, dict):
        return all(map(_is_unicode, value.values()))
    return True
