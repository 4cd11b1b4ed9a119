"""What a run computes on and in, for its summary and its record."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accelerate import Accelerator

_NAMES = {"no": "float32", "bf16": "bfloat16", "fp16": "float16", "fp8": "float8 and bfloat16"}


def launch_facts(accelerator: "Accelerator", precision: str) -> dict[str, Any]:
    """Return what is recorded of a launch: `device` (type, and a GPU's name), `strategy`, `processes`, `precision`."""
    import torch

    kind = accelerator.device.type
    device = {"type": kind} | ({"name": torch.cuda.get_device_name(accelerator.device)} if kind == "cuda" else {})
    plugin = accelerator.state.deepspeed_plugin
    strategy = f"zero{plugin.zero_stage}" if plugin else "ddp" if accelerator.num_processes > 1 else "single"
    processes = {"count": accelerator.num_processes}  # not a number: trackers would draw it
    return {"device": device, "strategy": strategy, "processes": processes, "precision": precision}


def describe_launch(facts: dict[str, Any], asked: str) -> str:
    """Return a line of the summary: device, ranks, precision.

    Args:
        facts: Of `launch_facts`.
        asked: The recipe's train.mixed_precision.
    """
    device, count = facts["device"], facts["processes"]["count"]
    where = device.get("name", device["type"])
    ranks = f"{count} x {where}, {facts['strategy']}" if count > 1 else where
    chosen = " (train.mixed_precision auto)" if asked == "auto" else ""
    return f"device    {ranks}; computes in {_NAMES[facts['precision']]}{chosen}{_why_no_gpu(device['type'])}"


def _why_no_gpu(kind: str) -> str:
    """Say why torch finds no GPU on a machine that has one, or that was asked for one."""
    if kind != "cpu":
        return ""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if Path("/dev/nvidiactl").exists() and torch.version.cuda is None:
        return f"; this machine has an NVIDIA driver, but torch {torch.__version__} is a build without CUDA"
    if visible:
        return f"; CUDA_VISIBLE_DEVICES is {visible}, but torch finds no GPU"
    return "; torch finds no GPU" if visible is None else ""
