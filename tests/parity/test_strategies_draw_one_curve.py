"""One recipe under every launch form, against one process: the same data, and losses equal up to float noise."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.launching import write_recipe
from tests.tiny_models import build_tiny_bert, build_tiny_llama

pytestmark = pytest.mark.distributed

TOLERANCE = 1e-6
STEPS = 6


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    """A recipe a task: dropout on, clipping active, two parameter groups, a short last batch, uneven lengths."""
    folder = tmp_path_factory.mktemp("parity")
    llama, bert = build_tiny_llama(folder / "llama"), build_tiny_bert(folder / "bert")
    words = ("profit", "loss", "rises", "falls", "the bank", "shares", "in Oslo", "after a long and quiet year")
    rows = [
        {
            "text": " ".join(words[(i * j + j) % len(words)] for j in range(1, 3 + i % 7)),
            "label": ("good", "bad", "so-so")[i % 3],
        }
        for i in range(46)
    ]
    data = folder / "train.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = {
        "seed": 3,
        "optim": {"lr": 1e-3, "weight_decay": 0.1, "max_grad_norm": 0.3, "schedule": "cosine"},
        "train": {"max_steps": STEPS, "global_batch_size": 12, "micro_batch_size": 2},
    }
    tasks = {
        "text_classification": {"model": {"path": str(bert)}, "columns": {}},
        "causal_lm": {"model": {"path": str(llama)}, "columns": {}},
        "sft": {"model": {"path": str(llama)}, "columns": {"prompt": "text", "response": "label"}},
    }
    return {
        name: write_recipe(
            folder / f"{name}.yaml",
            output_dir="unused",
            task={"name": name},
            model=own["model"],
            data={
                "train": str(data),
                "test": str(data),
                "columns": own["columns"],
                "cache_dir": str(folder / "cache"),
                "on_long": "truncate",
            },
            **common,
        )
        for name, own in tasks.items()
    }


FULL: list[str] = []
LORA = ["--peft.method", "lora", "--peft.lora_dropout", "0.1", "--peft.init_lora_weights", "gaussian"]
HALF = [*LORA, "--train.mixed_precision", "bf16", "--train.emulate", "true"]
"""Frozen weights in bfloat16, what is trained in float32."""
QUICK = [
    ("causal_lm", FULL, ["ddp", "zero1", "zero2", "zero3"]),
    ("sft", LORA, ["ddp", "zero3"]),
    ("text_classification", LORA, ["zero2"]),
    ("text_classification", FULL, ["zero3"]),
    ("text_classification", HALF, ["zero3"]),
]
REST = [
    ("sft", FULL, ["ddp", "zero1", "zero2", "zero3", "zero3_offload"]),
    ("causal_lm", LORA, ["ddp", "zero1", "zero2", "zero3", "zero3_offload"]),
    ("text_classification", FULL, ["ddp", "zero1", "zero2"]),
    ("text_classification", LORA, ["ddp", "zero1", "zero3", "zero3_offload"]),
    ("sft", HALF, ["ddp", "zero2", "zero3", "zero3_offload"]),
]


def check(forks, recipes, tmp_path, task, overrides, strategies):
    one = forks.train(recipes[task], tmp_path / "one", "python", *overrides)
    curve = one.events("train")
    assert len(curve) == STEPS
    assert all(step["grad_norm"] > 0.3 for step in curve) or overrides, "clipping must be active"
    assert len({step["loss"] for step in curve}) == STEPS, "nothing trained"
    for how in strategies:
        other = forks.train(recipes[task], tmp_path / how, how, *overrides)
        for ours, theirs in zip(curve, other.events("train"), strict=True):
            assert ours["sample_digest"] == theirs["sample_digest"]
            assert theirs["loss"] == pytest.approx(ours["loss"], rel=TOLERANCE), (how, ours["step"])
            assert theirs["grad_norm"] == pytest.approx(ours["grad_norm"], rel=5 * TOLERANCE), (how, ours["step"])
        (test,), (their_test,) = one.events("test"), other.events("test")
        assert their_test["loss"] == pytest.approx(test["loss"], rel=TOLERANCE), how
        compare_weights(one.output_dir / "model", other.output_dir / "model")


def compare_weights(ours, theirs):
    name = "adapter_model.safetensors" if (ours / "adapter_config.json").exists() else "model.safetensors"
    ours, theirs = load_file(ours / name), load_file(theirs / name)
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        # Adam divides by the root of a moment: where a gradient is near zero, noise in it is noise in the update
        assert torch.allclose(value, theirs[key], rtol=1e-4, atol=2e-5), key


@pytest.mark.parametrize(("task", "overrides", "strategies"), QUICK)
def test_every_strategy_draws_the_curve_of_one_process(forks, recipes, tmp_path, task, overrides, strategies):
    check(forks, recipes, tmp_path, task, overrides, strategies)


@pytest.mark.slow
@pytest.mark.parametrize(("task", "overrides", "strategies"), REST)
def test_every_other_strategy_too(forks, recipes, tmp_path, task, overrides, strategies):
    check(forks, recipes, tmp_path, task, overrides, strategies)


@pytest.mark.slow
def test_three_and_four_ranks_draw_it_too(forks, recipes, tmp_path):
    one = forks.train(recipes["sft"], tmp_path / "one").events("train")
    for how, count in (("ddp", 3), ("ddp", 4), ("zero3", 4)):
        other = forks.train(recipes["sft"], tmp_path / f"{how}{count}", how, num_processes=count).events("train")
        assert [s["sample_digest"] for s in one] == [s["sample_digest"] for s in other]
        assert [s["loss"] for s in other] == pytest.approx([s["loss"] for s in one], rel=TOLERANCE)
