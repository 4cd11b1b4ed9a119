import json
import math
from pathlib import Path
from typing import Any

import pytest

from onecurve.config import TaskSection
from onecurve.errors import ConfigError, DataError
from onecurve.tasks import load_task
from onecurve.tasks.base import BadRow, Survey
from onecurve.tasks.text_classification import Task, TextClassificationSettings
from tests.readings import padding, reading
from tests.tasks.contract import Case

MULTI, NUMBER = "multi_label_classification", "regression"
TEXTS = ["the quick brown fox jumps over the lazy dog", "the dog", "we were happy with the film, and they were not."]


def _labelled(*labels: Any, **columns: Any) -> list[dict[str, Any]]:
    return [{"text": text, "label": label, **columns} for text, label in zip(TEXTS, labels, strict=True)]


CASES = {
    "single_label": Case(_labelled("no", "yes", "maybe"), model="tiny_bert", nats_per_item=math.log(3)),
    "text_pairs": Case(_labelled(0, 1, 1, text_pair="a dog sleeps"), model="tiny_bert", nats_per_item=math.log(2)),
    "single_label_on_a_decoder": Case(_labelled(0, 1, 0), nats_per_item=math.log(2)),
    "multi_label": Case(
        _labelled(["a", "b"], [], ["c"]), {"problem_type": MULTI}, model="tiny_bert", nats_per_item=math.log(2)
    ),
    # Each squared distance to zero is one
    "regression": Case(_labelled(1, -1, 1.0), {"problem_type": NUMBER}, model="tiny_bert", nats_per_item=1.0),
}


@pytest.fixture(scope="module")
def tokenizer(tiny_bert: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_bert)


def _task(problem_type: str = "single_label_classification", **settings: Any) -> Task:
    return load_task(TaskSection(name="text_classification", problem_type=problem_type, **settings))


def _rows(*labels: Any) -> list[dict[str, Any]]:
    return [{"text": "the dog", "label": label} for label in labels]


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["yes", "no", "maybe", "no"], ["maybe", "no", "yes"]),
        ([10, 9, 2, 10], ["2", "9", "10"]),
        (["10", "9", " 2"], ["2", "9", "10"]),
        ([1, -1, "0"], ["-1", "0", "1"]),
        ([True, False], ["false", "true"]),
        (["10", "9", "x"], ["10", "9", "x"]),
        ([1.0, 0, "10.0"], ["0", "1", "10"]),  # pandas' integers beside missing values, in JSON and in CSV
        (["v1.0", "1.05", "1."], ["1.", "1.05", "v1.0"]),
    ],
)
def test_labels_are_learnt_numbers_by_value_and_else_from_a_to_z(labels: list[Any], names: list[str]) -> None:
    assert _task().survey(_rows(*labels)).labels == names


def test_labels_of_the_recipe_fix_the_order_and_what_may_occur() -> None:
    task = _task(labels=["no", "yes", 3])
    assert task.survey(_rows("yes")).labels == ["no", "yes", "3"]
    with pytest.raises(BadRow, match=r"label 'yess' is not in task.labels. Did you mean 'yes'\?"):
        task.check(*_rows("yess"))


def test_the_model_learns_the_label_names() -> None:
    config = _task().model_config(Survey(["no", "yes"]))
    assert config["id2label"] == {0: "no", 1: "yes"} and config["label2id"] == {"no": 0, "yes": 1}
    assert config["num_labels"] == 2 and config["problem_type"] == "single_label_classification"
    assert _task(NUMBER).model_config(Survey()) == {"problem_type": NUMBER, "num_labels": 1}


def test_one_label_alone_is_no_classification() -> None:
    with pytest.raises(DataError, match=r"at least 2 different labels; the training split has 'yes'"):
        _task().survey(_rows("yes", "yes"))
    with pytest.raises(DataError, match="has none"):
        _task(MULTI).survey(_rows([], ""))


def test_a_label_that_training_never_saw_is_named_with_the_nearest_known() -> None:
    survey = Survey(["negative", "positive"])
    _task().check_label(*_rows("positive"), survey)
    with pytest.raises(BadRow, match=r"label 'postive' was never seen in training. Did you mean 'positive'\?"):
        _task().check_label(*_rows("postive"), survey)
    with pytest.raises(BadRow, match=r"'neutral' was never seen in training. Known: negative, positive"):
        _task(MULTI).check_label(*_rows(["positive", "neutral"]), survey)
    _task(NUMBER).check_label(*_rows(0.5), Survey())


@pytest.mark.parametrize(
    ("value", "target"), [(["a", "c"], [1, 0, 1]), ("c, a", [1, 0, 1]), ([], [0, 0, 0]), ("", [0, 0, 0])]
)
def test_several_labels_become_a_vector(value: Any, target: list[int], tokenizer: Any) -> None:
    (row,) = _rows(value)
    task = _task(MULTI)
    task.check(row)
    (example,) = task.encode(row, Survey(["a", "b", "c"]), reading(tokenizer, 64), truncate=True)
    assert example["labels"] == target and example["num_items"] == 3


VECTORS = [
    [[1, 0], [0, 1]],
    [[1, 0], [0, 1], [0, 1], []],
    [[0.0, 1.0], [1.0, 0.0]],
    [[True, False], [False, True]],
    [[1], [0]],
    [(1, 0), (0, 1)],
    ["1,0", "0,1"],
    ["1.0, 0.0", "0.0, 1.0"],
    ["[1, 0]", "[0, 1]"],
    ["1", "0"],
]


@pytest.mark.parametrize("labels", VECTORS)
def test_what_may_be_a_vector_is_not_taken_for_the_names_0_and_1(labels: list[Any]) -> None:
    rows = _rows(*labels)
    for row in rows:
        _task(MULTI).check(row)
    with pytest.raises(DataError, match=r"data\.train: each label is \d zeros and ones .* Set task\.labels to \d name"):
        _task(MULTI).survey(rows)


@pytest.mark.parametrize("labels", VECTORS)
def test_a_vector_is_read_by_the_labels_of_the_recipe(labels: list[Any], tokenizer: Any) -> None:
    names = ["spam", "toxic"] if len(_parts(labels[0])) == 2 else ["spam"]
    task, rows = _task(MULTI, labels=names), _rows(*labels)
    for row in rows:
        task.check(row)
    survey = task.survey(rows)
    assert survey.labels == names
    for row in rows:
        (example,) = task.encode(row, survey, reading(tokenizer, 64), truncate=True)
        assert example["labels"] == ([int(float(part)) for part in _parts(row["label"])] or [0, 0])


def _parts(value: Any) -> list[Any]:
    return value.strip("[]").split(",") if isinstance(value, str) else list(value)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([[0], [1, 3]], ["0", "1", "3"]),
        ([[0], [1], [0, 1], []], ["0", "1"]),
        ([[0.0], [2.0]], ["0", "2"]),
        ([["0"], ["1"]], ["0", "1"]),
        (['["0", "1"]', '["1"]'], ["0", "1"]),
        (["['a', 'b']", "[]"], ["a", "b"]),
        (["0", "1,3"], ["0", "1", "3"]),
    ],
)
def test_names_that_are_numbers_are_names_where_they_can_be_no_vector(labels: list[Any], names: list[str]) -> None:
    for row in _rows(*labels):
        _task(MULTI).check(row)
    assert _task(MULTI).survey(_rows(*labels)).labels == names


def test_the_recipe_says_that_zero_and_one_are_names() -> None:
    task = _task(MULTI, labels=[0, 1])
    assert [task._problem.names(value) for value in ([0], [1], [], ["0", "1"])] == [["0"], ["1"], [], ["0", "1"]]
    assert task._problem.names([1, 1]) == ["0", "1"]
    with pytest.raises(BadRow, match=r"label \[0, 1\] is ambiguous: the names 0 and 1, or a vector"):
        task.check(*_rows([0, 1]))


def test_a_vector_of_another_length_is_named() -> None:
    with pytest.raises(BadRow, match=r"vector of 4 zeros and ones, and task\.labels has 3 names"):
        _task(MULTI, labels=["a", "b", "c"]).check(*_rows([1, 0, 0, 0]))


def test_labels_of_the_recipe_that_no_row_has_are_known() -> None:
    assert _task(labels=["no", "yes", 3]).survey(_rows("yes")).unseen == ["no", "3"]
    assert _task(MULTI, labels=["a", "b"]).survey(_rows([0, 1], [0, 0])).unseen == ["a"]


def test_names_may_be_separated_by_anything() -> None:
    assert _task(MULTI, label_separator="|").survey(_rows("a|b, c", "b, c")).labels == ["a", "b, c"]


@pytest.mark.parametrize(("value", "target"), [(2, 2.0), ("-1.5", -1.5), (" 1e3 ", 1000.0), (0.25, 0.25)])
def test_a_number_may_be_text(value: Any, target: float, tokenizer: Any) -> None:
    (row,) = _rows(value)
    _task(NUMBER).check(row)
    (example,) = _task(NUMBER).encode(row, _task(NUMBER).survey([row]), reading(tokenizer, 64), truncate=True)
    assert example["labels"] == target and example["num_items"] == 1


@pytest.mark.parametrize(
    ("problem_type", "row", "why"),
    [
        ("single_label_classification", {"label": 1}, "text is missing"),
        ("single_label_classification", {"text": "", "label": 1}, "text is empty"),
        ("single_label_classification", {"text": 7, "label": 1}, r"text must be text; got 7 \(int\)"),
        ("single_label_classification", {"text": "a", "text_pair": " ", "label": 1}, "text_pair is empty"),
        ("single_label_classification", {"text": "a"}, "label is missing"),
        ("single_label_classification", {"text": "a", "label": ""}, "label is empty"),
        ("single_label_classification", {"text": "a", "label": 1.5}, r"got 1.5 \(float\); .*problem_type: regression"),
        ("single_label_classification", {"text": "a", "label": float("nan")}, r"whole number; got nan \(float\)"),
        ("single_label_classification", {"text": "a", "label": ["x"]}, r"got \['x'\] \(list\)"),
        (MULTI, {"text": "a", "label": 3}, r"must be a list of names.*got 3 \(int\)"),
        (MULTI, {"text": "a", "label": [0, 1, 0]}, "vector of 3 zeros and ones, and task.labels is not set"),
        (MULTI, {"text": "a", "label": "1,0,0"}, "vector of 3 zeros and ones, and task.labels is not set"),
        (MULTI, {"text": "a", "label": [0.0, 0.5]}, r"got 0.5 \(float\)"),
        (MULTI, {"text": "a", "label": ["x", "x"]}, "repeats a name"),
        (MULTI, {"text": "a", "label": "[1 0 0]"}, r"looks like a list but is not JSON: '\[1 0 0\]'"),
        (MULTI, {"text": "a", "label": "x,,y"}, "label is empty"),
        (NUMBER, {"text": "a", "label": "high"}, r"finite number; got 'high' \(str\)"),
        (NUMBER, {"text": "a", "label": "nan"}, "finite number"),
        (NUMBER, {"text": "a", "label": True}, r"got True \(bool\)"),
        (NUMBER, {"text": "a", "label": [1.0]}, r"got \[1.0\] \(list\)"),
    ],
)
def test_a_bad_row_says_why(problem_type: str, row: dict[str, Any], why: str) -> None:
    with pytest.raises(BadRow, match=why):
        _task(problem_type).check(row)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"problem_typ": "regression"}, "Unknown setting 'task.problem_typ'. Did you mean 'task.problem_type'"),
        ({"problem_type": "ranking"}, "task.problem_type: must be 'single_label_classification'"),
        ({"problem_type": NUMBER, "labels": ["a", "b"]}, "regression has no labels"),
        ({"labels": ["a"]}, "must name at least 2"),
        ({"labels": ["1", 1]}, "distinct"),
        ({"label_separator": ""}, "task.label_separator"),
    ],
)
def test_a_bad_setting_says_why(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        load_task(TaskSection(name="text_classification", **settings))


def test_the_second_text_is_told_from_the_first(tokenizer: Any) -> None:
    task, survey = _task(), Survey(["0", "1"])
    pair, single = {"text": "the dog", "text_pair": "the fox", "label": 1}, {"text": "the dog", "label": 0}
    examples = [task.encode(row, survey, reading(tokenizer, 64), truncate=True)[0] for row in (pair, single)]
    assert tokenizer.decode(examples[0]["input_ids"]) == "[CLS]the dog[SEP]the fox[SEP]"
    batch = task.collate(examples, padding(tokenizer.pad_token_id))
    assert batch["token_type_ids"].sum(-1).tolist() == [
        len(tokenizer("the fox", add_special_tokens=False).input_ids) + 1,
        0,
    ]
    assert "token_type_ids" not in task.collate(examples[1:], padding(tokenizer.pad_token_id))


def test_an_example_is_shown_with_its_label_by_name(tokenizer: Any) -> None:
    (example,) = _task(MULTI).encode(*_rows(["a", "c"]), Survey(["a", "b", "c"]), reading(tokenizer, 64), truncate=True)
    assert _task(MULTI).describe(example, Survey(["a", "b", "c"]), tokenizer) == "[CLS]the dog[SEP] -> «a, c»"


def test_predictions_are_ids_sets_and_numbers() -> None:
    import torch

    logits, single = torch.tensor([[0.2, -1.0], [0.5, 3.0]]), torch.tensor([[0.5], [-2.0]])
    assert _task().predict(logits, {"labels": torch.tensor([0, 0])}) == [(0, 0), (1, 0)]
    assert _task(MULTI).predict(logits, {"labels": torch.tensor([[1, 0], [0, 1]])}) == [
        ([1, 0], [1, 0]),
        ([1, 1], [0, 1]),
    ]
    assert _task(NUMBER).predict(single, {"labels": torch.tensor([1.0, 2.0])}) == [(0.5, 1.0), (-2.0, 2.0)]


# Names for what the data has


def test_a_map_names_what_the_data_has_in_its_order(tmp_path: Path) -> None:
    settings = TextClassificationSettings(labels={2: "Sports", "1": "World"})
    task = Task(settings)
    assert settings.label_names == ["Sports", "World"]
    for value, name in ((1, "World"), ("2", "Sports"), (2.0, "Sports"), ("World", "World")):
        task.check({"text": "x", "label": value})
        assert task.row_labels({"text": "x", "label": value}) == [name]
    with pytest.raises(BadRow, match=r"label '3' is not in task\.labels\. Known: Sports, World"):
        task.check({"text": "x", "label": 3})
    survey = task.survey([{"text": "x", "label": 1}])
    assert (survey.labels, survey.order, survey.unseen) == (["Sports", "World"], "recipe", ["Sports"])
    again = TextClassificationSettings(**json.loads(json.dumps(settings.model_dump(mode="json"))))
    assert again.label_names == settings.label_names and again.renamed == settings.renamed


def test_a_map_names_several_labels_and_positions_of_vectors() -> None:
    kind = "multi_label_classification"
    task = Task(TextClassificationSettings(problem_type=kind, labels={"a": "Anger", "j": "Joy", "0": "None"}))
    for value in ("a,j", ["j", "a"], ["Anger", "j"], [1, 1, 0]):
        assert sorted(task.row_labels({"label": value})) == ["Anger", "Joy"]
    with pytest.raises(BadRow, match="ambiguous"):
        Task(TextClassificationSettings(problem_type=kind, labels={0: "no", 1: "yes"})).row_labels({"label": [1, 0]})


def test_names_in_a_list_do_not_name_numbers_and_the_map_is_advised() -> None:
    task = Task(TextClassificationSettings(labels=["World", "Sports"]))
    with pytest.raises(BadRow, match=r"label '3' is not in task\.labels\. .*map them, as in task\.labels: \{0: NAME"):
        task.check({"text": "x", "label": 3})


def test_a_map_that_gives_a_name_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="labels must be distinct"):
        TextClassificationSettings(labels={1: "a", 2: "a"})
