"""Writing the model folder: what plain `from_pretrained` loads, read back and compared before it counts."""

import shutil
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from torch import Tensor

from onecurve.data import Data
from onecurve.errors import LaunchError, TrainingError
from onecurve.export.card import TrainedOn, model_card
from onecurve.export.task_file import TaskFile
from onecurve.machine.cores import return_memory
from onecurve.model.loading import whole_parameters
from onecurve.preflight import Checked
from onecurve.ranks.heartbeat import beat
from onecurve.strategies.base import Strategy
from onecurve.strategies.plain import Plain


@dataclass(frozen=True)
class Exporter:
    """Writes the model, or with PEFT its adapter and head, with tokenizer and card. Every rank calls it."""

    checked: Checked
    data: Data
    strategy: Strategy
    accelerator: Accelerator
    tokenizer: Any

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
        data = TrainedOn(self.data.survey.labels, len(self.data.train), self.data.fingerprint)
        card = model_card(self.checked.recipe, data, self.checked.config, step, scores)
        recipe, folder = self.checked.recipe, self.checked.directory.path / name
        task = TaskFile.of(
            recipe.task.name, self.checked.task, self.data.survey, recipe.data.columns, self.data.max_length
        )
        if problem := _save(folder, self.strategy, self.accelerator, self.tokenizer, card, task):
            raise TrainingError(
                f"{folder} is not there. {problem} Launched again, the run goes on from its newest checkpoint."
            )


def save_alone(folder: Path, model: Any, tokenizer: Any, card: str, task: TaskFile | None = None) -> None:
    """Write a model folder from a process of its own: the same folder as at a run's end.

    Raises:
        LaunchError: The folder cannot be written, or what was read back is not the model.
    """
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    strategy = Plain(accelerator, "no", 0.0)
    strategy.prepare(model, torch.optim.SGD(model.parameters()), 1)  # nothing steps it
    if problem := _save(folder, strategy, accelerator, tokenizer, card, task):
        raise LaunchError(problem, where=str(folder))


def _save(
    folder: Path, strategy: Strategy, accelerator: Accelerator, tokenizer: Any, card: str, task: TaskFile | None
) -> str:
    """Write, read back, and return what went wrong: empty when nothing did."""
    return_memory()  # the weights are read back beside the model
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
            problem = _finish(unfinished, strategy.unwrapped(), values, tokenizer, card)
            if task:
                task.write(unfinished)
            if not problem:
                shutil.rmtree(folder, ignore_errors=True)
                unfinished.rename(folder)
    except (OSError, SafetensorError) as error:
        problem = f"It could not be written: {str(error).rstrip('.')}."
    failed = int(accelerator.reduce(torch.tensor(float(bool(problem)), device=accelerator.device), "sum"))
    return problem or ("Rank 0 knows why." if failed else "")


def _write(folder: Path, model: Any, values: dict[str, Tensor], main: bool, adapter: bool) -> None:
    if adapter:  # on every rank: PEFT runs prompt encoders forward to save them, and ZeRO-3 gathers for that
        with TemporaryDirectory() as elsewhere:  # PEFT makes the folder on every rank, before rank 0 does or after it
            model.save_pretrained(folder if main else elsewhere, state_dict=dict(values), is_main_process=main)
    elif main:
        model.save_pretrained(folder, state_dict=dict(values))  # a copy: it empties its argument


def _finish(folder: Path, model: Any, values: dict[str, Tensor], tokenizer: Any, card: str) -> str:
    """Write what lies beside the weights, read the weights back, and return how they differ from what was trained."""
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(card, encoding="utf-8")
    adapter = hasattr(model, "peft_config")
    if adapter:  # label names lie in the base's config, which an adapter's folder would otherwise lack
        model.config.save_pretrained(folder)
    with whole_parameters():
        different = _verify_adapter(folder, values) if adapter else _verify_model(folder, model, values)
    return f"What was saved is not what was trained. {different}" if different else ""


def _gather(strategy: Strategy, accelerator: Accelerator, adapter: bool) -> dict[str, Tensor]:
    """Collect whole values in host memory: an adapter's trained ones on every rank, a model's on rank 0."""
    values: dict[str, Tensor] = {}
    keep = adapter or accelerator.is_main_process
    if not adapter and keep:
        values.update({k: v.detach().cpu() for k, v in strategy.unwrapped().state_dict().items()})  # buffers too
    seen: dict[int, Tensor] = {}
    for name, value in strategy.full_parameters(trained_only=adapter):
        if keep:
            # tied parameters stay one tensor, so that they are written once
            parameter = strategy.unwrapped().get_parameter(name)
            if id(parameter) not in seen:
                fleeting = hasattr(parameter, "ds_id")  # ZeRO-3 gathers it for the moment
                seen[id(parameter)] = value.detach().to("cpu", copy=fleeting).contiguous()
            values[name] = seen[id(parameter)]
    return values


def _verify_adapter(folder: Path, values: dict[str, Tensor]) -> str:
    from peft import load_peft_weights

    # By content, since PEFT names tensors anew. Of a prompt encoder it saves what the encoder gives, not its weights.
    saved = {_digest(value) for value in load_peft_weights(str(folder), device="cpu").values()}
    missing = [name for name, v in values.items() if "prompt_encoder." not in name and _digest(v) not in saved]
    return f"Not in the folder: {', '.join(missing)}." if missing or not saved else ""


def _digest(value: Tensor) -> tuple[torch.Size, bytes]:
    return value.shape, blake2b(value.contiguous().view(torch.uint8).numpy().tobytes()).digest()


def _verify_model(folder: Path, model: Any, values: dict[str, Tensor]) -> str:
    reloaded, found = type(model).from_pretrained(folder, dtype="auto", output_loading_info=True)
    if found["missing_keys"] or found["mismatched_keys"]:
        return f"Not in the folder: {', '.join(map(str, [*found['missing_keys'], *found['mismatched_keys']]))}."
    for name, value in reloaded.state_dict().items():
        if not torch.equal(value, values[name]):
            return f"The tensor {name} differs."
    return ""
