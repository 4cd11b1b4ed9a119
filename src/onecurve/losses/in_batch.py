"""Contrastive loss of queries and documents: each query's own document against all others of a pool."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_ROWS = 1024
"""Queries whose scores are held at a time."""


def in_batch_losses(vectors: "Tensor", texts: "Tensor", temperature: float) -> "Tensor":
    """Return each query's cross-entropy of its own document among all documents of the pool: float32 [examples], nats.

    A document is no negative of a query if it is the positive of an equal query, or equal to one: such as a text that
    several examples share. Source: Henderson et al., Efficient Natural Language Response Suggestion for Smart Reply,
    2017; with several negatives an example, as sentence-transformers' MultipleNegativesRankingLoss.

    Args:
        vectors: Of each example its query, its positive and its negatives: float32 [examples, 2 + negatives, size].
            Scores are products, so normalise them for cosines.
        texts: A number for each text, equal for equal texts; 0 where an example has none there: int64
            [examples, 2 + negatives].
        temperature: What scores are divided by.
    """
    import torch
    from torch.utils.checkpoint import checkpoint

    documents = vectors[:, 1:].flatten(0, 1)
    blocks = list(_blocks(texts))

    def of_block(rows: slice, allowed: "Tensor") -> "Tensor":
        scores = vectors[rows, 0] @ documents.T
        # Taken off before the sum and not after it: scores over a small temperature are large beside the loss
        above = (scores - _own(scores, rows, texts.shape[1] - 1)[:, None]) / temperature
        return torch.logsumexp(above.masked_fill(~allowed, -torch.inf), 1)

    if len(blocks) == 1:
        return of_block(*blocks[0])
    # One block's scores at a time lie in memory, in the backward pass too
    return torch.cat([checkpoint(of_block, *one, use_reentrant=False, preserve_rng_state=False) for one in blocks])


def _own(scores: "Tensor", rows: slice, of_an_example: int) -> "Tensor":
    """Return each query's score of its own positive."""
    import torch

    own = torch.arange(rows.start, rows.start + len(scores), device=scores.device) * of_an_example
    return scores.gather(1, own[:, None])[:, 0]


def _blocks(texts: "Tensor") -> Iterator[tuple[slice, "Tensor"]]:
    """Yield some queries, and which documents each is compared with: bool [queries, examples * documents]."""
    import torch

    query_numbers = texts[:, 0].unique(return_inverse=True)[1]
    known, document_numbers = texts[:, 1:].unique(return_inverse=True)
    relevant = torch.zeros(int(query_numbers.max()) + 1, len(known), dtype=torch.bool, device=texts.device)
    relevant[query_numbers, document_numbers[:, 0]] = True
    there, flat, count = (texts[:, 1:] != 0).flatten(), document_numbers.flatten(), texts.shape[1] - 1
    for start in range(0, len(texts), _ROWS):
        rows = slice(start, min(start + _ROWS, len(texts)))
        allowed = there & ~relevant[query_numbers[rows]][:, flat]
        own = torch.arange(start, rows.stop, device=texts.device) * count
        yield rows, allowed.scatter(1, own[:, None], True)


def relevant_ranks(vectors: "Tensor", texts: "Tensor") -> list[list[int]]:
    """Rank all distinct documents of a pool for each query, and return the ranks of its relevant ones, from 1.

    Relevant are the positives of all examples that have the query. A document that scores the same as a relevant one
    comes before it: a model that tells nothing apart gets no credit.

    Args:
        vectors: As above.
        texts: As above.

    Returns:
        Of each example the ranks, the best first.
    """
    import torch

    queries = texts[:, 0].unique(return_inverse=True)[1]
    known, numbers = texts[:, 1:].unique(return_inverse=True)
    relevant = torch.zeros(int(queries.max()) + 1, len(known), dtype=torch.bool, device=texts.device)
    relevant[queries, numbers[:, 0]] = True
    # Of equal texts any: they have one vector, up to rounding
    first = torch.zeros(len(known), dtype=torch.int64, device=texts.device)
    first[numbers.flatten()] = torch.arange(numbers.numel(), device=texts.device)
    is_text = known != 0
    corpus, relevant = vectors[:, 1:].flatten(0, 1)[first[is_text]], relevant[:, is_text]
    found: list[list[int]] = []
    for start in range(0, len(texts), _ROWS):
        scores = vectors[start : start + _ROWS, 0] @ corpus.T
        scores = scores.where(scores.isfinite(), -torch.inf)  # a model that diverged gets no credit either
        for own, wanted in zip(scores, relevant[queries[start : start + _ROWS]], strict=True):
            others = own[~wanted].sort().values
            best = own[wanted].sort(descending=True).values
            before = len(others) - torch.searchsorted(others, best, right=False)
            found.append((before + torch.arange(1, len(best) + 1, device=before.device)).tolist())
    return found
