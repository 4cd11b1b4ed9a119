"""Accelerate's launch files: finds one, and gets the environment that `accelerate launch` gives its ranks."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ruamel.yaml.error import YAMLError

from onecurve.config import nearest, read_yaml
from onecurve.errors import LaunchError
from onecurve.machine import files

FOLDER = "accelerate_configs"
_WHERE = "--launch"
_NOT_OURS = ("RANK", "LOCAL_", "GROUP_", "ROLE_", "WORLD_SIZE", "MASTER_", "TORCHELASTIC_", "PYTHONPATH", "SHLVL", "_")
"""How the names begin of what torchrun tells the one process that is asked, or a shell."""
_DEEPSPEED_CONFIG = "ACCELERATE_DEEPSPEED_CONFIG_FILE"
_ASK = "import json, os, sys; json.dump(dict(os.environ), open(sys.argv[1], 'w'))"


@dataclass(frozen=True)
class LaunchFile:
    """A launch file that can be followed on this machine."""

    path: Path
    num_processes: int
    is_one_process: bool
    """Whether it is of one process that is no rank of any world."""
    deepspeed_config: Path | None

    def environment(self) -> dict[str, str]:
        """Return what Accelerate adds to the environment of every rank, by asking it; takes some seconds.

        Raises:
            LaunchError: Accelerate refuses the file.
        """
        launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(self.path)]
        one = ["--num_machines", "1", "--num_processes", "1", "--main_process_port", "0"]
        with TemporaryDirectory(prefix="onecurve-launch-") as folder:
            told = Path(folder) / "environment.json"
            command = [*launcher, *one, "--no_python", sys.executable, "-c", _ASK, str(told)]
            asked = subprocess.run(command, capture_output=True, text=True, check=False)
            if not told.is_file():
                why = (asked.stderr.strip() or f"it ended with code {asked.returncode}").splitlines()[-1]
                raise LaunchError(f"accelerate launch rejects {str(self.path)!r}: {why}", where=_WHERE)
            environment: dict[str, str] = json.loads(told.read_text(encoding="utf-8"))
        added = {
            name: value
            for name, value in environment.items()
            if os.environ.get(name) != value and not name.startswith(_NOT_OURS)
        }
        # A relative path in it counts from the working directory, which is not where an installed package keeps its own
        return added | ({_DEEPSPEED_CONFIG: str(self.deepspeed_config)} if self.deepspeed_config else {})


def find_launch_file(name: str | None, num_processes: int | None) -> LaunchFile | None:
    """Read the launch file that a name or path means, and check it as far as that needs no import.

    Args:
        name: A path, or the name of a file of `accelerate_configs/` in the working directory or of ours; None: one
            process without a launcher, and no file.
        num_processes: In place of the file's own.

    Raises:
        LaunchError: No such file, one that cannot be read, is of several machines, or starts one process only; or
            this process is itself one of several that a launcher started.
    """
    if name is None:
        if num_processes not in (None, 1):
            raise LaunchError(
                f"is {num_processes}, but no launch file is given.",
                where="--num_processes",
                fix="Add --launch ddp, or another file of accelerate_configs/.",
            )
        return None
    for variable in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        if int(os.environ.get(variable, "1")) > 1:
            raise LaunchError(
                f"{variable} is {os.environ[variable]}: each of these processes would start its own ranks.",
                where=_WHERE,
                fix="Start it once, without a launcher.",
            )
    path = _find(name)
    values = _read(path)
    count = values.get("num_processes", 1) if num_processes is None else num_processes
    machines = values.get("num_machines", 1)
    if type(count) is not int or count < 1:
        raise LaunchError(f"{str(path)!r}: num_processes must be a whole number above 0; got {count!r}.", where=_WHERE)
    if machines not in (None, 1):
        raise LaunchError(
            f"{str(path)!r} is for {machines} machines, but onecurve train starts ranks on one.",
            where=_WHERE,
            fix=f"On each machine: accelerate launch --config_file {path} ... {files.root() / 'train.py'} RECIPE.",
        )
    is_one_process = values.get("distributed_type", "NO") in ("NO", False, None)  # to YAML 1.1, NO is false
    if count > 1 and is_one_process:
        raise LaunchError(
            f"{str(path)!r} starts one process, but --num_processes is {count}.",
            where=_WHERE,
            fix="Use ddp, or a file with another distributed_type.",
        )
    return LaunchFile(path, count, is_one_process, _deepspeed_config(path, values))


def _find(name: str) -> Path:
    if "/" in name or Path(name).suffix in (".yaml", ".yml", ".json"):
        if not Path(name).is_file():
            raise LaunchError(f"there is no file {name!r}.", where=_WHERE)
        return Path(name)
    folders = [Path(FOLDER), files.root() / FOLDER]
    for path in (folder / f"{name}.yaml" for folder in folders):
        if path.is_file():
            return path
    known = {path.stem for folder in folders for path in folder.glob("*.yaml")}
    raise LaunchError(
        f"there is no launch file {name!r}.", where=_WHERE, fix=f"{nearest(name, known)} A path works too."
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        values = read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        why = " ".join(str(error).split())
        raise LaunchError(f"{str(path)!r} cannot be read: {why}.", where=_WHERE) from None
    if not isinstance(values, dict):
        raise LaunchError(f"{str(path)!r} has no settings.", where=_WHERE)
    return values


def _deepspeed_config(path: Path, values: dict[str, Any]) -> Path | None:
    section = values.get("deepspeed_config")
    named = section.get("deepspeed_config_file") if isinstance(section, dict) else None
    if not named:
        return None
    base = files.root() if path.resolve().is_relative_to(files.root()) else Path()
    config = (base / named).absolute()
    if not config.is_file():
        raise LaunchError(f"{str(path)!r} names {named!r}, and there is no file {str(config)!r}.", where=_WHERE)
    return config
