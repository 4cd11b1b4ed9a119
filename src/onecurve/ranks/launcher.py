"""The process that started this rank: when it dies, the rank must not live on."""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
"""Of sys/prctl.h."""
LAUNCHED = "ONECURVE_LAUNCHED"
_MARKS = {"TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION", LAUNCHED}
"""In the environment that torchrun, `accelerate launch` and `onecurve train` give. A shell may well die before what it
started."""


def end_with_launcher() -> None:
    """Have the kernel send a SIGTERM when the launcher dies, whatever it dies of: the run then saves and stops."""
    if _MARKS & os.environ.keys():
        end_with_parent(signal.SIGTERM)


def end_with_parent(number: signal.Signals) -> None:
    """Have the kernel send this process a signal when the one that started it dies, on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number)
