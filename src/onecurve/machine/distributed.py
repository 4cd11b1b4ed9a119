"""Ranks and device: joins the process group, and rejects a world size that differs from the launcher's."""

import os
from contextlib import redirect_stdout
from datetime import timedelta
from io import StringIO
from typing import TYPE_CHECKING, Any

from onecurve.config import TrainSection
from onecurve.errors import LaunchError
from onecurve.machine import backend_errors
from onecurve.machine.cores import settle
from onecurve.machine.determinism import compute_deterministically

if TYPE_CHECKING:
    from accelerate import Accelerator


def launched_rank() -> int:
    """This process's rank from the launcher's environment, before any process group exists."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")))


def asked_world_size() -> int:
    """The world size from the launcher's environment.

    Raises:
        LaunchError: A launch form that starts one process where several were asked for, or several worlds.
    """
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    # torchrun's agents are what Slurm starts, and GROUP_WORLD_SIZE counts them; otherwise Slurm starts the ranks
    joined = int(os.environ.get("GROUP_WORLD_SIZE", asked))
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    if joined != tasks > 1:
        raise LaunchError(
            f"Slurm started {tasks} tasks, but this one has a world size of {joined}: "
            "several separate runs would train.",
            fix="Submit a script of slurm/, or tell accelerate launch of all machines (see multinode.yaml).",
        )
    if "WORLD_SIZE" not in os.environ and {"MASTER_ADDR", "ACCELERATE_MIXED_PRECISION"} <= os.environ.keys():
        # what `distributed_type: MULTI_CPU` leaves behind without mpirun
        raise LaunchError(
            "accelerate launch started one process instead of several.",
            fix="Use accelerate_configs/ddp.yaml (distributed_type MULTI_GPU serves CPUs too).",
        )
    return asked


def uses_deepspeed() -> bool:
    """Whether the launch uses DeepSpeed."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"


_TIME_TO_BEGIN = timedelta(minutes=10)
"""Extra time ranks may take to load before the first collective, on top of hang_timeout."""


def start(trackers: list[str], project_dir: str, section: TrainSection | None = None) -> "Accelerator":
    """Join the process group of the launch.

    Args:
        trackers: Names that Accelerate knows.
        project_dir: Where they write.
        section: The recipe's `train`; default: nothing set. After `hang_timeout` the watch over ranks ends a run that
            hangs; a collective waits a little longer, so that the watch, which can name the rank that is waited for,
            comes first. With `deterministic` only kernels are used that give the same bits each time.

    Raises:
        LaunchError: The processes that were started do not form that world.
    """
    import torch
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

    asked, section = asked_world_size(), section or TrainSection()
    backend_errors.report_errors()
    if section.deterministic:
        compute_deterministically()
    if uses_deepspeed():  # the first to start compiles operators
        from onecurve.machine.extensions import outlive_killed_compilers

        outlive_killed_compilers()
    # Mixed precision belongs to the recipe and is carried out by the strategy; "no" overrides the launcher's
    settings = {"mixed_precision": "no", "log_with": trackers or None, "project_dir": project_dir}
    group: dict[str, Any] = {"timeout": section.hang_timeout + _TIME_TO_BEGIN}
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")):
        from onecurve.machine.rendezvous import RESTARTED

        group["init_method"] = f"{RESTARTED}://"
    handlers = [
        DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False),
        InitProcessGroupKwargs(**group),
    ]
    if torch.accelerator.is_available():
        accelerator = Accelerator(**settings, kwargs_handlers=handlers)
    elif uses_deepspeed():  # `cpu=True` would switch DeepSpeed off; without the backend Accelerate sees one process
        with redirect_stdout(StringIO()):  # its first start compiles a small op and prints so on every rank
            accelerator = Accelerator(**settings, kwargs_handlers=[InitProcessGroupKwargs(backend="gloo", **group)])
    else:
        accelerator = Accelerator(**settings, cpu=True, kwargs_handlers=handlers)
    _give_index(accelerator)
    settle()
    if accelerator.num_processes > 1:
        backend_errors.guard.start()
    count = int(accelerator.reduce(torch.ones((), device=accelerator.device), "sum"))
    if not asked == accelerator.num_processes == count:
        raise LaunchError(
            f"{asked} processes were requested, but this one has a world size of {count}: "
            "several separate runs would train.",
            fix="Launch with a file of accelerate_configs/, and under Slurm with a script of slurm/.",
        )
    return accelerator


def _give_index(accelerator: "Accelerator") -> None:
    """Name the device of a single process in full: Accelerate leaves out its index, and CUDA's calls refuse that."""
    import torch
    from accelerate import PartialState

    device = accelerator.device
    if device.type != "cpu" and device.index is None:
        device = torch.device(device.type, torch.accelerator.current_device_index())
        PartialState().device = accelerator.state.device = device


def group_timeout() -> timedelta:
    """Return how long a collective over all ranks waits: what `start` set."""
    from torch.distributed import distributed_c10d as groups

    everybody = groups._get_default_group()
    return everybody._get_backend(everybody._device_types[0]).options._timeout


def share_timeout() -> None:
    """Have every process group wait as long: what is made without a time-out, as by DeepSpeed, has its backend's.

    That is ten minutes for NCCL, which then ends the process, often before the watch over ranks can say who is missing.
    """
    from torch.distributed import distributed_c10d as groups

    timeout = group_timeout()
    for group in groups._world.pg_map:
        groups._set_pg_timeout(timeout, group)


def resolve_precision(section: TrainSection) -> tuple[str, str]:
    """Return the precision to compute in (no, bf16, fp16, fp8) and, where that needs saying, why.

    Raises:
        LaunchError: The device can only emulate the precision, and the recipe does not allow emulation.
    """
    asked = section.mixed_precision
    if asked == "auto":
        native = computes_natively("bf16")
        return ("bf16", "") if native else ("no", f"mixed_precision auto: {_device()} has no native bf16, so float32")
    if asked == "no":
        return asked, _slow_float32()
    if computes_natively(asked):
        return asked, ""
    if not section.emulate:
        raise LaunchError(
            f"{asked} is only emulated by {_device()}, many times slower than float32.",
            where="train.mixed_precision",
            fix="Set it to auto or no, or set train.emulate to true to allow it.",
        )
    return asked, f"mixed_precision {asked} is emulated by {_device()}: expect it to be many times slower"


def _slow_float32() -> str:
    """Say that float32 leaves an accelerator's units for half precision idle, where it has them."""
    from onecurve.machine.accelerator import own_accelerator

    accelerator = own_accelerator()
    if accelerator is None or not accelerator.computes("bf16"):
        return ""
    return (
        f"mixed_precision no: this {accelerator.name()} multiplies float32 many times slower than bf16; "
        "train.mixed_precision auto takes bf16"
    )


_INSTRUCTIONS = {
    "bf16": ("avx512_bf16", "amx_bf16", "bf16"),
    "fp16": ("avx512_fp16", "amx_fp16", "fp16"),
    "fp8": (),  # torchao's products in float8 are for CUDA
}
"""Of a CPU, any of which does."""


def computes_natively(precision: str) -> bool:
    """Whether the device that a run would use computes in a precision (bf16, fp16, fp8) itself."""
    import torch

    from onecurve.machine.accelerator import own_accelerator

    if accelerator := own_accelerator():
        return accelerator.computes(precision)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in _INSTRUCTIONS[precision])


def _device() -> str:
    from onecurve.machine.accelerator import own_accelerator

    accelerator = own_accelerator()
    return f"this {accelerator.name()}" if accelerator else "this cpu"
