"""Adapters on a quantised base, and optimizers with 8-bit moments: they go on bit for bit, here or elsewhere."""

import pytest
import torch

from onecurve.checkpoint import read_manifest
from onecurve.cli import main
from tests.resume.curves import curve, partings
from tests.resume.test_resume import in_stages

pytestmark = pytest.mark.distributed

NF4, INT8 = (["--peft.method", "lora", "--model.quantization", kind] for kind in ("nf4", "int8"))


@pytest.fixture(scope="module", autouse=True)
def _bitsandbytes():
    pytest.importorskip("bitsandbytes", reason="needs the extra quant")


def check_bit_for_bit(recipes, forks, folder, quantised):
    whole = forks.train(recipes["causal_lm"], folder / "whole", "python", *quantised, "--optim.lr", "0.02")
    losses = [loss for *_, loss, _ in curve(whole)]
    assert losses[-1] < losses[0] - 0.1, "nothing was learnt"
    stages = [("python", 1, 3), ("python", 1, 0)]
    # scored after every step, so that a base which scoring changes shows
    often = ["--optim.lr", "0.02", "--eval.every", "1", "--checkpoint.every", "8"]
    parts = in_stages(forks, recipes["causal_lm"], folder / "parts", stages, *quantised, *often)
    assert not [*partings(whole, parts, exactly=True)]
    return parts


def test_a_resumed_run_is_the_uninterrupted_one_and_its_adapter_is_peft_s(recipes, forks, tiny_llama, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = check_bit_for_bit(recipes, forks, tmp_path, NF4)
    words = AutoTokenizer.from_pretrained(run.output_dir / "model")("headline 7 headline 8", return_tensors="pt")
    base = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype="float32")
    with torch.no_grad():
        bare = base.eval()(**words).logits
        adapted = PeftModel.from_pretrained(base, run.output_dir / "model").eval()(**words).logits
    assert not torch.allclose(bare, adapted, atol=1e-2)
    assert main(["checkpoint", "convert", str(run.output_dir), str(tmp_path / "merged"), "--merge"]) == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="float32")
    with torch.no_grad():
        torch.testing.assert_close(merged.eval()(**words).logits, adapted, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_on_int8_too(recipes, forks, tmp_path):
    check_bit_for_bit(recipes, forks, tmp_path, INT8)


@pytest.mark.slow
def test_ranks_and_strategies_draw_the_curve_of_one_process(recipes, forks, tmp_path):
    whole = forks.train(recipes["sft"], tmp_path / "whole", "python", *NF4)
    stages = [("zero2", 2, 3), ("ddp", 2, 0)]
    parts = in_stages(forks, recipes["sft"], tmp_path / "parts", stages, *NF4)
    assert not [*partings(whole, parts)]


def check_eight_bit_moments(recipes, forks, folder, how, ranks):
    optimizer = ["--optim.name", "adamw_8bit"]
    whole = forks.train(recipes["causal_lm"], folder / "whole", how, *optimizer, num_processes=ranks)
    stages = [(how, ranks, 3), (how, ranks, 0)]
    parts = in_stages(forks, recipes["causal_lm"], folder / "parts", stages, *optimizer)
    assert not [*partings(whole, parts, exactly=True)]
    (checkpoint,) = (parts.output_dir / "checkpoints").glob("step-*3")
    stored = read_manifest(checkpoint).tensors
    assert {tensor.dtype for name, tensor in stored.items() if name.startswith("state1/")} == {"uint8", "float32"}
    return whole


def test_eight_bit_moments_go_on_bit_for_bit(recipes, forks, tmp_path):
    check_eight_bit_moments(recipes, forks, tmp_path, "ddp", 2)


@pytest.mark.slow
def test_eight_bit_moments_go_on_alone_and_elsewhere(recipes, forks, tmp_path):
    whole = check_eight_bit_moments(recipes, forks, tmp_path, "python", 1)
    stages = [("python", 1, 3), ("ddp", 2, 0)]
    moved = in_stages(forks, recipes["causal_lm"], tmp_path / "moved", stages, "--optim.name", "adamw_8bit")
    assert curve(moved)[3][2] == pytest.approx(curve(whole)[3][2], rel=1e-6)
