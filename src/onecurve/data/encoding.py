"""From rows to examples: each split is checked, encoded once, and then read from the cache."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from onecurve.config import DataSection, refuse_without_effect
from onecurve.content.rewording import TEXTS
from onecurve.data.cache import cache_root, get_or_write
from onecurve.data.cache_key import content_key, located, processor_digest, sample_digest, with_texts
from onecurve.data.checked import check_once
from onecurve.data.checking import Report, RowChecker
from onecurve.data.collation import Collation
from onecurve.data.collation_workers import CollationWorkers, num_workers
from onecurve.data.examples import ROW, Examples, record_batches, write_batches
from onecurve.data.prompts import read_prompts
from onecurve.data.rows import Broken, Located
from onecurve.data.sources import open_splits, refuse_unread
from onecurve.data.splits import Data, Split, joined
from onecurve.data.workers import in_order
from onecurve.errors import DataError
from onecurve.tasks.base import (
    TALLY,
    Annotates,
    BadRow,
    Example,
    Processing,
    Recognises,
    Rewords,
    RollsOut,
    Row,
    Survey,
    Task,
)

_ROWS_LOOKED_AT = 10_000
"""How far a refusal looks on to say how many rows are too long."""
_PART_ROWS, _PART_CHARACTERS = 1000, 1 << 18
"""What is encoded at a time, whichever is reached first: a quarter of a second's work, more than starting processes."""


def load_data(settings: DataSection, task: Task, reading: Processing, seed: int) -> Data:
    """Check every row of every split, then read its examples from the cache or encode them.

    Args:
        settings: The recipe's data section.
        task: Knows what a row must hold and how it is encoded.
        reading: Loads the processor when it is first asked for: once every row is known to be good.
        seed: Of the run; draws the rows of a share and of `data.max_samples`.

    Raises:
        UserError: An invalid setting, file, row or label; a cache that cannot be written.
    """
    shapes = task.shapes.values() if isinstance(task, Recognises) else ()
    sources = open_splits(settings, task.columns, shapes, task.media, seed)
    refuse_unread(settings, sources.values())
    refuse_without_effect({"task": task.settings}, task.without_effect(reading))
    checkers = {name: RowChecker(source, task, settings.on_bad_row == "skip") for name, source in sources.items()}
    stamps = {name: checker.source.stamp() for name, checker in checkers.items()}
    root = cache_root(settings.cache_dir)
    checked = check_once(root, checkers, task)
    survey = checked.survey.in_model_order(reading.labels)
    if isinstance(task, Annotates):
        task.check_other_model(reading, survey)
    encoder = _Encoder(task, survey, reading, settings.on_long, settings.on_bad_row)
    processor_hash = processor_digest(reading.processor)  # before any call: a tokenizer remembers its latest one
    parts, keys, hits = {}, {}, []
    for name, checker in checkers.items():
        hashes = checked.digests[name], sample_digest(checked.samples[name], encoder.encode_whole), processor_hash
        training = checker.source.split == "train"
        texts = task.reworded if training and task.augmentation and isinstance(task, Rewords) else ()
        key = content_key(*hashes, task, survey, checker.source.settings, reading.max_length)
        keys[name] = with_texts(key, texts)
        writing = _Writing(replace(encoder, texts=texts), checker, None if training else survey, stamps[name])
        about = {"split": name, "data": checker.source.spec, "task": type(task).__module__}
        entry = get_or_write(root, located(keys[name], checker.source.location()), writing.write, about)
        report = checked.reports[name].add(Report(**entry.counts))
        examples, source = Examples(entry.folder), checker.source
        prompts = read_prompts(source, examples, task, survey, reading) if not training else []
        each = task.completions if isinstance(task, RollsOut) and training else 1
        parts[name] = Split(
            name, report, examples, source.use, source, stamps[name], prompts, key=keys[name], each=each
        )
        hits.append(entry.is_hit)
    splits = _join(parts)
    if count := num_workers(settings.workers, task):
        # Training draws from all of its sources at once, and each set is scored apart
        loaded = {"train": splits["train"]} | {n: part for n, part in parts.items() if not n.startswith("train")}
        workers = CollationWorkers(count, {name: Collation(one, task, reading) for name, one in loaded.items()})
        splits = _join({name: replace(one, workers=workers) for name, one in parts.items()})
    return Data(
        train=splits["train"],
        eval=splits.get("eval"),
        test=splits.get("test"),
        survey=survey,
        fingerprint=splits["train"].key,
        max_length=reading.max_length,
        cached=all(hits),
    )


def _join(parts: Mapping[str, Split]) -> dict[str, Split]:
    of_splits: dict[str, list[Split]] = {}
    for name, part in parts.items():
        of_splits.setdefault(name.partition("/")[0], []).append(part)
    return {name: joined(name, together) for name, together in of_splits.items()}


@dataclass
class _Part:
    """What encoding some of a split's rows gave."""

    num_rows: int
    batches: list[pa.RecordBatch] = field(default_factory=list)
    report: Report = field(default_factory=Report)
    bad: list[Broken] = field(default_factory=list)
    """Rows that the task could not use after all."""
    too_long: tuple[int, int] | None = None
    """Number in the part, and tokens, of a row that must not be so long."""


@dataclass(frozen=True)
class _Encoder:
    """A task's `encode` with everything it needs but the row."""

    task: Task
    survey: Survey
    reading: Processing
    on_long: str
    on_bad_row: str
    texts: Sequence[str] = ()
    """The columns whose texts examples keep, to be changed in training."""

    def encode_part(self, rows: list[Located]) -> _Part:
        """Encode rows that belong together, up to the first that ends the run."""
        part = _Part(len(rows))
        part.batches = list(record_batches(self._examples(rows, part), self._measure))
        return part

    def _measure(self, example: Example) -> tuple[int, int]:
        return self.task.length(example), self.task.num_tokens(example)

    def _examples(self, rows: list[Located], part: _Part) -> Iterator[Example]:
        for number, row in enumerate(rows):
            try:
                for example in self.encode(row, part.report):
                    assert ROW not in example, f"the key '{ROW}' is the cache's own"
                    yield {**example, **self._kept_texts(row.row), ROW: row.number}
            except BadRow as error:
                part.bad.append(Broken(row.place, str(error)))
                if self.on_bad_row != "skip":
                    return
            except _TooLong as error:
                part.too_long = number, error.args[0]
                return

    def _kept_texts(self, row: Row) -> Example:
        texts = {column: row[column] for column in self.texts if row.get(column) is not None}
        return {TEXTS: json.dumps(texts, ensure_ascii=False)} if self.texts else {}

    def encode(self, row: Located, report: Report) -> list[Example]:
        """Encode one row and do with what is too long as the recipe says.

        Raises:
            BadRow: The task cannot use the row after all.
            _TooLong: An example is too long and must not be.
        """
        examples = self.encode_whole(row.row)
        limit = self.task.limit(self.reading).length
        fitting = [example for example in examples if self.task.length(example) <= limit]
        num_long = len(examples) - len(fitting)
        if num_long and self.on_long == "error":
            raise _TooLong(max(map(self.task.length, examples)))
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


class _TooLong(Exception):
    """Its argument is the length."""


@dataclass(frozen=True)
class _Writing:
    """The encoding of one split, done only where the cache does not hold it."""

    encoder: _Encoder
    checker: RowChecker
    survey: Survey | None
    stamp: tuple[str, ...]

    def write(self, folder: Path) -> dict[str, Any]:
        """Encode the split into a folder and return the counts that only encoding tells.

        Raises:
            DataError: An example that is too long, no example left, or data that changed meanwhile.
        """
        report = Report()
        count = write_batches(folder, self._batches(report))
        source = self.checker.source
        if source.stamp() != self.stamp:
            raise DataError(f"'{source.spec}' changed while it was read.", where=source.key, fix="Launch again.")
        if not count:
            raise DataError(
                f"no example is left of '{source.spec}': {report.empty} rows with nothing to learn from, "
                f"{report.dropped} examples too long, {report.skipped} invalid rows.",
                where=source.key,
            )
        return asdict(report)

    def _batches(self, report: Report) -> Iterator[pa.RecordBatch]:
        before = 0
        for part in in_order(self.encoder.encode_part, _parts(self._rows())):
            for bad in part.bad:
                self.checker.refuse(bad, report)
            if part.too_long:
                number, length = part.too_long
                raise self._refusal(before + number, length)
            report.truncated += part.report.truncated
            report.dropped += part.report.dropped
            report.empty += part.report.empty
            report.note(part.report.tally)
            before += part.num_rows
            yield from part.batches

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
