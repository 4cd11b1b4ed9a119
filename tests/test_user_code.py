"""Tasks of the user's own, outside the package: found, refused in one message, and hashed with what they import."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from onecurve.config import DataSection, TaskSection
from onecurve.data.cache_key import content_key, content_parts
from onecurve.errors import ConfigError
from onecurve.preflight import read
from onecurve.tasks import find_task, load_task, members, task_names
from onecurve.tasks.base import Survey
from onecurve.user_code import load, locate, source_hash
from tests.launching import launch, train, write_recipe

SHOUTED = '''
"""Text classification that hears no case, and counts the best label's recall its own way."""

from onecurve.tasks.text_classification import Task as TextClassification


class Task(TextClassification):
    def __init__(self, settings):
        super().__init__(settings)
        self.metric_names = (*self.metric_names, "agreement")

    def encode(self, row, survey, reading, truncate):
        from wording import lower

        return super().encode(row | {"text": lower(row["text"])}, survey, reading, truncate)

    def metrics(self, pairs, loss, survey):
        return super().metrics(pairs, loss, survey) | {"agreement": sum(p == r for p, r in pairs) / len(pairs)}
'''
WORDING = "def lower(text):\n    return text.lower()\n"
ROWS = [{"text": f"Profit {('Rises', 'Falls')[i % 2]} {i}", "label": ("up", "down")[i % 2]} for i in range(16)]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a task of its own; what it imports is forgotten again."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "shouted.py").write_text(SHOUTED)
    (folder / "wording.py").write_text(WORDING)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    monkeypatch.chdir(folder)
    yield folder
    for name in set(sys.modules) - before:  # not what is imported for the first time: others hold it already
        if any(Path(place).is_relative_to(tmp_path) for place in places(sys.modules[name])):
            del sys.modules[name]


def places(module):
    """The file of a module, or the folders of a package without one."""
    file = getattr(module, "__file__", None)
    return [file] if file else list(getattr(module, "__path__", ()))


@pytest.fixture
def recipe(project, tiny_bert):
    return write_recipe(
        project / "recipe.yaml",
        output_dir=str(project / "run"),
        task={"name": "shouted.py:Task"},
        model={"path": str(tiny_bert)},
        data={
            "train": str(project / "rows.jsonl"),
            "eval": str(project / "rows.jsonl"),
            "cache_dir": str(project / "cache"),
        },
        train={"max_steps": 3, "global_batch_size": 4, "micro_batch_size": 2},
        eval={"every": 1, "best_metric": "agreement"},
    )


def forget(name):
    del sys.modules[name]
    source_hash.cache_clear()


def test_a_file_and_a_module_hold_the_same_task(project):
    package = project / "kinds"
    package.mkdir()
    for name in ("shouted.py", "wording.py"):
        shutil.copy(project / name, package / name)
    of_file, of_module = (find_task(name) for name in ("shouted.py:Task", "kinds.shouted:Task"))
    assert of_file is find_task("shouted.py:Task")
    assert of_file.columns == of_module.columns
    # kinds.shouted imports `wording`, which is the one beside the package
    assert source_hash(of_file) != source_hash(of_module) != ""
    assert source_hash(find_task("causal_lm")) == ""


def test_a_file_is_looked_for_beside_the_recipe_then_in_the_working_directory(project, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert locate("shouted.py:Task", project) == "project/shouted.py:Task"
    assert locate("project/shouted.py:Task", project) == "project/shouted.py:Task"
    assert locate(f"{project}/shouted.py:Task", tmp_path) == "project/shouted.py:Task"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert locate("shouted.py:Task", project) == f"{project}/shouted.py:Task"
    assert locate("causal_lm", project) == "causal_lm"


def test_a_file_called_like_a_package_does_not_stand_in_for_it(project):
    import numpy

    shutil.copy(project / "shouted.py", project / "numpy.py")
    assert find_task("numpy.py:Task")
    assert sys.modules["numpy"] is numpy
    assert sys.path[0] != str(project)


MISTAKES = {
    "no file": ("missing.py:Task", "", "there is no file 'missing.py'"),
    "no class in the name": ("mine.py", "", "'mine.py' names no class. Write my_file.py:NAME"),
    "no such class": ("mine.py:Tsk", "class Task: pass", "there is no 'Tsk' in mine.py"),
    "no class": ("mine.py:Task", "Task = 3", "is not a class: 3"),
    "a member is missing": (
        "mine.py:Task",
        "class Task: columns = {}",
        "does not inherit from onecurve.tasks.base.Task",
    ),
    "only the contract": (
        "mine.py:Task",
        "from onecurve.tasks.base import Settings, Task as Base\nclass Task(Base):\n    Settings = Settings",
        "lacks auto_model, collate, columns, ",
    ),
    "settings that are none": (
        "mine.py:Task",
        "from onecurve.tasks.causal_lm import Task as Base\nclass Task(Base):\n    Settings = dict",
        "mine.py:Task.Settings must be a class that inherits from",
    ),
    "a syntax error": ("mine.py:Task", "class Task\n", "mine.py, line 1: SyntaxError: expected ':'"),
    "an import that fails": ("mine.py:Task", "x = 1\nimport no_such_thing", "mine.py, line 2: ModuleNotFoundError"),
    "any error": ("mine.py:Task", "import json\njson.loads('{')", "mine.py, line 2: JSONDecodeError"),
    "an exit": ("mine.py:Task", "raise SystemExit(4)", "mine.py, line 1: SystemExit: 4"),
    "no module": ("no_such_package.thing:Task", "", "there is no module 'no_such_package'"),
    "a module that fails": (
        "a_failing_module:Task",
        "import no_such_thing",
        "a_failing_module.py, line 1: ModuleNotFoundError",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_cannot_be_used_is_one_message(project, mistake):
    name, code, said = MISTAKES[mistake]
    if code:
        (project / f"{name.partition(':')[0].removesuffix('.py')}.py").write_text(code)
    with pytest.raises(ConfigError) as refused:
        find_task(name)
    assert said in str(refused.value)
    assert str(refused.value).startswith("task.name: ")
    assert "\n" not in str(refused.value)


def test_the_package_s_own_tasks_have_every_member_that_is_asked_for(project):
    assert {"encode", "columns", "loss_sum", "collate", "auto_model"} <= members()
    for name in task_names():
        code = f"from onecurve.tasks.{name} import Task as Base\nclass Task(Base): pass"
        (project / f"mine_{name}.py").write_text(code)
        assert find_task(f"mine_{name}.py:Task")


def test_a_setting_it_does_not_know_is_refused_in_the_recipe_s_words(project):
    with pytest.raises(ConfigError, match=r"'task\.lables'.*Did you mean 'task\.labels'"):
        load_task(TaskSection(name="shouted.py:Task", lables=["a"]))


def test_the_hash_is_of_the_code_and_of_what_it_imports_in_the_same_folder(project, tmp_path):
    first = source_hash(load("shouted.py:Task", "task.name"))

    def hash_now():
        forget("user_code_shouted")
        return source_hash(load("shouted.py:Task", "task.name"))

    (project / "unrelated.py").write_text("x = 1\n")
    assert hash_now() == first
    (project / "wording.py").write_text(WORDING + "# another\n")  # imported within a method
    changed = hash_now()
    assert changed != first
    (project / "wording.py").write_text(WORDING)
    (project / "shouted.py").write_text(SHOUTED + "\n")
    assert hash_now() not in (first, changed)
    (project / "shouted.py").write_text(SHOUTED)
    shutil.copytree(project, tmp_path / "moved")
    assert source_hash(load(f"{tmp_path}/moved/shouted.py:Task", "task.name")) == first


def test_relative_imports_and_packages_count(project):
    (project / "kinds" / "deep").mkdir(parents=True)
    files = {
        "__init__.py": "",
        "mine.py": "from .deep import words\nfrom . import sibling\nclass Task: pass\n",
        "sibling.py": "",
        "deep/__init__.py": "",
        "deep/words.py": "from ..far import x\n",
        "far.py": "x = 1\n",
        "not_imported.py": "",
    }
    for name, text in files.items():
        (project / "kinds" / name).write_text(text)
    kind = load("kinds.mine:Task", "task.name")
    first = source_hash(kind)
    for name in files:
        (project / "kinds" / name).write_text(files[name] + "# changed\n")
        source_hash.cache_clear()
        assert (source_hash(kind) == first) == (name == "not_imported.py"), name
        (project / "kinds" / name).write_text(files[name])


def test_another_code_is_other_examples(project):
    def key():
        task = load_task(TaskSection(name="shouted.py:Task"))
        return content_key(content_parts("data", "sample", "tokenizer", task, Survey(), DataSection(train="x"), 8))

    first = key()
    assert key() == first
    (project / "wording.py").write_text("def lower(text):\n    return text.upper()\n")
    forget("user_code_shouted")
    assert key() != first


def test_the_resolved_recipe_holds_the_hash_and_is_refused_for_other_code(project, recipe):
    checked = read([str(recipe)])
    task = checked.resolved["task"]
    assert task["name"] == "shouted.py:Task"
    assert task["source_hash"] == source_hash(type(checked.task))
    (project / "resolved.yaml").write_text(checked.config)
    assert read([str(project / "resolved.yaml")]).resolved == checked.resolved
    (project / "wording.py").write_text(WORDING + "# another\n")
    forget("user_code_shouted")
    with pytest.raises(ConfigError, match=r"task\.source_hash: .* has changed"):
        read([str(project / "resolved.yaml")])


def test_a_metric_that_it_does_not_name_cannot_choose_the_best_step(project, recipe):
    read([str(recipe), "--eval.best_metric", "agreement"])
    with pytest.raises(ConfigError, match=r"no metric 'recall'; .* add it to the task's `metric_names`"):
        read([str(recipe), "--eval.best_metric", "recall"])


def test_a_run_with_a_task_and_a_metric_of_its_own_from_another_folder(project, recipe, tmp_path):
    run = train(recipe, tmp_path / "run")  # from the repository's root
    assert {"agreement", "loss"} <= run.events("eval")[-1].keys()
    assert "source_hash" in (tmp_path / "run" / "config.yaml").read_text()
    (project / "wording.py").write_text("def lower(text):\n    return text.upper()\n")
    again = launch(recipe, tmp_path / "run")
    assert (again.exit_code, again.stderr.count("\n")) == (2, 1), again.stderr
    assert "a finished run with another task.source_hash" in again.stderr


@pytest.mark.slow
@pytest.mark.distributed
def test_ranks_and_workers_have_the_user_s_task(recipe, tmp_path):
    rows = [{"text": f"Profit {i}", "label": ("up", "down")[i % 2]} for i in range(3000)]  # several parts, so workers
    (tmp_path / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ("--data.train", str(tmp_path / "many.jsonl"))
    one = train(recipe, tmp_path / "one", "python", *data)
    two = train(recipe, tmp_path / "two", "ddp", *data, "--data.cache_dir", str(tmp_path / "cache"))
    digests = [[step["sample_digest"] for step in run.events("train")] for run in (one, two)]
    assert digests[0] == digests[1]
    assert len(set(digests[0])) == 3


def test_a_mistake_in_the_user_s_code_ends_the_launch_with_one_message(recipe, project, tmp_path):
    (project / "shouted.py").write_text("from onecurve.tasks.base import Nothing\n")
    run = launch(recipe, tmp_path / "run")
    assert (run.exit_code, run.stderr.count("\n")) == (2, 1), run.stderr
    assert "shouted.py, line 1: ImportError" in run.stderr
    assert not (tmp_path / "run").exists()
