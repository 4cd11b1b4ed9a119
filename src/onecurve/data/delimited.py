"""Rows of CSV and TSV files, with detection of quotes that would merge rows."""

import csv
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from onecurve.errors import DataError

_MAX_FIELD = 2**31 - 1  # the csv module's own limit is 128 KiB, less than a long document
_LIKE_ROWS = 20
"""Lines inside one field that all split into as many fields as its row: no text does that, an open quote does."""


class Split(NamedTuple):
    """One row: the line it begins on, and its fields or what is wrong with it."""

    line: int
    fields: list[str]
    fault: str = ""


def split_literally(file: Iterable[str], delimiter: str) -> Iterator[Split]:
    """Yield a row a line; quotes are characters like others."""
    csv.field_size_limit(_MAX_FIELD)
    lines = _Lines(file)
    reader = csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE)
    for fields in reader:
        yield Split(reader.line_num, fields)


def split_quoted(file: Iterable[str], delimiter: str, path: Path, trusts_quotes: bool) -> Iterator[Split]:
    """Yield rows whose fields may be enclosed in quotes and then hold delimiters, line breaks and doubled quotes.

    A quote that is wrong within its line spoils that row alone. One that reaches over lines leaves no way to tell
    where rows begin, and what was read up to there may be wrong too: the file is refused, whatever broken rows do.

    Args:
        file: Lines with their ends.
        delimiter: One character.
        path: For messages.
        trusts_quotes: Whether a field may hold many lines that look like rows.

    Raises:
        DataError: A quote that is never closed, that closes nothing, or that encloses rows.
    """
    csv.field_size_limit(_MAX_FIELD)
    lines = _Lines(file)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    width = 0
    while True:
        begin = lines.begin_row()
        fault = ""
        fields: list[str] = []
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            fault = str(error)
        width = width or len(fields)
        if lines.have_quotes:
            if problem := _misquoted(lines.taken, delimiter, fault) or (
                not trusts_quotes and not fault and _encloses_rows(lines.taken, delimiter, len(fields), width)
            ):
                fix = "Close or double that quote, or set data.quoting: none to read quotes as plain characters."
                raise DataError(problem, where=f"{path}, line {begin}", fix=fix)
        yield Split(begin, fields, fault and f"its quotes do not match: {fault}.")


def _misquoted(taken: list[str], delimiter: str, fault: str) -> str:
    """Return why the lines of a row, or what follows them, are not to be trusted; empty where they are."""
    if "unexpected end of data" in fault:
        return f"a quote opens a field here and is never closed, over {len(taken)} lines to the end of the file."
    over = f"a quote opens a field here that runs over {len(taken)} lines"
    is_even = taken[0].count('"') % 2 == 0
    if fault and len(taken) > 1:
        return f"{over} and does not end where its closing quote is: {fault}."
    if fault or (len(taken) == 1 and is_even):  # quotes that pair within a line do no harm beyond it
        return "" if is_even else f"quotes do not pair: {fault}."
    bare = _without_quoted("".join(taken), delimiter)
    if len(taken) > 1:
        return f"{over}, and then comes a quote inside a field that no quote opens." if '"' in bare else ""
    closing = [field for field in bare.split(delimiter) if field.endswith('"') and field.count('"') % 2]
    return f"a quote closes a field that none opens: {closing[0][-40:]!r}." if closing else ""


def _encloses_rows(taken: list[str], delimiter: str, num_fields: int, width: int) -> str:
    """Return what tells that a field over several lines is rows between two stray quotes; empty where it seems text."""
    like_rows = [line.count(delimiter) == width - 1 for line in taken[1:-1]]
    if len(taken) < 2 or width < 2 or not all(like_rows):
        return ""
    if num_fields == width and len(like_rows) < _LIKE_ROWS:
        return ""
    return (
        f"a quote opens a field here that runs over {len(taken)} lines, each of which looks like a row of its own "
        "(data.quoting: minimal takes them for text)."
    )


def are_quoted(file: Iterable[str], delimiter: str, path: Path) -> bool:
    """Whether a tab-separated file uses quotes as CSV does, and not as plain characters.

    Raises:
        DataError: It seems to do both, or lines may be one row or several and nothing tells.
    """
    csv.field_size_limit(_MAX_FIELD)
    lines = _Lines(file)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    signs = _Signs(delimiter)
    while True:
        begin = lines.begin_row()
        try:
            are_together = signs.read(begin, lines.taken, next(reader))
        except StopIteration:
            break
        except csv.Error:
            signs.plain, are_together = signs.plain or begin, False
        if not are_together:
            lines.give_back()
    if signs.are_mixed:
        places = sorted({signs.quoted, signs.plain, signs.either} - {0})
        raise DataError(
            f"it is ambiguous whether quotes enclose fields in this file (see line {' and '.join(map(str, places))}).",
            where=str(path),
            fix="Set data.quoting: minimal (they do, also over several lines) or none (they are plain characters).",
        )
    return bool(signs.quoted) or (not signs.plain and signs.are_likely)


class _Signs:
    """What the rows of a file, read as quoted, tell of its quotes; a line number is the first that says so, or 0."""

    def __init__(self, delimiter: str) -> None:
        self.delimiter = delimiter
        self.width = 0
        self.quoted = 0
        """A doubled quote, a field that only quotes can hold, or a first row all in quotes."""
        self.plain = 0
        """A quote out of place, or a row that has the right number of fields only where quotes are characters."""
        self.either = 0
        """Several lines that are one row in quotes, and a row each without."""
        self.comma_in_quotes = self.comma_outside = self.empty_in_quotes = False

    @property
    def are_mixed(self) -> bool:
        """Whether the signs are against each other, or there is none but that of rows that may be either."""
        by_itself = not self.quoted and (not self.plain or self.width < 2)
        return bool((self.quoted and self.plain) or (self.either and by_itself))

    @property
    def are_likely(self) -> bool:
        """Whether quotes enclose what spreadsheets quote too: commas everywhere, or nothing."""
        return self.empty_in_quotes or (self.comma_in_quotes and not self.comma_outside)

    def read(self, begin: int, taken: list[str], fields: list[str]) -> bool:
        """Take in a row that begins on this line; return whether the lines it was read from do belong together."""
        text, is_first = "".join(taken), not self.width
        self.width = self.width or len(fields)
        bare = _without_quoted(text, self.delimiter) if '"' in text else text
        self.comma_outside |= "," in bare
        if '"' not in text:
            return True
        enclosed = [field[1:-1] for field in _quoted(self.delimiter).findall(text)]
        fits_quoted = len(fields) == self.width
        fits_plain = all(line.count(self.delimiter) == self.width - 1 for line in taken)
        is_doubled, is_whole = any('"' in field for field in enclosed), is_first and len(enclosed) == len(fields)
        if '"' in bare or (fits_plain and not fits_quoted):
            self.plain = self.plain or begin
            return False
        if is_doubled or is_whole or (fits_quoted and not fits_plain):
            self.quoted = self.quoted or begin
        elif len(taken) > 1 and fits_plain:
            self.either = self.either or begin
        self.comma_in_quotes |= any("," in field for field in enclosed)
        self.empty_in_quotes |= "" in enclosed
        return fits_quoted


def _quoted(delimiter: str) -> re.Pattern[str]:
    """Match a field in quotes, where every row before it has been found whole."""
    mark = re.escape(delimiter)
    return re.compile(rf'(?:(?<={mark})|(?<=\A))"[^"]*(?:""[^"]*)*"(?={mark}|[\r\n]*\Z)')


def _without_quoted(text: str, delimiter: str) -> str:
    return _quoted(delimiter).sub("", text).rstrip("\r\n")


class _Lines:
    """Hands lines to a reader and remembers those of the row it is at."""

    def __init__(self, file: Iterable[str]) -> None:
        self._lines = iter(file)
        self._next = 1
        self.taken: list[str] = []
        self.have_quotes = False

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self._next += 1
        self.taken.append(line)
        if '"' in line:
            self.have_quotes = True
        return line

    def begin_row(self) -> int:
        """Forget the lines of the row before; return the number of the next line."""
        self.taken.clear()
        self.have_quotes = False
        return self._next

    def give_back(self) -> None:
        """Take back the row's lines but the first."""
        self._lines = chain(self.taken[1:], self._lines)
        self._next -= len(self.taken) - 1
