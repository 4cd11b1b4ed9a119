"""Initial weights drawn on the CPU, whatever device they are for: the same numbers everywhere."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from onecurve.errors import ConfigError
from onecurve.seeds import start_stream


@torch.no_grad()
def draw(skeleton: Any, names: Iterable[str], seed: int) -> dict[str, Tensor]:
    """Draw parameters as the model itself initialises them, each module from a stream named after it.

    Args:
        skeleton: A transformers model on the meta device, all its parameters but these marked as initialised.
        names: The parameters.
        seed: The run's.

    Returns:
        Their values: float32, on the CPU.

    Raises:
        ConfigError: The model has no initialisation for one of them.
    """
    from transformers.initialization import guard_torch_init_functions

    names = list(names)
    for name in names:
        owner, _, own = name.rpartition(".")
        shape = skeleton.get_parameter(name).shape
        setattr(skeleton.get_submodule(owner), own, nn.Parameter(torch.full(shape, torch.nan, device="cpu")))
    with guard_torch_init_functions():
        _initialise(skeleton, "", {name.rpartition(".")[0] for name in names}, seed, skeleton)
    values = {name: skeleton.get_parameter(name).data for name in names}
    if left := [name for name, value in values.items() if value.isnan().any()]:
        raise ConfigError(
            f"the checkpoint lacks {', '.join(left)}, and {type(skeleton).__name__} does not initialise it.",
            where="model.path",
            fix="Take a checkpoint that has it.",
        )
    return values


def _initialise(module: Any, name: str, owners: set[str], seed: int, model: Any) -> None:
    """Initialise modules and then those around them, which may have the last word, as transformers does."""
    from transformers import PreTrainedModel

    model = module if isinstance(module, PreTrainedModel) else model
    for child_name, child in module.named_children():
        path = f"{name}.{child_name}" if name else child_name
        if any(f"{owner}.".startswith(f"{path}.") for owner in owners):
            _initialise(child, path, owners, seed, model)
    start_stream(seed, "weights", name)
    model._init_weights(module)


@torch.no_grad()
def place(model: nn.Module, values: dict[str, Tensor]) -> None:
    """Copy values to a model's parameters of these names, wherever they lie and in whichever dtype."""
    parameters = {name: model.get_parameter(name) for name in values}
    with gathered(list(parameters.values())):
        for name, parameter in parameters.items():
            parameter.copy_(values[name])


@torch.no_grad()
def reorder(model: nn.Module, axes: dict[str, int], order: list[int]) -> None:
    """Put the rows of parameters into another order: row i becomes what row `order[i]` was, along each one's axis."""
    parameters = {name: model.get_parameter(name) for name in axes}
    with gathered(list(parameters.values())):
        for name, parameter in parameters.items():
            parameter.copy_(parameter.index_select(axes[name], torch.tensor(order, device=parameter.device)))


@contextmanager
def gathered(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Have parameters whole where ZeRO-3 partitions them; what rank 0 writes to them is kept."""
    if any(hasattr(p, "ds_id") for p in parameters):
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters(parameters, modifier_rank=0):
            yield
    else:
        yield
