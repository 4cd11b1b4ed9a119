"""One recipe under every launch form, against one process: the same data, and losses equal up to float noise."""

import json
from itertools import cycle, islice

import pytest
import torch
from safetensors.torch import load_file

from onecurve.config import TaskSection
from onecurve.tasks import load_task
from tests.launching import write_recipe
from tests.tasks.contract import all_cases, rows_of, run_settings

pytestmark = pytest.mark.distributed

TOLERANCE = 1e-6
STEPS = 6
CLIP = 0.05


FIRST = {case.task: case for case in reversed(all_cases().values())}
"""Task -> its first case. What is not named below is under all of these launch forms too, most of them slow."""


@pytest.fixture(scope="module")
def recipes(tmp_path_factory, request):
    """A recipe a task: dropout on, clipping active, two parameter groups, a short last batch, uneven lengths."""
    folder = tmp_path_factory.mktemp("parity")
    return {task: _recipe(folder, case, request.getfixturevalue(case.model)) for task, case in FIRST.items()}


def _recipe(folder, case, model):
    rows = rows_of(case, load_task(TaskSection(name=case.task, **case.settings)))
    data = folder / f"{case.task}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in islice(cycle(rows), 46)))
    return write_recipe(
        folder / f"{case.task}.yaml",
        output_dir="unused",
        task={"name": case.task, **run_settings(case, model)},
        model={"path": str(model)},
        data={
            "train": str(data),
            "test": str(data),
            "cache_dir": str(folder / "cache"),
            **({} if _cuts_into_blocks(case) else {"on_long": "truncate"}),
        },
        seed=3,
        optim={"lr": 1e-3, "weight_decay": 0.1, "max_grad_norm": CLIP, "schedule": "cosine"},
        train={"max_steps": STEPS, "global_batch_size": 12, "micro_batch_size": 2},
    )


def _cuts_into_blocks(case):
    return "data.on_long" in load_task(TaskSection(name=case.task, **case.settings)).without_effect()


FULL: list[str] = []
LORA = ["--peft.method", "lora", "--peft.lora_dropout", "0.1", "--peft.init_lora_weights", "gaussian"]
HALF = [*LORA, "--train.mixed_precision", "bf16", "--train.emulate", "true"]
"""Frozen weights in bfloat16, what is trained in float32."""
QUICK = [
    ("causal_lm", FULL, ["ddp", "zero1", "zero2", "zero3"]),
]
REST = [
    ("sft", LORA, ["ddp", "zero3"]),
    ("sft", FULL, ["ddp", "zero1", "zero2", "zero3", "zero3_offload"]),
    ("causal_lm", LORA, ["ddp", "zero1", "zero2", "zero3", "zero3_offload"]),
    ("text_classification", FULL, ["ddp", "zero1", "zero2", "zero3"]),
    ("text_classification", LORA, ["ddp", "zero1", "zero2", "zero3", "zero3_offload"]),
    ("text_classification", HALF, ["zero3"]),
    ("sft", HALF, ["ddp", "zero2", "zero3", "zero3_offload"]),
]
NEW = sorted(FIRST.keys() - {task for task, *_ in QUICK + REST} - {"grpo"})
"""Tasks of which nothing is said above. Ranks of grpo may draw other tokens: see test_rollouts_draw_one_curve."""
QUICK += [(task, FULL, ["ddp"]) for task in NEW]
REST += [(task, FULL, ["single", "zero2", "zero3"]) for task in NEW]
REST += [(task, LORA, ["single", "ddp", "zero2", "zero3"]) for task in NEW]


def check(forks, recipes, tmp_path, task, overrides, strategies):
    one = forks.train(recipes[task], tmp_path / "one", "python", *overrides)
    curve = one.events("train")
    assert len(curve) == STEPS
    assert all(step["grad_norm"] > CLIP for step in curve) or overrides, "clipping must be active"
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
    kind = "adapter_model" if list(ours.rglob("adapter_config.json")) else "model"
    files = sorted(path.relative_to(ours) for path in ours.rglob(f"{kind}*.safetensors"))
    assert files, "no weights to compare"
    for file in files:  # several where a model has several heads
        compare_files(ours / file, theirs / file)


def compare_files(ours, theirs):
    ours, theirs = load_file(ours), load_file(theirs)
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
