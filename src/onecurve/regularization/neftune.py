"""NEFTune: uniform noise on the token embeddings of training.

x' = x + alpha / sqrt(L d) e, with e uniform in [-1, 1], for the L tokens of the example, padding left aside, and d
values of an embedding. Source: Jain et al., NEFTune, 2023, algorithm 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onecurve.machine.accelerator import on_host
from onecurve.regularization.base import Loss, Pass
from onecurve.regularization.embeddings import changed_embeddings
from onecurve.seeds import stream_key


@dataclass(frozen=True)
class Neftune:
    """A loss computed with noise on the embeddings, drawn for each example from a stream of its own."""

    loss: Loss
    alpha: float

    def __call__(self, one: Pass) -> Tensor:
        mask, keys = each_row(on_host(one.batch["attention_mask"]), one.keys)
        with changed_embeddings(one.model, lambda embedded: embedded + noise(embedded, mask, keys, self.alpha)):
            return self.loss(one)


def each_row(mask: Tensor, keys: Sequence[int]) -> tuple[Tensor, Sequence[int]]:
    """Return the mask and the key of each row that the model reads.

    Of examples with several sequences each, int64 [examples, sequences, longest], a row is a sequence with tokens: an
    example may have fewer.
    """
    if mask.dim() < 3:
        return mask, keys
    own = [stream_key(key, "sequence", number) for key in keys for number in range(mask.shape[1])]
    rows = mask.flatten(0, 1)
    there = rows.any(1)
    return rows[there], [key for key, is_read in zip(own, there.tolist(), strict=True) if is_read]


def noise(embedded: Tensor, mask: Tensor, keys: Sequence[int], alpha: float) -> Tensor:
    """Return the noise of a batch, zero where it is padded: like `embedded`, float [examples, sequence, size].

    Which other examples there are and how far it is padded change nothing of an example's.

    Args:
        embedded: For shape, dtype and device. It may hold the batch several times over; each time draws anew.
        mask: 1 at tokens, 0 at padding, on the host: int64 [len(keys), sequence].
        keys: Of each example.
        alpha: The strength.
    """
    generator = torch.Generator(embedded.device)
    result, size = torch.zeros_like(embedded), embedded.shape[2]
    for row in range(len(embedded)):
        copy, example = divmod(row, len(keys))
        length, start = int(mask[example].sum()), int(mask[example].argmax())
        scale = alpha / (length * size) ** 0.5
        generator.manual_seed((keys[example] + copy) % 2**63)
        drawn = torch.empty(length, size, device=embedded.device)
        result[row, start : start + length] = drawn.uniform_(-scale, scale, generator=generator).to(result.dtype)
    return result
