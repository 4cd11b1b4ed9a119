"""What is new starts from the same numbers on a CUDA device, under ZeRO-3 and on a quantised base, as on a CPU."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from tests.launching import ROOT, command, environment
from tests.tiny_models import build_tiny_llama

pytestmark = pytest.mark.gpu
LLAMA_ADAPTER = {
    "task": {"name": "causal_lm"},
    "peft": {"method": "adaption_prompt", "adapter_len": 4, "adapter_layers": 2},
}
LORA = {"peft": {"method": "lora"}}
NF4 = {**LORA, "model": {"quantization": "nf4"}}


@pytest.fixture
def starts_from(tiny_llama, tmp_path):
    """Load a model, by default a classifier, in its own process; return what its trained parameters start from."""

    def load(device, how, sections):
        folder = tmp_path / f"{device}-{how}"
        folder.mkdir()
        hidden = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"} if device == "cpu" else {}
        subprocess.run(
            [*command(how, 1), "tests/strategies/head_ranks.py", str(tiny_llama), str(folder), json.dumps(sections)],
            cwd=ROOT,
            env=environment() | hidden,
            check=True,
            timeout=300,
        )
        return load_file(folder / "rank-0.safetensors")

    return load


@pytest.mark.parametrize(
    ("how", "sections"),
    [("zero3", {}), ("zero3", LORA), ("zero3", LLAMA_ADAPTER), ("python", LORA), ("python", NF4)],
    ids=["zero3, full", "zero3, lora", "zero3, llama_adapter", "one process, lora", "one process, nf4"],
)
def test_what_is_drawn_is_what_a_cpu_draws(starts_from, how, sections):
    if "model" in sections:
        pytest.importorskip("bitsandbytes", reason="needs the extra quant")
    wanted, found = starts_from("cpu", "python", sections), starts_from("cuda", how, sections)
    assert any(value.numel() > 1 and value.std() > 0 for value in wanted.values())
    assert found.keys() == wanted.keys()
    assert [name for name, value in wanted.items() if not torch.equal(value, found[name])] == []


def test_the_host_never_holds_the_weights_that_are_read_onto_a_gpu(tmp_path):
    """Memory that only belongs to this process: what a file maps comes and goes with the system's need."""
    folder = build_tiny_llama(tmp_path / "llama", hidden_size=2048, intermediate_size=8192, num_hidden_layers=12)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    script = (
        "import sys, psutil, torch\n"
        "from tests.strategies.head_ranks import load\n"
        "torch.zeros(1, device='cuda')\n"
        "before = psutil.Process().memory_full_info().uss\n"
        "model = load(sys.argv[1], torch.device('cuda', 0))\n"
        "assert {p.device.type for p in model.parameters()} == {'cuda'}\n"
        "print(psutil.Process().memory_full_info().uss - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)], cwd=ROOT, env=environment(), check=True, capture_output=True
    )
    assert size > 2 * 2**30 and int(done.stdout.split()[-1]) < size / 2
