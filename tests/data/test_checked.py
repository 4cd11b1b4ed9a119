"""A start whose files have not changed reads none of them; any change is noticed."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from onecurve.config import DataSection
from onecurve.data import checked
from onecurve.data.files import DataFile
from onecurve.data.splits import Data
from onecurve.errors import DataError
from tests.data.byte_level import LoggedTask, labelled, load, write_jsonl

TEXTS = ("one", "two", "three", "four")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were opened, for their rows or for their bytes."""
    opened: list[str] = []
    for name in ("records", "digest"):
        real = getattr(DataFile, name)

        def noted(self: DataFile, *arguments: Any, real: Any = real) -> Any:
            opened.append(self.path.name)
            return real(self, *arguments)

        monkeypatch.setattr(DataFile, name, noted)
    return opened


def start(tmp_path: Path, task: LoggedTask | None = None, **section: Any) -> Data:
    settings = DataSection(
        train=str(tmp_path / "train.jsonl"), eval=str(tmp_path / "dev.jsonl"), cache_dir=str(tmp_path / "cache")
    )
    return load(settings.model_copy(update=section), task or LoggedTask(tmp_path / "log"))


@pytest.fixture
def files(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "train.jsonl", [{**row, "id": 7} for row in labelled(*TEXTS)])
    write_jsonl(tmp_path / "dev.jsonl", labelled("dev"))
    return tmp_path


def test_a_warm_start_reads_no_row_and_tells_the_same(files: Path, reads: list[str]) -> None:
    first = start(files)
    assert {"train.jsonl", "dev.jsonl"} <= set(reads)
    reads.clear()
    second = start(files)
    assert reads == []
    assert second.cached and (second.survey, second.fingerprint) == (first.survey, first.fingerprint)
    for split, before in zip(second.splits, first.splits, strict=True):
        assert (split.report, split.columns) == (before.report, before.columns)
        assert split.take(range(len(split))) == before.take(range(len(before)))
    assert second.train.columns.unread == ["id"]


def rewrite(path: Path, before: str, after: str) -> None:
    """Change a file in place to the same size, and set its time of last write back."""
    stat = path.stat()
    with open(path, "r+") as file:
        content = file.read()
        assert before in content and len(before) == len(after)
        file.seek(0)
        file.write(content.replace(before, after))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_a_file_changed_in_place_is_read_again_whatever_its_time_says(files: Path) -> None:
    first = start(files)
    rewrite(files / "train.jsonl", "two", "owt")
    second = start(files)
    assert second.fingerprint != first.fingerprint
    assert second.train[1] != first.train[1]
    rewrite(files / "dev.jsonl", '"a"', '"b"')
    assert start(files).eval[0]["labels"] == 1 != first.eval[0]["labels"]


@pytest.mark.parametrize(
    "change",
    [{"on_bad_row": "skip"}, {"columns": {"text": "text"}}, {"max_samples": 3}, {"eval": "50%"}, {"test": "x"}],
)
def test_other_settings_read_again(files: Path, reads: list[str], change: dict[str, Any]) -> None:
    start(files)
    reads.clear()
    if "test" in change:
        change = {"test": str(files / "dev.jsonl")}
    start(files, **change)
    assert "train.jsonl" in reads


def test_other_code_and_other_tasks_read_again(files: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    start(files)
    reads.clear()
    monkeypatch.setattr(checked, "_code", lambda: "newer")
    start(files)
    assert "train.jsonl" in reads
    reads.clear()
    other = LoggedTask(files / "log", LoggedTask.Settings(labels=["a", "b"]))
    start(files, other)
    assert "train.jsonl" in reads


def test_an_equal_file_elsewhere_is_read_and_its_examples_are_found(files: Path) -> None:
    first = start(files)
    (files / "other").mkdir()
    (files / "train.jsonl").rename(files / "other" / "train.jsonl")
    moved = start(files, train=str(files / "other" / "train.jsonl"))
    assert moved.cached and moved.fingerprint == first.fingerprint


def test_rows_that_json_cannot_hold_are_read_at_each_start(tmp_path: Path) -> None:
    class Dated(LoggedTask):
        columns: ClassVar[Mapping[str, str]] = {**LoggedTask.columns, "when?": "a time"}

    rows = {"text": list(TEXTS), "label": list("abab"), "when": pa.array(range(4), pa.timestamp("s"))}
    pq.write_table(pa.table(rows), tmp_path / "train.parquet")
    settings = DataSection(train=str(tmp_path / "train.parquet"), cache_dir=str(tmp_path / "cache"))
    first = load(settings, Dated(tmp_path / "log"))
    second = load(settings, Dated(tmp_path / "log"))
    assert second.cached and second.fingerprint == first.fingerprint
    assert not [path for path in (tmp_path / "cache").glob("rows-*") if path.is_dir()]


def test_examples_are_hashed_only_where_their_files_changed(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onecurve.data import cache

    first = start(files)
    hashed: list[Path] = []
    real = cache._hash
    monkeypatch.setattr(cache, "_hash", lambda path: hashed.append(path) or real(path))
    assert start(files).cached and not hashed
    for path in first.train.examples.folder.glob("*.arrow"):  # as a copy from another machine
        path.write_bytes(path.read_bytes())
    assert start(files).cached and len(hashed) == 1
    assert start(files).cached and len(hashed) == 1, "what was found whole is not hashed again"
    info = json.loads((first.train.examples.folder / "info.json").read_text())
    assert info["about"]["split"] == "train"


def test_a_label_of_the_evaluation_alone_is_told_in_whole_sentences(files: Path) -> None:
    write_jsonl(files / "train.jsonl", [{"text": text, "label": text} for text in TEXTS])
    write_jsonl(files / "dev.jsonl", [{"text": "dev", "label": "thre"}])
    with pytest.raises(DataError) as refused:
        start(files)
    assert "Did you mean 'three'? Add it to task.labels" in str(refused.value)
