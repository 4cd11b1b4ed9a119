"""A finished run that is made longer, and a run whose batch size changes on the way, see each example once an epoch."""

import json
import os
import time

import pytest

from onecurve.config import load_recipe
from onecurve.data.plan import BatchPlan
from onecurve.data.position import Position
from onecurve.errors import ConfigError, NothingToDo
from onecurve.planning.changed_run import allowed_changes, describe_changes
from onecurve.preflight import preflight, read
from onecurve.run.differences import written_since
from onecurve.run.directory import RunDirectory
from tests.resume.curves import partings

BY_EPOCHS = ["--train.max_steps", "null", "--train.epochs"]


@pytest.mark.slow
@pytest.mark.distributed
def test_a_finished_run_is_extended_as_if_it_had_been_that_long(recipes, forks, tmp_path):
    constant = ["--optim.schedule", "constant"]
    whole = forks.train(recipes["sft"], tmp_path / "whole", "python", *constant, *BY_EPOCHS, "3")
    forks.train(recipes["sft"], tmp_path / "run", "python", *constant, *BY_EPOCHS, "1")
    run = forks.train(recipes["sft"], tmp_path / "run", "python", *constant, *BY_EPOCHS, "3")
    assert [event["step"] for event in run.events("resume")] == [4]
    assert "the run has 12 steps instead of 4: with optim.schedule constant the learning rate" in run.stdout
    assert [*partings(whole, run, exactly=True)] == []
    assert [event["num_samples"] for event in run.events("train")][-1] == 90


@pytest.mark.slow
@pytest.mark.distributed
def test_another_global_batch_continues_after_the_samples_seen_also_when_it_stops_again(recipes, forks, tmp_path):
    recipe, folder = recipes["causal_lm"], tmp_path / "run"
    forks.train(recipe, folder, "python", *BY_EPOCHS, "3", "--train.stop_after", "6")  # 30 + 16 of 30
    changed = ["--train.global_batch_size", "4", "--train.allow_changes", "[train.global_batch_size]"]
    run = forks.train(recipe, folder, "python", *BY_EPOCHS, "3", *changed, "--train.stop_after", "8")
    assert "continues after 46 samples, in pass 2 over the data, of whose 30 examples it has seen 16" in run.stdout
    assert "the run has 18 steps instead of 12: with optim.schedule cosine the learning rate of step 7 is" in run.stdout
    run = forks.train(recipe, folder, "python", *BY_EPOCHS, "3", "--train.global_batch_size", "4")
    seen = [event["num_samples"] for event in run.events("train")]
    assert seen == [8, 16, 24, 30, 38, 46, 50, 54, 58, 60, 64, 68, 72, 76, 80, 84, 88, 90]


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(("how", "ranks"), [("python", 1), ("zero3", 2)])
def test_a_new_run_trains_the_adapter_of_another_run_further(recipes, forks, tmp_path, how, ranks):
    lora = ["--peft.method", "lora", "--optim.schedule", "constant", "--optim.warmup_steps", "0"]
    first = forks.train(recipes["text_classification"], tmp_path / "a", "python", *lora, "--peft.r", "4")
    began = ["--model.path", str(tmp_path / "a" / "model"), "--eval.every", "1", "--optim.lr", "1e-12"]
    run = forks.train(recipes["text_classification"], tmp_path / "b", how, *lora, *began, num_processes=ranks)
    assert f"adapter   trained further from {tmp_path / 'a' / 'model'}" in run.stdout
    assert "drawn at random" not in run.stdout
    # what the first run ended with is what this one begins with
    assert run.events("eval")[0]["loss"] == pytest.approx(first.events("eval")[-1]["loss"], rel=1e-5)
    for file in ("adapter_config.json", "task.json"):
        assert (tmp_path / "b" / "model" / file).is_file()
    settings = json.loads((tmp_path / "b" / "model" / "adapter_config.json").read_text())
    assert settings["r"] == 4


def finished(recipes, folder, words, checkpoint=True):
    """A run directory as a finished run leaves it."""
    checked = read([str(recipes["sft"]), "--output_dir", str(folder), *words])
    (folder / "checkpoints" / "step-00000008").mkdir(parents=True)
    if checkpoint:
        (folder / "checkpoints" / "step-00000008" / "manifest.json").write_text("{}")
    (folder / "config.yaml").write_text(checked.config)
    (folder / "status.json").write_text(json.dumps({"status": "done", "step": 8}))


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ([], ["--train.max_steps", "12"], ""),
        ([], [], "nothing left to do"),
        ([], ["--train.max_steps", "7"], "a finished run with another train.max_steps"),
        (
            [],
            ["--train.max_steps", "12", "--optim.lr", "1"],
            r"another optim\.lr \(0\.002, now 1\.0\), train\.max_steps \(8, now 12\)",
        ),
        ([], ["--train.max_steps", "12", "--optim.lr", "1", "--train.allow_changes", "[optim.lr]"], ""),
        ([], [*BY_EPOCHS, "9"], ""),
        ([*BY_EPOCHS, "2"], [*BY_EPOCHS, "3"], ""),
        ([*BY_EPOCHS, "2"], [*BY_EPOCHS, "1"], "a finished run with another train.epochs"),
        ([*BY_EPOCHS, "2"], ["--train.max_steps", "9"], ""),
    ],
)
def test_only_a_longer_length_extends_a_finished_run(recipes, tmp_path, before, after, said):
    finished(recipes, tmp_path, before)
    checked = read([str(recipes["sft"]), "--output_dir", str(tmp_path), *after])
    if said:
        with pytest.raises((ConfigError, NothingToDo), match=said):
            checked.directory.check("auto", checked.resolved)
    else:
        checked.directory.check("auto", checked.resolved)


@pytest.mark.parametrize(
    ("words", "kind", "said"),
    [
        (
            ["--data.train", "other.jsonl"],
            ConfigError,
            r'another data.train \(".*", now "other.jsonl"\); no',
        ),
        (["--data.max_samples", "3"], ConfigError, r"another data.max_samples \(null, now 3\)"),
        (["--data.test", "more.jsonl"], NothingToDo, r"done: another data.test \(null, now \"more.jsonl\"\)\.$"),
        (["--data.train", "other.jsonl", "--train.resume", "never"], None, ""),
        (["--data.train", "other.jsonl", "--train.max_steps", "12"], None, ""),  # its examples are compared
    ],
    ids=["train", "max_samples", "test", "anew", "longer"],
)
def test_other_data_on_a_finished_run_are_named(recipes, tmp_path, words, kind, said):
    finished(recipes, tmp_path, [])
    checked = read([str(recipes["sft"]), "--output_dir", str(tmp_path), *words])
    resume = checked.recipe.train.resume
    if kind is None:
        checked.directory.check(resume, checked.resolved)
    else:
        with pytest.raises(kind, match=said):
            checked.directory.check(resume, checked.resolved)


def test_what_was_written_since_is_found(tmp_path):
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    file = tmp_path / "folder" / "deep" / "a.csv"
    file.write_text("text")
    names = ["org/name:train", str(tmp_path / "none.csv"), str(tmp_path / "folder")]
    assert written_since(time.time_ns() + 1, names) == ""
    moment = file.stat().st_ctime_ns
    assert written_since(moment - 1, names) == str(tmp_path / "folder")
    assert written_since(moment - 1, [str(tmp_path / "*" / "deep" / "*.csv")]) == str(file)
    os.utime(file, (0, 0))  # as a copy of an older file has it
    assert written_since(moment - 1, [str(file)]) == str(file)


def test_data_that_were_written_since_and_cannot_be_compared_are_named(recipes, tmp_path):
    finished(recipes, tmp_path / "run", [])
    os.utime(tmp_path / "run" / "config.yaml", (0, 0))
    with pytest.raises(NothingToDo, match=r"nothing left to do.*data.jsonl was written since it was read, and no"):
        preflight([str(recipes["sft"]), "--output_dir", str(tmp_path / "run")])


@pytest.mark.slow
def test_other_data_in_the_same_file_of_a_finished_run_are_noticed(recipes, forks, tmp_path):
    before = (recipes["causal_lm"].parent / "data.jsonl").read_text()
    data = tmp_path / "mine.jsonl"
    data.write_text(before)
    words = ["--data.train", json.dumps({"one": {"path": str(data)}})]
    run = lambda: forks.launch(recipes["causal_lm"], tmp_path / "run", "python", *words)  # noqa: E731
    assert run().exit_code == 0
    assert "nothing left to do" in run().stdout
    data.write_text(before)
    assert "nothing left to do" in run().stdout, "the same examples in a new file"
    data.write_text(before.replace("a", "e", 1))
    told = run()
    assert told.exit_code == 2, told.stdout
    assert "data.train: " in told.stderr and "holds a finished run on other data" in told.stderr
    assert f"{data} was written since" in told.stderr and "Traceback" not in told.stderr
    assert told.status["status"] == "done", "the run is what it was"
    data.write_text(before)
    assert run().exit_code == 0


PATIENT = ["--eval.best_metric", "loss", "--eval.every", "1", "--eval.patience"]


@pytest.mark.parametrize(
    ("ended", "before", "after", "said"),
    [
        (5, "2", "4", ""),
        (5, "2", "null", ""),
        (5, "2", "2", "nothing left to do"),
        (5, "2", "1", "nothing left to do"),
        (5, "null", "4", "nothing left to do"),
        (8, "2", "4", "nothing left to do"),
        (None, "2", "4", "another eval.patience, and no checkpoint to continue from"),
    ],
)
def test_more_patience_continues_a_run_that_it_ended(recipes, tmp_path, ended, before, after, said):
    data = ["--data.eval", str(recipes["sft"])]  # is not read here
    finished(recipes, tmp_path, [*data, *PATIENT, before], checkpoint=ended is not None)
    if ended:
        (tmp_path / "checkpoints" / "latest").write_text("step-00000008")
        (tmp_path / "checkpoints" / "step-00000008" / "state.json").write_text(json.dumps(state(ended)))
    checked = read([str(recipes["sft"]), "--output_dir", str(tmp_path), *data, *PATIENT, after])
    if said:
        with pytest.raises((ConfigError, NothingToDo), match=said):
            checked.directory.check("auto", checked.resolved)
    else:
        checked.directory.check("auto", checked.resolved)


def test_a_finished_run_without_a_checkpoint_says_how_to_train_on(recipes, tmp_path):
    finished(recipes, tmp_path, [], checkpoint=False)
    checked = read([str(recipes["sft"]), "--output_dir", str(tmp_path), "--train.max_steps", "12"])
    with pytest.raises(ConfigError, match=r"no checkpoint to continue from.*set model.path to .*model and choose"):
        RunDirectory(tmp_path).check("auto", checked.resolved)


def state(step=8, max_steps=8, without=0, **curve):
    return {
        "step": step,
        "max_steps": max_steps,
        "curve": {"train.max_steps": 8, "optim.lr": 0.002} | curve,
        "best": {"without": without},
        "recipe": {"eval": {"patience": 2}},
    }


def test_an_unfinished_run_is_not_made_longer_without_a_word(tmp_path):
    longer = {"train.max_steps": 12, "optim.lr": 0.002}
    assert allowed_changes(tmp_path, state(), longer, []) == {"train.max_steps": [8, 12]}
    assert allowed_changes(tmp_path, state(step=5, without=2), longer, []) == {"train.max_steps": [8, 12]}
    for refused in (state(step=5), {**state(step=8), "max_steps": 20}):
        with pytest.raises(ConfigError, match=r"would change the curve: train\.max_steps was 8 and is 12"):
            allowed_changes(tmp_path, refused, longer, [])


def test_a_run_that_would_end_at_once_is_refused(recipes):
    plan, changes = BatchPlan([1] * 30, 0, 8, 2, max_steps=12, start=Position(8)), {"train.max_steps": [8, 12]}
    patient, _ = load_recipe(
        [str(recipes["sft"]), "--eval.best_metric", "loss", "--eval.every", "1", "--eval.patience", "2"]
    )
    with pytest.raises(ConfigError, match=r"^eval.patience: is 2, and ended the run after step 8. Raise it"):
        [*describe_changes(state(without=2), changes, plan, patient)]
    recipe, _ = load_recipe([str(recipes["sft"])])
    with pytest.raises(ConfigError, match="the run has made 14 steps, and that makes 12"):
        [*describe_changes(state(step=14, max_steps=14), changes, plan, recipe)]
    (told,) = describe_changes(state(), changes, plan, recipe)
    assert "cosine the learning rate of step 9 is 0.000691; it was 0.000134 in step 8" in told
