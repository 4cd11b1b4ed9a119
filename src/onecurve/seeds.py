"""Random streams, keyed by purpose, never by rank or by previous draws."""

import random
from hashlib import blake2b


def stream_key(seed: int, *names: str | int) -> int:
    """Return the 64-bit key of the stream of `seed` and `names`.

    Keys of different names are unrelated, so that no stream repeats the draws of another.
    """
    text = "\x1f".join(str(part) for part in (seed, *names))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def start_stream(seed: int, *names: str | int) -> None:
    """Seed every global generator (Python, NumPy, torch on all devices) with a stream's key."""
    import numpy
    import torch

    key = stream_key(seed, *names)
    random.seed(key)
    numpy.random.seed(key % 2**32)
    torch.manual_seed(key % 2**63)
