"""Runs a batch job: starts the ranks with srun, waits, and puts the job back into the queue if it must go on.

`python -m slurm.job [--each_seed] LAUNCH_FILE [--config_file LAUNCH_FILE] RECIPE [--section.key value ...]`
"""

import os
import signal
import socket
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from ruamel.yaml.error import YAMLError

from onecurve.config import load_recipe, read_yaml
from onecurve.errors import ConfigError, LaunchError, UserError
from onecurve.launching.launch_file import LaunchFile
from slurm.layout import Layout, lay_out
from slurm.scontrol import JobRecord, job_name, job_record, scontrol
from slurm.verdict import NOT_STARTED, STOPPED, Launch, judge, look

MAX_RESTARTS = 20
_SIGNALS = ("SIGTERM", "SIGUSR1", "SIGUSR2")
_POLL_SECONDS = 0.5
_SECONDS_TO_START = 60
"""How long srun may wait for resources, which the job has: with uneven ones it would wait for ever."""
_SECONDS_TO_END = 300
"""How long the other ranks may run once one has ended."""


class Ranks:
    """The ranks of this job. Signals to the batch script itself, as `--signal=B:USR1` sends, are passed on to them."""

    def __init__(self, job: str) -> None:
        self.job = job
        self.pending: list[str] = []
        for name in _SIGNALS:
            signal.signal(getattr(signal, name), self._hear)

    def _hear(self, number: int, frame: Any) -> None:
        self.pending.append(signal.Signals(number).name)

    def run(self, command: list[str], environment: dict[str, str]) -> int:
        """Start srun, unless a signal came first, and return its exit code."""
        if self.pending:
            return STOPPED
        process = subprocess.Popen(command, env=environment)
        while (code := process.poll()) is None:
            self._pass_on()
            time.sleep(_POLL_SECONDS)
        return code if code >= 0 else 128 - code  # as a shell tells it

    def _pass_on(self) -> None:
        """Send what is pending to every task of the job, but not to this script; as soon as Slurm knows the tasks."""
        while self.pending:
            send = ["scancel", f"--signal={self.pending[0].removeprefix('SIG')}", self.job]
            if subprocess.run(send, capture_output=True, check=False).returncode:
                return
            self.pending.pop(0)


def main(arguments: list[str]) -> int:
    """Run the job; return the exit code of the batch script."""
    try:
        job = job_name()
        ranks = Ranks(job)
        config, recipe = parse(arguments)
        directory = Path(load_recipe(recipe)[0].output_dir)
        most, record = _max_restarts(), job_record(job)
        layout, before = lay_out(os.environ, record.gpus), look(directory)
        environment = rank_environment(config, layout)
        restarts = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
        where = f"{layout.nodes} node(s) x {layout.ranks} rank(s) on {os.environ['SLURM_JOB_NODELIST']}"
        say(f"job {job}, restarted {restarts} times: {config}, {where}")
        code = ranks.run(srun(layout, recipe), environment)
    except UserError as error:
        say(str(error))
        return error.exit_code
    launch = _launch(job_record(job), restarts, most)
    verdict = judge(before, look(directory), code, launch)
    say(f"{verdict.why}.")
    if verdict.requeue and (problem := _requeue(job)):
        say(f"the job could not be requeued: {problem}. Submit it again to resume.")
    return verdict.exit_code


def parse(arguments: list[str]) -> tuple[Path, list[str]]:
    """Return the launch file, and the recipe with its overrides.

    Raises:
        UserError: An option in the wrong place, or no such launch file.
    """
    each_seed = arguments[0] == "--each_seed"
    default, *recipe = arguments[each_seed:]
    config = Path(default)
    if recipe and recipe[0].startswith("--config_file="):
        recipe[:1] = recipe[0].split("=", 1)
    if recipe and recipe[0] == "--config_file":
        config, recipe = Path(recipe[1] if len(recipe) > 1 else ""), recipe[2:]
        if not config.is_file():
            raise LaunchError(f"there is no file {str(config)!r}.", where="--config_file")
    if any(word.partition("=")[0] == "--config_file" for word in recipe):
        raise ConfigError("must come before the recipe.", where="--config_file")
    return config, [*recipe, *(_seed(recipe) if each_seed else ())]


def _seed(recipe: list[str]) -> list[str]:
    """Return the overrides that give each task of an array its own seed and directory."""
    seed = os.environ.get("SLURM_ARRAY_TASK_ID")
    if seed is None:
        raise LaunchError("this script needs an array, a task per seed.", fix="Submit it with sbatch --array=0-4.")
    return ["--seed", seed, "--output_dir", f"{load_recipe(recipe)[0].output_dir}-seed-{seed}"]


def _max_restarts() -> int:
    given = os.environ.get("ONECURVE_MAX_RESTARTS", str(MAX_RESTARTS))
    if not given.isdecimal():
        raise LaunchError(f"must be a whole number; got {given!r}.", where="ONECURVE_MAX_RESTARTS")
    return int(given)


def rank_environment(config: Path, layout: Layout) -> dict[str, str]:
    """Return the ranks' environment: this one's, with what `accelerate launch` would add, and the world.

    Raises:
        LaunchError: Accelerate rejects the launch file, it starts one process where there are several ranks, or Slurm
            does not tell the names of the nodes.
    """
    alone = _is_one_process(config)
    if alone and layout.world_size > 1:
        raise LaunchError(
            f"{str(config)!r} starts one process, but there are resources for {layout.world_size} ranks.",
            fix="Give another --config_file, or ask for one GPU or task.",
        )
    try:
        told = LaunchFile(config, 1, alone, None).environment()
    except LaunchError as error:
        raise LaunchError(error.what, where="--config_file") from None
    added = {name: value for name, value in told.items() if name.startswith(("ACCELERATE_", "NCCL_"))}
    added |= {"OMP_NUM_THREADS": str(layout.cpus), **os.environ, **added, "SLURM_EXIT_ERROR": str(NOT_STARTED)}
    added.pop("MASTER_PORT", None)  # by which slurm/rank.py knows a world
    if alone:
        return added
    nodes = scontrol("show", "hostnames", os.environ["SLURM_JOB_NODELIST"])
    if nodes.returncode:
        raise LaunchError(f"Slurm does not tell the names of the job's nodes: {nodes.stderr.strip()}.")
    world = {"MASTER_ADDR": nodes.stdout.split()[0], "MASTER_PORT": str(_free_port())}
    return added | world | {"WORLD_SIZE": str(layout.world_size), "LOCAL_WORLD_SIZE": str(layout.ranks)}


def _is_one_process(config: Path) -> bool:
    """Return whether a launch file starts one process that is no rank of any world.

    Raises:
        LaunchError: It has no settings.
    """
    try:
        values = read_yaml(config.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise LaunchError(
            f"{str(config)!r} cannot be read: {' '.join(str(error).split())}.", where="--config_file"
        ) from None
    if not isinstance(values, dict):
        raise LaunchError(f"{str(config)!r} has no settings.", where="--config_file")
    return values.get("distributed_type", "NO") in ("NO", False, None)  # to YAML 1.1, NO is false


def _free_port() -> int:
    """Find a port that is free on this node, where rank 0 will listen on it."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        port: int = listener.getsockname()[1]
    return port


def srun(layout: Layout, recipe: list[str]) -> list[str]:
    """Return the command that starts the ranks: started by srun, they get Slurm's signals and it their exit codes."""
    # Every rank sees its node's GPUs and picks its own. Where one fails, the others have time to say what they know:
    # killed, they could not, and srun's exit code would tell of the signal
    options = {
        "export": "ALL", "nodes": layout.nodes, "ntasks": layout.world_size, "ntasks-per-node": layout.ranks,
        "cpus-per-task": layout.cpus, "gpu-bind": "none", "immediate": _SECONDS_TO_START,
        "kill-on-bad-exit": 0, "wait": _SECONDS_TO_END,
    }  # fmt: skip
    start = "trap '' USR1 USR2; exec python -m slurm.rank \"$@\""
    return ["srun", *(f"--{name}={value}" for name, value in options.items()), "bash", "-c", start, "rank", *recipe]


def _launch(record: JobRecord, restarts: int, most: int) -> Launch:
    return Launch(
        job=os.environ["SLURM_JOB_ID"],
        restarts=restarts,
        most=most,
        may_requeue=record.may_requeue,
        preempted=record.preempted,
        ending=record.state if record.state not in ("", "RUNNING") else "",
    )


def _requeue(job: str) -> str:
    """Put the job back into the queue; return why that failed, or nothing."""
    asked = scontrol("requeue", job)
    return asked.stderr.strip() if asked.returncode else ""


def say(message: str) -> None:
    """Write a line to the job's log, which all its restarts share."""
    print(f"{datetime.now():%Y-%m-%d %H:%M:%S} slurm: {message}", flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
