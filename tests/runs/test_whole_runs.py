"""Whole runs through train.py: what they leave behind, and that it is what was trained."""

import json
import subprocess
import sys

import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file

from tests.launching import train, write_recipe
from tests.tiny_models import build_tiny_bert, build_tiny_llama

pytestmark = pytest.mark.distributed

ROWS = [
    {
        "text": f"{'profit' if i % 2 else 'loss'} {i} {'rises' if i % 3 else 'falls'} in Oslo",
        "label": ("up", "down")[i % 2],
    }
    for i in range(41)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    build_tiny_bert(folder / "bert")
    build_tiny_llama(folder / "llama")
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


@pytest.fixture(scope="module")
def recipe(folder):
    return write_recipe(
        folder / "recipe.yaml",
        output_dir="unused",
        task={"name": "text_classification"},
        model={"path": str(folder / "bert")},
        data={
            **{split: str(folder / "data.jsonl") for split in ("train", "eval", "test")},
            "cache_dir": str(folder / "c"),
        },
        optim={"lr": 5e-3},
        train={"max_steps": 12, "global_batch_size": 8, "micro_batch_size": 4},
    )


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory):
    return train(
        recipe, tmp_path_factory.mktemp("one"), "single", "--tracking.trackers", "[tensorboard]", "--eval.every", "5"
    )


def test_the_run_directory_says_what_happened(finished):
    assert finished.status == {"status": "done", "step": 12, "exit_code": 0, "reason": ""}
    steps = finished.events("train")
    assert [step["step"] for step in steps] == list(range(1, 13))
    assert set(steps[0]) >= {
        "time", "loss", "grad_norm", "lr", "num_items", "num_tokens", "num_samples", "tokens_per_second",
        "sample_digest",
    }  # fmt: skip
    assert [step["num_samples"] for step in steps[:6]] == [8, 16, 24, 32, 40, 41], (
        "the short last batch counts as it is"
    )
    assert [event["step"] for event in finished.events("eval")] == [5, 10, 12]
    assert len(finished.events("test")) == len(finished.events("end")) == 1
    config = YAML(typ="safe", pure=True).load(finished.output_dir / "config.yaml")
    assert config["eval"]["every"] == 5
    assert "every: 5  # command line" in (finished.output_dir / "config.yaml").read_text()


def test_a_tracker_is_one_line_of_the_recipe(finished):
    files = list(finished.output_dir.rglob("events.out.tfevents.*"))
    assert files, "TensorBoard wrote nothing"


def test_the_terminal_shows_the_summary_and_nothing_from_upstream(finished):
    said = finished.stdout
    for word in (
        "parameters trained",
        "new       classifier.weight [2, 64], classifier.bias [2]: drawn at random",
        "examples a step",
        "terms of the loss",
        "«up»",
        "the last with 1",
        "model of step",
    ):
        assert word in said, word
    noise = [line for line in (said + finished.stderr).splitlines() if "arning" in line or "rror" in line]
    # accelerate launch itself, before train.py starts, looks for DeepSpeed's device
    assert [line for line in noise if "real_accelerator" not in line] == []


def test_the_model_folder_loads_with_plain_from_pretrained_and_knows_its_labels(finished):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(finished.output_dir / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(finished.output_dir / "model")
    assert model.config.id2label == {0: "down", 1: "up"}
    right = 0
    for row in ROWS:
        with torch.no_grad():
            logits = model(**tokenizer(row["text"], return_tensors="pt")).logits
        right += model.config.id2label[int(logits.argmax())] == row["label"]
    (test,) = finished.events("test")
    assert test["accuracy"] == pytest.approx(right / len(ROWS))
    assert "| test | accuracy |" in (finished.output_dir / "model" / "README.md").read_text()


@pytest.fixture(scope="module")
def learnt(forks, recipe, tmp_path_factory):
    """A LoRA run under DDP that learns its rows."""
    steps = ["--train.max_steps", "80", "--optim.lr", "2e-2"]
    return forks.train(recipe, tmp_path_factory.mktemp("learnt") / "run", "ddp", "--peft.method", "lora", *steps)


@pytest.mark.slow  # tests/prediction says so of every task, whose runs are shorter
def test_predict_says_what_plain_transformers_computes(learnt, finished, tmp_path):
    from transformers import pipeline

    rows = ROWS[1:3]
    texts = [row["text"] for row in rows]
    for run in (finished, learnt):
        model = run.output_dir / "model"
        command = [sys.executable, "-m", "onecurve", "predict", str(model), *texts]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        expected = pipeline("text-classification", str(model))(texts)
        lines = [line.partition("\t") for line in done.stdout.splitlines()]
        assert [text for *_, text in lines] == texts
        for (said, *_), one in zip(lines, expected, strict=True):
            label, _, probability = said.partition(" ")
            assert label == one["label"]
            assert float(probability) == pytest.approx(one["score"], abs=1e-3)
    assert [one["label"] for one in expected] == [row["label"] for row in rows], "the adapter has learnt this"


def test_a_learning_adapter_saves_its_head_and_is_what_was_scored(learnt):
    from peft import AutoPeftModelForSequenceClassification
    from transformers import pipeline

    model = learnt.output_dir / "model"
    assert any("classifier" in name for name in load_file(model / "adapter_model.safetensors"))
    assert AutoPeftModelForSequenceClassification.from_pretrained(model).config.id2label == {0: "down", 1: "up"}
    found = pipeline("text-classification", str(model))([row["text"] for row in ROWS])
    right = sum(one["label"] == row["label"] for one, row in zip(found, ROWS, strict=True))
    assert learnt.events("test")[0]["accuracy"] == pytest.approx(right / len(ROWS))
    assert right > 30, "nothing was learnt"


@pytest.mark.parametrize("how", ["ddp", pytest.param("zero2", marks=pytest.mark.slow), "zero3"])
def test_the_best_step_is_kept_under_every_strategy(forks, recipe, tmp_path, how):
    """A learning rate that ruins the model late: the best step is an early one, and `model/` is that one."""
    overrides = ["--eval.every", "2", "--eval.best_metric", "loss", "--optim.lr", "0.05", "--optim.warmup_steps", "8"]
    run = forks.train(recipe, tmp_path / "run", how, *overrides)
    scored = {event["step"]: event["loss"] for event in run.events("eval")}
    best = min(scored, key=scored.get)
    assert best < 12, "the planted late ruin did not happen"
    (test,), (end,) = run.events("test"), run.events("end")
    assert test["step"] == end["step"] == best
    assert test["loss"] == pytest.approx(scored[best], rel=1e-6), "the weights of the best step were not put back"
    kept, last = (load_file(run.output_dir / name / "model.safetensors") for name in ("model", "model-last"))
    assert any(not torch.equal(kept[key], last[key]) for key in kept)


def test_patience_ends_a_run_that_no_longer_gets_better(forks, recipe, tmp_path):
    overrides = ["--eval.every", "1", "--eval.best_metric", "loss", "--eval.patience", "2", "--optim.lr", "0.5"]
    run = forks.train(recipe, tmp_path / "run", "python", *overrides)
    scored = [event["loss"] for event in run.events("eval")]
    assert len(scored) < 12
    assert min(scored[-2:]) >= min(scored[:-2])
    assert run.status["status"] == "done"


def test_recomputing_activations_does_not_change_the_curve(forks, recipe, finished, tmp_path):
    run = forks.train(recipe, tmp_path / "run", "python", "--train.activations", "recompute")
    ours, theirs = finished.events("train"), run.events("train")
    assert [s["loss"] for s in theirs] == pytest.approx([s["loss"] for s in ours], rel=1e-6)


def test_evaluation_counts_each_example_once_at_any_world_size(forks, recipe, finished, tmp_path):
    # 41 examples in micro-batches of 4 over 3 ranks: ranks run out at different places
    run = forks.train(recipe, tmp_path / "run", "ddp", num_processes=3)
    ours, theirs = finished.events("test")[0], run.events("test")[0]
    assert sum(map(sum, theirs["confusion_matrix"])) == len(ROWS)
    assert theirs["confusion_matrix"] == ours["confusion_matrix"]
    assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-6)


def plain_losses(folder):
    """The loss of each row, computed by PEFT on the adapter's folder."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    import onecurve.adapters.bottleneck  # noqa: F401  registers the bottleneck adapter with PEFT

    model = PeftModel.from_pretrained(
        AutoModelForSequenceClassification.from_pretrained(folder / "base"), folder
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    losses = []
    for row in ROWS:
        label = torch.tensor([model.config.label2id[row["label"]]])
        with torch.no_grad():
            losses.append(model(**tokenizer(row["text"], return_tensors="pt"), labels=label).loss)
    return torch.stack(losses)


@pytest.mark.parametrize(
    "method",
    ["bottleneck", *(pytest.param(m, marks=pytest.mark.slow) for m in ("ia3", "prefix_tuning", "dora", "vera"))],
)
def test_adapters_draw_one_curve_under_zero_3_and_are_saved_whole(forks, recipe, tmp_path, method):
    overrides = {
        "dora": ["--peft.method", "lora", "--peft.use_dora", "true"],
        "prefix_tuning": ["--peft.method", "prefix_tuning", "--peft.num_virtual_tokens", "4"],
    }.get(method, ["--peft.method", method])
    short = ["--train.max_steps", "4", "--optim.lr", "2e-2", "--train.mixed_precision", "no"]
    one = forks.train(recipe, tmp_path / "one", "python", *overrides, *short)
    three = forks.train(recipe, tmp_path / "three", "zero3", *overrides, *short)
    ours, theirs = ([step["loss"] for step in run.events("train")] for run in (one, three))
    assert theirs == pytest.approx(ours, rel=1e-6)
    assert ours[-1] != pytest.approx(ours[0], rel=1e-3), "nothing was trained"
    for run in (one, three):
        losses = plain_losses(run.output_dir / "model")
        assert run.events("test")[0]["loss"] == pytest.approx(float(losses.mean()), rel=1e-5)
    torch.testing.assert_close(plain_losses(three.output_dir / "model"), plain_losses(one.output_dir / "model"))
