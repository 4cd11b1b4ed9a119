"""The text of docs/tasks.md: every task of the folder, as its own code and tests describe it."""

import inspect
import re
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from textwrap import fill
from typing import Any, Literal, get_args, get_origin

from onecurve.config.manual import meaning
from onecurve.machine.optional_packages import _DISTRIBUTIONS
from onecurve.tasks import find_task, task_names
from onecurve.tasks.base import Annotates, Asked, Generates, Recognises, Transforms
from tests.tasks.contract import all_cases
from tests.zoo.table import KINDS

ROOT = Path(__file__).parents[2]
HEAD = """# Tasks

Made by `python -m tests.tasks docs/tasks.md` from the tasks' own code and tests.

`task.name` names one; its settings are keys beside it. `data.columns` maps a task's columns to the file's. A metric is
what `eval.best_metric` may name. `onecurve train RECIPE --keys` lists all other keys.
"""


def tables() -> str:
    """Return the whole text."""
    parts = [HEAD, *_row(["task", "what it learns", "columns"]), *_row(["---"] * 3)]
    for name in task_names():
        kind = find_task(name)
        what = _paragraphs(kind)[0]
        parts += _row([f"[`{name}`](#{name})", what, ", ".join(f"`{column}`" for column in kind.columns)])
    parts += ["", "A column with `?` is optional."]
    for name in task_names():
        parts += ["", *_of_task(name, find_task(name))]
    return "\n".join(parts) + "\n"


def _of_task(name: str, kind: Any) -> Iterator[str]:
    yield f"## {name}"
    for paragraph in _paragraphs(kind):
        yield from ("", fill(paragraph, 120))
    yield from ("", *_row(["column", "what it holds"]), *_row(["---"] * 2))
    for column, what in kind.columns.items():
        medium = kind.media.get(column.removesuffix("?"))
        yield from _row([f"`{column}`", f"{what} ({medium} file)" if medium else what])
    settings = kind.Settings.model_fields
    yield from ("", *(_settings(settings) if settings else ["It has no settings of its own."]), "")
    yield from (f"- {about}: {told}" for about, told in _facts(name, kind) if told)


def _settings(fields: dict[str, Any]) -> Iterator[str]:
    yield from (*_row(["setting", "default", "meaning"]), *_row(["---"] * 3))
    for name, field in fields.items():
        default = "to be set" if field.is_required() else f"`{_plain(field.get_default(call_default_factory=True))}`"
        yield from _row([f"`task.{name}`", default, " ".join([meaning(field), *_choices(field.annotation)])])


def _choices(annotation: Any) -> Iterator[str]:
    """Tell the values of a setting that has a fixed set of them."""
    if get_origin(annotation) is Literal:
        yield f"One of {_codes(get_args(annotation))}."
    elif get_origin(annotation) is not dict:
        for part in get_args(annotation):
            yield from _choices(part)


def _plain(value: Any) -> str:
    """Return a value as a recipe writes it."""
    words = {None: "null", True: "true", False: "false", "\n": '"\\n"', "": '""'}
    return words[value] if isinstance(value, str | bool | None) and value in words else str(value)


def _facts(name: str, kind: Any) -> Iterator[tuple[str, str]]:
    task = _example(name, kind)
    yield "metrics", _codes(task.metric_names) + " (of an example)" * _needs(kind)
    yield "under other settings also", "" if _needs(kind) else _codes(_other_metrics(name, kind, task))
    yield "read by", f"`{task.auto_processor().__name__}`"
    yield "model", f"`{task.auto_model().__name__}`"
    yield "PEFT task type", f"`{task.peft_task_type}`" if task.peft_task_type else "none: no prompt learning"
    yield "also reads rows of", ", ".join(task.shapes) if isinstance(task, Recognises) else ""
    yield "each time an example is read", "it is decoded, augmented or masked anew" * isinstance(task, Transforms)
    yield "before step 1", "a frozen reference scores each example, once" * isinstance(task, Annotates)
    yield "`onecurve predict`", _prediction(kind, task)
    yield "needs", _packages(kind.packages)
    recipe = ROOT / "recipes" / f"{name}.yaml"
    yield "recipe", f"[recipes/{name}.yaml](../recipes/{name}.yaml)" if recipe.is_file() else ""
    yield "models tried", _models(name)


def _needs(kind: Any) -> bool:
    """Whether a task is nothing without settings."""
    return any(field.is_required() for field in kind.Settings.model_fields.values())


def _example(name: str, kind: Any) -> Any:
    """Return the task under its defaults; where a setting has none, as the first case of its tests has it."""
    if not _needs(kind):
        return kind(kind.Settings.model_construct())
    settings = next(case.settings for case in all_cases().values() if case.task == name)
    return kind(kind.Settings(**settings))


def _other_metrics(name: str, kind: Any, task: Any) -> list[str]:
    """Return the metrics that the task's test cases have besides those of its defaults."""
    settings = [case.settings for case in all_cases().values() if case.task == name]
    if "generate" in kind.Settings.model_fields:
        (one,) = get_args(kind.Settings.model_fields["metrics"].annotation)
        settings.append({"generate": {"max_new_tokens": 1}, "metrics": [*get_args(one)]})
    told = [metric for one in settings for metric in kind(kind.Settings(**one)).metric_names]
    return [*dict.fromkeys(metric for metric in told if metric not in task.metric_names)]


def _prediction(kind: Any, task: Any) -> str:
    if isinstance(task, Generates):
        return "writes text"
    if isinstance(task, Asked):
        return _paragraphs(kind.replies)[0].removeprefix("Return ").rstrip(".")
    return "" if type(task).answers is import_module("onecurve.tasks.base").Task.answers else "answers each row"


def _packages(packages: frozenset[str]) -> str:
    """Return the packages that a task imports beyond onecurve's own, and the extra that installs them."""
    if not packages:
        return ""
    import tomllib  # Python 3.11

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = {_DISTRIBUTIONS.get(name, name).replace("_", "-") for name in packages} - _names(project["dependencies"])
    extras = sorted(project["optional-dependencies"].items(), key=lambda pair: len(pair[1]))
    found = [extra for extra, lines in extras if needed <= _names(lines)]
    return f"{_codes(sorted(needed))}: extra `{found[0]}`" if found else _codes(sorted(needed))


def _names(requirements: Sequence[str]) -> set[str]:
    return {re.split(r"[<>=!~\[ ]", one)[0] for one in requirements}


def _models(name: str) -> str:
    tests = import_module(f"tests.tasks.test_{name}")
    told = [f"{len(families)} families ([models.md](models.md))" for task, families in KINDS.values() if task == name]
    told += getattr(tests, "MODELS", [])
    fixtures = {case.model.removeprefix("tiny_") for case in all_cases().values() if case.task == name}
    return ", ".join(told or sorted(f"a tiny {fixture}" for fixture in fixtures))


def _paragraphs(thing: Any) -> list[str]:
    """Return a docstring's paragraphs, each on one line."""
    return [" ".join(part.split()) for part in (inspect.getdoc(thing) or "").split("\n\n")]


def _codes(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _row(cells: list[str]) -> list[str]:
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"]
