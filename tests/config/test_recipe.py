import pytest
from ruamel.yaml import YAML

from onecurve.config import Recipe, dump_recipe, load_recipe, manual, resolve
from onecurve.config.explain import known_keys
from onecurve.errors import ConfigError

RECIPE = """
output_dir: runs/x
task: {name: text_classification}
model: {path: some/model}
data: {train: a.jsonl, columns: {text: body}}
optim: {lr: 2e-5}
train: {max_steps: 3, mixed_precision: no}
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return str(path)


def test_numbers_with_an_exponent_are_numbers_and_no_is_a_word(recipe):
    loaded, _ = load_recipe([recipe])
    assert loaded.optim.lr == 2e-5
    assert loaded.train.mixed_precision == "no"


def test_overrides_come_after_the_file_in_either_spelling(recipe):
    loaded, sources = load_recipe(
        [recipe, "--optim.lr", "1e-3", "--train.global_batch_size=64", "--peft.method", "ia3"]
    )
    assert (loaded.optim.lr, loaded.train.global_batch_size, loaded.peft.method) == (1e-3, 64, "ia3")
    assert sources["optim.lr"] == "command line"
    assert sources["train.max_steps"] == "file"


def test_the_resolved_recipe_is_a_recipe_and_names_every_source(recipe, tmp_path):
    loaded, sources = load_recipe([recipe, "--seed", "5"])
    text = dump_recipe(resolve(loaded, {"task": {"problem_type": "regression"}}), sources)
    lines = {line.split(":")[0].strip(): line for line in text.splitlines()}
    assert lines["seed"].endswith("# command line")
    assert lines["lr"].endswith("# file")
    assert lines["weight_decay"].endswith("# default")
    again = tmp_path / "config.yaml"
    again.write_text(text)
    reloaded, _ = load_recipe([str(again)])
    assert reloaded.model_dump(exclude={"task"}) == loaded.model_dump(exclude={"task"})
    assert YAML(typ="safe", pure=True).load(text)["task"]["problem_type"] == "regression"


def test_every_leaf_of_the_resolved_recipe_carries_a_source(recipe):
    loaded, sources = load_recipe([recipe])
    for line in dump_recipe(resolve(loaded, {}), sources).splitlines():
        assert line.rstrip().endswith(":") or "# " in line, line


def test_a_budget_of_tokens_stands_in_for_the_default_size_also_when_what_was_resolved_is_read_again(recipe, tmp_path):
    first, sources = load_recipe([recipe, "--train.micro_batch_tokens", "64"])
    assert first.train.cut == {"micro_batch_size": None, "micro_batch_tokens": 64, "group_by_length": False}
    again = tmp_path / "config.yaml"
    again.write_text(dump_recipe(resolve(first, {}), sources))
    assert load_recipe([str(again)])[0] == first


def test_the_command_line_s_choice_replaces_the_file_s_of_two_that_exclude_each_other(recipe, tmp_path):
    loaded, sources = load_recipe([recipe, "--train.epochs", "2"])
    assert (loaded.train.epochs, loaded.train.max_steps) == (2, None)
    assert "train.max_steps" not in sources
    other = tmp_path / "tokens.yaml"
    other.write_text(RECIPE.replace("max_steps: 3", "epochs: 3, micro_batch_tokens: 64"))
    loaded, _ = load_recipe([str(other), "--train.max_steps=5", "--train.micro_batch_size", "4"])
    assert (loaded.train.epochs, loaded.train.max_steps) == (None, 5)
    assert loaded.train.cut == {"micro_batch_size": 4, "micro_batch_tokens": None, "group_by_length": False}
    other.write_text(RECIPE.replace("max_steps: 3", "max_steps: 3, micro_batch_size: 4"))
    loaded, _ = load_recipe([str(other), "--train.micro_batch_tokens", "64"])
    assert loaded.train.cut == {"micro_batch_size": None, "micro_batch_tokens": 64, "group_by_length": False}


@pytest.mark.parametrize("text", ["|", "#", ">", "&", "*", " => ", "-", ";", "%", "--", "!", ",", ": "])
def test_what_holds_only_punctuation_is_text_on_the_command_line(recipe, text):
    for words in (["--task.separator", text], [f"--task.separator={text}"]):
        assert load_recipe([recipe, *words])[0].task.extras == {"separator": text}


def test_null_takes_a_recipe_s_columns_back(recipe):
    given = [str(recipe), "--data.columns", "{text: sentence}"]
    assert load_recipe(given)[0].data.columns == {"text": "sentence"}
    assert load_recipe([*given, "--data.columns", "null"])[0].data.columns == {}


def test_a_tracker_needs_no_list(recipe):
    assert load_recipe([recipe, "--tracking.trackers", "wandb"])[0].tracking.trackers == ["wandb"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["--train.lrr", "3"], "Unknown setting 'train.lrr'. Did you mean 'optim.lr'?"),
        (["--train.gradient_checkpointing", "true"], "Here that is 'train.activations: recompute'."),
        (["--trian.max_steps", "3"], "Unknown setting 'trian'. Did you mean 'train'?"),
        (["--train.max_steps", "many"], "train.max_steps: must be a whole number; got 'many'."),
        (["--train.max_steps", "0"], "train.max_steps: must be greater than 0; got 0."),
        (["--train.max_steps", "2.5"], "train.max_steps: must be a whole number; got 2.5."),
        (["--train.emulate", "1"], "train.emulate: must be true or false; got 1."),
        (["--train.mixed_precision", "fp4"], "must be 'no', 'bf16', 'fp16', 'fp8' or 'auto'; got 'fp4'."),
        (["--train.micro_batch_size", "5"], "(32) must be a multiple of train.micro_batch_size (5)."),
        (
            ["--train.micro_batch_size", "4", "--train.micro_batch_tokens", "64"],
            "train: micro_batch_size (4) and micro_batch_tokens (64) exclude each other: set one of them to null.",
        ),
        (["--train.micro_batch_size", "null"], "train: set micro_batch_size or micro_batch_tokens; both are null."),
        (["--train.micro_batch_tokens", "0"], "train.micro_batch_tokens: must be greater than 0; got 0."),
        (
            ["--train.epochs", "2", "--train.max_steps", "3"],
            "train.max_steps (3) and train.epochs (2) exclude each other: set one of them to null.",
        ),
        (["--train.max_steps", "null"], "set train.max_steps or train.epochs: how long to train."),
        (["--train.epochs", ".inf"], "train.epochs: must be a finite number; got inf."),
        (["--optim.lr", ".nan"], "optim.lr: must be a finite number; got nan."),
        (["--data", "x.jsonl"], "data: is a section: set data.train, ...; got 'x.jsonl'."),
        (["--optim", "adamw"], "optim: is a section: set optim.name, ...; got 'adamw'."),
        (["--peft.method", "null"], "peft.method: must name a method; to train without an adapter, remove the section"),
        (["--tracking.trackers", "tensorbord"], "tracking.trackers: no tracker 'tensorbord'. Did you mean 'tensorb"),
        (["--model.path.x", "1"], "'model.path' is a value, not a section."),
        (["--optim.lr"], "--optim.lr needs a value."),
        (["--train.time_limit", "1h"], "train.time_limit: must be a number of seconds, or HH:MM:SS; got '1h'."),
        (["optim.lr=3"], "'optim.lr=3' is not an override."),
        (["--data.on_long", "cut"], "data.on_long: must be 'error', 'truncate' or 'drop'; got 'cut'."),
    ],
)
def test_a_wrong_setting_is_named_with_its_value_and_the_way_out(recipe, overrides, said):
    with pytest.raises(ConfigError) as error:
        load_recipe([recipe, *overrides])
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1", "not valid YAML"),
        ("a: 1\na: 2", "not valid YAML"),
        ("- 1", "must be a map of sections"),
        (RECIPE.replace("train: {max_steps: 3, mixed_precision: no}", ""), "Missing setting 'train'"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path, text, said):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_recipe([str(path)])
    assert said in str(error.value)


def test_a_missing_recipe_is_named():
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: no such recipe"):
        load_recipe(["nowhere.yaml"])


def test_the_manual_names_and_explains_every_key():
    text = manual()
    for key in known_keys(Recipe):
        if key in (
            "task",
            "model",
            "data",
            "peft",
            "optim",
            "regularization",
            "train",
            "eval",
            "checkpoint",
            "tracking",
        ):
            continue
        assert f"--{key}  (" in text
        explained = text.split(f"--{key}  (")[1].splitlines()[1]
        assert explained.strip(), f"{key} has no explanation"
