"""Interrupting and continuing a run: what of it is saved, and what must still hold when it goes on."""

import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from accelerate import Accelerator

from onecurve import __version__
from onecurve.checkpoint import (
    Alone,
    Peers,
    Piece,
    Retention,
    SaveReport,
    Writer,
    check,
    find,
    load,
    read_manifest,
    read_state,
    supersede,
)
from onecurve.checkpoint.peers import on_first_rank
from onecurve.config import TrainSection, curve_settings
from onecurve.data import Data
from onecurve.data.plan import BatchPlan
from onecurve.errors import ConfigError, TrainingError
from onecurve.evaluation import Best
from onecurve.history import History
from onecurve.model.identity import weights_identity
from onecurve.planning.disk_forecast import checkpoint_bytes, model_bytes, require_room
from onecurve.preflight import Checked
from onecurve.ranks.heartbeat import beat
from onecurve.ranks.lost_rank import RankLost, is_loss
from onecurve.run.lifecycle import due
from onecurve.strategies.base import Strategy, Window

_BYTES_A_SECOND = 100e6
"""What a disk is thought to take before it was measured."""


class Checkpoints:
    """A run's checkpoints: the newest one to start from, and new ones as the run goes on."""

    def __init__(
        self, checked: Checked, data: Data, plan: BatchPlan, strategy: Strategy, best: Best, accelerator: Accelerator
    ) -> None:
        self.recipe, self.strategy, self.best, self.accelerator = checked.recipe, strategy, best, accelerator
        self.curve = curve_settings(checked.resolved) | {"data": data.fingerprint}
        if self.recipe.peft:
            self.curve["model.weights"] = weights_identity(self.recipe.model)
        self.described = {
            "recipe": checked.resolved,
            "survey": asdict(data.survey),
            "num_examples": len(data.train),
            "versions": versions(),
        }
        """For people, and for `checkpoint convert`, which has no data."""
        self.plan = plan
        self.root = checked.directory.checkpoints
        self.peers: Peers = _Group(accelerator) if accelerator.num_processes > 1 else Alone()
        self.run_id = ""
        self.num_bytes = checkpoint_bytes(strategy, self.recipe, accelerator)
        self.measured = 0.0
        self.unsaved = False
        """Whether the latest save failed."""
        section = checked.recipe.checkpoint
        self.history = History(self.recipe.train)
        self.resumed: dict[str, Any] | None = None
        """What the run goes on from, once `resume` has found it."""
        keeps_best = bool(self.recipe.eval.best_metric)
        self.keep = Retention(section.keep, section.keep_every, keeps_best, tuple(section.also))
        self.writer = Writer(self.root, self.peers, self.keep, section.on_error)
        strategy.before_update = self.writer.secure

    @property
    def seconds(self) -> float:
        """How long a save takes at most, from its start until it is complete."""
        return self.measured or 2 + self.num_bytes / _BYTES_A_SECOND

    def due(self, step: int) -> bool:
        """Whether a checkpoint is written after `step`."""
        section = self.recipe.checkpoint
        return step in section.also or (section.every > 0 and due(step, section.every, self.plan.max_steps))

    def resume(self) -> int:
        """Load the checkpoint the recipe asks for; return its step, 0 where the run starts from the beginning.

        Raises:
            ConfigError: There is none where one was named, or the run is no longer the one that wrote it.
        """
        folder = self._wanted()
        step = read_manifest(folder).step if folder else 0
        self._require_room(step)
        on_first_rank(self.peers, lambda: supersede(self.root, step))
        if folder is None:
            self.run_id = self.peers.broadcast(uuid4().hex)
            if 0 in self.recipe.checkpoint.also:
                self.save(0)
            return 0
        state = read_state(folder)
        changes = self._agree(folder, state["curve"])
        self._load(folder, state)
        self.run_id = state["run_id"]
        self.resumed = {
            "step": state["step"],
            "checkpoint": str(folder),
            "from_world_size": state["world_size"],
            "world_size": self.accelerator.num_processes,
            "changes": changes,
            # A checkpoint from before there were other cuts tells its micro_batch_size alone
            "from_cut": {key: state.get(key, TrainSection.model_fields[key].default) for key in self.recipe.train.cut},
        }
        return state["step"]

    def rewind(self) -> int | None:
        """Go back to this run's newest checkpoint; return its step, None where there is none."""
        self.wait(needed=False)
        found = find(self.root, self.peers, lambda line: print(line, file=sys.stderr))  # noqa: T201
        if found is None or read_manifest(found.folder).run_id != self.run_id:
            return None
        self._load(found.folder, read_state(found.folder))
        return found.step

    def _load(self, folder: Path, state: dict[str, Any]) -> None:
        tensors = read_manifest(folder).tensors
        named = [(*name.partition("/")[::2], stored) for name, stored in tensors.items()]
        self.strategy.create_state(
            (key, name, stored.shape, getattr(torch, stored.dtype))
            for key, name, stored in named
            if key not in ("param", "best")
        )
        if any(key == "best" for key, *_ in named):
            self.best.snapshot.take()  # makes room; the values are read below
        else:
            self.best.snapshot.kept.clear()
        load(folder, self._pieces(once=False), self.peers)
        self.strategy.loss_scale.load(state["loss_scale"])
        self.strategy.refresh()
        self.best.load(state["best"])
        self.history.load(state["history"])

    def save(self, step: int) -> float:
        """Save the run as it stands after `step`; return the seconds training stood still for it."""
        state = {
            "step": step,
            "run_id": self.run_id,
            "best_step": self.best.step if self.best.metric else None,
            "best": self.best.state(),
            "loss_scale": self.strategy.loss_scale.state(),
            "history": self.history.state(),
            "curve": self.curve,
            **self.described,
            "world_size": self.accelerator.num_processes,
            **self.recipe.train.cut,
        }
        beat("checkpoint", step)
        stall = self.writer.save(step, self._pieces(once=True), state)
        self._tell(self.writer.finished())
        return stall

    def wait(self, needed: bool) -> None:
        """Finish the save that is under way.

        Raises:
            TrainingError: It failed, and either it is needed or the recipe wants the run to end with it.
        """
        beat("checkpoint")
        reports = self.writer.wait()
        self._tell(reports)
        if needed and self.unsaved:
            raise TrainingError("what was trained since the last complete checkpoint is lost: see the error above")

    def _tell(self, reports: list[SaveReport]) -> None:
        """Take in how long saves took; say what failed where the recipe lets the run go on without it."""
        self.measured = max([self.measured, *(report.stall_seconds + report.write_seconds for report in reports)])
        if reports:
            self.unsaved = reports[-1].folder is None
        for report in reports if self.peers.rank == 0 else ():
            if report.error:
                print(f"train.py: {report.error}", file=sys.stderr, flush=True)  # noqa: T201

    def _require_room(self, after: int) -> None:
        final = model_bytes(self.strategy.unwrapped(), self.recipe)
        saves = [step for step in range(after + 1, self.plan.max_steps + 1) if self.due(step)]
        on_first_rank(self.peers, lambda: require_room(self.root, self.num_bytes, final, self.keep, saves))

    def _wanted(self) -> Path | None:
        asked = self.recipe.train.resume
        if asked == "never":
            return None
        if asked == "auto":
            found = find(self.root, self.peers, lambda line: print(line, file=sys.stderr))  # noqa: T201
            return found.folder if found else None
        problems = check(Path(asked), self.peers)
        if problems:
            raise ConfigError(f"{asked!r} is damaged: {'; '.join(problems)}.", where="train.resume")
        return Path(asked)

    def _agree(self, folder: Path, saved: dict[str, Any]) -> dict[str, list[Any]]:
        """Return what differs and may; refuse what differs and may not."""
        changes = {
            key: [saved.get(key), self.curve.get(key)]
            for key in sorted(saved.keys() | self.curve.keys())
            if saved.get(key) != self.curve.get(key)
        }
        refused = [key for key in changes if key not in self.recipe.train.allow_changes]
        if refused:
            told = "; ".join(f"{key} was {changes[key][0]!r} and is {changes[key][1]!r}" for key in refused)
            raise ConfigError(
                f"{folder} would go on with another curve: {told}.",
                where="train.resume",
                fix="Undo that, start anew with train.resume never, or set train.allow_changes to "
                f"[{', '.join(refused)}].",
            )
        return changes

    def _pieces(self, once: bool) -> Iterator[Piece]:
        windows: Iterable[Window] = [*self.strategy.windows(once), *self.best.snapshot.windows(once)]
        for w in windows:
            yield Piece(f"{w.key}/{w.name}", w.view, w.offset, w.numel, w.shape)


class _Group:
    """The other ranks, over a gloo group of their own: saving talks while training does."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.rank, self.world_size = accelerator.process_index, accelerator.num_processes
        self.group = torch.distributed.new_group(backend="gloo")

    def gather(self, value: Any) -> list[Any]:
        values = [None] * self.world_size
        self._with_all(torch.distributed.all_gather_object, values, value)
        return values

    def broadcast(self, value: Any) -> Any:
        values = [value]
        self._with_all(torch.distributed.broadcast_object_list, values, 0)
        return values[0]

    def barrier(self) -> None:
        self._with_all(torch.distributed.barrier)

    def _with_all(self, collective: Callable[..., object], *arguments: Any) -> None:
        try:
            collective(*arguments, group=self.group)
        except RuntimeError as error:
            if not is_loss(error):
                raise
            raise RankLost(str(error)) from None


def versions() -> dict[str, str]:
    """What the run was computed with: packages, Python, and the commit of the working directory where it has one."""
    packages = ("torch", "transformers", "accelerate", "deepspeed", "peft", "bitsandbytes", "torchao")
    found = {name: version(name) for name in packages if find_spec(name)}
    found |= {"onecurve": __version__, "python": platform.python_version()}
    if shutil.which("git"):
        asked = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
        found["commit"] = asked.stdout.strip()
    return found
