"""A reward function that fails late costs no training: what was learnt until then is saved, and the run goes on."""

import json

import pytest

from tests.launching import write_recipe
from tests.tiny_models import build_tiny_llama

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

REWARDS = """
from pathlib import Path

def length(completions, prompts):
    fails = Path(__file__).with_name("fails")
    if fails.exists() and fails.read_text().strip() in prompts:
        raise ValueError("the judge is away")
    return [-abs(len(text) - 9) / 10 for text in completions]
"""
EXACT = ("step", "sample_digest", "loss", "grad_norm", "reward")


@pytest.fixture
def folder(tmp_path):
    rows = [{"prompt": f"question {number}"} for number in range(12)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "dev.jsonl").write_text(json.dumps({"prompt": "of the dev set"}) + "\n")
    (tmp_path / "mine.py").write_text(REWARDS)
    return tmp_path


@pytest.fixture
def recipe(folder):
    return write_recipe(
        folder / "recipe.yaml",
        output_dir="unused",
        task={"name": "grpo", "rewards": ["mine.py:length"], "completions": 4, "max_completion_length": 6},
        model={"path": str(build_tiny_llama(folder / "llama", initializer_range=0.1))},
        data={
            "train": str(folder / "train.jsonl"),
            "eval": str(folder / "dev.jsonl"),
            "cache_dir": str(folder / "cache"),
        },
        optim={"lr": 1e-3},
        train={"max_steps": 6, "global_batch_size": 8, "micro_batch_size": 4},
        eval={"every": 2, "best_metric": "reward", "samples": 0},
        regularization={"average": "ema", "average_decay": 0.5},
        checkpoint={"every": None},
    )


def curve(run):
    return [[event[key] for key in EXACT] for event in run.events("train")], [
        (event["step"], event["reward"]) for event in run.events("eval")
    ]


def prompt_of(run, step):
    """Return a prompt of a step, as rows have it."""
    lines = (run.output_dir / "rollouts" / f"step-{step:08d}.jsonl").read_text().splitlines()
    return f"question {json.loads(lines[1])['example']}"


@pytest.mark.parametrize("how", ["python", "ddp", "zero2", "zero3"])
def test_a_function_that_fails_late_costs_no_step(how, recipe, folder, forks, tmp_path):
    whole = forks.train(recipe, tmp_path / "whole", how)
    (folder / "fails").write_text(prompt_of(whole, 6))  # an epoch has 6 steps: no step before asks it
    failed = forks.launch(recipe, tmp_path / "parts", how)
    assert failed.exit_code == 2, failed.stderr
    assert "task.rewards: mine.py:length raised ValueError: the judge is away" in failed.stderr.replace(
        f"{folder}/", ""
    )
    assert "to resume from the newest checkpoint, step-00000005." in failed.stderr
    assert failed.stderr.count("train.py: ") == 1 and "Traceback" not in failed.stderr
    assert (failed.status["status"], failed.status["step"], failed.status["exit_code"]) == ("failed", 5, 2)
    again = forks.launch(recipe, tmp_path / "parts", how)
    assert again.exit_code == 2 and "step-00000005" in again.stderr, "it is there already"
    (folder / "fails").unlink()
    done = forks.train(recipe, tmp_path / "parts", how)
    assert done.events("resume")[0]["step"] == 5
    assert curve(done) == curve(whole)


@pytest.mark.parametrize("how", ["python", "zero3"])
def test_an_evaluation_that_fails_is_made_when_the_run_goes_on(how, recipe, folder, forks, tmp_path):
    whole = forks.train(recipe, tmp_path / "whole", how)
    (folder / "fails").write_text("of the dev set")
    failed = forks.launch(recipe, tmp_path / "parts", how)
    assert failed.exit_code == 2 and "newest checkpoint, step-00000002." in failed.stderr, failed.stderr
    (folder / "fails").unlink()
    done = forks.train(recipe, tmp_path / "parts", how)
    assert curve(done) == curve(whole)
    assert done.events("end")[0]["step"] == whole.events("end")[0]["step"]


def test_nothing_to_save_is_said(recipe, folder, forks, tmp_path):
    (folder / "mine.py").write_text("def length(completions): return [None] * len(completions)")
    failed = forks.launch(recipe, tmp_path / "run")
    assert failed.exit_code == 2 and "returned None, which is no number" in failed.stderr
    assert "There is no checkpoint: launched again, the run starts from the beginning." in failed.stderr


def test_a_save_that_fails_too_is_said(recipe, folder, forks, tmp_path):
    whole = forks.train(recipe, tmp_path / "whole")
    (folder / "fails").write_text(prompt_of(whole, 4))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").write_text("in its way")
    failed = forks.launch(recipe, tmp_path / "run")
    assert failed.exit_code == 2 and "the judge is away" in failed.stderr
    assert "The checkpoint of step 3 could not be saved:" in failed.stderr
    assert "There is no checkpoint" in failed.stderr
