"""What goes wrong while a model is loaded, as messages."""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from safetensors import SafetensorError

from onecurve.errors import ConfigError, TrainingError
from onecurve.machine.memory import ran_out, spelt, total


@contextmanager
def explained(path: str, dtype: torch.dtype, device: torch.device | None) -> Iterator[None]:
    """Turn what goes wrong with files and memory while a model is loaded into messages.

    Raises:
        ConfigError: Files that cannot be read, or must not be.
        TrainingError: The device's memory does not hold the weights.
    """
    try:
        yield
    except pickle.UnpicklingError:
        raise ConfigError(
            f"{path!r} has weights in a pickle with more than tensors, which could run any code: not loaded.",
            where="model.path",
            fix="Use a folder with model.safetensors.",
        ) from None
    except SafetensorError as error:
        raise ConfigError(
            f"{path!r} has a weight file that is cut off or damaged: {str(error).strip()}.",
            where="model.path",
            fix="Copy or download it again.",
        ) from None
    except (OSError, ValueError, ImportError) as error:
        line = str(error).strip().split("\n")[0]
        raise ConfigError(f"{path!r} cannot be used: {line}", where="model.path") from None
    except RuntimeError as error:
        if not ran_out(error):
            raise
        where = device or torch.device("cpu")
        raise TrainingError(
            f"out of memory on {where}: its {spelt(total(where))} do not hold the weights of {path!r} in "
            f"{str(dtype).removeprefix('torch.')}. Launch with accelerate_configs/zero3.yaml on more GPUs or with "
            "zero3_offload.yaml, or train an adapter (peft.method) on weights in bfloat16 or in codes (model.dtype, "
            "model.quantization)."
        ) from None
