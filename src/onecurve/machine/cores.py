"""A rank's share of the machine: its threads, and memory that it keeps between steps."""

import ctypes
import os
import platform
from pathlib import Path

import psutil

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
"""Names of glibc's malloc.h."""
_TELLS_THE_ALLOCATOR = {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF"}
_LAUNCHERS = ("accelerate", "torchrun", "torch.distributed")


def let_segments_grow() -> None:
    """Have CUDA's allocator grow what it holds, unless the user told it anything; call it before CUDA begins.

    Micro-batches differ in length: pieces of fixed sizes are then often free and yet of no use.
    """
    if not os.environ.keys() & _TELLS_THE_ALLOCATOR:
        os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"


def settle() -> None:
    """Take this rank's share of the machine; call it before anything large is allocated."""
    import torch

    if not _is_told_threads():
        torch.set_num_threads(max(1, num_cores() // ranks_here()))
    if not torch.accelerator.is_available():
        keep_memory()


def describe_threads() -> str:
    """Return how the cores are shared, for people."""
    import torch

    return f"{torch.get_num_threads()} a rank; {num_cores()} cores, {ranks_here()} rank(s) on this machine"


def num_cores() -> int:
    """Cores that this process may use: the machine's, its affinity's or its container's, whichever are fewest."""
    limits = [psutil.cpu_count(logical=False) or 1]
    if hasattr(os, "sched_getaffinity"):
        limits.append(len(os.sched_getaffinity(0)))
    quota = Path("/sys/fs/cgroup/cpu.max")  # of cgroup v2: "max 100000", or microseconds in each period
    if quota.is_file() and (parts := quota.read_text().split())[0] != "max":
        limits.append(max(1, int(parts[0]) // int(parts[1])))
    return min(limits)


def ranks_here() -> int:
    """Ranks on this machine, as torchrun and `accelerate launch` tell them."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def keep_memory() -> bool:
    """Have glibc keep what tensors free: each step takes memory of the same sizes again.

    By default glibc gets each large tensor from the kernel and hands it back, and the kernel clears every page anew.
    The price is that memory once taken is not returned to the machine until `return_memory`.

    Returns:
        Whether that was done; there is nothing to do without glibc.
    """
    if not return_memory():  # what imports have left in pieces too small for tensors
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 64 * 2**20}
    return all([mallopt(name, value) == 1 for name, value in settings.items()])


def return_memory() -> bool:
    """Have glibc hand back what is free: where something else than steps comes next, it would be taken besides.

    Returns:
        Whether that was done; there is nothing to do without glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    ctypes.CDLL(None).malloc_trim(0)
    return True


def _is_told_threads() -> bool:
    """Whether the user set OMP_NUM_THREADS: launchers set it to 1 where nobody did."""
    told = os.environ.get("OMP_NUM_THREADS")
    if told != "1":
        return told is not None
    try:
        launcher = psutil.Process().parent()
        if launcher is None or not any(name in word for word in launcher.cmdline() for name in _LAUNCHERS):
            return True
        return "OMP_NUM_THREADS" in launcher.environ()  # as it was started, before it set anything itself
    except psutil.Error:
        return True
