"""An adapter's frozen projections and norms come out of a checkpoint as they went in."""

import json

import pytest
import torch
from safetensors.torch import load_file

from onecurve.adapters import add_adapter
from onecurve.adapters.buffers import adapter_buffers
from onecurve.checkpoint import Alone, Retention, Writer, load, read_manifest
from onecurve.checkpoint.adapter_buffers import buffer_pieces, stored_buffers
from onecurve.cli import main
from onecurve.config import PeftSection

DRAWN = {
    "vera": {"projection_prng_key": 1},
    "pvera": {"projection_prng_key": 1},
    "randlora": {"projection_prng_key": 1},
    "tinylora": {},
    "supertuning": {},
    "delora": {},
    "frod": {},
    "adamss": {},
}
"""Methods with buffers, and what makes them drawn otherwise where it is not the base."""


def adapted(folder, method, dtype=torch.float32, **fields):
    from transformers import AutoModelForCausalLM

    torch.manual_seed(5)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    if dtype == torch.bfloat16:  # another base: what is derived from it differs by more than a rounding
        base.model.layers[0].self_attn.q_proj.weight.data.mul_(1.5)
    return add_adapter(base, PeftSection(method=method, **fields), task_type="CAUSAL_LM", new_modules=[])


@pytest.mark.parametrize("method", DRAWN)
def test_buffers_are_stored_whatever_the_next_launch_would_make_of_them(tiny_llama, tmp_path, method):
    model = adapted(tiny_llama, method, torch.bfloat16)
    kept = {name: buffer.clone() for name, buffer in adapter_buffers(model)}
    assert kept
    writer = Writer(tmp_path, Alone(), Retention(1))
    writer.save(1, list(buffer_pieces(model)), {"run_id": "r"})
    writer.wait()
    other = adapted(tiny_llama, method, **DRAWN[method])
    assert any(not torch.equal(buffer, kept[name]) for name, buffer in adapter_buffers(other)), "nothing was at stake"
    stored = read_manifest(tmp_path / "step-00000001").tensors
    load(tmp_path / "step-00000001", stored_buffers(other, stored))
    for name, buffer in adapter_buffers(other):
        assert buffer.dtype == kept[name].dtype
        assert torch.equal(buffer, kept[name]), name


def test_a_checkpoint_from_before_leaves_them_as_they_are(tiny_llama):
    model = adapted(tiny_llama, "vera")
    assert stored_buffers(model, {}) == []


def test_ranks_share_a_buffer_out(tiny_llama):
    model = adapted(tiny_llama, "vera")
    whole = {piece.tensor: piece.values for piece in buffer_pieces(model)}
    shares = [piece for rank in range(3) for piece in buffer_pieces(model, rank, 3)]
    for name, values in whole.items():
        own = sorted((piece for piece in shares if piece.tensor == name), key=lambda piece: piece.offset)
        assert torch.equal(torch.cat([piece.values for piece in own]), values)


@pytest.mark.slow
@pytest.mark.distributed
def test_vera_goes_on_under_another_strategy_and_converts_to_what_the_run_exports(forks, recipes, tmp_path):
    vera = ["--peft.method", "vera", "--optim.lr", "0.05", "--checkpoint.every", "4"]
    whole = forks.train(recipes["text_classification"], tmp_path / "whole", "ddp", *vera)
    forks.train(recipes["text_classification"], tmp_path / "run", "zero3", *vera, "--train.stop_after", "4")
    run = forks.train(recipes["text_classification"], tmp_path / "run", "ddp", *vera)
    expected, resumed = (
        load_file(path / "model" / "adapter_model.safetensors") for path in (whole.output_dir, run.output_dir)
    )
    projections = [name for name in expected if name.endswith(("vera_A", "vera_B"))]
    assert len(projections) == 2
    assert all(torch.equal(resumed[name], expected[name]) for name in projections)
    for name in expected:
        torch.testing.assert_close(resumed[name], expected[name], rtol=1e-3, atol=1e-4)
    assert main(["checkpoint", "convert", str(run.output_dir), str(tmp_path / "converted")]) == 0
    converted = load_file(tmp_path / "converted" / "adapter_model.safetensors")
    assert converted.keys() == resumed.keys()
    assert all(torch.equal(converted[name], resumed[name]) for name in resumed)
    last = json.loads((run.output_dir / "status.json").read_text())["step"]
    assert f"step {last}" in (tmp_path / "converted" / "README.md").read_text()
