"""The last step is saved before anything that could still fail: scoring and export can always be done again."""

import pytest

from onecurve.checkpoint import read_state, verify
from onecurve.config import load_recipe
from onecurve.doctor.recipe import _saves
from tests.resume.curves import partings

pytestmark = pytest.mark.distributed

LAST = "step-00000008"


def saved(run):
    return sorted(path.name for path in (run.output_dir / "checkpoints").glob("*"))


def break_export(folder, name="model"):
    """A file where the folder is to be written."""
    folder.mkdir()
    blocker = folder / f"{name}.incomplete"
    blocker.write_text("")
    return blocker


def test_by_default_the_last_step_is_saved_and_stays_and_null_saves_nothing(recipes, forks, tmp_path):
    run = forks.train(recipes["causal_lm"], tmp_path / "default", "python")
    assert saved(run) == ["latest", LAST]
    assert verify(run.output_dir / "checkpoints" / LAST) == []
    assert [event["step"] for event in run.events("checkpoint")] == [8]
    none = forks.train(recipes["causal_lm"], tmp_path / "none", "python", "--checkpoint.every", "null")
    assert saved(none) == []
    every = forks.train(recipes["causal_lm"], tmp_path / "every", "python", "--checkpoint.every", "3")
    assert [event["step"] for event in every.events("checkpoint")] == [3, 6, 8]


@pytest.mark.parametrize(("how", "ranks"), [("python", 1), pytest.param("zero3", 2, marks=pytest.mark.slow)])
def test_after_an_export_that_failed_a_launch_scores_and_exports_and_trains_nothing(
    recipes, forks, tmp_path, how, ranks
):
    scoring = ["--data.test", str(recipes["causal_lm"].parent / "data.jsonl")]
    whole = forks.train(recipes["causal_lm"], tmp_path / "whole", how, *scoring, num_processes=ranks)
    blocker = break_export(tmp_path / "run")
    broken = forks.launch(recipes["causal_lm"], tmp_path / "run", how, *scoring, num_processes=ranks)
    assert broken.exit_code == 3, broken.stderr
    assert f"Launch again with train.resume auto to resume from the newest checkpoint, {LAST}." in broken.stderr
    trained = broken.events("train")
    blocker.unlink()
    again = forks.train(recipes["causal_lm"], tmp_path / "run", how, *scoring, num_processes=ranks)
    assert again.events("train") == trained
    assert [event["step"] for event in again.events("resume")] == [8]
    for kind in ("eval", "test"):
        ours, theirs = ([(e["step"], e["loss"]) for e in run.events(kind)] for run in (whole, again))
        assert theirs[-1:] == ours
    assert [*partings(whole, again, exactly=True)] == []
    score = f"| eval | loss | {whole.events('eval')[0]['loss']:.4f} |"
    for run in (whole, again):
        assert score in (run.output_dir / "model" / "README.md").read_text()
    assert again.status["status"] == "done"
    finished = forks.train(recipes["causal_lm"], tmp_path / "run", how, *scoring, num_processes=ranks)
    assert "nothing left to do" in finished.stdout


def test_where_nothing_was_saved_the_message_says_so(recipes, forks, tmp_path):
    break_export(tmp_path / "run")
    broken = forks.launch(recipes["causal_lm"], tmp_path / "run", "python", "--checkpoint.every", "null")
    assert broken.exit_code == 3
    assert "There is no checkpoint: launched again, the run starts from the beginning." in broken.stderr


@pytest.mark.slow
def test_a_run_that_patience_ends_is_saved_where_it_ends(recipes, forks, tmp_path):
    """And goes on there to both its models, with the scores of both."""
    scoring = ["--eval.every", "1", "--eval.best_metric", "loss", "--eval.patience", "2"]
    scoring += ["--optim.lr", "0.3", "--optim.warmup_steps", "0"]
    blocker = break_export(tmp_path / "run")
    broken = forks.launch(recipes["causal_lm"], tmp_path / "run", "python", *scoring)
    assert broken.exit_code == 3, broken.stderr
    losses = {event["step"]: event["loss"] for event in broken.events("eval")}
    ended, best = max(losses), min(losses, key=losses.get)
    assert best + 2 == ended < 8
    assert read_state(tmp_path / "run" / "checkpoints" / f"step-{ended:08d}")["best"]["step"] == best
    blocker.unlink()
    again = forks.train(recipes["causal_lm"], tmp_path / "run", "python", *scoring)
    assert [event["step"] for event in again.events("train")] == list(range(1, ended + 1))
    for name, step in (("model", best), ("model-last", ended)):
        card = (tmp_path / "run" / name / "README.md").read_text()
        assert f"the weights of step {step}" in card
        assert f"| eval | loss | {losses[step]:.4f} |" in card


def test_the_model_is_written_though_its_last_checkpoint_cannot_be(recipes, forks, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").write_text("a file where the folder has to be")
    run = forks.train(recipes["causal_lm"], tmp_path / "run", "python", "--train.resume", "never")
    assert "The checkpoint of step 8 could not be saved" in run.stderr
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("overrides", "number"),
    [
        ([], 1),
        (["--checkpoint.every", "null"], 0),
        (["--checkpoint.every", "null", "--train.stop_after", "3"], 1),
        (["--train.stop_after", "3"], 2),
        (["--checkpoint.every", "2"], 4),
        (["--train.max_steps", "null", "--train.epochs", "2"], 1),
    ],
)
def test_the_doctor_counts_the_last_step(recipes, overrides, number):
    recipe, _ = load_recipe([str(recipes["causal_lm"]), *overrides])
    assert len([step for step in _saves(recipe) if step <= 8]) == number
