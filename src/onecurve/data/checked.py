"""What checking every row told, kept so that a start whose files have not changed reads none of them.

A file counts as unchanged while its size, inode and times of last write and last change are what they were: see
`file_stamp`. What is kept was read at least 20 ms after these were taken, more than a clock tick, so that no later
write leaves them as they are.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from time import sleep
from typing import Any

import onecurve
from onecurve.data.cache import get_or_write
from onecurve.data.cache_key import SETTINGS, cut_row, task_identity
from onecurve.data.checking import Looked, Report, RowChecker, check_splits
from onecurve.data.rows import ColumnUse
from onecurve.data.sources import Source
from onecurve.errors import DataError
from onecurve.tasks.base import Row, Survey, Task

_CLOCK_TICK = 0.02
"""Seconds; file times are as fine as the kernel's clock, 10 ms at most."""
_READERS = ("content", "data", "tasks")
"""The packages whose code decides what is told of rows."""


@dataclass(frozen=True)
class Checked:
    """What is known of every row of every split, by split."""

    survey: Survey
    reports: dict[str, Report]
    samples: dict[str, list[Row]]
    """A few of the usable rows, long text cut."""
    digests: dict[str, str]
    """A hash of each split's data."""
    uses: dict[str, ColumnUse]

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> "Checked":
        """Return what `values` wrote."""
        return cls(
            survey_of(values["survey"]),
            {name: Report(**report) for name, report in values["reports"].items()},
            values["samples"],
            values["digests"],
            {name: ColumnUse(use["read"], use["unread"], set(use["known"])) for name, use in values["uses"].items()},
        )

    def values(self) -> dict[str, Any]:
        """Return it as values for JSON."""
        uses = {name: asdict(use) | {"known": sorted(use.known)} for name, use in self.uses.items()}
        reports = {name: asdict(report) for name, report in self.reports.items()}
        return asdict(self) | {"reports": reports, "uses": uses}


class _NotPlain(Exception):
    """Its argument cannot be kept as JSON."""


def check_once(root: Path, checkers: Mapping[str, RowChecker], task: Task, known: Survey | None = None) -> Checked:
    """Check every row of every split, or read what an earlier start with the same files kept.

    Of processes that start together one reads the rows, and the others wait for it.

    Args:
        root: The cache folder.
        checkers: By split.
        task: Whose rows they are.
        known: What training data told that is not among them.

    Raises:
        DataError: As `check_splits` does, or files that changed while they were read.
    """
    sources = {name: checker.source for name, checker in checkers.items()}
    stamps = {name: source.stamp() for name, source in sources.items()}

    def write(_: Path) -> dict[str, Any]:
        sleep(_CLOCK_TICK)
        found = _check(checkers, known)
        for name, source in sources.items():
            if source.stamp() != stamps[name]:
                raise DataError(f"'{source.spec}' changed while it was read.", where=source.key, fix="Launch again.")
        values = found.values()
        try:
            is_plain = json.loads(json.dumps(values)) == values
        except (TypeError, ValueError):
            is_plain = False
        if not is_plain:  # dates and bytes, which Parquet has: read again at each start
            raise _NotPlain(found)
        return values

    about = {"rows": ", ".join(source.spec for source in sources.values()), "task": type(task).__module__}
    try:
        entry = get_or_write(root, f"rows-{_key(sources, stamps, task, known)}", write, about)
    except _NotPlain as error:
        (found,) = error.args
        return found
    found = Checked.read(entry.counts)
    for name, source in sources.items():
        source.use.restore(found.uses[name])
    return found


def _check(checkers: Mapping[str, RowChecker], known: Survey | None) -> Checked:
    survey, reports, looked = check_splits(checkers, known)
    return Checked(
        survey,
        reports,
        {name: [cut_row(row) for row in seen.sample] for name, seen in looked.items()},
        {name: _digest(checker.source, looked[name]) for name, checker in checkers.items()},
        {name: checker.source.use for name, checker in checkers.items()},
    )


def _digest(source: Source, looked: Looked) -> str:
    return f"{source.digest()} {looked.files.hexdigest()}" if source.media else source.digest()


def _key(sources: Mapping[str, Source], stamps: Mapping[str, tuple[str, ...]], task: Task, known: Survey | None) -> str:
    read = lambda source: source.asked.model_dump(include={*SETTINGS, "hub_config"})  # noqa: E731
    splits = {
        name: [source.spec, [part.name for part in source.parts], stamps[name], repr(source.selection), read(source)]
        for name, source in sources.items()
    }
    parts = {
        "code": _code(),
        "splits": splits,
        "location": {name: source.location() for name, source in sources.items()},
        **task_identity(task),
        **({"known": asdict(known)} if known else {}),
    }
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()


@cache
def _code() -> str:
    """Return a hash of the code that reads and checks rows."""
    root, digest = Path(onecurve.__file__).parent, hashlib.blake2b(digest_size=16)
    for package in _READERS:
        for path in sorted((root / package).glob("*.py")):
            content = path.read_bytes()
            digest.update(f"{package}/{path.name} {len(content)} ".encode() + content)
    return digest.hexdigest()


def survey_of(values: Mapping[str, Any]) -> Survey:
    """Return the survey that `dataclasses.asdict` made these values of."""
    return Survey(**{**values, "heads": {name: survey_of(head) for name, head in values.get("heads", {}).items()}})
