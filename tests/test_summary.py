from pathlib import Path
from typing import Any

from onecurve.config import DataSection
from onecurve.summary import _describe_columns
from onecurve.tasks.sft import Task
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
