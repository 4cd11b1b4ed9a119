"""Which cures suit which task and which other settings: known before anything heavy is imported."""

from typing import NoReturn

from onecurve.config import Recipe
from onecurve.errors import ConfigError
from onecurve.tasks.base import Annotates, Classifies, Mixes, Pools, Rewords, RollsOut, Task

_SUITS = {
    "label_smoothing": {"label", "token"},
    "focal_gamma": {"label", "labels"},
    "class_weights": {"label"},
    "r_drop": {"label", "labels", "token"},
}
"""Key -> what a task's models may predict."""
_WHAT = {
    "label": "one of several labels",
    "labels": "any number of labels",
    "token": "tokens of a vocabulary",
    None: "no classes under these settings",
}


def check_regularization(recipe: Recipe, task: Task) -> None:
    """Refuse cures that make no sense for a task or beside other settings.

    Raises:
        ConfigError: The first such.
    """
    section = recipe.regularization
    _check_criteria(recipe, task)
    for name in ("mixup_alpha", "cutmix_alpha"):
        if getattr(section, name) and not isinstance(task, Mixes):
            _refuse(name, f"mixes images, and {recipe.task.name} does not classify images")
    for name in section.on_texts:
        if not isinstance(task, Rewords):
            _refuse(name, f"changes the texts that a model reads, and those of {recipe.task.name} cannot change alone")
        if isinstance(task, Annotates):
            _refuse(
                name, f"changes texts anew in every pass, and in {recipe.task.name} the teacher reads each text once"
            )
    _check_embeddings(recipe, task)
    if section.r_drop and recipe.train.logits == "chunked":
        why = "compares whole distributions, of which train.logits chunked keeps none"
        _refuse("r_drop", why, "Set train.logits to whole.")


def _check_criteria(recipe: Recipe, task: Task) -> None:
    predicted = task.classes if isinstance(task, Classifies) else None
    for name, suited in _SUITS.items():
        if getattr(recipe.regularization, name) and predicted not in suited:
            if isinstance(task, Annotates) and predicted is None:
                _refuse(name, f"is another criterion, and the loss of {recipe.task.name} is its own")
            wanted = " or ".join(_WHAT[kind] for kind in _WHAT if kind in suited)
            _refuse(name, f"is for tasks that predict {wanted}; {recipe.task.name} predicts {_WHAT[predicted]}")


def _check_embeddings(recipe: Recipe, task: Task) -> None:
    for name in recipe.regularization.on_embeddings:
        if isinstance(task, Pools):
            _refuse(name, f"changes embeddings pass by pass, and {recipe.task.name} compares those of a whole step")
        if isinstance(task, RollsOut):
            _refuse(name, f"changes embeddings, and {recipe.task.name} learns what a model without that has drawn")
        if task.media:
            _refuse(name, f"changes token embeddings, and {recipe.task.name} reads no text")
        if recipe.train.packing == "on":
            why = "needs each example's embeddings apart, and train.packing joins examples in one row"
            _refuse(name, why, "Set train.packing to off.")


def _refuse(name: str, why: str, fix: str = "Remove it.") -> NoReturn:
    raise ConfigError(f"{why}.", where=f"regularization.{name}", fix=fix)
