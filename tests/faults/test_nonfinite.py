"""A loss or gradient that is not finite, or a spike, on one rank: all find it before the update, and do the same."""

import json
from dataclasses import replace
from math import nan

import numpy as np
import pytest
from safetensors.numpy import load_file

from onecurve.config import TrainSection
from onecurve.data import BatchPlan
from onecurve.run.history import History
from onecurve.strategies.precision import LossScale
from tests.launching import write_recipe
from tests.resume.curves import partings, weights

MARK = "\u00a7"
STEPS, BATCH, MICRO, BAD = 6, 8, 2, 4
"""In step 4 a sample of its last micro-batch is spoilt, which is rank 1's of two."""
FORMS = [("python", 1), ("ddp", 2), ("zero1", 2), ("zero2", 2), ("zero3", 2), ("zero3_offload", 2)]
FAST = [("python", 1, "loss"), ("ddp", 2, "gradient")]
WHY = {"loss": "the loss is not finite", "gradient": "the gradient is not finite", "spike": "the loss is a spike"}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, tiny_bert):
    folder = tmp_path_factory.mktemp("nonfinite")
    plan = BatchPlan(np.ones(STEPS * BATCH, int), 0, BATCH, MICRO)
    spoilt = plan.step(BAD).micro_batches[-1][0]
    rows = [{"text": f"headline {i} " * (1 + i % 5), "label": ("up", "down")[i % 2]} for i in range(STEPS * BATCH)]
    rows[spoilt]["text"] = f"a {MARK} here"
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return write_recipe(
        folder / "recipe.yaml",
        output_dir="unused",
        task={"name": "text_classification"},
        model={"path": str(tiny_bert)},
        data={"train": str(folder / "data.jsonl"), "cache_dir": str(folder / "cache")},
        optim={"lr": 2e-3, "weight_decay": 0.1, "max_grad_norm": 0.5, "schedule": "constant"},
        train={"max_steps": STEPS, "global_batch_size": BATCH, "micro_batch_size": MICRO},
        checkpoint={"every": 1, "keep": STEPS},
    )


@pytest.fixture(scope="module")
def launch(recipe, forks, tiny_bert):
    """Launch a run with a fault planted."""
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(tiny_bert)(MARK, add_special_tokens=False)["input_ids"]

    def start(kind, folder, how, ranks, *overrides):
        arguments = [kind, str(ids[-1]), str(recipe), "--output_dir", str(folder), *overrides]
        done = forks.run_script("tests.faults.planting", how, *arguments, num_processes=ranks)
        return replace(done, output_dir=folder)

    return start


def ended_well(run):
    assert run.exit_code == 0, run.stdout[-3000:] + run.stderr[-6000:]
    return run


def tensors(run, step):
    folder = run.output_dir / "checkpoints" / f"step-{step:08d}"
    return {file.name + name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def same(one, other):
    assert one.keys() == other.keys()
    return all(np.array_equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def references(launch, tmp_path_factory):
    """What one process makes of each fault where it leaves the step out."""
    found = {}

    def reference(kind):
        if kind not in found:
            folder = tmp_path_factory.mktemp("reference")
            found[kind] = ended_well(launch(kind, folder, "python", 1, "--train.on_nonfinite", "skip"))
        return found[kind]

    return reference


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("how", "ranks", "kind"),
    [
        pytest.param(*form, kind, marks=[] if (*form, kind) in FAST else [pytest.mark.slow])
        for form in FORMS
        for kind in ("loss", "gradient")
    ],
)
def test_it_is_caught_at_its_step_with_nothing_touched_and_the_run_goes_on_as_one_curve(
    launch, references, tmp_path, how, ranks, kind
):
    run = ended_well(launch(kind, tmp_path, how, ranks, "--train.on_nonfinite", "skip"))
    (skipped,) = run.events("skipped_step")
    plan = BatchPlan(np.ones(STEPS * BATCH, int), 0, BATCH, MICRO)
    assert (skipped["step"], skipped["reason"]) == (BAD, WHY[kind])
    assert skipped["sample_ids"] == plan.step(BAD).sample_ids.tolist()
    assert skipped.get("ranks") == ([ranks - 1] if kind == "loss" else None)
    assert [event["step"] for event in run.events("train")] == [1, 2, 3, 5, 6]
    assert same(tensors(run, BAD - 1), tensors(run, BAD))  # parameters, moments and their step count
    assert not same(tensors(run, BAD), tensors(run, BAD + 1))
    assert not [*partings(references(kind), run)]


@pytest.mark.distributed
def test_both_kinds_of_fault_leave_the_same_run_behind(references):
    # one is found before the update is asked for, the other within it
    assert not [*partings(references("loss"), references("gradient"), exactly=True)]


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("how", "kind"),
    [
        ("ddp", "gradient"),
        pytest.param("zero3", "loss", marks=pytest.mark.slow),
        pytest.param("ddp", "loss", marks=pytest.mark.slow),
        pytest.param("zero1", "gradient", marks=pytest.mark.slow),
    ],
)
def test_by_default_the_run_stops_with_a_black_box(launch, tmp_path, how, kind):
    run = launch(kind, tmp_path, how, 2)
    assert run.exit_code == 3, run.stderr
    folder = tmp_path / "blackbox" / f"step-{BAD:08d}"
    what = "the loss itself" if kind == "loss" else "the gradient of classifier.bias"
    lines = [line for line in run.stderr.splitlines() if line.startswith("train.py: ")]
    assert f"train.py: step {BAD}: {WHY[kind]}" in lines[0]
    assert f"first not finite on rank 1, in micro-batch 3, is {what}. See {folder}." in lines[0]
    assert "train.on_nonfinite skip or rewind" in lines[0]
    assert run.status["exit_code"] == 3 and run.status["step"] == BAD - 1
    report = json.loads((folder / "report.json").read_text())
    batches = {rank: load_file(folder / f"batch-rank-{rank:05d}.safetensors") for rank in (0, 1)}
    assert sorted(batches[0]) == [f"0000{i}/{key}" for i in (0, 2) for key in ("attention_mask", "input_ids", "labels")]
    assert batches[1]["00003/input_ids"].shape[0] == MICRO
    samples = (folder / "samples.txt").read_text()
    assert samples.count("\nsample ") == BATCH - 1 and f"a {MARK} here" in samples
    bad = [one for one in report["micro_batches"] if one["gradient_norm"] == "nan" or one["loss_sum"] == "inf"]
    assert [(one["position"], one["rank"]) for one in bad] == [(3, 1)]
    saved = tensors(run, BAD - 1)
    stored = np.sqrt(sum((v**2).sum() for n, v in saved.items() if "param/classifier.weight" in n))
    of_one = report["parameters"]["classifier.weight"]
    assert of_one["weight_norm"] == pytest.approx(stored, rel=1e-5)
    assert of_one["largest_gradient_norm"] == "nan" if kind == "gradient" else of_one["largest_gradient_norm"] > 0


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("how", "kind"),
    [
        pytest.param("ddp", "loss", marks=pytest.mark.slow),
        ("zero2", "gradient"),
        pytest.param("zero3", "loss", marks=pytest.mark.slow),
    ],
)
def test_going_back_to_leave_a_step_out_is_leaving_it_out_bit_for_bit(launch, tmp_path, how, kind):
    # the one computes its gradient and clears it away, the other, the second time, never computes it
    skip = ended_well(launch(kind, tmp_path / "skip", how, 2, "--train.on_nonfinite", "skip"))
    options = ["--train.on_nonfinite", "rewind", "--checkpoint.every", "2"]
    back = ended_well(launch(kind, tmp_path / "back", how, 2, *options))
    (rewind,) = back.events("rewind")
    assert (rewind["step"], rewind["from_step"]) == (BAD - 2, BAD)
    assert [event["step"] for event in back.events("skipped_step")] == [BAD]
    assert not [*partings(skip, back, exactly=True)]


@pytest.mark.distributed
def test_going_back_to_the_very_start_forgets_the_moments(launch, tmp_path):
    skip = ended_well(launch("loss", tmp_path / "skip", "zero2", 2, "--train.on_nonfinite", "skip"))
    options = ["--train.on_nonfinite", "rewind", "--checkpoint.every", "0", "--checkpoint.also", "[0]"]
    back = ended_well(launch("loss", tmp_path / "back", "zero2", 2, *options))
    assert [event["step"] for event in back.events("rewind")] == [0]
    assert not [*partings(skip, back, exactly=True)]


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--train.on_nonfinite", "rewind", "--checkpoint.every", "500"], "There is no checkpoint to go back to"),
        (
            ["--train.on_nonfinite", "skip", "--train.max_skipped", "0"],
            "More than train.max_skipped (0) skipped in a row.",
        ),
    ],
)
def test_where_the_answer_does_not_help_the_run_stops(launch, tmp_path, options, said):
    run = launch("loss", tmp_path, "python", 1, *options)
    assert run.exit_code == 3
    assert said in run.stderr
    assert (tmp_path / "blackbox" / f"step-{BAD:08d}" / "report.json").is_file()


@pytest.mark.slow
@pytest.mark.distributed
def test_a_spike_is_told_by_its_rule_also_where_the_run_was_interrupted_on_the_way(launch, tmp_path):
    ignored = ended_well(launch("spike", tmp_path / "ignored", "python", 1))
    assert len(ignored.events("train")) == STEPS and ignored.events("train")[BAD - 1]["loss"] > 10
    options = ["--train.on_spike", "skip", "--train.spike_window", "3"]
    whole = ended_well(launch("spike", tmp_path / "whole", "ddp", 2, *options))
    assert [(event["step"], event["reason"]) for event in whole.events("skipped_step")] == [(BAD, WHY["spike"])]
    ended_well(launch("spike", tmp_path / "parts", "zero3", 2, "--train.stop_after", str(BAD - 1), *options))
    parts = ended_well(launch("spike", tmp_path / "parts", "ddp", 2, *options))
    assert [event["step"] for event in parts.events("skipped_step")] == [BAD]
    assert not [*partings(whole, parts)]
    assert not np.allclose(weights(whole)["classifier.weight"], weights(ignored)["classifier.weight"], atol=1e-4)


def section(**settings):
    return TrainSection(max_steps=1, **settings)


def test_a_spike_needs_a_full_window_and_lies_above_it():
    history = History(section(on_spike="skip", spike_window=4, spike_sigma=2.0))
    for loss in (1.0, 3.0, 1.0):
        assert history.fault(100.0) == ""
        history.updated(loss)
    history.updated(3.0)  # mean 2, deviation 1
    assert [history.fault(loss) for loss in (3.99, 4.01, -100.0, nan)] == ["", "spike", "", "loss"]
    history.updated(5.0)  # the first one is forgotten: mean 3, deviation sqrt(2)
    assert [history.fault(loss) for loss in (5.8, 5.9)] == ["", "spike"]
    assert History(section(spike_window=4)).fault(1e9) == ""


def test_history_survives_a_checkpoint():
    settings = section(on_spike="skip", spike_window=2)
    one, other = History(settings), History(settings)
    one.updated(0.1), one.updated(1 / 3)
    one.left_out = {7: "loss", 8: "spike", 10: "gradient"}
    other.load(json.loads(json.dumps(one.state())))
    assert (list(other.losses), other.left_out) == (list(one.losses), one.left_out)
    assert [other.in_a_row(step) for step in (6, 7, 8, 9, 10)] == [0, 1, 2, 0, 1]


def test_an_overflow_is_the_loss_scales_to_mend_until_it_can_fall_no_further():
    scale = LossScale(enabled=True, value=4.0)
    assert [scale.update(overflow=True) for _ in range(3)] == [True, True, False]
    assert scale.value == 1.0
    assert LossScale(enabled=False).update(overflow=True) is False
