"""Whole runs on a GPU: resumed, interrupted by nothing, short of memory, and with each setting that saves some.

On a CPU other tests hold all of this; the halves here show that what a GPU is asked can be answered.
"""

import json
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from onecurve.checkpoint import read_manifest
from onecurve.checkpoint.difference import compare_tensors
from onecurve.cli import main
from tests.gpu.devices import GPU, GPU_AND_SLOWLY_CPU
from tests.launching import ROOT, environment, train, write_recipe
from tests.resume.curves import curve
from tests.tiny_models import build_tiny_llama

pytestmark = pytest.mark.distributed
GIBI = 2**30
BATCH = 64
LORA = ["--peft.method", "lora", "--peft.target_modules", "all-linear", "--peft.init_lora_weights", "gaussian"]
ON_GPU = [pytest.param("cuda", marks=GPU)]
TWO = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    rows = [{"text": f"number {i} and its square {i * i}, " * (1 + i % 3)} for i in range(64)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = build_tiny_llama(folder / "llama", attention_dropout=0.0)
    return write_recipe(
        folder / "recipe.yaml",
        output_dir="unused",
        task={"name": "causal_lm"},
        model={"path": str(model)},
        data={"train": str(folder / "train.jsonl"), "cache_dir": str(folder / "cache")},
        optim={"lr": 1e-3},
        train={"max_steps": 6, "global_batch_size": 8, "micro_batch_size": 4, "mixed_precision": "auto"},
    )


@pytest.fixture
def run(forks, recipe, tmp_path):
    """Train on a device: in a fork on a CPU, by a launch of its own where CUDA must begin anew."""

    def of(device, name, *overrides, how="python", ranks=1):
        words = [recipe, tmp_path / name, how, *overrides]
        if device == "cpu":
            return forks.train(*words, num_processes=ranks)
        return train(*words, num_processes=ranks)

    return of


def weights(ended):
    adapter, whole = (ended.output_dir / "model" / f"{kind}model.safetensors" for kind in ("adapter_", ""))
    return load_file(adapter if adapter.is_file() else whole)  # an adapter's folder links to its base


def parted(ours, theirs):
    """The largest relative difference of the losses, and whether all weights are the same bit for bit."""
    one, other = curve(ours), curve(theirs)
    assert [step[:2] for step in one] == [step[:2] for step in other]
    mine, yours = weights(ours), weights(theirs)
    same = mine.keys() == yours.keys() and all(torch.equal(mine[name], yours[name]) for name in mine)
    return max(abs(a[2] - b[2]) / a[2] for a, b in zip(one, other, strict=True)), same


@pytest.mark.parametrize("device", GPU_AND_SLOWLY_CPU)
def test_a_resumed_run_is_as_near_to_the_uninterrupted_one_as_that_to_itself(device, run):
    """Bit for bit wherever the device itself computes the same again: attention's backward pass on a GPU may not."""
    straight, again = (run(device, name) for name in ("straight", "again"))
    run(device, "parts", "--train.stop_after", "3", "--checkpoint.every", "3")
    difference, same = parted(straight, run(device, "parts", "--checkpoint.every", "3"))
    of_itself, deterministic = parted(straight, again)
    assert same or not deterministic
    assert difference <= 2 * of_itself + (0 if deterministic else 1e-5)
    assert of_itself < 1e-4


@pytest.mark.parametrize("sections", [[], ["--train.packing", "on"], ["--train.logits", "chunked"]])
@pytest.mark.parametrize("device", ON_GPU)
def test_a_resumed_deterministic_run_is_the_uninterrupted_one_bit_for_bit(device, run, sections):
    words = [*sections, "--train.deterministic", "true"]
    straight = run(device, "straight", *words)
    run(device, "parts", *words, "--train.stop_after", "3", "--checkpoint.every", "3")
    assert parted(straight, run(device, "parts", *words, "--checkpoint.every", "3")) == (0.0, True)


@pytest.mark.parametrize("device", GPU_AND_SLOWLY_CPU)
def test_a_new_head_is_the_same_in_one_process_and_under_zero_3(device, run, tmp_path):
    rows = [{"text": f"headline {i}", "label": ("up", "down", "level")[i % 3]} for i in range(16)]
    (tmp_path / "labelled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--task.name", "text_classification", "--data.train", str(tmp_path / "labelled.jsonl")]
    words += ["--train.max_steps", "1", "--checkpoint.also", "[0]", "--train.mixed_precision", "no"]
    runs = [run(device, how, *words, how=how) for how in ("python", "zero3")]
    folders = [ended.output_dir / "checkpoints" / "step-00000000" for ended in runs]
    assert "param/score.weight" in read_manifest(folders[0]).tensors
    assert [*compare_tensors(*folders)] == []


@pytest.mark.parametrize("device", GPU_AND_SLOWLY_CPU)
def test_saving_while_training_goes_on_changes_nothing(device, run):
    """Every step is saved, so that each update meets a save that is under way."""
    always = ["--checkpoint.every", "1", "--checkpoint.keep", "6"]
    without, saving = run(device, "without"), run(device, "saving", *always)
    difference, same = parted(without, saving)
    assert same if device == "cpu" else difference < 1e-4
    assert main(["checkpoint", "verify", str(saving.output_dir)]) == 0


SETTINGS = {
    "compile": (["--train.compile", "true"], [], 1e-3),
    "chunked": (["--train.logits", "chunked"], [], 1e-4),
    "offload": (["--train.activations", "offload"], [], 1e-4),
    "recompute": (["--train.activations", "recompute"], [], 1e-4),
    "selective": (["--train.activations", "selective"], [], 1e-4),
    "auto": (["--train.micro_batch_size", "auto"], [], 1e-3),
    "packed": (["--train.packing", "on"], ["--train.packing", "off"], 1e-3),
    "nf4, in other cuts": (
        [*LORA, "--model.quantization", "nf4", "--train.micro_batch_size", "2"],
        [*LORA, "--model.quantization", "nf4"],
        1e-3,
    ),
    "int8, in other cuts": (
        [*LORA, "--model.quantization", "int8", "--train.micro_batch_size", "2"],
        [*LORA, "--model.quantization", "int8"],
        2e-3,
    ),
    "adamw_8bit, in other cuts": (
        ["--optim.name", "adamw_8bit", "--train.micro_batch_size", "2"],
        ["--optim.name", "adamw_8bit"],
        2e-3,
    ),
    "rounded, in other cuts": (
        ["--model.dtype", "bfloat16", "--optim.rounding", "kahan", "--train.micro_batch_size", "2"],
        ["--model.dtype", "bfloat16", "--optim.rounding", "kahan"],
        1e-2,
    ),
}
"""What is set, what the run beside it has, and how far their losses may be apart."""


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("device", GPU_AND_SLOWLY_CPU)
def test_what_saves_memory_or_time_draws_the_same_curve(device, name, run):
    set_here, beside, tolerance = SETTINGS[name]
    if "bit" in name or "nf4" in name or "int8" in name:
        pytest.importorskip("bitsandbytes", reason="needs the extra quant")
    ours, theirs = run(device, "ours", *set_here), run(device, "theirs", *beside)
    losses = [step["loss"] for step in theirs.events("train")]
    assert losses[-1] < losses[0] - (0.01 if "--peft.method" in set_here else 0.1), "nothing trained"
    assert parted(ours, theirs)[0] < tolerance


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Long examples on a wide model: activations of gigabytes."""
    folder = tmp_path_factory.mktemp("large")
    rows = [{"text": "a b c d " * (60 - i % 3)} for i in range(BATCH)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 6, "max_position_embeddings": 1024}
    model = build_tiny_llama(folder / "llama", attention_dropout=0.0, **sizes)
    return write_recipe(
        folder / "recipe.yaml",
        output_dir="unused",
        task={"name": "causal_lm"},
        model={"path": str(model)},
        data={"train": str(folder / "train.jsonl"), "cache_dir": str(folder / "cache")},
        train={"max_steps": 2, "global_batch_size": BATCH, "micro_batch_size": BATCH, "packing": "off"},
    )


def run_short(recipe, folder, *overrides):
    words = ["-m", "tests.gpu.short_of_gpu_memory", str(GIBI), str(recipe), "--output_dir", str(folder), *overrides]
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment(), capture_output=True, text=True, check=False, timeout=540
    )


@pytest.mark.parametrize("device", ON_GPU)
def test_a_full_gpu_is_one_message_and_auto_finds_what_fits(device, large, tmp_path):
    done = run_short(large, tmp_path / "full")
    assert done.returncode == 3 and "Traceback" not in done.stderr, done.stderr[-3000:]
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("train.py: ")]
    assert line.startswith("train.py: out of memory on rank 0 (cuda:0): ")
    assert re.search(r"\): [\d.]+ [MG]iB was requested, ", line) and "train.micro_batch_size 32 (about " in line
    done = run_short(large, tmp_path / "auto", "--train.micro_batch_size", "auto")
    assert done.returncode == 0, done.stderr[-3000:]
    found = re.search(r"= (\d+) a pass", done.stdout)
    assert found and 1 <= int(found[1]) < BATCH


@TWO
@pytest.mark.parametrize("how", ["ddp", "zero1", "zero2", "zero3"])
@pytest.mark.parametrize("device", ON_GPU)
def test_two_gpus_draw_the_curve_of_one(device, how, run):
    whole = run(device, "whole", "--train.mixed_precision", "no")
    assert parted(whole, run(device, how, "--train.mixed_precision", "no", how=how, ranks=2))[0] < 1e-5


@TWO
@pytest.mark.parametrize("device", ON_GPU)
def test_the_doctor_finds_two_gpus_healthy(device, tmp_path):
    words = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "onecurve", "doctor"]
    done = subprocess.run(
        [sys.executable, *words, "--json", str(tmp_path / "report.json")],
        cwd=ROOT, env=environment(), capture_output=True, text=True, check=False, timeout=540,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    values = {entry["name"]: entry["value"] for entry in json.loads((tmp_path / "report.json").read_text())["findings"]}
    assert "over nccl" in values["sum over the ranks"]
