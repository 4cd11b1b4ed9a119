"""How many bytes a run will write, and whether they fit on the disk; known before the first step."""

import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from onecurve.adapters.buffers import adapter_buffers
from onecurve.checkpoint import Retention, forecast
from onecurve.config import OptimSection, Recipe
from onecurve.errors import LaunchError
from onecurve.optim import build_optimizer
from onecurve.strategies.base import Strategy, is_left_out, is_trained


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
    """Return what one checkpoint takes on all ranks together: parameters, moments, and the best weights so far."""
    held = sum(window.view.nbytes for window in strategy.windows(once=True) if window.key == "param")
    parameters = accelerator.reduce(torch.tensor(held, dtype=torch.int64, device=accelerator.device), "sum")
    copies = 1 + moments_per_parameter(recipe.optim) + bool(recipe.eval.best_metric)
    return int(int(parameters) * copies) + _buffer_bytes(strategy.unwrapped())


def model_bytes(model: Any, recipe: Recipe) -> int:
    """Return what the final model takes: with PEFT what is trained, else everything; twice where the best is kept."""
    parameters = [p for p in model.parameters() if is_trained(p) or is_left_out(p) or recipe.peft is None]
    num_bytes = sum((getattr(p, "ds_numel", None) or p.numel()) * p.element_size() for p in parameters)
    return (num_bytes + _buffer_bytes(model)) * (2 if recipe.eval.best_metric else 1)


def _buffer_bytes(model: nn.Module) -> int:
    return sum(buffer.nbytes for _, buffer in adapter_buffers(model))


def require_room(root: Path, num_bytes: int, final_model: int, keep: Retention, steps: list[int]) -> None:
    """Check that what a run will write fits on the disk.

    Args:
        root: The folder of the checkpoints; it need not be there yet.
        num_bytes: Of one checkpoint.
        final_model: Bytes written at the end.
        keep: What stays of the checkpoints.
        steps: After which they are written.

    Raises:
        LaunchError: It does not fit.
    """
    existing = next(folder for folder in (root, *root.absolute().parents) if folder.is_dir())
    present = sum(file.stat().st_size for file in root.glob("step-*/*") if file.is_file())
    free = shutil.disk_usage(existing).free
    kept = keep.most(steps)
    if short := forecast(num_bytes if steps else 0, kept, free, final_model, present, len(steps) > kept):
        raise LaunchError(
            f"There is not enough disk space for the run: {short}",
            where="output_dir",
            fix="Free disk space, lower checkpoint.keep, choose another disk, or set checkpoint.every to null (none).",
        )
