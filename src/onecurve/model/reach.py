"""Finds trained parameters that the loss does not depend on, and freezes them before the first step."""

from collections.abc import Callable, Container, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from onecurve.config import Recipe
from onecurve.data.collation import as_scored, stand_in
from onecurve.data.splits import Split
from onecurve.errors import ConfigError, TrainingError
from onecurve.losses.chunked_head import whole_logits
from onecurve.model.depth import settle_rates
from onecurve.model.float8 import in_full_precision
from onecurve.model.freezing import freeze
from onecurve.model.moving_buffers import describe_moving, moving
from onecurve.seeds import start_stream
from onecurve.strategies.base import leave_out
from onecurve.strategies.precision import DTYPES
from onecurve.tasks.base import Processing, Task

_NAMED = 3
_LAYERDROP = ("layerdrop", "encoder_layerdrop", "decoder_layerdrop", "speech_encoder_layerdrop")


def probe(
    model: Any, recipe: Recipe, task: Task, split: Split, reading: Processing, precision: str, accelerator: Any
) -> tuple[str, list[str]]:
    """Find the trained parameters that the loss does not reach, and freeze those that it never can.

    DDP waits for a gradient of every trained parameter, ZeRO takes none for zero and decays the weight, and one process
    would leave it as it is. So a few training examples run through the model before a strategy takes it over: the
    shortest, one of middle length, and for each input that only some examples have one with it and one without. The
    autograd graphs of their losses are searched, without a backward pass, and nothing is kept for one: it takes the
    memory of scoring. Every rank calls this.

    What no example reaches is frozen, unless it lies in one of several modules of which the model picks some, such as
    experts: an element of a ModuleList or ModuleDict that was not called while another of its kind was.

    Args:
        model: Before any strategy has taken it over; it is moved to the run's device.
        recipe: The run.
        task: Collates examples and knows the loss.
        split: What is trained on.
        reading: Made the examples.
        precision: What the run computes in.
        accelerator: The device, and the other ranks.

    Returns:
        What the user should know of it, empty where every example reaches everything; and the parameters that some
        passes reach and others do not.

    Raises:
        ConfigError: The loss reaches nothing of what is to be trained.
    """
    layerdrop = _without_layerdrop(model)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with _ready(model, recipe, precision, accelerator), _calls() as called, moving(model) as moved:
        passes = [
            _reached_by(example, model, task, reading, recipe.seed, accelerator.device) for example in _varied(split)
        ]
    frozen = freeze(model, recipe.regularization, called)
    trained = {name: p for name, p in trained.items() if p.requires_grad}
    never: list[str] = []
    sometimes: list[str] = []
    for name, parameter in trained.items():
        count = sum(id(parameter) in reached for reached in passes)
        if count < len(passes):
            (sometimes if count or _is_picked(model, name, called) else never).append(name)
    if accelerator.num_processes > 1:
        from accelerate.utils import broadcast_object_list

        # Rounding may route a token to another expert on another kind of device
        never, sometimes = broadcast_object_list([never, sometimes])
    if len(never) == len(trained) > 0:
        raise ConfigError(
            f"the loss depends on none of the trained parameters: {_list(never)}.",
            where="peft.target_modules" if recipe.peft else "model.path",
            fix="Target modules that the model uses for this task.",
        )
    sizes = {name: int(getattr(p, "ds_numel", p.numel())) for name, p in trained.items()}
    _freeze(model, never, called)
    rates = settle_rates(model, recipe.regularization, called)  # of what is left to train
    told = _describe({name: sizes[name] for name in never}, sum(sizes.values()), sometimes, layerdrop)
    remarks = [told, getattr(model, "batch_norm_remark", ""), _of_task(model), describe_moving(moved), frozen, rates]
    return "\n".join(filter(None, remarks)), sometimes


def _of_task(model: Any) -> str:
    remark = getattr(model, "task_remark", "")
    return f"task      {remark}" if remark else ""


def _describe(never: dict[str, int], total: int, sometimes: list[str], layerdrop: float) -> str:
    lines = []
    if never:
        share, tensors = sum(never.values()) / total, f"{len(never)} tensor{'s' if len(never) > 1 else ''}"
        lines.append(
            f"unused    {_list(list(never))}: not trained, because the loss does not depend on them "
            f"({tensors}, {share:.2%} of what was to be trained)"
        )
    if sometimes:
        lines.append(f"partial   {_list(sometimes)}: not reached by every pass; no gradient counts as a zero gradient")
    if layerdrop:
        lines.append(
            f"layerdrop {layerdrop:g} in the model's config, set to 0: a layer that only one rank skips would hang DDP "
            "and ZeRO"
        )
    return "\n".join(lines)


def _list(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _without_layerdrop(model: nn.Module) -> float:
    """Have a model leave out no layers at random; return the largest chance that it would have taken."""
    largest = 0.0
    for holder in [*model.modules(), *(m.config for m in model.modules() if hasattr(m, "config"))]:
        for name in _LAYERDROP:
            if isinstance(chance := getattr(holder, name, None), float) and chance > 0:
                setattr(holder, name, 0.0)
                largest = max(largest, chance)
    return largest


def _varied(split: Split) -> list[Any]:
    """Return examples that differ in length and in which inputs they have."""
    return split.take(list(dict.fromkeys([*split.examples.short_and_middle(), *split.examples.optional()])))


@contextmanager
def _ready(model: Any, recipe: Recipe, precision: str, accelerator: Any) -> Iterator[None]:
    """Have a model run as it does in training, but keep nothing for a backward pass and change no statistics."""
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    model.train()
    for module in model.modules():
        if hasattr(module, "running_mean"):
            module.eval()
    with ExitStack() as stack:
        stack.enter_context(_on_device(model, recipe, accelerator))
        stack.enter_context(whole_logits(base))
        stack.enter_context(in_full_precision(base))
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        dtype = DTYPES.get(precision)
        stack.enter_context(torch.autocast(accelerator.device.type, dtype, enabled=dtype is not None))
        stack.enter_context(saved_tensors_hooks(_nothing, _nothing))
        yield


def _nothing(_: Any) -> Any:
    return None


def _on_device(model: Any, recipe: Recipe, accelerator: Any) -> AbstractContextManager[Any]:
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    if plugin is not None and plugin.zero_stage == 3:
        for buffer in model.buffers():
            buffer.data = buffer.data.to(accelerator.device)
        return _Gathering(accelerator.device)
    if not recipe.model.quantization:  # which was loaded to where it runs
        model.to(accelerator.device)
    return nullcontext()


class _Gathering(TorchFunctionMode):
    """Has each operation find the parameters it is given whole and on the device, for as long as it takes.

    DeepSpeed's own gathering needs its engine, which cannot be had before it is known what is trained.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call `func`."""
        from deepspeed.runtime.zero import GatheredParameters

        given = args, kwargs or {}
        parameters = [leaf for leaf in tree_leaves(given) if isinstance(leaf, nn.Parameter)]
        if not parameters:
            return func(*given[0], **given[1])
        with GatheredParameters([p for p in parameters if hasattr(p, "ds_id")]):
            args, kwargs = tree_map(self._moved, given)
            return func(*args, **kwargs)

    def _moved(self, leaf: Any) -> Any:
        whole = isinstance(leaf, nn.Parameter) and not hasattr(leaf, "ds_id")
        return leaf.to(self.device) if whole and leaf.device != self.device else leaf


@contextmanager
def _calls() -> Iterator[dict[nn.Module, None]]:
    """Collect the modules that are called, in the order of their first calls."""
    called: dict[nn.Module, None] = {}
    handle = register_module_forward_pre_hook(lambda module, _: called.setdefault(module))
    try:
        yield called
    finally:
        handle.remove()


def _reached_by(example: Any, model: Any, task: Task, reading: Processing, seed: int, device: torch.device) -> set[int]:
    """Return the ids of the parameters that an example's loss depends on."""
    scored = as_scored(task, [stand_in(task, example)], reading, training=True)
    batch = {name: tensor.to(device) for name, tensor in scored.items()}
    start_stream(seed, "reach")
    return _leaves(task.loss_sum(task.forward(model, batch), batch))


def _leaves(loss: Tensor) -> set[int]:
    found, seen, left = set(), set(), [loss.grad_fn]
    while left:
        node: Any = left.pop()
        if node is not None and node not in seen:
            seen.add(node)
            if type(node).__name__ == "AccumulateGrad":
                found.add(id(node.variable))
            left.extend(following for following, _ in node.next_functions)
    return found


def _is_picked(model: nn.Module, name: str, called: Container[nn.Module]) -> bool:
    """Whether a parameter lies in one of several like modules of which only some were called."""
    parts = name.split(".")
    module: nn.Module = model
    for part in parts[:-1]:
        element = module.get_submodule(part)
        if isinstance(module, nn.ModuleList | nn.ModuleDict) and not _was_called(element, called):
            return any(_was_called(other, called) for other in module.children() if type(other) is type(element))
        module = element
    return False


def _was_called(module: nn.Module, called: Container[nn.Module]) -> bool:
    return any(part in called for part in module.modules())


def _freeze(model: nn.Module, names: list[str], called: Container[nn.Module]) -> None:
    for name in names:
        leave_out(model.get_parameter(name))
        owner = model.get_submodule(name.rpartition(".")[0])
        if owner not in called:
            owner.register_forward_pre_hook(_refusing_use(name))


def _refusing_use(name: str) -> Callable[[nn.Module, Any], None]:
    """Return a hook that ends a run whose later examples use what was frozen because the first ones did not."""

    def refuse(module: nn.Module, _: Any) -> None:
        if module.training and torch.is_grad_enabled():
            raise TrainingError(
                f"{name} is not trained, because the examples tried before step 1 did not use it, but this step does. "
                "Please report the model and the kind of data."
            )

    return refuse
