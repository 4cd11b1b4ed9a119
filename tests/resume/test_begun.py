"""Runs that begin from a named checkpoint or anew, interrupted: launched as they were, they go on and lose nothing."""

import time

import pytest

from onecurve.errors import ConfigError, NothingToDo
from onecurve.preflight import read
from onecurve.run.directory import RunDirectory
from tests.resume.curves import partings

pytestmark = pytest.mark.distributed


def steps(run, kind):
    return [event["step"] for event in run.events(kind)]


def saved(run):
    return sorted(path.name for path in (run.output_dir / "checkpoints").glob("step-*"))


@pytest.mark.parametrize(("how", "ranks"), [("python", 1), pytest.param("zero2", 2, marks=pytest.mark.slow)])
def test_from_a_checkpoint_of_another_run(recipes, forks, tmp_path, how, ranks):
    recipe, folder = recipes["causal_lm"], tmp_path / "run"
    start = tmp_path / "first" / "checkpoints" / "step-00000002"
    whole = forks.train(recipe, tmp_path / "first", how, "--checkpoint.also", "[2]", num_processes=ranks)
    words = ["--train.resume", str(start)]
    forks.train(recipe, folder, how, *words, "--train.stop_after", "5", num_processes=ranks)
    run = forks.train(recipe, folder, how, *words, num_processes=ranks)
    assert f"the run began from {start} and resumes" in run.stdout
    assert steps(run, "resume") == [2, 5]
    assert steps(run, "train") == [3, 4, 5, 6, 7, 8]
    assert [e["loss"] for e in run.events("train")] == [e["loss"] for e in whole.events("train")][2:]
    assert saved(run) == ["step-00000005", "step-00000008"], "nothing was set aside"
    again = forks.train(recipe, folder, how, *words, num_processes=ranks)
    assert "nothing left to do" in again.stdout


@pytest.mark.slow
def test_from_an_earlier_step_of_the_same_run_that_is_deleted_on_the_way(recipes, forks, tmp_path):
    recipe, folder = recipes["causal_lm"], tmp_path / "run"
    saving = ["--checkpoint.every", "1", "--checkpoint.keep", "2"]
    forks.train(recipe, folder, "python", *saving, "--train.stop_after", "3")
    start = folder / "checkpoints" / "step-00000002"
    words = [*saving, "--train.resume", str(start)]
    forks.train(recipe, folder, "python", *words, "--train.stop_after", "5")
    assert not start.exists()
    run = forks.train(recipe, folder, "python", *words)
    assert steps(run, "resume") == [2, 5]
    assert steps(run, "train") == [1, 2, 3, 4, 5, 6, 7, 8]
    whole = forks.train(recipe, tmp_path / "whole")
    assert [*partings(whole, run, exactly=True)] == []


def test_never_in_a_job_that_is_requeued(recipes, forks, tmp_path):
    recipe, folder = recipes["causal_lm"], tmp_path / "run"

    def train(restarts, *words, seed="1"):
        job = {"SLURM_JOB_ID": "118", "SLURM_RESTART_COUNT": str(restarts)}
        words = ["--seed", seed, "--train.resume", "never", *words]
        run = forks.start(recipe, folder, "python", *words, variables=job).wait()
        assert run.exit_code == 0, run.stderr
        return run

    # An older run, which the job was told to replace and was requeued before it could
    forks.train(recipe, folder, "python", "--train.stop_after", "6", "--checkpoint.also", "[0]")
    first = train(1, "--train.stop_after", "3")
    assert steps(first, "resume") == []
    assert saved(first) == ["step-00000003", "step-00000006.superseded"], "what it has trained again is deleted"
    second = train(2)
    assert "this launch was restarted, so train.resume never does not apply" in second.stdout
    assert steps(second, "resume") == [3]
    whole = forks.train(recipe, tmp_path / "whole", "python", "--seed", "1")
    assert [*partings(whole, second, exactly=True)] == []
    assert "nothing left to do" in train(3).stdout
    anew = train(0, "--train.stop_after", "2")
    assert (steps(anew, "resume"), steps(anew, "train")) == ([], [1, 2]), "typed again, it begins again"


@pytest.mark.slow
def test_a_kill_between_the_beginning_and_the_first_checkpoint(recipes, forks, tmp_path):
    """What the run replaced is not gone on from, not even the old start; the new run begins once more."""
    recipe, folder = recipes["causal_lm"], tmp_path / "run"
    job = {"SLURM_JOB_ID": "118"}
    forks.train(recipe, folder, "python", "--train.stop_after", "3", "--checkpoint.also", "[0]")
    told = (folder / "metrics.jsonl").stat().st_ino
    words = ["--train.resume", "never", "--train.max_steps", "5000"]
    killed = forks.start(recipe, folder, "python", *words, variables=job)
    while (folder / "metrics.jsonl").stat().st_ino == told:
        assert killed.under_way
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    assert saved(killed) == ["step-00000000.superseded", "step-00000003.superseded"]
    requeued = forks.start(
        recipe, folder, "python", *words, "--train.stop_after", "2", variables=job | {"SLURM_RESTART_COUNT": "1"}
    ).wait()
    assert requeued.exit_code == 0, requeued.stderr
    assert (steps(requeued, "resume"), steps(requeued, "train")) == ([], [1, 2])
    auto = forks.train(recipe, folder, "python", "--train.max_steps", "5000", "--train.stop_after", "3")
    assert steps(auto, "resume") == [2]


def test_never_is_not_told_to_be_launched_again_as_it_was(recipes, forks, tmp_path):
    run = forks.train(recipes["causal_lm"], tmp_path, "python", "--train.resume", "never", "--train.stop_after", "2")
    assert "launch again (without train.resume never) to resume" in run.stdout


def test_before_anything_is_loaded_a_path_must_be_there_unless_the_run_began_from_it(recipes, tmp_path):
    checked = read([str(recipes["causal_lm"]), "--output_dir", str(tmp_path), "--train.resume", "some/where"])
    with pytest.raises(ConfigError, match="not a complete checkpoint"):
        checked.directory.check("some/where", checked.resolved)
    (tmp_path / "config.yaml").write_text(checked.config)
    directory = RunDirectory(tmp_path)
    directory.check("some/where", checked.resolved)
    with pytest.raises(ConfigError, match="not a complete checkpoint"):
        directory.check("some/where/else", checked.resolved)
    directory.set_status("done", step=8)
    with pytest.raises(NothingToDo):
        directory.check("some/where", checked.resolved)
