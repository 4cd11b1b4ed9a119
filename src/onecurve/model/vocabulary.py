"""Grows a model's vocabulary by the tokens that `model.add_tokens` names."""

from collections.abc import Mapping
from typing import Any

import torch

from onecurve.model.drawing import gathered
from onecurve.seeds import start_stream

_NOISE = 0.01
"""Of a new row, in standard deviations of the old ones: so that no two new tokens are the same."""


@torch.no_grad()
def grow(model: Any, tokens: Mapping[str, int], seed: int) -> str:
    """Give a model a row for each new token, where it has none yet, and start those rows anew.

    A row starts at the mean of all old ones, which moves no other token's probability much (Hewitt 2021, "Initializing
    New Word Embeddings for Pretrained Language Models"), and a little beside it. Rows that the checkpoint has in spare,
    as many models do, were never trained and start anew too. Under ZeRO-3 every rank calls this.

    Args:
        model: A transformers model, before an adapter is added; changed in place.
        tokens: Token -> its id.
        seed: The run's.

    Returns:
        What is new, for people.
    """
    old = model.config.get_text_config().vocab_size
    size = max(old, max(tokens.values()) + 1)
    if size > old:
        model.resize_token_embeddings(size, mean_resizing=False)
        model.config.get_text_config().vocab_size = size
    ids = sorted(tokens.values())
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    tables = [inputs.weight]
    if outputs is not None and outputs.weight is not inputs.weight:
        tables.append(outputs.weight)
    for number, table in enumerate(tables):
        start_stream(seed, "weights", "tokens", number)
        with gathered([table]):
            known = torch.ones(len(table), dtype=torch.bool)
            known[ids] = False
            known[old:] = False
            rows = table[known.to(table.device)].float().cpu()
            noise = torch.randn(len(ids), rows.shape[1]) * rows.std(0) * _NOISE
            table[torch.tensor(ids, device=table.device)] = (rows.mean(0) + noise).to(table)
    bias = getattr(outputs, "bias", None)
    if size > old and bias is not None:
        with gathered([bias]):
            bias[old:] = bias[:old].float().mean().to(bias)
    grown = f", vocabulary {old} -> {size}" if size > old else ""
    return f"{len(ids)} tokens{grown} ({', '.join(f'{token} {tokens[token]}' for token in tokens)}): start at the mean"
