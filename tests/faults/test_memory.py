"""Memory that runs out, really: one message that says what helps; and the largest micro-batch that fits."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import OutOfMemoryError
from transformers import LlamaConfig, LlamaForCausalLM

from onecurve.config import load_recipe
from onecurve.data import BatchPlan
from onecurve.faults.micro_batch_search import _expected, _sizes
from onecurve.faults.out_of_memory import OutOfMemory
from onecurve.machine import memory
from tests.launching import write_recipe
from tests.resume.curves import partings
from tests.tiny_models import build_tiny_bert, build_tiny_llama

pytestmark = pytest.mark.distributed

BATCH, MEBI = 128, 2**20
TIGHT = 1000 * MEBI
"""Enough for some of the 128 examples at once."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """Long examples on a small model: nearly all memory is activations."""
    folder = tmp_path_factory.mktemp("memory")
    rows = [{"text": f"{i} " + "a b c d e f " * (20 - i % 3), "label": ("up", "down")[i % 2]} for i in range(BATCH)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {"intermediate_size": 2048, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = build_tiny_bert(folder / "bert", **config)
    return write_recipe(
        folder / "recipe.yaml",
        output_dir="unused",
        task={"name": "text_classification"},
        model={"path": str(model)},
        data={"train": str(folder / "data.jsonl"), "cache_dir": str(folder / "cache"), "on_long": "truncate"},
        optim={"lr": 1e-3, "schedule": "constant"},
        train={"max_steps": 2, "global_batch_size": BATCH, "micro_batch_size": BATCH},
    )


@pytest.fixture(scope="module")
def launch_short(forks, recipe):
    def start(num_bytes, folder, how, ranks, *overrides):
        arguments = [str(num_bytes), str(recipe), "--output_dir", str(folder), *overrides]
        done = forks.run_script("tests.faults.short_of_memory", how, *arguments, num_processes=ranks)
        return replace(done, output_dir=folder)

    return start


def mebibytes(text):
    number, unit = re.search(r"([\d.]+) ([KMG]iB|bytes)", text).groups()
    return float(number) * {"GiB": 1024, "MiB": 1, "KiB": 1 / 1024, "bytes": 1 / MEBI}[unit]


def test_running_out_is_one_message_that_says_what_helps(launch_short, tmp_path):
    run = launch_short(TIGHT, tmp_path, "python", 1)
    assert run.exit_code == 3, run.stderr
    assert "Traceback" not in run.stderr
    (line,) = [line for line in run.stderr.splitlines() if line.startswith("train.py: ")]
    assert line.startswith("train.py: out of memory on rank 0 (cpu): ")
    asked, free = (mebibytes(part) for part in re.search(r"\): (.*) was requested, (.*) of ", line).groups())
    assert 0 < asked < TIGHT / MEBI and 0 <= free < TIGHT / MEBI
    activations = mebibytes(line.partition("activations about ")[2])
    assert TIGHT / MEBI / 4 < activations < 2 * TIGHT / MEBI
    remedies = line.partition("What would help most: ")[2].partition(". train")[0].split("; ")
    assert len(remedies) == 3
    saved = {re.match(r"(.*?) \(about", remedy)[1]: mebibytes(remedy) for remedy in remedies}
    assert saved["train.micro_batch_size 64"] == pytest.approx(activations / 2, rel=0.01)
    assert saved["train.activations recompute"] == pytest.approx(activations * (1 / 2 - 2 / 34), rel=0.01)
    assert sorted(saved.values(), reverse=True) == list(saved.values())
    assert run.status["status"] == "failed" and run.status["exit_code"] == 3
    assert run.status["reason"] in line


def test_logits_of_a_large_vocabulary_are_told_to_be_chunked(launch_short, tmp_path):
    model = build_tiny_llama(tmp_path / "llama", weights=False)
    config = model / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"vocab_size": 64_000}))
    words = [
        "--task.name",
        "causal_lm",
        "--model.path",
        str(model),
        "--model.init",
        "random",
        "--data.on_long",
        "error",
    ]
    run = launch_short(TIGHT, tmp_path / "run", "python", 1, *words)
    assert run.exit_code == 3, run.stderr
    activations, saved = (
        mebibytes(run.stderr.partition(part)[2]) for part in ("activations about ", "train.logits chunked (about ")
    )
    values = 2 * 64_000 / (2 * 64_000 + 17 * 2 * 64)
    assert saved == pytest.approx(activations * values, rel=0.02)  # both are told to a tenth of a GiB


def test_where_tokens_are_counted_it_says_to_halve_them(launch_short, tmp_path):
    budget = ["--train.micro_batch_size", "null", "--train.micro_batch_tokens", "32768"]
    run = launch_short(TIGHT, tmp_path, "python", 1, *budget)
    assert run.exit_code == 3, run.stderr
    assert "train.micro_batch_tokens 16384 (about " in run.stderr and "train.micro_batch_size 64" not in run.stderr
    assert "train.micro_batch_size auto, in place of micro_batch_tokens, finds" in run.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("how", "ranks"), [("python", 1), ("ddp", 2)])
def test_auto_finds_a_size_that_fits_and_draws_the_same_curve(launch_short, forks, recipe, tmp_path, how, ranks):
    run = launch_short(TIGHT, tmp_path / "auto", how, ranks, "--train.micro_batch_size", "auto")
    assert run.exit_code == 0, run.stderr[-3000:]
    (found,) = run.events("micro_batch_size")
    assert 4 <= found["found"] < BATCH // ranks
    assert f"= {found['found']} a pass" in run.stdout
    assert not [*partings(forks.train(recipe, tmp_path / "set", "python", "--train.micro_batch_size", "4"), run)]


@pytest.mark.parametrize(
    ("how", "ranks"),
    [
        ("python", 1),
        ("ddp", 2),
        pytest.param("zero2", 2, marks=pytest.mark.slow),
        pytest.param("zero3", 2, marks=pytest.mark.slow),
    ],
)
def test_trying_sizes_leaves_no_trace(forks, recipe, tmp_path, how, ranks):
    options = ["--train.global_batch_size", "16"]
    auto, fixed = (
        forks.train(recipe, tmp_path / size, how, *options, "--train.micro_batch_size", size, num_processes=ranks)
        for size in ("auto", str(16 // ranks))
    )
    assert [event["found"] for event in auto.events("micro_batch_size")] == [16 // ranks]
    assert not [*partings(fixed, auto, exactly=True)]


@pytest.mark.parametrize(
    ("batch", "ranks", "sizes"), [(32, 1, [1, 2, 4, 8, 16, 32]), (24, 2, [1, 2, 4, 8]), (9, 4, [1]), (2, 4, [1])]
)
def test_sizes_divide_the_batch_and_leave_no_rank_without_work(batch, ranks, sizes):
    assert list(_sizes(BatchPlan([1] * batch, 0, batch, 1), ranks)) == sizes


def test_the_next_size_is_foreseen_on_a_line():
    assert _expected({0: 100, 1: 110}, 2) == 120
    assert _expected({0: 100, 1: 110, 2: 120, 4: 160}, 8) == 240
    assert _expected({0: 100, 1: 90}, 2) == 90  # noise


def test_what_ran_out_is_read_from_the_error():
    told = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 4.00 GiB"
    cuda = OutOfMemoryError(f"{told} of which 1.50 GiB is free. Of the allocated memory ...")
    cpu = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1234 bytes.")
    assert [memory.ran_out(error) for error in (cuda, cpu, RuntimeError("mat1 and mat2"))] == [True, True, False]
    assert [memory.asked(error) for error in (cuda, cpu, RuntimeError("x"))] == [int(2.5 * 2**30), 1234, 0]
    assert [memory.left(error) for error in (cuda, cpu)] == [int(1.5 * 2**30), 0]


def test_what_other_processes_have_of_a_gpu_is_read_from_the_error():
    """As CUDACachingAllocator.cpp builds it, with NVML's list of processes, and without, as in some containers."""
    began = (
        "CUDA out of memory. Tried to allocate 10.00 MiB. GPU 0 has a total capacity of 79.19 GiB of which 22.19 MiB "
        "is free. "
    )
    named = (
        "Process 123 has 75.00 GiB memory in use. "
        "Including non-PyTorch memory, this process has 4.10 GiB memory in use. "
    )
    ended = (
        "Of the allocated memory 3.00 GiB is allocated by PyTorch, "
        "and 512.00 MiB is reserved by PyTorch but unallocated."
    )
    found = [memory.held_by_others(OutOfMemoryError(told)) for told in (began + named + ended, began + ended, began)]
    assert [round(others / 2**30, 1) for others in found] == [75.1, 75.7, 0]


# As c10/cuda/CUDAException.cpp builds it: cudaGetErrorString's text, and hints that differ from version to version
OF_CUDA = (
    "CUDA error: out of memory\n"
    "Search for `cudaErrorMemoryAllocation' in https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html "
    "for more information.\n"
    "For more detailed error information, run with CUDA_LOG_FILE=stderr\n"
    "Device-side assertions were explicitly omitted for this error check; the error probably arose while initializing "
    "the DSA handlers."
)
OF_NCCL = (
    "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94, unhandled cuda error, NCCL version 2.29.7\n"
    "ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\nCuda failure 2 'out of memory'"
)


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (torch.AcceleratorError(OF_CUDA), True),
        (RuntimeError(OF_CUDA), True),  # before torch 2.8
        (RuntimeError("CUDA driver error: out of memory"), True),
        (torch.distributed.DistBackendError(OF_NCCL), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (torch.AcceleratorError(OF_CUDA.replace("out of memory", "an illegal memory access was encountered")), False),
        (KeyError("CUDA error: out of memory"), False),
    ],
)
def test_what_cuda_and_its_libraries_say_is_known(error, is_one):
    assert memory.ran_out(error) is is_one


@pytest.fixture
def on_gpu(monkeypatch, recipe):
    """Return what is said of an error where so many bytes of a GPU are free."""

    def explain(error, free, *overrides):
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        accelerator = SimpleNamespace(device=torch.device("cuda", 1), process_index=5, num_processes=8)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=61, **sizes))
        out_of_memory = OutOfMemory(load_recipe([str(recipe), *overrides])[0], model, accelerator)
        with monkeypatch.context() as patch:
            patch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 80 * 2**30))
            patch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda", 1))
            patch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
            return out_of_memory(error)

    return explain


def test_page_locked_memory_that_runs_out_is_told_apart_from_the_gpu_s(on_gpu):
    told = on_gpu(torch.AcceleratorError(OF_CUDA), 30 * 2**30)
    assert told.startswith("out of page-locked host memory on rank 5 (cuda:1): ")
    assert "30.0 GiB is free, so a smaller micro-batch does not help" in told
    assert "ulimit -l" in told and "fewer ranks per machine" in told
    assert "train.micro_batch_size" not in told and "offload" not in told
    told = on_gpu(torch.AcceleratorError(OF_CUDA), 30 * 2**30, "--train.activations", "offload")
    assert "offloaded activations" in told and "train.activations recompute" in told


def test_a_full_gpu_is_told_of_whoever_says_so(on_gpu):
    for error in (torch.AcceleratorError(OF_CUDA), torch.distributed.DistBackendError(OF_NCCL)):
        told = on_gpu(error, 20 * MEBI)
        assert told.startswith("out of memory on rank 5 (cuda:1): more was requested, 20.0 MiB of 80.0 GiB is free")
        assert "What would help most: " in told
