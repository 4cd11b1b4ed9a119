"""Encoded shards: their index, and their examples and numbers, read a few shards at a time."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from onecurve.config import SHARDS
from onecurve.data.checked import survey_of
from onecurve.data.checking import Report
from onecurve.data.examples import Examples
from onecurve.data.files import content_digest
from onecurve.data.rows import ColumnUse
from onecurve.data.shard import Shard
from onecurve.data.staging import Staging
from onecurve.errors import ConfigError
from onecurve.machine.atomic_write import write_atomically
from onecurve.tasks.base import Example, Row, Survey

_LAYOUT = 1
"""Raised whenever what the index holds changes."""


@dataclass(frozen=True)
class Encoding:
    """What a folder of shards holds, and everything that they depend on."""

    key: str
    """That of the same examples in the cache."""
    parts: Mapping[str, Any]
    """What the key was made from: `content_parts`."""
    sample: list[Row]
    """A few rows, by which it is told whether the same code still encodes alike; long text is cut."""
    survey: Mapping[str, Any]
    columns: Mapping[str, Any]
    spec: str
    """The data that was encoded."""
    shard_size: int


@dataclass(frozen=True)
class ShardIndex:
    """The index of a folder of shards, which is written last."""

    folder: Path
    encoding: Encoding
    report: Report
    shards: tuple[Shard, ...] = ()
    """None yet where the encoding has not finished."""

    @classmethod
    def read(cls, folder: Path) -> "ShardIndex":
        """Read the index of a folder.

        Raises:
            ConfigError: It is damaged, or of another version of onecurve.
        """
        path = folder / SHARDS
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values["layout"] != _LAYOUT:
                raise ConfigError(
                    f"was written by another version of onecurve (layout {values['layout']}, this one reads "
                    f"{_LAYOUT}).",
                    where=str(path),
                    fix="Encode the data again.",
                )
            encoding = Encoding(**values["encoding"])
            return cls(folder, encoding, Report(**values["report"]), tuple(Shard(**one) for one in values["shards"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"cannot be read: {error!r}.", where=str(path), fix="Copy it again.") from None

    def write(self) -> None:
        """Write it in one step."""
        values = {
            "layout": _LAYOUT,
            "encoding": asdict(self.encoding),
            "report": asdict(self.report),
            "shards": [asdict(shard) for shard in self.shards],
        }
        write_atomically(self.folder / SHARDS, json.dumps(values))

    @property
    def survey(self) -> Survey:
        """What the rows told."""
        return survey_of(self.encoding.survey)

    @property
    def columns(self) -> ColumnUse:
        """Which columns the rows had."""
        values = self.encoding.columns
        return ColumnUse(values["read"], values["unread"], set(values["known"]))

    def changed(self, shards: Sequence[Shard]) -> str:
        """Name the first of the shards whose files are not there in full, and what is wrong; empty if none is.

        Only sizes are compared.
        """
        for shard in shards:
            for name, (size, _) in shard.files.items():
                path = self.folder / shard.name / name
                try:
                    found = path.stat().st_size
                except OSError as error:
                    return f"{path}: {error.strerror}"
                if found != size:
                    return f"{path} has {found:,} bytes, and the index says {size:,}"
        return ""

    def altered(self, shards: Sequence[Shard]) -> str:
        """Name the first of their files whose content is not what was written; empty if none is. Reads every byte."""
        for shard in shards:
            for name, (_, digest) in shard.files.items():
                path = self.folder / shard.name / name
                if content_digest([path], "") != digest:
                    return f"{path} does not hold what was written: its hash is another"
        return ""


class Numbers:
    """One number of each example (or one for each term of the loss), read from the shards when it is asked for."""

    def __init__(self, shards: "ShardedExamples", name: str) -> None:
        self._shards, self._name = shards, name

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, ids: Any) -> Any:
        """Return those of one example, or of several: int32 [examples], or [examples, terms]."""
        asked = np.atleast_1d(np.asarray(ids))
        places, owners = self._shards.placed(asked)
        found: np.ndarray | None = None
        for owner in np.unique(owners).tolist():
            own = owners == owner
            numbers = getattr(self._shards.shard(owner), self._name)[places[own]]
            if found is None:
                found = np.empty((len(asked), *numbers.shape[1:]), numbers.dtype)
            found[own] = numbers
        assert found is not None, "no example asked for"
        return found if np.ndim(ids) else found[0]

    def sum(self, axis: int | None = None) -> Any:
        """Return the sum over all examples, which the index holds: int64 [], or [terms] along axis 0."""
        return np.sum([np.asarray(getattr(shard, self._name)) for shard in self._shards.shards], axis=axis)


class Lengths(Numbers):
    """The lengths, of which the index holds the extremes."""

    def argmax(self) -> int:
        """Return the longest example; of several, the first."""
        longest = [shard.longest[0] for shard in self._shards.shards]
        return self._shards.number(int(np.argmax(longest)), lambda shard: shard.longest)

    def argmin(self) -> int:
        """Return the shortest example; of several, the first."""
        shortest = [shard.shortest[0] for shard in self._shards.shards]
        return self._shards.number(int(np.argmin(shortest)), lambda shard: shard.shortest)

    def max(self) -> int:
        """Return the length of the longest example."""
        return max(shard.longest[0] for shard in self._shards.shards)


class ShardedExamples:
    """The examples of a folder of shards, one shard after the other; as `Examples`, but with a few shards open."""

    def __init__(self, folder: Path, shards: Sequence[Shard], held: int | None, stage_to: Path | None = None) -> None:
        """Open none yet.

        Args:
            folder: Of the shards.
            shards: In the order of their ids.
            held: How many may be open at once; None: all.
            stage_to: Where they are copied to, a window ahead; None: they are only read where they lie.
        """
        self.folder, self.shards, self.held, self.stage_to = folder, shards, held, stage_to
        self.staging = Staging(stage_to, folder, shards) if stage_to else None
        self.shard: Callable[[int], Examples] = lru_cache(maxsize=held)(
            self.staging.opened if self.staging else self._open
        )
        self.lengths = Lengths(self, "lengths")
        self.num_tokens, self.num_items = Numbers(self, "num_tokens"), Numbers(self, "num_items")

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to a worker process with no shard open."""
        return ShardedExamples, (self.folder, self.shards, self.held, self.stage_to)

    def _open(self, number: int) -> Examples:
        return Examples(self.folder / self.shards[number].name)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(index)
        (place,), (owner,) = self.placed(np.array([index]))
        return self.shard(int(owner))[int(place)]

    def placed(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the place of each example in its shard, and the shard."""
        owners = np.searchsorted(self._ends, ids, side="right")
        return ids - self._starts[owners], owners

    def number(self, shard: int, of: Callable[[Shard], list[int]]) -> int:
        """Return the id of a shard's shortest or longest example."""
        return int(self._starts[shard]) + of(self.shards[shard])[1]

    def counts(self, name: str, size: int) -> np.ndarray:
        """Count the values 0 to size - 1 of a key that holds whole numbers or lists of them: int64 [size]."""
        total = np.zeros(size, np.int64)
        for number in range(len(self.shards)):
            total += self._open(number).counts(name, size)
        return total

    def optional(self) -> list[int]:
        """Return, for each key that only some examples have, the first one with it and the first without."""
        firsts: dict[str, list[int | None]] = {name: [None, None] for shard in self.shards for name in shard.presence}
        for name, first in firsts.items():
            for start, shard in zip(self._starts.tolist(), self.shards, strict=True):
                for state, place in enumerate(shard.presence.get(name, [None, 0])):
                    if first[state] is None and place is not None:
                        first[state] = start + place
        return [number for first in firsts.values() if None not in first for number in first if number is not None]

    def short_and_middle(self) -> list[int]:
        """Return the shortest example, and one of middle length: of the first shard, so that no other need be read."""
        return [self.lengths.argmin(), self._open(0).short_and_middle()[1]]

    def longest(self, count: int) -> np.ndarray:
        """Return the longest examples, in the order of their lengths: int64 [count]."""
        ids = lengths = np.empty(0, np.int64)
        for number in sorted(range(len(self.shards)), key=lambda number: -self.shards[number].longest[0]):
            if len(ids) == count and self.shards[number].longest[0] < lengths[0]:
                break  # nor has any shard after it a longer one
            own = self._open(number)
            places = own.longest(count)
            ids, lengths = np.append(ids, self._starts[number] + places), np.append(lengths, own.lengths[places])
            order = np.lexsort((ids, lengths))[-count:]
            ids, lengths = ids[order], lengths[order]
        return ids

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([shard.examples for shard in self.shards], dtype=np.int64)

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.append(0, self._ends[:-1])
