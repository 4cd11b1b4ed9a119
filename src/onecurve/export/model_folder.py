"""Writes the model folder for `from_pretrained`, and verifies it by reading it back."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from torch import Tensor, nn

from onecurve.adapters.buffers import adapter_buffers
from onecurve.adapters.read_back import differences
from onecurve.data import Data
from onecurve.errors import LaunchError, TrainingError
from onecurve.export.adapter_folder import has_token_embeddings, write_base
from onecurve.export.card import TrainedOn, model_card
from onecurve.export.head_folders import finish_heads, has_heads, usage_of_heads, write_with_heads
from onecurve.export.usage import usage
from onecurve.machine.cores import return_memory
from onecurve.model.construction import whole_parameters
from onecurve.model.generation import settle_generation
from onecurve.model.task_file import TaskFile
from onecurve.preflight import Checked
from onecurve.ranks.heartbeat import beat
from onecurve.strategies.base import Strategy
from onecurve.strategies.plain import Plain


@dataclass(frozen=True)
class Exporter:
    """Writes the model, or with PEFT its adapter and head, with processor and card. Every rank calls it."""

    checked: Checked
    data: Data
    strategy: Strategy
    accelerator: Accelerator
    processor: Any

    def __call__(self, name: str, step: int, scores: dict[str, dict[str, Any]]) -> None:
        """Write the weights as they stand into the run directory's folder `name`.

        Args:
            name: The folder.
            step: The step whose weights they are.
            scores: Split -> its scores, for the card.

        Raises:
            TrainingError: It cannot be written, or what was read back is not what was trained.
        """
        beat("export")
        settle_generation(self.strategy.unwrapped(), self.checked.task, self.processor)
        data = TrainedOn(self.data.survey.labels, len(self.data.train), self.data.fingerprint)
        card = partial(model_card, self.checked.recipe, data, self.checked.config, step, scores)
        recipe, folder = self.checked.recipe, self.checked.directory.path / name
        task = TaskFile.of(
            recipe.task.name, self.checked.task, self.data.survey, recipe.data.columns, self.data.max_length
        )
        if problem := _save(folder, self.strategy, self.accelerator, self.processor, card, task):
            raise TrainingError(f"{folder} is not there. {problem} {self.checked.directory.again()}")


def save_alone(
    folder: Path, model: Any, processor: Any, card: Callable[[str], str], task: TaskFile | None = None
) -> None:
    """Write a model folder from a process of its own: the same folder as at a run's end.

    Args:
        folder: Where.
        model: With or without an adapter.
        processor: Its tokenizer, or what else reads its inputs.
        card: Makes the README.md of what is said there about loading the folder.
        task: What it was trained for, where that is known.

    Raises:
        LaunchError: The folder cannot be written, or what was read back is not the model.
    """
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    strategy = Plain(accelerator, "no", 0.0)
    strategy.prepare(model, torch.optim.SGD(model.parameters()), 1)  # nothing steps it
    if problem := _save(folder, strategy, accelerator, processor, card, task):
        raise LaunchError(problem, where=str(folder))


def _save(
    folder: Path,
    strategy: Strategy,
    accelerator: Accelerator,
    processor: Any,
    card: Callable[[str], str],
    task: TaskFile | None,
) -> str:
    """Write, read back, and return what went wrong: empty when nothing did."""
    return_memory()  # the weights are read back beside the model
    if folder.is_symlink():  # to a place on another disk: written there, and the link stays
        folder = folder.resolve()
    adapter = hasattr(strategy.unwrapped(), "peft_config")
    values = _gather(strategy, accelerator, adapter)
    unfinished = folder.with_name(folder.name + ".incomplete")
    main, problem = accelerator.is_main_process, ""
    try:
        if main:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
        _write(unfinished, strategy.unwrapped(), values, main, adapter)
        if main:
            problem = _finish(unfinished, folder, strategy.unwrapped(), values, processor, card, task)
            if task:
                task.write(unfinished, strategy.unwrapped().config)
            if not problem:
                shutil.rmtree(folder, ignore_errors=True)
                unfinished.rename(folder)
    except (OSError, SafetensorError, KeyError, ValueError) as error:  # the last two are PEFT's, of what it misses
        problem = f"It could not be written: {str(error).rstrip('.')}."
    failed = int(accelerator.reduce(torch.tensor(float(bool(problem)), device=accelerator.device), "sum"))
    return problem or ("See rank 0's message." if failed else "")


def _write(folder: Path, model: Any, values: dict[str, Tensor], main: bool, adapter: bool) -> None:
    if adapter:  # on every rank: PEFT runs prompt encoders forward to save them, and ZeRO-3 gathers for that
        with TemporaryDirectory() as elsewhere:  # PEFT makes the folder on every rank, before rank 0 does or after it
            # Where PEFT sees a new vocab_size it would save embeddings, which what writes letters to sounds has not
            embeddings = "auto" if has_token_embeddings(model.get_base_model()) else False
            model.save_pretrained(
                folder if main else elsewhere,
                state_dict=dict(values),
                is_main_process=main,
                save_embedding_layers=embeddings,
            )
    elif main and has_heads(model):
        write_with_heads(folder, model, values)
    elif main:
        model.save_pretrained(folder, state_dict=dict(values))  # a copy: it empties its argument


def _finish(
    folder: Path,
    final: Path,
    model: Any,
    values: dict[str, Tensor],
    processor: Any,
    card: Callable[[str], str],
    task: TaskFile | None,
) -> str:
    """Write what lies beside the weights, read the weights back, and return how they differ from what was trained."""
    processor.save_pretrained(folder)
    adapter = hasattr(model, "peft_config")
    base = write_base(folder, final, model) if adapter else None
    heads = has_heads(model)
    use = usage_of_heads(final.absolute(), model) if heads else usage(final.absolute(), model, base)
    (folder / "README.md").write_text(card(use), encoding="utf-8")
    with whole_parameters():
        different = differences(folder, model, values) if adapter else _verify_model(folder, model, values)
        if heads and not different:
            different = finish_heads(folder, final, model, values, processor, card, task)
    return f"What was saved is not what was trained. {different}" if different else ""


def _gather(strategy: Strategy, accelerator: Accelerator, adapter: bool) -> dict[str, Tensor]:
    """Collect whole values in host memory: what belongs to an adapter on every rank, a model's on rank 0."""
    model = strategy.unwrapped()
    keep = adapter or accelerator.is_main_process
    if not keep:
        for _ in strategy.full_parameters(trained_only=adapter):  # ZeRO-3 gathers on all ranks together
            pass
        return {}
    seen: dict[int, Tensor] = {}
    values: dict[str, Tensor] = {}
    if adapter:
        values.update({k: _copied(v, v, seen) for k, v in adapter_buffers(model, aliases=True)})
    else:
        state = model.state_dict(keep_vars=True)
        # Parameters come below, once; in the state dict's order, which is the file's
        values.update({k: v if isinstance(v, nn.Parameter) else v.detach().cpu() for k, v in state.items()})
    for name, value in strategy.full_parameters(trained_only=adapter):
        values[name] = _copied(model.get_parameter(name), value, seen)
    assert not any(isinstance(value, nn.Parameter) for value in values.values())
    return values


def _copied(held: Tensor, value: Tensor, seen: dict[int, Tensor]) -> Tensor:
    """Return the host's copy of a value: what is tied or shared stays one tensor, so that it is written once."""
    if id(held) not in seen:
        fleeting = hasattr(held, "ds_id")  # ZeRO-3 gathers it for the moment
        seen[id(held)] = value.detach().to("cpu", copy=fleeting).contiguous()
    return seen[id(held)]


def _verify_model(folder: Path, model: Any, values: dict[str, Tensor]) -> str:
    reloaded, found = type(model).from_pretrained(folder, dtype="auto", output_loading_info=True)
    if found["missing_keys"] or found["mismatched_keys"]:
        return f"Not in the folder: {', '.join(map(str, [*found['missing_keys'], *found['mismatched_keys']]))}."
    for name, value in reloaded.state_dict().items():
        if not torch.equal(value, values[name]):
            return f"The tensor {name} differs."
    return ""
