"""Models that do not use all they have: one process, DDP and ZeRO train the same parameters, and draw one curve."""

import json

import pytest

from tests.launching import write_recipe
from tests.models_with_unused_parts import build_bigbird, build_gemma3, build_mixtral
from tests.parity.test_strategies_draw_one_curve import TOLERANCE, compare_weights

pytestmark = pytest.mark.distributed

STEPS = 4
FULL: list[str] = []
LORA = ["--peft.method", "lora"]
ALL_LINEAR = [*LORA, "--peft.target_modules", "all-linear"]
QUICK = [
    ("bigbird", FULL, ["ddp", "zero2", "zero3"]),
    ("gemma3", ALL_LINEAR, ["ddp", "zero3"]),
    ("mixtral", FULL, ["ddp", "zero2"]),
]
REST = [
    ("bigbird", FULL, ["zero1", "zero3_offload"]),
    ("gemma3", ALL_LINEAR, ["zero1", "zero2"]),
    ("gemma3", LORA, ["ddp", "zero1", "zero2", "zero3"]),
    ("gemma3", FULL, ["ddp", "zero1", "zero2", "zero3"]),
    ("mixtral", FULL, ["zero1", "zero3"]),
]


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unused")
    words = ("profit", "loss", "rises", "falls", "the bank", "shares", "in Oslo", "after a quiet year")
    rows = [
        {"text": " ".join(words[(i * j + j) % len(words)] for j in range(1, 2 + i % 4)), "label": ("up", "down")[i % 2]}
        for i in range(20)
    ]
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def write(name, task, build):
        return write_recipe(
            folder / f"{name}.yaml",
            output_dir="unused",
            seed=3,
            task={"name": task},
            model={"path": str(build(folder / name))},
            data={"train": str(data), "cache_dir": str(folder / "cache")},
            # So much decay that parameters which only some strategies leave alone part at once
            optim={"lr": 1e-2, "weight_decay": 0.5, "max_grad_norm": 0.3},
            train={"max_steps": STEPS, "global_batch_size": 6, "micro_batch_size": 1},
        )

    return {
        "bigbird": write("bigbird", "text_classification", build_bigbird),
        "gemma3": write("gemma3", "causal_lm", build_gemma3),
        "mixtral": write("mixtral", "causal_lm", build_mixtral),
    }


def check(forks, recipe, folder, overrides, strategies):
    one = forks.train(recipe, folder / "one", "python", *overrides)
    curve = one.events("train")
    assert len({step["loss"] for step in curve}) == STEPS, "nothing trained"
    for how in strategies:
        other = forks.train(recipe, folder / how, how, *overrides)
        for ours, theirs in zip(curve, other.events("train"), strict=True):
            assert ours["sample_digest"] == theirs["sample_digest"]
            assert theirs["loss"] == pytest.approx(ours["loss"], rel=TOLERANCE), (how, ours["step"])
            assert theirs["grad_norm"] == pytest.approx(ours["grad_norm"], rel=5 * TOLERANCE), (how, ours["step"])
        compare_weights(one.output_dir / "model", other.output_dir / "model")
    return one


@pytest.mark.parametrize(("model", "overrides", "strategies"), QUICK)
def test_every_strategy_draws_the_curve_of_one_process(forks, recipes, tmp_path, model, overrides, strategies):
    check(forks, recipes[model], tmp_path, overrides, strategies)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "overrides", "strategies"), REST)
def test_every_other_strategy_too(forks, recipes, tmp_path, model, overrides, strategies):
    check(forks, recipes[model], tmp_path, overrides, strategies)
