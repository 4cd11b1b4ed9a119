"""Media columns: the files that rows name, or that a hub dataset holds as bytes, found and hashed."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from onecurve.content.media import media_digest
from onecurve.data.cache import cache_root
from onecurve.data.rows import Broken, Located
from onecurve.tasks.base import Row

STORE = "media"
"""The folder of the cache that holds what came as bytes, each file named by its hash."""
SUFFIXES = {
    "image": frozenset(".png .jpg .jpeg .webp .bmp .gif .tif .tiff .ppm .pgm".split()),
    "audio": frozenset(".wav .flac .ogg .oga .opus .mp3 .aiff .aif .au".split()),
}
"""Kind -> the suffixes of its files in a folder."""
_KEPT = 1 << 20
"""Files whose hash is remembered, so that encoding does not read again what checking has read."""


@dataclass(frozen=True)
class MediaColumns:
    """Which of a task's columns hold files."""

    kinds: Mapping[str, str]
    """Task column -> image or audio."""
    cache_dir: str | None = None
    """`data.cache_dir`."""

    def placed(self, row: Row, folder: Path) -> Row:
        """Return a row whose relative paths are made absolute: they are relative to the folder of its data file."""
        return row | {column: _placed(row[column], folder) for column in self.kinds if column in row}

    def read(self, found: Located | Broken) -> Located | Broken:
        """Return a row with `content.media.Media` in its media columns, or why a file cannot be read."""
        if isinstance(found, Broken):
            return found
        try:
            files = {column: self._media(found.row[column], column) for column in self.kinds if column in found.row}
        except _Unusable as error:
            return Broken(found.place, str(error))
        return replace(found, row=found.row | files)

    def _media(self, value: Any, column: str) -> dict[str, str]:
        content = value.get("bytes") if isinstance(value, Mapping) else None
        if content is not None:
            return self._stored(content, Path(value.get("path") or "").suffix)
        path = value.get("path") if isinstance(value, Mapping) else value
        if not isinstance(path, str | Path) or not str(path).strip():
            kind = self.kinds[column]
            raise _Unusable(f"{column} must be the path of an {kind} file; got {str(value)[:60]!r}")
        try:
            if str(path).startswith(("http://", "https://")):
                raise _Unusable(f"{column} is an address, {path}; download the file first")
            stat = Path(path).stat()
            stamp = stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino
            return {"path": str(path), "digest": _digest(str(path), stamp)}
        except OSError as error:
            raise _Unusable(f"{column}: '{path}' cannot be read: {error.strerror}") from None

    def _stored(self, content: bytes, suffix: str) -> dict[str, str]:
        digest = media_digest(content)
        path = (cache_root(self.cache_dir) / STORE / digest[:2] / f"{digest}{suffix}").absolute()
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_name(f"{digest}.{os.getpid()}.incomplete")
            unfinished.write_bytes(content)
            unfinished.replace(path)
        return {"path": str(path), "digest": digest}


class _Unusable(Exception):
    """Why a value names no file."""


def _placed(value: Any, folder: Path) -> Any:
    path = value.get("path") if isinstance(value, Mapping) else value
    if not isinstance(path, str | Path) or not str(path).strip() or (isinstance(value, Mapping) and value.get("bytes")):
        return value
    if "://" in str(path):
        return str(path)
    return str((folder / Path(path).expanduser()).absolute())


@lru_cache(_KEPT)
def _digest(path: str, stamp: tuple[int, ...]) -> str:
    return media_digest(Path(path).read_bytes())
