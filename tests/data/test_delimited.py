"""Quotes in CSV and TSV: what is enclosed is read whole, and no quote swallows rows without a word."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from onecurve.config import DataSection
from onecurve.data.rows import Broken, Located
from onecurve.data.sources import read_rows
from onecurve.errors import DataError
from tests.data.byte_level import load
from tests.tasks.test_text_classification import _task

COLUMNS = {"text": "text", "label": "a name"}


def read(path: Path, content: str, **section: Any) -> list[Located | Broken]:
    path.write_bytes(content.encode())
    return list(read_rows("data.train", str(path), DataSection(train=str(path), **section), COLUMNS))


def values(found: list[Located | Broken]) -> list[list[str] | str]:
    return [list(item.row.values()) if isinstance(item, Located) else item.reason for item in found]


def written(rows: list[list[str]], end: str = "\r\n", **dialect: Any) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator=end, **dialect).writerows(rows)
    return text.getvalue()


# An open quote


def many(broken: str, at: int = 10, count: int = 1000) -> str:
    lines = [f"text {number},{'ab'[number % 2]}" for number in range(1, count + 1)]
    lines[at - 1] = broken
    return "text,label\n" + "\n".join(lines) + "\n"


@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_an_open_quote_swallows_no_rows(tmp_path: Path, on_bad_row: Any, suffix: str) -> None:
    mark = {"csv": ",", "tsv": "\t"}[suffix]
    path = tmp_path / f"a.{suffix}"
    path.write_text(many('"text 10,a').replace(",", mark))
    section = DataSection(
        train=str(path), on_bad_row=on_bad_row, quoting="minimal", cache_dir=str(tmp_path / "cache"), max_length=64
    )
    with pytest.raises(DataError, match=rf"a\.{suffix}, line 11: .*never closed, over 991 lines") as error:
        load(section, _task())
    assert "data.quoting: none" in str(error.value)
    assert "on_bad_row" not in str(error.value)
    read_as_characters = load(section.model_copy(update={"quoting": "none"}), _task())
    assert (len(read_as_characters.train), read_as_characters.train.report.skipped) == (1000, 0)


@pytest.mark.parametrize(
    ("body", "place", "reason"),
    [
        ('"one,a\ntwo,b\n"three",c\nfour,d', 2, "runs over 3 lines and does not end where its closing quote is"),
        ('one,a\n"two,b\nthree,c\nx,",four",d', 3, "runs over 3 lines, and then comes a quote inside a field"),
        ('"one""\ntwo",b\nthree",c\n', 4, """a quote closes a field that none opens: 'three"'"""),
        ('one,a\n"two"x\nhalf",b\nthree,c\n', 4, """a quote closes a field that none opens: 'half"'"""),
        ('one,a\n"two",half\nof it",b\nthree,c\n', 4, "a quote closes a field that none opens"),
        ('"' + "one,a\n" * 30 + 'two",b\n', 2, "runs over 31 lines, each of which looks like a row of its own"),
    ],
)
def test_a_quote_out_of_place_refuses_the_file_where_rows_may_be_lost(
    tmp_path: Path, body: str, place: int, reason: str
) -> None:
    with pytest.raises(DataError) as error:
        read(tmp_path / "a.csv", f"text,label\n{body}", on_bad_row="skip")
    assert reason in str(error.value)
    assert error.value.where == f"{tmp_path}/a.csv, line {place}"


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('"x"y,a', "its quotes do not match: ',' expected after '\"'."),
        ('a 5" pipe,a', ['a 5" pipe', "a"]),
        ('he said "yes",a', ['he said "yes"', "a"]),
        ('"he said ""yes""",a', ['he said "yes"', "a"]),
        ('"",a', ["", "a"]),
    ],
)
def test_a_quote_that_ends_in_its_line_is_that_rows_alone(tmp_path: Path, line: str, found: Any) -> None:
    assert values(read(tmp_path / "a.csv", f"text,label\n{line}\nlast,b\n")) == [found, ["last", "b"]]


def test_a_field_may_hold_rows_where_the_recipe_trusts_the_quotes(tmp_path: Path) -> None:
    table = "one,a\n" * 30
    found = read(tmp_path / "a.csv", f'text,label\n"{table}",b\nlast,c\n', quoting="minimal")
    assert values(found) == [[table, "b"], ["last", "c"]]
    assert [item.place.rpartition(" ")[2] for item in found] == ["2", "33"]


TEXTS = st.text(st.sampled_from('ab,"\n\r ;'), max_size=6)
QUOTING = st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
ROWS = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    return tmp_path_factory.mktemp("delimited")


@settings(max_examples=150, deadline=None)
@given(rows=ROWS, quoting=QUOTING, suffix=st.sampled_from(["csv", "tsv"]))
def test_what_a_writer_writes_is_read(folder: Path, rows: Any, quoting: Any, suffix: str) -> None:
    content = written([["text", "label"], *rows], quoting=quoting, delimiter={"csv": ",", "tsv": "\t"}[suffix])
    found = read(folder / f"a.{suffix}", content, quoting="auto" if suffix == "csv" else "minimal")
    assert values(found) == [list(row) for row in rows]
    assert found[0].place.endswith(", line 2")


@settings(max_examples=300, deadline=None)
@given(rows=ROWS, where=st.floats(0, 1), quoting=QUOTING, suffix=st.sampled_from(["csv", "tsv"]))
@example(rows=[("", ""), ("", ","), ("", '\r";')], where=0.0, quoting=csv.QUOTE_MINIMAL, suffix="csv")
@example(rows=[("", ""), ("\r", "")], where=0.0, quoting=csv.QUOTE_MINIMAL, suffix="tsv")
def test_one_quote_planted_anywhere_spoils_its_row_or_is_told(
    folder: Path, rows: Any, where: float, quoting: Any, suffix: str
) -> None:
    mark = {"csv": ",", "tsv": "\t"}[suffix]
    pieces = [written([list(row)], delimiter=mark, quoting=quoting) for row in rows]
    content, head = "".join(pieces), written([list(COLUMNS)], delimiter=mark, quoting=quoting)
    position = int(where * (len(content) - 1))
    touched = next(n for n in range(len(pieces)) if position < len("".join(pieces[: n + 1])))
    try:
        found = read(folder / f"b.{suffix}", head + content[:position] + '"' + content[position:], on_bad_row="skip")
    except DataError as error:
        assert " line " in str(error)
        return
    kept = [item.row for item in found if isinstance(item, Located)]
    others = [dict(zip(COLUMNS, row, strict=True)) for n, row in enumerate(rows) if n != touched]
    told = len(found) - len(kept)
    for row in others:
        if row in kept:
            kept.remove(row)
        else:
            told -= 1  # left out, and counted
    assert told >= 0 and len(kept) <= 1


# TSV


GLUE = 'text\tlabel\n"I am\t1\nhe said bye"\t0\n'


def test_lines_of_glue_are_never_merged(tmp_path: Path) -> None:
    expected = [['"I am', "1"], ['he said bye"', "0"]]
    assert values(read(tmp_path / "a.tsv", GLUE, quoting="none")) == expected
    with pytest.raises(DataError, match=r"is ambiguous whether quotes enclose .* \(see line 2\)\. Set data\.quoting"):
        read(tmp_path / "a.tsv", GLUE)
    for more in ('a 5" pipe\t1', '"Yes" he said\t0', '"open\t1'):
        assert values(read(tmp_path / "a.tsv", f"{GLUE}{more}\n")) == [*expected, more.split("\t")]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('"a ""b"""\tx', ['a "b"', "x"]),
        ('"a\tb"\tx', ["a\tb", "x"]),
        ('"a\nb"\tx', ["a\nb", "x"]),
        ('"a, b"\tx', ["a, b", "x"]),
        ('"whole"\tx', ['"whole"', "x"]),
        ('""\tx', ["", "x"]),
    ],
)
def test_a_tsv_is_quoted_where_its_quotes_are_needed(tmp_path: Path, line: str, found: list[str]) -> None:
    assert values(read(tmp_path / "a.tsv", f"text\tlabel\nplain\ty\n{line}\n")) == [["plain", "y"], found]


def test_a_tsv_that_quotes_everything_is_quoted(tmp_path: Path) -> None:
    assert values(read(tmp_path / "a.tsv", '"text"\t"label"\n"one"\t"a"\n')) == [["one", "a"]]


def test_a_tsv_with_quotes_of_both_kinds_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\(see line 2 and 3\)"):
        read(tmp_path / "a.tsv", 'text\tlabel\n"a ""b"""\tx\n"open\ty\n')


def test_a_row_that_quotes_as_characters_break_says_so(tmp_path: Path) -> None:
    content = 'text\tlabel\na 5" pipe\tx\n"a" b"\ty\tz\n'
    assert values(read(tmp_path / "a.tsv", content))[1] == (
        "has 3 fields where the header has 2. Quotes are plain characters here; "
        "data.quoting: minimal reads them as CSV does."
    )


def test_one_column_of_quoted_lines_is_not_guessed_at(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text('text\n"one\ntwo"\n')
    for quoting, texts in (("minimal", ["one\ntwo"]), ("none", ['"one', 'two"'])):
        section = DataSection(train="x", quoting=quoting)
        found = list(read_rows("data.train", str(path), section, {"text": ""}))
        assert [row for (row,) in values(found)] == texts
    with pytest.raises(DataError, match=r"a\.tsv: it is ambiguous whether quotes"):
        list(read_rows("data.train", str(path), DataSection(train="x"), {"text": ""}))


# Delimiters

GERMAN = 'Text;Stimmung\r\n"gut; sehr gut";froh\r\nschlecht, leider;traurig\r\n"a ""b""";froh\r\n'


def test_a_delimiter_is_what_the_recipe_says(tmp_path: Path) -> None:
    columns = {"text": "Text", "label": "Stimmung"}
    texts = ["gut; sehr gut", "schlecht, leider", 'a "b"']
    for section in ({"delimiter": ";"}, {"delimiter": ";", "quoting": "minimal"}):
        found = read(tmp_path / "a.csv", GERMAN, columns=columns, **section)
        assert [row.row["text"] for row in found if isinstance(row, Located)] == texts
    content = 'Text|Stimmung\n"halb|froh\nda"nn|traurig\n'
    plain = read(tmp_path / "a.csv", content, columns=columns, delimiter="|", quoting="none")
    assert [row.row["text"] for row in plain if isinstance(row, Located)] == ['"halb', 'da"nn']


@pytest.mark.parametrize(
    ("name", "content", "settings", "advice"),
    [
        ("a.csv", GERMAN, {}, r"line 1: is one field, 'Text;Stimmung', and 2 .*needed .* data\.delimiter: ';'\."),
        ("a.csv", "text\tlabel\nx\ty\n", {}, r"'\\t' separates the fields, set data\.delimiter: \"\\t\"\."),
        ("a.tsv", "text,label\nx,y\n", {}, r"data\.delimiter: ','\."),
        ("a.csv", "x;7\ny;8\n", {"header": False, "columns": {"text": "0", "label": "1"}}, r"data\.delimiter: ';'\."),
    ],
)
def test_a_file_that_reads_as_one_column_tells_the_delimiter(
    tmp_path: Path, name: str, content: str, settings: dict[str, Any], advice: str
) -> None:
    with pytest.raises(DataError, match=advice):
        read(tmp_path / name, content, **settings)
