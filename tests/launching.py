"""Real launches of train.py, as a user types them, and what they leave behind."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Finished:
    """A launch that has ended."""

    output_dir: Path
    exit_code: int
    stdout: str
    stderr: str

    def events(self, kind: str) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl of one kind, in order."""
        lines = (self.output_dir / "metrics.jsonl").read_text().splitlines()
        return [entry for entry in map(json.loads, lines) if entry["event"] == kind]

    @property
    def status(self) -> dict[str, Any]:
        return json.loads((self.output_dir / "status.json").read_text())


def write_recipe(path: Path, **sections: Any) -> Path:
    with open(path, "w") as file:
        YAML().dump(sections, file)
    return path


def command(how: str | Path, num_processes: int = 2) -> list[str]:
    """What starts a script under `python` or a file of accelerate_configs/; the script and its arguments follow."""
    if how == "python":
        return [sys.executable]
    config = how if isinstance(how, Path) else ROOT / "accelerate_configs" / f"{how}.yaml"
    arguments = ["--config_file", str(config), "--main_process_port", "0"]
    count = str(1 if how == "single" else num_processes)
    return [sys.executable, "-m", "accelerate.commands.launch", *arguments, "--num_processes", count]


def environment() -> dict[str, str]:
    """This process's, without what a launcher that started it has put there."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "SLURM_", "MASTER_"))}
    return kept | {"OMP_NUM_THREADS": "1"}  # two ranks with two threads each on two cores are many times slower


def launch(
    recipe: Path, output_dir: Path, how: str | Path = "python", *overrides: str, num_processes: int = 2
) -> Finished:
    """Run train.py under `python` or a file of accelerate_configs/; a failure of the launch itself shows its output."""
    words = [*command(how, num_processes), "train.py", str(recipe), "--output_dir", str(output_dir), *overrides]
    done = subprocess.run(words, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=540)
    return Finished(output_dir, done.returncode, done.stdout, done.stderr)


def train(recipe: Path, output_dir: Path, how: str = "python", *overrides: str, num_processes: int = 2) -> Finished:
    """Launch, and insist that it ended well."""
    run = launch(recipe, output_dir, how, *overrides, num_processes=num_processes)
    assert run.exit_code == 0, run.stdout[-3000:] + run.stderr[-6000:]
    return run
