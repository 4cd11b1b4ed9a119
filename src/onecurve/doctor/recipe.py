"""Checks of one recipe: that it is valid, that its files exist on every machine, and that its output fits the disk."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from onecurve.checkpoint import Retention, forecast
from onecurve.config import Recipe, path_of
from onecurve.data.finding import is_local
from onecurve.data.formats import format_of
from onecurve.doctor.findings import Finding, Patient
from onecurve.errors import NothingToDo, UserError
from onecurve.planning.disk_forecast import moments_per_parameter
from onecurve.preflight import read


def check_recipe(patient: Patient) -> Iterator[Finding]:
    """Check the recipe as train.py does before it loads anything, then its files and its room."""
    if not patient.recipe:
        return
    try:
        checked = read(patient.recipe)
        recipe = checked.recipe
        checked.directory.check(recipe.train.resume, checked.resolved)
        yield Finding("recipe", "valid")
    except NothingToDo as reason:
        yield Finding("recipe", str(reason))
        return
    except UserError as error:
        yield Finding("recipe", str(error), "failure")
        return
    yield from _check_files(recipe)
    yield from _check_room(recipe, patient.folder)


def _check_files(recipe: Recipe) -> Iterator[Finding]:
    model = {"model.path": recipe.model.path, "model.tokenizer": recipe.model.tokenizer}
    data = {"data.train": recipe.data.train, "data.eval": recipe.data.eval, "data.test": recipe.data.test}
    values = [(key, path) for name, value in (model | data).items() for key, path in _each(name, value)]
    for key, path in values:
        if Path(path).expanduser().exists() or (key.startswith("data.") and is_local(path)):
            yield Finding(key, path)
        elif _looks_local(key, path):
            yield Finding(key, f"{path} does not exist", "failure", "Copy it to a disk that all machines share.")
        else:
            yield Finding(key, f"{path} is not a local path, so it is taken as a hub name")


def _each(key: str, value: Any) -> list[tuple[str, str]]:
    """Return the paths in a value, of named sources and sets too, each with its key."""
    if isinstance(value, dict):
        return [found for name, one in value.items() for found in _each(f"{key}.{name}", path_of(one))]
    return [(key, path) for path in (value if isinstance(value, list) else [value] if value else [])]


def _looks_local(key: str, path: str) -> bool:
    has_format = key.startswith("data.") and format_of(Path(path)) is not None
    return has_format or path.count("/") > 1 or path.startswith((".", "~", "/"))


def _check_room(recipe: Recipe, folder: Path) -> Iterator[Finding]:
    """Say what the run writes at most, where every weight is trained and the weights lie here; train.py measures it."""
    parameters = _num_parameters(Path(recipe.model.path).expanduser()) if recipe.peft is None else 0
    if not parameters:
        return
    best = bool(recipe.eval.best_metric)
    section, copies = recipe.checkpoint, 1 + moments_per_parameter(recipe.optim) + recipe.num_best
    retention = Retention(section.keep, section.keep_every, best, tuple(section.also))
    saves = _saves(recipe)
    kept, free = retention.most(saves), shutil.disk_usage(folder).free
    weights = parameters * (2 if recipe.optim.rounding else 4)
    checkpoint, model = round(weights * copies), weights * (1 + best)
    short = forecast(checkpoint if kept else 0, kept, free, model, one_more=len(saves) > kept)
    told = f"{kept} checkpoint{'s' * (kept != 1)} of {checkpoint / 1e9:.3f} GB and a model of {model / 1e9:.3f} GB"
    advice = "Free disk space, lower checkpoint.keep, or set checkpoint.every to null." if short else ""
    yield Finding("needs", short or f"{told}, for {parameters:,} parameters", "failure" if short else "ok", advice)


def _saves(recipe: Recipe) -> list[int]:
    every, last, stop = recipe.checkpoint.every, recipe.train.max_steps, recipe.train.stop_after
    if not every:
        return ([stop] if stop else []) + ([] if every is None else [last or (stop or 0) + 1])
    # Without the data the number of steps is not known: then as many as are kept for their newness
    return list(range(every, (last or every * (recipe.checkpoint.keep + 1)) + every, every))


def _num_parameters(folder: Path) -> int:
    total = 0
    for path in folder.glob("*.safetensors") if folder.is_dir() else ():
        try:
            with safe_open(path, framework="np") as file:
                for name in file.keys():
                    count = 1
                    for length in file.get_slice(name).get_shape():
                        count *= length
                    total += count
        except (OSError, SafetensorError):
            return 0
    return total
