"""Converts an onecurve checkpoint to the model folder that its run would have written at that step."""

from functools import partial
from pathlib import Path
from typing import Any

import torch

from onecurve.checkpoint import TensorWindow, load, read_manifest, read_state, verify
from onecurve.checkpoint.adapter_buffers import stored_buffers
from onecurve.config import Recipe, curve_settings, load_recipe, resolve
from onecurve.conversion.merging import merged
from onecurve.conversion.target import Wanted
from onecurve.errors import ConfigError
from onecurve.export.card import TrainedOn, model_card
from onecurve.export.model_folder import save_alone
from onecurve.model.generation import settle_generation
from onecurve.model.loading import load_model
from onecurve.model.reading import Reading
from onecurve.model.remote_code import check_flag, told_by_flag
from onecurve.model.task_file import TaskFile
from onecurve.strategies.base import moving_buffers
from onecurve.tasks import load_task, resolve_task
from onecurve.tasks.base import Survey, Task

_SAME = ("task", "peft", "seed")
"""What of a recipe a checkpoint's weights mean nothing without; the model may have moved."""


def convert_checkpoint(folder: Path, wanted: Wanted) -> int:
    """Write a checkpoint's weights as a model folder; return the step they are of.

    Raises:
        UserError: The checkpoint is damaged or has no best weights, its run's config or base model is not there, or
            is another's.
    """
    if problems := verify(folder):
        raise ConfigError(f"{folder} is damaged: {'; '.join(problems)}.", fix="Convert another step.")
    state, key = _read_state(folder), "best" if wanted.best else "param"
    if not any(name.startswith(f"{key}/") for name in read_manifest(folder).tensors):
        raise ConfigError(
            f"{folder} keeps no best weights: its run has no eval.best_metric, or had not scored yet.",
            fix="Convert its own with --which step.",
        )
    path, recipe, task = _recipe(folder, wanted, state)
    with told_by_flag():
        check_flag(recipe.model, wanted.trust_remote_code)
    if wanted.merge:
        recipe = _in_float32(recipe)
    asked = recipe.train.mixed_precision
    reading = Reading(recipe.model, recipe.data.max_length, task.auto_processor)
    try:
        survey = Survey(**state["survey"])
        model = load_model(recipe, task, reading.config, survey, "no" if asked in ("auto", "fp8") else asked)
        processor = reading.processor
    except ConfigError as error:
        raise ConfigError(
            error.what, where=f"{path}: {error.where}", fix=error.fix or f"Looked from {Path.cwd()}."
        ) from None
    _fill(model, folder, key, state.get("left_out", []))
    settle_generation(model, task, processor)
    if wanted.merge:
        model = merged(model)
    step = state["best"]["step"] if wanted.best else state["step"]
    scores = {"eval": state["best"]["scores"]} if wanted.best else {}
    data = TrainedOn(survey.labels, state["num_examples"], state["curve"]["data"])
    card = partial(model_card, recipe, data, path.read_text(encoding="utf-8"), step, scores)
    told = TaskFile.of(recipe.task.name, task, survey, recipe.data.columns, reading.max_length)
    save_alone(wanted.target, model, processor, card, told)
    return step


def _read_state(folder: Path) -> dict[str, Any]:
    state = read_state(folder)
    for key in ("survey", "num_examples", "curve", "best"):
        if key not in state:
            raise ConfigError(
                f"{folder} has no {key}: another version of onecurve wrote it.",
                fix="Resume the run to get a new checkpoint.",
            )
    return state


def _recipe(folder: Path, wanted: Wanted, state: dict[str, Any]) -> tuple[Path, Recipe, Task]:
    """Find the run that wrote a checkpoint: checkpoints/step-N lies in its directory."""
    path = Path(wanted.config) if wanted.config else folder.resolve().parent.parent / "config.yaml"
    if not path.is_file():
        raise ConfigError(
            f"no config.yaml of the run that wrote {folder}: looked for {path}.", fix="Name it with --config."
        )
    recipe, _ = load_recipe([str(path)])
    task = load_task(recipe.task)
    here = curve_settings(resolve(recipe, {"task": resolve_task(task)}))
    saved: dict[str, Any] = state["curve"]
    for key in sorted(saved.keys() | here.keys()):
        if key.partition(".")[0] in _SAME and saved.get(key) != here.get(key):
            raise ConfigError(
                f"is not the config of the run that wrote {folder}: {key} is {here.get(key)!r} and was "
                f"{saved.get(key)!r}.",
                where=str(path),
                fix="Name the right one with --config.",
            )
    if wanted.merge and recipe.peft is None:
        raise ConfigError(f"{folder} is of a fully trained model: there is nothing to merge.", fix="Leave out --merge.")
    # What was trained on a quantised base is the same on the base as it is stored, which is what it is merged into
    stored = recipe.model.model_copy(update={"quantization": None})
    return path, recipe.model_copy(update={"model": stored}), task


def _in_float32(recipe: Recipe) -> Recipe:
    return recipe.model_copy(
        update={
            "model": recipe.model.model_copy(update={"dtype": "float32"}),
            "train": recipe.train.model_copy(update={"mixed_precision": "no"}),
        }
    )


@torch.no_grad()
def _fill(model: Any, folder: Path, key: str, left_out: list[str]) -> None:
    """Put a checkpoint's values into the trained parameters and the adapter's buffers.

    Parameters that the loss does not reach stay as loaded.
    """
    pieces = [
        TensorWindow(f"{key}/{name}", p.data.view(-1), 0, p.numel(), tuple(p.shape))
        for name, p in model.named_parameters()
        if p.requires_grad and name not in left_out
    ]
    kind = "buffer" if key == "param" else key
    moving = [
        TensorWindow(f"{kind}/{name}", b.view(-1), 0, b.numel(), tuple(b.shape)) for name, b in moving_buffers(model)
    ]
    pieces += moving if kind == key else []
    tensors = read_manifest(folder).tensors
    stored = {name for name in tensors if name.startswith(f"{key}/")}
    if differing := sorted(stored ^ {piece.tensor for piece in pieces}):
        raise ConfigError(
            f"{folder} and the model that its run describes do not have the same parameters: {', '.join(differing[:5])}"
            f" ({len(differing)} in all)."
        )
    load(folder, [*pieces, *(moving if kind != key else ()), *stored_buffers(model, tensors)])
