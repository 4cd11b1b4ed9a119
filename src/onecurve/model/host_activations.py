"""Activations in host memory between forward and backward pass, copied beside the computation."""

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from onecurve.machine.accelerator import Device, accelerator_of


class _Kept:
    """A tensor's copy on the host, and its way back."""

    def __init__(self, tensor: Tensor, device: Device, before: "_Kept | None") -> None:
        self.device, self.before = device, weakref.ref(before) if before else lambda: None
        self.shape, self.dtype, self.place = tensor.shape, tensor.dtype, tensor.device
        self.host = device.pinned(tensor.nbytes).view(tensor.dtype).view(tensor.shape)
        self.fetched: Tensor | None = None
        with device.aside():
            device.copy(self.host, tensor.detach())
            device.lend(tensor)  # which is let go of while it is copied

    def fetch(self) -> None:
        """Begin to bring it back."""
        if self.fetched is None:
            with self.device.aside():
                self.fetched = torch.empty(self.shape, dtype=self.dtype, device=self.place)
                self.device.copy(self.fetched, self.host)
                self.arrived = self.device.mark()

    def take(self) -> Tensor:
        """Return it on the device, and begin to bring back the one that the backward pass asks for next."""
        self.fetch()
        tensor, self.fetched = self.fetched, None
        assert tensor is not None
        self.arrived.wait()
        self.device.lend(tensor)  # whose memory is the other stream's
        if before := self.before():
            before.fetch()
        return tensor


class OnHost(saved_tensors_hooks):
    """Keeps what is saved for the backward pass inside in host memory; on a CPU it stays where it is.

    Copies run on a stream of their own: a layer's input leaves while the layer computes, and comes back while the layer
    after it is computed again. At most one is on the device ahead of its use.
    """

    def __init__(self, latest: "list[weakref.ref[_Kept]]") -> None:
        """Take where the last one kept is noted, whichever layer kept it."""
        self._latest = latest
        super().__init__(self._pack, self._unpack)

    def _pack(self, tensor: Tensor) -> Any:
        device = accelerator_of(tensor.device)
        if device is None or not tensor.nbytes:
            return tensor
        before = self._latest.pop()() if self._latest else None
        kept = _Kept(tensor.contiguous(), device, before)
        self._latest.append(weakref.ref(kept))
        return kept

    def _unpack(self, kept: Any) -> Tensor:
        return kept.take() if isinstance(kept, _Kept) else kept
