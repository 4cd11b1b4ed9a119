"""Models that do not use all they have: one process, DDP and ZeRO train the same parameters, and draw one curve."""

import json

import pytest
import torch
from safetensors.torch import load_file

from onecurve.checkpoint.reader import Windows
from onecurve.conversion.from_checkpoint import convert_checkpoint
from onecurve.conversion.target import Wanted
from tests.launching import write_recipe
from tests.models_with_unused_parts import build_bigbird, build_gemma3, build_mixtral
from tests.parity.test_strategies_draw_one_curve import TOLERANCE, compare_weights

pytestmark = pytest.mark.distributed

STEPS = 4
FULL: list[str] = []
LORA = ["--peft.method", "lora"]
ALL_LINEAR = [*LORA, "--peft.target_modules", "all-linear"]
QUICK = [
    ("gemma3", ALL_LINEAR, ["ddp", "zero3"]),
]
REST = [
    ("bigbird", FULL, ["ddp", "zero1", "zero2", "zero3", "zero3_offload"]),
    ("gemma3", ALL_LINEAR, ["zero1", "zero2"]),
    ("gemma3", LORA, ["ddp", "zero1", "zero2", "zero3"]),
    ("gemma3", FULL, ["ddp", "zero1", "zero2", "zero3"]),
    ("mixtral", FULL, ["ddp", "zero1", "zero2", "zero3"]),
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


@pytest.mark.slow
def test_checkpoints_move_between_strategies(forks, recipes, tmp_path):
    """Also one from before unused parameters were looked for, which has values of them and no optimizer state."""
    recipe = recipes["bigbird"]
    whole = forks.train(recipe, tmp_path / "whole").events("train")
    for name, script in (("now", "train"), ("before", "tests.resume.before_reach")):
        folder = tmp_path / name
        arguments = [str(recipe), "--output_dir", str(folder), "--train.stop_after", "2"]
        ended = forks.run_script(script, "python", *arguments)
        assert ended.exit_code == 0, ended.stderr[-3000:]
        with Windows(folder / "checkpoints" / "step-00000002") as windows:
            assert ("param/bert.pooler.weight" in windows.manifest.tensors) is (name == "before")
            assert "exp_avg/bert.pooler.weight" not in windows.manifest.tensors
        resumed = forks.train(recipe, folder, "zero2")
        assert ("tensors not read" in resumed.stderr) is (name == "before")
        for ours, theirs in zip(whole[2:], resumed.events("train")[2:], strict=True):
            assert theirs["loss"] == pytest.approx(ours["loss"], rel=TOLERANCE), (name, ours["step"])
        compare_weights(tmp_path / "whole" / "model", folder / "model")


def test_what_is_not_trained_is_named_and_stays_as_it_was(forks, recipes, tmp_path):
    run = forks.train(recipes["bigbird"], tmp_path / "run", "python", "--checkpoint.every", "2")
    assert "unused    bert.pooler.weight, bert.pooler.bias: not trained" in run.stdout
    base = load_file(recipes["bigbird"].with_name("bigbird") / "model.safetensors")
    for model in (run.output_dir / "model", converted(run.output_dir, tmp_path / "converted")):
        exported = load_file(model / "model.safetensors")
        assert torch.equal(exported["bert.pooler.weight"], base["pooler.weight"])
        assert not torch.equal(
            exported["bert.encoder.layer.0.output.dense.weight"], base["encoder.layer.0.output.dense.weight"]
        )


def converted(run, target):
    convert_checkpoint(run / "checkpoints" / f"step-{STEPS:08d}", Wanted(target))
    return target


def test_an_adapter_is_saved_whole(forks, recipes, tmp_path):
    """PEFT names those of its tensors that a folder lacks as missing, and would draw them anew."""
    run = forks.train(recipes["gemma3"], tmp_path / "run", "python", *ALL_LINEAR)
    assert "vision_tower" in run.stdout and "not trained" in run.stdout
    names = load_file(run.output_dir / "model" / "adapter_model.safetensors").keys()
    assert any("vision_tower" in name for name in names)
