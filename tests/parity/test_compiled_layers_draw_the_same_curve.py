"""With and without compilation, and with it for a part of the run: one curve."""

import json

import pytest

from tests.launching import write_recipe
from tests.resume.curves import largest_differences, partings
from tests.tiny_models import build_tiny_llama

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
LORA = ["--peft.method", "lora", "--peft.lora_dropout", "0.1", "--peft.target_modules", "all-linear"]
COMPILE = ["--train.compile", "true"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compiled")
    rows = [{"prompt": f"{i} and {i}", "response": f"is {2 * i}, " * (1 + i % 6)} for i in range(60)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def recipe(folder):
    data = str(folder / "train.jsonl")
    return write_recipe(
        folder / "recipe.yaml",
        output_dir="unused",
        task={"name": "sft"},
        model={"path": str(build_tiny_llama(folder / "llama"))},  # with dropout
        data={"train": data, "eval": data, "cache_dir": str(folder / "cache")},
        optim={"lr": 1e-3},
        train={"max_steps": 20, "global_batch_size": 8, "micro_batch_size": 2},
        eval={"every": 10},
        checkpoint={"every": 10},
    )


def trained(run):
    losses = [step["loss"] for step in run.events("train")]
    return len(losses) == 20 and losses[-1] < 0.98 * losses[0]  # with LoRA, which is slow to begin


@pytest.mark.parametrize(
    ("how", "settings"),
    [
        ("python", []),
        ("python", ["--train.packing", "on"]),
        ("python", ["--train.activations", "recompute"]),
        ("ddp", LORA),
        ("zero1", []),
        ("zero2", ["--train.packing", "on"]),
    ],
    ids=str,
)
def test_compiled_layers_draw_the_curve_of_those_that_are_not(forks, recipe, tmp_path, how, settings):
    eager = forks.train(recipe, tmp_path / "eager", how, *settings)
    compiled = forks.train(recipe, tmp_path / "compiled", how, *settings, *COMPILE)
    assert trained(eager)
    print(f"{how} {settings}: loss and norm apart by {largest_differences(eager, compiled)}")
    assert not list(partings(eager, compiled))
    for one, other in zip(eager.events("eval"), compiled.events("eval"), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-6)
    assert "compile   " in compiled.stdout and "compile   " not in eager.stdout


def test_a_resumed_run_may_switch_it_off(forks, recipe, tmp_path):
    eager = forks.train(recipe, tmp_path / "eager")
    forks.train(recipe, tmp_path / "half", "python", *COMPILE, "--train.stop_after", "10")
    assert not list(partings(eager, forks.train(recipe, tmp_path / "half", "ddp")))
