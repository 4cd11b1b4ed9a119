import gzip
from pathlib import Path
from typing import Any

import pytest

from onecurve.config import DataSection
from onecurve.data.sources import read_rows
from onecurve.errors import DataError

COLUMNS = {"tokens": "words", "tags": "tags"}
TABS = "EU\tNNP\tB-ORG\nrejects\tVBZ\tO\n\t\n\n#1\tCD\tO\n"
UNIVERSAL = (
    "# sent_id = 1\n1-2\tim\t_\t_\n1\tin\t_\tADP\n2\tdem\t_\tDET\n2.1\t_\t_\t_\n\n# text = Haus\n1\tHaus\t_\tNOUN\n"
)


def rows(path: Path, **settings: Any) -> list[Any]:
    section = DataSection(train=str(path), **settings)
    return list(read_rows("data.train", str(path), section, COLUMNS))


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_sentence_is_a_row_and_lines_of_white_space_part_them(tmp_path: Path) -> None:
    first, second = rows(write(tmp_path / "train.conll", TABS))
    assert first.row == {"tokens": ["EU", "rejects"], "tags": ["B-ORG", "O"]}
    assert first.place.endswith("train.conll, line 1") and second.place.endswith("line 5")
    assert second.row == {"tokens": ["#1"], "tags": ["O"]}, "a hash is a word here, not a comment"


def test_columns_are_named_by_position_from_either_end(tmp_path: Path) -> None:
    path = write(tmp_path / "train.txt", TABS)
    found = rows(path, format="conll", columns={"tokens": "0", "tags": "1"})
    assert [row.row["tags"] for row in found] == [["NNP", "VBZ"], ["CD"]]
    assert rows(path, format="conll", columns={"tags": "-1"})[0].row["tags"] == ["B-ORG", "O"]
    with pytest.raises(DataError, match=r"has 3 columns; data\.columns asks for number 3"):
        rows(path, format="conll", columns={"tags": "3"})


def test_spaces_part_columns_where_there_is_no_tab_and_document_lines_are_none(tmp_path: Path) -> None:
    text = "-DOCSTART- -X- O O\n\nEU NNP I-NP B-ORG\nrejects VBZ I-VP O\n"
    (row,) = rows(write(tmp_path / "eng.iob", text))
    assert row.row == {"tokens": ["EU", "rejects"], "tags": ["B-ORG", "O"]}


def test_conllu_has_comments_ranges_and_columns_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "de.conllu.gz"
    path.write_bytes(gzip.compress(UNIVERSAL.encode()))
    assert [row.row for row in rows(path)] == [
        {"tokens": ["in", "dem"], "tags": ["ADP", "DET"]},
        {"tokens": ["Haus"], "tags": ["NOUN"]},
    ]
    assert rows(path, columns={"tags": "form"})[1].row["tags"] == ["Haus"]


def test_a_line_of_another_width_or_another_encoding_is_a_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "train.conll"
    path.write_bytes(b"a\tO\nb\n\nc\tO\n\nd\xff\tO\n")
    bad, good, undecodable = rows(path)
    assert bad.reason == "has 1 columns where its sentence began with 2." and bad.place.endswith("line 2")
    assert good.row["tokens"] == ["c"]
    assert "not utf-8" in undecodable.reason and undecodable.place.endswith("line 6")


def test_windows_files_and_compressed_ones_read_the_same(tmp_path: Path) -> None:
    expected = [row.row for row in rows(write(tmp_path / "plain.conll", TABS))]
    windows = b"\xef\xbb\xbf" + TABS.replace("\n", "\r\n").encode()
    (tmp_path / "windows.conll").write_bytes(windows)
    (tmp_path / "windows.bio.gz").write_bytes(gzip.compress(windows))
    for name in ("windows.conll", "windows.bio.gz"):
        assert [row.row for row in rows(tmp_path / name)] == expected
