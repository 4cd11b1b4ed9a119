"""Saves checkpoints in the background; training waits only while GPU tensors are copied to host memory."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, TypeVar

from onecurve.checkpoint.folders import (
    INCOMPLETE,
    MANIFEST,
    REPLACED,
    STATE,
    clear,
    folder_name,
    overtaken,
    remove,
    steps,
    sync_folder,
)
from onecurve.checkpoint.manifest import Contribution, Damaged, FileEntry, assemble
from onecurve.checkpoint.peers import Peers
from onecurve.checkpoint.retention import Retention
from onecurve.checkpoint.staging import Staging
from onecurve.checkpoint.tensors import TensorWindow
from onecurve.errors import TrainingError
from onecurve.machine.atomic_write import write_atomically
from onecurve.machine.latest import LATEST

T = TypeVar("T")

PHASES = (
    "staged",
    "created",
    "half-written",
    "written",
    "exchanged",
    "state",
    "manifest",
    "moved-away",
    "renamed",
    "latest",
    "thinned",
)
"""What the `phase` argument of `Writer` is told, in this order; only a step saved again moves anything away."""

_ERRORS_SAID = 3


@dataclass(frozen=True)
class SaveReport:
    """How a save went; the same on every rank but for the seconds."""

    step: int
    folder: Path | None
    """Absent where nothing was committed."""
    error: str
    """Empty when all went well."""
    num_bytes: int
    """On disk, all ranks' files together."""
    stall_seconds: float
    """Training stood still: waiting for the save before, copying what lay on a device, or what its update overtook."""
    write_seconds: float
    """From then to the end, behind training."""


class SaveFailed(Exception):
    """A rank could not do its part; raised on all of them."""


class Writer:
    """Writes a run's checkpoints, one save at a time; every rank makes the same calls.

    Args:
        root: The folder of the checkpoints, the same on all ranks.
        peers: The other ranks. Called from a background thread, so not over a process group that training uses.
        keep: What stays when a newer one is complete.
        on_error: Whether a save that failed ends the run, at the next `save` or `wait`, or is only reported.
        phase: Told where in a save this rank is, for tests that stop there.
    """

    def __init__(
        self,
        root: Path,
        peers: Peers,
        keep: Retention,
        on_error: Literal["continue", "stop"] = "stop",
        phase: Callable[[str], None] = lambda name: None,
    ) -> None:
        self.root, self.peers, self.keep, self.on_error, self.phase = root, peers, keep, on_error, phase
        self.staging = Staging()
        self.thread = ThreadPoolExecutor(1, "checkpoint")
        self.under_way: Future[SaveReport] | None = None
        self.reports: list[SaveReport] = []
        self.failed: SaveReport | None = None

    def save(self, step: int, pieces: Iterable[TensorWindow], state: dict[str, Any], last: bool = False) -> float:
        """Wait for the save before, and write in the background what the pieces hold now.

        Call `secure` before their values change; after the `last` save, `wait`.

        Args:
            step: Names the checkpoint; one of the same step is replaced.
            pieces: What this rank writes; over all ranks each element of each tensor exactly once.
            state: Anything JSON holds; rank 0's is stored. `best_step` protects that step's checkpoint, `run_id` is
                copied to the manifest.
            last: Whether nothing is trained any more. Then what lies on a device needs no copy in host memory.

        Returns:
            Seconds that training stood still for it so far.

        Raises:
            TrainingError: The save before failed, and `on_error` is stop.
        """
        started = perf_counter()
        self._settle()
        text = json.dumps(state, indent=1) + "\n"
        self.staging.take(pieces, copy=not last)
        self.phase("staged")
        stall = perf_counter() - started
        facts = (str(state.get("run_id", "")), state.get("best_step"))
        self.under_way = self.thread.submit(self._save, step, text, facts, stall)
        return stall

    def secure(self) -> None:
        """Let the values change that the save under way was given: what it has not written yet is copied."""
        self.staging.secure()

    def wait(self) -> list[SaveReport]:
        """Finish the save under way; return the reports not returned before.

        Raises:
            TrainingError: It failed, and `on_error` is stop.
        """
        self._settle()
        return self._drain()

    def let_finish(self, seconds: float) -> None:
        """Wait for the save under way, whatever becomes of it: the run has failed, and ends after this."""
        if self.under_way is not None:
            wait_for([self.under_way], timeout=seconds)

    def finished(self) -> list[SaveReport]:
        """Return, without waiting, the reports not returned before, but for a failure that is still to be raised.

        Ranks finish at slightly different times: for telling, not for deciding.
        """
        if self.under_way is not None and self.under_way.done():
            self._collect(self.under_way)
        return self._drain()

    def _collect(self, future: "Future[SaveReport]") -> None:
        self.under_way = None
        report = future.result()
        self.reports.append(report)
        if report.error and self.on_error == "stop":
            self.failed = report

    def _drain(self) -> list[SaveReport]:
        told = [report for report in self.reports if report is not self.failed]
        self.reports = [report for report in self.reports if report is self.failed]
        return told

    def _settle(self) -> None:
        if self.under_way is not None:
            self._collect(self.under_way)
        failed, self.failed = self.failed, None
        if failed is not None:
            raise TrainingError(failed.error)

    def _save(self, step: int, state: str, facts: tuple[str, int | None], stall: float) -> SaveReport:
        started = perf_counter()
        work = self.root / (folder_name(step) + INCOMPLETE)
        folder, error, num_bytes = None, "", 0
        try:
            self._together(work, lambda: self._create(work), first_only=True)
            self.phase("created")
            written = self._together(work, lambda: self._write_own(work, step))
            self.phase("exchanged")
            num_bytes = sum(size for (_, size, _), _ in written)
            self._together(work, lambda: self._commit(work, step, state, facts[0], written), first_only=True)
            folder = self.root / folder_name(step)
            self._together(self.root, lambda: self._announce(step, facts[1]), first_only=True)
        except SaveFailed as failure:
            error = f"The checkpoint of step {step} {'is saved, but' if folder else 'could not be saved:'} {failure}."
            if folder is None and self.peers.rank == 0:
                shutil.rmtree(work, ignore_errors=True)
        self.staging.release()
        stall += self.staging.secured_seconds
        return SaveReport(step, folder, error, num_bytes, stall, perf_counter() - started)

    def _together(self, place: Path, action: Callable[[], T], first_only: bool = False) -> list[T]:
        """Do one's part and learn how the others fared: all go on or none."""
        value, error = None, ""
        if not first_only or self.peers.rank == 0:
            try:
                value = action()
            except OSError as failure:
                error = f"rank {self.peers.rank}: {failure.strerror or failure} ({failure.filename or place})"
            except Damaged as failure:
                error = f"rank {self.peers.rank}: {failure}"
        outcomes = self.peers.gather((error, value))
        errors = [error for error, _ in outcomes if error]
        if errors:
            more = [f"and {len(errors) - _ERRORS_SAID} more ranks"] if len(errors) > _ERRORS_SAID else []
            raise SaveFailed("; ".join(errors[:_ERRORS_SAID] + more))
        return [value for _, value in outcomes]

    def _create(self, work: Path) -> None:
        self.root.mkdir(exist_ok=True)  # not its parents: a run directory that vanished is said, not begun anew
        if work.exists():
            shutil.rmtree(work)
        work.mkdir()

    def _write_own(self, work: Path, step: int) -> Contribution:
        self.staging.require_finite()
        rank, world_size = self.peers.rank, self.peers.world_size
        name = f"rank-{rank:05d}-of-{world_size:05d}.safetensors"
        metadata = {"format": "pt", "step": str(step), "rank": str(rank), "world_size": str(world_size)}
        held = self.staging.held()
        return self.staging.write(work / name, metadata, self.phase), held

    def _commit(self, work: Path, step: int, state: str, run_id: str, written: list[Contribution]) -> None:
        for (name, size, _), _ in written:
            if not (work / name).is_file() or (work / name).stat().st_size != size:
                raise Damaged(f"{name} does not reach rank 0: {self.root} must be on a disk that all ranks share")
        content = state.encode()
        state_file = FileEntry(STATE, len(content), hashlib.sha256(content).hexdigest())
        manifest = assemble(step, run_id, state_file, written)
        write_atomically(work / STATE, state)
        self.phase("state")
        write_atomically(work / MANIFEST, manifest.to_text())
        sync_folder(work)
        self.phase("manifest")
        final = self.root / folder_name(step)
        if final.exists():
            replaced = final.with_name(final.name + REPLACED)
            clear(replaced)
            os.rename(final, replaced)
            self.phase("moved-away")
        os.rename(work, final)

    def _announce(self, step: int, best_step: int | None) -> None:
        sync_folder(self.root)
        self.phase("renamed")
        name = folder_name(step)
        write_atomically(self.root / LATEST, name + "\n")
        self.phase("latest")
        clear(self.root / (name + REPLACED))
        # By number and only after a commit: the newest complete one, and the one resumed from, are never the victim
        complete = [other for other in steps(self.root) if (self.root / folder_name(other) / MANIFEST).is_file()]
        for doomed in self.keep.doomed(complete, step, best_step):
            remove(self.root / folder_name(doomed))
        for abandoned in overtaken(self.root, step):
            clear(abandoned)
        self.phase("thinned")
