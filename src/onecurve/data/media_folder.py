"""A folder of images or sounds: each file is a row, and the folder it lies in is its label."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from onecurve.config import DataSection
from onecurve.data.files import file_stamp
from onecurve.data.folders import split_of, walk
from onecurve.data.formats import format_of
from onecurve.data.media import SUFFIXES
from onecurve.data.rows import Broken, Columns, Located
from onecurve.errors import ConfigError

_LABEL = "label"


@dataclass(frozen=True)
class MediaFolder:
    """The files of one split of a folder, in the order of their names."""

    folder: Path
    paths: tuple[Path, ...]
    """Relative to the folder."""
    media: str
    """The task's column that the files are."""
    depth: int = 0
    """How many folders at the top are no labels: 1 where they are splits."""

    @property
    def name(self) -> str:
        """The folder as messages name it."""
        return str(self.folder)

    @property
    def files(self) -> set[Path]:
        """The files, with the folder before them."""
        return {self.folder / path for path in self.paths}

    def records(self, columns: Columns) -> Iterator[Located | Broken]:
        """Yield a row a file; one that lies in no folder of its own has no label."""
        file, label = columns.names[self.media], columns.names.get(_LABEL, _LABEL)
        for path in self.paths:
            labelled = {label: path.parent.name} if len(path.parts) > self.depth + 1 else {}
            yield Located(path.as_posix(), {file: str(path), **labelled})

    @property
    def reads(self) -> frozenset[str]:
        """The settings of `data` that change how the folder is read."""
        return frozenset({"format"})

    def columns(self) -> list[str]:
        """Return nothing: the records hold all columns."""
        return []

    def declared_labels(self, columns: Columns) -> list[list[str]]:
        """Return nothing: folders declare no order of labels."""
        return []

    def digest(self) -> str:
        """Return a hash of the files' names; their content is hashed as rows are read."""
        names = "\n".join(path.as_posix() for path in self.paths)
        return hashlib.blake2b(f"media {names}".encode(), digest_size=16).hexdigest()

    def stamp(self) -> str:
        """Return what changes when a file does, without reading it."""
        digest = hashlib.blake2b(digest_size=16)
        for path in self.paths:
            digest.update(f"{path.as_posix()} {file_stamp(self.folder / path)}\n".encode())
        return digest.hexdigest()


def find_media_folder(
    key: str, folder: Path, split: str, is_named: bool, settings: DataSection, media: Mapping[str, str]
) -> MediaFolder | None:
    """Find the files of a split; None where the task does not read one kind of file, or the folder has none of it.

    Where the folders at the top are all named for splits (train, validation, test, ...), the split's are taken; else
    all, if the recipe names no split.

    Args:
        key: The setting, for messages.
        folder: Where to look, at every depth.
        split: The split.
        is_named: Whether the recipe names it.
        settings: The recipe's data section; `format: media` asks for it.
        media: The task's media columns.

    Raises:
        ConfigError: `format: media` finds no such file, or there are none of this split.
    """
    asked = settings.format == "media"
    if len(media) != 1 or settings.format not in ("auto", "media"):
        _check_asked(asked, f"this task reads {len(media)} files a row")
        return None
    ((column, kind),) = media.items()
    there = sorted(walk(folder), key=Path.as_posix)
    if not asked and any(format_of(path) not in (None, "text") for path in there):
        return None  # a table that lists the files
    paths = [path for path in there if path.suffix.lower() in SUFFIXES[kind]]
    if not paths:
        _check_asked(asked, f"the folder '{folder}' has no {kind} files ({', '.join(sorted(SUFFIXES[kind]))})")
        return None
    return _of_split(key, MediaFolder(folder, tuple(paths), column), split, is_named)


def _check_asked(asked: bool, reason: str) -> None:
    if asked:
        raise ConfigError(
            f"media is a folder in which each file is a row; {reason}.",
            where="data.format",
            fix="Name the files in a JSONL or CSV file.",
        )


def _of_split(key: str, whole: MediaFolder, split: str, is_named: bool) -> MediaFolder:
    tops = {path.parts[0] if len(path.parts) > 1 else "" for path in whole.paths}
    by_split = {top: split_of(top) for top in tops}
    depth = int(all(by_split.values()))
    if not depth and not is_named:
        return whole
    paths = tuple(path for path in whole.paths if depth and by_split[path.parts[0]] == split_of(split))
    if not paths:
        raise ConfigError(
            f"the folder '{whole.folder}' has no folder for the split '{split}'; it has {', '.join(sorted(tops))}.",
            where=key,
            fix="Name the split's own folder.",
        )
    return replace(whole, paths=paths, depth=depth)
