"""Start a project: a folder with a commented recipe, launch files and a small data sample."""

import argparse
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from onecurve.errors import ConfigError

EPILOG = """
The recipe trains as it is, on sample rows with a tiny randomly initialised model, to show that everything works; it
learns little. Replace data/ with your own data, and set a pretrained model's folder or hub name in the recipe or with
--model.
"""
_HEAD = """# Paths are relative to the working directory: train in this folder with onecurve train recipe.yaml
# All other keys, with their defaults: onecurve train --keys. Each can be set on the command line: --optim.lr 1e-4
"""
_LAUNCH_FILES = ("accelerate_configs", "ds_configs")
_TINY_MODEL = "recipes/tiny-llama"
_ROWS, _EVAL_ROWS = 24, 8
_PNG = b"\x89PNG"
_START = {
    "seed": 0,
    "model": {"init": "pretrained"},
    "optim": {"lr": 1e-4},
    "train": {"global_batch_size": 8, "micro_batch_size": 4, "mixed_precision": "auto"},
    "checkpoint": {"every": 0},
}
"""Where the task's recipe in recipes/ does not say otherwise, or there is none."""
_FOR_FEW_ROWS = {"optim": {"warmup_steps": 2}, "train": {"epochs": 20}, "eval": {"every": 10}}
"""Whatever that recipe says."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.epilog = EPILOG
    parser.add_argument("folder", metavar="FOLDER", help="a new or empty folder")
    parser.add_argument(
        "--task",
        default="text_classification",
        metavar="NAME",
        help="text_classification (default), another task, or one of your own (my_file.py:Task)",
    )
    parser.add_argument("--model", metavar="PATH", help="a pretrained model's folder or hub name")


def run(arguments: argparse.Namespace) -> int:
    """Write the folder and say how to go on."""
    from onecurve.config import BY_SPLIT, TaskSection
    from onecurve.config.commented import commented_recipe
    from onecurve.machine import files
    from onecurve.tasks import find_task, load_task

    task, folder = find_task(arguments.task), Path(arguments.folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{str(folder)!r} is not empty.", fix="Name a new folder.")
    template = _read(files.root() / "recipes" / f"{arguments.task}.yaml")
    # A task's columns may depend on its settings
    reader = load_task(TaskSection(**template["task"])) if template.get("task") else task
    splits = _sample(reader, template, files.root())
    tiny = template.get("model", {}).get("path", "")
    tiny = tiny if (files.root() / tiny).is_dir() and tiny.startswith("recipes/") else _TINY_MODEL
    values = _merge(_merge(_START, template), _merge(_FOR_FEW_ROWS, _chosen(arguments, Path(tiny).name)))
    values["data"] |= {"columns": {name: name for name in splits["train"][0]}}
    for key in ("data.test", "train.max_steps", *BY_SPLIT):  # the sample is JSON lines
        section, _, name = key.partition(".")
        values[section].pop(name, None)
    tokenizer = values["model"].pop("tokenizer", "")  # of the tiny model; a pretrained one brings its own
    if tokenizer and not arguments.model:
        values["model"]["tokenizer"] = Path(tokenizer).name
    recipe = commented_recipe(values, task.Settings, _notes(reader, arguments.model))

    (folder / "data").mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(f"{_HEAD}\n{recipe}", encoding="utf-8")
    for name, rows in splits.items():
        rows = [_with_files(row, f"{name}-{number:02d}", folder / "data") for number, row in enumerate(rows)]
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / "data" / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    for source in (source.rpartition(":")[0] for source in values["task"].get("rewards", ())):
        (folder / source).parent.mkdir(exist_ok=True)
        shutil.copyfile(files.root() / "recipes" / source, folder / source)
    copied = [*_LAUNCH_FILES, *([] if arguments.model else filter(None, [tiny, tokenizer]))]
    for name in copied:
        shutil.copytree(files.root() / name, folder / Path(name).name)
    print(f"{folder} has recipe.yaml, data/, {', '.join(f'{Path(name).name}/' for name in copied)}. Now:")  # noqa: T201
    print(f"  cd {folder}\n  onecurve train recipe.yaml\n  onecurve train recipe.yaml --launch ddp")  # noqa: T201
    if splits["train"] == splits["eval"]:
        print("data/ holds placeholders, since this task ships no sample: replace them before you train.")  # noqa: T201
    return 0


def _read(path: Path) -> dict[str, Any]:
    from onecurve.config import read_yaml

    return read_yaml(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _chosen(arguments: argparse.Namespace, tiny: str) -> dict[str, Any]:
    """Return what this project has in place of the template's."""
    place, colon, attribute = arguments.task.rpartition(":")
    name = f"{os.path.relpath(place, arguments.folder)}:{attribute}" if place.endswith(".py") else arguments.task
    return {
        "output_dir": f"runs/{(attribute if colon else name).lower()}",
        "task": {"name": name},
        "model": {"path": arguments.model or tiny, "init": "pretrained" if arguments.model else "random"},
        "data": {"train": "data/train.jsonl", "eval": "data/eval.jsonl"},
    }


def _notes(task: Any, model: str | None) -> dict[str, str]:
    columns = "; ".join(f"{name}: {what}" for name, what in task.columns.items())
    return {
        "task.name": (task.__doc__ or "").strip().partition("\n")[0],
        "model.path": "" if model else "A tiny example: replace it with a pretrained one, and set init: pretrained.",
        "data.columns": f"{columns}. A ? marks optional columns.",
    }


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**base, **over}
    for name in base.keys() & over.keys():
        if isinstance(base[name], Mapping) and isinstance(over[name], Mapping):
            merged[name] = _merge(base[name], over[name])
    return merged


def _sample(task: Any, template: Mapping[str, Any], root: Path) -> dict[str, list[dict[str, Any]]]:
    """Return rows by the task's own column names: what the task ships, or those of its recipe, or placeholders.

    A task's `sample` is a list of rows, of which the last quarter is the dev split.
    """
    if rows := list(getattr(task, "sample", ())):
        cut = len(rows) - max(1, len(rows) // 4)
        return {"train": rows[:cut], "eval": rows[cut:]}
    data = template.get("data", {})
    names = {column.removesuffix("?"): column.removesuffix("?") for column in task.columns} | data.get("columns", {})
    paths = {name: root / data.get(name, "") for name in ("train", "eval")}
    if all(path.suffix == ".jsonl" for path in paths.values()):
        counts = {"train": _ROWS, "eval": _EVAL_ROWS}
        return {name: list(islice(_renamed(path, names), counts[name])) for name, path in paths.items()}
    columns = {name: what for name, what in task.columns.items() if not name.endswith("?")} or task.columns
    placeholder = {name.removesuffix("?"): what for name, what in columns.items()}
    return {name: [placeholder] * _EVAL_ROWS for name in paths}


def _with_files(row: Mapping[str, Any], name: str, folder: Path) -> dict[str, Any]:
    """Write what a row holds as bytes to files of its own, and return it with their names."""
    written = dict(row)
    for column, content in row.items():
        if isinstance(content, bytes):
            written[column] = f"{column}s/{name}{'.png' if content.startswith(_PNG) else '.wav'}"
            (folder / f"{column}s").mkdir(exist_ok=True)
            (folder / written[column]).write_bytes(content)
    return written


def _renamed(path: Path, names: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    with open(path, encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            yield {ours: row[theirs] for ours, theirs in names.items() if theirs in row}
