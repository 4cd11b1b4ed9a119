"""Builds a run's objective: the task's loss, wrapped in the cures that the recipe asks for."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from onecurve.config import Recipe
from onecurve.content.mixing import Mixing
from onecurve.regularization.base import Criterion, Loss, Objective, plain
from onecurve.regularization.class_weights import class_weights
from onecurve.regularization.criterion import OfAnyLabels, OfOneLabel, OfTokens
from onecurve.regularization.fgm import Fgm
from onecurve.regularization.neftune import Neftune
from onecurve.regularization.r_drop import RDrop
from onecurve.tasks.base import Classifies, Survey, Task

if TYPE_CHECKING:
    from torch import nn

Counts = Callable[[], np.ndarray]
_NUMBERS = "label_smoothing focal_gamma r_drop fgm neftune_alpha mixup_alpha cutmix_alpha".split()


def build_objective(task: Task, recipe: Recipe, survey: Survey, counts: Counts) -> Objective:
    """Return what a run minimises; without cures, the task's own loss.

    Args:
        task: The task; `check_regularization` has passed.
        recipe: The run.
        survey: The label names.
        counts: Returns the items of the training split with each label; called for class weights only.

    Raises:
        ConfigError: Class weights for a label that is not known.
    """
    section = recipe.regularization
    weights = class_weights(section.class_weights, survey.labels, counts()) if section.class_weights else []
    loss = _innermost(task, recipe, weights)
    if section.neftune_alpha:
        loss = Neftune(loss, section.neftune_alpha)
    if section.fgm:
        loss = Fgm(loss, section.fgm)
    mixes = section.mixup_alpha or section.cutmix_alpha
    return Objective(loss, section.sweeps, Mixing(section.mixup_alpha, section.cutmix_alpha) if mixes else None)


def _innermost(task: Task, recipe: Recipe, weights: list[float]) -> Loss:
    section = recipe.regularization
    asked = section.label_smoothing or section.focal_gamma or weights or section.r_drop
    # The layer that computes a chunk's loss smooths its targets itself
    if not asked or recipe.train.logits == "chunked":
        return plain(task)
    assert isinstance(task, Classifies), "checked before anything was loaded"
    criterion = _criterion(task, section.label_smoothing or 0.0, section.focal_gamma or 0.0, weights)
    if section.r_drop:
        return RDrop(task, criterion, section.r_drop)
    return lambda one: criterion(*task.classified(one.forward(one.batch), one.batch))


def _criterion(task: Classifies, smoothing: float, gamma: float, weights: list[float]) -> Criterion:
    if task.classes == "token":
        return OfTokens(smoothing)
    return OfAnyLabels(gamma) if task.classes == "labels" else OfOneLabel(smoothing, gamma, weights)


def describe(recipe: Recipe, model: "nn.Module", survey: Survey, counts: Counts) -> Iterator[str]:
    """Yield the summary's lines on what the recipe regularizes with."""
    section = recipe.regularization
    told = [f"{name} {getattr(section, name):g}" for name in _NUMBERS if getattr(section, name) is not None]
    if told:
        yield f"against   overfitting: {', '.join(told)}"
    if remark := getattr(model, "dropout_remark", ""):
        yield f"dropout   {section.dropout:g} instead of {remark}"
    if section.on_texts:
        told = [f"{name} {getattr(section, name)}" for name in section.on_texts]
        share = f" (share {section.synonym_share:g})" if section.synonyms else ""
        yield f"texts     changed in training: {', '.join(told)}{share}"
    if section.class_weights:
        weights = class_weights(section.class_weights, survey.labels, counts())
        yield "weights   " + ", ".join(f"{name} {w:.3g}" for name, w in zip(survey.labels, weights, strict=True))
