import math
from pathlib import Path
from typing import Any

import pytest
from torch.nn import functional

from onecurve.config import TaskSection
from onecurve.errors import ConfigError, DataError
from onecurve.tasks import load_task
from onecurve.tasks.base import IGNORE_INDEX, BadRow, Survey
from onecurve.tasks.token_classification import Task
from tests.readings import reading
from tests.tasks.contract import Case

ROW = {"tokens": ["the", "fox", "jumps", "over", "Oslo"], "tags": ["O", "B-animal", "O", "O", "B-place"]}
ROWS = [
    ROW,
    {"tokens": ["dogs"], "tags": ["B-animal"]},
    {"tokens": ["a", "lazy", "dog"], "tags": ["O", "O", "B-animal"]},
]
NAMES = ["O", "B-animal", "B-place"]


def _oracle(model: Any, batch: Any) -> Any:
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    return model(**inputs).loss


CASES = {"tags": Case(ROWS, model="tiny_bert", nats_per_item=math.log(3), oracle=_oracle)}


@pytest.fixture(scope="module", params=["bert", "llama"])
def tokenizer(request: pytest.FixtureRequest, tiny_bert: Path, tiny_llama: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained({"bert": tiny_bert, "llama": tiny_llama}[request.param])


def _task(**settings: Any) -> Task:
    return load_task(TaskSection(name="token_classification", **settings))


def _encode(row: dict[str, Any], tokenizer: Any, max_length: int = 64, truncate: bool = False) -> dict[str, Any]:
    (example,) = _task().encode(row, Survey(NAMES), reading(tokenizer, max_length), truncate)
    return example


def test_the_first_token_of_each_word_has_its_tag(tokenizer: Any) -> None:
    example = _encode(ROW, tokenizer)
    assert [label for label in example["labels"] if label != IGNORE_INDEX] == [0, 1, 0, 0, 2]
    assert example["num_items"] == 5
    firsts = [place for place, word in enumerate(example["words"]) if word >= 0]
    for word, (start, end) in enumerate(zip(firsts, [*firsts[1:], len(example["input_ids"])], strict=True)):
        text = tokenizer.decode(example["input_ids"][start:end], skip_special_tokens=True)
        assert text.strip() == ROW["tokens"][word]


def test_words_are_read_as_the_text_that_they_are(tokenizer: Any) -> None:
    assert _encode(ROW, tokenizer)["input_ids"] == tokenizer("the fox jumps over Oslo")["input_ids"]


def test_words_without_a_token_and_those_cut_off_are_scored_as_outside(tokenizer: Any) -> None:
    import torch

    whole = _encode(ROW, tokenizer)
    cut = _encode(ROW, tokenizer, max_length=whole["words"].index(3), truncate=True)
    batch = _task().collate([whole, cut], reading(tokenizer))
    right = functional.one_hot(batch["labels"].clamp_min(0), 3).float()
    pairs = _task().predict(right, batch)
    assert pairs[0] == ([0, 1, 0, 0, 2], [0, 1, 0, 0, 2])
    assert pairs[1] == ([0, 1, 0, -1, -1], [0, 1, 0, 0, 2])
    scores = _task().metrics(pairs, 1.0, Survey(NAMES))
    assert scores["recall"] == pytest.approx(3 / 4) and scores["accuracy"] == pytest.approx(8 / 10)
    assert torch.equal(batch["labels"] != IGNORE_INDEX, batch["words"] >= 0)


def test_tags_are_learnt_outside_first_then_by_type_and_prefix() -> None:
    rows = [{"tokens": ["x"] * 5, "tags": ["I-place", "B-place", "O", "B-animal", "I-animal"]}]
    assert _task().survey(rows).labels == ["O", "B-animal", "I-animal", "B-place", "I-place"]
    assert _task(labels=NAMES).survey(rows).labels == NAMES


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "has 2 tokens and 1 tags"),
        ({"tokens": [], "tags": []}, "tokens is empty"),
        ({"tokens": ["a", " "], "tags": ["O", "O"]}, r"tokens\[1\] must be non-empty text; got ' '"),
        ({"tokens": 3, "tags": ["O"]}, "tokens must be a list; got 3"),
        ({"tokens": ["a"], "tags": [None]}, r"tags\[0\] must be the name of a tag"),
        ({"tokens": ["a"]}, "tags is missing"),
        ({"tokens": '["a"', "tags": "O"}, "tokens is text but not a JSON list"),
    ],
)
def test_bad_rows_are_told(row: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRow, match=message):
        _task().check(row)


def test_lists_may_be_text_as_csv_has_them() -> None:
    _task().check({"tokens": '["a b", "c"]', "tags": "O B-place"})


def test_tags_that_training_lacks_and_one_tag_alone_are_refused() -> None:
    with pytest.raises(BadRow, match=r"tag 'B-plac' was never seen in training. Did you mean 'B-place'\?"):
        _task().check_label({"tokens": ["a"], "tags": ["B-plac"]}, Survey(NAMES))
    with pytest.raises(BadRow, match=r"is not in task.labels"):
        _task(labels=NAMES).check({"tokens": ["a"], "tags": ["X"]})
    with pytest.raises(DataError, match="at least two different tags"):
        _task().survey([{"tokens": ["a"], "tags": ["O"]}])
    with pytest.raises(ConfigError, match="at least two different tags"):
        _task(labels=["O", "O"])


def test_a_trained_model_tells_entities_with_their_words(tokenizer: Any) -> None:
    task = _task()
    row = task.read_text("the fox jumps over Oslo")
    (example,) = task.encode(row, Survey(NAMES), reading(tokenizer), truncate=False)
    batch = task.collate([example], reading(tokenizer))
    assert "labels" not in batch
    labelled = _encode(ROW, tokenizer)
    import torch

    logits = functional.one_hot(torch.tensor([labelled["labels"]]).clamp_min(0), 3).float()
    (answer,) = task.answers(logits, batch, [example], Survey(NAMES))
    assert answer["tags"] == ROW["tags"]
    assert answer["entities"] == [
        {"type": "animal", "start": 1, "end": 2, "text": "fox"},
        {"type": "place", "start": 4, "end": 5, "text": "Oslo"},
    ]
