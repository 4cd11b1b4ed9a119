"""One model tried as a run uses it: its gradient under several cuts, a resumed step, and what is saved read back."""

import contextlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onecurve.data import Data, Loader, load_data, plan_run
from onecurve.data.collation import as_scored
from onecurve.data.plan import BatchPlan
from onecurve.errors import UserError
from onecurve.evaluation import Best
from onecurve.export.model_folder import Exporter
from onecurve.machine.distributed import start
from onecurve.model.loading import check_model, load_model
from onecurve.model.reach import probe
from onecurve.model.reading import Reading
from onecurve.optim import build_optimizer
from onecurve.preflight import Checked, read
from onecurve.resume import Checkpoints
from onecurve.step import accumulate, train_step
from onecurve.strategies import build_strategy
from onecurve.strategies.average import Average
from onecurve.strategies.base import Strategy, is_trained
from tests.launching import write_recipe
from tests.tasks.contract import OneProcess, distance, without_dropout
from tests.zoo.building import build
from tests.zoo.families import Family

ROWS = [
    {"text": "the dog and the fox " * (1 + 5 * number % 7) + ending, "label": "ab"[number % 2]}
    for number, ending in enumerate(("sleep", "in the sun", "jump", "were not", "return left", "add"))
]
"""Of six lengths, so that each micro-batch of several is padded."""
TOLERANCE = {64: 1e-6, 32: 1e-4}
"""The largest relative distance of two gradients that rounding explains, by the bits of the weights: some layers
compute in float32 whatever the dtype."""
_NO_FLOAT64 = ("got Double", "cannot be converted to type float without overflow")


@dataclass
class Outcome:
    """What became of one trial."""

    refused: str = ""
    """The one message of a run that was refused; empty where it was not."""
    gradient: float = 0.0
    """The largest relative distance of the step's gradient under two cuts of its batch."""
    alone: bool = False
    """Whether a model that was refused for its padding passes where nothing is padded."""
    bits: int = 64
    """Of the floats that it was computed in."""
    remarks: str = ""
    """What the run says of parameters that it does not train."""


def attempt(
    family: Family, task: str, peft: dict[str, Any] | None, folder: Path, kind: Any = None, **sections: Any
) -> Outcome:
    """Build a model of a family, train it for two steps and save it; raise `AssertionError` where something differs.

    Args:
        family: Of the model.
        task: The task's name.
        peft: The recipe's section; None trains all weights.
        folder: An empty one.
        kind: Of the checkpoint, where it is not the one that `build` takes.
        **sections: Further sections of the recipe.
    """
    build(family, folder / "base", kind)
    try:
        with _silent():
            return Trial(write_trial(folder, folder / "base", task, peft, **sections)).run()
    except UserError as refusal:
        return Outcome(refused=str(refusal).replace(f"{str(folder / 'base')!r}", "the model"))


def write_trial(
    folder: Path,
    base: Path,
    task: str,
    peft: dict[str, Any] | None,
    rows: Sequence[dict[str, Any]] = ROWS,
    **sections: Any,
) -> Path:
    """Write the recipe of a trial, with six rows of data, and return its path."""
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own: dict[str, Any] = {
        "task": {"name": task},
        "model": {"path": str(base)},
        "data": {"train": str(folder / "data.jsonl"), "cache_dir": str(folder / "cache"), "max_length": 64},
        "optim": {"name": "adamw", "lr": 1e-2, "schedule": "constant"},
        "train": {"max_steps": 2, "global_batch_size": len(ROWS), "micro_batch_size": 2, "packing": "off"},
    }
    for name, values in sections.items():
        own[name] = own.get(name, {}) | values
    return write_recipe(
        folder / "recipe.yaml", output_dir=str(folder / "run"), **own, **({"peft": peft} if peft else {})
    )


class Trial:
    """A run's parts, put together in the order of `train.py`."""

    def __init__(self, recipe: Path) -> None:
        self.checked: Checked = read([str(recipe)])
        self.recipe, self.task = self.checked.recipe, self.checked.task
        self.precision, _ = check_model(self.recipe)
        self.reading = Reading(self.recipe.model, self.recipe.data.max_length, self.task.auto_processor)
        self.data: Data = load_data(self.recipe.data, self.task, self.reading, self.recipe.seed)
        self.plan: BatchPlan = plan_run(self.data.splits, self.recipe)
        self.accelerator = start([], self.recipe.output_dir)
        self.checked.directory.path.mkdir()

    def run(self) -> Outcome:
        """Do all of it."""
        strategy, checkpoints, outcome = self.begin()
        self.model = strategy.unwrapped()
        assert checkpoints.resume() == 0
        outcome.gradient, outcome.bits = self.largest_distance_under_cuts()
        assert outcome.gradient <= TOLERANCE[outcome.bits], (
            f"another gradient under another cut: {outcome.gradient:.1e}"
        )
        self.step(strategy, checkpoints, 1)
        checkpoints.save(1)
        checkpoints.wait(needed=True)
        self.step(strategy, checkpoints, 2)
        self.same_step_after_resuming(strategy)
        exporter = Exporter(self.checked, self.data, strategy, self.accelerator, self.reading.tokenizer)
        exporter("model", 2, {})
        self.same_logits_read_plainly(strategy.unwrapped())
        return outcome

    def load(self) -> Any:
        config = Reading(self.recipe.model, None, self.task.auto_processor).config  # each model changes its own
        return load_model(self.recipe, self.task, config, self.data.survey, self.precision)

    def begin(self) -> tuple[Strategy, Checkpoints, Outcome]:
        """Load the model and have a strategy take it over."""
        model = self.load()
        strategy = build_strategy(self.accelerator, self.recipe, self.precision)
        remarks, sometimes = probe(
            model, self.recipe, self.task, self.data.train, self.reading, self.precision, self.accelerator
        )
        optimizer = build_optimizer(model, self.recipe.optim)
        strategy.prepare(model, optimizer, self.plan.most_passes(1), sometimes)
        average = Average(strategy, self.recipe.regularization)
        best = Best(self.task, self.recipe.eval, strategy, None, average)
        checkpoints = Checkpoints(self.checked, self.data, self.plan, strategy, best, self.accelerator)
        return strategy, checkpoints, Outcome(remarks=remarks)

    def loader(self) -> Loader:
        """Read the training split."""
        return Loader(self.data.train, self.task, self.reading, self.accelerator)

    def step(self, strategy: Strategy, checkpoints: Checkpoints, number: int) -> None:
        """Make one update, and see that it moved something."""
        before = trained(strategy.unwrapped())
        step = self.plan.step(number)
        outcome = train_step(strategy, self.loader(), step, 1e-2, self.recipe.seed, checkpoints.history)
        assert not outcome["fault"], outcome
        after = trained(strategy.unwrapped())
        assert any(not torch.equal(after[name], value) for name, value in before.items()), "nothing moved"

    def largest_distance_under_cuts(self) -> tuple[float, int]:
        """Compare the step's gradient in one padded micro-batch with that in smaller ones, without dropout.

        In float64, or in float32 where transformers has no kernel for it (grouped matrix products of experts) or masks
        with numbers that float32 cannot hold (Gemma 2).
        """
        try:
            found = self.gradients(torch.float64)
            bits = 64 if all(bool(gradient.isfinite().all()) for gradient in found) else 32
        except RuntimeError as error:
            if not any(word in str(error) for word in _NO_FLOAT64):
                raise
            bits = 32
        if bits == 32:
            found = self.gradients(torch.float32)
        assert bool(found[0].any()), "no gradient"
        assert all(bool(gradient.isfinite().all()) for gradient in found), "the gradient is not finite"
        return max(distance(found[0], other) for other in found[1:]), bits

    def gradients(self, dtype: torch.dtype) -> list[Tensor]:
        model = without_dropout(self.load()).to(dtype)
        sizes = (1, 1) if self.recipe.train.micro_batch_size == 1 else (len(ROWS), 2, 1)
        return [self.gradient(model, size) for size in sizes]

    def gradient(self, model: Any, size: int) -> Tensor:
        """The whole gradient of one step, its batch cut into micro-batches of a size."""
        split = self.data.train
        plan = BatchPlan(split.num_items, self.recipe.seed, len(split), size, max_steps=1)
        model.zero_grad(set_to_none=True)
        strategy: Any = OneProcess(model, 1)
        accumulate(strategy, self.loader(), plan.step(1), self.recipe.seed)
        trained = [p for p in model.parameters() if is_trained(p)]
        return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in trained])

    def same_step_after_resuming(self, strategy: Strategy) -> None:
        """Have another process's place taken: load everything anew, resume from step 1, and make step 2 again."""
        other, checkpoints, _ = self.begin()
        assert checkpoints.resume() == 1
        self.step(other, checkpoints, 2)
        ours, theirs = trained(other.unwrapped()), trained(strategy.unwrapped())
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            assert torch.equal(value, theirs[name]), f"{name} differs after resuming"

    def same_logits_read_plainly(self, model: Any) -> None:
        """Compare what plain transformers and PEFT compute from the saved folder with what was trained."""
        folder = self.checked.directory.model
        batch = as_scored(self.task, self.data.train.take(range(len(ROWS))), self.reading)
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        expected = logits(model, inputs)
        for reader, read_back in readers(self.task.auto_model(), folder, hasattr(model, "peft_config")):
            found = logits(read_back, inputs)
            mask = inputs["attention_mask"].bool() if found.dim() == 3 else ...
            apart = float((found - expected)[mask].abs().max())
            assert apart <= 1e-5 * float(expected.abs().max()), f"{reader} computes other logits: {apart:.1e}"


def readers(auto_model: Any, folder: Path, adapter: bool) -> Iterator[tuple[str, Any]]:
    """Load a saved folder in each way that its card shows."""
    yield "transformers", auto_model.from_pretrained(folder)
    if adapter:
        from peft import PeftModel

        yield "PEFT", PeftModel.from_pretrained(auto_model.from_pretrained(folder / "base"), folder)


def trained(model: Any) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if is_trained(p)}


@torch.no_grad()
def logits(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    return model.eval()(**inputs, **({"use_cache": False} if _takes_use_cache(model) else {})).logits


def _takes_use_cache(model: Any) -> bool:
    return hasattr(model.config.get_text_config(), "use_cache")


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep what upstream prints from the test's report."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
