"""Ranks, device and precision: a world that is not the one asked for is refused."""

import os
from contextlib import redirect_stdout
from io import StringIO
from typing import TYPE_CHECKING

from onecurve.config import TrainSection
from onecurve.errors import LaunchError

if TYPE_CHECKING:
    from accelerate import Accelerator


def launched_rank() -> int:
    """This process's rank as its launcher says it, before any process group exists."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")))


def asked_world_size() -> int:
    """How many processes the launcher says there are.

    Raises:
        LaunchError: A launch form that starts one process where several were asked for.
    """
    if "WORLD_SIZE" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    if "MASTER_ADDR" in os.environ and "ACCELERATE_MIXED_PRECISION" in os.environ:
        # what `distributed_type: MULTI_CPU` leaves behind without mpirun
        raise LaunchError(
            "accelerate launch was asked for several processes and started one.",
            fix="Use accelerate_configs/ddp.yaml (distributed_type MULTI_GPU serves CPUs too).",
        )
    return int(os.environ.get("SLURM_NTASKS", "1")) if "SLURM_STEP_ID" in os.environ else 1


def uses_deepspeed() -> bool:
    """Whether the launcher asked for DeepSpeed."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"


def start(trackers: list[str], project_dir: str) -> "Accelerator":
    """Join the world that was asked for.

    Raises:
        LaunchError: The processes that were started do not form that world.
    """
    import torch
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

    asked = asked_world_size()
    # Mixed precision belongs to the recipe and is carried out by the strategy; "no" overrides the launcher's
    settings = {"mixed_precision": "no", "log_with": trackers or None, "project_dir": project_dir}
    handlers = [DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False)]
    if torch.cuda.is_available():
        accelerator = Accelerator(**settings, kwargs_handlers=handlers)
    elif uses_deepspeed():  # `cpu=True` would switch DeepSpeed off; without the backend Accelerate sees one process
        with redirect_stdout(StringIO()):  # its first start compiles a small op and prints so on every rank
            accelerator = Accelerator(**settings, kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")])
    else:
        accelerator = Accelerator(**settings, cpu=True, kwargs_handlers=handlers)
    count = int(accelerator.reduce(torch.ones((), device=accelerator.device), "sum"))
    if not asked == accelerator.num_processes == count:
        raise LaunchError(
            f"{asked} processes were asked for, but this one is in a world of {count}: "
            "each would train a copy of its own.",
            fix="Launch with a file of accelerate_configs/, and under Slurm with a script of slurm/.",
        )
    return accelerator


def resolve_precision(section: TrainSection) -> tuple[str, str]:
    """Return the precision to compute in (no, bf16, fp16) and, where that needs saying, why.

    Raises:
        LaunchError: The device can only emulate what the recipe asks for, and the recipe does not allow that.
    """
    import torch

    asked, device = section.mixed_precision, "cuda" if torch.cuda.is_available() else "cpu"
    if asked == "auto":
        native = _computes_natively("bf16", device)
        return ("bf16", "") if native else ("no", f"mixed_precision auto: this {device} has no native bf16, so float32")
    if asked == "no" or _computes_natively(asked, device):
        return asked, ""
    if not section.emulate:
        raise LaunchError(
            f"{asked} is only emulated by this {device}, many times slower than float32.",
            where="train.mixed_precision",
            fix="Set it to auto or no, or set train.emulate to true if you want just that.",
        )
    return asked, f"mixed_precision {asked} is emulated by this {device}: expect it to be many times slower"


def _computes_natively(precision: str, device: str) -> bool:
    import torch

    if device == "cuda":
        return torch.cuda.get_device_capability()[0] >= (8 if precision == "bf16" else 7)
    capabilities = torch.cpu.get_capabilities()
    names = ("avx512_bf16", "amx_bf16", "bf16") if precision == "bf16" else ("avx512_fp16", "amx_fp16", "fp16")
    return any(capabilities.get(name) for name in names)
