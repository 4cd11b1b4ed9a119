"""train.py with so many bytes more memory than it has when it begins: run in its place as `... BYTES RECIPE ...`."""

import ctypes
import resource

import psutil

import train
from onecurve.run.lifecycle import Run

_ARENA_MAX = -8
"""Of glibc's malloc.h."""


def main(argv: list[str], run: Run) -> None:
    # Each thread would set aside an arena of 64 MiB that counts, and how many threads there are is chance
    ctypes.CDLL(None).mallopt(_ARENA_MAX, 1)
    limit = psutil.Process().memory_info().data + int(argv[0])
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    train.main(argv[1:], run)
