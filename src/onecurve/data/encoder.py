"""Encodes the rows of a split, on all cores, and says what became of them."""

import json
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from onecurve.content.rewording import TEXTS
from onecurve.data.checking import Report, RowChecker
from onecurve.data.examples import ROW, record_batches, write_batches
from onecurve.data.rows import Broken, Located
from onecurve.data.workers import in_order
from onecurve.errors import DataError
from onecurve.tasks.base import TALLY, BadRow, Example, Processing, Row, Survey, Task

_ROWS_LOOKED_AT = 10_000
"""How far a refusal looks on to say how many rows are too long."""
_PART_ROWS, _PART_CHARACTERS = 1000, 1 << 18
"""What is encoded at a time, whichever is reached first: a quarter of a second's work, more than starting processes."""


@dataclass
class Part:
    """What encoding some of a split's rows gave."""

    num_rows: int
    batches: list[pa.RecordBatch] = field(default_factory=list)
    report: Report = field(default_factory=Report)
    bad: list[Broken] = field(default_factory=list)
    """Rows that the task could not use after all."""
    too_long: tuple[int, int] | None = None
    """Number in the part, and tokens, of a row that must not be so long."""


@dataclass(frozen=True)
class Encoder:
    """A task's `encode` with everything it needs but the row."""

    task: Task
    survey: Survey
    reading: Processing
    on_long: str
    on_bad_row: str
    texts: Sequence[str] = ()
    """The columns whose texts examples keep, to be changed in training."""

    def encode_part(self, rows: list[Located]) -> Part:
        """Encode rows that belong together, up to the first that ends the run."""
        part = Part(len(rows))
        part.batches = list(record_batches(self._examples(rows, part), self._measure))
        return part

    def _measure(self, example: Example) -> tuple[int, int]:
        return self.task.length(example), self.task.num_tokens(example)

    def _examples(self, rows: list[Located], part: Part) -> Iterator[Example]:
        for number, row in enumerate(rows):
            try:
                for example in self.encode(row, part.report):
                    assert ROW not in example, f"the key '{ROW}' is the cache's own"
                    yield {**example, **self._kept_texts(row.row), ROW: row.number}
            except BadRow as error:
                part.bad.append(Broken(row.place, str(error)))
                if self.on_bad_row != "skip":
                    return
            except TooLong as error:
                part.too_long = number, error.args[0]
                return

    def _kept_texts(self, row: Row) -> Example:
        texts = {column: row[column] for column in self.texts if row.get(column) is not None}
        return {TEXTS: json.dumps(texts, ensure_ascii=False)} if self.texts else {}

    def encode(self, row: Located, report: Report) -> list[Example]:
        """Encode one row and do with what is too long as the recipe says.

        Raises:
            BadRow: The task cannot use the row after all.
            TooLong: An example is too long and must not be.
        """
        examples = self.encode_whole(row.row)
        limit = self.task.limit(self.reading).length
        fitting = [example for example in examples if self.task.length(example) <= limit]
        num_long = len(examples) - len(fitting)
        if num_long and self.on_long == "error":
            raise TooLong(max(map(self.task.length, examples)))
        if num_long and self.on_long == "truncate":
            fitting = self._encode(row.row, truncate=True)
            assert all(self.task.length(example) <= limit for example in fitting), "the task did not truncate"
            report.truncated += num_long if fitting else 0
            num_long = 0
        report.dropped += num_long
        report.empty += not fitting and not num_long
        for example in fitting:
            report.note(example.pop(TALLY, {}))
        return fitting

    def longest(self, row: Located) -> int:
        """Return the length of a row's longest example."""
        return max(map(self.task.length, self.encode_whole(row.row)), default=0)

    def encode_whole(self, row: Row) -> list[Example]:
        """Encode one row, however long what it becomes."""
        return self._encode(row, truncate=False)

    def _encode(self, row: Row, truncate: bool) -> list[Example]:
        return self.task.encode(row, self.survey, self.reading, truncate)


class TooLong(Exception):
    """Its argument is the length."""


@dataclass(frozen=True)
class SplitEncoding:
    """The encoding of one split, done only where the cache does not hold it."""

    encoder: Encoder
    checker: RowChecker
    survey: Survey | None
    stamp: tuple[str, ...]

    def write(self, folder: Path) -> dict[str, Any]:
        """Encode the split into a folder and return the counts that only encoding tells.

        Raises:
            DataError: An example that is too long, no example left, or data that changed meanwhile.
        """
        report = Report()

        def batches() -> Iterator[pa.RecordBatch]:
            nonlocal report
            for part in self.parts():
                report = report.add(part.report)
                yield from part.batches

        self.check_written(write_batches(folder, batches()), report)
        return asdict(report)

    def check_written(self, num_examples: int, report: Report) -> None:
        """Refuse data that changed meanwhile, or of which no example is left.

        Raises:
            DataError: It is so.
        """
        source = self.checker.source
        if source.stamp() != self.stamp:
            raise DataError(f"'{source.spec}' changed while it was read.", where=source.key, fix="Launch again.")
        if not num_examples:
            raise DataError(
                f"no example is left of '{source.spec}': {report.empty} rows with nothing to learn from, "
                f"{report.dropped} examples too long, {report.skipped} invalid rows.",
                where=source.key,
            )

    def parts(self, start: int = 0) -> Generator[Part, None, None]:
        """Yield the usable rows from number `start` on, encoded. How they are cut depends on nothing before `start`.

        Raises:
            DataError: An example that is too long, or a row that the task cannot use after all.
        """
        before = start
        for part in in_order(self.encoder.encode_part, _parts(islice(self._rows(), start, None))):
            for bad in part.bad:
                self.checker.refuse(bad, part.report)
            if part.too_long:
                number, length = part.too_long
                raise self._refusal(before + number, length)
            before += part.num_rows
            yield part

    def _rows(self) -> Iterator[Located]:
        return self.checker.usable(Report(), self.survey)

    def _refusal(self, before: int, length: int) -> DataError:
        limit = self.encoder.task.limit(self.encoder.reading)
        rows = islice(self._rows(), before, None)
        row, seen, num_long = next(rows), before + 1, 1
        for other in islice(rows, _ROWS_LOOKED_AT):
            seen += 1
            with suppress(BadRow):
                num_long += self.encoder.longest(other) > limit.length
        return DataError(
            f"has {length} {limit.unit}, more than the maximum of {limit.length} "
            f"({limit.key or 'the model reads no more'}); so have {num_long} of the first {seen} rows.",
            where=row.place,
            fix="Set data.on_long to truncate or drop" + (f", or raise {limit.key}." if limit.key else "."),
        )


def _parts(rows: Iterator[Located]) -> Iterator[list[Located]]:
    part: list[Located] = []
    characters = 0
    for row in rows:
        part.append(row)
        characters += sum(len(value) for value in row.row.values() if isinstance(value, str))
        if len(part) == _PART_ROWS or characters >= _PART_CHARACTERS:
            yield part
            part, characters = [], 0
    if part:
        yield part
