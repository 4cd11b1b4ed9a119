"""A data file and its format, and how a change of it is noticed."""

import hashlib
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from onecurve.config import DataSection
from onecurve.data.formats import READERS, READS, Records, parquet_columns, parquet_labels
from onecurve.data.rows import Columns
from onecurve.errors import DataError


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

    @property
    def folder(self) -> Path:
        """What relative paths in it are relative to."""
        return self.path.parent

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

    def declared_labels(self, columns: Columns) -> list[list[str]]:
        """Return the names of the class labels that `datasets` wrote into a Parquet file, by id."""
        return parquet_labels(self.path, columns) if self.format == "parquet" else []

    def digest(self) -> str:
        """Return a hash of the format and of every byte.

        Raises:
            DataError: The file cannot be read.
        """
        return content_digest([self.path], f"{self.format}{self.path.suffix == '.gz'}")

    def stamp(self) -> str:
        """Return what changes when the file does, without reading it: `file_stamp`."""
        return file_stamp(self.path)


def content_digest(paths: Iterable[Path], start: str) -> str:
    """Return a hash of every byte of files, one after the other.

    Raises:
        DataError: One cannot be read.
    """
    digest = hashlib.blake2b(start.encode(), digest_size=16)
    for path in paths:
        try:
            with open(path, "rb") as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
        except OSError as error:
            raise _unreadable(path, error) from None
    return digest.hexdigest()


def file_stamp(path: Path) -> str:
    """Return a file's size, inode and times: of its last write, and of its last change of any kind.

    No program can set the latter back, so it also tells of a file that was changed in place to the same size.

    Raises:
        DataError: There is no such file.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from None
    return f"{stat.st_size} {stat.st_ino} {stat.st_mtime_ns} {stat.st_ctime_ns}"


def _unreadable(path: Path, error: Exception) -> DataError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return DataError(f"cannot be read: {reason}.", where=str(path))
