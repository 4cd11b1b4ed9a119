"""A function that changes training texts: `regularization.text_function: recipes/cut_short.py:cut_short`."""

from numpy.random import Generator


def cut_short(text: str, rng: Generator) -> str:
    """Leave out what follows a word drawn by `rng`, in one text of four."""
    words = text.split()
    if rng.random() < 0.25 and len(words) > 1:
        words = words[: int(rng.integers(1, len(words)))]
    return " ".join(words)
