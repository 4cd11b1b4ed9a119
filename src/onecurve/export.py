"""Writing the model folder: what plain `from_pretrained` loads, read back and compared before it counts."""

import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from onecurve.errors import TrainingError
from onecurve.model import whole_parameters
from onecurve.strategies.base import Strategy


def save_model(strategy: Strategy, accelerator: Accelerator, tokenizer: Any, folder: Path, card: str) -> None:
    """Write the model, or with PEFT its adapter and head, with tokenizer and card. Every rank calls it.

    Raises:
        TrainingError: What was read back is not what was trained.
    """
    model = strategy.unwrapped()
    adapter = hasattr(model, "peft_config")
    values = _gather(strategy, accelerator, trained_only=adapter)
    problem = ""
    if accelerator.is_main_process:
        unfinished = folder.with_name(folder.name + ".incomplete")
        shutil.rmtree(unfinished, ignore_errors=True)
        with whole_parameters():
            model.save_pretrained(unfinished, state_dict=dict(values))  # type: ignore[operator]  # it empties its argument
            problem = _verify_adapter(unfinished, values) if adapter else _verify_model(unfinished, model, values)
        tokenizer.save_pretrained(unfinished)
        if adapter:  # label names lie in the base's config, which an adapter folder would otherwise lack
            model.config.save_pretrained(unfinished)  # type: ignore[union-attr,operator]
        (unfinished / "README.md").write_text(card, encoding="utf-8")
        if not problem:
            shutil.rmtree(folder, ignore_errors=True)
            unfinished.rename(folder)
    if int(accelerator.reduce(torch.tensor(float(bool(problem)), device=accelerator.device), "sum")):
        raise TrainingError(f"{folder}: what was saved is not what was trained. {problem}".strip())


def _gather(strategy: Strategy, accelerator: Accelerator, trained_only: bool) -> dict[str, Tensor]:
    values: dict[str, Tensor] = {}
    if not trained_only and accelerator.is_main_process:
        values.update({k: v.detach().cpu() for k, v in strategy.unwrapped().state_dict().items()})  # buffers too
    seen: dict[int, Tensor] = {}
    for name, value in strategy.full_parameters(trained_only):
        if accelerator.is_main_process:
            # tied parameters stay one tensor, so that they are written once
            key = id(strategy.unwrapped().get_parameter(name))
            if key not in seen:
                seen[key] = value.detach().to("cpu", copy=True).contiguous()
            values[name] = seen[key]
    return values


def _verify_adapter(folder: Path, values: dict[str, Tensor]) -> str:
    from peft import load_peft_weights

    saved = load_peft_weights(str(folder), device="cpu")
    written = sorted((value.shape, float(value.double().sum())) for value in saved.values())
    for name, value in values.items():
        if (value.shape, float(value.double().sum())) not in written:
            return f"The trained tensor {name} is not in the folder."
    return ""


def _verify_model(folder: Path, model: Any, values: dict[str, Tensor]) -> str:
    reloaded, found = type(model).from_pretrained(folder, dtype="auto", output_loading_info=True)
    if found["missing_keys"] or found["mismatched_keys"]:
        return f"Not in the folder: {', '.join(map(str, [*found['missing_keys'], *found['mismatched_keys']]))}."
    for name, value in reloaded.state_dict().items():
        if not torch.equal(value, values[name]):
            return f"The tensor {name} differs."
    return ""
