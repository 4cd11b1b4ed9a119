from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from peft import LoraConfig, get_peft_model
from torch import nn

from onecurve.config import DataSection, Recipe
from onecurve.data.sources import open_source
from onecurve.data.splits import Split
from onecurve.summary import (
    _describe_columns,
    _describe_counts,
    _describe_items,
    _describe_left_out,
    _describe_prompts,
    _describe_tally,
    _describe_trained,
    _unread,
)
from onecurve.tasks.sft import Task
from onecurve.tasks.text_classification import Task as TextClassification
from tests.data.byte_level import byte_tokenizer, load, write_jsonl

ROW = {"instruction": "Add.", "input": "3 and 4", "output": "7"}


def splits(tmp_path: Path, train: list[Any], dev: list[Any]) -> tuple[list[Split], Task]:
    paths = {
        name: write_jsonl(tmp_path / f"{name}.jsonl", rows) for name, rows in (("train", train), ("eval", dev)) if rows
    }
    settings = DataSection(cache_dir=str(tmp_path / "cache"), **paths)
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}<end>{% endfor %}"
    task = Task(Task.Settings())
    return load(settings, task, byte_tokenizer(chat_template=template)).splits, task


def describe(tmp_path: Path, train: list[Any], dev: list[Any]) -> str:
    return _describe_columns(*splits(tmp_path, train, dev))


def test_columns_are_named_by_file_and_task_with_those_that_are_not_read(tmp_path: Path) -> None:
    rows = [{"id": 1, **ROW}, {"id": 2, **ROW, "author": "me"}, {"id": 3, **ROW, "history": None}]
    told = "Alpaca: instruction as prompt, input, output as response"
    assert describe(tmp_path, rows, []) == f"{told}; not read: id, author"
    assert describe(tmp_path, [ROW], []) == told
    plain = {"prompt": "What?", "response": "That."}
    assert describe(tmp_path, [plain], [{**plain, "split": "dev"}]) == "prompt, response; not read: split"


def test_of_many_columns_that_are_not_read_twenty_are_named(tmp_path: Path) -> None:
    extra = {f"c{number}": 1 for number in range(25)}
    assert describe(tmp_path, [ROW | extra], []).endswith("; not read: " + ", ".join(list(extra)[:20]) + " and 5 more")


TURNS = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "That."}]
SHARED = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "That."}]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"messages": TURNS}, "messages"),
        ({"messages": TURNS, "system": "Be kind.", "text": "What? That."}, "messages, system, text"),
        ({"conversations": SHARED, "system": "Be kind."}, "ShareGPT: conversations as messages, system"),
        ({"conversation": TURNS, "model": "x"}, "conversation: conversation as messages; not read: model"),
        ({**ROW, "text": "Add. 7"}, "Alpaca: instruction as prompt, input, output as response; not read: text"),
        ({"prompt": "What?", "completion": "That."}, "prompt and completion: prompt, completion as response"),
        ({"prompt": TURNS[:1], "completion": TURNS[1:]}, "prompt and completion: prompt, completion as response"),
        ({"instruction": "What?", "context": "Here.", "response": "That."},
         "Dolly: instruction as prompt, context as input, response"),
        ({"text": "What? That."}, "text"),
    ],
)  # fmt: skip
def test_the_form_of_the_rows_is_named(row: dict[str, Any], told: str, tmp_path: Path) -> None:
    assert describe(tmp_path, [row], []) == told


def test_how_answers_were_found_is_told_with_the_cache_and_without(tmp_path: Path) -> None:
    for _ in range(2):
        found, _ = splits(tmp_path, [{"messages": [*TURNS, *TURNS]}, {"text": "That."}], [{"messages": TURNS}])
        assert list(_describe_tally(found)) == [
            "found     3 answers by the difference of two renderings, 1 texts learnt whole"
        ]


class _Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.norm = nn.Linear(2, 2), nn.LayerNorm(2)


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([_Layer(), _Layer()])
        self.classifier = nn.Linear(2, 3)


def test_what_is_trained_is_named_each_module_once_over_all_layers() -> None:
    adapted = get_peft_model(_Model(), LoraConfig(target_modules=["query"], modules_to_save=["classifier"]))
    assert _describe_trained(adapted) == "query (2), classifier"
    assert _describe_trained(_Model()) == "query (2), norm (2), classifier"


def test_weights_that_a_folder_has_and_a_run_does_not_read_are_said(tmp_path: Path) -> None:
    recipe = {"output_dir": "x", "task": {"name": "sft"}, "data": {"train": "a"}, "train": {"max_steps": 1}}
    model = {"path": str(tmp_path), "init": "random"}
    assert _unread(Recipe.model_validate({**recipe, "model": model})) == ""
    (tmp_path / "model.safetensors").touch()
    assert "set model.init to pretrained" in _unread(Recipe.model_validate({**recipe, "model": model}))
    assert _unread(Recipe.model_validate({**recipe, "model": {"path": str(tmp_path)}})) == ""


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


def test_of_many_files_that_are_left_out_ten_are_named(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / f"{number:02}.docx").touch()
    write_jsonl(tmp_path / "train.jsonl", [{"prompt": "a", "response": "b"}])
    source = open_source("data.train", str(tmp_path), DataSection(train="x"), Task.columns)
    split = Split("train", None, None, source=source)  # type: ignore[arg-type]
    ten = ", ".join(f"{number:02}.docx" for number in range(10))
    assert list(_describe_left_out([split])) == [f"files     12 of {tmp_path} not read: {ten} and 2 more"]


def test_prompts_that_are_not_padded_are_told() -> None:
    model: Any = nn.Linear(1, 1)
    assert not list(_describe_prompts(model))
    model.prompts_apart = True
    (line,) = _describe_prompts(model)
    assert line.startswith("prompts   of one length in a pass")


@pytest.mark.parametrize(
    ("counts", "terms", "told"),
    [
        ([2, 3], {"loss": 1.0}, "5 terms of the loss from"),
        ([[2, 2], [3, 3]], {"cross_entropy": 0.5, "distillation": 0.5}, "5 terms of the loss, each of cross_entropy"),
        ([[2, 0], [3, 1]], {"topic": 1.0, "mood": 1.0}, "6 terms of the loss (topic 5, mood 1) from"),
    ],
)
def test_items_of_several_terms_are_counted_once(counts: Any, terms: dict[str, float], told: str) -> None:
    split: Any = SimpleNamespace(num_items=np.array(counts, np.int32), num_tokens=np.array([4, 6], np.int32))
    plan: Any = SimpleNamespace(each=1)
    line = _describe_items(split, plan, terms)
    assert told in line and "10 tokens" in line
