"""The black box: repeats a bad step with hooks, and writes its samples, batches and findings to a folder."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from onecurve.data.loader import Loader
from onecurve.data.plan import Step
from onecurve.machine.atomic_write import write_atomically
from onecurve.machine.versions import versions
from onecurve.model.reading import Reading
from onecurve.preflight import Checked
from onecurve.step import accumulate
from onecurve.strategies.base import Strategy
from onecurve.tasks.base import Survey

_NAMES_TOLD = 10


@dataclass
class _Pass:
    """Observations of one micro-batch's forward and backward pass."""

    outputs: dict[str, None] = field(default_factory=dict)
    """Modules whose output is not finite, in the order of the forward pass."""
    gradients: dict[str, Tensor] = field(default_factory=dict)
    """Parameter -> norm of this micro-batch's gradient, in the order of the backward pass."""

    @property
    def bad_gradients(self) -> list[str]:
        return [name for name, norm in self.gradients.items() if not norm.isfinite()]


@dataclass(frozen=True)
class BlackBox:
    """Writes <directory>/blackbox/step-N: report.json, samples.txt, and each rank's batches.

    A step depends only on its number and the weights, which are unchanged, so it can be repeated with hooks that would
    be too slow in normal training: on each layer's output and each rank's own gradient. The hooks are on modules and
    parameters, where every strategy computes the same.
    """

    checked: Checked
    strategy: Strategy
    loader: Loader
    survey: Survey
    reading: Reading

    def write(self, step: Step, outcome: dict[str, Any]) -> str:
        """Repeat a step and write what it shows; every rank calls it.

        Args:
            step: The step; its update has not been made.
            outcome: What `train_step` returned.

        Returns:
            A sentence with the findings and where they are written.
        """
        folder = self.checked.directory.path / "blackbox" / f"step-{step.number:08d}"
        loader, completed, _ = self.loader.completed(step)
        own = self._repeat(loader, completed)
        own["error"] = _error(lambda: self._write_batches(folder, loader, completed))
        ranks: list[dict[str, Any]] = gather_object([own])
        errors = [entry["error"] for entry in ranks if entry["error"]]
        if self.loader.accelerator.is_main_process:
            errors.append(_error(lambda: self._write_report(folder, step, outcome, ranks)))
        micro_batches = sorted((one for entry in ranks for one in entry["micro_batches"]), key=lambda m: m["position"])
        unwritten = "".join(f" It could not be written: {error}." for error in filter(None, errors[:1]))
        return f"{_found(outcome, micro_batches)}. See {folder}.{unwritten}"

    def _repeat(self, loader: Loader, step: Step) -> dict[str, Any]:
        accelerator, strategy = loader.accelerator, self.strategy
        scale = strategy.loss_scale.factor * accelerator.num_processes
        with _watched(strategy.unwrapped(), scale) as passes:
            sums = accumulate(strategy, loader, step, self.checked.recipe.seed)
        strategy.discard()
        largest: dict[str, Tensor] = {}
        for one in passes:
            for name, norm in one.gradients.items():
                largest[name] = torch.maximum(largest.get(name, norm), norm)
        weights: dict[str, float] = {}
        for window in strategy.windows(once=True):
            if window.key == "param":
                weights[window.name] = weights.get(window.name, 0.0) + float(_norm(window.view)) ** 2
        assert len(passes) == len(sums), (len(passes), len(sums))
        return {
            "micro_batches": [
                self._told(step, position, float(loss_sums.sum()), one)
                for (position, loss_sums), one in zip(sums, passes, strict=True)
            ],
            "gradients": {name: float(norm) for name, norm in largest.items()},
            "weights": weights,
        }

    def _told(self, step: Step, position: int, loss_sum: float, one: _Pass) -> dict[str, Any]:
        ids, counts = step.at(position)
        return {
            "position": position,
            "rank": self.loader.accelerator.process_index,
            "counts": counts,
            "sample_ids": ids.tolist(),
            "loss_sum": loss_sum,
            "gradient_norm": float(_norm(torch.stack(list(one.gradients.values())))) if one.gradients else 0.0,
            "outputs_not_finite": list(one.outputs)[:_NAMES_TOLD],
            "gradients_not_finite": one.bad_gradients[:_NAMES_TOLD],
        }

    def _write_batches(self, folder: Path, loader: Loader, step: Step) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            f"{one.position:05d}/{name}": tensor.cpu().contiguous()
            for one in loader.micro_batches(step)
            for name, tensor in one.batch.items()
        }
        save_file(tensors, folder / f"batch-rank-{self.loader.accelerator.process_index:05d}.safetensors")

    def _describe(self, number: int) -> str:
        return self.loader.task.describe(self.loader.split[number], self.survey, self.reading.tokenizer)

    def _write_report(self, folder: Path, step: Step, outcome: dict[str, Any], ranks: list[dict[str, Any]]) -> None:
        texts = (f"sample {number}\n{self._describe(number)}\n" for number in step.sample_ids.tolist())
        write_atomically(folder / "samples.txt", "\n".join(texts))
        squares = [entry["weights"] for entry in ranks]
        gradients = [entry["gradients"] for entry in ranks]
        report = {
            "step": step.number,
            **{key: outcome[key] for key in ("fault", "loss", "lr", "num_items", "sample_digest", "ranks")},
            "sample_ids": step.sample_ids.tolist(),
            "loss_scale": self.strategy.loss_scale.value,
            "strategy": type(self.strategy).__name__.lower(),
            "world_size": len(ranks),
            "device": str(self.loader.accelerator.device),
            "micro_batches": [one for entry in ranks for one in entry["micro_batches"]],
            "parameters": {
                name: {
                    "weight_norm": sum(part.get(name, 0.0) for part in squares) ** 0.5,
                    "largest_gradient_norm": _largest([part[name] for part in gradients if name in part]),
                }
                for name in dict.fromkeys(name for part in squares for name in part)
            },
            "versions": versions(),
        }
        write_atomically(folder / "report.json", json.dumps(_spelt(report), indent=1, allow_nan=False) + "\n")


@contextmanager
def _watched(model: nn.Module, scale: float) -> Iterator[list[_Pass]]:
    """Add the hooks to a model: each forward pass starts a new observation; gradients are divided by `scale`."""
    passes: list[_Pass] = []

    def output(name: str) -> Callable[..., None]:
        def look(module: nn.Module, inputs: Any, value: Any) -> None:
            if torch.is_grad_enabled() and isinstance(value, Tensor) and _is_broken(value):
                passes[-1].outputs.setdefault(name)

        return look

    def gradient(name: str) -> Callable[[Tensor], None]:
        def look(value: Tensor) -> None:
            norms, norm = passes[-1].gradients, _norm(value) / scale
            norms[name] = torch.hypot(norms[name], norm) if name in norms else norm

        return look

    def begin(*_: Any) -> None:
        # The first of two sweeps, of a loss that compares examples, has no gradients to look at
        passes.extend([_Pass()] * torch.is_grad_enabled())

    handles: list[Any] = [model.register_forward_pre_hook(begin)]
    handles += [m.register_forward_hook(output(name)) for name, m in model.named_modules() if not any(m.children())]
    handles += [p.register_hook(gradient(name)) for name, p in model.named_parameters() if p.requires_grad]
    try:
        yield passes
    finally:
        for handle in handles:
            handle.remove()


def _is_broken(value: Tensor) -> bool:
    return value.is_floating_point() and not bool(value.isfinite().all())


def _norm(values: Tensor) -> Tensor:
    return torch.linalg.vector_norm(values.detach(), dtype=torch.float64)


def _found(outcome: dict[str, Any], micro_batches: list[dict[str, Any]]) -> str:
    if outcome["fault"] == "spike":
        worst = max(micro_batches, key=lambda one: one["loss_sum"] / len(one["sample_ids"]))
        return f"most of it is in micro-batch {worst['position']} on rank {worst['rank']}"
    for one in micro_batches:
        if one["outputs_not_finite"] and not isfinite(one["loss_sum"]):
            first = f"the output of {one['outputs_not_finite'][0]}"
        elif not isfinite(one["loss_sum"]):
            first = "the loss itself"
        elif one["gradients_not_finite"]:
            first = f"the gradient of {one['gradients_not_finite'][0]}"
        else:
            continue
        return f"first not finite on rank {one['rank']}, in micro-batch {one['position']}, is {first}"
    where = f" on rank {', '.join(map(str, outcome['ranks']))}" if outcome["ranks"] else ""
    return f"repeating the step did not reproduce it, so check the hardware{where}"


def _error(work: Callable[[], None]) -> str:
    try:
        work()
    except OSError as error:
        return f"{error.strerror} ({error.filename})"
    except SafetensorError as error:  # what it makes of a full disk
        return str(error)
    return ""


def _largest(values: list[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).max()) if values else 0.0


def _spelt(value: Any) -> Any:
    """Return NaN and infinity as words, which JSON lacks."""
    if isinstance(value, dict):
        return {key: _spelt(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_spelt(entry) for entry in value]
    return str(value) if isinstance(value, float) and not isfinite(value) else value
