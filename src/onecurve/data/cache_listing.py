"""Lists the entries of the example cache, and removes those not used for long."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import time

from filelock import FileLock, Timeout

from onecurve.data.cache import INFO
from onecurve.data.media import STORE


@dataclass(frozen=True)
class Listed:
    """One entry of the cache, or what a writer that was killed has left of one."""

    folder: Path
    size: int
    """Bytes."""
    used: float
    """When it was last used; Unix seconds."""
    about: str
    """What it is of: split, data, task."""
    is_complete: bool

    @property
    def age(self) -> float:
        """Seconds since it was last used."""
        return max(0.0, time() - self.used)


def entries(root: Path) -> list[Listed]:
    """Return every entry of a cache folder, that used last first."""
    folders = [path for path in root.iterdir() if path.is_dir() and path.name != STORE] if root.is_dir() else []
    found = map(_listed, folders)
    return sorted((entry for entry in found if entry), key=lambda entry: -entry.used)


def _listed(folder: Path) -> Listed | None:
    try:
        info = folder / INFO
        is_complete = info.is_file() and ".incomplete-" not in folder.name
        about = json.loads(info.read_text(encoding="utf-8")).get("about", {}) if is_complete else {}
        told = ", ".join(f"{name} {value}" for name, value in about.items()) or "incomplete"
        size = sum(path.stat().st_size for path in folder.iterdir())
        return Listed(folder, size, (info if is_complete else folder).stat().st_mtime, told, is_complete)
    except FileNotFoundError:  # removed, or finished, meanwhile
        return None
    except ValueError:
        return Listed(folder, 0, folder.stat().st_mtime, "damaged", is_complete=False)


def prune(root: Path, older_than: float | None, max_size: int | None) -> Iterator[Listed]:
    """Remove entries and yield each that is gone; those that are being written stay.

    Args:
        root: The cache folder.
        older_than: Seconds since its last use after which an entry goes.
        max_size: Bytes that all that stays may have; what was used last stays.
    """
    total = 0
    for entry in entries(root):
        total += entry.size
        is_old = older_than is not None and entry.age > older_than
        is_over = max_size is not None and total > max_size
        if (is_old or is_over or not entry.is_complete) and _remove(root, entry):
            total -= entry.size
            yield entry


def _remove(root: Path, entry: Listed) -> bool:
    key = entry.folder.name.partition(".incomplete-")[0]
    lock = FileLock(root / f"{key}.lock")
    try:
        with lock.acquire(timeout=0):
            shutil.rmtree(entry.folder, ignore_errors=True)
    except Timeout:  # a process writes it just now
        return False
    return not entry.folder.exists()
