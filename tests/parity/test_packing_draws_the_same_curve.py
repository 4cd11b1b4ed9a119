"""Packed and padded, and packed under every launch form: one curve."""

import json

import pytest

from tests.launching import write_recipe
from tests.tiny_models import build_tiny_bert, build_tiny_llama

pytestmark = pytest.mark.distributed

TOLERANCE = 1e-6
STEPS = 6


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    """A recipe a task: uneven lengths, a short last batch, clipping active; dropout off unless a run turns it on."""
    folder = tmp_path_factory.mktemp("packing")
    llama = build_tiny_llama(folder / "llama", attention_dropout=0.0)
    bert = build_tiny_bert(folder / "bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    words = ("profit", "loss", "rises", "falls", "the bank", "shares", "in Oslo", "after a long and quiet year")
    rows = [
        {
            "text": " ".join(words[(i * j + j) % len(words)] for j in range(1, 3 + i % 7)),
            "label": ("good", "bad", "so-so")[i % 3],
        }
        for i in range(46)
    ]
    data = folder / "train.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = {"sft": (llama, {"prompt": "text", "response": "label"}), "text_classification": (bert, {})}
    return {
        name: write_recipe(
            folder / f"{name}.yaml",
            output_dir="unused",
            seed=3,
            task={"name": name},
            model={"path": str(model)},
            data={"train": str(data), "test": str(data), "columns": columns, "cache_dir": str(folder / "cache")},
            optim={"lr": 1e-3, "weight_decay": 0.1, "max_grad_norm": 0.3, "schedule": "cosine"},
            train={"max_steps": STEPS, "global_batch_size": 12, "micro_batch_size": 4},
        )
        for name, (model, columns) in tasks.items()
    }


LORA = ["--peft.method", "lora", "--peft.lora_dropout", "0.1", "--train.activations", "recompute"]
ON, OFF = ["--train.packing", "on"], ["--train.packing", "off"]


def same_curve(ours, theirs):
    ours_train, theirs_train = ours.events("train"), theirs.events("train")
    assert len(ours_train) == STEPS and len({step["loss"] for step in ours_train}) == STEPS, "nothing trained"
    for one, other in zip(ours_train, theirs_train, strict=True):
        assert one["sample_digest"] == other["sample_digest"]
        assert other["loss"] == pytest.approx(one["loss"], rel=TOLERANCE)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=5 * TOLERANCE)
    (test,), (their_test,) = ours.events("test"), theirs.events("test")
    assert their_test["loss"] == pytest.approx(test["loss"], rel=TOLERANCE)


@pytest.mark.parametrize("task", ["sft", pytest.param("text_classification", marks=pytest.mark.slow)])
def test_without_dropout_packed_examples_draw_the_curve_of_padded_ones(forks, recipes, tmp_path, task):
    padded = forks.train(recipes[task], tmp_path / "padded", "python", *OFF)
    packed = forks.train(recipes[task], tmp_path / "packed", "python", *ON)
    same_curve(padded, packed)


@pytest.mark.slow
def test_packed_examples_draw_one_curve_under_ddp_and_zero3_with_dropout_and_recomputation(forks, recipes, tmp_path):
    one = forks.train(recipes["sft"], tmp_path / "one", "python", *ON, *LORA)
    for how in ("ddp", "zero3"):
        same_curve(one, forks.train(recipes["sft"], tmp_path / how, how, *ON, *LORA))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ddp", "zero1", "zero2", "zero3"])
@pytest.mark.parametrize("task", ["sft", "text_classification"])
def test_packed_examples_draw_it_under_every_strategy(forks, recipes, tmp_path, task, how):
    one = forks.train(recipes[task], tmp_path / "one", "python", *ON)
    same_curve(one, forks.train(recipes[task], tmp_path / how, how, *ON))
