import os
import signal
import subprocess
import sys
import time
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest

from onecurve.config import DataSection
from onecurve.data.cache import cache_root
from onecurve.data.cache_key import sample_digest
from onecurve.data.checking import RowChecker, check_splits
from onecurve.data.sources import open_source
from onecurve.data.splits import Data
from onecurve.errors import LaunchError
from onecurve.tasks.base import BadRow, Example, Row
from onecurve.tasks.sft import SftSettings
from onecurve.tasks.sft import Task as Sft
from onecurve.tasks.text_classification import Task as TextClassification
from onecurve.tasks.text_classification import TextClassificationSettings
from tests.content.test_conversations import set_clock
from tests.data.byte_level import LoggedTask, byte_tokenizer, labelled, load, write_jsonl

ROOT = Path(__file__).parents[2]
TEXTS = ("one", "two", "three")


@pytest.fixture
def settings(tmp_path: Path) -> DataSection:
    train = write_jsonl(tmp_path / "train.jsonl", labelled(*TEXTS))
    dev = write_jsonl(tmp_path / "dev.jsonl", labelled("dev"))
    return DataSection(train=train, eval=dev, cache_dir=str(tmp_path / "cache"))


@pytest.fixture
def task(tmp_path: Path) -> LoggedTask:
    return LoggedTask(tmp_path / "encoded.log")


def entries(settings: DataSection) -> list[Path]:
    folders = (path for path in Path(str(settings.cache_dir)).iterdir() if path.is_dir())
    return sorted(path for path in folders if not path.name.startswith("rows-"))


# Hit and miss


def test_the_second_start_encodes_nothing_and_reads_the_same(settings: DataSection, task: LoggedTask) -> None:
    tokenizer = byte_tokenizer()
    first = load(settings, task, tokenizer)
    assert not first.cached and task.written() == [*TEXTS, "dev"]
    for again in (tokenizer, byte_tokenizer()):  # also where the tokenizer was used meanwhile
        again(["padded", "and cut"], padding=True, truncation=True, max_length=5)
        second = load(settings, task, again)
        assert second.cached and task.written() == [*TEXTS, "dev"]
        assert second.train.take(range(3)) == first.train.take(range(3))
        assert (second.fingerprint, second.train.report) == (first.fingerprint, first.train.report)


def test_the_same_content_elsewhere_is_a_hit(tmp_path: Path, settings: DataSection, task: LoggedTask) -> None:
    first = load(settings, task)
    (tmp_path / "moved").mkdir()
    moved = write_jsonl(tmp_path / "moved" / "other.jsonl", labelled(*TEXTS))
    second = load(settings.model_copy(update={"train": moved}), task)
    assert second.cached and second.fingerprint == first.fingerprint


def test_a_tokenizer_is_known_by_its_content_not_by_its_folder(
    tmp_path: Path, settings: DataSection, task: LoggedTask
) -> None:
    from transformers import AutoTokenizer

    byte_tokenizer().save_pretrained(tmp_path / "here")
    AutoTokenizer.from_pretrained(tmp_path / "here").save_pretrained(tmp_path / "there")
    first = load(settings, task, AutoTokenizer.from_pretrained(tmp_path / "here"))
    assert load(settings, task, AutoTokenizer.from_pretrained(tmp_path / "there")).fingerprint == first.fingerprint


MISSES: dict[str, dict[str, Any]] = {
    "one byte of the data": {"texts": ("one", "twi", "three")},
    "the order of the rows": {"texts": ("three", "two", "one")},
    "the tokenizer's tokens": {"tokenizer": {"bos_token": "<start>"}},
    "the tokenizer's template": {"tokenizer": {"chat_template": "{{ messages }}"}},
    "max_length": {"max_length": 99},
    "a task setting": {"task": {"labels": ["b", "a"]}},
    "on_long": {"section": {"on_long": "drop"}},
    "on_bad_row": {"section": {"on_bad_row": "skip"}},
    "columns": {"section": {"columns": {"label": "label"}}},
    "encoding": {"section": {"encoding": "latin-1"}},
}


@pytest.mark.parametrize("change", MISSES.values(), ids=MISSES.keys())
def test_what_examples_depend_on_misses(
    tmp_path: Path, settings: DataSection, task: LoggedTask, change: dict[str, Any]
) -> None:
    first = load(settings, task)
    write_jsonl(tmp_path / "train.jsonl", labelled(*change.get("texts", TEXTS)))
    other = LoggedTask(task.log, TextClassificationSettings(**change.get("task", {})))
    changed = settings.model_copy(update=change.get("section", {}))
    second = load(changed, other, byte_tokenizer(**change.get("tokenizer", {})), change.get("max_length", 100))
    assert not second.cached
    assert second.fingerprint != first.fingerprint
    assert task.written()[4:7] == list(change.get("texts", TEXTS))


def test_a_newer_encoder_does_not_read_old_examples(settings: DataSection, task: LoggedTask) -> None:
    class Newer(LoggedTask):
        encoder_version = LoggedTask.encoder_version + 1

    Newer.__qualname__ = LoggedTask.__qualname__
    load(settings, task)
    assert not load(settings, Newer(task.log)).cached


def test_a_new_dev_split_leaves_the_training_examples_alone(
    tmp_path: Path, settings: DataSection, task: LoggedTask
) -> None:
    first = load(settings, task)
    write_jsonl(tmp_path / "dev.jsonl", labelled("other"))
    second = load(settings, task)
    assert task.written() == [*TEXTS, "dev", "other"]
    assert not second.cached and second.fingerprint == first.fingerprint


# Faults


def damage_by_cutting(entry: Path) -> None:
    [file] = entry.glob("*.arrow")
    file.write_bytes(file.read_bytes()[:-10])


def damage_one_byte(entry: Path) -> None:
    [file] = entry.glob("*.arrow")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def damage_by_removing(entry: Path) -> None:
    next(entry.glob("*.arrow")).unlink()


def damage_info(entry: Path) -> None:
    (entry / "info.json").write_text('{"counts": ')


def damage_no_info(entry: Path) -> None:
    (entry / "info.json").unlink()


@pytest.mark.parametrize(
    "damage", [damage_by_cutting, damage_one_byte, damage_by_removing, damage_info, damage_no_info]
)
def test_a_damaged_entry_is_encoded_anew(settings: DataSection, task: LoggedTask, damage: Any) -> None:
    first = load(settings, task).train.take(range(3))
    for entry in entries(settings):
        damage(entry)
    second = load(settings, task)
    assert not second.cached and len(task.written()) == 8
    assert second.train.take(range(3)) == first
    assert load(settings, task).cached


START = """
import sys, time
from pathlib import Path
from onecurve.config import DataSection
from tests.data.byte_level import LoggedTask, byte_tokenizer, load

class Slow(LoggedTask):
    def encode(self, *arguments):
        time.sleep(float(sys.argv[2]))
        return super().encode(*arguments)

Slow.__module__, Slow.__qualname__ = LoggedTask.__module__, LoggedTask.__qualname__
byte_tokenizer()
print("ready", flush=True)
input()
data = load(DataSection.model_validate_json(sys.argv[1]), Slow(Path(sys.argv[3])))
print(data.cached, data.fingerprint, len(data.train))
"""


def start(settings: DataSection, task: LoggedTask, seconds: float, count: int) -> "list[subprocess.Popen[str]]":
    """Start processes that load the data at the same moment, taking so long a row."""
    arguments = [sys.executable, "-c", START, settings.model_dump_json(), str(seconds), str(task.log)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(arguments, cwd=ROOT, **pipes) for _ in range(count)]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * count
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    return processes


def test_of_two_processes_that_start_at_once_one_encodes(settings: DataSection, task: LoggedTask) -> None:
    both = start(settings, task, seconds=0.2, count=2)
    said = [process.communicate(timeout=300)[0].split() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert said[0][1:] == said[1][1:]
    assert task.written() == [*TEXTS, "dev"]


def test_what_a_killed_writer_leaves_is_not_read_and_is_cleared_away(settings: DataSection, task: LoggedTask) -> None:
    [process] = start(settings, task, seconds=1, count=1)
    deadline = time.monotonic() + 300
    while not task.written() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert ["incomplete" in entry.name for entry in entries(settings)] == [True]
    assert task.written() != [*TEXTS, "dev"]

    assert len(load(settings, task).train) == 3
    assert not [entry for entry in entries(settings) if "incomplete" in entry.name]
    assert load(settings, task).cached


# Where it lies


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path, settings: DataSection, task: LoggedTask) -> None:
    (tmp_path / "file").write_text("")
    unusable = settings.model_copy(update={"cache_dir": str(tmp_path / "file" / "cache")})
    with pytest.raises(LaunchError, match=r"data\.cache_dir: encoded examples cannot be written to .*Not a directory"):
        load(unusable, task)


def test_the_users_cache_is_used_where_none_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root(None) == tmp_path / "xdg" / "onecurve"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_root(None) == tmp_path / ".cache" / "onecurve"
    assert cache_root("~/mine") == tmp_path / "mine"


# What no file and no setting tells


@pytest.fixture
def chats(tmp_path: Path) -> DataSection:
    rows = [{"prompt": f"what is {n}?", "response": f"{n}."} for n in range(4)]
    return DataSection(train=write_jsonl(tmp_path / "chats.jsonl", rows), cache_dir=str(tmp_path / "cache"))


DATED = "Today is {{ strftime_now('%d %b %Y') }}.{% for m in messages %}{{ m.role }}: {{ m.content }}<end>{% endfor %}"


def load_on(day: datetime, settings: DataSection, monkeypatch: pytest.MonkeyPatch, **task: Any) -> Data:
    set_clock(monkeypatch, day)
    return load(settings, Sft(SftSettings(**task)), byte_tokenizer(chat_template=DATED), 500)


def test_the_same_examples_are_encoded_on_any_day(
    tmp_path: Path, chats: DataSection, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_on(datetime(2025, 5, 9), chats, monkeypatch)
    elsewhere = chats.model_copy(update={"cache_dir": str(tmp_path / "another node's")})
    second = load_on(datetime(2025, 11, 26), elsewhere, monkeypatch)
    assert not first.cached and not second.cached
    assert first.train.take(range(4)) == second.train.take(range(4))
    assert first.fingerprint == second.fingerprint


def test_another_date_is_another_fingerprint(chats: DataSection, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_on(datetime(2025, 5, 9), chats, monkeypatch)
    second = load_on(datetime(2025, 5, 9), chats, monkeypatch, date=date(2025, 1, 2))
    assert not second.cached and second.fingerprint != first.fingerprint
    assert first.train[0]["input_ids"] != second.train[0]["input_ids"]


def test_code_that_encodes_otherwise_is_another_key_whatever_version_it_bears(
    settings: DataSection, task: LoggedTask
) -> None:
    class Shouting(LoggedTask):
        def encode(self, row: Row, *arguments: Any) -> list[Example]:
            return super().encode({**row, "text": row["text"].upper()}, *arguments)

    Shouting.__module__, Shouting.__qualname__ = LoggedTask.__module__, LoggedTask.__qualname__
    first = load(settings, task)
    second = load(settings, Shouting(task.log))
    assert not second.cached and second.fingerprint != first.fingerprint


def test_a_transformers_that_renders_otherwise_is_another_key_and_one_that_renders_alike_is_not(
    chats: DataSection, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tokenizers
    import transformers

    first = load_on(datetime(2025, 5, 9), chats, monkeypatch)
    for package in (tokenizers, transformers):
        monkeypatch.setattr(package, "__version__", "99.0")
    alike = load_on(datetime(2025, 5, 9), chats, monkeypatch)
    assert alike.cached and alike.fingerprint == first.fingerprint

    kind = transformers.PreTrainedTokenizerFast
    render = kind.apply_chat_template
    monkeypatch.setattr(kind, "apply_chat_template", lambda *given, **options: " " + render(*given, **options))
    other = load_on(datetime(2025, 5, 9), chats, monkeypatch)
    assert not other.cached and other.fingerprint != first.fingerprint


def test_only_a_few_short_rows_are_encoded_to_compare() -> None:
    lengths = []

    def encode(row: Row) -> list[Example]:
        lengths.append(len(row["text"]))
        if row["text"].startswith("bad"):
            raise BadRow("it is bad")
        return [{"input_ids": [len(row["text"])]}]

    texts = ["a", "bad", "b" * 10**6, *("c" * 9_000,) * 20]
    digest = sample_digest([{"text": text} for text in texts], encode)
    assert lengths == [1, 3, *(9_000,) * 11]
    assert sample_digest([{"text": text} for text in texts[:1]], encode) != digest
    lengths.clear()
    sample_digest([{"text": "d" * 10**6, "messages": ["e" * 10**6]}], encode)
    assert lengths == [10_000], "there is always one, and its text is cut"


def test_the_rows_that_are_compared_lie_all_over_the_file(tmp_path: Path) -> None:
    rows = labelled(*(f"text {number}" for number in range(100)))
    settings = DataSection(train=write_jsonl(tmp_path / "a.jsonl", rows), cache_dir=str(tmp_path / "cache"))
    task = TextClassification(TextClassificationSettings())
    checker = RowChecker(open_source("data.train", settings.train, settings, task.columns), task, skips=False)
    _, _, looked = check_splits({"train": checker})
    assert [row["text"] for row in looked["train"].sample] == [
        f"text {number}" for number in (0, 1, 2, 4, 8, 16, 32, 64)
    ]
