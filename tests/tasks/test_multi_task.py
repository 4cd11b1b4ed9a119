import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from onecurve.config import TaskSection
from onecurve.errors import BadRow, ConfigError, DataError
from onecurve.tasks import load_task
from onecurve.tasks.base import IGNORE_INDEX
from onecurve.tasks.multi_task import Task
from tests.readings import reading
from tests.tasks.contract import Case, Prepared, prepare, without_dropout

TOPICS = {
    "topic": {"name": "text_classification"},
    "stars": {
        "name": "text_classification",
        "problem_type": "regression",
        "weight": 0.5,
        "columns": {"label": "score"},
    },
    "flags": {"name": "text_classification", "problem_type": "multi_label_classification", "weight": 2.0},
}
TEXTS = ["the quick brown fox jumps over the lazy dog", "the dog", "we were happy with the film, and they were not."]
ROWS = [
    {"text": TEXTS[0], "topic": "animals", "score": 1.5, "flags": ["long"]},
    {"text": TEXTS[1], "topic": "pets", "flags": None},
    {"text": TEXTS[2], "topic": None, "score": -1, "flags": []},
    {"text": "a dog sleeps", "topic": "films"},
]
SLOTS = {
    "intent": {"name": "text_classification", "columns": {"text": "tokens"}},
    "tags": {"name": "token_classification", "weight": 0.5},
}
WORDS = [
    {"tokens": ["fly", "to", "Oslo"], "intent": "travel", "tags": ["O", "O", "B-place"]},
    {"tokens": ["play", "the", "quick", "fox"], "intent": "music"},
    {"tokens": ["Oslo"], "tags": ["B-place"]},
]


def _alone(model: Any, name: str) -> Any:
    """The model that transformers itself has for one head, with the weights of the whole one."""
    import transformers

    told = dict(model.config.task_heads[name])
    kind = getattr(transformers, told["kind"])
    config = type(model.config).from_dict({k: v for k, v in model.config.to_dict().items() if k != "task_heads"})
    config.update(told["config"])
    alone = kind.from_config(config)
    own, prefix = model.state_dict(), f"{model.base_model_prefix}."
    there = {key: own[key] if key.startswith(prefix) else own[f"heads.{name}_head.{key}"] for key in alone.state_dict()}
    alone.load_state_dict(there)
    return alone.eval()


def _mean_of_topic(model: Any, batch: Any) -> Any:
    rows = batch["topic/items"] > 0
    inputs = {key: batch[key][rows] for key in ("input_ids", "attention_mask")}
    return _alone(model, "topic")(**inputs, labels=batch["topic/labels"][rows]).loss


def _oracle(model: Any, batch: Any) -> Any:
    total = _mean_of_topic(model, batch)
    for name, weight in (("stars", 0.5), ("flags", 2.0)):
        rows = batch[f"{name}/items"] > 0
        inputs = {key: batch[key][rows] for key in ("input_ids", "attention_mask")}
        total = total + weight * _alone(model, name)(**inputs, labels=batch[f"{name}/labels"][rows]).loss
    return total


def _oracle_of_slots(model: Any, batch: Any) -> Any:
    total = 0.0
    for name, weight in (("intent", 1.0), ("tags", 0.5)):
        rows = batch[f"{name}/items"] > 0
        inputs = {key: batch[key][rows] for key in ("input_ids", "attention_mask")}
        total = total + weight * _alone(model, name)(**inputs, labels=batch[f"{name}/labels"][rows]).loss
    return total


CASES = {
    "heads_of_texts": Case(ROWS, {"heads": TOPICS}, model="tiny_bert", nats_per_item=math.nan, oracle=_oracle),
    "heads_of_words": Case(WORDS, {"heads": SLOTS}, model="tiny_bert", nats_per_item=math.nan, oracle=_oracle_of_slots),
    "heads_on_a_decoder": Case(ROWS, {"heads": TOPICS}, nats_per_item=math.nan, oracle=_oracle),
}


def _task(**heads: Any) -> Task:
    return load_task(TaskSection(name="multi_task", heads=heads or TOPICS))  # type: ignore[return-value]


@pytest.fixture(scope="module")
def case(tiny_bert: Path) -> Prepared:
    found = prepare(Case(**{**vars(CASES["heads_of_texts"]), "task": "multi_task"}), tiny_bert)
    without_dropout(found.model)
    return found


def test_the_gradient_is_the_weighted_sum_of_those_of_single_tasks(case: Prepared) -> None:
    ours = case.gradient(2)
    alone = {name: _alone(case.model, name) for name in TOPICS}
    batch = case.batch()
    expected = {name: torch.zeros_like(p) for name, p in case.model.named_parameters()}
    for name, model in alone.items():
        rows = batch[f"{name}/items"] > 0
        inputs = {key: batch[key][rows] for key in ("input_ids", "attention_mask")}
        model(**inputs, labels=batch[f"{name}/labels"][rows]).loss.backward()
        weight = TOPICS[name].get("weight", 1.0)
        for key, parameter in model.named_parameters():
            here = key if key in expected else f"heads.{name}_head.{key}"
            expected[here] += weight * (0 if parameter.grad is None else parameter.grad)
    theirs = torch.cat([expected[n].flatten() for n, p in case.model.named_parameters() if p.grad is not None])
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-5


def test_a_head_without_a_label_in_the_batch_still_runs_and_moves_nothing(case: Prepared) -> None:
    batch = case.batch([case.examples[1]])  # a topic alone
    assert "stars/labels" not in batch and "flags/labels" not in batch
    case.model.zero_grad(set_to_none=True)
    sums = case.task.loss_sum(case.task.forward(case.model, batch), batch)
    assert sums[0] > 0 and sums[1:].tolist() == [0, 0]
    sums.sum().backward()
    for name, parameter in case.model.heads.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.any()) == name.startswith("topic_head."), name


def test_what_a_batch_holds_for_rows_without_a_label_does_not_count(case: Prepared) -> None:
    batch = case.batch()
    assert batch["topic/items"].tolist() == [1, 1, 0, 1] and batch["flags/items"].tolist() == [1, 0, 1, 0]
    other = batch | {"topic/labels": batch["topic/labels"].where(batch["topic/items"] > 0, 2)}
    assert not torch.equal(other["topic/labels"], batch["topic/labels"])
    assert case.loss_sums(other).tolist() == case.loss_sums(batch).tolist()


def test_metrics_are_by_head_and_one_without_labels_has_none(case: Prepared) -> None:
    batch = case.batch()
    with torch.no_grad():
        pairs = case.task.predict(case.task.forward(case.model, batch), batch)
    assert [sorted(right) for _, right in pairs] == [
        ["flags", "stars", "topic"],
        ["topic"],
        ["flags", "stars"],
        ["topic"],
    ]
    scores = case.task.metrics(pairs[1:2], 1.0, case.survey)
    assert scores["topic/accuracy"] in (0, 1) and scores["stars/mse"] is None
    assert {"topic/loss", "stars/loss", "topic/macro_f1", "stars/pearson"} <= set(case.task.metric_names)
    assert {"loss", "stars/mse", "topic/loss"} <= case.task.lower_is_better


def test_a_model_says_for_all_heads(case: Prepared) -> None:
    row = case.task.read_text("the dog")
    (example,) = case.task.encode(row, case.survey, case.reading, truncate=False)
    batch = case.task.collate([example], case.reading)
    with torch.no_grad():
        (told,) = case.task.answers(case.task.forward(case.model, batch), batch, [example], case.survey)
    assert sorted(told) == ["flags", "stars", "topic"]
    assert told["topic"]["label"] in ("animals", "films", "pets") and isinstance(told["stars"]["value"], float)


def test_rows_need_a_label_for_one_head(case: Prepared) -> None:
    case.task.check({"text": "a", "score": 2})
    case.task.check({"text": "a", "topic": "", "score": "2"})  # a cell of a CSV file
    for row, why in (
        ({"text": "a"}, "has a label for no head: flags, score, topic are missing or empty"),
        ({"text": "a", "topic": "", "score": " "}, "has a label for no head"),
        ({"text": " ", "topic": "x"}, "topic: text is empty"),
        ({"text": "a", "score": "high", "topic": "x"}, "stars: label must be a finite number; got 'high'"),
        ({"text": "a", "flags": [1, 1, 0], "topic": "x"}, "flags: .* task.heads.flags.labels is not set"),
    ):
        with pytest.raises(BadRow, match=why):
            case.task.check(row)
    with pytest.raises(BadRow, match="topic: label 'pet' was never seen in training"):
        case.task.check_label({"text": "a", "topic": "pet"}, case.survey)


def test_a_head_that_no_row_has_a_label_for_is_told_by_its_place() -> None:
    rows = [{"text": "a", "topic": "x"}, {"text": "a", "topic": "y"}]
    with pytest.raises(DataError, match=r"head flags: .*needs at least 1 different labels") as told:
        _task(topic=TOPICS["topic"], flags=TOPICS["flags"]).survey(rows)
    assert "task.heads.flags.labels" in str(told.value)


@pytest.mark.parametrize(
    ("heads", "why"),
    [
        ({"topic": TOPICS["topic"]}, "task.heads: .*at least 2"),
        ({**TOPICS, "x": {"name": "text_clasification"}}, r"task.heads.x.name: no task .* Did you mean 'text_classif"),
        ({**TOPICS, "x": {"weight": 1}}, "Missing setting 'task.heads.x.name'"),
        ({**TOPICS, "x": {**TOPICS["topic"], "weight": 0}}, "task.heads.x.weight: must be greater than 0; got 0"),
        (
            {**TOPICS, "x": {**TOPICS["topic"], "wieght": 2}},
            "Unknown setting 'task.heads.x.wieght'. Did you mean .*task.heads.x.weight",
        ),
        ({**TOPICS, "x": {**TOPICS["topic"], "problem_type": "ranking"}}, "task.heads.x.problem_type: must be"),
        ({**TOPICS, "x": {**TOPICS["topic"], "label_separator": "|"}}, "task.heads.x.label_separator: has no effect"),
        ({**TOPICS, "x": {**TOPICS["topic"], "columns": {"lable": "y"}}}, "task.heads.x.columns: .*no column 'lable'"),
        ({**TOPICS, "x": {**TOPICS["topic"], "columns": {"label": "topic"}}}, "task.heads.x.columns: .*another head"),
        ({**TOPICS, "text": TOPICS["topic"]}, "got 'text'"),
        ({**TOPICS, "a b": TOPICS["topic"]}, "got 'a b'"),
        ({**TOPICS, "x": {"name": "sft"}}, "task.heads.x.name: sft cannot be one of several heads: its model writes"),
        ({**TOPICS, "x": {"name": "masked_lm"}}, "task.heads.x.name: .*cannot be one of several heads"),
        ({**TOPICS, "x": {"name": "image_classification"}}, "task.heads.x.name: .*made anew each time"),
        ({**TOPICS, "x": {"name": "token_classification"}}, "task.heads.x.columns: reads tokens, and topic reads text"),
    ],
)
def test_heads_that_cannot_be_are_told_by_their_place(heads: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        load_task(TaskSection(name="multi_task", heads=heads))


def test_a_task_of_one_s_own_is_a_head_and_its_code_is_known(tmp_path: Path) -> None:
    code = "from onecurve.tasks.text_classification import Task as Base\n\n\nclass Task(Base):\n    pass\n"
    (tmp_path / "own.py").write_text(code)
    task = _task(topic=TOPICS["topic"], own={"name": f"{tmp_path}/own.py:Task"})
    settings = task.settings.model_dump(mode="json")["heads"]["own"]
    assert settings["source_hash"] and settings["problem_type"] == "single_label_classification"
    again = load_task(TaskSection(name="multi_task", **task.settings.model_dump(mode="json")))
    assert again.settings == task.settings


def test_keys_that_no_head_reads_have_no_effect() -> None:
    assert set(_task().without_effect()) == {"model.chat_template", "train.logits"}


def test_heads_that_read_other_tokens_are_refused(case: Prepared) -> None:
    task = _task(**SLOTS)
    survey = task.survey(WORDS)
    with pytest.raises(BadRow, match="the heads intent and tags read other tokens"):
        task.encode({"tokens": '["fly", "away"]', "intent": "music"}, survey, reading(case.reading.processor), False)


def test_words_without_tags_are_not_scored_for_them(case: Prepared) -> None:
    task = _task(**SLOTS)
    survey = task.survey(WORDS)
    examples = [task.encode(row, survey, reading(case.reading.processor), False)[0] for row in WORDS]
    batch = task.collate(examples, case.reading)
    right = functional.one_hot(batch["tags/labels"].clamp_min(0), 2).float()
    pairs = task.predict({"intent": torch.zeros(3, 2), "tags": right}, batch)
    assert [sorted(told) for _, told in pairs] == [["intent", "tags"], ["intent"], ["tags"]]
    assert (batch["tags/labels"] == IGNORE_INDEX).any()


def test_a_row_without_tags_may_be_the_longest(case: Prepared, tiny_bert: Path) -> None:
    rows = [{"tokens": "play the quick brown lazy fox".split(), "intent": "music"}, *WORDS]
    found = prepare(
        Case(rows, {"heads": SLOTS}, model="tiny_bert", nats_per_item=math.nan, task="multi_task"), tiny_bert
    )
    without_dropout(found.model)
    batch = found.batch()
    assert batch["tags/labels"].shape == batch["input_ids"].shape
    assert batch["tags/items"].tolist() == [0, 3, 0, 1]
    each = sum(found.loss_sums(found.batch([example])) for example in found.examples)
    assert found.loss_sums(batch).tolist() == pytest.approx(each.tolist(), rel=1e-5)


def test_a_checkpoint_whose_heads_are_for_other_labels_is_refused(case: Prepared, tmp_path: Path) -> None:
    case.model.save_pretrained(tmp_path)
    auto, config = case.task.auto_model(), deepcopy(case.model.config)
    auto.from_pretrained(tmp_path, config=deepcopy(config))
    (name, told), *_ = ((name, told) for name, told in config.task_heads.items() if "id2label" in told["config"])
    labels = told["config"]["id2label"]
    told["config"] = {**told["config"], "id2label": dict(zip(labels, reversed(labels.values()), strict=True))}
    with pytest.raises(ConfigError, match=f"its head '{name}' was trained for the labels .*Give the head another"):
        auto.from_pretrained(tmp_path, config=config)
