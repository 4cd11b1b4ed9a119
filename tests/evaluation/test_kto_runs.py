"""Answers judged one by one, under every launch form and cut: one curve, and one estimate of the divergence."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.launching import write_recipe
from tests.parity.test_strategies_draw_one_curve import TOLERANCE
from tests.tiny_models import build_tiny_llama

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

WORDS = ["a dog", "no", "the answer is plain", "nothing at all", "yes", "what do you think of it"]
ROWS = [
    {"prompt": f"what is {number}?", "completion": f"{WORDS[number % 6]} {number}", "label": number % 3 > 0}
    for number in range(13)
]
LORA = ["--peft.method", "lora", "--peft.target_modules", "[q_proj, v_proj]"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judged")
    for name, count in (("train", 13), ("dev", 5)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[:count]))
    return write_recipe(
        folder / "recipe.yaml",
        output_dir="unused",
        task={"name": "kto", "beta": 0.3, "undesirable_weight": 1.5},
        model={"path": str(build_tiny_llama(folder / "llama"))},
        data={
            "train": str(folder / "train.jsonl"),
            "eval": str(folder / "dev.jsonl"),
            "cache_dir": str(folder / "cache"),
            "max_length": 128,
        },
        optim={"lr": 1e-2},
        train={"max_steps": 4, "global_batch_size": 6, "micro_batch_size": 2, "mixed_precision": "no"},
        checkpoint={"every": 2},
    )


ROUNDING = 1e-6
"""A summed log-probability near -60 is exact to 4e-6 in float32; the loss compares four, times beta / 4."""


def _same_curve(ours: Any, theirs: Any) -> None:
    curve = ours.events("train")
    assert curve[-1]["loss"] != pytest.approx(curve[0]["loss"], abs=1e-4), "nothing trained"
    for one, other in zip(curve, theirs.events("train"), strict=True):
        assert other["sample_digest"] == one["sample_digest"]
        assert other["loss"] == pytest.approx(one["loss"], rel=TOLERANCE, abs=ROUNDING)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=5 * TOLERANCE)
    for one, other in zip(ours.events("eval"), theirs.events("eval"), strict=True):
        assert other["kl"] == pytest.approx(one["kl"], rel=1e-3, abs=1e-5)
        assert other["loss"] == pytest.approx(one["loss"], rel=10 * TOLERANCE)


@pytest.mark.parametrize("adapter", [[], LORA], ids=["full", "lora"])
def test_every_strategy_and_a_resumed_run_draw_one_curve(
    recipe: Path, tmp_path: Path, forks: Any, adapter: list[str]
) -> None:
    one = forks.train(recipe, tmp_path / "one", "python", *adapter)
    for how in ("ddp", "zero2", "zero3"):
        fresh = ["--data.cache_dir", str(tmp_path / f"cache-{how}")]
        _same_curve(one, forks.train(recipe, tmp_path / how, how, *adapter, *fresh))
    forks.train(recipe, tmp_path / "parts", "zero2", *adapter, "--train.stop_after", "2")
    _same_curve(one, forks.train(recipe, tmp_path / "parts", "python", *adapter))
    assert "desirable answers" in one.stdout


def test_before_step_1_nothing_has_moved_and_a_cut_changes_nothing(recipe: Path, tmp_path: Path, forks: Any) -> None:
    still = ["--regularization.dropout", "0"]
    whole = forks.train(recipe, tmp_path / "whole", "python", *still, "--train.micro_batch_size", "6")
    _same_curve(whole, forks.train(recipe, tmp_path / "cut", "ddp", *still, "--train.micro_batch_size", "1"))
    first = whole.events("train")[0]
    assert 0.5 <= first["loss"] <= 0.75  # half of each weight, 1 and 1.5


def test_the_saved_model_writes_an_answer_to_a_prompt(recipe: Path, tmp_path: Path, forks: Any) -> None:
    from onecurve.model.trained import load_trained
    from onecurve.prediction.answers import answer
    from onecurve.prediction.rows import rows_of_inputs

    forks.train(recipe, tmp_path / "run", "python", "--train.max_steps", "1")
    trained = load_trained(tmp_path / "run")
    found = list(answer(trained, rows_of_inputs(trained, ["what is 3?", {"prompt": "what is 4?"}]), 8, 4))
    assert len(found) == 2 and all(isinstance(one["text"], str) for one in found)
