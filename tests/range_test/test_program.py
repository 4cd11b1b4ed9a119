"""The range test's run: train.py's own steps at other rates, one curve under every launch form, and nothing left."""

import ast
import csv
import inspect
import json
import os
import subprocess
import sys

import pytest

from onecurve.range_test import program
from onecurve.range_test.curve import rate_at
from tests.launching import ROOT, environment, train, write_recipe

STEPS = 12
ROWS = [{"text": f"headline {i} " * (1 + i % 3), "label": ("up", "down")[i % 2]} for i in range(40)]


def setup(source: str, name: str) -> list[str]:
    """The statements of a `main` from its reader to the micro-batch size that fits, in order."""
    (main,) = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and node.name == name]
    lines = [ast.unparse(node) for node in main.body]
    first = next(i for i, line in enumerate(lines) if line.startswith("reading = "))
    last = next(i for i, line in enumerate(lines) if "fit(checked" in line)
    return lines[first : last + 1]


def differs(source: str) -> bool:
    lines = [line for line in setup(source, "main") if line != "data = replace(data, eval=None, test=None)"]
    return lines != setup((ROOT / "train.py").read_text(encoding="utf-8"), "main")


def test_a_run_is_put_together_as_train_py_does_it():
    assert not differs(inspect.getsource(program))


def test_a_run_that_is_put_together_otherwise_is_found():
    source = inspect.getsource(program)
    (pack,) = [line for line in source.splitlines(keepends=True) if line.startswith("    packed = ")]
    assert differs(source.replace(pack, ""))
    assert differs(source.replace("plan.most_passes(accelerator.num_processes)", "1"))


@pytest.fixture
def recipe(tmp_path, tiny_bert):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return write_recipe(
        tmp_path / "recipe.yaml",
        output_dir=str(tmp_path / "run"),
        task={"name": "text_classification"},
        model={"path": str(tiny_bert)},
        data={"train": str(tmp_path / "rows.jsonl"), "eval": str(tmp_path / "rows.jsonl"), "cache_dir": "cache"},
        optim={"weight_decay": 0.1, "warmup_steps": 3},
        train={"max_steps": STEPS, "global_batch_size": 8, "micro_batch_size": 2},
        eval={"every": 2, "best_metric": "accuracy"},
        regularization={"average": "ema", "layer_decay": 0.8},
        checkpoint={"every": 2},
    )


def find_rate(folder, *words):
    command = [sys.executable, "-m", "onecurve", "lr", "recipe.yaml", "--steps", str(STEPS), *words]
    own = environment() | {"TMPDIR": str(folder / "tmp")}
    (folder / "tmp").mkdir(exist_ok=True)
    done = subprocess.run(command, cwd=folder, env=own, capture_output=True, text=True, timeout=900)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.distributed
def test_one_curve_under_every_launch_form(recipe, tmp_path):
    curves = {}
    for how in ("single", "ddp", "zero2"):
        words = ["--launch", how, *(["--num_processes", "2"] if how != "single" else [])]
        code, out, err = find_rate(tmp_path, "--from", "1e-5", "--to", "1e-2", "--output", how, *words)
        assert code in (0, 1) and (tmp_path / how / "lr.json").is_file(), out + err
        points = json.loads((tmp_path / how / "lr.json").read_text())["points"]
        assert [point["lr"] for point in points] == [rate_at(n, 1e-5, 1e-2, STEPS) for n in range(1, STEPS + 1)]
        curves[how] = [point["loss"] for point in points]
    assert curves["ddp"] == pytest.approx(curves["single"], rel=2e-6)
    assert curves["zero2"] == pytest.approx(curves["single"], rel=2e-6)
    assert curves["single"][-1] != pytest.approx(curves["single"][0], rel=1e-3), "nothing was trained"
    assert sorted(os.listdir(tmp_path)) == sorted(
        ["cache", "ddp", "recipe.yaml", "rows.jsonl", "single", "tmp", "zero2"]
    )
    assert not [name for name in os.listdir(tmp_path / "tmp") if name.startswith("onecurve")], "something was left"
    assert {name for name in os.listdir(tmp_path / "ddp")} >= {"lr.json", "lr.csv"}


@pytest.mark.slow
def test_at_one_rate_it_is_the_recipe_s_own_run(recipe, tmp_path):
    """With a range of one part in a billion: the same start, data and updates as train.py under a constant schedule."""
    code, out, err = find_rate(tmp_path, "--from", "1e-3", "--to", "1.000000001e-3", "--output", "found")
    assert code in (0, 1), out + err
    with open(tmp_path / "found" / "lr.csv") as file:
        ours = [float(row["loss"]) for row in csv.DictReader(file)]
    constant = ["--optim.schedule", "constant", "--optim.warmup_steps", "0", "--optim.lr", "1e-3"]
    whole = train(recipe, tmp_path / "whole", "python", *constant, "--data.cache_dir", str(tmp_path / "cache"))
    assert ours == pytest.approx([event["loss"] for event in whole.events("train")], rel=1e-6)


@pytest.mark.slow
def test_rates_that_destroy_the_model_end_the_test_and_are_no_error(recipe, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "status.json").write_text('{"status": "done", "step": 12}')
    words = ["--from", "1e-2", "--to", "1e30", "--optim.name", "sgd", "--optim.max_grad_norm", "0"]
    code, out, err = find_rate(tmp_path, *words)
    assert code == 1 and "Traceback" not in err, err
    assert "stopped after step" in out and "nothing is suggested" in out
    assert os.listdir(tmp_path / "run") == ["status.json"], "the run directory was touched"
    found = json.loads((tmp_path / "run-lr" / "lr.json").read_text())
    assert len(found["points"]) < STEPS and "at a rate of" in found["stopped"]


@pytest.mark.slow
def test_a_mistake_is_one_message(recipe, tmp_path):
    for words, said in (
        (["--optim.lrr", "1"], "Unknown setting 'optim.lrr'"),
        (["--data.train", "nowhere.jsonl"], "onecurve lr: data.train: "),
        (["--output", "rows.jsonl"], "--output: 'rows.jsonl' cannot be made"),
    ):
        code, _, err = find_rate(tmp_path, *words)
        assert code == 2 and said in err and "Traceback" not in err, err
        assert "train.py: " not in err, "a command that was not run"
