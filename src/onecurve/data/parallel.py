"""Parallel text in the Moses format: one file per column, matched line by line."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from onecurve.config import DataSection
from onecurve.data.files import file_stamp
from onecurve.data.rows import Broken, Columns, Located
from onecurve.data.text_files import MARK, open_text, undecodable
from onecurve.errors import ConfigError, DataError


@dataclass(frozen=True)
class ParallelFiles:
    """Files `PREFIX.COLUMN`, compressed or not, line by line."""

    prefix: Path
    paths: Mapping[str, Path]
    """By the name of the column, which is the suffix."""
    settings: DataSection

    @property
    def name(self) -> str:
        """The files as messages name them."""
        return str(self.prefix)

    @property
    def folder(self) -> Path:
        """What relative paths in them are relative to."""
        return self.prefix.parent

    def records(self, columns: Columns) -> Iterator[Located | Broken]:
        """Yield a row a line.

        Raises:
            DataError: A file that cannot be read, or ends before another one.
        """
        files = {name: open_text(path, self.settings.encoding) for name, path in self.paths.items()}
        try:
            for number, lines in enumerate(zip_longest(*files.values()), 1):
                if None in lines:
                    short = [str(path) for path, line in zip(self.paths.values(), lines, strict=True) if line is None]
                    raise DataError(f"ends before line {number}, but the other file has that line.", where=short[0])
                row = {name: line.rstrip("\r\n") for name, line in zip(files, lines, strict=True)}
                bad = any(MARK in line for line in lines)
                yield (
                    Broken(f"line {number}", undecodable(self.settings.encoding))
                    if bad
                    else Located(f"line {number}", row)
                )
        except (OSError, EOFError) as error:
            raise DataError(f"cannot be read: {error}.", where=str(self.prefix)) from None
        finally:
            for file in files.values():
                file.close()

    @property
    def reads(self) -> frozenset[str]:
        """The settings of `data` that change how these files are read."""
        return frozenset({"format", "encoding"})

    def columns(self) -> list[str]:
        """Return nothing: the records hold all columns."""
        return []

    def declared_labels(self, columns: Columns) -> list[list[str]]:
        """Return nothing: text declares no labels."""
        return []

    def digest(self) -> str:
        """Return a hash of every file's suffix and bytes."""
        digest = hashlib.blake2b(b"parallel", digest_size=16)
        for name, path in self.paths.items():
            content = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
            digest.update(f"{name} {path.suffix == '.gz'} {content} ".encode())
        return digest.hexdigest()

    def stamp(self) -> str:
        """Return what changes when a file does, without reading it."""
        return " ".join(file_stamp(path) for path in self.paths.values())


def find_parallel(key: str, prefix: Path, settings: DataSection, columns: Columns) -> ParallelFiles | None:
    """Find the files of a prefix; None where none of them is there and `data.format` does not ask for them.

    Raises:
        ConfigError: Some are missing.
    """
    paths = {name: _existing(prefix, name) for name in columns.names.values() if name in columns.needed}
    found = {name: path for name, path in paths.items() if path}
    if settings.format != "parallel" and (settings.format != "auto" or not found or not settings.columns):
        return None
    missing = [f"{prefix}.{name}" for name in paths if name not in found]
    if missing:
        raise ConfigError(
            f"no such file: {missing[0]} (nor {missing[0]}.gz).",
            where=key,
            fix="Set the suffixes in data.columns, such as {source: en, target: de}.",
        )
    return ParallelFiles(prefix, found, settings)


def _existing(prefix: Path, suffix: str) -> Path | None:
    paths = (prefix.with_name(f"{prefix.name}.{suffix}{end}") for end in ("", ".gz"))
    return next((path for path in paths if path.is_file()), None)
