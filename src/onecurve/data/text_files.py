"""Opens text files, compressed or not, and marks bytes that cannot be decoded."""

import codecs
import gzip
from pathlib import Path
from typing import IO

MARK = "\udcff"
"""Stands for bytes that cannot be decoded; no decoder yields it itself, so its line can be found and named."""
codecs.register_error("onecurve.mark", lambda error: (MARK, error.end))  # type: ignore[attr-defined]


def open_text(path: Path, encoding: str, newline: str | None = None) -> IO[str]:
    """Open a file whose undecodable bytes read as `MARK`; a suffix of .gz says that it is compressed."""
    if codecs.lookup(encoding).name == "utf-8":
        encoding = "utf-8-sig"  # reads both, with and without the mark that Windows puts in front
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding=encoding, errors="onecurve.mark", newline=newline)
    return open(path, encoding=encoding, errors="onecurve.mark", newline=newline)


def undecodable(encoding: str) -> str:
    """Say what is wrong with a line that holds `MARK`."""
    return f"has bytes that are not {encoding}; set data.encoding to the file's encoding."
