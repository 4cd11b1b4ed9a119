"""Rows, their location in the file, and the mapping of file columns to task columns."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from onecurve.config import nearest
from onecurve.errors import ConfigError
from onecurve.tasks.base import Row


@dataclass(frozen=True)
class Located:
    """A row and its place: the line it begins on (JSONL, CSV, TSV, text) or its row number; both from 1."""

    place: str
    row: Row
    number: int = 0
    """Its place among all rows of its data, broken ones included, from 0."""
    kept: Mapping[str, Any] = field(default_factory=dict)
    """File column -> value, of the columns that are passed on beside what the task reads."""


@dataclass(frozen=True)
class Broken:
    """A place where no usable row stands, and why."""

    place: str
    reason: str


class Shape(NamedTuple):
    """A form that rows come in besides the task's own."""

    names: Mapping[str, str]
    """Task column -> file column; empty where the task's own is not read beside them."""
    needed: frozenset[str]
    """File columns by which such a row is known."""


@dataclass(frozen=True)
class Columns:
    """What a task reads of a file's columns."""

    names: Mapping[str, str]
    """Task column -> file column."""
    required: frozenset[str]
    """Task columns that every row must have."""
    needed: frozenset[str]
    """File columns that must exist: the required ones, and those the recipe maps itself."""
    shapes: tuple[Shape, ...] = ()
    """Other forms of row that are known, where the recipe maps no column itself."""
    media: Mapping[str, str] = field(default_factory=dict)
    """Task column -> image or audio, where its values are files."""
    setting: str = "data.columns"
    """The setting that maps columns, for messages."""
    kept: tuple[str, ...] = ()
    """File columns that must exist and are passed on as they are, whether the task reads them or not."""

    @classmethod
    def resolve(
        cls,
        mapping: Mapping[str, str],
        task_columns: Mapping[str, str],
        shapes: Iterable[Mapping[str, str]] = (),
        setting: str = "data.columns",
    ) -> "Columns":
        """Combine `data.columns` with the task's columns, where a name ending in `?` is optional.

        An optional column that the recipe maps to an empty name is not read, nor is one that it does not map and whose
        name it gives to another.

        Args:
            mapping: `data.columns`.
            task_columns: Those of the task.
            shapes: Further forms of row: task column, optional ones with `?`, -> file column.
            setting: Names the mapping in messages.

        Raises:
            ConfigError: `data.columns` names a column that the task does not read, or none for one that it needs.
        """
        known = [column.removesuffix("?") for column in task_columns]
        for column in mapping:
            if column not in known:
                raise ConfigError(f"this task reads no column '{column}'.", where=setting, fix=nearest(column, known))
        required = frozenset(column for column in known if column in task_columns)
        if none := [column for column in required if mapping.get(column) == ""]:
            raise ConfigError("is empty, but this column is required.", where=f"{setting}.{none[0]}")
        taken = set(mapping.values()) | {""}
        names = {
            column: mapping.get(column, column)
            for column in known
            if column in required or (mapping[column] != "" if column in mapping else column not in taken)
        }
        needed = frozenset(names[column] for column in required | (set(mapping) & set(names)))
        return cls(names, required, needed, () if mapping else tuple(map(_shape, shapes)), setting=setting)

    @cached_property
    def wanted(self) -> frozenset[str]:
        """The file columns that any row may be read from."""
        return frozenset([*self.names.values(), *self.kept]).union(*(shape.names.values() for shape in self.shapes))

    def names_in(self, row: Mapping[str, Any]) -> Mapping[str, str]:
        """Return task column -> file column for a row: of a shape that it has, with nothing of the task's own form."""
        for shape in self.shapes:
            if shape.needed <= row.keys():
                own = {name for column, name in self.names.items() if shape.names.get(column) != ""}
                others = own.difference(shape.names.values())
                if all(row.get(name) in (None, "") for name in others):
                    return shape.names
        return self.names

    def select(self, there: Sequence[str]) -> list[str]:
        """Return which of a file's columns to read: all of them where one is missing, for the message to list."""
        wanted = self.wanted & set(there)
        return [name for name in there if name in wanted] if wanted and self.needed <= wanted else list(there)

    def is_optional(self, name: str) -> bool:
        """Whether rows may be without this file column."""
        return name not in {self.names[column] for column in self.required}

    def pick(self, record: Located) -> Located | Broken:
        """Return the row under the task's names, without what the task does not read."""
        row: Row = {}
        names = self.names_in(record.row)
        for column, name in names.items():
            value = record.row.get(name)
            if value is not None:
                row[column] = value
            elif column in self.required:
                missing = name not in record.row
                return Broken(record.place, self.missing(record.row, name) if missing else f"column '{name}' is null.")
        if not any(name in record.row for name in names.values()):
            return Broken(record.place, self.missing(record.row, *self.names.values()))
        for column, value in row.items():
            if not _is_unicode(value):
                return Broken(record.place, f"column '{names[column]}' holds half of a surrogate pair.")
        return Located(record.place, row, kept={name: record.row.get(name) for name in self.kept})

    def missing(self, there: Mapping[str, Any], *names: str) -> str:
        """Say that these file columns are not there, what is, and how to map it."""
        wanted = " or ".join(f"'{name}'" for name in names)
        settings = " or ".join(f"{self.setting}.{column}" for column, name in self.names.items() if name in names)
        listed = ", ".join(map(str, there)) or "none"
        how = f" Set {settings} to the column to read." if settings else ""
        return f"there is no column {wanted}; the columns are: {listed}.{how}"


def _shape(names: Mapping[str, str]) -> Shape:
    needed = frozenset(name for column, name in names.items() if not column.endswith("?"))
    return Shape({column.removesuffix("?"): name for column, name in names.items()}, needed)


@dataclass
class ColumnUse:
    """Which columns of a split's files hold something, and what became of them."""

    read: dict[str, str] = field(default_factory=dict)
    """Task column -> file column, as far as any row has it."""
    unread: list[str] = field(default_factory=list)
    """The file columns that the task does not read."""
    known: set[str] = field(default_factory=set)
    """Both."""

    def restore(self, earlier: "ColumnUse") -> None:
        """Take over what an earlier reading of the same rows noted."""
        self.read, self.unread, self.known = earlier.read, earlier.unread, earlier.known

    def note(self, row: Mapping[str, Any], columns: Columns) -> None:
        """Add the columns that this row has a value in."""
        fresh = {name for name, value in row.items() if name not in self.known and value not in (None, "")}
        names = columns.names_in(row)
        for column, name in names.items():
            if name in fresh:
                self.read.setdefault(column, name)
        self.unread += [name for name in row if name in fresh.difference(names.values())]
        self.known |= fresh


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
