"""Kernels that add up in the same order each time: on a GPU torch takes faster ones by default."""

import os
import re

from onecurve.errors import ConfigError

_UNKNOWN = re.compile(r"^(\S.*?) does not have a deterministic implementation")
"""Of at::globalContext().alertNotDeterministic, in torch's Context.cpp."""


def compute_deterministically() -> None:
    """Have torch take deterministic kernels only; call it before the accelerator is used.

    Attention's backward pass, scatters and sums by index then give the same bits each time; an operator that has no
    such kernel raises. cuBLAS needs workspaces of a fixed size for it. Source: torch.use_deterministic_algorithms.
    """
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs time; nothing here reads such memory


def mistake_of_determinism(error: BaseException) -> ConfigError | None:
    """Return what to say where an error is that an operator has no deterministic kernel; None for any other."""
    found = _UNKNOWN.match(str(error)) if isinstance(error, RuntimeError) else None
    if found is None:
        return None
    return ConfigError(
        f"torch has no deterministic kernel here for {found[1]}.", where="train.deterministic", fix="Set it to false."
    )
