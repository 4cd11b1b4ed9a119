"""Suggests the nearest known name for an unknown one."""

from collections.abc import Iterable
from difflib import get_close_matches

_ELSEWHERE = {"gradient_checkpointing": "train.activations: recompute"}
"""Names from other tools, or from earlier versions -> the recipe's name."""


def nearest(unknown: str, known: Iterable[str]) -> str:
    """Suggest the known name that was probably meant, or list them all.

    Args:
        unknown: The name as the user wrote it, dotted or not.
        known: Every valid name.

    Returns:
        A sentence for an error message.
    """
    known = list(known)
    if said := _ELSEWHERE.get(unknown.rsplit(".", 1)[-1]):
        return f"Here that is '{said}'."
    return closest(unknown, known) or f"Known: {', '.join(sorted(known))}."


def closest(unknown: str, known: Iterable[str]) -> str:
    """Suggest the known name that was probably meant; empty if none is similar."""
    known = sorted(known)
    by_leaf = {name.rsplit(".", 1)[-1]: name for name in known}
    match = get_close_matches(unknown, known, n=1, cutoff=0.75)
    leaf = get_close_matches(unknown.rsplit(".", 1)[-1], by_leaf, n=1, cutoff=0.6)
    return f"Did you mean '{match[0] if match else by_leaf[leaf[0]]}'?" if match or leaf else ""
