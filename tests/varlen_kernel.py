"""A stand-in for torch's variable-length attention, which has no kernel for CPUs."""

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention


def document_by_document(
    query: Any, key: Any, value: Any, ends: Any, _: Any, longest: int, *rest: Any, **told: Any
) -> torch.Tensor:
    """Compute what the kernel computes: tensors of [tokens, heads, head size], cut at `ends`."""
    sizes = ends.diff().tolist()
    assert query.dtype == key.dtype == value.dtype and longest == max(sizes)
    assert told.get("enable_gqa") or query.shape[1] == key.shape[1]
    options = {"is_causal": told["window_size"] == (-1, 0), "scale": told["scale"]}
    options["enable_gqa"] = bool(told.get("enable_gqa"))
    parts = zip(*(t.transpose(0, 1).split(sizes, dim=1) for t in (query, key, value)), strict=True)
    return torch.cat([scaled_dot_product_attention(*part, **options).transpose(0, 1) for part in parts])
