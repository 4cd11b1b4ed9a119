"""Random numbers drawn on the CPU, whatever device they are for: the same ones everywhere."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


class DrawnOnCpu(TorchDispatchMode):
    """Have what is drawn inside drawn on the CPU, in its own dtype, and moved to where it is wanted."""

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in operator.tags or kwargs.get("generator") is not None:
            return operator(*args, **kwargs)
        tensors = [value for value in args if isinstance(value, Tensor)]
        device = kwargs.get("device") or (tensors[0].device if tensors else torch.device("cpu"))
        if "device" in kwargs:
            kwargs = {**kwargs, "device": torch.device("cpu")}
        drawn = operator(*tree_map_only(Tensor, _on_cpu, args), **kwargs)
        return args[0].copy_(drawn) if operator._schema.is_mutable else drawn.to(device)


def _on_cpu(tensor: Tensor) -> Tensor:
    # What an in-place draw finds does not count
    return torch.empty_like(tensor, device="cpu") if tensor.is_meta else tensor.cpu()
