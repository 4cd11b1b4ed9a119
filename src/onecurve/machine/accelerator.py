"""What only happens beside an accelerator: copies, streams, page-locked memory, its own memory, native precisions."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

_CAPABILITY = {"bf16": (8, 0), "fp16": (7, 0), "fp8": (8, 9)}
"""The compute capability from which on an NVIDIA GPU has units for a precision."""


class Mark(Protocol):
    """A place in a stream: all that was asked of it until then."""

    def wait(self) -> None:
        """Have the current stream wait until it is reached; the host goes on."""


class Device(Protocol):
    """One accelerator. Everything that the CPU and it do at the same time goes through these methods.

    What is asked of a device is done later and in order on its current stream; whoever reads a result on the host, or
    changes what a copy still reads, has to wait first.
    """

    device: torch.device
    """With its index."""

    def name(self) -> str:
        """What people call it."""

    def computes(self, precision: str) -> bool:
        """Whether it has units for bf16, fp16 or fp8."""

    def enter(self) -> None:
        """Have this thread work on it: threads begin on the first device, where pinning would open a context."""

    def pinned(self, num_bytes: int) -> Tensor:
        """Return page-locked host memory, uint8 [num_bytes]: copies from and to it keep nobody waiting."""

    def send(self, tensor: Tensor) -> Tensor:
        """Return a copy of a host tensor on the device, on its way there; the host's may be changed at once."""

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Begin to copy between the device and page-locked memory, on the current stream."""

    def aside(self) -> AbstractContextManager[None]:
        """A context whose copies run on a stream of their own, after all that the current one was asked until then."""

    def mark(self) -> Mark:
        """Return where the current stream is."""

    def lend(self, tensor: Tensor) -> None:
        """Keep the memory of a tensor of another stream from being given away before the current one is done with it.

        Source: torch.Tensor.record_stream.
        """

    def synchronize(self) -> None:
        """Wait until all that was asked is done."""

    def total(self) -> int:
        """Bytes of memory that it has."""

    def free(self) -> int:
        """Bytes that this process could still get: what its allocator keeps unused counts too."""

    def used(self) -> int:
        """Bytes that this process's tensors take."""

    def peak(self) -> int:
        """The most bytes that `used` has been since `reset_peak`, or since the process began."""

    def reset_peak(self) -> None:
        """Begin to measure `peak` anew."""


class TorchDevice:
    """Implements `Device` for whatever torch computes on: CUDA and ROCm, Intel XPU, Ascend NPU, Apple MPS."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.module: Any = torch.get_device_module(device)

    def name(self) -> str:
        describe = getattr(self.module, "get_device_name", None)
        told = describe(self.device) if describe else f"{self.device.type} device"
        if self.device.type != "cuda":
            return told
        major, minor = torch.cuda.get_device_capability(self.device)
        return f"{told} (compute capability {major}.{minor})"

    def computes(self, precision: str) -> bool:
        if self.device.type == "cuda" and torch.version.hip is None:
            return bool(torch.cuda.get_device_capability(self.device) >= _CAPABILITY[precision])
        has_bf16 = getattr(self.module, "is_bf16_supported", lambda: False)
        return {"bf16": has_bf16(), "fp16": True}.get(precision, False)

    def enter(self) -> None:
        torch.accelerator.set_device_index(self.device)

    def pinned(self, num_bytes: int) -> Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)

    def send(self, tensor: Tensor) -> Tensor:
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def copy(self, target: Tensor, source: Tensor) -> None:
        target.copy_(source, non_blocking=True)

    @contextmanager
    def aside(self) -> Iterator[None]:
        current = torch.accelerator.current_stream(self.device)
        self._side.wait_stream(current)
        torch.accelerator.set_stream(self._side)
        try:
            yield
        finally:
            torch.accelerator.set_stream(current)

    @cached_property
    def _side(self) -> torch.Stream:
        return torch.Stream(self.device)

    def mark(self) -> Mark:
        event = torch.Event(self.device)
        event.record(torch.accelerator.current_stream(self.device))
        return event

    def lend(self, tensor: Tensor) -> None:
        tensor.record_stream(torch.accelerator.current_stream(self.device))

    def synchronize(self) -> None:
        torch.accelerator.synchronize(self.device)

    def total(self) -> int:
        return self.module.mem_get_info(self.device)[1]

    def free(self) -> int:
        kept = self.module.memory_reserved(self.device) - self.module.memory_allocated(self.device)
        return self.module.mem_get_info(self.device)[0] + kept

    def used(self) -> int:
        return self.module.memory_allocated(self.device)

    def peak(self) -> int:
        return self.module.max_memory_allocated(self.device)

    def reset_peak(self) -> None:
        self.module.reset_peak_memory_stats(self.device)


_KNOWN = "onecurve_host_copy"
_known: dict[torch.device, Device] = {}


def accelerator_of(device: torch.device) -> Device | None:
    """Return the accelerator that a device is; None for a CPU."""
    if device.type != "cpu" and device.index is None:
        device = torch.device(device.type, torch.accelerator.current_device_index())
    if device not in _known and device.type != "cpu":
        _known[device] = TorchDevice(device)
    return _known.get(device)


def own_accelerator() -> Device | None:
    """Return the accelerator that this process computes on; None where torch finds none that it can use."""
    return accelerator_of(torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu"))


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a host tensor on a device, without waiting for the copy; `on_host` of it then returns the original."""
    accelerator = accelerator_of(device)
    if accelerator is None:
        return tensor
    return remember(accelerator.send(tensor), tensor)


def remember(tensor: Tensor, host: Tensor) -> Tensor:
    """Return a tensor whose values the host knows, so that `on_host` need not wait for its device."""
    setattr(tensor, _KNOWN, host)
    return tensor


def select(tensor: Tensor, places: Tensor) -> Tensor:
    """Return the rows of a tensor at places that the host knows, without waiting for the device.

    Args:
        tensor: [rows, ...].
        places: On the host: int64 [rows wanted].
    """
    found, known = tensor.index_select(0, to_device(places, tensor.device)), getattr(tensor, _KNOWN, None)
    return found if known is None else remember(found, known.index_select(0, places))


def on_host(tensor: Tensor) -> Tensor:
    """Return a tensor's values on the host, to be read only: without waiting for the device where it came from there.

    What is computed from it is not known on the host; then this waits for the device and copies.
    """
    known = getattr(tensor, _KNOWN, None)
    if known is not None:
        return known
    return tensor if tensor.device.type == "cpu" else tensor.detach().cpu()
