"""`onecurve init`: a folder to begin from, for every task there is and for the user's own."""

import json

import pytest
from ruamel.yaml import YAML

from onecurve.cli import main
from onecurve.config.manual import meaning, section_of
from onecurve.config.recipe import Recipe
from onecurve.data.media import MediaColumns
from onecurve.data.rows import Located
from onecurve.preflight import read
from onecurve.tasks import task_names
from tests.launching import ROOT, train

OWN = """
from onecurve.tasks.text_classification import Task as TextClassification

class Task(TextClassification):
    {sample}
"""
SAMPLE = 'sample = [{"text": f"line {i}", "label": "ab"[i % 2]} for i in range(8)]'


def rows(folder, name):
    return [json.loads(line) for line in (folder / "data" / f"{name}.jsonl").read_text().splitlines()]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "project"


@pytest.mark.parametrize("task", task_names())
def test_the_recipe_is_valid_and_the_sample_is_what_the_task_reads(folder, monkeypatch, capsys, task):
    assert main(["init", "project", "--task", task]) == 0
    said = capsys.readouterr().out
    assert "onecurve train recipe.yaml --launch ddp" in said
    assert "placeholders" not in said
    monkeypatch.chdir(folder)
    checked = read(["recipe.yaml"])
    columns = {name.removesuffix("?") for name in checked.task.columns}
    split = {name: rows(folder, name) for name in ("train", "eval")}
    assert len(split["train"]) >= 4
    files = MediaColumns(checked.task.media)
    for row in split["train"] + split["eval"]:
        assert set(row) <= columns
        found = files.read(Located("", files.placed(row, folder / "data")))
        assert isinstance(found, Located), found
        checked.task.check(found.row)
    assert checked.recipe.data.columns == {name: name for name in split["train"][0]}
    survey = checked.task.survey(split["train"])
    for row in split["eval"]:
        checked.task.check_label(row, survey)
    assert checked.recipe.task.name == task


def test_every_key_is_under_the_schema_s_own_words(folder):
    assert main(["init", "project"]) == 0
    text = (folder / "recipe.yaml").read_text()
    said = " ".join(line.strip().removeprefix("# ") for line in text.splitlines())
    keys = 0
    for name, value in YAML(typ="safe", pure=True).load(text).items():
        section = section_of(Recipe.model_fields[name])
        fields = {name: Recipe.model_fields[name]} if section is None else section.model_fields
        for key in [name] if section is None else value:
            if key in fields:
                keys += 1
                assert meaning(fields[key]) in said, key
    assert keys > 15
    assert "label_separator: ','" in text  # the task's own
    assert "Separator of the names in a multi-label row that is text." in said


def test_launch_files_and_the_tiny_model_are_those_of_the_repository(folder):
    assert main(["init", "project"]) == 0
    for name in ("accelerate_configs", "ds_configs", "recipes/tiny-llama"):
        theirs = {path.name: path.read_bytes() for path in (ROOT / name).iterdir()}
        ours = {path.name: path.read_bytes() for path in (folder / name.rpartition("/")[2]).iterdir()}
        assert ours == theirs
    assert len(ours) == 4


def test_a_pretrained_model_is_named_and_nothing_tiny_is_written(folder):
    assert main(["init", "project", "--model", "org/name"]) == 0
    recipe = YAML(typ="safe", pure=True).load((folder / "recipe.yaml").read_text())
    assert recipe["model"] == {"path": "org/name", "init": "pretrained"}
    assert not (folder / "tiny-llama").exists()


def test_what_is_there_stays(folder, capsys):
    folder.mkdir()
    (folder / "mine.txt").write_text("x")
    assert main(["init", "project"]) == 2
    assert "'project' is not empty" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]
    assert main(["init", "project/mine.txt"]) == 2
    (folder / "mine.txt").unlink()
    assert main(["init", "project"]) == 0


def test_no_such_task(folder, capsys):
    assert main(["init", "project", "--task", "text_clasification"]) == 2
    assert "Did you mean 'text_classification'?" in capsys.readouterr().err
    assert not folder.exists()


def test_a_task_of_the_user_s_own_gives_the_sample(folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(OWN.format(sample=SAMPLE))
    assert main(["init", "project", "--task", "mine.py:Task"]) == 0
    assert "placeholders" not in capsys.readouterr().out
    assert [row["text"] for row in rows(folder, "eval")] == ["line 6", "line 7"]
    assert len(rows(folder, "train")) == 6
    monkeypatch.chdir(folder)
    checked = read(["recipe.yaml"])
    assert checked.resolved["task"]["name"] == str(tmp_path / "mine.py") + ":Task"
    assert checked.recipe.output_dir == "runs/task"


def test_a_task_without_a_sample_gives_its_columns(folder, tmp_path, capsys):
    (tmp_path / "bare.py").write_text(OWN.format(sample="pass"))
    assert main(["init", "project", "--task", "bare.py:Task"]) == 0
    assert "data/ holds placeholders" in capsys.readouterr().out
    assert set(rows(folder, "train")[0]) == {"text", "label"}


def test_a_project_has_every_folder_that_its_recipe_names(folder):
    assert main(["init", "project", "--task", "seq2seq_lm"]) == 0
    model = YAML(typ="safe", pure=True).load((folder / "recipe.yaml").read_text())["model"]
    assert (folder / model["path"] / "config.json").is_file()
    assert (folder / model["tokenizer"] / "tokenizer.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("task", sorted({*task_names()} - {"distillation"}))  # which needs a trained teacher
def test_the_written_recipe_trains(folder, monkeypatch, task):
    assert main(["init", "project", "--task", task]) == 0
    recipe = folder / "recipe.yaml"
    tiny = YAML(typ="safe", pure=True).load(recipe.read_text())["model"]["path"]
    paths = {"model.path": tiny, "data.train": "data/train.jsonl", "data.eval": "data/eval.jsonl"}
    if task == "seq2seq_lm":
        paths["model.tokenizer"] = "tiny-llama"
    here = [word for key, path in paths.items() for word in (f"--{key}", str(folder / path))]
    run = train(recipe, folder / "run", "python", *here, "--data.cache_dir", str(folder / "cache"))
    losses = [step["loss"] for step in run.events("train")]
    assert len(losses) >= 20
    if task == "grpo":  # whose loss says nothing of what is learnt
        return
    assert sum(losses[-5:]) < sum(losses[:5])
