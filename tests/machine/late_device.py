"""An accelerator on a CPU: what is asked of it happens as late as a device may do it, and its memory runs out."""

import threading
import weakref
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from onecurve.machine import accelerator

CPU = torch.device("cpu")


def poison(tensor):
    """Fill memory with what nobody takes for a result."""
    tensor.fill_(torch.nan if tensor.is_floating_point() else 0xAB if tensor.dtype == torch.uint8 else -(1 << 7))


@dataclass
class Copy:
    """One that was asked for and is not done."""

    target: Tensor
    read: object
    """Returns the values, as they are when it is called."""
    stream: str
    check: object = None
    """Raises where the source was changed too soon."""
    source: int = 0
    """Where a tensor of the device lies whose memory may be another's by then."""


@dataclass
class Mark:
    device: "LateDevice"
    stream: str
    number: int

    def wait(self):
        self.device.run(self.stream, self.number)


class LateDevice:
    """Implements `machine.accelerator.Device`; tensors of the device are those of the CPU that are not page-locked.

    Computing is eager, on the main stream. So a copy on that stream reads a device's tensor at once and writes it at
    once, but page-locked memory is written at the next wait, until which it holds poison, and is read then: whoever has
    changed it by then is told. On the side stream all is read and written at the next wait. A tensor that was dropped
    before its copy and not lent is read as poison, as if its memory were another's by then.

    Args:
        capacity: Bytes of memory; what is sent takes it.
        lockable: Bytes of host memory that can be page-locked, each piece rounded up to a power of two and kept.
        precisions: What it computes natively.
    """

    def __init__(self, capacity=1 << 40, lockable=1 << 40, precisions=("bf16", "fp16")):
        self.device, self.capacity, self.lockable, self.precisions = CPU, capacity, lockable, precisions
        self.queue, self.number, self.stream = [], 0, "main"
        self.locked, self.blocks, self.spare = {}, 0, []
        self.taken = self.most = self.waits = 0
        self.ahead = 0
        """The most tensors that were on their way back from the side stream at once."""
        self.entered = {threading.get_ident()}

    def name(self):
        return "late device"

    def computes(self, precision):
        return precision in self.precisions

    def enter(self):
        self.entered.add(threading.get_ident())

    def pinned(self, num_bytes):
        assert threading.get_ident() in self.entered, "this thread works on the first device"
        size = 1 << max(0, num_bytes - 1).bit_length()
        if size in self.spare:
            self.spare.remove(size)
        else:
            if self.blocks + size > self.lockable:
                raise RuntimeError("CUDA error: out of memory")
            self.blocks += size
        memory = np.full(num_bytes, 0xAB, np.uint8)  # which lives as long as any tensor on it
        self.locked[key := memory.ctypes.data] = size
        weakref.finalize(memory, self._unlock, key, size)
        return torch.from_numpy(memory)

    def _unlock(self, key, size):
        self.locked.pop(key, None)
        self.spare.append(size)

    @staticmethod
    def key(tensor):
        return tensor.untyped_storage().data_ptr()

    def is_locked(self, tensor):
        return self.key(tensor) in self.locked

    def send(self, tensor):
        assert threading.get_ident() in self.entered, "this thread works on the first device"
        lent = self.pinned(tensor.nbytes)
        source = lent.view(tensor.dtype).view(tensor.shape)
        source.copy_(tensor)
        target = self.empty(tensor)
        self.copy(target, source)
        return target

    def empty(self, like):
        """Return memory of the device for a tensor, and count it as long as it lives."""
        if self.taken + like.nbytes > self.capacity:
            left = self.capacity - self.taken
            raise torch.OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate {like.nbytes} bytes. GPU 0 has a total capacity of "
                f"{self.capacity} bytes of which {left} bytes is free."
            )
        self.taken += like.nbytes
        self.most = max(self.most, self.taken)
        memory = np.full(like.nbytes, 0xAB, np.uint8)
        weakref.finalize(memory, self._give_back, like.nbytes)
        return torch.from_numpy(memory).view(like.dtype).view(like.shape)

    def _give_back(self, num_bytes):
        self.taken -= num_bytes

    def copy(self, target, source):
        assert self.is_locked(target) != self.is_locked(source), "from or to memory that is not page-locked it waits"
        if self.stream == "side":
            read = self._late(source)
            poison(target)
            self._ask(Copy(target, read, "side", source=0 if self.is_locked(source) else self.key(source)))
            coming = sum(copy.stream == "side" and not self.is_locked(copy.target) for _, copy in self.queue)
            self.ahead = max(self.ahead, coming)
        elif self.is_locked(target):
            values = source.detach().clone()
            poison(target)
            self._ask(Copy(target, lambda: values, "main"))
        else:
            values = source.detach().clone()
            target.copy_(values)

            def check():
                assert torch.equal(source, values), "page-locked memory was changed before the copy had read it"

            self._ask(Copy(target, lambda: None, "main", check))

    def _late(self, source):
        if self.is_locked(source):
            return lambda: source.detach()
        return weakref.ref(source)

    def _ask(self, copy):
        self.number += 1
        self.queue.append((self.number, copy))

    @contextmanager
    def aside(self):
        self.stream = "side"
        try:
            yield
        finally:
            self.stream = "main"

    def mark(self):
        return Mark(self, self.stream, self.number)

    def lend(self, tensor):
        for _, copy in self.queue:
            if copy.stream == self.stream and copy.source == self.key(tensor):
                copy.read = tensor.detach  # which keeps it

    def run(self, stream, number):
        """Do what a stream was asked until then."""
        for entry in [entry for entry in self.queue if entry[0] <= number and entry[1].stream == stream]:
            self.queue.remove(entry)
            copy = entry[1]
            if copy.check is not None:
                copy.check()
                continue
            with torch.no_grad():
                values = copy.read()
                if values is None:
                    poison(copy.target)
                else:
                    copy.target.copy_(values)

    def synchronize(self):
        self.waits += 1
        for stream in ("main", "side"):
            self.run(stream, self.number)

    def total(self):
        return self.capacity

    def free(self):
        return self.capacity - self.taken

    def used(self):
        return self.taken

    def peak(self):
        return self.most

    def reset_peak(self):
        self.most = self.taken


def stand_in(monkeypatch, **sizes):
    """Have the CPU be such an accelerator until the test ends."""
    device = LateDevice(**sizes)
    monkeypatch.setitem(accelerator._known, CPU, device)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: CPU)
    return device
