"""Checks that PEFT, loading an adapter's folder, gets the trained values."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from onecurve.adapters.buffers import adapter_buffers

_EMBEDDING = "prompt_encoder.default.embedding.weight"


def differences(folder: Path, model: Any, values: dict[str, Tensor]) -> str:
    """Read an adapter's folder as `PeftModel.from_pretrained` does and say where it differs; empty where it does not.

    PEFT's own code maps the file's names onto the model's, but what it would load is compared instead of loaded: no
    second base in memory, and the live model, partitioned by ZeRO-3 or not, stays as it is.

    Args:
        folder: What was saved.
        model: The live PEFT model.
        values: Trained parameters and adapter buffers by all their names, whole, in host memory; what modules share is
            one tensor.
    """
    from peft import load_peft_weights

    try:
        given = given_by(model, load_peft_weights(str(folder), device="cpu"))
    except (KeyError, ValueError, RuntimeError) as error:
        return f"PEFT cannot load it: {str(error).strip().splitlines()[0].rstrip('.')}."
    different = [
        names[0]
        for names in _stored_alike(model, values)
        if not any(_same(given.get(name), values[name]) for name in names)
    ]
    return f"Not in the folder, or with other values: {', '.join(different)}." if different else ""


def given_by(model: Any, stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what PEFT would put into a model from an adapter's file, by the model's own names."""
    from peft import set_peft_model_state_dict

    reader: Any = _Reader(model)
    set_peft_model_state_dict(reader, stored)
    return dict(reader.given)


class _Reader:
    """Stands where PEFT expects the model that it loads into: notes what it is given, and changes nothing."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.given: dict[str, Tensor] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def load_state_dict(self, state: dict[str, Tensor], **_: Any) -> None:
        self.given = dict(state)

    @property
    def prompt_encoder(self) -> dict[str, "_Reader"]:
        return {"default": self}

    def _load_adapter_state_dict(self, state: dict[str, Tensor]) -> None:
        self.given[_EMBEDDING] = state["prompt_embeddings"]


def _stored_alike(model: Any, values: dict[str, Tensor]) -> Iterator[list[str]]:
    """Yield the names of each value that PEFT stores as it is, under one of them where several modules share it."""
    prompts = {name for name in values if name.startswith("prompt_encoder.")}
    left_out = prompts if len(prompts) > 1 else set()  # of an encoder with an MLP its output is stored
    if getattr(model.peft_config["default"], "save_projection", True) is False:
        left_out |= {name for name, _ in adapter_buffers(model, aliases=True)}  # drawn again on loading
    alike: dict[int, list[str]] = {}
    for name, value in values.items():
        if name not in left_out:
            alike.setdefault(id(value), []).append(name)
    yield from alike.values()


def _same(given: Tensor | None, trained: Tensor) -> bool:
    return given is not None and given.dtype == trained.dtype and torch.equal(given, trained)
