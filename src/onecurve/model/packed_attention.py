"""Attention within each of several documents that lie end to end in one row."""

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
    if _has_kernel(query, value, dropout):
        return _at_once(query, key, value, documents, is_causal, scale)
    options: dict[str, Any] = {"dropout_p": dropout, "is_causal": is_causal, "scale": scale}
    if query.shape[1] != key.shape[1]:
        options["enable_gqa"] = True
    return _one_by_one(query, key, value, documents.sizes, options)


AttentionInterface.register(NAME, attend)
# What is not packed, such as a generation with its cache, gets the masks it would have got
AttentionMaskInterface.register(NAME, sdpa_mask)


def _has_kernel(query: Tensor, value: Tensor, dropout: float) -> bool:
    """Whether torch's variable-length kernel takes this: FlashAttention-2's limits, and no dropout."""
    return (
        query.is_cuda
        and query.dtype in _HALF
        and not dropout
        and query.shape[-1] == value.shape[-1] <= 256
        and torch.cuda.get_device_capability(query.device)[0] >= 8
        and _kernel()[0] is not None
    )


@cache
def _kernel() -> tuple[Any, bool]:
    """Return torch's variable-length kernel, None before torch 2.10, and whether it takes fewer keys than queries."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None, False
    return varlen_attn, "enable_gqa" in inspect.signature(varlen_attn).parameters


def _at_once(
    query: Tensor, key: Tensor, value: Tensor, documents: Documents, is_causal: bool, scale: float | None
) -> Tensor:
    kernel, groups_heads = _kernel()
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    options: dict[str, Any] = {"scale": scale, "window_size": (-1, 0) if is_causal else (-1, -1)}
    if (groups := query.shape[1] // key.shape[1]) > 1:
        if groups_heads:
            options["enable_gqa"] = True
        else:
            key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    longest, ends = max(documents.sizes), documents.boundaries
    attended = kernel(query, key, value, ends, ends, longest, longest, **options)
    return attended[None]


def _one_by_one(query: Tensor, key: Tensor, value: Tensor, sizes: list[int], options: dict[str, Any]) -> Tensor:
    if len(set(sizes)) == 1:  # as a batch, which costs no copy
        rows = (t.unflatten(2, (len(sizes), -1)).squeeze(0).transpose(0, 1) for t in (query, key, value))
        return scaled_dot_product_attention(*rows, **options).transpose(1, 2).flatten(0, 1)[None]
    parts = zip(*(tensor.split(sizes, dim=2) for tensor in (query, key, value)), strict=True)
    return torch.cat([scaled_dot_product_attention(*part, **options).transpose(1, 2) for part in parts], dim=1)
