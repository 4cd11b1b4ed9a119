"""Batch normalisation: statistics that stay, or that each step moves in the order of its micro-batches.

A layer that normalises by the statistics of what it is given makes an example's loss depend on which others it is
computed with. Frozen, it uses those it was loaded with, and another cut of a step gives the same gradient.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from onecurve.errors import ConfigError
from onecurve.strategies.base import move_buffers, moving_buffers


def settle_batch_norm(model: Any, what: str) -> None:
    """Have a model's layers of batch normalisation do what `model.batch_norm` says.

    Raises:
        ConfigError: They are to be frozen, and one has no statistics of its own; or to be trained, and one looks at the
            micro-batches of all ranks.
    """
    layers: list[tuple[str, Any]] = [
        (name, module) for name, module in model.named_modules() if isinstance(module, _BatchNorm)
    ]
    for name, module in layers:
        module.register_forward_hook(_lay_out_gradient)
        if what == "train" and isinstance(module, nn.SyncBatchNorm):
            raise ConfigError(
                f"{name} normalises by the micro-batches of all ranks: the curve would depend on their number.",
                where="model.batch_norm",
                fix="Set it to frozen, or build the model with nn.BatchNorm.",
            )
        if what == "train":
            move_buffers(module)
            module.track_running_stats = False  # moved by `Statistics` alone: not by trials, nor where ranks idle
        elif module.running_mean is None:
            raise ConfigError(
                f"{name} has no running statistics to normalise by, so that it depends on how a step is cut.",
                where="model.batch_norm",
                fix="Set it to train, and expect another curve from another micro-batch size.",
            )
        else:
            module.train = partial(_stay, module)
            module.eval()
    model.batch_norm_remark = _remark([module for _, module in layers], what)


def check_adapted(model: Any) -> None:
    """Check that an adapter's folder holds all statistics that training moves.

    Raises:
        ConfigError: The base, of which an adapter's folder holds nothing, has some.
    """
    kept = ".modules_to_save."
    lost = [name for name, _ in moving_buffers(model) if kept not in name] if hasattr(model, "peft_config") else []
    if lost:
        layer = lost[0].rpartition(".")[0].removeprefix("base_model.model.")
        raise ConfigError(
            f"train moves the statistics of {layer}, which the adapter's folder would not hold.",
            where="model.batch_norm",
            fix="Set it to frozen, or name the layers of batch normalisation in peft.modules_to_save.",
        )


def _remark(layers: list[Any], what: str) -> str:
    if what == "train" and layers:
        return (
            f"batch norm {len(layers)} layers normalise by each micro-batch (model.batch_norm train): the curve "
            "depends on train.micro_batch_size"
        )
    untrained = sum(bool((m.running_mean == 0).all()) and bool((m.running_var == 1).all()) for m in layers)
    if untrained:
        return (
            f"batch norm {untrained} layers are frozen with statistics that no training has moved (mean 0, variance "
            "1), so that they do not normalise: set model.batch_norm to train, or load trained weights"
        )
    return ""


def statistics_of(model: Any) -> "Statistics":
    """Return the statistics that a model's training moves; the same object each time."""
    if not hasattr(model, "batch_statistics"):
        model.batch_statistics = Statistics(model)
    return model.batch_statistics


def _lay_out_gradient(module: nn.Module, _: Any, output: Tensor) -> None:
    """Have the gradient of a single example's output come in laid out as usual.

    Where it comes from a transposed view, as behind `flatten(2).transpose(1, 2)`, torch 2.13 takes it for channels last
    by its strides and computes wrong gradients on CPUs, in training and in evaluation mode.
    """
    if output.requires_grad and len(output) == 1:
        output.register_hook(Tensor.contiguous)


def _stay(module: nn.Module, mode: bool = True) -> nn.Module:
    return nn.Module.train(module, False)


class Statistics:
    """The running statistics of a model's layers that train: moved once a step, alike on all ranks.

    Each micro-batch's own are noted while it runs; after the update all ranks apply those of all micro-batches in the
    order of the plan. So they depend on the cut, as the curve does then, but not on how many ranks there are.
    """

    def __init__(self, model: nn.Module) -> None:
        moved = [m for m in model.modules() if isinstance(m, _BatchNorm) and not m.track_running_stats]
        self.layers: list[Any] = [m for m in moved if m.running_mean is not None]
        self.sizes = [size for m in self.layers for size in (m.num_features, m.num_features, 1)]
        self.seen: list[Tensor] = []
        """Of each pass of this rank: means, variances and the number of calls, float32 [sum of 2 features + 1]."""

    @contextmanager
    def observed(self, counts: bool) -> Iterator[None]:
        """Note the statistics of the forward pass inside; of one that does not count, none."""
        if not counts:
            yield
            self.seen += [torch.zeros(sum(self.sizes), device=m.running_mean.device) for m in self.layers[:1]]
            return
        kept = [(m.running_mean, m.running_var, m.num_batches_tracked, m.momentum) for m in self.layers]
        for module in self.layers:
            module.running_mean = torch.zeros_like(module.running_mean)
            module.running_var = torch.zeros_like(module.running_var)
            module.num_batches_tracked = torch.zeros_like(module.running_mean[0], dtype=torch.long)
            module.momentum, module.track_running_stats = 1.0, True
        try:
            yield
            of_layers = [torch.cat((m.running_mean, m.running_var, m.num_batches_tracked[None])) for m in self.layers]
            self.seen += [torch.cat(of_layers).float()] if of_layers else []
        finally:
            for module, before in zip(self.layers, kept, strict=True):
                module.running_mean, module.running_var, module.num_batches_tracked, module.momentum = before
                module.track_running_stats = False

    @torch.no_grad()
    def move(self, accelerator: Accelerator, num_micro_batches: int) -> None:
        """Apply what all ranks noted in a step, in the plan's order: pass i of rank r is at i x ranks + r."""
        if not self.layers:
            return
        of_ranks: Any = accelerator.gather(torch.stack(self.seen))
        rows = of_ranks.unflatten(0, (accelerator.num_processes, -1)).transpose(0, 1).flatten(0, 1)[:num_micro_batches]
        self.seen = []
        for row in rows:
            parts = iter(row.split(self.sizes))
            for module, mean, variance, calls in zip(self.layers, parts, parts, parts, strict=True):
                self._apply(module, mean, variance, calls)

    def _apply(self, module: Any, mean: Tensor, variance: Tensor, calls: Tensor) -> None:
        ran = (calls > 0).to(mean.dtype)  # a layer that the pass did not reach keeps what it has
        module.num_batches_tracked += ran.long().squeeze()
        share = module.momentum if module.momentum is not None else 1 / module.num_batches_tracked.clamp_min(1)
        module.running_mean.lerp_(mean.to(module.running_mean.dtype), share * ran)
        module.running_var.lerp_(variance.to(module.running_var.dtype), share * ran)

    def forget(self) -> None:
        """Drop what was noted for a step that is not made."""
        self.seen = []
