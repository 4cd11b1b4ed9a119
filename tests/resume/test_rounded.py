"""Weights trained in bfloat16: runs go on bit for bit, what rounding left over included, and learn as in float32."""

import pytest
import torch
from safetensors.torch import load_file

from onecurve.checkpoint import read_manifest
from tests.resume.curves import curve
from tests.resume.test_resume import in_stages

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def check(recipes, forks, folder, how, ranks, rounding):
    recipe, rounded = recipes["causal_lm"], ["--model.dtype", "bfloat16", "--optim.rounding", rounding]
    whole = forks.train(recipe, folder / "whole", how, *rounded, num_processes=ranks)
    parts = in_stages(forks, recipe, folder / "parts", [(how, ranks, 3), (how, ranks, 0)], *rounded)
    assert curve(whole) == curve(parts)
    one, other = (load_file(run.output_dir / "model" / "model.safetensors") for run in (whole, parts))
    assert all(value.dtype == torch.bfloat16 and torch.equal(value, other[name]) for name, value in one.items())
    (checkpoint,) = (parts.output_dir / "checkpoints").glob("step-*3")
    kinds = {(name.partition("/")[0], stored.dtype) for name, stored in read_manifest(checkpoint).tensors.items()}
    carried = {("carried", "bfloat16")} if rounding == "kahan" else set()
    moments = {(key, "float32") for key in ("exp_avg", "exp_avg_sq", "step")}
    assert kinds == {("param", "bfloat16")} | moments | carried
    return whole


def test_it_goes_on_bit_for_bit(recipes, forks, tmp_path):
    rounded = check(recipes, forks, tmp_path, "ddp", 2, "kahan")
    # also what two ranks have to do with one: gradients that were not averaged would show
    exact = forks.train(recipes["causal_lm"], tmp_path / "float32", "python")
    losses = [loss for *_, loss, _ in curve(exact)]
    assert losses[-1] < losses[0] - 0.05, "nothing was learnt"
    assert [loss for *_, loss, _ in curve(rounded)] == pytest.approx(losses, rel=5e-3)
    assert [norm for *_, norm in curve(rounded)] == pytest.approx([norm for *_, norm in curve(exact)], rel=0.05)


def test_chance_goes_on_bit_for_bit_too(recipes, forks, tmp_path):
    check(recipes, forks, tmp_path, "python", 1, "stochastic")
