"""`onecurve data cache`: what is kept, how large and how old it is, and what is removed."""

import os
import time
from pathlib import Path

import pytest
from filelock import FileLock

from onecurve.cli import main
from onecurve.config import DataSection
from tests.data.byte_level import LoggedTask, labelled, load, write_jsonl

DAY = 86400


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A cache with the entries of two data sets, the second used 40 days ago, and what a killed writer left."""
    root = tmp_path / "cache"
    for name, age in (("new", 1), ("old", 40)):
        before = set(root.glob("*/info.json"))
        path = write_jsonl(tmp_path / f"{name}.jsonl", labelled(*(f"{name} {n}" for n in range(5))))
        load(DataSection(train=path, cache_dir=str(root)), LoggedTask(tmp_path / "log"))
        for info in set(root.glob("*/info.json")) - before:
            os.utime(info, (time.time() - age * DAY,) * 2)
    (root / "abc.incomplete-123").mkdir()
    return root


def ask(root: Path, *flags: str) -> int:
    return main(["data", "cache", "--cache_dir", str(root), *flags])


def kept(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.is_dir())


def test_the_cache_is_listed_with_split_data_size_and_age(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(root) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and lines[-1].startswith("5 entries, ") and lines[-1].endswith(f"MB, in {root}")
    [examples] = [line for line in lines if "split train" in line and "old.jsonl" in line]
    assert " 40.0 days " in examples and "task tests.data.byte_level" in examples
    assert "incomplete" in lines[0]


def test_pruning_removes_what_is_told(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(root, "--prune") == 0
    assert "abc.incomplete-123" not in kept(root) and len(kept(root)) == 4
    assert ask(root, "--prune", "--older_than", "30d") == 0
    assert len(kept(root)) == 2
    capsys.readouterr()
    ask(root)
    assert "old.jsonl" not in capsys.readouterr().out
    assert ask(root, "--prune", "--max_size", "0M") == 0
    assert kept(root) == []


def test_a_size_keeps_what_was_used_last(root: Path) -> None:
    ask(root, "--prune")
    sizes = {
        path.parent.name: sum(f.stat().st_size for f in path.parent.iterdir()) for path in root.glob("*/info.json")
    }
    new = [name for name in sizes if (root / name / "info.json").stat().st_mtime > time.time() - 2 * DAY]
    limit = sum(sizes[name] for name in new) / 1e6
    assert ask(root, "--prune", "--max_size", f"{limit:.6f}M") == 0
    assert kept(root) == sorted(new)


def test_what_is_being_written_stays(root: Path) -> None:
    with FileLock(root / "abc.lock"):
        ask(root, "--prune")
    assert "abc.incomplete-123" in kept(root)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--older_than", "30d"], "say what --prune removes"),
        (["--prune", "--older_than", "30"], "--older_than: must be a number with h, d, w; got '30'"),
        (["--prune", "--max_size", "20GB"], "--max_size: must be a number with M, G, T; got '20GB'"),
        (["--nope"], "unrecognized arguments: --nope"),
    ],
)
def test_what_cannot_be_read_is_one_message(
    root: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = kept(root)
    assert ask(root, *flags) == 2
    assert message in capsys.readouterr().err
    assert kept(root) == before
