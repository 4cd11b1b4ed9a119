"""Writing the model folder: what plain `from_pretrained` loads, read back and compared before it counts."""

import shutil
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from onecurve.card import model_card
from onecurve.data import Data
from onecurve.errors import TrainingError
from onecurve.model import whole_parameters
from onecurve.preflight import Checked
from onecurve.strategies.base import Strategy


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
            TrainingError: What was read back is not what was trained.
        """
        card = model_card(self.checked.recipe, self.data, self.checked.config, step, scores)
        _save(self.checked.directory.path / name, self.strategy, self.accelerator, self.tokenizer, card)


def _save(folder: Path, strategy: Strategy, accelerator: Accelerator, tokenizer: Any, card: str) -> None:
    model: Any = strategy.unwrapped()
    adapter = hasattr(model, "peft_config")
    values = _gather(strategy, accelerator, adapter)
    unfinished = folder.with_name(folder.name + ".incomplete")
    main, problem = accelerator.is_main_process, ""
    if main:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    if adapter:  # on every rank: PEFT runs prompt encoders forward to save them, and ZeRO-3 gathers for that
        model.save_pretrained(unfinished, state_dict=dict(values), is_main_process=main)
    elif main:
        model.save_pretrained(unfinished, state_dict=dict(values))  # a copy: it empties its argument
    if main:
        tokenizer.save_pretrained(unfinished)
        (unfinished / "README.md").write_text(card, encoding="utf-8")
        if adapter:  # label names lie in the base's config, which an adapter's folder would otherwise lack
            model.config.save_pretrained(unfinished)
        with whole_parameters():
            problem = _verify_adapter(unfinished, values) if adapter else _verify_model(unfinished, model, values)
        if not problem:
            shutil.rmtree(folder, ignore_errors=True)
            unfinished.rename(folder)
    if int(accelerator.reduce(torch.tensor(float(bool(problem)), device=accelerator.device), "sum")):
        raise TrainingError(f"{folder}: what was saved is not what was trained. {problem}".strip())


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
            key = id(strategy.unwrapped().get_parameter(name))
            if key not in seen:
                seen[key] = value.detach().to("cpu", copy=True).contiguous()
            values[name] = seen[key]
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
