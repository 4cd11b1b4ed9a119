"""What can be known to be wrong with a run before anything heavy is imported."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onecurve.config import Recipe, dump_recipe, load_recipe, resolve
from onecurve.optim import check_optim
from onecurve.run_directory import RunDirectory
from onecurve.strategies import check_strategy
from onecurve.tasks import load_task
from onecurve.tasks.base import Task


@dataclass(frozen=True)
class Checked:
    """A recipe that can be meant, and what follows from it."""

    recipe: Recipe
    task: Task
    directory: RunDirectory
    resolved: dict[str, Any]
    """Every value of the recipe, the task's and the optimizer's own included."""
    config: str
    """The same as YAML, each value with its source."""


def preflight(argv: list[str]) -> Checked:
    """Read the recipe and check it against its schema, its task, its optimizer, its launcher and its directory.

    Raises:
        UserError: Whatever is wrong first.
        NothingToDo: The run is finished.
    """
    recipe, sources = load_recipe(argv)
    task = load_task(recipe.task)
    owned = {"task": task.settings.model_dump(mode="json"), "optim": check_optim(recipe.optim)}
    check_strategy(recipe)
    resolved = resolve(recipe, owned)
    directory = RunDirectory(Path(recipe.output_dir))
    directory.check(recipe.train.resume, resolved)
    return Checked(recipe, task, directory, resolved, dump_recipe(resolved, sources))
