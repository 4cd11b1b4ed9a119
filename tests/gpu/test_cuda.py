"""On a CUDA device: the CPU's curve, in float32 and within bf16's reach, plain and under ZeRO with one rank.

Dropout is off where CPU and CUDA are compared: the two draw other numbers from the same seed.
"""

import json

import pytest
import torch

from onecurve.machine.distributed import computes_natively
from onecurve.model.float8 import compute_in_float8
from tests.launching import train, write_recipe
from tests.tiny_models import build_tiny_llama

pytestmark = pytest.mark.gpu

FULL: list[str] = []
LORA = ["--peft.method", "lora", "--peft.init_lora_weights", "gaussian"]
BF16 = ["--train.mixed_precision", "bf16"]
FP8, EMULATED = ["--train.mixed_precision", "fp8"], ["--train.emulate", "true"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu")
    size = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4}
    llama = build_tiny_llama(folder / "llama", attention_dropout=0.0, **size)
    rows = [{"text": f"number {i} and its square {i * i}, " * (1 + i % 6)} for i in range(200)]
    data = folder / "train.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return write_recipe(
        folder / "recipe.yaml",
        output_dir="unused",
        task={"name": "causal_lm"},
        model={"path": str(llama)},
        data={"train": str(data), "test": str(data), "cache_dir": str(folder / "cache")},
        optim={"lr": 1e-3, "weight_decay": 0.1, "max_grad_norm": 0.5, "schedule": "cosine"},
        train={"max_steps": 20, "global_batch_size": 16, "micro_batch_size": 4},
    )


@pytest.fixture(scope="module")
def curve(recipe, tmp_path_factory):
    """Train once a setting and return the losses and digests."""
    seen = {}

    def run(device, how, *overrides):
        key = (device, how, overrides)
        if key not in seen:
            with pytest.MonkeyPatch.context() as patch:
                if device == "cpu":
                    patch.setenv("CUDA_VISIBLE_DEVICES", "")
                    patch.setenv("DS_ACCELERATOR", "cpu")
                ended = train(recipe, tmp_path_factory.mktemp("run"), how, *overrides, num_processes=1)
            assert (ended.output_dir / "model").is_dir()
            seen[key] = ended.events("train")
        return seen[key]

    return run


def difference(ours, theirs):
    assert [s["sample_digest"] for s in ours] == [s["sample_digest"] for s in theirs]
    assert ours[-1]["loss"] < 0.9 * ours[0]["loss"], "nothing trained"
    return max(abs(a["loss"] - b["loss"]) / a["loss"] for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    ("name", "ours", "theirs", "tolerance"),
    [
        ("cuda fp32 / cpu fp32, full", ("cpu", "python"), ("cuda", "python"), 1e-4),
        ("cuda bf16 / cpu fp32, full", ("cpu", "python"), ("cuda", "python", *BF16), 2e-2),
        ("cuda bf16 / cuda fp32, lora", ("cuda", "python", *LORA), ("cuda", "python", *LORA, *BF16), 2e-2),
        ("zero1 x 1 / one process, fp32", ("cuda", "python"), ("cuda", "zero1"), 1e-5),
        ("zero2 x 1 / one process, fp32", ("cuda", "python"), ("cuda", "zero2"), 1e-5),
        ("zero3 x 1 / one process, fp32", ("cuda", "python"), ("cuda", "zero3"), 1e-5),
        ("zero3_offload x 1 / one process, fp32", ("cuda", "python"), ("cuda", "zero3_offload"), 1e-5),
        ("zero2 x 1 / one process, bf16", ("cuda", "python", *BF16), ("cuda", "zero2", *BF16), 5e-3),
        ("zero3 x 1 / one process, bf16", ("cuda", "python", *BF16), ("cuda", "zero3", *BF16), 5e-3),
        ("zero3 x 1 / one process, lora", ("cuda", "python", *LORA), ("cuda", "zero3", *LORA), 1e-5),
    ],
)
def test_one_curve(curve, capsys, name, ours, theirs, tolerance):
    found = difference(curve(*ours), curve(*theirs))
    with capsys.disabled():
        print(f"\n{name}: largest relative loss difference over 20 steps {found:.1e}")
    assert found <= tolerance


def test_fp16_scales_its_loss(curve):
    steps = curve("cuda", "python", "--train.mixed_precision", "fp16")
    taken = [step for step in steps if not step.get("skipped")]
    assert len(taken) > 10
    assert taken[-1]["loss"] < 0.9 * steps[0]["loss"]


@pytest.fixture
def _float8():
    pytest.importorskip("torchao", reason="needs the extra fp8")
    if not computes_natively("fp8"):
        pytest.skip("needs a device that computes in float8")


@pytest.mark.usefixtures("_float8")
@pytest.mark.parametrize(
    ("name", "ours", "theirs", "tolerance"),
    [
        ("cuda fp8 / cuda bf16, full", ("cuda", "python", *BF16), ("cuda", "python", *FP8), 3e-2),
        ("cuda fp8 / cpu fp8 emulated", ("cpu", "python", *FP8, *EMULATED), ("cuda", "python", *FP8), 3e-2),
        ("zero2 x 1 / one process, fp8", ("cuda", "python", *FP8), ("cuda", "zero2", *FP8), 1e-2),
        ("zero3 x 1 / one process, fp8", ("cuda", "python", *FP8), ("cuda", "zero3", *FP8), 1e-2),
    ],
)
def test_one_curve_in_float8(curve, capsys, name, ours, theirs, tolerance):
    test_one_curve(curve, capsys, name, ours, theirs, tolerance)


@pytest.mark.usefixtures("_float8")
@pytest.mark.parametrize("tokens", [1, 37, 64])
def test_the_device_s_float8_products_are_the_emulated_ones(tokens):
    """In bfloat16, which both round their results to; 37 tokens are no multiple of what the hardware works in."""
    results = []
    for emulated in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Module()
        model.base_model = torch.nn.Sequential(torch.nn.Linear(64, 128))
        compute_in_float8(model, emulated)
        linear, x = model.base_model[0].cuda(), torch.randn(tokens, 64, device="cuda", requires_grad=True)
        with torch.autocast("cuda", torch.bfloat16):
            y = linear(x)
        y.float().pow(2).sum().backward()
        results.append([y.float(), x.grad, linear.weight.grad, linear.bias.grad])
    for native, emulated in zip(*results, strict=True):
        assert float((native - emulated).norm() / emulated.norm()) < 1e-2
