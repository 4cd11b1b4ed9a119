"""The cache of encoded examples: entries keyed by content, written by one process, read only when complete."""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from onecurve.data.files import file_stamp
from onecurve.errors import LaunchError
from onecurve.machine.atomic_write import write_atomically

INFO = "info.json"
"""The file of an entry that says what it is; written last, and touched whenever it is used."""


@dataclass(frozen=True)
class Entry:
    """A complete entry."""

    folder: Path
    counts: dict[str, Any]
    """What its writer returned."""
    is_hit: bool
    """Whether it was there before."""


def cache_root(cache_dir: str | None) -> Path:
    """Return `data.cache_dir`, or the user's cache directory where it is not set."""
    if cache_dir:
        return Path(os.path.expanduser(cache_dir))
    return Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")) / "onecurve"


def find_entry(root: Path, key: str) -> Entry | None:
    """Return the entry of `key`; None where it is missing, cut short or altered."""
    return _read(root / key, is_hit=True)


def get_or_write(root: Path, key: str, write: Callable[[Path], dict[str, Any]], about: dict[str, str]) -> Entry:
    """Return the entry of `key`; where there is none, exactly one of the waiting processes writes it.

    Args:
        root: The folder of all entries.
        key: A hash of everything the content depends on.
        write: Writes files to the folder it is given, and returns counts for JSON.
        about: What it is, for `onecurve data cache`.

    Raises:
        LaunchError: The folder cannot be written.
    """
    entry = _read(root / key, is_hit=True)  # without the lock, so that ranks verify side by side
    if entry:
        return entry
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f"{key}.lock"):
            return _read(root / key, is_hit=True) or _write(root, key, write, about)
    except (OSError, NotImplementedError) as error:  # the second: a file system without locks
        raise LaunchError(
            f"encoded examples cannot be written to '{root}': {error}.",
            where="data.cache_dir",
            fix="Set it to a folder that this user can write.",
        ) from None


def _write(root: Path, key: str, write: Callable[[Path], dict[str, Any]], about: dict[str, str]) -> Entry:
    for leftover in (root / key, *root.glob(f"{key}.incomplete-*")):  # damaged, or of a writer that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    folder = root / f"{key}.incomplete-{uuid.uuid4().hex}"
    folder.mkdir()
    try:
        counts = write(folder)
        info = {"about": about, "counts": counts, "files": _hashes(folder), "stamps": _stamps(folder)}
        (folder / INFO).write_text(json.dumps(info), encoding="utf-8")
        folder.rename(root / key)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Entry(root / key, counts, is_hit=False)


def _read(folder: Path, is_hit: bool) -> Entry | None:
    """Return the entry, or None where it is missing, cut short or altered.

    Files that are as they were when they were last hashed are not hashed again: a terabyte takes half an hour.
    """
    try:
        info = json.loads((folder / INFO).read_text(encoding="utf-8"))
        stamps = _stamps(folder)
        if info["stamps"] != stamps:  # altered, or copied from elsewhere
            if info["files"] != _hashes(folder):
                return None
            with suppress(OSError):  # of another user
                write_atomically(folder / INFO, json.dumps(info | {"stamps": stamps}))
        with suppress(OSError):
            os.utime(folder / INFO)  # when it was last used
        return Entry(folder, info["counts"], is_hit)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _stamps(folder: Path) -> dict[str, str]:
    return {path.name: file_stamp(path) for path in sorted(folder.iterdir()) if path.name != INFO}


def _hashes(folder: Path) -> dict[str, str]:
    return {path.name: _hash(path) for path in sorted(folder.iterdir()) if path.name != INFO}


def _hash(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
