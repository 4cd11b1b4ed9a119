"""Attention within each of several documents that are concatenated in one row."""

import inspect
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "packed"
"""What a model's attention implementation is called while its micro-batches are packed."""
_HALF = (torch.bfloat16, torch.float16)
_LARGEST_HEAD, _HEAD_MULTIPLE = 256, 8
"""Of the variable-length kernel: the largest size of a head, and of what it must be a multiple."""
_NEEDED = {"scale", "window_size"}
"""Arguments without which a variable-length kernel is of no use here."""


@dataclass(frozen=True)
class Documents:
    """Where the documents of a packed row lie; made once a micro-batch and handed to every layer."""

    sizes: list[int]
    """Tokens of each document, in order; none is empty."""
    boundaries: Tensor
    """Where each document starts, and the row's end: int32 [documents + 1], on the row's device."""


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend within each document; where the call names no `documents`, do what transformers' sdpa does.

    Args:
        module: The attention layer.
        query: float [1, heads, tokens, head size]; keys and values may have fewer heads.
        key: See `query`.
        value: See `query`.
        attention_mask: Ignored where there are documents.
        dropout: The share of attention weights to drop.
        **kwargs: `documents`, and what transformers hands to every attention function.

    Returns:
        float [1, tokens, heads, head size], and no weights.
    """
    documents: Documents | None = kwargs.pop("documents", None)
    if documents is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, **kwargs)
    return _within(documents, module, query, key, value, dropout, kwargs), None


@torch.compiler.disable  # a graph would hold for these sizes only
def _within(
    documents: Documents,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout: float,
    told: dict[str, Any],
) -> Tensor:
    asked, scale = told.get("is_causal"), told.get("scaling")
    is_causal = bool(getattr(module, "is_causal", True) if asked is None else asked)
    query, key, value = _as_autocast(query, key, value)
    if _has_kernel(query, value, dropout, _kernel()):
        return _at_once(query, key, value, documents, is_causal, scale)
    options: dict[str, Any] = {"dropout_p": dropout, "is_causal": is_causal, "scale": scale}
    if query.shape[1] != key.shape[1]:
        options["enable_gqa"] = True
    return _one_by_one(query, key, value, documents.sizes, options)


AttentionInterface.register(NAME, attend)
# What is not packed, such as a generation with its cache, gets the masks it would have got
AttentionMaskInterface.register(NAME, sdpa_mask)


def _as_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Give tensors the dtype in which autocast would have them attend.

    Rotary embeddings leave queries and keys in float32 there, beside values in half precision. Of torch's functions
    only its own scaled_dot_product_attention casts them itself.
    """
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return tensors
    return tuple(tensor.to(torch.get_autocast_dtype(kind)) for tensor in tensors)


@dataclass(frozen=True)
class _Kernel:
    """Torch's variable-length attention, and what this version of it can be asked for."""

    call: Any
    groups_heads: bool
    """Whether it takes fewer keys than queries."""


def _has_kernel(query: Tensor, value: Tensor, dropout: float, kernel: _Kernel | None) -> bool:
    """Whether torch's variable-length kernel takes this: FlashAttention-2's limits, and no dropout.

    Source: the checks of mha_varlen_fwd and mha_varlen_bwd in torch's flash_attn/flash_api.cpp.
    """
    return (
        kernel is not None
        and query.is_cuda
        and query.dtype == value.dtype
        and query.dtype in _HALF
        and not dropout
        and query.shape[-1] == value.shape[-1] <= _LARGEST_HEAD
        and query.shape[-1] % _HEAD_MULTIPLE == 0
        and torch.cuda.get_device_capability(query.device)[0] >= 8
    )


@cache
def _kernel() -> _Kernel | None:
    """Return torch's variable-length kernel; None before torch 2.10, and for 2.10's own, without scale and window."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    takes = inspect.signature(varlen_attn).parameters
    return _Kernel(varlen_attn, "enable_gqa" in takes) if _NEEDED <= takes.keys() else None


def _at_once(
    query: Tensor, key: Tensor, value: Tensor, documents: Documents, is_causal: bool, scale: float | None
) -> Tensor:
    kernel = _kernel()
    assert kernel is not None
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    options: dict[str, Any] = {"scale": scale, "window_size": (-1, 0) if is_causal else (-1, -1)}
    if (groups := query.shape[1] // key.shape[1]) > 1:
        if kernel.groups_heads:
            options["enable_gqa"] = True
        else:
            key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    longest, ends = max(documents.sizes), documents.boundaries
    attended = kernel.call(query, key, value, ends, ends, longest, longest, **options)
    return attended[None]


def _one_by_one(query: Tensor, key: Tensor, value: Tensor, sizes: list[int], options: dict[str, Any]) -> Tensor:
    if len(set(sizes)) == 1:  # as a batch, which costs no copy
        rows = (t.unflatten(2, (len(sizes), -1)).squeeze(0).transpose(0, 1) for t in (query, key, value))
        return scaled_dot_product_attention(*rows, **options).transpose(1, 2).flatten(0, 1)[None]
    parts = zip(*(tensor.split(sizes, dim=2) for tensor in (query, key, value)), strict=True)
    return torch.cat([scaled_dot_product_attention(*part, **options).transpose(1, 2) for part in parts], dim=1)
