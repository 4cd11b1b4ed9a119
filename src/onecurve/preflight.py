"""What can be known to be wrong with a run before anything heavy is imported."""

from dataclasses import dataclass
from pathlib import Path

from onecurve.config import Recipe, dump_recipe, load_recipe
from onecurve.errors import ConfigError
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
    config: str
    """The resolved recipe as YAML, each value with its source."""


def preflight(argv: list[str]) -> Checked:
    """Read the recipe and check it against its schema, its task, its optimizer, its launcher and its directory.

    Raises:
        UserError: Whatever is wrong first.
    """
    recipe, sources = load_recipe(argv)
    task = load_task(recipe.task)
    owned = {"task": task.settings.model_dump(mode="json"), "optim": check_optim(recipe.optim)}
    check_strategy(recipe)
    _check_checkpoints(recipe)
    directory = RunDirectory(Path(recipe.output_dir))
    directory.check(recipe.train.resume)
    return Checked(recipe, task, directory, dump_recipe(recipe, sources, owned))


def _check_checkpoints(recipe: Recipe) -> None:
    """Refuse what needs checkpoints while there are none: a key must never be ignored."""
    asked = {
        "train.resume": recipe.train.resume not in ("auto", "never"),
        "train.stop_after": recipe.train.stop_after is not None,
        "checkpoint.every": recipe.checkpoint.every > 0,
    }
    for key in (key for key, is_asked in asked.items() if is_asked):
        raise ConfigError("checkpoints cannot be written or resumed yet.", where=key, fix="Remove the key.")
