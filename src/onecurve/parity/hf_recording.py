"""What the Hugging Face Trainer did, step by step, in the form train.py writes it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback

from onecurve.checkpoint import Alone, Retention, TensorWindow, Writer
from onecurve.data import Split, Step
from onecurve.data.collation import Collation, Wanted
from onecurve.machine.distributed import launched_rank


class Examples(Dataset[tuple[int, Any]]):
    """A split's examples, each with its number."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        return index, self.split[index]


def pieces(model: nn.Module, optimizer: Any = None) -> Iterator[TensorWindow]:
    """Yield what is trained, whole, as a checkpoint stores it, and the optimizer's moments where it keeps them so."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            state = optimizer.state.get(parameter, {}) if optimizer is not None else {}
            whole = {key: value for key, value in state.items() if value.shape == parameter.shape}
            for key, value in {"param": parameter.data, **whole}.items():
                yield TensorWindow(f"{key}/{name}", value.view(-1), 0, value.numel(), tuple(value.shape))


class Recorder(TrainerCallback):
    """Remembers the pass and the samples of each step, saves the parameters, and stops after a step."""

    def __init__(self, folder: Path, steps: int) -> None:
        self.steps = steps
        self.drawn: dict[int, list[list[int]]] = {}
        """Step -> the samples of each of this rank's micro-batches."""
        self.epoch = -1
        """The pass over the data that the Trainer is in, 0-based."""
        self.writer = Writer(folder / "checkpoints", Alone(), Retention(last=2))

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self.epoch += 1

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        last = state.global_step in (self.steps, state.max_steps)
        if launched_rank() == 0 and (last or state.global_step == 1):
            model = rest["model"]
            while hasattr(model, "module"):
                model = model.module
            self.writer.save(state.global_step, pieces(model, rest["optimizer"]), {"step": state.global_step})
            self.writer.wait()
        control.should_training_stop |= last

    def lines(self, history: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return a train line a step; every rank has to call it."""
        of_ranks = gather_object([self.drawn])
        logged = {entry["step"]: entry for entry in history if "loss" in entry}
        return [
            {
                "event": "train",
                "step": step,
                "loss": entry["loss"],
                "grad_norm": entry.get("grad_norm"),
                "sample_digest": _digest(step, [drawn[step] for drawn in of_ranks]),
            }
            for step, entry in logged.items()
        ]


def _digest(step: int, of_ranks: list[list[list[int]]]) -> str:
    """Hash a step's samples in the order of passes, and in each pass of ranks: the plan's order."""
    drawn = [np.array(ids) for one_pass in zip(*of_ranks, strict=True) for ids in one_pass]
    return Step(step, np.concatenate(drawn), drawn, num_items=0, samples_before=0).sample_digest


def recording(recorder: Recorder) -> type[Trainer]:
    """Return the Trainer itself, which also tells `recorder` the samples of each micro-batch."""

    class RecordingTrainer(Trainer):
        def training_step(self, model: nn.Module, inputs: dict[str, Any], *rest: Any, **named: Any) -> torch.Tensor:
            ids = inputs.pop("sample_ids").tolist()
            recorder.drawn.setdefault(self.state.global_step + 1, []).append(ids)
            return super().training_step(model, inputs, *rest, **named)

    return RecordingTrainer


def collator(collation: Collation, seed: int, recorder: Recorder) -> Callable[[list[tuple[int, Any]]], dict[str, Any]]:
    """Return what makes the Trainer's batches: what is drawn for an example is drawn anew in each pass, as in train.py.

    Args:
        collation: Of the training split.
        seed: The run's.
        recorder: Knows the pass.
    """

    def collate(rows: list[tuple[int, Any]]) -> dict[str, Any]:
        ids = np.array([number for number, _ in rows])
        passes = np.full_like(ids, recorder.epoch)
        batch = collation(Wanted(seed, passes.tobytes(), ids.tobytes()))
        return {**batch, "sample_ids": torch.from_numpy(ids)}

    return collate
