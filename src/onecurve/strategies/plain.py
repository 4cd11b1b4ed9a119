"""One process, or DDP: every rank holds everything and gradients are averaged in the last pass."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from math import inf, isfinite
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from onecurve.strategies.base import Window, buffer_windows, is_left_out, is_trained, moving_buffers, no_gradient
from onecurve.strategies.precision import DTYPES, LossScale


class Plain:
    """Implements `Strategy`."""

    model: nn.Module
    optimizer: Optimizer
    norm: Tensor
    """The last one that `gradient_norm` returned."""

    def __init__(self, accelerator: Accelerator, precision: str, max_grad_norm: float) -> None:
        self.accelerator = accelerator
        self.precision, self.dtype = precision, DTYPES.get(precision)
        self.max_grad_norm = max_grad_norm or inf
        self.loss_scale = LossScale(precision == "fp16", accelerator.num_processes)
        self.before_update: Callable[[], None] = lambda: None
        self.after_update: Callable[[int], None] = lambda step: None

    def prepare(self, model: nn.Module, optimizer: Optimizer, num_passes: int, sometimes: Sequence[str] = ()) -> None:
        self.optimizer = optimizer
        self.parameters = [p for p in model.parameters() if is_trained(p)]
        for parameter in self.parameters:  # windows are runs of the flattened values
            parameter.data = parameter.data.contiguous()
        if sometimes and self.accelerator.num_processes > 1:
            # Searches the graph of each last pass; DDP then cuts its buckets once and for all
            self.accelerator.ddp_handler.find_unused_parameters = True
        self.model = self.accelerator.prepare_model(model)
        if isinstance(self.model, DistributedDataParallel) and not sometimes:
            self._settle_buckets(self.model)

    def _settle_buckets(self, model: DistributedDataParallel) -> None:
        """Have DDP cut its buckets for good before the first step.

        It cuts them anew after a launch's first backward pass, and where a gradient lies in a bucket decides in which
        order three ranks or more sum it: a resumed run would part from the uninterrupted one in the last bits.
        """
        model.reducer.prepare_for_backward([])
        torch.stack([p.view(-1)[0] for p in self.parameters]).sum().backward()
        self.optimizer.zero_grad(set_to_none=True)

    def begin_pass(self, last: bool) -> None:
        if isinstance(self.model, DistributedDataParallel):
            self.model.require_backward_grad_sync = last

    def autocast(self) -> AbstractContextManager[Any]:
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(self.accelerator.device.type, self.dtype)

    def generating(self) -> AbstractContextManager[Any]:
        return self.autocast()

    def backward(self, loss: Tensor) -> None:
        (loss * self.loss_scale.factor).backward()
        if isinstance(self.model, DistributedDataParallel) and self.model.require_backward_grad_sync:
            self._require_reduced(self.model)

    def _require_reduced(self, model: DistributedDataParallel) -> None:
        """Raise where DDP still waits for a gradient: it would say so in the next pass, after a wrong update."""
        try:
            model.reducer._rebuild_buckets()  # looks whether all were reduced, and has nothing to cut anew
        except RuntimeError as error:
            if "finished reduction" not in str(error):
                raise
            names = [n for n, p in self.unwrapped().named_parameters() if is_trained(p) and p.grad is None]
            raise no_gradient(names) from None

    def gradient_norm(self) -> Tensor:
        for parameter in self.parameters:
            if parameter.grad is None:  # no pass has reached it: zero, as under ZeRO, to moments and weight decay too
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if self.loss_scale.enabled:
            torch._foreach_mul_(gradients, 1 / self.loss_scale.factor)
        # In float32 where gradients are bfloat16, whose three digits would not do to scale by
        norms = torch._foreach_norm(gradients, 2, torch.float32)
        self.norm = torch.linalg.vector_norm(torch.stack(norms))
        return self.norm

    def update(self, norm: float | None = None) -> tuple[Tensor | float, bool]:
        if norm is None:
            norm = float(self.gradient_norm())
        if finite := isfinite(norm):
            nn.utils.clip_grads_with_norm_(self.parameters, self.max_grad_norm, self.norm)
            self.before_update()
            self.optimizer.step()
        self.discard()
        return norm, self.loss_scale.update(overflow=not finite)

    def discard(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def unwrapped(self) -> nn.Module:
        return self.model.module if isinstance(self.model, DistributedDataParallel) else self.model

    def windows(self, once: bool = False) -> Iterator[Window]:
        rank, world_size = (self.accelerator.process_index, self.accelerator.num_processes) if once else (0, 1)
        for name, parameter in self.unwrapped().named_parameters():
            if is_trained(parameter):
                for key, value in [("param", parameter.data), *self.optimizer.state.get(parameter, {}).items()]:
                    share = -(-value.numel() // world_size)
                    run = value.view(-1)[rank * share : (rank + 1) * share]
                    if run.numel():
                        yield Window(name, key, run, rank * share, value.numel(), tuple(value.shape))
        yield from buffer_windows(self.unwrapped(), rank, world_size)

    def replicas(self) -> Iterator[Tensor]:
        yield from (parameter.data for parameter in self.parameters)
        yield from (buffer for _, buffer in moving_buffers(self.unwrapped()))

    def create_state(self, entries: Iterable[tuple[str, str, tuple[int, ...], torch.dtype]]) -> None:
        parameters = dict(self.unwrapped().named_parameters())
        self.optimizer.state.clear()
        for key, name, shape, dtype in entries:
            parameter = parameters[name]
            self.optimizer.state[parameter][key] = torch.zeros(shape, dtype=dtype, device=parameter.device)

    def refresh(self) -> None:
        pass

    def full_parameters(self, trained_only: bool) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self.unwrapped().named_parameters(remove_duplicate=False):
            if is_trained(parameter) or is_left_out(parameter) or not trained_only:
                yield name, parameter.data
