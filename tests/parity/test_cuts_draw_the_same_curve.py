"""A step cut by length or by tokens, under every launch form: the curve of the step cut as it comes."""

import json

import pytest

from tests.launching import write_recipe
from tests.tiny_models import build_tiny_bert, build_tiny_llama

pytestmark = pytest.mark.distributed

TOLERANCE = 1e-6
STEPS = 6


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    """A recipe a task: lengths far apart, a short last batch, clipping active; no dropout."""
    folder = tmp_path_factory.mktemp("cuts")
    llama = build_tiny_llama(folder / "llama", attention_dropout=0.0)
    bert = build_tiny_bert(folder / "bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    words = ("profit", "loss", "rises", "falls", "the bank", "shares", "in Oslo", "after a long and quiet year")
    rows = [
        {
            "text": " ".join(words[(i * j + j) % len(words)] for j in range(1, 2 + i * i % 13)),
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
            train={"max_steps": STEPS, "global_batch_size": 12},
        )
        for name, (model, columns) in tasks.items()
    }


PLAIN = ["--train.micro_batch_size", "4"]
GROUPED = [*PLAIN, "--train.group_by_length", "true"]
BUDGET = ["--train.micro_batch_tokens", "200"]
PACKED = [*BUDGET, "--train.group_by_length", "true", "--train.packing", "on"]
CUTS = {"grouped": GROUPED, "budget": BUDGET, "packed": PACKED}
FAST = {*((name, "python") for name in CUTS), ("packed", "ddp")}


@pytest.fixture(scope="module")
def plain(recipes, forks, tmp_path_factory):
    """The curve of each task in one process, cut as it comes."""
    folder = tmp_path_factory.mktemp("plain")
    return {name: forks.train(recipe, folder / name, "python", *PLAIN) for name, recipe in recipes.items()}


def same_curve(ours, theirs):
    ours_train, theirs_train = ours.events("train"), theirs.events("train")
    assert len(ours_train) == STEPS and len({step["loss"] for step in ours_train}) == STEPS, "nothing trained"
    for one, other in zip(ours_train, theirs_train, strict=True):
        told = ("step", "sample_digest", "num_items", "num_samples")
        assert [one[key] for key in told] == [other[key] for key in told]
        assert other["loss"] == pytest.approx(one["loss"], rel=TOLERANCE)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=5 * TOLERANCE)
    (test,), (their_test,) = ours.events("test"), theirs.events("test")
    assert their_test["loss"] == pytest.approx(test["loss"], rel=TOLERANCE)
    assert their_test.get("confusion_matrix") == test.get("confusion_matrix")


@pytest.mark.parametrize(
    ("cut", "how"),
    [
        pytest.param(cut, how, id=f"{name}-{how}", marks=[] if (name, how) in FAST else [pytest.mark.slow])
        for name, cut in CUTS.items()
        for how in ("python", "ddp", "zero2", "zero3")
    ],
)
@pytest.mark.parametrize("task", ["sft", pytest.param("text_classification", marks=pytest.mark.slow)])
def test_without_dropout_any_cut_draws_the_curve_of_the_plain_one(recipes, plain, forks, tmp_path, task, cut, how):
    run = forks.train(recipes[task], tmp_path / "run", how, *cut)
    same_curve(plain[task], run)
    assert (
        len({step["loss"] for step in run.events("train")} | {s["loss"] for s in plain[task].events("train")}) > STEPS
    )
    assert ("a pass x" if cut is GROUPED else "= up to 200 tokens a pass x") in run.stdout


@pytest.mark.parametrize("how", ["ddp", pytest.param("zero2", marks=pytest.mark.slow)])
def test_a_budget_that_leaves_a_rank_nothing_draws_it_too_and_is_told(recipes, plain, forks, tmp_path, how):
    run = forks.train(recipes["sft"], tmp_path / "run", how, "--train.micro_batch_tokens", "5000")
    assert "1 rank(s) without a micro-batch" in run.stdout
    same_curve(plain["sft"], run)


@pytest.mark.slow
def test_a_run_goes_on_under_another_cut_and_says_that_dropout_draws_other_masks(recipes, plain, forks, tmp_path):
    stop = ["--train.stop_after", "3"]
    first = forks.train(recipes["sft"], tmp_path / "run", "ddp", *GROUPED, *stop)
    assert len(first.events("train")) == 3
    other = forks.train(recipes["sft"], tmp_path / "run", "zero2", *BUDGET)
    for told in ("micro_batch_size was 4 and is None", "micro_batch_tokens was None and is 200"):
        assert f"train.{told}: dropout masks, if any, change with it" in other.stdout
    assert "train.group_by_length was True and is False: dropout masks, if any," in other.stdout
    same_curve(plain["sft"], other)
