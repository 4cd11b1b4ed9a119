"""Launching train.py in one form, and what such a run leaves behind."""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from onecurve.checkpoint.folders import folder_name, steps
from onecurve.parity.forms import Form

_LINES_SHOWN = 12
_LAUNCHERS_OWN = ("ACCELERATE_", "SLURM_", "MASTER_", "TORCHELASTIC_")
_RANKS_OWN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@dataclass(frozen=True)
class Launched:
    """A launch that has ended."""

    form: Form
    folder: Path
    exit_code: int
    printed: str
    """On stdout, then on stderr."""
    seconds: float

    @property
    def curve(self) -> list[dict[str, Any]]:
        """The train lines of metrics.jsonl, a step each."""
        path = self.folder / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [entry for entry in map(json.loads, lines) if entry["event"] == "train"]

    def checkpoint(self, step: int) -> Path:
        """The checkpoint of a step."""
        return self.folder / "checkpoints" / folder_name(step)

    @property
    def last_checkpoint(self) -> Path:
        """The newest checkpoint."""
        return self.checkpoint(steps(self.folder / "checkpoints")[-1])

    @property
    def reason(self) -> str:
        """Why it failed: what the program says of itself, else the last lines."""
        lines = self.printed.rstrip().splitlines()
        # Launchers bury it: the line is found by whose voice it has
        said = [line.partition(": ")[2] for line in lines if line.startswith(("train.py: ", "hf_trainer: "))]
        return said[0] if said else "\n".join(lines[-_LINES_SHOWN:])


def launch(form: Form, folder: Path, program: list[str], options: list[str] | None = None) -> Launched:
    """Start a Python program in a form, from the current directory, and wait for its end.

    Args:
        form: How.
        folder: Where it writes.
        program: A file or `-m` and a module, and its arguments.
        options: The launcher's own.
    """
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_LAUNCHERS_OWN) and name not in _RANKS_OWN
    }
    # Ranks that share cores and start a thread each for every core are many times slower
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // form.ranks)))
    started = perf_counter()
    command = form.command(program, options or [])
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return Launched(form, folder, done.returncode, done.stdout + done.stderr, perf_counter() - started)


@dataclass(frozen=True)
class Trainer:
    """Trains the first steps of one recipe in any form."""

    argv: list[str]
    """The recipe and the user's overrides."""
    steps: int
    work_dir: Path
    cut_by: str
    """The setting that a form's micro-batch size is of."""

    def overrides(self, form: Form, folder: Path, start: Path | None, stop: int) -> list[str]:
        """What differs from the user's run: where it writes, where it starts and stops, nothing else that is trained.

        The schedule stays that of the whole run. `checkpoint.every` also saves the end of a run that is shorter.
        """
        settings = {
            "output_dir": folder,
            self.cut_by: form.micro_batch_size,
            "train.resume": start or "never",
            "train.stop_after": stop,
            "checkpoint.every": stop,
            "checkpoint.keep_every": 0,
            "checkpoint.on_error": "stop",
            "data.eval": "null",
            "data.test": "null",
            "eval.every": 0,
            "eval.best_metric": "null",
            "eval.patience": "null",
            "tracking.trackers": "[]",
            "tracking.log_every": 1,
        }
        return [word for key, value in settings.items() for word in (f"--{key}", str(value))]

    def train(self, form: Form, start: Path | None, also: list[int], stop: int | None = None) -> Launched:
        """Launch train.py.

        Args:
            form: How.
            start: The checkpoint to start from; None: the recipe's own start.
            also: Steps to save after, besides the last.
            stop: The last step, when not that of every run; such a run has a folder of its own.
        """
        folder = self.work_dir / (form.folder if stop is None else f"{form.folder}-until{stop}")
        words = self.overrides(form, folder, start, stop or self.steps)
        return launch(form, folder, ["train.py", *self.argv, *words, "--checkpoint.also", str(also)])
