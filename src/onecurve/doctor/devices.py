"""Cores, memory and accelerators of each rank, and whether torch can use them."""

import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

from onecurve.doctor.findings import Finding, Patient


def check_devices(patient: Patient) -> Iterator[Finding]:
    """Name the processor's and the accelerators' sizes, and what stands between torch and the latter."""
    cores, threads = len(os.sched_getaffinity(0)), torch.get_num_threads()
    yield Finding("cores", f"{cores} for this process, {threads} threads in torch")
    if patient.world.is_first_here:
        memory = psutil.virtual_memory()
        yield Finding("memory", f"{memory.available / 1e9:.0f} of {memory.total / 1e9:.0f} GB available")
    if torch.cuda.is_available():
        yield from _gpus()
    elif _has_nvidia():
        build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build"
        yield Finding(
            "gpu",
            f"the machine has one that torch {torch.__version__} ({build}) cannot use; driver {_driver()}",
            "failure",
            "Install a torch build that fits the driver, and look at CUDA_VISIBLE_DEVICES.",
        )
    else:
        yield Finding("gpu", "none: runs use the CPU")
    if not patient.world.missing:
        yield from _check_shares(patient.world.gather(own_device()))


def _gpus() -> Iterator[Finding]:
    for number in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(number)
        try:
            free, total = torch.cuda.mem_get_info(number)
        except RuntimeError as error:
            yield Finding(
                f"gpu {number}", f"{device.name}: {_first_line(error)}", "failure", "Ask for another machine."
            )
            continue
        used = free < total * 0.9
        yield Finding(
            f"gpu {number}",
            f"{device.name}, {free / 1e9:.0f} of {total / 1e9:.0f} GB free, capability {device.major}.{device.minor}",
            "warning" if used else "ok",
            "Another process uses its memory." if used else "",
        )
    yield Finding("gpu driver", f"{_driver()}, torch built for CUDA {torch.version.cuda}")


def own_gpu() -> int | None:
    """Return which of the GPUs that this rank sees is its own, as training will have it; None without any."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))) % count if count else None


def own_device() -> str:
    """Return what tells this rank's GPU from all others, on other machines too; empty without one."""
    gpu = own_gpu()
    return "" if gpu is None else str(torch.cuda.get_device_properties(gpu).uuid)


def _check_shares(devices: list[str]) -> Iterator[Finding]:
    shared = [device for device, count in Counter(devices).items() if device and count > 1]
    if shared:
        ranks = [str(rank) for rank, device in enumerate(devices) if device in shared]
        told = f"ranks {', '.join(ranks)} share a GPU"
        yield Finding("gpu of each rank", told, "failure", "Start one rank per GPU.")
    if any(devices) and not all(devices):
        without = ", ".join(str(rank) for rank, device in enumerate(devices) if not device)
        yield Finding("gpu of each rank", f"ranks {without} have none", "failure", "Use machines of one kind.")


def _has_nvidia() -> bool:
    return Path("/dev/nvidia0").exists() or Path("/proc/driver/nvidia/version").exists()


def _driver() -> str:
    if not shutil.which("nvidia-smi"):
        return "unknown"
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=60)
    return (done.stdout.split("\n")[0] or "unknown").strip()


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
