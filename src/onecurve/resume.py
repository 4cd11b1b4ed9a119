"""Saving and resuming a run: what a checkpoint holds, and what must be unchanged when the run resumes."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from accelerate import Accelerator

from onecurve.checkpoint import (
    Alone,
    Peers,
    Retention,
    SaveReport,
    TensorWindow,
    Writer,
    choose_start,
    find,
    load,
    read_manifest,
    read_state,
    supersede,
)
from onecurve.checkpoint.absent import AVERAGE, Absent, absent_state, is_state, without
from onecurve.checkpoint.adapter_buffers import buffer_pieces, stored_buffers
from onecurve.checkpoint.folders import MANIFEST, folder_name
from onecurve.checkpoint.manifest import Stored
from onecurve.checkpoint.peers import on_first_rank
from onecurve.config import TrainSection, curve_settings
from onecurve.data import Data
from onecurve.data.plan import BatchPlan
from onecurve.errors import LaunchError, TrainingError
from onecurve.evaluation import Best
from onecurve.machine.speaker import spoken
from onecurve.machine.versions import versions
from onecurve.model.identity import weights_identity
from onecurve.model.remote_code import code_identity
from onecurve.planning.changed_run import allowed_changes, describe_changes, rest_of_plan
from onecurve.planning.disk_forecast import checkpoint_bytes, model_bytes, record_bytes, require_room
from onecurve.preflight import Checked
from onecurve.ranks.group import Group
from onecurve.ranks.heartbeat import beat
from onecurve.run.history import History
from onecurve.run.lifecycle import due
from onecurve.strategies.base import Strategy, Window, is_left_out

_BYTES_A_SECOND = 100e6
"""Assumed duration of a save before one was measured."""


class Checkpoints:
    """A run's checkpoints: loads the newest one at the start, and saves new ones during training."""

    def __init__(
        self, checked: Checked, data: Data, plan: BatchPlan, strategy: Strategy, best: Best, accelerator: Accelerator
    ) -> None:
        self.recipe, self.strategy, self.best, self.accelerator = checked.recipe, strategy, best, accelerator
        self.curve = curve_settings(checked.resolved) | {"data": data.fingerprint}
        if data.reference:
            self.curve["reference"] = data.reference
        if plan.mixture:
            self.curve["data.weights"] = dict(plan.mixture.weights)
        if code := code_identity(self.recipe.model):
            self.curve["model.code"] = code
        if (augmentation := checked.task.augmentation) and augmentation.code:
            self.curve["regularization.code"] = augmentation.code
        # What auto came to on this device: on another it may come to something else
        self.curve["train.mixed_precision"] = strategy.precision
        if self.recipe.peft or self.recipe.regularization.freezes:
            self.curve["model.weights"] = weights_identity(self.recipe.model)
        self.described = {
            "recipe": checked.resolved,
            "survey": asdict(data.survey),
            "num_examples": len(data.train),
            "versions": versions(),
        }
        """For people, and for `checkpoint convert`, which has no data."""
        self.left_out = [name for name, p in strategy.unwrapped().named_parameters() if is_left_out(p)]
        self.plan = plan
        """From `resume` on, the rest of the run, from what the checkpoint has seen."""
        self.root = checked.directory.checkpoints
        self.peers: Peers = Group(accelerator) if accelerator.num_processes > 1 else Alone()
        self.run_id = ""
        self.began: dict[str, Any] = {}
        self.num_bytes = checkpoint_bytes(strategy, self.recipe, accelerator)
        self.record_bytes = record_bytes(checked.task, self.recipe)
        self.measured = 0.0
        self.unsaved = False
        """Whether the latest save failed."""
        section = checked.recipe.checkpoint
        self.history = History(self.recipe.train)
        self.resumed: dict[str, Any] | None = None
        """The checkpoint that the run resumes from, set by `resume`."""
        self.unscored = 0
        """Its step, where the evaluation after it failed."""
        keeps_best = bool(self.recipe.eval.best_metric)
        self.keep = Retention(section.keep, section.keep_every, keeps_best, tuple(section.also))
        self.writer = Writer(self.root, self.peers, self.keep, section.on_error)
        strategy.before_update = self.writer.secure

    @property
    def seconds(self) -> float:
        """Longest duration of a save so far, from its start until it is complete."""
        return self.measured or 2 + self.num_bytes / _BYTES_A_SECOND

    def due(self, step: int) -> bool:
        """Whether a checkpoint is saved after `step`; the last step is, so that no later failure loses the run."""
        section = self.recipe.checkpoint
        every, last = section.every, self.plan.max_steps
        return step in section.also or (every is not None and (due(step, every, last) or self.best.exhausted))

    def resume(self) -> int:
        """Load the checkpoint that train.resume selects; return its step, 0 if the run starts from the beginning.

        Raises:
            ConfigError: The named checkpoint does not exist, or the recipe has changed in a way that changes the curve.
        """
        start = choose_start(self.recipe.train.resume, self.root, self.peers, _say)
        folder, self.began = start.folder, start.began
        if folder is None:
            self._require_room(0)
            on_first_rank(self.peers, lambda: supersede(self.root, -1))
            self.run_id = self.peers.broadcast(uuid4().hex)
            if 0 in self.recipe.checkpoint.also:
                self.save(0)
            return 0
        state = read_state(folder)
        changes = allowed_changes(folder, state, self.curve, self.recipe.train.allow_changes)
        self.plan = rest_of_plan(self.plan, state, self.curve, self.recipe)
        moved = [*describe_changes(state, changes, self.plan, self.recipe)]
        self._require_room(state["step"])
        on_first_rank(self.peers, lambda: supersede(self.root, state["step"]))
        dropped = self._load(folder, state)
        self.run_id, self.unscored = state["run_id"], state["step"] if state.get("unscored") else 0
        self.resumed = {
            "step": state["step"],
            "checkpoint": str(folder),
            "from_world_size": state["world_size"],
            "world_size": self.accelerator.num_processes,
            "changes": changes,
            "remarks": [remark for remark in (start.remark, *moved, *dropped) if remark],
            # Checkpoints of earlier versions have micro_batch_size only
            "from_cut": {key: state.get(key, TrainSection.model_fields[key].default) for key in self.recipe.train.cut},
        }
        return state["step"]

    def rewind(self) -> int | None:
        """Go back to this run's newest checkpoint; return its step, None if there is none."""
        self.wait(needed=self.writer.on_error == "stop")
        found = find(self.root, self.peers, _say)
        if found is None or read_manifest(found.folder).run_id != self.run_id:
            return None
        state = read_state(found.folder)
        self._load(found.folder, state)
        self.plan = rest_of_plan(self.plan, state, self.curve, self.recipe)
        return found.step

    def _load(self, folder: Path, state: dict[str, Any]) -> list[str]:
        """Load a checkpoint; return what of it is dropped, and why."""
        stored = read_manifest(folder).tensors
        tensors = without(stored, self.left_out)
        if self.peers.rank == 0 and (num_left_out := len(stored) - len(tensors)):  # trained by an earlier onecurve
            told = f"{folder}: {num_left_out} tensors not read: the loss does not depend on these parameters."
            print(told, file=sys.stderr)  # noqa: T201
        absent = absent_state(tensors)
        held: dict[str, Stored | Absent] = {**tensors, **absent}
        kinds = [(*name.partition("/")[::2], one.shape, one.dtype) for name, one in held.items()]
        self.strategy.create_state(
            (key, name, shape, getattr(torch, dtype)) for key, name, shape, dtype in kinds if is_state(key)
        )
        # Checkpoints of earlier versions do not say what the best step was scored by: take it from their recipe
        best = {
            "metric": state["recipe"]["eval"]["best_metric"],
            "dev": self.best.dev,
            "scoring": state["recipe"]["task"],
            "last_step": 0,
            "last_scores": {},
        }
        best |= state["best"]
        unused = self.best.make_room(best, {key for key, *_ in kinds})  # the values are read below
        begun = self.best.average.load(state.get("average"), state["step"])
        others = (*unused, *(AVERAGE,) * bool(begun))
        pieces = [_instead(piece, absent) for piece in self._pieces(once=False)]
        pieces += stored_buffers(self.strategy.unwrapped(), tensors)
        passed_over = stored.keys() - tensors.keys()
        unread = lambda name: name in passed_over or name.startswith(others)  # noqa: E731
        load(folder, filter(None, pieces), self.peers, unread)
        self.strategy.loss_scale.load(state["loss_scale"])
        self.strategy.refresh()
        self.history.load(state["history"])
        return [begun, self.best.load(best, state["step"])]

    def save(self, step: int) -> float:
        """Save the run after `step`; return the seconds that training was blocked."""
        state = {
            "step": step,
            "run_id": self.run_id,
            "began": self.began,
            "position": asdict(self.plan.position(step)),
            "max_steps": self.plan.max_steps,
            "best_step": self.best.step or None,
            "best": self.best.state(),
            "average": self.best.average.state(),
            "unscored": self.best.lacks(step, self.plan.max_steps),
            "loss_scale": self.strategy.loss_scale.state(),
            "history": self.history.state(),
            "left_out": self.left_out,
            "curve": self.curve,
            **self.described,
            "world_size": self.accelerator.num_processes,
            **self.recipe.train.cut,
        }
        beat("checkpoint", step)
        if last := step == self.plan.max_steps or self.best.exhausted:
            self.wait(needed=False)  # even if the previous save failed, there is no training left to stop
        buffers = buffer_pieces(self.strategy.unwrapped(), self.peers.rank, self.peers.world_size)
        stall = self.writer.save(step, chain(self._pieces(once=True), buffers), state, last)
        self._tell(self.writer.finished())
        return stall

    def rescue(self, step: int) -> str:
        """Save the run that ends between two updates on every rank alike, unless it is saved; say why it is not."""
        if step == (self.resumed["step"] if self.resumed else 0):
            return ""
        try:
            self.wait(needed=False)
            if on_first_rank(self.peers, lambda: (self.root / folder_name(step) / MANIFEST).is_file()):
                return ""
            if self.best.settled:
                return f"Step {step} is not saved: the model has the weights that are exported by now."
            self.save(step)
            reports = self.writer.wait()
        except (LaunchError, TrainingError) as error:
            return str(error)
        return next((report.error for report in reports if report.folder is None), "")

    def let_finish(self, seconds: float) -> None:
        """Wait at most so long for the save in progress, after a failure that leaves the other ranks alive."""
        self.writer.let_finish(seconds)

    def wait(self, needed: bool) -> None:
        """Finish the save in progress.

        Args:
            needed: Whether a failed save ends the run. For the last step it does not: the model can still be evaluated
                and written.

        Raises:
            TrainingError: It failed, and is needed.
        """
        beat("checkpoint")
        try:
            reports = self.writer.wait()
        except TrainingError:
            if needed:
                raise
            reports = self.writer.finished()
        self._tell(reports)
        if needed and self.unsaved:
            raise TrainingError("the training since the last complete checkpoint is lost: see the error above")

    def _tell(self, reports: list[SaveReport]) -> None:
        """Record how long saves took; print failures that do not end the run."""
        self.measured = max([self.measured, *(report.stall_seconds + report.write_seconds for report in reports)])
        if reports:
            self.unsaved = reports[-1].folder is None
        for error in (report.error for report in reports if report.error and self.peers.rank == 0):
            print(spoken(error), file=sys.stderr, flush=True)  # noqa: T201

    def _require_room(self, after: int) -> None:
        final = model_bytes(self.strategy.unwrapped(), self.recipe)
        saves = [step for step in range(after + 1, self.plan.max_steps + 1) if self.due(step)]
        written = (self.num_bytes, final, self.keep, saves, after, self.record_bytes * (self.plan.max_steps - after))
        on_first_rank(self.peers, lambda: require_room(self.root, *written))

    def _pieces(self, once: bool) -> Iterator[TensorWindow]:
        apart = (*self.best.windows(), *self.best.average.windows())
        windows: Iterable[Window] = [*self.strategy.windows(once), *apart]
        for w in windows:
            yield TensorWindow(f"{w.key}/{w.name}", w.view, w.offset, w.numel, w.shape)


def _say(line: str) -> None:
    print(line, file=sys.stderr)  # noqa: T201


def _instead(piece: TensorWindow, absent: Mapping[str, Absent]) -> TensorWindow | None:
    """Return the tensor to read a piece from; None if the piece stays zero."""
    if piece.tensor not in absent:
        return piece
    like = absent[piece.tensor].like
    return replace(piece, tensor=like) if like else None
