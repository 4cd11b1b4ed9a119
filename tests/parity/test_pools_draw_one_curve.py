"""A loss that compares the examples of a global batch, under every launch form and cut: one curve, and one search."""

import json

import pytest

from tests.launching import write_recipe
from tests.tiny_models import build_tiny_bert

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

TOLERANCE = 1e-6
STEPS = 5
WORDS = ("profit", "loss", "rises", "falls", "the bank", "shares", "in Oslo", "after a long and quiet year")


def _text(*numbers):
    return " ".join(WORDS[number % len(WORDS)] for number in numbers)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """Rows with no negative to two, a short last batch, two sizes of vectors, dropout."""
    folder = tmp_path_factory.mktemp("pools")
    rows = [
        {
            "query": _text(*range(i, 2 * i + 1)) + f" {i}",
            "positive": _text(i, i + 3) + f" {i // 2}",
            "negative": [_text(i + j, i) + f" no {i}" for j in range(i % 3)],
        }
        for i in range(29)
    ]
    data = folder / "train.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return write_recipe(
        folder / "recipe.yaml",
        output_dir="unused",
        seed=3,
        task={"name": "text_embedding", "matryoshka": [64, 16]},
        model={"path": str(build_tiny_bert(folder / "bert"))},
        data={"train": str(data), "test": str(data), "cache_dir": str(folder / "cache")},
        optim={"lr": 1e-3, "weight_decay": 0.1, "max_grad_norm": 0.3},
        train={"max_steps": STEPS, "global_batch_size": 12, "micro_batch_size": 4},
        checkpoint={"every": 2},
    )


@pytest.fixture(scope="module")
def one_process(recipe, forks, tmp_path_factory):
    return forks.train(recipe, tmp_path_factory.mktemp("one"), "python")


def same_curve(ours, theirs):
    """The same losses, norms and search, up to the rounding of sums in another order."""
    assert ours.exit_code == 0 and theirs.exit_code == 0, (ours.stderr + theirs.stderr)[-4000:]
    ours_train, theirs_train = ours.events("train"), theirs.events("train")
    assert len(ours_train) == STEPS and len({step["loss"] for step in ours_train}) == STEPS, "nothing trained"
    for one, other in zip(ours_train, theirs_train, strict=True):
        assert [one[key] for key in ("step", "sample_digest", "num_items")] == [
            other[key] for key in ("step", "sample_digest", "num_items")
        ]
        assert other["loss"] == pytest.approx(one["loss"], rel=TOLERANCE)
        assert other["losses"] == pytest.approx(one["losses"], rel=TOLERANCE)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=5 * TOLERANCE)
    (test,), (their_test,) = ours.events("test"), theirs.events("test")
    for name in ("loss", "mrr", "ndcg@10", "recall@1"):
        assert their_test[name] == pytest.approx(test[name], rel=TOLERANCE)


@pytest.mark.parametrize("how", ["ddp", "zero2", "zero3"])
def test_ranks_find_their_negatives_in_one_pool(how, recipe, one_process, forks, tmp_path):
    same_curve(one_process, forks.train(recipe, tmp_path, how))


def test_bf16_is_the_same_in_both_sweeps_under_every_strategy(recipe, forks, tmp_path):
    bf16 = ["--train.mixed_precision", "bf16", "--train.emulate", "true"]
    one, ranks = (forks.train(recipe, tmp_path / how, how, *bf16) for how in ("python", "zero3"))
    for own, other in zip(one.events("train"), ranks.events("train"), strict=True):
        assert other["loss"] == pytest.approx(own["loss"], rel=1e-3)  # bfloat16 has three digits
        assert other["grad_norm"] == pytest.approx(own["grad_norm"], rel=2e-2)


def test_a_cut_changes_nothing(recipe, forks, tmp_path):
    still = [
        "--model.path",
        str(build_tiny_bert(tmp_path / "b", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)),
    ]
    whole = forks.train(recipe, tmp_path / "whole", "python", *still, "--train.micro_batch_size", "12")
    grouped = ["--train.micro_batch_size", "2", "--train.group_by_length", "true"]
    same_curve(whole, forks.train(recipe, tmp_path / "cut", "ddp", *still, *grouped))


def test_a_resumed_run_goes_on_where_it_stopped(recipe, one_process, forks, tmp_path):
    forks.train(recipe, tmp_path, "ddp", "--train.stop_after", "3")
    ended = forks.train(recipe, tmp_path, "python")
    same_curve(one_process, ended)
