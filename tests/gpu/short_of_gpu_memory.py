"""train.py with so many bytes of its GPU left: run in its place as `-m tests.gpu.short_of_gpu_memory BYTES ...`."""

import sys

import torch

import train
from onecurve.machine.cores import let_segments_grow
from onecurve.run.lifecycle import Run, execute, leave


def main(argv: list[str], run: Run) -> None:
    let_segments_grow()
    free, _ = torch.cuda.mem_get_info()
    taken = torch.empty(free - int(argv[0]), dtype=torch.uint8, device="cuda")
    train.main(argv[1:], run)
    del taken


if __name__ == "__main__":
    leave(execute(main, sys.argv[1:]))
