"""The rows of what `data.train`, `data.eval` or `data.test` names, in a fixed order."""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from onecurve.config import BY_SPLIT, DataSection, NamedSet, default_of, path_of, refuse_without_effect
from onecurve.data.files import DataFile
from onecurve.data.finding import Part, find, folder_of
from onecurve.data.folders import left_out
from onecurve.data.formats import check_encoding
from onecurve.data.media import SUFFIXES, MediaColumns
from onecurve.data.media_folder import MediaFolder
from onecurve.data.rows import Broken, Columns, ColumnUse, Located
from onecurve.data.selection import Selection, share
from onecurve.errors import ConfigError, DataError

__all__ = ["Broken", "Located", "Source", "open_source", "read_rows"]

_SPLITS = ("train", "eval", "test")
_BY_SPLIT = frozenset(key.removeprefix("data.") for key in BY_SPLIT)


@dataclass(frozen=True)
class Source:
    """The data of one split: files in the order of their names, or a hub split."""

    key: str
    """The setting that names it, such as data.train."""
    spec: str
    """Its value."""
    parts: tuple[Part, ...]
    columns: Columns
    asked: DataSection = field(default_factory=lambda: DataSection(train=""))
    """The recipe's `data`."""
    use: ColumnUse = field(default_factory=ColumnUse)
    """Which columns were there, as far as rows have been read."""
    selection: Selection | None = None
    """Which rows it has; None: every one."""
    own: frozenset[str] = frozenset()
    """The settings of `data` that it has for itself, as a named source may."""
    folders: tuple[Path, ...] = ()
    """Those that `spec` names."""

    @property
    def split(self) -> str:
        """The split that it is of, or a named part of."""
        return self.key.split(".")[1]

    @cached_property
    def media(self) -> MediaColumns | None:
        """The columns whose values are files; None where there are none."""
        return MediaColumns(self.columns.media, self.asked.cache_dir) if self.columns.media else None

    def rows(self) -> Iterator[Located | Broken]:
        """Yield every row by the task's column names, and every place where there should be one.

        Raises:
            DataError: A file that cannot be read, or none of whose rows has a column that is needed.
        """
        kept = self.selection.keep(self.num_rows) if self.selection else None
        for number, found in enumerate(self._all_rows()):
            if kept is None or kept[number]:
                read = self.media.read(found) if self.media else found
                yield replace(read, number=number) if isinstance(read, Located) else read

    @cached_property
    def num_rows(self) -> int:
        """Rows of the parts, whether the split has them or not; reads them all."""
        return sum(1 for _ in self._all_rows())

    def _all_rows(self) -> Iterator[Located | Broken]:
        for part in self.parts:
            yield from self._rows_of(part)

    def _rows_of(self, part: Part) -> Iterator[Located | Broken]:
        unseen = {*self.columns.needed, *self.columns.kept}
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
            picked = self.columns.pick(Located(place, record.row))
            if self.media and isinstance(picked, Located):
                picked = replace(picked, row=self.media.placed(picked.row, part.folder))
            yield picked
        if last and unseen:
            missing = [name for name in (*self.columns.names.values(), *self.columns.kept) if name in unseen]
            raise DataError(self.columns.missing(last.row, *missing), where=part.name)
        others = [name for name in part.columns() if name not in self.columns.wanted]
        self.use.note(dict.fromkeys(others, True), self.columns)

    @property
    def files(self) -> set[Path]:
        """The files that are read; where rows refer to media, only the tables that list them."""
        tables = {part.path for part in self.parts if isinstance(part, DataFile)}
        return tables.union(*(part.files for part in self.parts if isinstance(part, MediaFolder)))

    @property
    def reads(self) -> frozenset[str]:
        """The settings of `data` that change how this split is read."""
        return frozenset().union(*(part.reads for part in self.parts))

    @property
    def settings(self) -> DataSection:
        """The recipe's `data`, with the default of every setting that does not change how this split is read."""
        unread = _BY_SPLIT - self.reads
        return self.asked.model_copy(update={name: default_of(self.asked, name) for name in unread})

    def declared_labels(self) -> list[list[str]]:
        """Return the label names that hub datasets and Parquet files declare for a column, by id; each list once."""
        found = (tuple(names) for part in self.parts for names in part.declared_labels(self.columns))
        return [list(names) for names in dict.fromkeys(found)]

    def digest(self) -> str:
        """Return a hash of the data's content and order and of which rows are used; where it lies does not count."""
        told = [part.digest() for part in self.parts] + ([repr(self.selection)] if self.selection else [])
        return hashlib.blake2b(" ".join(told).encode(), digest_size=16).hexdigest()

    def location(self) -> str:
        """Return where the files lie that rows refer to; empty where they refer to none."""
        return " ".join(str(part.folder.absolute()) for part in self.parts) if self.media else ""

    def stamp(self) -> tuple[str, ...]:
        """Return what changes when the data does."""
        return tuple(part.stamp() for part in self.parts)


def open_source(
    key: str,
    spec: str | list[str],
    settings: DataSection,
    columns: Mapping[str, str],
    shapes: Iterable[Mapping[str, str]] = (),
    media: Mapping[str, str] | None = None,
) -> Source:
    """Find what `spec` names: files, folders or hub datasets. Rows are read later.

    Args:
        key: The setting, such as data.train; names the hub split where the spec does not.
        spec: Its value, or several, one after the other.
        settings: Format, encoding and columns.
        columns: The task's columns.
        shapes: Other forms of row that the task knows.
        media: Those of the task's columns whose values are files, and of what kind.

    Raises:
        ConfigError: Nothing there, an unknown format, encoding or column.
        DataError: A hub dataset that cannot be had.
    """
    check_encoding(settings.encoding)
    setting = f"{key}.columns" if key.count(".") > 1 else "data.columns"
    resolved = replace(Columns.resolve(settings.columns, columns, shapes, setting), media=media or {})
    specs = [spec] if isinstance(spec, str) else spec
    parts = tuple(part for one in specs for part in find(key, one, settings, resolved))
    folders = tuple(folder for one in specs if (folder := folder_of(one)))
    return Source(key, ", ".join(specs), parts, resolved, settings, folders=folders)


def open_splits(
    settings: DataSection,
    columns: Mapping[str, str],
    shapes: Iterable[Mapping[str, str]],
    media: Mapping[str, str],
    seed: int,
) -> dict[str, Source]:
    """Find the data of every split that is set: train, eval, test. A share is of the training data.

    A named source or set is found by `split/name`, and is read as if it were all there is, by settings of its own.

    Args:
        settings: The recipe's data section.
        columns: The task's columns.
        shapes: Other forms of row that the task knows.
        media: Those of the columns whose values are files, and of what kind.
        seed: Of the run; draws the rows of shares and of `data.max_samples`.

    Raises:
        UserError: As `open_source` does.
    """
    shapes, opened = list(shapes), {}
    for split in _SPLITS:
        if getattr(settings, split) is not None:
            for name in settings.names(split) or [""]:
                under = f".{name}" if name else ""
                own, asked = settings_of(settings, split, name)
                of = "train" if share(getattr(asked, split)) is not None else split
                source = open_source(f"data.{of}{under}", getattr(asked, of), asked, columns, shapes, media)
                _refuse_own(source, own)
                source = replace(source, key=f"data.{split}{under}", selection=Selection.of(split, asked, seed))
                opened[f"{split}/{name}" if name else split] = replace(source, own=own)
    return opened


def _refuse_own(source: Source, own: frozenset[str]) -> None:
    """Refuse a named source's own settings that it is not read by."""
    if idle := own & _BY_SPLIT - source.reads:
        raise ConfigError(
            f"has no effect: {source.spec!r} is not of a kind that it is for. Remove it.",
            where=f"{source.key}.{min(idle)}",
        )


def settings_of(settings: DataSection, split: str, name: str) -> tuple[frozenset[str], DataSection]:
    """Return the keys that a named source or set has for itself, and the data section as if there were no other.

    Raises:
        ConfigError: A share of a training source that there is not, or one with settings of its own.
    """
    if not name:
        return frozenset(), settings
    entries = {one: settings.entry(one, name) for one in _SPLITS if name in settings.names(one)}
    paths = {one: path_of(entry) for one, entry in entries.items()}
    of = split
    if share(paths[split]) is not None:
        of = "train"
        if of not in entries:
            raise ConfigError(
                f"{paths[split]} is a share of a training source, and data.train has none of this name.",
                where=f"data.{split}.{name}",
            )
        if isinstance(entries[split], NamedSet):
            raise ConfigError(
                f"a share is read as its training source is: write {name}: {paths[split]}.",
                where=f"data.{split}.{name}",
            )
    entry = entries[of]
    own = entry.model_dump(exclude_none=True, exclude={"path", "weight"}) if isinstance(entry, NamedSet) else {}
    read = {**own, "columns": {**settings.columns, **own.get("columns", {})}}
    most = read.pop("max_samples", None)
    limit = {"max_samples": {split: most}} if most and of == split else {}
    update = dict.fromkeys(_SPLITS) | paths | read | limit
    return frozenset(own), settings.model_copy(update=update)


def left_out_files(sources: Collection[Source]) -> dict[Path, list[Path]]:
    """Return the files of each folder that is given as data, relative to it, that no split reads.

    Images and sounds beside a table are not among them: its rows may refer to any of them.
    """
    read = set[Path]().union(*(source.files for source in sources))
    found: dict[Path, list[Path]] = {}
    for folder, source in {folder: each for each in sources for folder in each.folders}.items():
        tabled = source.media and not any(isinstance(part, MediaFolder) for part in source.parts)
        media = set[str]().union(*(SUFFIXES[kind] for kind in source.columns.media.values())) if tabled else set[str]()
        if paths := [path for path in left_out(folder, read) if path.suffix.lower() not in media]:
            found[folder] = paths
    return found


def refuse_unread(settings: DataSection, sources: Iterable[Source]) -> None:
    """Refuse settings that no split is read by.

    Raises:
        ConfigError: There is one that does not have its default.
    """
    read = frozenset[str]().union(*(source.reads - source.own for source in sources))
    idle = {f"data.{name}": "no split is of a kind that it is for" for name in sorted(_BY_SPLIT - read)}
    refuse_without_effect({"data": settings}, idle)


def read_rows(
    key: str, spec: str | list[str], settings: DataSection, columns: Mapping[str, str]
) -> Iterator[Located | Broken]:
    """Yield the rows of one split; `open_source` has the arguments and the errors."""
    return open_source(key, spec, settings, columns).rows()
