"""The launcher of this rank: the rank must stop when it dies. Also tells whether a launch is a restart."""

import ctypes
import os
import platform
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1
"""Of sys/prctl.h."""
LAUNCHED = "ONECURVE_LAUNCHED"
_MARKS = {"TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION", LAUNCHED}
"""In the environment that torchrun, `accelerate launch` and `onecurve train` give. A shell may well die before what it
started."""


def end_with_launcher() -> None:
    """Have the kernel send a SIGTERM when the launcher dies for any reason: the run then saves and stops."""
    if _MARKS & os.environ.keys():
        end_with_parent(signal.SIGTERM)


def end_with_parent(number: signal.Signals) -> None:
    """Have the kernel send this process a signal when the one that started it dies, on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number)


def launched_by() -> dict[str, str]:
    """Identify the Slurm job and the torchrun of this process, if any; the same after a restart."""
    run = os.environ.get("TORCHELASTIC_RUN_ID", "")
    if run == "none":  # the static rendezvous names no run: then its agent is known, which starts ranks again itself
        run = f"{platform.node()} {os.getppid()} {_started(os.getppid())}"
    return {"job": os.environ.get("SLURM_JOB_ID", ""), "torchrun": run}


def starts_again(by: dict[str, str]) -> bool:
    """Whether this process is a restart, by Slurm or torchrun, of the launch that `launched_by` identified so."""
    now, restarts = launched_by(), {"job": "SLURM_RESTART_COUNT", "torchrun": "TORCHELASTIC_RESTART_COUNT"}
    return any(now[who] and now[who] == by.get(who) and _count(name) > 0 for who, name in restarts.items())


def _count(name: str) -> int:
    return int(os.environ.get(name) or 0)


def _started(process: int) -> str:
    """When a process started, in the kernel's ticks; empty where the system does not tell."""
    try:
        text = Path(f"/proc/{process}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
    return text.rpartition(")")[2].split()[19]
