"""How many bytes a run will write, and whether they fit on the disk; known before the first step."""

import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from onecurve.adapters.buffers import adapter_buffers
from onecurve.checkpoint import Retention, forecast
from onecurve.checkpoint.folders import BAD, SUPERSEDED, folder_name
from onecurve.checkpoint.folders import steps as stored_steps
from onecurve.config import OptimSection, Recipe
from onecurve.errors import LaunchError
from onecurve.machine.memory import spelt
from onecurve.optim import build_optimizer
from onecurve.rollouts.records import most_bytes
from onecurve.strategies.base import Strategy, is_left_out, is_trained
from onecurve.tasks.base import RollsOut, Task


def moments_per_parameter(section: OptimSection) -> float:
    """Return how many bytes an optimizer keeps for each one of what it trains, read off a step on a small matrix."""
    dtype = torch.bfloat16 if section.rounding else torch.float32
    layer = nn.Linear(256, 256, bias=False, dtype=dtype)
    with torch.enable_grad():
        layer(torch.ones(1, 256, dtype=dtype)).sum().backward()
    optimizer = build_optimizer(layer, section)
    optimizer.step()
    kept = sum(v.nbytes for v in optimizer.state[layer.weight].values() if isinstance(v, torch.Tensor) and v.dim())
    return kept / layer.weight.nbytes


def checkpoint_bytes(strategy: Strategy, recipe: Recipe, accelerator: Accelerator) -> int:
    """Return what one checkpoint takes on all ranks together: parameters, moments, averages, and the best weights."""
    held = sum(window.view.nbytes for window in strategy.windows(once=True) if window.key == "param")
    parameters = accelerator.reduce(torch.tensor(held, dtype=torch.int64, device=accelerator.device), "sum")
    copies = 1 + moments_per_parameter(recipe.optim) + recipe.num_best
    copies += recipe.regularization.copies * (2 if recipe.optim.rounding else 1)  # in float32
    return int(int(parameters) * copies) + _buffer_bytes(strategy.unwrapped())


def model_bytes(model: Any, recipe: Recipe) -> int:
    """Return what the final model takes: with PEFT what is trained, else everything; twice where the best is kept.

    A base whose files have other shapes than the model is saved beside its adapter.
    """
    whole = recipe.peft is None or getattr(model, "has_other_shapes", False)
    parameters = [p for p in model.parameters() if is_trained(p) or is_left_out(p) or whole]
    num_bytes = sum((getattr(p, "ds_numel", None) or p.numel()) * p.element_size() for p in parameters)
    return (num_bytes + _buffer_bytes(model)) * (2 if recipe.eval.best_metric else 1)


def record_bytes(task: Task, recipe: Recipe) -> int:
    """Return what the completions of a step take at most, once recorded; 0 of a task that draws none."""
    if not isinstance(task, RollsOut):
        return 0
    return most_bytes(task.drawing(training=True)["max_new_tokens"], recipe.train.global_batch_size, task.has_reference)


def _buffer_bytes(model: nn.Module) -> int:
    return sum(buffer.nbytes for _, buffer in adapter_buffers(model))


def require_room(
    root: Path,
    num_bytes: int,
    final_model: int,
    keep: Retention,
    steps: list[int],
    after: int = 0,
    records: int = 0,
) -> None:
    """Check that what a run will write fits on the disk.

    Args:
        root: The folder of the checkpoints; it need not be there yet.
        num_bytes: Of one checkpoint.
        final_model: Bytes written at the end.
        keep: What stays of the checkpoints.
        steps: After which they are written.
        after: The step that the run continues after: later checkpoints are set aside.
        records: Bytes of the completions that are still to be recorded, at most.

    Raises:
        LaunchError: It does not fit.
    """
    existing = next(folder for folder in (root, *root.absolute().parents) if folder.is_dir())
    deleted_in_time = [folder_name(step) for step in stored_steps(root) if step <= after and not keep.forever(step)]
    present = sum(_folder_bytes(root / name) for name in deleted_in_time)
    free = shutil.disk_usage(existing).free
    kept = keep.most(steps)
    if short := forecast(num_bytes if steps else 0, kept, free, final_model, present, len(steps) > kept, records):
        raise LaunchError(
            f"There is not enough disk space for the run: {short}",
            where="output_dir",
            fix=f"Free disk space, lower checkpoint.keep, choose another disk, or set checkpoint.every to null (none)."
            f"{' Fewer train.max_steps, or a lower task.max_completion_length, record less.' * bool(records)}"
            f"{_set_aside(root)}",
        )


def _folder_bytes(folder: Path) -> int:
    files = folder.iterdir() if folder.is_dir() and not folder.is_symlink() else ()  # a link's are on another disk
    return sum(file.stat().st_size for file in files if file.is_file())


def _set_aside(root: Path) -> str:
    """Name the folders beside the checkpoints that no run needs any more."""
    found = [
        entry for entry in sorted(root.glob("step-*.*")) if any(suffix in entry.name for suffix in (BAD, SUPERSEDED))
    ]
    if not found:
        return ""
    names, size = ", ".join(entry.name for entry in found), spelt(sum(map(_folder_bytes, found)))
    return f" {len(found)} folders set aside in {root} hold {size} and can be deleted: {names}."
