"""DeepSpeed ZeRO-1, 2 and 3: optimizer state, gradients and parameters shared out over ranks."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import nan
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from onecurve.strategies.base import Window
from onecurve.strategies.precision import DTYPES, LossScale


@dataclass(frozen=True)
class _Held:
    """A run of a parameter in one of this rank's flat float32 groups."""

    name: str
    flat: Any
    start: int
    """Where the run starts in the group."""
    length: int
    offset: int
    """Where it starts in the flattened parameter."""
    shape: torch.Size
    """The whole parameter's."""


class Zero:
    """Implements `Strategy`. The engine's own backward and step are called, so that a step has two visible halves."""

    model: Any
    optimizer: Any

    def __init__(self, accelerator: Accelerator, precision: str, max_grad_norm: float, micro_batch_size: int) -> None:
        self.accelerator = accelerator
        config = accelerator.state.deepspeed_plugin.deepspeed_config
        config["train_micro_batch_size_per_gpu"] = micro_batch_size
        config["gradient_clipping"] = max_grad_norm  # Accelerate's default is 1.0, whatever the recipe says
        if precision in DTYPES:
            # Weights stay float32 and the forward pass is autocast, as in `plain`: one curve. An empty module list
            # keeps communication in float32 too.
            config["torch_autocast"] = {
                "enabled": True,
                "dtype": str(DTYPES[precision]).removeprefix("torch."),
                "lower_precision_safe_modules": [],
            }
        self.config = config
        self.loss_scale = LossScale(precision == "fp16", accelerator.num_processes)

    @property
    def stage(self) -> int:
        """The ZeRO stage, 1 to 3."""
        return self.model.zero_optimization_stage()

    def prepare(self, model: nn.Module, optimizer: Optimizer, num_passes: int) -> None:
        # Only tells the engine whether passes are accumulated (offload needs to know); `begin_pass` says when
        self.config["gradient_accumulation_steps"] = self.accelerator.gradient_accumulation_steps = num_passes
        self.model, _ = self.accelerator.prepare(model, optimizer)
        self.optimizer = self.model.optimizer
        if self.loss_scale.enabled:
            # DeepSpeed's own scaler under autocast clips before it unscales: gradients 65,536 times too long
            self.optimizer.torch_autocast_gradscaler = None
            self.optimizer.override_loss_scale(self.loss_scale.factor)

    def begin_pass(self, last: bool) -> None:
        self.model.set_gradient_accumulation_boundary(last)

    def autocast(self) -> AbstractContextManager[Any]:
        return nullcontext()  # the engine's forward does it

    def backward(self, loss: Tensor) -> None:
        self.model.backward(loss, scale_wrt_gas=False)

    def update(self) -> tuple[Tensor | float, bool]:
        self.model.step()  # which, whatever the precision, makes no update where the norm is not finite
        lowered = self.loss_scale.update(overflow=self.optimizer.overflow)
        if self.loss_scale.enabled:
            self.optimizer.override_loss_scale(self.loss_scale.factor)
        return self.model.get_global_grad_norm(), lowered

    @torch.no_grad()
    def discard(self) -> None:
        # Gradients lie in other places by stage and offloading, and the engine counts passes: it clears and counts as
        # it should when it finds an update that cannot be made, so it is given one
        for gradients in self.optimizer.averaged_gradients.values():
            for gradient in gradients or ():
                gradient.fill_(nan)
        norms = getattr(self.optimizer, "norm_for_param_grads", {})  # what it looks at when it offloads to the CPU
        norms.update({parameter: torch.full_like(norm, nan) for parameter, norm in norms.items()})
        self.model.step()

    def unwrapped(self) -> nn.Module:
        return self.model.module

    def windows(self, once: bool = False) -> Iterator[Window]:
        for held in self._held():
            for key, value in [("param", held.flat.data), *self.optimizer.optimizer.state.get(held.flat, {}).items()]:
                if value.dim():
                    view = value.narrow(0, held.start, held.length)
                    yield Window(held.name, key, view, held.offset, held.shape.numel(), tuple(held.shape))
                elif (
                    held.offset == 0 or not once
                ):  # the step count: one a group, told by whoever holds the first element
                    yield Window(held.name, key, value.view(1), 0, 1, ())

    def create_state(self, entries: Iterable[tuple[str, str, tuple[int, ...], torch.dtype]]) -> None:
        wanted: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
        for key, name, shape, _ in entries:  # all state of flat float32 shares is float32
            wanted.setdefault(name, []).append((key, shape))
        self.optimizer.optimizer.state.clear()
        for held in self._held():
            for key, shape in wanted.get(held.name, []):
                room = torch.zeros_like(held.flat.data) if shape else torch.zeros((), device=held.flat.device)
                self.optimizer.optimizer.state[held.flat].setdefault(key, room)

    def _held(self) -> Iterator["_Held"]:
        return self._held_in_stage_3() if self.stage == 3 else self._held_in_stages_1_and_2()

    def _held_in_stages_1_and_2(self) -> Iterator["_Held"]:
        # safe_get_full_* fail with more than one parameter group, so the fragments are read where they lie
        for name, parameter in self.unwrapped().named_parameters():
            mapping = getattr(parameter, "_hp_mapping", None)
            if parameter.requires_grad and mapping is not None:
                flat = self.optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
                run = mapping.hp_fragment_address
                yield _Held(name, flat, run.start, run.numel, mapping.lp_fragment_address.start, parameter.shape)

    def _held_in_stage_3(self) -> Iterator["_Held"]:
        parameter: Any  # DeepSpeed hangs the attributes named ds_* on it
        for name, parameter in self.unwrapped().named_parameters():
            if not parameter.requires_grad:
                continue
            group, start, length = self.optimizer.grad_position[self.optimizer.get_param_id(parameter)]
            offset = min(parameter.ds_numel, self.accelerator.process_index * parameter.ds_tensor.ds_numel)
            held = min(length, parameter.ds_numel - offset)  # the last share may end in padding
            if held > 0:
                flat = self.optimizer.fp32_partitioned_groups_flat[group]
                yield _Held(name, flat, start, held, offset, parameter.ds_shape)

    def refresh(self) -> None:
        if self.loss_scale.enabled:
            self.optimizer.override_loss_scale(self.loss_scale.factor)
        if self.stage < 3:
            self.optimizer.update_lp_params()
            return
        # What is gathered still holds the values from before: small parameters stay so between steps
        self.optimizer.checkpoint_event_prologue()
        for index, master in enumerate(self.optimizer.fp32_partitioned_groups_flat):
            working = self.optimizer.fp16_partitioned_groups_flat[index]
            if working is not None:
                working.data.copy_(master.data)
            self.optimizer._unflatten_partitioned_parameters(index)
        self.optimizer.checkpoint_event_epilogue()

    def full_parameters(self, trained_only: bool) -> Iterator[tuple[str, Tensor]]:
        from deepspeed.runtime.zero import GatheredParameters

        for name, parameter in self.unwrapped().named_parameters(remove_duplicate=False):
            if parameter.requires_grad or not trained_only:
                with GatheredParameters([parameter], enabled=self.stage == 3):
                    yield name, parameter.data
