"""Checks every row before anything is encoded: invalid rows are counted, or end the run."""

import hashlib
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Any

from onecurve.data.rows import Broken, Located
from onecurve.data.sources import Source
from onecurve.errors import DataError
from onecurve.tasks.base import BadRow, Row, Survey, Task

_PLACES_KEPT = 5
_ROWS_LOOKED_AT = 10_000
"""How far to look for a row that can be used, before skipping those that cannot is no advice."""


@dataclass
class Report:
    """Counts of a split's rows by outcome."""

    rows: int = 0
    """Rows read, usable or not."""
    not_chosen: int = 0
    """Rows of the data that the split leaves to others or to nobody: `reason` says why."""
    reason: str = ""
    skipped: int = 0
    """Broken rows left out (`data.on_bad_row: skip`)."""
    truncated: int = 0
    """Examples cut to the maximal length."""
    dropped: int = 0
    """Examples left out for their length."""
    empty: int = 0
    """Rows with nothing to learn from."""
    label_counts: dict[str, int] = field(default_factory=dict)
    """Usable rows, or words, that have each label."""
    skipped_places: list[str] = field(default_factory=list)
    """Place and reason of the first few broken rows."""
    tally: dict[str, int] = field(default_factory=dict)
    """What the task counts among its examples: phrase -> how often."""

    def note(self, tally: Mapping[str, int]) -> None:
        """Add what the task says of an example."""
        for phrase, count in tally.items():
            self.tally[phrase] = self.tally.get(phrase, 0) + count

    def add(self, other: "Report") -> "Report":
        """Return the sum of two reports on the same split."""
        return Report(
            self.rows + other.rows,
            self.not_chosen + other.not_chosen,
            self.reason or other.reason,
            self.skipped + other.skipped,
            self.truncated + other.truncated,
            self.dropped + other.dropped,
            self.empty + other.empty,
            dict(Counter(self.label_counts) + Counter(other.label_counts)),
            (self.skipped_places + other.skipped_places)[:_PLACES_KEPT],
            dict(Counter(self.tally) + Counter(other.tally)),
        )


@dataclass(frozen=True)
class RowChecker:
    """One split's rows, held against the task."""

    source: Source
    task: Task
    skips: bool
    """Whether a broken row is left out; otherwise it is an error."""

    def usable(self, report: Report, survey: Survey | None) -> Iterator[Located]:
        """Yield the rows that can be used, and count the others.

        Args:
            report: Is added to as rows are read.
            survey: What training told, for a split whose labels must be among it.

        Raises:
            DataError: A broken row that must not be skipped, or nothing usable at all.
        """
        rows, selection = self.source.rows(), self.source.selection
        for found in rows:
            report.rows += 1
            bad = self._fault(found)
            if bad is not None:
                helps = self.skips or report.rows > 1 or self._any_usable(islice(rows, _ROWS_LOOKED_AT))
                self.refuse(bad, report, skipping_helps=helps)
            elif isinstance(found, Located):
                self._count_labels(found, report, survey)
                yield found
        if selection:
            report.not_chosen, report.reason = self.source.num_rows - report.rows, selection.reason
        if not report.rows:
            raise DataError(f"'{self.source.spec}' has no rows.", where=self.source.key)
        if report.skipped == report.rows:
            raise DataError(
                f"all {report.rows} rows of '{self.source.spec}' are invalid; the first: {report.skipped_places[0]}",
                where=self.source.key,
            )

    def refuse(self, bad: Broken, report: Report, skipping_helps: bool = True) -> None:
        """Count a broken row, or raise `DataError` for it."""
        reason = _sentence(bad.reason)
        if not self.skips:
            advice = "(data.on_bad_row: skip would skip such rows.)" if skipping_helps else ""
            raise DataError(reason, where=bad.place, fix=advice)
        report.skipped += 1
        if len(report.skipped_places) < _PLACES_KEPT:
            report.skipped_places.append(f"{bad.place}: {reason}")

    def _count_labels(self, found: Located, report: Report, survey: Survey | None) -> None:
        try:
            if survey is not None:
                self.task.check_label(found.row, survey)
        except BadRow as error:
            if self.source.split == "train":
                told = (
                    "The labels are those of the encoded shards beside it: encode them with all of them in task.labels."
                )
                raise DataError(_sentence(f"{error}"), where=found.place, fix=told) from None
            raise DataError(
                _sentence(f"{error}"),
                where=found.place,
                fix="Add it to task.labels, so that such rows count as wrong, or remove them. data.on_bad_row does not "
                "skip them: without them the score would be too good.",
            ) from None
        for name in self.task.row_labels(found.row):
            report.label_counts[name] = report.label_counts.get(name, 0) + 1

    def _any_usable(self, rows: Iterable[Located | Broken]) -> bool:
        return any(self._fault(found) is None for found in rows)

    def _fault(self, found: Located | Broken) -> Broken | None:
        if isinstance(found, Broken):
            return found
        try:
            self.task.check(found.row)
        except BadRow as error:
            return Broken(found.place, str(error))
        return None


@dataclass(frozen=True)
class Looked:
    """What was seen of a split's usable rows."""

    sample: list[Row] = field(default_factory=list)
    """Rows number 0, 1, 2, 4, 8, ..."""
    files: Any = field(default_factory=lambda: hashlib.blake2b(digest_size=16))
    """A hash over the content of every file that rows refer to, in their order."""

    def at(self, usable: Iterator[Located], media: Iterable[str]) -> Iterator[Row]:
        """Yield the rows, and note what is to be known of them.

        Args:
            usable: The rows.
            media: Their columns that hold files.
        """
        for number, located in enumerate(usable):
            if not number & (number - 1):
                self.sample.append(located.row)
            for column in media:
                self.files.update(located.row.get(column, {}).get("digest", "").encode() + b" ")
            yield located.row


def check_splits(
    checkers: Mapping[str, RowChecker], known: Survey | None = None
) -> tuple[Survey, dict[str, Report], dict[str, Looked]]:
    """Read every row of every split once; needs no tokenizer.

    Args:
        checkers: By split.
        known: What training data told that is not among them.

    Returns:
        What the training split told; and by split a report and what was seen of its usable rows.

    Raises:
        DataError: A broken row that must not be skipped, or a split with nothing usable.
    """
    reports = {name: Report() for name in checkers}
    looked = {name: Looked() for name in checkers}
    training = {name: checker for name, checker in checkers.items() if checker.source.split == "train"}
    survey = known or _surveyed(training, reports, looked)
    for name, checker in checkers.items():
        if known or name not in training:
            deque(looked[name].at(checker.usable(reports[name], survey), checker.task.media), maxlen=0)
    if known and survey.label_counts:
        more = sum((Counter(reports[name].label_counts) for name in training), Counter[str]())
        counts = zip(survey.labels, survey.label_counts, strict=True)
        survey = replace(survey, label_counts=[count + more.get(name, 0) for name, count in counts])
    return survey, reports, looked


def _surveyed(
    training: Mapping[str, RowChecker], reports: Mapping[str, Report], looked: Mapping[str, Looked]
) -> Survey:
    task = next(iter(training.values())).task
    usable = chain.from_iterable(
        looked[name].at(checker.usable(reports[name], None), task.media) for name, checker in training.items()
    )
    try:
        survey = task.survey(usable)
    except BadRow as error:
        raise DataError(str(error), where="data.train") from None
    for names in (names for checker in training.values() for names in checker.source.declared_labels()):
        survey = survey.in_dataset_order(names)
    deque(usable, maxlen=0)  # a task that asks nothing has not read them
    if survey.labels and not survey.label_counts:
        counts = sum((Counter(reports[name].label_counts) for name in training), Counter[str]())
        survey = replace(survey, label_counts=[counts.get(name, 0) for name in survey.labels])
    return survey


def _sentence(reason: str) -> str:
    return reason if reason.endswith((".", "?", "!")) else f"{reason}."
