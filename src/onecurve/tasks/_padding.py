"""Rows of token ids as tensors: what tasks collate with."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from onecurve.tasks.base import Batch, Example

if TYPE_CHECKING:
    from torch import Tensor


def pad(rows: Sequence[Sequence[int]], value: int, left: bool = False, width: int = 0) -> "Tensor":
    """Pad rows of ids on the right, or on the left, to int64 [len(rows), the longest of them, or `width` if larger]."""
    import torch

    width = max(width, *map(len, rows))
    filled = ((list(row), [value] * (width - len(row))) for row in rows)
    return torch.tensor([padding + row if left else row + padding for row, padding in filled])


def pad_text(examples: Sequence[Example], pad_id: int, left: bool = False) -> Batch:
    """Return `input_ids`, `attention_mask` and, where an example has them, `token_type_ids`: int64 [batch, longest].

    The mask comes from lengths, never from `pad_id`: where that is also the end token, an end token stays one.
    """
    rows = [example["input_ids"] for example in examples]
    batch = {"input_ids": pad(rows, pad_id, left), "attention_mask": pad([[1] * len(row) for row in rows], 0, left)}
    types = [example.get("token_type_ids", [0] * len(example["input_ids"])) for example in examples]
    return batch | ({"token_type_ids": pad(types, 0, left)} if any(map(any, types)) else {})
