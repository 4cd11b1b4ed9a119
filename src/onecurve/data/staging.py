"""Encoded shards on a disk of the node's own: copied a window ahead of their use, and removed behind it."""

import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from threading import Thread

import pyarrow as pa
from filelock import FileLock

from onecurve.data.examples import Examples
from onecurve.data.files import content_digest
from onecurve.data.shard import Shard
from onecurve.errors import ConfigError
from onecurve.machine.speaker import spoken

WHERE = "data.stage_to"
_WINDOWS = 4
"""So many are there at most, where no step is longer than one: a step may lie in two, each brings the next one, and
what was asked for before is kept."""
_UNFINISHED, _LOCK = ".incomplete", ".lock"


class Staging:
    """The shards of one folder in another, as far as they are there; else they are read where they lie.

    So nothing waits for a copy, and none that fails ends a run. One rank of a node copies, all read the copies.
    """

    def __init__(self, folder: Path, source: Path, shards: Sequence[Shard]) -> None:
        """Copy nothing yet.

        Args:
            folder: Where copies are kept.
            source: Of the shards.
            shards: All of the source; one without files, which are rows, is never copied.
        """
        self.folder, self.source, self.shards = folder, source, shards
        self.failure = ""
        """Why something could not be copied the last time; empty while all is well."""
        self._asked: list[list[int]] = []
        """What was asked for ahead, the last two times."""

    def opened(self, number: int) -> Examples:
        """Return the examples of a shard: of its copy, where that is whole."""
        shard, place = self.shards[number], self._place(number)
        # It may be removed meanwhile; once it is mapped it stays readable
        with suppress(OSError, pa.ArrowInvalid, IndexError):
            if shard.files and all((place / name).stat().st_size == size for name, (size, _) in shard.files.items()):
                copy = Examples(place)
                if len(copy) == shard.examples:
                    return copy
        return Examples(self.source / shard.name)

    def ahead(self, numbers: Sequence[int]) -> None:
        """Begin to copy these shards in a thread, and remove those that were neither asked for now nor just before.

        Args:
            numbers: In the order of their use.
        """
        asked = [int(number) for number in numbers]
        if self._asked[-1:] == [asked] or os.environ.get("LOCAL_RANK", "0") != "0":
            return
        self._asked = [*self._asked[-1:], asked]
        Thread(target=self._follow, args=(asked,), name="staging", daemon=True).start()

    def _follow(self, asked: list[int]) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / _LOCK):  # of this process's threads, and of other runs
                for number in asked:
                    if self._asked[-1] != asked:  # training is further already
                        return
                    self._remove_past()
                    self._copy(number)
            self.failure = ""
        except (OSError, NotImplementedError) as error:
            self._fail(getattr(error, "strerror", None) or str(error))

    def _remove_past(self) -> None:
        kept = {self.names[number] for asked in self._asked for number in asked}
        for path in [*self.folder.iterdir()]:
            if path.name.removesuffix(_UNFINISHED) in self._own - kept:
                if not path.name.endswith(_UNFINISHED):  # at once, for who looks whether it is whole
                    path = path.rename(f"{path}{_UNFINISHED}")
                shutil.rmtree(path)

    def _copy(self, number: int) -> None:
        shard, place = self.shards[number], self._place(number)
        if not shard.files or place.is_dir():
            return
        unfinished = place.with_name(place.name + _UNFINISHED)
        shutil.rmtree(unfinished, ignore_errors=True)
        try:
            unfinished.mkdir()
            for name, (_, digest) in shard.files.items():
                origin, copy = self.source / shard.name / name, unfinished / name
                shutil.copyfile(origin, copy)
                with open(copy, "rb") as file:
                    os.fsync(file.fileno())
                if content_digest([copy], "") != digest:
                    raise OSError(f"{origin} does not hold what was written: its hash is another")
            unfinished.rename(place)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def _fail(self, why: str) -> None:
        """Say once that something is not copied; training goes on, and reads it where it lies."""
        if self.failure != why:
            self.failure = why
            told = f"shards are not copied to '{self.folder}' ({why}); they are read where they lie, which may be slow"
            print(spoken(f"{WHERE}: {told}."), file=sys.stderr, flush=True)  # noqa: T201

    def _place(self, number: int) -> Path:
        return self.folder / self.names[number]

    @cached_property
    def names(self) -> list[str]:
        """What each shard's copy is called: by what its files hold, so that no other encoding's is taken for it."""
        return [f"{Path(one.name).name}-{_digest(one)}" for one in self.shards]

    @cached_property
    def _own(self) -> set[str]:
        return set(self.names)


def check_room(folder: Path, sources: Iterable[Sequence[Shard]], window: int) -> None:
    """Check that the copies can be made, and that the windows that are there at once fit on the disk.

    Args:
        folder: Where copies are kept; it is made.
        sources: The shards of each source.
        window: Shards of a window.

    Raises:
        ConfigError: They cannot, or do not.
    """
    needed, there = 0, 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{_LOCK}.try", timeout=60):
            free = shutil.disk_usage(folder).free
        for shards in sources:
            sizes = {_digest(one): sum(size for size, _ in one.files.values()) for one in shards}
            needed += sum(sorted(sizes.values())[-_WINDOWS * window :])
            there += sum(size for path in folder.iterdir() for digest, size in sizes.items() if digest in path.name)
    except (OSError, NotImplementedError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"nothing can be written to '{folder}': {why}.", where=WHERE) from None
    if needed > free + there:
        raise ConfigError(
            f"{_WINDOWS} windows of {window} shards are up to {needed / 1e9:,.2f} GB, and '{folder}' has "
            f"{(free + there) / 1e9:,.2f} GB free for them.",
            where=WHERE,
            fix="Choose a folder with more room, or a smaller data.shuffle_window.",
        )


def _digest(shard: Shard) -> str:
    told = "".join(f"{name}{size}{digest}" for name, (size, digest) in sorted(shard.files.items()))
    return blake2b(told.encode(), digest_size=8).hexdigest()
