from pathlib import Path
from typing import Any

from onecurve.config import DataSection
from onecurve.summary import _describe_columns, _describe_counts
from onecurve.tasks.sft import Task
from onecurve.tasks.text_classification import Task as TextClassification
from tests.data.byte_level import byte_tokenizer, load, write_jsonl

ROW = {"instruction": "Add.", "input": "3 and 4", "output": "7"}


def describe(tmp_path: Path, train: list[Any], dev: list[Any]) -> str:
    paths = {
        name: write_jsonl(tmp_path / f"{name}.jsonl", rows) for name, rows in (("train", train), ("eval", dev)) if rows
    }
    settings = DataSection(cache_dir=str(tmp_path / "cache"), **paths)
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}<end>{% endfor %}"
    return _describe_columns(load(settings, Task(Task.Settings()), byte_tokenizer(chat_template=template)).splits)


def test_columns_are_named_by_file_and_task_with_those_that_are_not_read(tmp_path: Path) -> None:
    rows = [{"id": 1, **ROW}, {"id": 2, **ROW, "system": "Be kind."}, {"id": 3, **ROW, "history": None}]
    told = "instruction as prompt, input, output as response"
    assert describe(tmp_path, rows, []) == f"{told}; not read: id, system"
    assert describe(tmp_path, [ROW], []) == told
    plain = {"prompt": "What?", "response": "That."}
    assert describe(tmp_path, [plain], [{**plain, "split": "dev"}]) == "prompt, response; not read: split"


def test_of_many_columns_that_are_not_read_twenty_are_named(tmp_path: Path) -> None:
    extra = {f"c{number}": 1 for number in range(25)}
    assert describe(tmp_path, [ROW | extra], []).endswith("; not read: " + ", ".join(list(extra)[:20]) + " and 5 more")


def counts(tmp_path: Path, labels: list[str], dev: list[str]) -> list[str]:
    def rows(names: list[str]) -> list[Any]:
        return [{"text": "x", "label": name} for name in names]

    train = write_jsonl(tmp_path / "train.jsonl", rows(labels))
    settings = DataSection(
        train=train, eval=write_jsonl(tmp_path / "dev.jsonl", rows(dev)), cache_dir=str(tmp_path / "cache")
    )
    data = load(settings, TextClassification(TextClassification.Settings()))
    return list(_describe_counts(data.survey, data.splits))


def test_labels_are_counted_by_split(tmp_path: Path) -> None:
    assert counts(tmp_path, ["b", "a", "b", "a"], ["b"]) == ["counts    train: a 2, b 2; eval: a 0, b 1"]


def test_many_labels_of_one_row_each_are_seen(tmp_path: Path) -> None:
    names = [f"text number {number:03}" for number in range(479)]
    told = counts(tmp_path, ["often", "often", *names], ["often"])
    assert told[0].startswith("counts    train: often 2, text number 000 1, text number 001 1, ..., ")
    assert told[1] == "          with a single one in training: 479 of 480 labels"
