"""Opens what `data.train`, `data.eval` or `data.test` names: files, folders or hub datasets, in a fixed row order."""

import hashlib
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from onecurve.config import DataSection, default_of
from onecurve.data.formats import READERS, READS, SUFFIXES, Records, check_encoding, format_of, parquet_columns
from onecurve.data.hub import HubSplit, load_hub_split
from onecurve.data.parallel import ParallelFiles, find_parallel
from onecurve.data.rows import Broken, Columns, ColumnUse, Located
from onecurve.errors import ConfigError, DataError

__all__ = ["Broken", "Located", "Source", "open_source", "read_rows"]

_HUB_NAME = re.compile(r"(?P<name>[\w-][\w.-]*/[\w.-]+)(:(?P<split>.+))?")
BY_SPLIT = frozenset({"format", "encoding", "header", "quoting", "sample_by", "hub_config"})
"""Settings of `data` that only splits of some kind read: `Source.reads`."""
_HUB_SPLITS = {"train": "train", "eval": "validation", "test": "test"}


@dataclass(frozen=True)
class DataFile:
    """One file and the format it is read in."""

    path: Path
    format: str
    settings: DataSection

    @property
    def name(self) -> str:
        """The file as messages name it."""
        return str(self.path)

    def records(self, columns: Columns) -> Records:
        """Yield every row.

        Raises:
            DataError: The file as a whole cannot be read.
        """
        try:
            yield from READERS[self.format](self.path, self.settings, columns)
        except (OSError, EOFError, zlib.error) as error:  # the last two: a .gz that was cut
            raise _unreadable(self.path, error) from None
        except UnicodeError as error:  # UTF-16 and UTF-32 without the mark that they begin with
            told = f"cannot be read as {self.settings.encoding}: {error}."
            raise DataError(told, where=str(self.path), fix="Set data.encoding to the file's encoding.") from None

    @property
    def reads(self) -> frozenset[str]:
        """The settings of `data` that this format is read by."""
        return READS[self.format]

    def columns(self) -> list[str]:
        """Return all columns of a file whose records hold only some."""
        return parquet_columns(self.path) if self.format == "parquet" else []

    def digest(self) -> str:
        """Return a hash of the format and of every byte.

        Raises:
            DataError: The file cannot be read.
        """
        digest = hashlib.blake2b(f"{self.format}{self.path.suffix == '.gz'}".encode(), digest_size=16)
        try:
            with open(self.path, "rb") as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
        except OSError as error:
            raise _unreadable(self.path, error) from None
        return digest.hexdigest()

    def stamp(self) -> str:
        """Return what changes when the file does, without reading it."""
        try:
            stat = self.path.stat()
        except OSError as error:
            raise _unreadable(self.path, error) from None
        return f"{stat.st_size} {stat.st_mtime_ns}"


@dataclass(frozen=True)
class Source:
    """The data of one split: files in the order of their names, or a hub split."""

    key: str
    """The setting that names it, such as data.train."""
    spec: str
    """Its value."""
    parts: tuple[DataFile | ParallelFiles | HubSplit, ...]
    columns: Columns
    asked: DataSection = field(default_factory=lambda: DataSection(train=""))
    """The recipe's `data`."""
    use: ColumnUse = field(default_factory=ColumnUse)
    """Which columns were there, as far as rows have been read."""

    def rows(self) -> Iterator[Located | Broken]:
        """Yield every row by the task's column names, and every place where there should be one.

        Raises:
            DataError: A file that cannot be read, or none of whose rows has a column that is needed.
        """
        for part in self.parts:
            yield from self._rows_of(part)

    def _rows_of(self, part: DataFile | ParallelFiles | HubSplit) -> Iterator[Located | Broken]:
        unseen = set(self.columns.needed)
        last: Located | None = None
        for record in part.records(self.columns):
            place = f"{part.name}, {record.place}" if record.place else part.name
            if isinstance(record, Broken):
                yield Broken(place, record.reason)
                continue
            last = record
            unseen.difference_update(record.row)
            if not record.row.keys() <= self.use.known:
                self.use.note(record.row, self.columns)
            yield self.columns.pick(Located(place, record.row))
        if last and unseen:
            missing = [name for name in self.columns.names.values() if name in unseen]
            raise DataError(self.columns.missing(last.row, *missing), where=part.name)
        others = [name for name in part.columns() if name not in self.columns.wanted]
        self.use.note(dict.fromkeys(others, True), self.columns)

    @property
    def reads(self) -> frozenset[str]:
        """The settings of `data` that change how this split is read."""
        return frozenset().union(*(part.reads for part in self.parts))

    @property
    def settings(self) -> DataSection:
        """The recipe's `data`, with the default of every setting that does not change how this split is read."""
        unread = BY_SPLIT - self.reads
        return self.asked.model_copy(update={name: default_of(self.asked, name) for name in unread})

    def declared_labels(self) -> list[list[str]]:
        """Return the label names that a hub dataset declares for a column, by id; no file does."""
        hub = (part for part in self.parts if isinstance(part, HubSplit))
        return [names for part in hub for names in part.declared_labels(self.columns)]

    def digest(self) -> str:
        """Return a hash of the data's content and order; where it lies does not count."""
        return hashlib.blake2b(" ".join(part.digest() for part in self.parts).encode(), digest_size=16).hexdigest()

    def stamp(self) -> tuple[str, ...]:
        """Return what changes when the data does."""
        return tuple(part.stamp() for part in self.parts)


def open_source(
    key: str,
    spec: str,
    settings: DataSection,
    columns: Mapping[str, str],
    shapes: Iterable[Mapping[str, str]] = (),
) -> Source:
    """Find what `spec` names: a file, a folder or a hub dataset. Rows are read later.

    Args:
        key: The setting, such as data.train; names the hub split where the spec does not.
        spec: Its value.
        settings: Format, encoding and columns.
        columns: The task's columns.
        shapes: Other forms of row that the task knows.

    Raises:
        ConfigError: Nothing there, an unknown format, encoding or column.
        DataError: A hub dataset that cannot be had.
    """
    check_encoding(settings.encoding)
    resolved = Columns.resolve(settings.columns, columns, shapes)
    return Source(key, spec, tuple(_parts(key, spec, settings, resolved)), resolved, settings)


def read_rows(key: str, spec: str, settings: DataSection, columns: Mapping[str, str]) -> Iterator[Located | Broken]:
    """Yield the rows of one split; `open_source` has the arguments and the errors."""
    return open_source(key, spec, settings, columns).rows()


def _parts(
    key: str, spec: str, settings: DataSection, columns: Columns
) -> Iterator[DataFile | ParallelFiles | HubSplit]:
    path = Path(spec).expanduser()
    parallel = None if path.is_file() or path.is_dir() else find_parallel(key, path, settings, columns)
    if parallel:
        yield parallel
    elif path.is_file():
        yield _data_file(key, path, settings)
    elif path.is_dir():
        paths = _files_of(path)
        if not paths:
            raise ConfigError(f"the folder {spec!r} has no files.", where=key)
        yield from (_data_file(key, found, settings) for found in paths)
    elif path.exists():
        raise ConfigError(f"{spec!r} is not a regular file or folder; data is read more than once.", where=key)
    else:
        yield _hub_split(key, spec, settings)


def _files_of(folder: Path) -> list[Path]:
    """List a folder's files at every depth in the order of their relative names, hidden ones left out."""
    relative = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    shown = [path for path in relative if not any(part.startswith(".") for part in path.parts)]
    return [folder / path for path in sorted(shown, key=Path.as_posix)]


def _data_file(key: str, path: Path, settings: DataSection) -> DataFile:
    kind = format_of(path) if settings.format == "auto" else settings.format
    if kind is None:
        raise ConfigError(
            f"the format of '{path}' is unknown from its suffix; known are {', '.join(SUFFIXES)}.",
            where=key,
            fix="Name a data file, or set data.format; in a folder, all files must be data.",
        )
    return DataFile(path, kind, settings)


def _hub_split(key: str, spec: str, settings: DataSection) -> HubSplit:
    match = _HUB_NAME.fullmatch(spec)
    if not match or format_of(Path(spec)):
        raise ConfigError(
            f"no such file or folder: {spec!r}.", where=key, fix="Write a hub dataset as org/name or org/name:split."
        )
    split = match["split"] or _HUB_SPLITS[key.rpartition(".")[-1]]
    return load_hub_split(key, match["name"], split, settings.hub_config)


def _unreadable(path: Path, error: Exception) -> DataError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return DataError(f"cannot be read: {reason}.", where=str(path))
