"""Predictions of scored splits: each example once, with its own loss, whatever the ranks and the task."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from onecurve.config import Recipe
from onecurve.data.checking import Report
from onecurve.errors import ConfigError
from onecurve.evaluation.predictions import _of_example
from onecurve.evaluation.scores import left_out
from onecurve.export.card import TrainedOn, model_card
from tests.launching import write_recipe
from tests.tiny_models import build_tiny_bert, build_tiny_llama

TEXTS = [f"{'profit' if i % 2 else 'loss'} {i} {'rises' if i % 3 else 'falls'} in Oslo" for i in range(37)]
TAGGED = [{"tokens": text.split(), "tags": ["O", "O", "O", "O", "B-LOC"][: len(text.split())]} for text in TEXTS]
ROWS: dict[str, list[dict[str, Any]]] = {
    "text_classification": [{"text": text, "label": "ab"[i % 2]} for i, text in enumerate(TEXTS)],
    "token_classification": TAGGED,
    "causal_lm": [{"text": " ".join([text] * (1 + i % 3))} for i, text in enumerate(TEXTS)],
}


def run(folder: Path, forks: Any, how: str, task: str, *overrides: str) -> tuple[Any, list[dict[str, Any]]]:
    build_tiny_bert(folder / "bert")
    build_tiny_llama(folder / "llama")
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[task]))
    recipe = write_recipe(
        folder / "recipe.yaml",
        output_dir="unused",
        task={"name": task},
        model={"path": str(folder / ("llama" if task == "causal_lm" else "bert"))},
        data={"train": str(folder / "data.jsonl"), "test": str(folder / "data.jsonl"), "cache_dir": str(folder / "c")},
        optim={"lr": 5e-3},
        train={"max_steps": 2, "global_batch_size": 8, "micro_batch_size": 4},
        eval={"predictions": True},
    )
    finished = forks.train(recipe, folder / "out", how, *overrides)
    lines = (folder / "out" / "predictions-test.jsonl").read_text().splitlines()
    assert not (folder / "out" / "predictions-dev.jsonl").exists()
    return finished, [json.loads(line) for line in lines]


def check(finished: Any, told: list[dict[str, Any]]) -> None:
    """The losses of all examples, each once, make the loss of the split."""
    [scores] = finished.events("test")
    total = sum(line["loss"] * line["num_items"] for line in told) / sum(line["num_items"] for line in told)
    assert total == pytest.approx(scores["loss"], rel=1e-5)
    assert len({line["loss"] for line in told}) > 5


@pytest.mark.parametrize(
    "how", ["ddp", pytest.param("python", marks=pytest.mark.slow), pytest.param("zero3", marks=pytest.mark.slow)]
)
def test_each_example_of_a_classifier_once(tmp_path: Path, forks: Any, how: str) -> None:
    finished, told = run(tmp_path, forks, how, "text_classification")
    check(finished, told)
    assert [line["row"] for line in told] == list(range(37))
    assert told[3]["place"] == f"{tmp_path}/data.jsonl, line 4"
    assert [line["reference"] for line in told] == ["ab"[i % 2] for i in range(37)]
    for line in told:
        probability = line["probabilities"][line["reference"]]
        assert line["loss"] == pytest.approx(-torch.tensor(probability).log().item(), abs=1e-5)
        assert line["probability"] == line["probabilities"][line["label"]] == max(line["probabilities"].values())
    [scores] = finished.events("test")
    right = sum(line["label"] == line["reference"] for line in told)
    assert right / len(told) == pytest.approx(scores["accuracy"])


@pytest.mark.parametrize("logits", ["whole", pytest.param("chunked", marks=pytest.mark.slow)])
def test_a_language_model_tells_the_loss_of_each_example(tmp_path: Path, forks: Any, logits: str) -> None:
    finished, told = run(tmp_path, forks, "python", "causal_lm", "--data.max_length", "24", "--train.logits", logits)
    check(finished, told)
    assert {line["row"] for line in told} == set(range(37)) and len(told) > 37, "a row may be several examples"
    assert set(told[0]) == {"row", "place", "loss", "num_items"}


@pytest.mark.slow
def test_a_tagger_tells_tags_and_entities(tmp_path: Path, forks: Any) -> None:
    finished, told = run(tmp_path, forks, "ddp", "token_classification")
    check(finished, told)
    assert [line["reference"] for line in told] == [row["tags"] for row in TAGGED]
    assert all(len(line["tags"]) == len(line["reference"]) for line in told)


def test_outputs_are_told_apart_by_example_or_by_target() -> None:
    by_target = torch.arange(6.0)[:, None]
    assert _of_example(by_target, 1, [1, 3, 2])[:, 0].tolist() == [1, 2, 3]
    assert _of_example({"head": by_target}, 1, [2] * 6)["head"].tolist() == [[1]]
    for outputs in (by_target, torch.zeros(())):
        with pytest.raises(ConfigError, match=r"eval\.predictions: this task's outputs do not tell examples apart"):
            _of_example(outputs, 0, [2, 2])


def test_rows_without_a_score_are_said_in_the_scores_and_on_the_card() -> None:
    told = left_out(Report(rows=150, skipped=40, dropped=10))
    assert told == {"left_out": {"of_rows": 150, "invalid": 40, "too_long": 10}}
    assert left_out(Report(rows=150, truncated=3)) == {}
    recipe = Recipe(
        output_dir="x",
        task={"name": "x"},
        model={"path": "x"},
        data={"train": "x"},
        train={"max_steps": 1, "global_batch_size": 1, "micro_batch_size": 1},
    )
    card = model_card(recipe, TrainedOn([], 1, "f"), "", 1, {"test": {"loss": 1.0, **told}}, "")
    assert "Not scored: of the 150 rows of test, 40 invalid, 10 too long." in card
