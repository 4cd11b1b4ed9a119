"""The run directory: who may write there, what the run was, and how it stands."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onecurve.config import curve_settings, read_yaml
from onecurve.errors import ConfigError, LaunchError, NothingToDo


def write_atomically(path: Path, text: str) -> None:
    """Replace a file in one step: a reader sees the old text or the new, never a part."""
    unfinished = path.with_name(f"{path.name}.incomplete")
    with open(unfinished, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)


@dataclass(frozen=True)
class RunDirectory:
    """Paths and status of one run."""

    path: Path

    @property
    def metrics(self) -> Path:
        """One JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def model(self) -> Path:
        """The trained model."""
        return self.path / "model"

    def check(self, resume: str, resolved: dict[str, Any]) -> None:
        """Check, writing nothing, that a run may use this directory.

        Args:
            resume: The recipe's train.resume.
            resolved: Every value of the recipe.

        Raises:
            ConfigError: It is no directory or holds another finished run, or the checkpoint named is none.
            NothingToDo: It holds this very run, finished.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"{str(self.path)!r} is a file.", where="output_dir")
        if resume not in ("auto", "never") and not (Path(resume) / "manifest.json").is_file():
            raise ConfigError(f"{resume!r} is no complete checkpoint.", where="train.resume")
        status = self.status()
        if resume != "auto" or status.get("status") != "done":
            return
        earlier = curve_settings(read_yaml((self.path / "config.yaml").read_text(encoding="utf-8")))
        asked = curve_settings(resolved)
        differing = sorted(key for key in earlier.keys() | asked.keys() if earlier.get(key) != asked.get(key))
        if not differing:
            raise NothingToDo(f"{self.path} is finished, at step {status['step']}: nothing left to do.")
        raise ConfigError(
            f"{str(self.path)!r} holds a finished run with another {', '.join(differing)}.",
            where="output_dir",
            fix="Choose another, or set train.resume to never to replace it.",
        )

    @property
    def checkpoints(self) -> Path:
        """One folder a checkpoint."""
        return self.path / "checkpoints"

    def open(self, config: str, step: int) -> None:
        """Start a run here, or go on after `step`: the resolved config, the metrics so far, status running.

        Raises:
            LaunchError: The directory cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path / "config.yaml", config)
            write_atomically(self.metrics, "".join(self._lines_until(step)))
        except OSError as error:
            raise LaunchError(f"{str(self.path)!r} cannot be written: {error.strerror}.", where="output_dir") from None
        self.set_status("running", step=step)

    def _lines_until(self, step: int) -> Iterator[str]:
        """What the metrics tell up to a step: what came after it will be told again."""
        if step and self.metrics.exists():
            for line in self.metrics.read_text(encoding="utf-8").splitlines(keepends=True):
                if line.endswith("\n") and json.loads(line)["step"] <= step:
                    yield line

    def set_status(self, status: str, *, step: int, exit_code: int | None = None, reason: str = "") -> None:
        """Say how the run stands: running, done, stopped or failed."""
        entry = {"status": status, "step": step, "exit_code": exit_code, "reason": reason}
        write_atomically(self.path / "status.json", json.dumps(entry, indent=1) + "\n")

    def status(self) -> dict[str, Any]:
        """Read what the last run here said of itself; empty when there was none."""
        try:
            return json.loads((self.path / "status.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
