"""What Slurm tells of a job: `scontrol show job -d`."""

import os
import re
import subprocess
from dataclasses import dataclass


@dataclass(frozen=True)
class JobRecord:
    """The fields that the batch scripts need; the defaults stand where Slurm tells nothing."""

    state: str = ""
    """RUNNING, COMPLETING, ..."""
    may_requeue: bool = True
    """Not with --no-requeue, or where the site forbids it."""
    preempted: bool = False
    gpus: tuple[int, ...] = ()
    """Per node or group of equal nodes, in Slurm's order; empty where Slurm lists no nodes."""


def job_name() -> str:
    """Return the job's id as squeue shows it: the last task of an array has the array's own id as SLURM_JOB_ID."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ["SLURM_JOB_ID"]


def job_record(job: str) -> JobRecord:
    """Ask Slurm for a job's record."""
    return parse(scontrol("show", "job", "-d", job).stdout)


def scontrol(*words: str) -> subprocess.CompletedProcess[str]:
    """Run `scontrol`; where there is none, as in some containers, it failed like any other command."""
    command = ["scontrol", *words]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        return subprocess.CompletedProcess(command, 127, "", f"scontrol: {error.strerror}")


def parse(text: str) -> JobRecord:
    """Parse the output of `scontrol show job -d JOB`.

    The lines of nodes look like `Nodes=node[1-2] CPU_IDs=0-3 Mem=0 GRES=gpu:a100:2(IDX:0-1)`.
    """
    fields = dict(re.findall(r"^\s+(?:\S.*? )??(JobState|Requeue|PreemptTime)=(\S+)", text, re.MULTILINE))
    return JobRecord(
        state=fields.get("JobState", ""),
        may_requeue=fields.get("Requeue", "1") != "0",
        preempted=fields.get("PreemptTime", "None") not in ("None", "Unknown", "N/A"),
        gpus=tuple(_gpus(gres) for gres in re.findall(r"^\s+Nodes=.* GRES=(.*)$", text, re.MULTILINE)),
    )


def _gpus(gres: str) -> int:
    """Count the GPUs in a node's GRES, which may be of several types."""
    return sum(int(count) for count in re.findall(r"(?:^|,)gpu(?::[^:,(]+)?:(\d+)", gres))
