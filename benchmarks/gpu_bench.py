"""Where the parts of the first run on a GPU run: one call's time, a Python, and runs of train.py."""

import json
import os
import shutil
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
Numbers = dict[str, Any]
ERROR_CHARACTERS = 3000
RESERVE_SECONDS = 8
"""Of a call, for writing down how it ended."""


class Failed(Exception):
    """A part whose answer is no."""

    def __init__(self, message: str, numbers: Numbers | None = None) -> None:
        super().__init__(message)
        self.numbers = numbers or {}


class Skipped(Exception):
    """A part that this machine cannot answer."""


class OutOfTime(Exception):
    """The call's time is over; the part begins anew in the next one."""


@dataclass
class Bench:
    """Where parts run, and how long they may."""

    python: str
    folder: Path
    """For models, data and runs; parts of later calls find them there."""
    rehearsal: bool
    ends: float
    """On `time.monotonic`'s clock."""
    environment: dict[str, str] = field(default_factory=dict)
    shared: threading.RLock = field(default_factory=threading.RLock)
    """Held while something is made that several parts use."""

    @property
    def device(self) -> str:
        """What is computed on."""
        return "cpu" if self.rehearsal else "cuda"

    @property
    def left(self) -> float:
        """Seconds until this call ends."""
        return self.ends - time.monotonic()

    def run(self, *words: str | Path, may_fail: bool = False) -> subprocess.CompletedProcess[str]:
        """Run Python with these arguments, from the root of the repository.

        Raises:
            OutOfTime: It did not end in time, and was ended.
            Failed: Its exit code is not 0, unless it may fail.
        """
        command = [self.python, *map(str, words)]
        process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | self.environment, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            stdout, stderr = process.communicate(timeout=max(1, self.left - RESERVE_SECONDS))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)  # the launcher's ranks too
            process.communicate()
            raise OutOfTime from None
        if process.returncode and not may_fail:
            told = [line for line in (stdout + "\n" + stderr).strip().splitlines() if line.strip()]
            said = [line for line in told if line.startswith("train.py: ")]
            tail = "\n".join([*said, *told[-25:]])[-ERROR_CHARACTERS:]
            raise Failed(f"exit code {process.returncode} of {' '.join(command[1:])}\n{tail}")
        return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)

    def has(self, package: str) -> bool:
        """Whether a package is installed where the parts run."""
        return self.run("-c", f"import importlib.util as u, sys; sys.exit(u.find_spec({package!r}) is None)",
                        may_fail=True).returncode == 0  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A run of train.py that ended well."""

    folder: Path
    seconds: float

    @property
    def losses(self) -> list[float]:
        """Of its steps."""
        lines = map(json.loads, (self.folder / "metrics.jsonl").read_text().splitlines())
        return [line["loss"] for line in lines if line["event"] == "train"]

    @property
    def is_over(self) -> bool:
        """Whether it came to its end, or to where it was to stop."""
        path = self.folder / "status.json"
        return path.exists() and json.loads(path.read_text())["status"] in ("done", "stopped")

    def numbers(self) -> Numbers:
        """Return what there is to keep of it."""
        lines = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        steps = [line for line in lines if line["event"] == "train"]
        rates = sorted(step["tokens_per_second"] for step in steps[1:] or steps)
        told: Numbers = {"losses": self.losses, "tokens per second": rates[len(rates) // 2], "seconds": self.seconds}
        told |= {line["event"]: line.get("found") for line in lines if line["event"] == "micro_batch_size"}
        return told


def train(bench: Bench, name: str, *overrides: str, how: str = "python", anew: bool = True) -> Run:
    """Run train.py on the prepared Llama's recipe, in bf16 where a GPU is.

    Args:
        bench: Where.
        name: Of the run's folder.
        *overrides: Settings, as on the command line.
        how: `python`, or a file of accelerate_configs/ with one process.
        anew: Whether to begin at step 1, whatever lies in the folder.
    """
    recipe, folder = prepare(bench) / "recipe.yaml", bench.folder / "runs" / name
    words = [str(recipe), "--output_dir", str(folder), "--tracking.trackers", "[]", "--eval.every", "0"]
    words += ["--train.resume", "never" if anew else "auto"]
    if how != "python":
        config = str(ROOT / "accelerate_configs" / f"{how}.yaml")
        launcher = ["-m", "accelerate.commands.launch", "--config_file", config]
        start: list[str] = [*launcher, "--main_process_port", "0", "--num_processes", "1", "train.py"]
    else:
        start = ["train.py"]
    if anew:
        shutil.rmtree(folder, ignore_errors=True)  # what a call that was cut short has left
    started = time.monotonic()
    bench.run(*start, *words, *overrides)
    return Run(folder, time.monotonic() - started)


def prepare(bench: Bench) -> Path:
    """Write the model, the data and the recipe that the parts share, once; return their folder."""
    folder = bench.folder / "work"
    if not (folder / "ready").exists():
        with bench.shared:
            _prepare(bench, folder)
    return folder


def _prepare(bench: Bench, folder: Path) -> None:
    if not (folder / "ready").exists():  # another part may have done it meanwhile
        large = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 12, "num_attention_heads": 16,
                 "num_key_value_heads": 4, "vocab_size": 32768, "max_position_embeddings": 2048}  # fmt: skip
        small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
        work = {
            "name": "gpu_first", "task": "sft", "global_batch_size": 8 if bench.rehearsal else 32,
            "micro_batch_size": 4 if bench.rehearsal else 8, "num_steps": 20, "lr": 1e-4, "num_eval": 8,
            "max_length": 1024, "model": small if bench.rehearsal else large, "device": bench.device,
            "precision": "no" if bench.rehearsal else "bf16",
        }  # fmt: skip
        bench.run("benchmarks/work.py", json.dumps({"work": work, "method": "full"}), folder)
        (folder / "ready").touch()
