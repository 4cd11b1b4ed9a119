"""A key that is set and has no effect is refused, by one table that has a statement on every key."""

from pathlib import Path

import pytest

from onecurve.config import Recipe, check_effects, load_recipe
from onecurve.config.effects import ALWAYS, BY_SPLIT, BY_TASK, NEEDS, beyond_the_end
from onecurve.config.explain import known_keys
from onecurve.config.sections.base import Section
from onecurve.data.formats import READS
from onecurve.errors import ConfigError
from onecurve.preflight import read
from onecurve.tasks import find_task, task_names, unread_keys
from onecurve.tasks.base import Transforms

RECIPE = """
output_dir: runs/x
task: {name: text_classification}
model: {path: org/model}
data: {train: a.jsonl}
train: {max_steps: 30}
"""
SHARDS = "shards"
"""Of a recipe's folder, which the fixture makes."""
SCORED = ["--data.eval", "b.jsonl"]
BFLOAT = ["--model.dtype", "bfloat16"]
CASES = {  # key: its value, what it needs, and what of it is said where that is missing
    "model.revision": ("v1", [], "model.path is a local folder"),
    "model.tokenizer_revision": ("v1", ["--model.tokenizer", "org/other"], "a model.tokenizer that is a hub name"),
    "data.shuffle_window": ("8", ["--data.train", SHARDS], "not a folder of encoded shards"),
    "data.stage_to": ("here", ["--data.train", SHARDS, "--data.shuffle_window", "4"], "there are no windows"),
    "data.temperature": ("0.5", ["--data.train", "{a: a.jsonl, b: b.jsonl}"], "names no sources"),
    "optim.decay_steps": ("5", ["--optim.schedule", "wsd"], "for optim.schedule wsd"),
    "optim.min_lr_ratio": ("0.1", [], "constant never falls"),
    "optim.rounding": ("kahan", BFLOAT, "trained weights are float32 here"),
    "regularization.average_count": (
        "3",
        ["--regularization.average", "last"],
        "for regularization.average last and best",
    ),
    "regularization.average_decay": ("0.9", ["--regularization.average", "ema"], "for regularization.average ema"),
    "regularization.average_every": ("2", ["--regularization.average", "swa"], "nothing is averaged, or only the best"),
    "regularization.average_start": ("2", ["--regularization.average", "ema"], "nothing is averaged, or only the best"),
    "regularization.synonym_share": ("0.5", ["--regularization.synonyms", "words.txt"], "no words are replaced"),
    "train.emulate": ("true", ["--train.mixed_precision", "bf16"], "never emulate"),
    "train.group_by_length": ("true", [], "a step is one micro-batch"),
    "train.spike_window": ("8", ["--train.on_spike", "skip"], "losses are not compared"),
    "train.spike_sigma": ("3", ["--train.on_spike", "stop"], "losses are not compared"),
    "train.max_skipped": ("3", ["--train.on_nonfinite", "skip"], "no step is ever skipped"),
    "eval.every": ("5", SCORED, "no dev split"),
    "eval.micro_batch_size": ("4", ["--data.test", "b.jsonl"], "nothing is evaluated"),
    "eval.predictions": ("true", SCORED, "nothing is evaluated"),
    "eval.samples": ("5", [*SCORED, "--task.generate.num_beams", "2"], "no texts are generated"),
    "eval.best_metric": ("loss", [*SCORED, "--eval.every", "5"], "at most once, at the end"),
    "eval.patience": ("2", [*SCORED, "--eval.every", "5", "--eval.best_metric", "loss"], "it counts evaluations"),
    "checkpoint.keep_every": ("10", ["--checkpoint.every", "5"], "only the last step is saved"),
    "tracking.project": ("p", ["--tracking.trackers", "tensorboard"], "no trackers"),
}
OTHERWISE = {  # where the plain recipe has what the key needs: what takes it away
    "model.revision": ["--model.path", "."],
    "optim.min_lr_ratio": ["--optim.schedule", "constant"],
    "train.group_by_length": ["--train.micro_batch_size", "32"],
}


def unstated(schema: type[Section]) -> set[str]:
    """Keys of a schema on whose effect nothing is said, and those on which something is said twice."""
    sections = {key.partition(".")[0] for key in known_keys(schema) if "." in key}
    stated = [*NEEDS, *ALWAYS, *BY_TASK, *BY_SPLIT]
    keys = set(known_keys(schema)) - sections
    return (keys ^ set(stated)) | {key for key in stated if stated.count(key) > 1}


def test_every_key_has_one_statement_on_its_effect():
    assert unstated(Recipe) == set()


def test_a_key_without_a_statement_is_found():
    class Grown(Recipe):
        colour: str = "blue"

    assert unstated(Grown) == {"colour"}


@pytest.fixture
def load(tmp_path, monkeypatch):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    (tmp_path / SHARDS).mkdir()
    (tmp_path / SHARDS / "shards.json").touch()
    monkeypatch.chdir(tmp_path)
    return lambda *overrides: load_recipe([str(path), *overrides])[0]


def test_every_condition_has_a_case():
    assert CASES.keys() == NEEDS.keys()


@pytest.mark.parametrize("key", NEEDS)
def test_a_key_is_refused_where_it_has_no_effect_and_only_there(load, key):
    value, needed, why = CASES[key]
    check_effects(load(*needed, f"--{key}", value), {}, {})
    without = OTHERWISE.get(key, [])
    with pytest.raises(ConfigError, match=f"^{key}: has no effect: .*{why}.*Leave it at its default"):
        check_effects(load(*without, f"--{key}", value), {}, {})
    check_effects(load(*without), {}, {})  # defaults never complain


def test_all_that_have_none_are_named_at_once(load):
    with pytest.raises(ConfigError) as error:
        check_effects(load("--eval.every", "5", "--tracking.project", "p"), {}, {})
    assert [line.partition(":")[0] for line in str(error.value).splitlines()] == ["eval.every", "tracking.project"]


@pytest.mark.parametrize("key", ["on_nonfinite", "on_spike"])
def test_rewind_needs_a_checkpoint_to_go_back_to(load, key):
    with pytest.raises(ConfigError, match=f"train.{key}: rewind needs a checkpoint"):
        check_effects(load(f"--train.{key}", "rewind"), {}, {})
    check_effects(load(f"--train.{key}", "rewind", "--checkpoint.also", "[0]"), {}, {})
    check_effects(load(f"--train.{key}", "rewind", "--checkpoint.every", "5"), {}, {})


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("data.foo", "no setting 'data.foo'. Known: "),
        ("optim.lr.x", "no setting 'optim.lr.x'"),
        ("train.global_batchsize", "Did you mean 'train.global_batch_size'"),
        ("train.micro_batch_size", "train.micro_batch_size may always change"),
        ("eval.every", "eval.every may always change"),
    ],
)
def test_a_name_that_allows_no_change_is_refused(load, name, said):
    with pytest.raises(ConfigError, match=f"train.allow_changes: .*{said}"):
        check_effects(load("--train.allow_changes", f"[{name}]"), {}, {})


def test_what_a_resumed_run_compares_may_be_allowed(load):
    beside = "data, model.weights, model.code, reference"
    names = f"[{beside}, task.source_hash, optim.lr, peft.r, train.global_batch_size, seed]"
    check_effects(load("--train.allow_changes", names), {}, {})


READ_BY = {
    "model.chat_template": {"sft", "reward", "dpo", "kto", "distillation", "grpo"},
    "data.on_long": set(task_names()) - {"causal_lm", "masked_lm"},
}
HEAD = {"name": "text_classification"}
NEEDED = {  # settings without a default
    "multi_task": {"heads": {"topic": HEAD, "sentiment": HEAD}},
    "distillation": {"student_task": "sft", "teacher": "some/model"},
}
READ_BY["train.logits"] = {"sft", "causal_lm", "seq2seq_lm"}
READ_BY["data.workers"] = {name for name in task_names() if issubclass(find_task(name), Transforms)}


def test_tasks_say_which_keys_they_do_not_read():
    assert READ_BY.keys() == BY_TASK
    for name in task_names():
        kind = find_task(name)
        said = {key for key in unread_keys(kind(kind.Settings(**NEEDED.get(name, {})))) if key in BY_TASK}
        assert said == {key for key, tasks in READ_BY.items() if name not in tasks}, name


@pytest.mark.parametrize(
    ("task", "overrides", "said"),
    [
        ("causal_lm", ["--data.on_long", "drop"], "data.on_long: has no effect: a document is cut into blocks"),
        ("text_classification", ["--model.chat_template", "x.jinja"], "model.chat_template: has no effect"),
        ("text_classification", ["--task.label_separator", "|"], "task.label_separator: has no effect"),
    ],
)
def test_what_the_task_does_not_read_is_refused_before_anything_heavy_is_imported(tmp_path, task, overrides, said):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.replace("text_classification", task))
    with pytest.raises(ConfigError, match=said):
        read([str(path), *overrides])


def test_of_several_labels_the_separator_is_read(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    several = ["--task.problem_type", "multi_label_classification", "--task.label_separator", "|"]
    assert read([str(path), *several]).task.settings.label_separator == "|"


def test_a_resolved_recipe_is_a_recipe_although_it_holds_every_key(tmp_path):
    path, again = tmp_path / "recipe.yaml", tmp_path / "again.yaml"
    path.write_text(RECIPE)
    again.write_text(read([str(path)]).config)
    assert read([str(again)]).resolved == read([str(path)]).resolved


def test_the_data_s_kinds_say_the_rest():
    read = {name for names in READS.values() for name in names} | {"hub_config"}
    assert {f"data.{name}" for name in read} == BY_SPLIT


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["--optim.warmup_steps", "60"], ["optim.warmup_steps is 60 and the run has 30 steps"]),
        (["--checkpoint.also", "[10, 40, 999]"], ["checkpoint.also: the run has 30 steps, so 40, 999 will not be"]),
        (["--train.on_spike", "skip"], ["train.spike_window is 64: in 30 steps no spike"]),
        ([*SCORED, "--eval.every", "50", "--eval.best_metric", "loss"], ["eval.best_metric: the dev split is evalua"]),
        (
            ["--regularization.average", "swa", "--regularization.average_start", "31"],
            ["regularization.average_start is 31 and the run has 30 steps"],
        ),
        (["--train.stop_after", "31"], ["train.stop_after is 31, beyond the run's last step, 30"]),
        (["--optim.warmup_steps", "29", "--checkpoint.also", "[30]", "--train.stop_after", "30"], []),
    ],
)
def test_what_a_run_is_too_short_for_is_said(load, overrides, said):
    remarks = list(beyond_the_end(load(*overrides), 30))
    assert len(remarks) == len(said)
    assert all(remark.startswith(start) for remark, start in zip(remarks, said, strict=True)), remarks


def test_a_warm_up_longer_than_the_run_is_told_with_the_rate_that_it_reaches(load):
    (remark,) = beyond_the_end(load("--optim.warmup_steps", "60", "--optim.lr", "6e-4"), 31)
    assert remark.endswith("reaches 3.00e-04 of 6.00e-04")


ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("recipe", sorted(path.name for path in (ROOT / "recipes").glob("*.yaml")))
def test_a_trial_of_a_few_steps_needs_no_other_setting(recipe, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert read([f"recipes/{recipe}", "--train.max_steps", "2"]).recipe.train.epochs is None
