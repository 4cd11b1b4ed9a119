"""Memory of the device: total, used and free for this process, and detection of out-of-memory errors."""

import re
import resource
from collections.abc import Iterator
from math import inf
from pathlib import Path

import psutil
import torch
from accelerate.utils.memory import should_reduce_batch_size

from onecurve.machine.accelerator import accelerator_of

_UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


_CUDA_ITSELF = "CUDA error: out of memory"
"""Of an allocation that does not go through torch's allocator of GPU memory, such as page-locked host memory."""
_OF_LIBRARIES = re.compile(r"CUDA driver error: out of memory|Cuda failure (\d+ )?'out of memory'|CUBLAS_STATUS_ALLOC_")
"""Of torch's segments that grow, of NCCL and of cuBLAS."""
_LITTLE = 2**30
"""Bytes of a GPU that CUDA and its libraries may ask for at once; with more than that free, it was not the GPU's."""


def ran_out(error: BaseException) -> bool:
    """Whether an error says that there was too little memory, on any device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    told = str(error)
    return isinstance(error, RuntimeError) and (
        should_reduce_batch_size(error) or _CUDA_ITSELF in told or bool(_OF_LIBRARIES.search(told))
    )


def ran_out_of_pinned(error: BaseException, device: torch.device) -> bool:
    """Whether it was page-locked host memory that ran out; a failure to get it does not say so itself.

    It carries CUDA's own words alone, because torch's caching host allocator only passes cudaHostAlloc's error on.
    """
    accelerator = accelerator_of(device)
    return _CUDA_ITSELF in str(error) and accelerator is not None and accelerator.free() > _LITTLE


def asked(error: BaseException) -> int:
    """Return the bytes that could not be had, as PyTorch's message tells them; 0 where it does not."""
    return _told(r"tried to allocate", error)


def left(error: BaseException) -> int:
    """Return the bytes that were free then, as PyTorch's message tells them; 0 where it does not, as on a CPU."""
    return _told(r"of which", error)


def held_by_others(error: BaseException) -> int:
    """Return about how many bytes other processes had of the device, by PyTorch's message; 0 where it does not tell.

    It names this process's memory where NVML does, which in a container it may not; PyTorch's own share always.
    """
    pytorch_s = _told("Of the allocated memory", error) + _told("allocated by PyTorch, and", error)
    own = _told("this process has", error) or pytorch_s
    return max(0, _told("a total capacity of", error) - left(error) - own) if own else 0


def _told(words: str, error: BaseException) -> int:
    told = re.search(words + r" (\d+(?:\.\d+)?) (bytes|[KMG]iB)", str(error), re.IGNORECASE)
    return int(float(told[1]) * _UNITS[told[2]]) if told else 0


def used(device: torch.device) -> int:
    """Return the bytes that this process's tensors take on an accelerator, or all of it on a CPU."""
    accelerator = accelerator_of(device)
    return accelerator.used() if accelerator else psutil.Process().memory_info().rss


def total(device: torch.device) -> int:
    """Return the bytes that there are for this process at most."""
    if accelerator := accelerator_of(device):
        return accelerator.total()
    return int(min(psutil.virtual_memory().total, *(limit for limit, _ in _limits())))


def free(device: torch.device) -> int:
    """Return the bytes that this process could still get: what its allocator keeps unused on a GPU counts too."""
    if accelerator := accelerator_of(device):
        return accelerator.free()
    return int(max(0, min(psutil.virtual_memory().available, *(limit - taken for limit, taken in _limits()))))


def reset_peak(device: torch.device) -> None:
    """Begin to measure `peak` anew.

    Raises:
        OSError: The system does not let this process.
    """
    if accelerator := accelerator_of(device):
        accelerator.reset_peak()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak resident set size


def peak(device: torch.device) -> int:
    """Return the most bytes that `used` has been since `reset_peak`, or since the process began."""
    if accelerator := accelerator_of(device):
        return accelerator.peak()
    told = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(told[1]) * 1024 if told else used(device)


def _limits() -> list[tuple[float, int]]:
    """Return (limit, taken of it) of what may bound a process's memory on a CPU."""
    taken = psutil.Process().memory_info()
    held = ((resource.RLIMIT_AS, taken.vms), (resource.RLIMIT_DATA, taken.data))
    bounds = ((resource.getrlimit(which)[0], amount) for which, amount in held)
    limits = [(inf if soft == resource.RLIM_INFINITY else float(soft), amount) for soft, amount in bounds]
    for bound, amount in _control_groups():
        if bound.is_file():
            told = bound.read_text().strip()
            limits.append((inf if told == "max" else float(told), int((bound.parent / amount).read_text())))
    return limits


def _control_groups() -> Iterator[tuple[Path, str]]:
    """Yield the files that hold the limits containers and Slurm set, by cgroup v2 or v1, and what tells their use."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, own = line.split(":", 2)
        if controllers in ("", "memory"):
            root = Path("/sys/fs/cgroup") / controllers
            names = (
                ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
            )
            yield from ((folder / names[0], names[1]) for folder in {root, root / own.lstrip("/")})


def spelt(num_bytes: float) -> str:
    """Format a number of bytes, such as 1.5 GiB."""
    for unit in ("GiB", "MiB", "KiB"):
        if abs(num_bytes) >= _UNITS[unit]:
            return f"{num_bytes / _UNITS[unit]:.1f} {unit}"
    return f"{num_bytes:.0f} bytes"
