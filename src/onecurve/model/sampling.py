"""Draws tokens by a key of the example and the position, so that a text does not depend on its batch or rank."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper
from transformers.generation.logits_process import TopPLogitsWarper

from onecurve.seeds import stream_key


class KeyedNoise(LogitsProcessor):
    """Adds Gumbel noise to the logits: the largest sum is then a draw from their distribution.

    So a search that takes the likeliest token samples. Upstream's own draw takes all rows of a batch from one stream.
    Source: Gumbel, Statistical theory of extreme values, 1954; Maddison et al., A* sampling, 2014, section 2.
    """

    def __init__(self, keys: Sequence[int]) -> None:
        """Begin texts at position 0.

        Args:
            keys: Of each row of the batch, whatever row it is.
        """
        self.keys, self.position = keys, 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Add this position's noise to scores [batch, vocabulary]; what is excluded, at minus infinity, stays so."""
        noise = np.stack([_gumbel(stream_key(key, "sample", self.position), scores.shape[1]) for key in self.keys])
        self.position += 1
        return scores.float() + torch.from_numpy(noise).to(scores.device)


def _gumbel(key: int, size: int) -> np.ndarray:
    """Return float32 [size]; from raw Philox output, which NumPy keeps the same, unlike its distributions."""
    bits = np.random.Philox(key=key).random_raw(size)
    uniform = ((bits >> np.uint64(12)) + 0.5) / 2.0**52  # neither 0 nor 1
    return (-np.log(-np.log(uniform))).astype(np.float32)


class Observed(LogitsProcessor):
    """Changes nothing: keeps the log-probability of each token that is taken, and the entropy of what it is of."""

    def __init__(self) -> None:
        self.latest: Tensor | None = None
        self.logps: list[Tensor] = []
        self.entropies: list[Tensor] = []
        """Of each position so far: float32 [batch]."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Look at scores [batch, vocabulary], after temperature and before anything is excluded or added."""
        self._take(input_ids[:, -1])
        self.latest = scores.float().log_softmax(-1)
        self.entropies.append(torch.special.entr(self.latest.exp()).sum(-1))
        return scores

    def finish(self, written: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log-probabilities and entropies of what was written, int64 [batch, tokens]: float32, likewise."""
        self._take(written[:, -1])
        return torch.stack(self.logps, 1), torch.stack(self.entropies, 1)

    def _take(self, tokens: Tensor) -> None:
        if self.latest is not None:
            self.logps.append(self.latest.gather(1, tokens[:, None])[:, 0])


def sampling(options: dict[str, Any], keys: Sequence[int], observed: Observed | None = None) -> dict[str, Any]:
    """Return the options of a `generate` that takes the likeliest token, with processors that make it sample.

    Args:
        options: With `do_sample`, and `temperature`, `top_k` and `top_p` where they are set.
        keys: Of each prompt, in their order.
        observed: Is shown what is drawn from.
    """
    rest = {name: value for name, value in options.items() if name not in ("temperature", "top_k", "top_p")}
    processors = LogitsProcessorList()
    if temperature := options.get("temperature"):
        processors.append(TemperatureLogitsWarper(float(temperature)))
    if observed:
        processors.append(observed)
    if top_k := options.get("top_k"):
        processors.append(TopKLogitsWarper(top_k))
    if (top_p := options.get("top_p")) is not None and top_p < 1:
        processors.append(TopPLogitsWarper(float(top_p)))
    processors.append(KeyedNoise(keys))
    return {**rest, "do_sample": False, "num_beams": 1, "logits_processor": processors}
