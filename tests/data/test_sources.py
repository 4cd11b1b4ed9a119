import csv
import gzip
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from onecurve.config import DataSection
from onecurve.data.rows import Broken, Located
from onecurve.data.sources import open_source, read_rows
from onecurve.errors import ConfigError, DataError, UserError
from onecurve.tasks.sft import SftSettings
from onecurve.tasks.sft import Task as Sft
from tests.data.hub_datasets import keep

COLUMNS = {"text": "text", "label": "a name", "note?": "whatever"}
ROWS = [{"text": "one", "label": "a"}, {"text": "zwei é", "label": "b"}]


def read(path: Path | str, task_columns: dict[str, str] = COLUMNS, **settings: Any) -> list[Located | Broken]:
    section = DataSection(train=str(path), **settings)
    return list(read_rows("data.train", section.train, section, task_columns))


def rows_of(found: list[Located | Broken]) -> list[dict[str, Any]]:
    return [item.row if isinstance(item, Located) else {"broken": item.reason} for item in found]


def places_of(found: list[Located | Broken]) -> list[str]:
    return [item.place.rpartition("/")[2] for item in found]


# Formats


def test_jsonl_is_read_line_by_line_and_blank_lines_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "one", "label": "a", "other": 1}\r\n\r\n  \n' + json.dumps(ROWS[1]).encode())
    found = read(path)
    assert rows_of(found) == ROWS
    assert places_of(found) == ["a.jsonl, line 1", "a.jsonl, line 4"]


@pytest.mark.parametrize("content", [ROWS, {"version": 1, "data": ROWS}])
def test_json_is_a_list_or_has_one_under_data(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    assert rows_of(read(path)) == ROWS
    assert places_of(read(path)) == ["a.json, row 1", "a.json, row 2"]


@pytest.mark.parametrize("content", ["[1, 2", '{"rows": []}', "3", "[" * 100_000])
def test_json_that_holds_no_rows_is_an_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"a\.json"):
        read(path)


def test_json_lines_under_the_suffix_json_are_explained(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    with pytest.raises(DataError, match=r"data\.format: jsonl"):
        read(path)
    assert rows_of(read(path, format="jsonl")) == ROWS


@pytest.mark.parametrize(("suffix", "mark"), [("csv", ","), ("tsv", "\t")])
def test_csv_and_tsv_with_quotes_line_breaks_and_windows_line_ends(tmp_path: Path, suffix: str, mark: str) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(f'\ufefftext{mark}label\r\n"a ""b""{mark}\r\nc"{mark}x\r\n\r\nd{mark}y\r\n'.encode())
    found = read(path)
    assert rows_of(found) == [{"text": f'a "b"{mark}\r\nc', "label": "x"}, {"text": "d", "label": "y"}]
    assert places_of(found) == [f"a.{suffix}, line 2", f"a.{suffix}, line 5"]


def test_csv_without_a_header_is_read_by_position(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("x,7,one\ny,8,two\n")
    found = read(path, header=False, columns={"text": "2", "label": "0"})
    assert rows_of(found) == [{"text": "one", "label": "x"}, {"text": "two", "label": "y"}]
    with pytest.raises(DataError, match=r"no column 'text' or 'label'; the columns are: 0, 1, 2\. Set data\.columns"):
        read(path, header=False)


def test_a_csv_field_may_be_longer_than_the_modules_own_limit(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"text,label\n{'x' * 300_000},a\n")
    assert len(rows_of(read(path))[0]["text"]) == 300_000


def test_an_empty_csv_field_is_no_value_only_where_there_may_be_none(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label,note\none,,\ntwo,a,b\n")
    assert rows_of(read(path)) == [{"text": "one", "label": ""}, {"text": "two", "label": "a", "note": "b"}]


def test_a_header_that_names_a_column_twice_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label,text\n1,2,3\n")
    with pytest.raises(DataError, match=r"a\.csv, line 1: the header has the column 'text' twice"):
        read(path)


def test_parquet_gives_values_of_every_kind(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    turns = [[{"role": "user", "content": "hi"}], []]
    pq.write_table(pa.table({"extra": [1, 2], "text": ["one", None], "label": [1.5, 2.0], "note": turns}), path)
    found = read(path)
    assert rows_of(found)[0] == {"text": "one", "label": 1.5, "note": [{"role": "user", "content": "hi"}]}
    assert found[1] == Broken(f"{path}, row 2", "column 'text' is null.")


def test_a_missing_parquet_column_is_told_beside_all_that_are_there(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"extra": [1], "label": [1]}), path)
    with pytest.raises(DataError, match="no column 'text'; the columns are: extra, label"):
        read(path)


def test_a_damaged_parquet_file_is_one_message(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match=r"a\.parquet: cannot be read as Parquet"):
        read(path)


@pytest.mark.parametrize(
    ("sample_by", "texts", "places"),
    [
        ("document", ["\none\ntwo\n\n \nthree\n"], ["a.txt"]),
        ("paragraph", ["one\ntwo", "three"], ["a.txt, line 2", "a.txt, line 6"]),
        ("line", ["one", "two", "three"], ["a.txt, line 2", "a.txt, line 3", "a.txt, line 6"]),
    ],
)
def test_plain_text_by_document_paragraph_and_line(
    tmp_path: Path, sample_by: str, texts: list[str], places: list[str]
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\r\none\r\ntwo\r\n\r\n \r\nthree\r\n")
    found = read(path, {"text": "text"}, sample_by=sample_by)
    assert [row["text"] for row in rows_of(found)] == texts
    assert places_of(found) == places


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1", "gb18030"])
@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "txt"])
def test_every_text_format_is_read_in_the_encoding_that_is_said(tmp_path: Path, encoding: str, suffix: str) -> None:
    text = "ä é" if encoding == "latin-1" else "ä 你好"
    content = {"jsonl": f'{{"text": "{text}"}}', "json": f'[{{"text": "{text}"}}]', "csv": f"text\n{text}", "txt": text}
    path = tmp_path / f"a.{suffix}"
    path.write_text(content[suffix], encoding=encoding)
    assert rows_of(read(path, {"text": "text"}, encoding=encoding)) == [{"text": text}]


@pytest.mark.parametrize("encoding", ["utf-9", "base64", "a\0b", ""])
def test_an_unknown_encoding_is_an_error(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"data\.encoding: no text encoding"):
        read(tmp_path / "a.txt", encoding=encoding)


def test_gzip_is_read_through_and_a_cut_one_is_one_message(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS).encode()))
    assert rows_of(read(path)) == ROWS
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(DataError, match=r"a\.jsonl\.gz: cannot be read"):
        read(path)


# Folders and names


def test_a_folder_is_read_at_every_depth_in_the_order_of_names(tmp_path: Path) -> None:
    (tmp_path / "b" / ".hidden").mkdir(parents=True)
    (tmp_path / "b" / "part.csv").write_text("text,label\nthree,c\n")
    (tmp_path / "c.jsonl").write_text('{"text": "four", "label": "d"}\n')
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    (tmp_path / ".DS_Store").write_bytes(b"\0\1")
    (tmp_path / "b" / ".hidden" / "x.txt").write_text("x")
    found = read(tmp_path)
    assert [row["text"] for row in rows_of(found)] == ["one", "zwei é", "three", "four"]
    assert found[2].place == f"{tmp_path}/b/part.csv, line 2"


def test_an_unknown_suffix_is_named_unless_the_format_is_said(tmp_path: Path) -> None:
    path = tmp_path / "part-0001"
    path.write_text('{"text": "one", "label": "a"}')
    with pytest.raises(ConfigError, match=r"format of '.*part-0001' is unknown.*data\.format"):
        read(path)
    with pytest.raises(ConfigError, match=r"data\.train: the folder .* has no data files.*\. Known .*data\.format"):
        read(tmp_path)
    assert rows_of(read(path, format="jsonl")) == rows_of(read(tmp_path, format="jsonl")) == ROWS[:1]


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.train: the folder .* has no data files"):
        read(tmp_path)


@pytest.mark.parametrize(
    "spec",
    ["data/train.jsonl", "./data/train", "/nowhere/x", "~/nowhere/x", "a/b/c", "train.csv", "../x/y", "a/b.csv.gz"],
)
def test_what_looks_like_a_path_and_is_none_is_no_such_file(spec: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.train: no such file or folder"):
        read(spec)


def test_a_file_that_cannot_be_opened_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}")
    source = open_source("data.train", str(tmp_path / "a.jsonl"), DataSection(train="x"), COLUMNS)
    (tmp_path / "a.jsonl").unlink()
    for ask in (source.digest, source.stamp, lambda: list(source.rows())):
        with pytest.raises(DataError, match=r"a\.jsonl: cannot be read: No such file or directory\."):
            ask()


def test_something_that_can_be_read_only_once_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="not a regular file or folder"):
        read(tmp_path / "pipe")


# Columns


def test_columns_are_mapped_and_the_others_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"sentence": "one", "text": "no", "label": "a", "note": null}\n')
    assert rows_of(read(path, columns={"text": "sentence"})) == [{"text": "one", "label": "a"}]


def test_an_unknown_task_column_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"data\.columns: this task reads no column 'labels'\. Did you mean 'label'"):
        read(tmp_path / "a.txt", columns={"labels": "y"})


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "json"])
def test_a_column_that_no_row_has_is_an_error_of_the_file(tmp_path: Path, suffix: str) -> None:
    contents = {
        "jsonl": '{"body": "x", "label": "a"}',
        "json": '[{"body": "x", "label": "a"}]',
        "csv": "body,label\nx,a",
    }
    path = tmp_path / f"a.{suffix}"
    path.write_text(contents[suffix])
    with pytest.raises(DataError, match=rf"a\.{suffix}: there is no column 'text'; the columns are: body, label"):
        read(path)


def test_an_optional_column_must_be_there_once_it_is_mapped(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x", "label": "a"}\n')
    assert rows_of(read(path)) == [{"text": "x", "label": "a"}]
    with pytest.raises(DataError, match=r"no column 'remark'; .* Set data\.columns\.note to"):
        read(path, columns={"note": "remark"})


def test_a_row_with_none_of_the_optional_columns_tells_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"question": ["x"], "answer": ["y"]}), path)
    [found] = read(path, {"prompt?": "asked", "messages?": "turns"})
    assert isinstance(found, Broken)
    assert "no column 'prompt' or 'messages'; the columns are: question, answer" in found.reason


def test_an_optional_column_can_be_left_unread(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x", "label": "a", "note": "n"}\n')
    assert rows_of(read(path, columns={"note": ""})) == [{"text": "x", "label": "a"}]
    with pytest.raises(ConfigError, match=r"data\.columns\.label: is empty, but this column is required"):
        read(path, columns={"label": ""})


def test_an_optional_column_is_not_read_from_what_the_recipe_gives_to_another(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"note": "x", "label": "a"}\n')
    assert rows_of(read(path, columns={"text": "note"})) == [{"text": "x", "label": "a"}]


# Forms of row that are known by their columns

ALPACA = {"instruction": "Add.", "input": "3 and 4", "output": "7"}
ALONE = {"instruction": "Smile.", "input": "", "output": ":)"}
SMILE = {"prompt": "Smile.", "response": ":)"}
ADD = {"prompt": "Add.", "input": "3 and 4", "response": "7"}


def chats(path: Path, rows: list[dict[str, Any]], **settings: Any) -> Any:
    """A source of `sft`'s columns over rows in the format that the suffix tells."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    section = DataSection(train=str(path), **settings)
    return open_source("data.train", section.train, section, Sft.columns, Sft.shapes.values())


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_alpaca_is_known_by_its_columns(tmp_path: Path, suffix: str) -> None:
    source = chats(tmp_path / f"a.{suffix}", [ALPACA | {"id": 1}, ALONE | {"id": 2}])
    assert [{k: v for k, v in row.items() if v} for row in rows_of(list(source.rows()))] == [ADD, SMILE]
    assert source.use.read == {"prompt": "instruction", "input": "input", "response": "output"}
    assert source.use.unread == ["id"]


FORMS = {
    "Dolly": ({"instruction": "Add.", "context": "3 and 4", "response": "7", "category": "x"}, ADD, ["category"]),
    "Alpaca without input": ({"instruction": "Smile.", "output": ":)"}, SMILE, []),
    "columns of the task's own beside it": (
        {"prompt": "Smile.", "response": ":)", "instruction": "no", "output": "no"}, SMILE, ["instruction", "output"],
    ),
    "null columns of the task's own beside it": ({"messages": None, "prompt": "", **ALPACA}, ADD, []),
    "messages beside it": (
        {"messages": [{"role": "user"}], **ALONE}, {"messages": [{"role": "user"}], "input": ""},
        ["instruction", "output"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("row", "read_as", "unread"), FORMS.values(), ids=FORMS.keys())
def test_a_form_is_taken_where_the_row_has_nothing_of_the_tasks_own(
    tmp_path: Path, row: dict[str, Any], read_as: dict[str, Any], unread: list[str]
) -> None:
    source = chats(tmp_path / "a.jsonl", [row])
    assert rows_of(list(source.rows())) == [read_as]
    assert source.use.unread == unread


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_llama_factory_s_history_comes_with_alpaca_s_columns(tmp_path: Path, suffix: str) -> None:
    history: Any = [["Hello.", "Good day."], ["And you?", "Well."]]
    row = ALONE | {"history": json.dumps(history) if suffix == "csv" else history}
    source = chats(tmp_path / f"a.{suffix}", [row])
    (found,) = rows_of(list(source.rows()))
    assert found["history"] == row["history"] and source.use.unread == []
    assert Sft(SftSettings()).check(found) is None


def test_one_file_may_hold_several_forms(tmp_path: Path) -> None:
    source = chats(tmp_path / "a.jsonl", [SMILE, ALPACA])
    assert rows_of(list(source.rows())) == [SMILE, ADD]
    assert source.use.unread == []


def test_where_the_recipe_maps_columns_no_form_is_guessed(tmp_path: Path) -> None:
    mapped = {"prompt": "instruction", "response": "output"}
    source = chats(tmp_path / "a.jsonl", [ALPACA], columns=mapped)
    assert rows_of(list(source.rows())) == [ADD], "an optional column is read by its own name"
    swapped = chats(tmp_path / "a.jsonl", [ALPACA], columns={"prompt": "input", "response": "output"})
    assert rows_of(list(swapped.rows())) == [{"prompt": "3 and 4", "response": "7"}]
    assert swapped.use.unread == ["instruction"]
    without = chats(tmp_path / "a.jsonl", [ALPACA], columns=mapped | {"input": ""})
    assert rows_of(list(without.rows())) == [{"prompt": "Add.", "response": "7"}]
    assert without.use.unread == ["input"]


# Bad rows


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "x", "label": ', "invalid JSON: Expecting value at column 23"),
        (b'["x", "a"]', "must be a JSON object"),
        (b'{"text": "x"}', "there is no column 'label'; the columns are: text"),
        (b'{"text": null, "label": "a"}', "column 'text' is null"),
        (b'{"text": "\xff\xfe", "label": "a"}', "has bytes that are not utf-8; set data.encoding"),
        (b'{"text": "\\ud83d", "label": "a"}', "column 'text' holds half of a surrogate pair"),
        (b'{"text": ["x", {"k": "\\udcff"}], "label": "a"}', "half of a surrogate pair"),
        (b"[" * 100_000, "invalid JSON"),
        (b'{"text": "x", "label": ' + b"1" * 5000 + b"}", "invalid JSON"),
    ],
)
def test_a_bad_json_line_is_found_and_the_next_is_read(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "one", "label": "a"}\n' + line + b'\n{"text": "two", "label": "b"}\n')
    first, bad, last = read(path)
    assert isinstance(bad, Broken) and bad.place == f"{path}, line 2"
    assert reason in bad.reason
    assert rows_of([first, last]) == [{"text": "one", "label": "a"}, {"text": "two", "label": "b"}]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"x", "has 1 fields where the header has 2"),
        (b"x,y,z", "has 3 fields where the header has 2"),
        (b"\xff,a", "has bytes that are not utf-8"),
        (b'"x"y,a', "its quotes do not match"),
    ],
)
def test_a_bad_csv_row_is_found_and_the_next_is_read(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'text,label\n"a\nb",x\n' + line + b"\nlast,z\n")
    _, bad, last = read(path)
    assert isinstance(bad, Broken) and bad.place == f"{path}, line 4"
    assert reason in bad.reason
    assert rows_of([last]) == [{"text": "last", "label": "z"}]


def test_undecodable_headers_json_and_text_are_told(tmp_path: Path) -> None:
    for name, content in (("a.csv", b"te\xffxt,label\nx,a\n"), ("a.json", b'[\n{"text": "\xff"}]')):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"{name}, line \d: has bytes that are not utf-8"):
            read(tmp_path / name)
    (tmp_path / "a.txt").write_bytes(b"good\nb\xe9d\n")
    found = read(tmp_path / "a.txt", {"text": "text"}, sample_by="line")
    assert rows_of(found[:1]) == [{"text": "good"}] and isinstance(found[1], Broken)


# Identity


def test_the_digest_is_of_content_order_and_format_not_of_place(tmp_path: Path) -> None:
    def digest(folder: str, files: dict[str, str], **settings: Any) -> str:
        (tmp_path / folder).mkdir()
        for name, content in files.items():
            (tmp_path / folder / name).write_text(content)
        section = DataSection(train="x", **settings)
        return open_source("data.train", str(tmp_path / folder), section, COLUMNS).digest()

    base = digest("one", {"a.jsonl": "x", "b.jsonl": "y"})
    assert digest("two", {"c.jsonl": "x", "d.jsonl": "y"}) == base
    assert digest("three", {"a.jsonl": "y", "b.jsonl": "x"}) != base
    assert digest("four", {"a.jsonl": "xy"}) != base
    assert digest("five", {"a.jsonl": "x", "b.jsonl": "z"}) != base
    assert digest("six", {"a.csv": "x", "b.csv": "y"}) != base


# Hub


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without network that has `org/name` in its cache, in two splits."""
    import datasets

    kinds = {"body": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    train = [{"body": text, "label": label} for text, label in (("one", 0), ("two", 1), ("three", -1))]
    keep(tmp_path, monkeypatch, kinds, {"train": train, "validation": [{"body": "four", "label": 0}]})
    return tmp_path


def test_a_hub_dataset_is_read_with_its_label_names(hub_cache: Path) -> None:
    mapped = {"text": "body"}
    found = read("org/name", columns=mapped)
    assert rows_of(found[:2]) == [{"text": "one", "label": "no"}, {"text": "two", "label": "yes"}]
    assert found[2] == Broken("org/name:train, row 3", "column 'label' is null.")
    assert len(read("org/name:train[:1]", columns=mapped)) == 1

    section = DataSection(train="x", eval="org/name", columns=mapped)
    evaluation = open_source("data.eval", "org/name", section, COLUMNS)
    assert rows_of(list(evaluation.rows())) == [{"text": "four", "label": "no"}]
    assert evaluation.digest() != open_source("data.train", "org/name", section, COLUMNS).digest()


@pytest.mark.parametrize(
    ("spec", "settings", "reason"),
    [
        ("org/name:nope", {}, 'Unknown split "nope"'),
        ("org/name", {"hub_config": "de"}, "config 'de'"),
        ("org/other", {}, "the hub cannot be reached and there is no copy in its local cache"),
    ],
)
def test_what_the_hub_has_not_is_one_message(hub_cache: Path, spec: str, settings: dict[str, str], reason: str) -> None:
    with pytest.raises(UserError, match=r"data\.train: no such file or folder: '.*', and no hub dataset") as error:
        read(spec, **settings)
    assert reason in str(error.value) and "\n" not in str(error.value)


ASK = """
from onecurve.config import DataSection
from onecurve.data.sources import open_source
from onecurve.errors import DataError
try:
    open_source("data.train", "org/name", DataSection(train="org/name"), {"text": ""})
except DataError as error:
    print(error)
"""


class NotFound(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_: Any) -> None: ...


@pytest.mark.parametrize("is_reachable", [False, True])
def test_a_hub_that_is_away_or_has_no_such_dataset_is_asked_once(tmp_path: Path, is_reachable: bool) -> None:
    server = HTTPServer(("127.0.0.1", 0), NotFound)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    if not is_reachable:
        server.shutdown()
        server.server_close()
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", ASK], env=environment, capture_output=True, text=True, timeout=60)
    if is_reachable:
        server.shutdown()
        server.server_close()
    assert "no such file or folder: 'org/name', and no hub dataset" in done.stdout, done.stderr
    assert ("cannot be reached" in done.stdout) is not is_reachable
    assert "Retrying" not in done.stderr
