"""The run directory: its lock, the run's recipe, and its status."""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from errno import EACCES, EROFS
from functools import cached_property
from pathlib import Path
from typing import Any

from onecurve.config import curve_settings, read_yaml
from onecurve.errors import ConfigError, LaunchError, NothingToDo, TrainingError
from onecurve.machine.atomic_write import write_atomically
from onecurve.machine.distributed import launched_rank
from onecurve.machine.latest import follow
from onecurve.machine.run_lock import RunLock
from onecurve.run.differences import COMPARED_BY_CONTENT, changed_settings, is_longer, not_applied, shown, written_since


@dataclass(frozen=True)
class RunDirectory:
    """Paths and status of one run."""

    path: Path

    @cached_property
    def lock(self) -> RunLock:
        """The lock of the run that uses it."""
        return RunLock(self.path / "lock", quiet=launched_rank() > 0)

    @property
    def metrics(self) -> Path:
        """One JSON object per line."""
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
            ConfigError: Not a directory, or it holds another finished run, or the named checkpoint is invalid.
            LaunchError: It cannot be written, or another run uses it.
            NothingToDo: It holds this same run, finished.
        """
        status, goes_on = self.status(), resume == "auto"
        if resume == "never":
            job, restarts = self.lock.us.job, self.lock.us.restarts
            goes_on = (
                bool(job) and restarts > 0 and status.get("job") == job
            )  # Slurm has requeued the job that began it
        elif resume != "auto":
            goes_on = self._earlier().get("train", {}).get("resume") == resume  # it began from there, and goes on
            if not goes_on and not os.path.isfile(follow(Path(resume)) / "manifest.json"):
                raise ConfigError(f"{resume!r} is not a complete checkpoint.", where="train.resume")
        if goes_on and status.get("status") == "done":
            self._refuse_finished(status, resolved)
        try:
            self._check_writable()
            # Where no agent ends them with rank 0, the others would wait for it in the rendezvous, deaf to signals. No
            # rank of this launch can hold the lock by now: rank 0 takes it when all have joined the process group
            if launched_rank() == 0 or "TORCHELASTIC_RUN_ID" not in os.environ:
                self.lock.check()
        except OSError as error:
            raise self._unwritable(error) from None

    def _refuse_finished(self, status: dict[str, Any], resolved: dict[str, Any]) -> None:
        earlier = curve_settings(self._earlier())
        asked = curve_settings(resolved)
        differing = sorted(key for key in earlier.keys() | asked.keys() if earlier.get(key) != asked.get(key))
        if not differing and self._is_more_patient(resolved):
            return self._check_extendable(["eval.patience"])
        if not differing:
            self._refuse_other_data(resolved)
            raise NothingToDo(
                f"{self.path} is finished, at step {status['step']}: nothing left to do."
                + not_applied(self._earlier(), resolved)
            )
        changed = {key: (earlier.get(key), asked.get(key)) for key in differing}
        if is_longer(changed, status["step"], resolved["train"]["allow_changes"]):
            return self._check_extendable(differing)
        raise ConfigError(
            f"{str(self.path)!r} holds a finished run with another {shown(changed)}.",
            where="output_dir",
            fix="Choose another, or set train.resume to never to replace it.",
        )

    def _refuse_other_data(self, resolved: dict[str, Any]) -> None:
        """Refuse other names of training data: a run that goes on compares what they name, and here nothing reads it.

        Raises:
            ConfigError: They are other names.
        """
        if changed := changed_settings(self._earlier(), resolved, COMPARED_BY_CONTENT):
            raise ConfigError(
                f"{str(self.path)!r} holds a finished run with another {shown(changed)}; nothing is trained.",
                where="output_dir",
                fix="Choose another, or set train.resume to never to replace it. If the same data have another name "
                "now, the run is done.",
            )

    def rewritten(self, names: Iterable[str]) -> str:
        """Return the first of these data that was written after the latest launch here read it; empty if none was."""
        return written_since((self.path / "config.yaml").stat().st_mtime_ns, names)  # which follows the reading

    @property
    def fingerprint(self) -> str:
        """What the newest checkpoint says of the training data; empty where there is none."""
        return str(self._newest_state().get("curve", {}).get("data", ""))

    def _newest_state(self) -> dict[str, Any]:
        path = follow(self.checkpoints / "latest") / "state.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def require_curve(self, resolved: dict[str, Any], where: str) -> None:
        """Check that the run here has the curve of another recipe.

        Args:
            resolved: Every value of that recipe; what its train.allow_changes names may differ.
            where: The setting that names this folder.

        Raises:
            ConfigError: It has another, or there is none.
        """
        earlier, asked = curve_settings(self._earlier()), curve_settings(resolved)
        if not earlier:
            raise ConfigError(f"{str(self.path)!r} has no config.yaml, which says how it was trained.", where=where)
        keys = (earlier.keys() | asked.keys()) - {*resolved["train"]["allow_changes"]}
        if changed := {k: (earlier.get(k), asked.get(k)) for k in sorted(keys) if earlier.get(k) != asked.get(k)}:
            raise ConfigError(
                f"{str(self.path)!r} holds a run with another {shown(changed)}.",
                where=where,
                fix="Set them as they were there, or name them in train.allow_changes.",
            )

    def _is_more_patient(self, resolved: dict[str, Any]) -> bool:
        """Whether eval.patience ended the run before its last step, and would not have as it is now."""
        before, now = self._earlier().get("eval", {}).get("patience"), resolved["eval"]["patience"]
        if before is None or (now is not None and now <= before):
            return False
        state = self._newest_state()
        return not state or state["step"] < state.get("max_steps", 0)

    def _check_extendable(self, differing: list[str]) -> None:
        """Check that a finished run whose length was raised has a checkpoint to continue from."""
        if not any(self.checkpoints.glob("step-*/manifest.json")):
            raise ConfigError(
                f"{str(self.path)!r} holds a finished run with another {', '.join(differing)}, and no checkpoint to "
                "continue from.",
                where="train.resume",
                fix=f"Start a new run from its model, with a new optimizer and schedule: set model.path to {self.model}"
                " and choose another output_dir. To be able to extend a run, leave checkpoint.every at a number.",
            )

    def _earlier(self) -> dict[str, Any]:
        """The recipe of the latest run here; empty where there was none."""
        path = self.path / "config.yaml"
        return read_yaml(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def _check_writable(self) -> None:
        existing = next(path for path in (self.path, *self.path.absolute().parents) if path.exists())
        if not existing.is_dir():
            raise ConfigError(f"{str(existing)!r} is a file.", where="output_dir")
        if not os.access(existing, os.W_OK | os.X_OK):
            number = EROFS if os.statvfs(existing).f_flag & os.ST_RDONLY else EACCES
            raise OSError(number, os.strerror(number))

    def _unwritable(self, error: OSError) -> LaunchError:
        return LaunchError(
            f"{str(self.path)!r} cannot be written: {error.strerror}.",
            where="output_dir",
            fix="Choose a folder that this user can write, on a disk with free space.",
        )

    @property
    def checkpoints(self) -> Path:
        """One folder per checkpoint."""
        return self.path / "checkpoints"

    @property
    def ranks(self) -> Path:
        """Heartbeats, one file per rank; removed when the run ends without failure."""
        return self.path / "ranks"

    def take(self) -> None:
        """Make the directory and keep other runs out of it.

        Raises:
            LaunchError: Another run uses it, or it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock.acquire()
        except OSError as error:
            raise self._unwritable(error) from None

    def open(self, config: str, step: int) -> None:
        """Start a run here, or go on after `step`: the resolved config, the metrics so far, status running.

        Raises:
            LaunchError: It cannot be written.
        """
        try:
            write_atomically(self.path / "config.yaml", config)
            write_atomically(self.metrics, "".join(self._lines_until(step) if step else ()))
            self._write_status("running", step=step)
        except OSError as error:
            raise self._unwritable(error) from None

    def append(self, line: str) -> None:
        """Add a line to the metrics; one cut short is left out when the run goes on.

        Raises:
            TrainingError: It cannot be written, or another run has taken the directory.
        """
        self.lock.confirm()
        try:
            # Not created here: a directory that vanished is said, not begun anew
            with open(os.open(self.metrics, os.O_WRONLY | os.O_APPEND), "w", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise self._stopped_by(error, self.metrics) from None

    def cut(self, step: int) -> None:
        """Remove the metrics of the steps after this one, because the run goes back to it.

        Raises:
            TrainingError: It cannot be written.
        """
        self.lock.confirm()
        try:
            write_atomically(self.metrics, "".join(self._lines_until(step)))
        except OSError as error:
            raise self._stopped_by(error, self.metrics) from None

    def _lines_until(self, step: int) -> Iterator[str]:
        """The metrics up to a step; later steps will be logged again."""
        if self.metrics.exists():
            for line in self.metrics.read_text(encoding="utf-8").splitlines(keepends=True):
                if line.endswith("\n") and json.loads(line)["step"] <= step:
                    yield line

    def set_status(
        self, status: str, *, step: int, exit_code: int | None = None, reason: str = "", lost: bool = False
    ) -> None:
        """Write the run's status: running, done, stopped or failed; `lost`: a rank, a node or the network was.

        Raises:
            TrainingError: It cannot be written.
        """
        try:
            self._write_status(status, step=step, exit_code=exit_code, reason=reason, lost=lost)
        except OSError as error:
            raise self._stopped_by(error, self.path / "status.json") from None

    def _write_status(
        self, status: str, *, step: int, exit_code: int | None = None, reason: str = "", lost: bool = False
    ) -> None:
        entry: dict[str, Any] = {"status": status, "step": step, "exit_code": exit_code, "reason": reason}
        if lost:  # which need not happen again, unlike what the steps themselves bring about
            entry["lost"] = True
        if self.lock.us.job:  # so that a batch script can tell its own launch's status from another's
            entry |= {"job": self.lock.us.job, "restarts": self.lock.us.restarts}
        write_atomically(self.path / "status.json", json.dumps(entry, indent=1) + "\n")

    def again(self) -> str:
        """Return a sentence on what launching again does."""
        if not self.path.is_dir():
            return f"{str(self.path)!r} is no longer there."
        names = (path.parent.name for path in self.checkpoints.glob("step-*/manifest.json"))
        complete = [name for name in names if name.removeprefix("step-").isdigit()]  # not what was set aside
        if complete:
            newest = max(complete, key=lambda name: int(name.removeprefix("step-")))
            return f"Launch again with train.resume auto to resume from the newest checkpoint, {newest}."
        return "There is no checkpoint: launched again, the run starts from the beginning."

    def _stopped_by(self, error: OSError, path: Path) -> TrainingError:
        return TrainingError(f"{str(path)!r} cannot be written: {error.strerror}. Fix that. {self.again()}")

    def status(self) -> dict[str, Any]:
        """Read the status of the last run here; empty if there was none."""
        try:
            return json.loads((self.path / "status.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
