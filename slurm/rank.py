"""Becomes one rank of train.py. Standard library only: each task of srun runs this first."""

import os
import re
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
        check_layout(os.environ["LOCAL_WORLD_SIZE"], os.environ["SLURM_STEP_TASKS_PER_NODE"])
        os.environ.update(RANK=os.environ["SLURM_PROCID"], LOCAL_RANK=os.environ["SLURM_LOCALID"])
    os.execvp("python", ["python", "train.py", *sys.argv[1:]])


def check_layout(asked: str, given: str) -> None:
    """End if srun spread the tasks in another way: in 3,1 for 2(x2) a third rank would share a GPU or find none."""
    if set(re.sub(r"\(x\d+\)", "", given).split(",")) != {asked}:
        if os.environ["SLURM_PROCID"] == "0":
            fix = "Ask for the same on each node, with --ntasks-per-node."
            print(f"slurm: srun started {given} ranks on the nodes, but each must run {asked}. {fix}", flush=True)  # noqa: T201
        sys.exit(2)


if __name__ == "__main__":
    main()
