"""The buffers of an adapter: projections, norms and indices that PEFT keeps besides the trained parameters."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn


def adapter_buffers(model: nn.Module, aliases: bool = False, moving: bool = True) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, live value) of each persistent buffer that PEFT's modules or the copies they train own.

    VeRA's projections, DeLoRA's norms or a copied router's bias: without them the trained parameters mean nothing.
    They are whole on every rank, also under ZeRO-3. A model without an adapter has none.

    Args:
        model: With its adapter.
        aliases: Yield a buffer that several modules share once for each of its names.
        moving: Yield also those that training moves (`strategies.base.move_buffers`).
    """
    for prefix, module, name in _owners(model, aliases, moving):
        yield f"{prefix}.{name}", module.get_buffer(name)


def take_dtypes(model: nn.Module, dtypes: dict[str, torch.dtype]) -> None:
    """Hold adapter buffers, by name, in these dtypes: what is derived from the base has the dtype it was loaded in."""
    for prefix, module, name in _owners(model, aliases=False, moving=False):
        dtype = dtypes.get(f"{prefix}.{name}")
        if dtype is not None:
            module._buffers[name] = module.get_buffer(name).to(dtype)


def _owners(model: nn.Module, aliases: bool, moving: bool) -> Iterator[tuple[str, nn.Module, str]]:
    seen: set[int] = set()
    for prefix, module in model.named_modules(remove_duplicate=not aliases):
        if hasattr(module, "buffers_move") and not moving:
            continue
        if not type(module).__module__.startswith("peft.") and ".modules_to_save." not in f"{prefix}.":
            continue
        for name, buffer in module._buffers.items():
            if buffer is None or name in module._non_persistent_buffers_set:
                continue
            if aliases or id(buffer) not in seen:
                seen.add(id(buffer))
                yield prefix, module, name
