import gzip
from pathlib import Path
from typing import Any

import pytest

from onecurve.config import DataSection, TaskSection
from onecurve.data.checking import Report, RowChecker
from onecurve.data.sources import open_source
from onecurve.errors import ConfigError, DataError
from onecurve.tasks import load_task

COLUMNS = {"source": "read", "target": "written"}


def source(prefix: Path, **settings: Any) -> Any:
    section = DataSection(train=str(prefix), **{"columns": {"source": "en", "target": "de"}, **settings})
    return open_source("data.train", str(prefix), section, COLUMNS)


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    (tmp_path / "train.en").write_text("a dog\na \u2028cat\n", encoding="utf-8")
    (tmp_path / "train.de.gz").write_bytes(gzip.compress(b"ein Hund\neine Katze\n"))
    return tmp_path / "train"


def test_lines_of_files_with_one_prefix_belong_together(prefix: Path) -> None:
    assert [found.row for found in source(prefix).rows()] == [
        {"source": "a dog", "target": "ein Hund"},
        {"source": "a \u2028cat", "target": "eine Katze"},
    ]
    assert [found.place for found in source(prefix).rows()] == [f"{prefix}, line 1", f"{prefix}, line 2"]


def test_what_is_in_the_files_is_in_the_digest(prefix: Path) -> None:
    before, stamp = source(prefix).digest(), source(prefix).stamp()
    assert source(prefix, columns={"source": "de", "target": "en"}).digest() != before
    prefix.with_suffix(".en").write_text("a dog\na cow\n", encoding="utf-8")
    assert source(prefix).digest() != before and source(prefix).stamp() != stamp


def test_files_of_other_lengths_are_refused(prefix: Path) -> None:
    prefix.with_suffix(".en").write_text("a dog\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"train\.en: ends before line 2"):
        list(source(prefix).rows())


def test_a_missing_file_is_named(prefix: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.train: no such file: .*train\.fr \(nor .*\.gz\)"):
        source(prefix, columns={"source": "en", "target": "fr"})
    with pytest.raises(ConfigError, match=r"no such file: .*nothing\.en"):
        source(prefix.with_name("nothing"), format="parallel")
    with pytest.raises(ConfigError, match="no such file or folder"):
        source(prefix.with_name("nothing"))


def test_windows_files_read_the_same(prefix: Path) -> None:
    expected = [found.row for found in source(prefix).rows()]
    prefix.with_suffix(".en").write_bytes(b"\xef\xbb\xbf" + "a dog\r\na \u2028cat\r\n".encode())
    prefix.with_suffix(".de.gz").write_bytes(gzip.compress(b"\xef\xbb\xbfein Hund\r\neine Katze\r\n"))
    assert [found.row for found in source(prefix).rows()] == expected


def test_an_empty_line_is_a_bad_row_with_its_line(prefix: Path) -> None:
    task = load_task(TaskSection(name="seq2seq_lm"))
    prefix.with_suffix(".en").write_text("a dog\n\na cat\n", encoding="utf-8")
    prefix.with_suffix(".de.gz").write_bytes(gzip.compress(b"ein Hund\nx\n \n"))
    with pytest.raises(DataError, match=r"train, line 2: source is empty"):
        list(RowChecker(source(prefix), task, skips=False).usable(Report(), None))
    report = Report()
    assert len(list(RowChecker(source(prefix), task, skips=True).usable(report, None))) == 1
    assert (
        report.skipped == 2 and "line 3" in report.skipped_places[1] and "target is empty" in report.skipped_places[1]
    )
