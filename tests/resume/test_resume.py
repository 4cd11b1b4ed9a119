"""Runs that are stopped and go on, elsewhere or in the same place: the curve is that of the run that never stopped."""

import numpy as np
import pytest

from tests.resume.curves import partings, weights

pytestmark = pytest.mark.distributed

STEPS = 8
FULL: list[str] = []
LORA = ["--peft.method", "lora", "--peft.lora_dropout", "0.1"]


def in_stages(forks, recipe, folder, stages, *overrides):
    """Launch once a stage, in one run directory; all but the last stop where they say."""
    for how, ranks, stop in stages:
        stopping = ["--train.stop_after", str(stop)] if stop else []
        run = forks.train(recipe, folder, how, *overrides, *stopping, num_processes=ranks)
        assert run.status["status"] == ("stopped" if stop else "done")
        if stop:
            assert (folder / "checkpoints" / "latest").read_text().strip() == f"step-{stop:08d}"
    assert [event["step"] for event in run.events("resume")] == [stop for _, _, stop in stages if stop]
    return run


@pytest.mark.parametrize(
    ("how", "ranks", "task", "overrides"),
    [
        ("python", 1, "causal_lm", FULL),
        pytest.param("zero3", 2, "sft", LORA, marks=pytest.mark.slow),
        pytest.param("ddp", 4, "text_classification", FULL, marks=pytest.mark.slow),
    ],
)
def test_in_the_same_place_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    recipes, forks, tmp_path, how, ranks, task, overrides
):
    whole = forks.train(recipes[task], tmp_path / "whole", how, *overrides, num_processes=ranks)
    parts = in_stages(
        forks, recipes[task], tmp_path / "parts", [(how, ranks, 3), (how, ranks, 4), (how, ranks, 0)], *overrides
    )
    assert not [*partings(whole, parts, exactly=True)]


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [["adafactor"], ["sgd", "--optim.momentum", "0.9"]])
@pytest.mark.parametrize("ranks", [1, 2])
def test_optimizers_with_other_state_go_on_bit_for_bit_too(recipes, forks, tmp_path, optimizer, ranks):
    overrides = ["--optim.name", *optimizer]
    whole = forks.train(recipes["causal_lm"], tmp_path / "whole", "ddp", *overrides, num_processes=ranks)
    parts = in_stages(
        forks, recipes["causal_lm"], tmp_path / "parts", [("ddp", ranks, 3), ("ddp", ranks, 0)], *overrides
    )
    assert not [*partings(whole, parts, exactly=True)]


CHAINS = [
    ("causal_lm", FULL, [("zero2", 2, 2), ("ddp", 2, 3), ("zero3", 2, 5), ("python", 1, 0)]),
]
SLOW_CHAINS = [
    ("sft", LORA, [("zero3", 2, 3), ("python", 1, 5), ("zero1", 2, 0)]),
    ("text_classification", FULL, [("ddp", 4, 2), ("zero3", 4, 4), ("zero2", 2, 5), ("zero1", 2, 0)]),
    ("text_classification", LORA, [("python", 1, 3), ("zero3", 3, 5), ("ddp", 3, 0)]),
    ("causal_lm", LORA, [("zero1", 2, 3), ("zero3", 4, 5), ("zero2", 2, 0)]),
    ("sft", FULL, [("zero3_offload", 2, 3), ("zero3", 2, 5), ("ddp", 2, 0)]),
]


def check_chain(recipes, forks, tmp_path, task, overrides, stages):
    whole = forks.train(recipes[task], tmp_path / "whole", "python", *overrides)
    parts = in_stages(forks, recipes[task], tmp_path / "parts", stages, *overrides)
    assert not [*partings(whole, parts)]


@pytest.mark.parametrize(("task", "overrides", "stages"), CHAINS)
def test_a_run_moves_between_strategies_and_world_sizes(recipes, forks, tmp_path, task, overrides, stages):
    check_chain(recipes, forks, tmp_path, task, overrides, stages)


@pytest.mark.slow
@pytest.mark.parametrize(("task", "overrides", "stages"), SLOW_CHAINS)
def test_a_run_moves_further(recipes, forks, tmp_path, task, overrides, stages):
    check_chain(recipes, forks, tmp_path, task, overrides, stages)


def test_the_best_step_and_patience_survive_a_resume(recipes, forks, tmp_path):
    overrides = ["--eval.every", "1", "--eval.best_metric", "loss", "--optim.lr", "0.08", "--optim.warmup_steps", "6"]
    whole = forks.train(recipes["causal_lm"], tmp_path / "whole", "python", *overrides)
    scored = {event["step"]: event["loss"] for event in whole.events("eval")}
    best = min(scored, key=scored.get)
    assert best < STEPS - 1, "the planted late ruin did not happen"
    parts = in_stages(
        forks, recipes["causal_lm"], tmp_path / "parts", [("zero2", 2, best + 1), ("python", 1, 0)], *overrides
    )
    assert parts.events("end")[0]["step"] == best
    for name, value in weights(whole).items():
        assert np.allclose(value, weights(parts)[name], rtol=1e-4, atol=2e-5), name


def test_a_checkpoint_of_an_adapter_holds_only_what_is_trained(recipes, forks, tmp_path):
    sizes = {}
    for name, overrides in (("full", FULL), ("lora", LORA)):
        run = forks.train(recipes["causal_lm"], tmp_path / name, "python", *overrides, "--train.stop_after", "2")
        sizes[name] = sum(f.stat().st_size for f in (run.output_dir / "checkpoints").rglob("*.safetensors"))
    assert sizes["lora"] < sizes["full"] / 5


def test_a_resume_that_would_change_the_curve_is_refused_and_a_finished_run_is_left_alone(recipes, forks, tmp_path):
    recipe, folder = recipes["causal_lm"], tmp_path / "run"
    forks.train(recipe, folder, "python", "--train.stop_after", "3")
    for change in (["--seed", "7"], ["--optim.lr", "1e-4"], ["--train.global_batch_size", "4"]):
        ended = forks.launch(recipe, folder, "python", *change)
        assert ended.exit_code == 2
        key = change[0].removeprefix("--")
        assert f"{key} was" in ended.stderr, ended.stderr
        assert f"train.allow_changes to [{key}]" in ended.stderr
    changed = forks.train(recipe, folder, "python", "--optim.lr", "1e-4", "--train.allow_changes", "[optim.lr]")
    assert changed.events("resume")[-1]["changes"] == {"optim.lr": [0.002, 0.0001]}
    whole = forks.train(recipe, tmp_path / "whole")
    assert next(partings(whole, changed)).startswith("step 5: loss"), "a parting curve is not seen"
    before = (folder / "metrics.jsonl").read_bytes()
    again = forks.train(recipe, folder, "python", "--optim.lr", "1e-4", "--train.allow_changes", "[optim.lr]")
    assert "nothing left to do" in again.stdout
    assert (folder / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("how", ["python", "ddp"])
def test_a_launch_whose_stop_lies_behind_trains_nothing_and_says_so(recipes, forks, tmp_path, how):
    run = forks.train(recipes["causal_lm"], tmp_path, how, "--train.stop_after", "3")
    before = [*run.events("train")]
    for stop in (3, 2):
        again = forks.train(recipes["causal_lm"], tmp_path, how, "--train.stop_after", str(stop))
        assert "stopped after step 3 by train.stop_after (raise it or leave it out)" in again.stdout
        assert again.status["status"] == "stopped"
        assert [*again.events("train")] == before
    assert len(forks.train(recipes["causal_lm"], tmp_path, how).events("train")) == STEPS


def test_a_save_that_fails_is_said_and_the_run_goes_on_or_ends_as_the_recipe_says(recipes, forks, tmp_path):
    for choice, code in (("continue", 0), ("stop", 3)):
        folder = tmp_path / choice
        folder.mkdir()
        (folder / "checkpoints").write_text("a file where the folder has to be")
        ended = forks.launch(
            recipes["causal_lm"], folder, "python", "--checkpoint.every", "3", "--checkpoint.on_error", choice,
            "--train.resume", "never",
        )  # fmt: skip
        assert ended.exit_code == code, ended.stderr
        assert "could not be saved" in ended.stderr
