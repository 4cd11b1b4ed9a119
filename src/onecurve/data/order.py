"""Random orders from a stream's key, the same on every machine and with every version of NumPy."""

import numpy as np


def shuffled(size: int, key: int) -> np.ndarray:
    """Return a random order of the numbers below `size`: unsigned integers [size], as narrow as hold them."""
    # Sorting raw Philox output: NumPy freezes bit generators' streams, but not what `permutation` makes of them
    order = np.argsort(np.random.Philox(key=key).random_raw(size), kind="stable")
    return order.astype(np.min_scalar_type(size))  # ranks that share a machine hold one each


def uniform(size: int, key: int) -> np.ndarray:
    """Return random numbers from 0 to below 1: float64 [size]."""
    return (np.random.Philox(key=key).random_raw(size) >> np.uint64(11)) * 2.0**-53
