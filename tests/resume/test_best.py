"""The best step when a run goes on: kept while scores can be compared with its own, else dropped, and that is said."""

import numpy as np
import pytest

from onecurve.checkpoint import read_manifest, read_state
from tests.resume.curves import weights

pytestmark = pytest.mark.distributed

RUINED_LATE = ["--eval.every", "1", "--optim.lr", "0.08", "--optim.warmup_steps", "6"]


def scored(run, metric):
    return {event["step"]: event[metric] for event in run.events("eval")}


def card(run, name="model"):
    return (run.output_dir / name / "README.md").read_text()


@pytest.fixture(scope="module")
def undisturbed(recipes, forks, tmp_path_factory):
    """Without a best step, and worse at its end than before."""
    run = forks.train(recipes["causal_lm"], tmp_path_factory.mktemp("undisturbed") / "run", "python", *RUINED_LATE)
    losses = scored(run, "loss")
    assert min(losses, key=losses.get) < 7, "the planted late ruin did not happen"
    return run


@pytest.mark.parametrize(("how", "ranks"), [("python", 1), pytest.param("zero2", 2, marks=pytest.mark.slow)])
def test_without_its_metric_a_run_ends_with_the_last_step_and_its_scores(
    recipes, forks, tmp_path, undisturbed, how, ranks
):
    by_loss = [*RUINED_LATE, "--eval.best_metric", "loss", "--train.stop_after", "7"]
    forks.train(recipes["causal_lm"], tmp_path, how, *by_loss, num_processes=ranks)
    best = read_state(tmp_path / "checkpoints" / "step-00000007")["best"]
    assert 0 < best["step"] < 7
    saving = ["--checkpoint.every", "8", "--checkpoint.keep", "9"]
    run = forks.train(recipes["causal_lm"], tmp_path, how, *RUINED_LATE, *saving, num_processes=ranks)
    said = f"eval.best_metric was loss and is None: step {best['step']}, the best so far, is dropped"
    assert said in run.stdout
    assert run.events("resume")[0]["remarks"] == [said]
    assert run.events("end")[0]["step"] == 8
    assert not (tmp_path / "model-last").exists()
    for name, value in weights(undisturbed).items():
        assert np.allclose(value, weights(run)[name], rtol=1e-4, atol=2e-5), name
    last = run.events("eval")[-1]
    assert last["step"] == 8
    assert "the weights of step 8" in card(run)
    assert f"| eval | loss | {last['loss']:.4f} |" in card(run)
    kept = {name.partition("/")[0] for name in read_manifest(tmp_path / "checkpoints" / "step-00000008").tensors}
    assert "best" in {n.partition("/")[0] for n in read_manifest(tmp_path / "checkpoints" / "step-00000007").tensors}
    assert "best" not in kept


def test_by_another_metric_the_best_step_is_looked_for_anew(recipes, forks, tmp_path):
    """The first metric's value would pass for a loss that no step reaches."""
    recipe, scoring = recipes["text_classification"], ["--eval.every", "1", "--optim.lr", "1e-3"]
    first = forks.train(
        recipe, tmp_path, "python", *scoring, "--eval.best_metric", "matthews", "--train.stop_after", "3"
    )
    losses = scored(first, "loss")
    state = read_state(tmp_path / "checkpoints" / "step-00000003")["best"]
    assert state["value"] < min(losses.values()), "nothing to mistake"
    by_loss = [*scoring, "--eval.best_metric", "loss", "--checkpoint.every", "4", "--checkpoint.keep", "9"]
    run = forks.train(recipe, tmp_path, "python", *by_loss)
    assert "eval.best_metric was matthews and is loss" in run.stdout
    losses = {step: loss for step, loss in scored(run, "loss").items() if step >= 3}
    best = min(losses, key=losses.get)
    assert best > 3, losses
    (end,) = run.events("end")
    assert end["step"] == best
    assert f"the weights of step {best}" in card(run)
    assert f"| eval | loss | {losses[best]:.4f} |" in card(run)
    fourth = read_state(tmp_path / "checkpoints" / "step-00000004")
    assert fourth["best"]["value"] == pytest.approx(min(losses[3], losses[4])), "step 3 was scored, and counts"


def test_scores_of_other_examples_are_not_compared(recipes, forks, tmp_path):
    recipe, by_loss = recipes["causal_lm"], ["--eval.every", "1", "--eval.best_metric", "loss"]
    forks.train(recipe, tmp_path / "run", "python", *by_loss, "--train.stop_after", "3")
    other = tmp_path / "other.jsonl"
    other.write_text('{"text": "another text entirely, of which the model knows nothing: 0123456789"}\n')
    run = forks.train(recipe, tmp_path / "run", "python", *by_loss, "--data.eval", str(other))
    assert "data.eval has other examples: step 3, the best so far, is dropped" in run.stdout
    losses = {step: loss for step, loss in scored(run, "loss").items() if step > 3}
    assert min(losses.values()) > scored(run, "loss")[3], "nothing to mistake"
    assert run.events("end")[0]["step"] == min(losses, key=losses.get)
