"""Which of torch's attention kernels is the fastest on which chip."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

_ON_HOPPER = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


def fastest_attention(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which torch tries its kernels in the order that suits a device; elsewhere its own.

    It is for backward passes too: a layer computed again there must meet the kernel of its forward pass.
    """
    if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9:
        return sdpa_kernel(_ON_HOPPER, set_priority=True)
    return nullcontext()
