"""The attention kernels of torch that a run may use on a GPU, in order of preference."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

_ON_CUDA = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Without cuDNN's, which torch puts first on Hopper and Blackwell: with a mask its backward pass can give NaN (pytorch
issue 196678: torch 2.13, cuDNN 9.20, lengths of 64 modulo 128), and it builds a plan for each new shape, which
micro-batches of varying length pay for again and again."""


def fastest_attention(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which torch takes the fastest of the kernels that are known to be right; on CPUs its own.

    It is for backward passes too: a layer computed again there must meet the kernel of its forward pass.
    """
    return sdpa_kernel(_ON_CUDA, set_priority=True) if device.type == "cuda" else nullcontext()
