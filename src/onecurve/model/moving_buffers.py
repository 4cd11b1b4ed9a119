"""Buffers that training passes write to: each rank has its own, and checkpoints do not hold them, which is said."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def moving(model: nn.Module) -> Iterator[list[str]]:
    """Run training passes of a model inside; afterwards the list names the persistent buffers that they wrote to.

    Those of batch normalisation are left out, which has a setting of its own (`model.batch_norm`), and PEFT's, which
    are saved. Other running statistics count without being run: before step 1 no pass moves them.
    """
    found: list[str] = []
    before = {name: (buffer, buffer._version) for name, buffer in _persistent(model)}
    yield found
    running = {f"{name}.running_mean" for name, module in model.named_modules() if hasattr(module, "running_mean")}
    for name, buffer in _persistent(model):
        earlier, version = before.get(name, (None, 0))
        if name in running or buffer is not earlier or buffer._version != version:
            found.append(name)


def describe_moving(names: list[str]) -> str:
    """Say which buffers move, and what that means; empty where none does."""
    if not names:
        return ""
    more = f" and {len(names) - 1} more" if names[1:] else ""
    return (
        f"buffers   the model changes {names[0]}{more} in each training pass: every rank has its own, a resumed run "
        "begins them anew, and the model folder has rank 0's. Where the loss depends on them, ranks and resumes "
        "change the curve"
    )


def _persistent(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for prefix, module in model.named_modules():
        if isinstance(module, _BatchNorm) or type(module).__module__.startswith("peft."):
            continue
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                yield f"{prefix}.{name}" if prefix else name, buffer
