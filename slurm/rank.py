"""Becomes one rank of train.py. Standard library only: each task of srun runs this first."""

import os
import signal
import sys

# Until train.py handles these, they wait: by default they would kill the rank while Python still loads. The shell
# that started this ignores some of them, because Python itself takes a moment to start
WAITING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


def main() -> None:
    """Tell train.py its rank, if it is one of a world, and run it in this process."""
    signal.pthread_sigmask(signal.SIG_BLOCK, WAITING)
    for number in WAITING:
        signal.signal(number, signal.SIG_DFL)
    if "MASTER_PORT" in os.environ:
        os.environ.update(RANK=os.environ["SLURM_PROCID"], LOCAL_RANK=os.environ["SLURM_LOCALID"])
    os.execvp("python", ["python", "train.py", *sys.argv[1:]])


if __name__ == "__main__":
    main()
