"""Class labels of hub datasets: by name at any depth, in the order that the dataset gives them."""

from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, LargeList, Sequence, Value

from onecurve.config import DataSection, TaskSection
from onecurve.data.rows import Located
from onecurve.data.sources import open_source
from onecurve.tasks import load_task
from tests.data.byte_level import load
from tests.data.hub_datasets import keep

MNLI = ["entailment", "neutral", "contradiction"]
EMOTIONS = ["joy", "anger", "admiration"]
TAGS = ["O", "B-PER", "I-PER"]


def test_class_labels_are_read_by_name_at_any_depth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tags = ClassLabel(names=TAGS)
    features = {
        "listed": Sequence(tags),
        "large": LargeList(tags),
        "struct": {"tag": tags, "score": Value("float32")},
        "spans": [{"tag": tags, "text": Value("string")}],
        "nested": Sequence(Sequence(tags)),
        "tensors": Sequence({"tag": tags}),
        "plain": Sequence(Value("int64")),
    }
    row = {
        "listed": [0, 2, 1],
        "large": [1],
        "struct": {"tag": 1, "score": 0.5},
        "spans": [{"tag": 0, "text": "a"}, {"tag": 2, "text": "b"}],
        "nested": [[0], [], [2, 1]],
        "tensors": {"tag": [2, 0]},
        "plain": [0, 1],
    }
    keep(tmp_path, monkeypatch, features, {"train": [row, dict.fromkeys(features)]})
    source = open_source("data.train", "org/name", DataSection(train="x"), {f"{name}?": "" for name in features})
    first, second = source.rows()
    assert isinstance(first, Located) and isinstance(second, Located)
    assert first.row == {
        "listed": ["O", "I-PER", "B-PER"],
        "large": ["B-PER"],
        "struct": {"tag": "B-PER", "score": 0.5},
        "spans": [{"tag": "O", "text": "a"}, {"tag": "I-PER", "text": "b"}],
        "nested": [["O"], [], ["I-PER", "B-PER"]],
        "tensors": {"tag": ["I-PER", "O"]},
        "plain": [0, 1],
    }
    assert second.row == {}


def survey(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, label: Any, *labels: Any, **task: Any) -> Any:
    rows = [{"body": f"text {value}", "label": value} for value in labels]
    splits = {"train": rows, "validation": [{"body": "dev", "label": rows[0]["label"]}]}
    keep(tmp_path, monkeypatch, {"body": Value("string"), "label": label}, splits)
    columns = {"text": "body"}
    settings = DataSection(train="org/name", eval="org/name", columns=columns, cache_dir=str(tmp_path / "cache"))
    return load(settings, load_task(TaskSection(name="text_classification", **task)))


def test_ids_are_the_datasets_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = survey(tmp_path, monkeypatch, ClassLabel(names=MNLI), 2, 0, 1)
    assert (data.survey.labels, data.survey.order, data.survey.unseen) == (MNLI, "dataset", [])
    assert [data.train[index]["labels"] for index in range(3)] == [2, 0, 1]
    assert data.eval[0]["labels"] == 2


def test_a_label_that_no_row_has_keeps_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = survey(tmp_path, monkeypatch, ClassLabel(names=MNLI), 2, 0)
    assert (data.survey.labels, data.survey.unseen) == (MNLI, ["neutral"])


def test_several_class_labels_a_row_are_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    several = {"problem_type": "multi_label_classification"}
    data = survey(tmp_path, monkeypatch, Sequence(ClassLabel(names=EMOTIONS)), [2], [0, 2], [1], **several)
    assert data.survey.labels == EMOTIONS
    assert [data.train[index]["labels"] for index in range(3)] == [[0, 0, 1], [1, 0, 1], [0, 1, 0]]


def test_the_recipes_order_goes_before_the_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = ["neutral", "contradiction", "entailment"]
    data = survey(tmp_path, monkeypatch, ClassLabel(names=MNLI), 2, 0, 1, labels=order)
    assert (data.survey.labels, data.survey.order) == (order, "recipe")
    assert [data.train[index]["labels"] for index in range(3)] == [1, 2, 0]
