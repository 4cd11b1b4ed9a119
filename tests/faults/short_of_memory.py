"""train.py with so many bytes more memory than it has when it begins: run in its place as `... BYTES RECIPE ...`."""

import resource

import psutil

import train
from onecurve.run import Run


def main(argv: list[str], run: Run) -> None:
    limit = psutil.Process().memory_info().data + int(argv[0])
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    train.main(argv[1:], run)
