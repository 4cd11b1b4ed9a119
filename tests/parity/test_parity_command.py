"""`onecurve parity`: that it launches, measures and judges, and that it sees a run that parts from one process."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from onecurve.checkpoint import Alone, Retention, TensorWindow, Writer
from onecurve.cli import main
from onecurve.parity.distance import distance, largest, num_clipped, relative
from onecurve.parity.forms import Form, held
from onecurve.parity.running import Launched
from onecurve.parity.verdict import first_parting, measure
from tests.launching import ROOT, write_recipe
from tests.tiny_models import build_tiny_llama

FULL: list[str] = []
LORA = ["--peft.method", "lora", "--peft.lora_dropout", "0.1", "--peft.init_lora_weights", "gaussian"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """Causal language modelling: dropout on, clipping active, AdamW with two groups, uneven lengths."""
    folder = tmp_path_factory.mktemp("parity")
    words = ("profit", "loss", "rises", "falls", "the bank", "shares", "in Oslo", "after a long and quiet year")
    texts = [" ".join(words[(i * j + j) % len(words)] for j in range(1, 3 + i % 7)) for i in range(92)]
    (folder / "train.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return write_recipe(
        folder / "causal_lm.yaml",
        output_dir="unused",
        seed=3,
        task={"name": "causal_lm"},
        model={"path": str(build_tiny_llama(folder / "llama"))},
        data={
            "train": str(folder / "train.jsonl"),
            "eval": str(folder / "train.jsonl"),
            "cache_dir": str(folder / "cache"),
        },
        optim={"lr": 1e-3, "weight_decay": 0.1, "max_grad_norm": 0.3, "schedule": "cosine", "warmup_steps": 2},
        train={"max_steps": 60, "global_batch_size": 16, "micro_batch_size": 4},
    )


@pytest.fixture
def parity(recipe, tmp_path, monkeypatch):
    """Run the command at the repository's root; return its exit code and, where it wrote one, its JSON."""
    monkeypatch.chdir(ROOT)

    def run(*words):
        told = tmp_path / "parity.json"
        code = main(["parity", str(recipe), "--json", str(told), *words])
        return code, json.loads(told.read_text()) if told.exists() else {}

    return run


def plant(folder: Path, bug: str) -> None:
    """Make a root whose train.py has one line more, after the strategy is prepared."""
    for name in ("accelerate_configs", "ds_configs"):
        (folder / name).symlink_to(ROOT / name)
    lines = (ROOT / "train.py").read_text().splitlines(keepends=True)
    (at,) = [i for i, line in enumerate(lines) if line.lstrip().startswith("strategy.prepare(")]
    (folder / "train.py").write_text("".join([*lines[: at + 1], f"    {bug}\n", *lines[at + 1 :]]))


@pytest.mark.slow
@pytest.mark.distributed
def test_forms_that_draw_the_curve_pass(parity, capsys):
    words = ["--steps", "4", "--forms", "ddp", "zero2", "--ranks", "2", "--micro_batch_sizes", "4", *LORA]
    code, report = parity(*words)
    said = capsys.readouterr()
    assert code == 0, said
    assert report["passed"]
    assert report["steps"] == 4
    assert report["dropout"] == ["attention_dropout 0.1", "lora_dropout 0.1"]
    assert [row["form"] for row in report["rows"]] == ["ddp x 2", "zero2 x 2"]
    for row in report["rows"]:
        assert row["samples_equal"]
        assert row["trained"]
        assert row["loss"]["value"] <= 1e-6
        assert row["gradient"]["relative"] <= 1e-6
        assert 0 < row["parameters"]["relative"] < row["of_the_way"] < 0.1
    assert said.out.rstrip().endswith("passed")


@pytest.mark.slow
@pytest.mark.distributed
def test_a_form_that_parts_later_is_seen_and_the_step_and_the_tensor_are_named(parity, tmp_path, monkeypatch, capsys):
    """From step 3 on several ranks get one tensor's gradient wrong."""
    name = "model.layers.1.mlp.up_proj.weight"
    hook = f"model.get_parameter({name!r}).register_hook(lambda g: g * (1.01 if run.step > 1 else 1))"
    plant(tmp_path, f"_ = accelerator.num_processes > 1 and {hook}")
    monkeypatch.chdir(tmp_path)
    code, report = parity("--steps", "5", "--forms", "ddp", "--ranks", "2", "--micro_batch_sizes", "4")
    said = capsys.readouterr().out
    assert code == 1
    (row,) = report["rows"]
    assert row["gradient"]["relative"] <= 1e-6, "step 1 was still right"
    assert row["parting"]["step"] == 3
    assert row["parting"]["measure"] == "grad_norm"
    assert row["parting"]["tensor"] == name
    assert "ddp x 2, micro-batch 4 parts from one process, micro-batch 4 at step 3: the gradient norm" in said
    assert f"most in the gradient of {name}" in said


@pytest.mark.slow
@pytest.mark.distributed
def test_a_form_that_trains_nothing_is_seen(parity, tmp_path, monkeypatch, capsys):
    plant(tmp_path, "strategy.update = lambda norm: (strategy.optimizer.zero_grad() or 1.0, False)")
    monkeypatch.chdir(tmp_path)
    words = ["--steps", "2", "--forms", "ddp", "--ranks", "2", "--micro_batch_sizes", "4", "--optim.name", "sgd"]
    code, report = parity(*words)
    assert code == 1
    assert not report["rows"][0]["trained"]
    assert "nothing trained" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.distributed
def test_without_dropout_another_split_is_judged_too(parity, tmp_path):
    no_dropout = build_tiny_llama(tmp_path / "llama", attention_dropout=0.0)
    code, report = parity("--steps", "5", "--forms", "ddp", "--ranks", "2", "--model.path", str(no_dropout))
    assert code == 0
    assert [(r["form"], r["micro_batch_size"]) for r in report["rows"]] == [
        ("ddp x 2", 4),
        ("one process", 2),
        ("ddp x 2", 2),
    ]
    split = report["rows"][1]
    assert split["passed"] is True
    assert split["against"] == "one process, micro-batch 4"
    assert split["loss"]["value"] <= 1e-6


@pytest.mark.slow
@pytest.mark.distributed
def test_a_form_that_does_not_run_fails_and_the_others_go_on(parity, capsys):
    """ZeRO refuses Adafactor; also, a run shorter than the steps asked for is compared whole."""
    words = ["--forms", "zero2", "ddp", "--ranks", "2", "--micro_batch_sizes", "4", "--optim.name", "adafactor"]
    code, report = parity(*words, "--steps", "9", "--train.max_steps", "3")
    assert code == 1
    zero2, ddp = report["rows"]
    assert zero2["passed"] is False
    assert "adafactor needs whole matrices" in zero2["note"]
    assert ddp["passed"] is True
    assert ddp["gradient"] is None, "adafactor keeps no first moment"
    assert report["steps"] == 3
    assert "adafactor needs whole matrices" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("overrides", [FULL, [*LORA, "--optim.max_grad_norm", "0.1"]], ids=["full", "lora"])
def test_fifty_steps_in_every_form_draw_one_curve(parity, overrides):
    """The promise itself: dropout on, AdamW, clipping active, two micro-batch splits."""
    code, report = parity("--steps", "50", *overrides)
    forms = [(row["form"], row["micro_batch_size"]) for row in report["rows"]]
    assert len(forms) == len(set(forms)) == 2 * (2 + 9) + 1
    assert code == 0, report
    assert report["clipped"] == 50
    for row in report["rows"]:
        if row["passed"] is not None:
            assert row["samples_equal"]
            assert row["loss"]["value"] <= 1e-6, row
            assert row["gradient"]["relative"] <= 1e-6, row


@pytest.mark.slow
@pytest.mark.distributed
def test_emulated_bf16_is_judged_by_a_tolerance_of_its_own(parity):
    words = ["--steps", "5", "--forms", "ddp", "zero3", "--ranks", "2", "--micro_batch_sizes", "4"]
    bf16 = ["--train.mixed_precision", "bf16", "--train.emulate", "true"]
    code, report = parity(*words, *bf16, "--tolerance", "1e-2")
    assert code == 0
    assert all(row["samples_equal"] for row in report["rows"])


@pytest.mark.slow
@pytest.mark.distributed
def test_against_the_trainer(parity):
    words = ["--steps", "4", "--forms", "ddp", "--ranks", "2", "--micro_batch_sizes", "4", "--against", "HF"]
    code, report = parity(*words)
    assert code == 0
    alone, *several = report["rows"][1:]
    assert alone["form"] == "HF one process"
    assert alone["samples_equal"] is False, "another order"
    assert alone["trained"]
    assert [row["form"] for row in several] == ["HF ddp x 2", "HF zero2 x 2"]
    assert all(row["passed"] is None for row in (alone, *several))
    assert all(row["against"] == "HF one process" and row["trained"] for row in several)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--optim.lrr", "1"], "Unknown setting 'optim.lrr'"),
        (["--forms", "ddp", "zero4"], "no launch form 'zero4'; there are ddp, zero1"),
        (["--work_dir", "src"], "is not an empty folder"),
        (
            ["--against", "HF", "--train.micro_batch_size", "null", "--train.micro_batch_tokens", "512"],
            "--against: the Trainer cuts by examples, and the recipe by tokens. Set",
        ),
        (
            ["--against", "HF", "--task.name", "reward"],
            "the Trainer takes the loss that the model itself returns, which is not that of reward. It can be "
            "compared on audio_classification, causal_lm, image_classification, masked_lm, seq2seq_lm, sft, "
            "text_classification. Remove --against",
        ),
        (["--micro_batch_sizes", "4", "3"], "must be a multiple of train.micro_batch_size (3)"),
    ],
)
def test_a_mistake_is_answered_before_any_launch(parity, monkeypatch, capsys, words, told):
    monkeypatch.setattr("subprocess.run", lambda *a, **k: pytest.fail("something was launched"))
    code, _ = parity(*words)
    assert code == 2
    assert told in capsys.readouterr().err


def test_elsewhere_than_at_the_root_is_a_mistake(parity, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert parity()[0] == 2
    assert "Run from the repository's root." in capsys.readouterr().err


def test_a_mistake_that_only_the_data_shows_is_the_users_too(parity, tmp_path, capsys):
    (tmp_path / "bad.jsonl").write_text('{"text": 3}\n')
    assert parity("--steps", "2", "--data.train", str(tmp_path / "bad.jsonl"))[0] == 2
    assert "bad.jsonl" in capsys.readouterr().err


def test_what_this_machine_cannot_hold_is_said():
    forms, told = held(["ddp", "zero3"], [1, 2], 8, num_gpus=1)
    assert forms == [Form("zero3", 1, 8)]
    assert told == [
        "ddp x 2, micro-batch 8: this machine has 1 GPU(s)",
        "zero3 x 2, micro-batch 8: this machine has 1 GPU(s)",
    ]
    assert len(held(["ddp", "zero3"], [1, 2, 4], 8, num_gpus=0)[0]) == 5


class Runs:
    """Two runs of two steps with tensors a and b, which tests then change."""

    def __init__(self, folder):
        self.folder = folder
        self.curve = [
            {"event": "train", "step": s, "loss": 2.0 / s, "grad_norm": 1.0, "sample_digest": f"d{s}"} for s in (1, 2)
        ]
        self.tensors = {
            0: {"param/a": torch.ones(4), "param/b": torch.ones(2, 2)},
            1: {"param/a": torch.ones(4), "param/b": torch.ones(2, 2), "exp_avg/a": torch.full((4,), 3.0)},
            2: {"param/a": torch.full((4,), 0.5), "param/b": torch.zeros(2, 2), "exp_avg/a": torch.full((4,), 3.0)},
        }

    def write(self):
        self.folder.mkdir()
        writer = Writer(self.folder / "checkpoints", Alone(), Retention(9))
        for step, tensors in self.tensors.items():
            writer.save(
                step, [TensorWindow(n, t.view(-1), 0, t.numel(), tuple(t.shape)) for n, t in tensors.items()], {}
            )
        writer.wait()
        (self.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in self.curve))
        return Launched(Form("ddp", 2, 4), self.folder, 0, "", 1.0)


@pytest.fixture
def compared(tmp_path):
    one, other = Runs(tmp_path / "one"), Runs(tmp_path / "other")

    def compare():
        a, b = other.write(), replace(one.write(), form=Form("one process", 1, 4))
        row = measure(a, b, b.checkpoint(0), judged=True)
        return row, first_parting(row, a, b, 1e-6)

    return other, compare


def test_equal_runs_do_not_part(compared):
    _, compare = compared
    row, parting = compare()
    assert parting is None
    assert row.trained
    assert row.loss.value == row.grad_norm.value == row.gradient.relative == row.parameters.relative == row.of_the_way
    assert row.of_the_way == 0


def test_distances_are_over_all_elements(compared):
    other, compare = compared
    other.tensors[2]["param/a"][0] = 0.8
    row, parting = compare()
    assert parting is None, "final parameters are reported, not judged"
    assert row.parameters.absolute == pytest.approx(0.3)
    assert row.parameters.relative == pytest.approx(0.3)  # the other's: four elements of 0.5
    assert row.of_the_way == pytest.approx(0.3 / 5**0.5)  # four moved by 0.5, four by 1
    assert (row.parameters.tensor, row.parameters.share) == ("a", pytest.approx(0.3))


@pytest.mark.parametrize(
    ("change", "step", "measured", "value"),
    [
        (lambda runs: runs.curve[1].update(loss=1.00001), 2, "loss", 1e-5),
        (lambda runs: runs.curve[1].update(grad_norm=1.00001001), 2, "grad_norm", 1.001e-5),
        (lambda runs: runs.curve[1].update(grad_norm=None), 2, "grad_norm", float("inf")),
        (lambda runs: runs.curve[0].update(sample_digest="x"), 1, "samples", None),
        (lambda runs: runs.curve.pop(), 2, "samples", None),
        (lambda runs: runs.tensors[1]["exp_avg/a"].mul_(1.00001), 1, "gradient", 1e-5),
        (lambda runs: runs.tensors[1].pop("exp_avg/a"), 1, "gradient", 1.0),
        (lambda runs: runs.tensors[1].update({"exp_avg/b": torch.ones(2, 2)}), 1, "gradient", 1 / 3),
    ],
)
def test_each_measure_parts_a_run(compared, change, step, measured, value):
    other, compare = compared
    change(other)
    _, parting = compare()
    assert (parting.step, parting.measure) == (step, measured)
    assert parting.value == (value if value is None else pytest.approx(value, rel=1e-2))


@pytest.mark.parametrize(
    "change",
    [
        lambda runs: runs.curve[1].update(loss=1.0000009),
        lambda runs: runs.curve[1].update(grad_norm=1.000009),
        lambda runs: runs.tensors[1]["exp_avg/a"].mul_(1.0000004),
        lambda runs: runs.tensors[1].update({"exp_avg/b": torch.zeros(2, 2)}),
    ],
)
def test_what_is_within_the_tolerance_does_not(compared, change):
    other, compare = compared
    change(other)
    assert compare()[1] is None


@pytest.mark.parametrize(
    "change",
    [
        lambda runs: [line.update(loss=2.0) for line in runs.curve],
        lambda runs: [line.update(grad_norm=0.0) for line in runs.curve],
        lambda runs: runs.tensors.update({2: runs.tensors[0]}),
    ],
)
def test_a_run_that_trained_nothing_is_told_from_one_that_did(compared, change):
    other, compare = compared
    change(other)
    assert compare()[0].trained is False


def test_clipped_steps_are_counted():
    curve = [{"grad_norm": norm} for norm in (0.2, 0.4, None)]
    assert (num_clipped(curve, 0.3), num_clipped(curve, 0.1), num_clipped(curve, 0.0)) == (1, 2, 0)


def test_relative_differences():
    assert relative(0.0, 0.0) == relative(None, None) == 0
    assert relative(1.0, 0.0) == relative(1.0, None) == float("inf")
    curve = [{"step": s, "loss": v} for s, v in ((1, 2.0), (2, 4.0), (3, 8.0))]
    found = largest([{**line, "loss": line["loss"] + 0.5} for line in curve], curve, "loss")
    assert (found.value, found.step) == (0.25, 1)


def test_the_tensor_named_is_the_one_that_contributes_most(tmp_path):
    """Not the one that is wrong by most of its own norm: noise in a gradient that is zero would win."""
    one, other = Runs(tmp_path / "one"), Runs(tmp_path / "other")
    one.tensors[1] |= {"exp_avg/noise": torch.tensor([1e-9])}
    other.tensors[1] |= {"exp_avg/noise": torch.tensor([-1e-9]), "exp_avg/a": torch.full((4,), 3.3)}
    found = distance(other.write().checkpoint(1), one.write().checkpoint(1), "exp_avg")
    assert found.tensor == "a"
    assert found.share == pytest.approx(0.1, rel=1e-3)
