"""Jobs of the cluster: the repository's scripts, submitted as a user submits them, and what became of them."""

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.launching import ROOT
from tests.slurm.cluster import Cluster, wait_until

_SECONDS_TO_RUN = 420
_OVER = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL"}


@dataclass(frozen=True)
class Job:
    """A job that was submitted."""

    cluster: Cluster
    id: str
    output_dir: Path
    log: Path

    def told(self, field: str) -> str:
        """One field of what Slurm tells of it."""
        said = self.cluster.run("scontrol", "show", "job", "-o", self.id)
        found = re.search(rf"\b{field}=(\S+)", said)
        assert found, said
        return found[1]

    def wait(self) -> "Job":
        """Wait until it is over, requeued ones until they are over for good."""
        try:
            wait_until(lambda: self.told("JobState") in _OVER, f"job {self.id} to end", _SECONDS_TO_RUN)
        except TimeoutError:
            raise TimeoutError(f"{self.told('JobState')}: {self.written}") from None
        return self

    def wait_for_step(self, step: int) -> None:
        """Wait until training has made a step."""

        def reached() -> bool:
            path = self.output_dir / "metrics.jsonl"
            assert self.told("JobState") not in _OVER, self.written
            return path.exists() and any(e["step"] >= step for e in self.events("train"))

        wait_until(reached, f"step {step} of job {self.id}", _SECONDS_TO_RUN)

    @property
    def exit_code(self) -> int:
        return int(self.told("ExitCode").partition(":")[0])

    @property
    def restarts(self) -> int:
        return int(self.told("Restarts"))

    @property
    def written(self) -> str:
        """What it has written to its log so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    @property
    def status(self) -> dict[str, Any]:
        return json.loads((self.output_dir / "status.json").read_text())

    def events(self, kind: str) -> list[dict[str, Any]]:
        """The whole lines of metrics.jsonl of one kind, in order."""
        lines = (self.output_dir / "metrics.jsonl").read_text().splitlines(keepends=True)
        return [
            entry for entry in (json.loads(line) for line in lines if line.endswith("\n")) if entry["event"] == kind
        ]


@dataclass(frozen=True)
class Submitting:
    """Where jobs are submitted from, and what they run."""

    cluster: Cluster
    recipe: Path
    folder: Path

    def __call__(self, name: str, script: str, *words: str, options: tuple[str, ...] = (), **environment: str) -> Job:
        """Submit `sbatch OPTIONS slurm/SCRIPT WORDS`, RECIPE in them being the recipe with a directory `name`."""
        output_dir = self.folder / name
        at = words.index("RECIPE") if "RECIPE" in words else len(words)
        arguments = (*words[:at], str(self.recipe), "--output_dir", str(output_dir), *words[at + 1 :])
        return self._submit(output_dir, (*options, f"slurm/{script}.sbatch", *arguments), environment)

    def command(self, name: str, command: str, *options: str) -> Job:
        """Submit a command of the user's own."""
        return self._submit(self.folder / name, (*options, "--wrap", command), {})

    def _submit(self, output_dir: Path, words: tuple[str, ...], environment: dict[str, str]) -> Job:
        log = output_dir.with_suffix(".out")
        settings = {"ONECURVE_VENV": sys.prefix, "OMP_NUM_THREADS": "1", **environment}
        sbatch = ("sbatch", "--parsable", f"--output={log}", *words)
        return Job(self.cluster, self.cluster.run(*sbatch, cwd=ROOT, **settings), output_dir, log)
