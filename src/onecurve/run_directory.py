"""The run directory: who may write there, what the run was, and how it stands."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onecurve.errors import ConfigError, LaunchError


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

    @property
    def model_last(self) -> Path:
        """The last step's weights, where `model` holds the best step's."""
        return self.path / "model-last"

    def check(self, resume: str) -> None:
        """Check, writing nothing, that a run may use this directory.

        Raises:
            ConfigError: It is no directory, or holds a finished run.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"{str(self.path)!r} is a file.", where="output_dir")
        if resume == "auto" and self.status().get("status") == "done":
            raise ConfigError(
                f"{str(self.path)!r} holds a finished run.",
                where="output_dir",
                fix="Choose another, or set train.resume to never to replace it.",
            )

    def open(self, config: str) -> None:
        """Start a run here: the resolved config, empty metrics, status running.

        Raises:
            LaunchError: The directory cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path / "config.yaml", config)
            self.metrics.write_text("", encoding="utf-8")
        except OSError as error:
            raise LaunchError(f"{str(self.path)!r} cannot be written: {error.strerror}.", where="output_dir") from None
        self.set_status("running", step=0)

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
