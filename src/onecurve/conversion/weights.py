"""Reads weights saved by other tools, without running code in pickle files."""

import json
import os
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from onecurve.errors import ConfigError

_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "pytorch_model_fsdp.bin",
)
"""Where transformers and Accelerate put weights, the safe and whole ones first."""
_SHARDS_OF_ZERO = "*_optim_states.pt"
_WRAPPERS = ("module.", "_orig_mod.")
"""What DDP and torch.compile put before every name."""


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read a model's weights by name, from safetensors, PyTorch files, or DeepSpeed's float32 masters.

    Raises:
        ConfigError: No weights, those of several models, or a file that is damaged or could run code.
    """
    _refuse_several(folder)
    zero = _zero_folder(folder)
    if zero:
        return _read_zero(zero)
    name = next((name for name in _FILES if (folder / name).is_file()), None)
    if name is None:
        raise ConfigError(f"{folder} cannot be converted: no weights found. {_looked_for(folder)}")
    files = _shards(folder / name) if name.endswith(".index.json") else [folder / name]
    weights: dict[str, Tensor] = {}
    for file in files:
        weights |= _read_file(file)
    return _unwrapped(weights)


def _refuse_several(folder: Path) -> None:
    seconds = ("model_1.safetensors", "pytorch_model_1.bin", "pytorch_model_1")
    second = [name for name in seconds if (folder / name).exists()]
    if second:
        raise ConfigError(
            f"{folder} holds several models: {second[0]} lies beside the first.",
            fix="Copy the one you want to a folder of its own, as model.safetensors or pytorch_model.bin.",
        )


def _looked_for(folder: Path) -> str:
    if any(folder.glob("pytorch_model_fsdp_*")):
        return "It holds FSDP's shards: put them together with `accelerate merge-weights` first."
    return (
        f"Looked for a run's checkpoints/, a manifest.json, adapter_config.json, {', '.join(_FILES)}, and DeepSpeed's "
        f"{_SHARDS_OF_ZERO}."
    )


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ConfigError(f"no list of files can be read from it: {error}.", where=str(index)) from None
    return [_beside(index, name) for name in names]


def _beside(file: Path, name: str) -> Path:
    """Return what a file names in its own folder; a name that leads elsewhere is not followed.

    Raises:
        ConfigError: It does.
    """
    if not isinstance(name, str) or Path(name).name != name or name == "..":
        raise ConfigError(f"names {name!r}, which is no name in its own folder.", where=str(file))
    return file.parent / name


def _read_file(file: Path) -> dict[str, Tensor]:
    from transformers.modeling_utils import load_state_dict

    with _explained(file):
        weights = load_state_dict(file)
    if not all(isinstance(value, Tensor) for value in weights.values()):
        raise ConfigError("has other objects than tensors.", where=str(file))
    return weights


def _unwrapped(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in (*_WRAPPERS, *_WRAPPERS):  # either may lie around the other
        if weights and all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights


def _zero_folder(folder: Path) -> Path | None:
    """Find the shards of ZeRO: in the folder, or in the one that its `latest` names."""
    if any(folder.glob(_SHARDS_OF_ZERO)):
        return folder
    latest = folder / "latest"
    named = _beside(latest, latest.read_text(encoding="utf-8").strip()) if latest.is_file() else folder
    return named if any(named.glob(_SHARDS_OF_ZERO)) else None


def _read_zero(shards: Path) -> dict[str, Tensor]:
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    with _explained(shards), _only_what_deepspeed_stores(), redirect_stdout(StringIO()):
        return get_fp32_state_dict_from_zero_checkpoint(str(shards.parent), tag=shards.name)


@contextmanager
def _only_what_deepspeed_stores() -> Iterator[None]:
    """Hold torch.load to tensors and DeepSpeed's four plain classes: its converter asks for any pickle."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    saved = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    try:
        with torch.serialization.safe_globals([LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]):
            yield
    finally:
        del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
        if saved is not None:
            os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = saved


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        raise ConfigError(
            "is a pickle with more than tensors, which could run any code: not loaded"
            f"{f' (it holds {found[1]})' if found else ''}.",
            where=str(path),
            fix="If you trust it, load it where it was made and save it as model.safetensors.",
        ) from None
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, SafetensorError) as error:
        raise ConfigError(f"cannot be read: {str(error).strip().split(chr(10))[0]}.", where=str(path)) from None
