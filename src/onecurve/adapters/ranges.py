"""Ranges of PEFT's numeric fields, which it checks late, far from the recipe, or not at all."""

import re
from typing import Any

_POSITIVE = re.compile(r"(r|rank|\w+_alpha|alpha|oft_block_size|num_virtual_tokens|num_layers|\w+_size|\w+_factor)$")
"""Fields where zero or less means nothing: a rank, a scale, a count, a size."""
_MAY_BE_ZERO = {"r", "oft_block_size"}
"""Of OFT: one of the two is derived where it is 0."""
_SHARE = re.compile(r"\w*dropout(_prob|_p)?$")


def out_of_range(method: str, key: str, value: Any) -> str:
    """Return the rule that a field's value breaks; empty where it breaks none.

    Args:
        method: In lower case.
        key: The field.
        value: Of the type that the field has.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    if _SHARE.match(key) and not 0 <= value < 1:
        return "must be at least 0 and less than 1"
    least = 0 if method in ("oft", "boft") and key in _MAY_BE_ZERO else 1
    if _POSITIVE.match(key) and (value < least if least == 0 else value <= 0):
        return "must be greater than 0" if least else "must be 0 or more"
    return ""
