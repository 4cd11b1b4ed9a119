"""DeepSpeed ZeRO-1, 2 and 3: optimizer state, gradients and parameters partitioned over ranks."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from math import nan
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from onecurve.errors import ConfigError
from onecurve.machine import memory
from onecurve.machine.accelerator import accelerator_of
from onecurve.machine.cores import ranks_here
from onecurve.machine.distributed import share_timeout
from onecurve.strategies.base import Window, buffer_windows, is_left_out, is_trained, moving_buffers, no_gradient
from onecurve.strategies.precision import DTYPES, LossScale
from onecurve.strategies.zero_gathered import kept_gathered
from onecurve.strategies.zero_sizes import derive, fill, kept_whole, sizes_of


@dataclass(frozen=True)
class _FlatSlice:
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


@dataclass(frozen=True)
class _Without:
    """A module as DeepSpeed looks through it for parameters, without some of them."""

    module: Any
    left_out: set[nn.Parameter]

    def named_parameters(self, recurse: bool) -> Iterator[tuple[str, nn.Parameter]]:
        return (pair for pair in self.module.named_parameters(recurse=recurse) if pair[1] not in self.left_out)

    def ds_external_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return (pair for pair in self.module.ds_external_parameters() if pair[1] not in self.left_out)


class Zero:
    """Implements `Strategy`. The engine's own backward and step are called, so that a step has two visible halves."""

    model: Any
    optimizer: Any

    def __init__(self, accelerator: Accelerator, precision: str, max_grad_norm: float, micro_batch_size: int) -> None:
        self.accelerator, self.precision = accelerator, precision
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
        self.before_update: Callable[[], None] = lambda: None
        self.after_update: Callable[[int], None] = lambda step: None
        self.reached: set[Tensor] = set()
        """The parameters that the latest pass has given a gradient."""

    @property
    def stage(self) -> int:
        """The ZeRO stage, 1 to 3."""
        return self.model.zero_optimization_stage()

    def prepare(self, model: nn.Module, optimizer: Optimizer, num_passes: int, sometimes: Sequence[str] = ()) -> None:
        if sometimes:
            more = f" and {len(sometimes) - 1} more" if sometimes[1:] else ""
            raise ConfigError(
                f"not every pass reaches {sometimes[0]}{more}, and ZeRO needs the same gradients in the same order "
                "of every rank.",
                where="model.path",
                fix="Launch with ddp.yaml or single.yaml.",
            )
        # Only tells the engine whether passes are accumulated (offload needs to know); `begin_pass` says when
        self.config["gradient_accumulation_steps"] = self.accelerator.gradient_accumulation_steps = num_passes
        self._size(model)
        self.accelerator.wait_for_everyone()  # ranks that loaded at their own pace, before groups that wait less long
        self.model, _ = self.accelerator.prepare(model, optimizer)
        share_timeout()
        self.optimizer = self.model.optimizer
        self.trained = {parameter: name for name, parameter in model.named_parameters() if is_trained(parameter)}
        for parameter in self.trained:
            parameter.register_post_accumulate_grad_hook(self.reached.add)
        if self.stage == 3:
            self._keep_frozen()
            if not getattr(model, "is_gradient_checkpointing", False):  # there, layers release what they recompute with
                self._sum_as_plain()
        if self.loss_scale.enabled:
            # DeepSpeed's own scaler under autocast clips before it unscales: gradients 65,536 times too long
            self.optimizer.torch_autocast_gradscaler = None
            self.optimizer.override_loss_scale(self.loss_scale.factor)

    def _size(self, model: nn.Module) -> None:
        section = self.config["zero_optimization"]
        sizes = sizes_of(model.named_parameters())
        passes = 3 if getattr(model, "is_gradient_checkpointing", False) else 2
        live = section.get("stage3_max_live_parameters", "auto")
        live = self._room(model) if live == "auto" else int(live)
        settings = derive(sizes, live, on_gpu=accelerator_of(self.accelerator.device) is not None, passes=passes)
        fill(section, {k: v for k, v in settings.items() if section["stage"] == 3 or not k.startswith("stage3")})

    def _room(self, model: nn.Module) -> int:
        """Return how many gathered elements take a quarter of the memory that the rank with the least has left."""
        parameters: list[Any] = list(model.parameters())
        trained = sum(getattr(p, "ds_numel", p.numel()) for p in parameters if p.requires_grad)
        # To come: master, gradient and two moments, in float32
        free = self._free() - 16 * trained // self.accelerator.num_processes
        return self._least(max(0, free) // 4 // parameters[0].element_size())

    def _free(self) -> int:
        """Return the bytes that this rank may still take."""
        free = memory.free(self.accelerator.device)
        return free if accelerator_of(self.accelerator.device) else free // ranks_here()

    def _least(self, number: int) -> int:
        """Return the least of all ranks' numbers: ranks that gathered at different times would wait for ever."""
        least = torch.tensor(number, device=self.accelerator.device)
        dist.all_reduce(least, dist.ReduceOp.MIN)
        return int(least)

    def _keep_frozen(self) -> None:
        """Gather the frozen weights that memory holds once a run: DeepSpeed would release them at each step."""
        offload = self.optimizer.parameter_offload
        parameters: list[Any] = list(self.unwrapped().parameters())
        threshold, live = offload.param_numel_persistence_threshold, offload._max_available_parameters_in_numel
        kept = {parameters[i] for i in kept_whole(sizes_of(self.unwrapped().named_parameters()), live, threshold)}
        persistent = kept.union(offload.persistent_parameters)
        for parameter in parameters:
            parameter.ds_persist = parameter in persistent
        # Skip DeepSpeed's one-by-one gather here; the next forward gathers a layer at a time
        self.optimizer.persistent_parameters = []
        release = offload.get_param_coordinator().release_and_reset_all
        offload.partition_all_parameters = lambda: release(_Without(offload.module, kept))

    def _sum_as_plain(self) -> None:
        """Take DeepSpeed's hook off the inputs of modules that have nothing to release after their backward.

        It is a node of the autograd graph: where an input also goes around its module, as around a norm, the gradients
        from within were summed first, and float32's last bit, and then roundings to fp16, parted from one process's.
        """
        for module in self.unwrapped().modules():
            if all(getattr(parameter, "ds_persist", False) for parameter in module.parameters(recurse=False)):
                for key, hook in list(module._forward_pre_hooks.items()):
                    if hook.__name__ == "_post_backward_module_hook":
                        del module._forward_pre_hooks[key]

    def begin_pass(self, last: bool) -> None:
        self.model.set_gradient_accumulation_boundary(last)

    def autocast(self) -> AbstractContextManager[Any]:
        return nullcontext()  # the engine's forward does it

    @contextmanager
    def generating(self) -> Iterator[None]:
        dtype = DTYPES.get(self.precision)  # the engine, which autocasts, is passed by
        parameters: list[Any] = list(self.unwrapped().parameters()) if self.stage == 3 else []
        needed = 2 * sum(parameter.ds_numel * parameter.element_size() for parameter in parameters)
        with torch.autocast(self.accelerator.device.type, dtype) if dtype else nullcontext():
            if parameters and needed <= self._least(self._free()):
                with kept_gathered(parameters, self.optimizer.parameter_offload):
                    yield
            else:
                yield

    def backward(self, loss: Tensor) -> None:
        self.reached.clear()
        self.model.backward(loss, scale_wrt_gas=False)
        if len(self.reached) < len(self.trained):  # buckets of other gradients than the other ranks' were summed
            raise no_gradient([name for parameter, name in self.trained.items() if parameter not in self.reached])

    def gradient_norm(self) -> None:
        """Only DeepSpeed's own step finds it."""

    def update(self, norm: float | None = None) -> tuple[Tensor | float, bool]:
        self.before_update()
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
        ranks = (self.accelerator.process_index, self.accelerator.num_processes) if once else (0, 1)
        yield from buffer_windows(self.unwrapped(), *ranks)

    def replicas(self) -> Iterator[Tensor]:
        yield from (buffer for _, buffer in moving_buffers(self.unwrapped()))

    def create_state(self, entries: Iterable[tuple[str, str, tuple[int, ...], torch.dtype]]) -> None:
        wanted: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
        for key, name, shape, _ in entries:  # all state of flat float32 shares is float32
            wanted.setdefault(name, []).append((key, shape))
        self.optimizer.optimizer.state.clear()
        for held in self._held():
            for key, shape in wanted.get(held.name, []):
                room = torch.zeros_like(held.flat.data) if shape else torch.zeros((), device=held.flat.device)
                self.optimizer.optimizer.state[held.flat].setdefault(key, room)

    def _held(self) -> Iterator["_FlatSlice"]:
        return self._held_in_stage_3() if self.stage == 3 else self._held_in_stages_1_and_2()

    def _held_in_stages_1_and_2(self) -> Iterator["_FlatSlice"]:
        # safe_get_full_* fail with more than one parameter group, so the fragments are read where they lie
        for name, parameter in self.unwrapped().named_parameters():
            mapping = getattr(parameter, "_hp_mapping", None)
            if is_trained(parameter) and mapping is not None:
                flat = self.optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
                run = mapping.hp_fragment_address
                yield _FlatSlice(name, flat, run.start, run.numel, mapping.lp_fragment_address.start, parameter.shape)

    def _held_in_stage_3(self) -> Iterator["_FlatSlice"]:
        parameter: Any  # DeepSpeed hangs the attributes named ds_* on it
        for name, parameter in self.unwrapped().named_parameters():
            if not is_trained(parameter):
                continue
            group, start, length = self.optimizer.grad_position[self.optimizer.get_param_id(parameter)]
            offset = min(parameter.ds_numel, self.accelerator.process_index * parameter.ds_tensor.ds_numel)
            held = min(length, parameter.ds_numel - offset)  # the last share may end in padding
            if held > 0:
                flat = self.optimizer.fp32_partitioned_groups_flat[group]
                yield _FlatSlice(name, flat, start, held, offset, parameter.ds_shape)

    def refresh(self) -> None:
        if self.loss_scale.enabled:
            self.optimizer.override_loss_scale(self.loss_scale.factor)
        if self.stage < 3:
            self.optimizer.update_lp_params()
            return
        # What is gathered still holds the values from before
        self.optimizer.parameter_offload.partition_all_parameters()
        for index, master in enumerate(self.optimizer.fp32_partitioned_groups_flat):
            working = self.optimizer.fp16_partitioned_groups_flat[index]
            if working is not None:
                working.data.copy_(master.data)
            self.optimizer._unflatten_partitioned_parameters(index)

    def full_parameters(self, trained_only: bool) -> Iterator[tuple[str, Tensor]]:
        from deepspeed.runtime.zero import GatheredParameters

        if self.stage == 3:  # the last pass of a scoring has begun to gather for one that does not come
            self.optimizer.parameter_offload.partition_all_parameters()
        for name, parameter in self.unwrapped().named_parameters(remove_duplicate=False):
            if is_trained(parameter) or is_left_out(parameter) or not trained_only:
                with GatheredParameters([parameter], enabled=self.stage == 3):
                    yield name, parameter.data
