"""fp8, emulated, under every strategy and cut: one curve up to what rounding to float8 makes of noise; and resumed."""

import json
from functools import cache

import numpy as np
import pytest
from safetensors.numpy import load_file

from onecurve.checkpoint import read_manifest
from tests.launching import write_recipe
from tests.resume.curves import curve, largest_differences, partings
from tests.resume.test_resume import in_stages
from tests.tiny_models import build_tiny_bert, build_tiny_llama

pytestmark = pytest.mark.distributed

FP8, BF16 = (["--train.mixed_precision", kind, "--train.emulate", "true"] for kind in ("fp8", "bf16"))
LOSS, NORM = 1e-3, 4e-2
"""Twice what was measured at most."""
STEPS = 6


@pytest.fixture(scope="module", autouse=True)
def _torchao():
    pytest.importorskip("torchao", reason="needs the extra fp8")


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    """A recipe a task: lengths far apart, a short last batch, clipping active; no dropout."""
    folder = tmp_path_factory.mktemp("float8")
    llama = build_tiny_llama(folder / "llama", attention_dropout=0.0)
    bert = build_tiny_bert(folder / "bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    words = ("profit", "loss", "rises", "falls", "the bank", "shares", "in Oslo", "after a long and quiet year")
    rows = [
        {
            "text": " ".join(words[(i * j + j) % len(words)] for j in range(1, 2 + i * i % 13)),
            "label": ("good", "bad", "so-so")[i % 3],
        }
        for i in range(46)
    ]
    data = folder / "train.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = {"sft": (llama, {"prompt": "text", "response": "label"}), "text_classification": (bert, {})}
    return {
        name: write_recipe(
            folder / f"{name}.yaml",
            output_dir="unused",
            seed=3,
            task={"name": name},
            model={"path": str(model)},
            data={"train": str(data), "test": str(data), "columns": columns, "cache_dir": str(folder / "cache")},
            optim={"lr": 1e-3, "weight_decay": 0.1, "max_grad_norm": 0.3, "schedule": "cosine"},
            train={"max_steps": STEPS, "global_batch_size": 12, "micro_batch_size": 4},
        )
        for name, (model, columns) in tasks.items()
    }


@pytest.fixture(scope="module")
def one(recipes, forks, tmp_path_factory):
    """Train a task in one process, in float8, once."""
    return cache(lambda task: forks.train(recipes[task], tmp_path_factory.mktemp(task), "python", *FP8))


def same_curve(ours, theirs):
    assert len({loss for *_, loss, _ in curve(ours)}) == STEPS, "nothing trained"
    assert [step[:2] for step in curve(ours)] == [step[:2] for step in curve(theirs)]
    loss, norm = largest_differences(ours, theirs)
    assert loss <= LOSS and norm <= NORM, (loss, norm)


@pytest.mark.slow
def test_two_ranks_begin_where_one_process_does_and_draw_its_curve(recipes, forks, one, tmp_path):
    bf16 = forks.train(recipes["sft"], tmp_path / "bf16", "python", *BF16)
    apart = largest_differences(bf16, one("sft"))[0]
    assert 1e-5 < apart < 1e-2, "float8 is another precision, and not another curve"
    assert "14 of 15 linear layers" in one("sft").stdout
    ddp = forks.train(recipes["sft"], tmp_path / "ddp", "ddp", *FP8)
    assert curve(ddp)[0][:3] == curve(one("sft"))[0][:3]
    same_curve(one("sft"), ddp)


SMALLER, PACKED = ["--train.micro_batch_size", "2"], ["--train.packing", "on"]


@pytest.mark.slow
@pytest.mark.parametrize(("how", "ranks", "cut"), [("zero2", 2, SMALLER), ("zero3", 2, PACKED)])
def test_strategies_and_cuts_draw_it_within_its_tolerance(recipes, forks, one, tmp_path, how, ranks, cut):
    same_curve(one("sft"), forks.train(recipes["sft"], tmp_path, how, *FP8, *cut, num_processes=ranks))


@pytest.mark.slow
@pytest.mark.parametrize("task", ["sft", "text_classification"])
@pytest.mark.parametrize(
    ("how", "ranks", "cut"),
    [
        ("ddp", 3, []),
        ("zero1", 2, []),
        ("zero2", 2, PACKED),
        ("zero3", 2, SMALLER),
        ("zero3_offload", 2, []),
        ("python", 1, ["--train.micro_batch_size", "12"]),
        ("python", 1, PACKED),
    ],
)
def test_all_others_too(recipes, forks, one, tmp_path, task, how, ranks, cut):
    same_curve(one(task), forks.train(recipes[task], tmp_path, how, *FP8, *cut, num_processes=ranks))


def test_a_resumed_run_is_the_uninterrupted_one_and_its_model_is_transformers_own(recipes, forks, one, tmp_path):
    from transformers import AutoModelForCausalLM

    parts = in_stages(forks, recipes["sft"], tmp_path, [("python", 1, 3), ("python", 1, 0)], *FP8)
    assert not [*partings(one("sft"), parts, exactly=True)]
    model = AutoModelForCausalLM.from_pretrained(parts.output_dir / "model")
    saved = load_file(parts.output_dir / "model" / "model.safetensors")
    assert {value.dtype for value in saved.values()} == {np.dtype("float32")}
    assert saved.keys() == model.state_dict().keys()


@pytest.mark.slow
def test_a_run_goes_on_in_another_precision_only_where_that_is_allowed(recipes, forks, one, tmp_path):
    recipe = recipes["sft"]
    forks.train(recipe, tmp_path / "run", "python", *FP8, "--train.stop_after", "3")
    refused = forks.launch(recipe, tmp_path / "run", "python", *BF16)
    assert refused.exit_code == 2
    assert "train.mixed_precision was 'fp8' and is 'bf16'" in refused.stderr
    allowed = [*BF16, "--train.allow_changes", "[train.mixed_precision]", "--checkpoint.every", "6"]
    second = forks.train(recipe, tmp_path / "run", "zero2", *allowed)
    assert [step for step, *_ in curve(second)] == list(range(1, STEPS + 1))
    assert largest_differences(one("sft"), second)[0] <= 1e-2
    eight, sixteen = (
        {name: (tensor.shape, tensor.dtype) for name, tensor in read_manifest(folder).tensors.items()}
        for folder in sorted((second.output_dir / "checkpoints").glob("step-*"))
    )
    assert eight == sixteen and {dtype for _, dtype in eight.values()} == {"float32"}
