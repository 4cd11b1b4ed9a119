"""Cores, memory and accelerators of each rank, and whether torch can use them."""

import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from socket import gethostname
from typing import Any

import psutil
import torch

from onecurve.doctor.findings import Finding, Patient
from onecurve.doctor.world import World
from onecurve.machine.accelerator import accelerator_of


def check_devices(patient: Patient) -> Iterator[Finding]:
    """Name the processor's and the accelerators' sizes, and what stands between torch and the latter."""
    cores, threads = len(os.sched_getaffinity(0)), torch.get_num_threads()
    yield Finding("cores", f"{cores} for this process, {threads} threads in torch")
    if patient.world.is_first_here:
        memory = psutil.virtual_memory()
        yield Finding("memory", f"{memory.available / 1e9:.0f} of {memory.total / 1e9:.0f} GB available")
    if torch.accelerator.is_available():
        yield from _accelerators(patient.world)
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


def _accelerators(world: World) -> Iterator[Finding]:
    """Look at this rank's own, and from a machine's first rank at those that no rank has.

    Each look opens a context on the device: from every rank, they would add up to what looks like another process's.
    """
    kind, own, count = kind_of_accelerator(), own_accelerator_index(), torch.accelerator.device_count()
    here = sum(host == world.hosts[world.rank] for host in world.hosts.values())
    for number in [own, *(range(here, count) if world.is_first_here else ())]:
        if number is not None and (number == own or number >= here):
            yield _look_at(kind, number)
    if kind == "cuda" and torch.version.hip is None:
        yield Finding("gpu driver", f"{_driver()}, torch built for CUDA {torch.version.cuda}")


def _look_at(kind: str, number: int) -> Finding:
    title = f"{'gpu' if kind == 'cuda' else kind} {number}"
    device: Any = accelerator_of(torch.device(kind, number))
    try:
        free, total = device.free(), device.total()
    except RuntimeError as error:
        return Finding(title, f"{device.name()}: {_first_line(error)}", "failure", "Ask for another machine.")
    used = free < total * 0.9
    return Finding(
        title,
        f"{device.name()}, {free / 1e9:.0f} of {total / 1e9:.0f} GB free",
        "warning" if used else "ok",
        "Another process uses its memory." if used else "",
    )


def kind_of_accelerator() -> str:
    """Return torch's name for the kind of accelerator that it can use here: cuda, xpu, npu, mps; empty without any."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return found.type if found else ""


def own_accelerator_index() -> int | None:
    """Return which of the accelerators that this rank sees is its own, as training will have it; None without any."""
    count = torch.accelerator.device_count()
    return int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))) % count if count else None


def own_device() -> str:
    """Return what tells this rank's accelerator from all others, on other machines too; empty without one."""
    kind, number = kind_of_accelerator(), own_accelerator_index()
    if number is None:
        return ""
    describe = getattr(torch.get_device_module(kind), "get_device_properties", None)
    unique = getattr(describe(number), "uuid", None) if describe else None
    return str(unique or f"{gethostname()} {kind}:{number}")


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
