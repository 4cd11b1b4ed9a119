"""Label names: reading them from values, their order, and matching them to the rows of a trained head."""

import math
import re
from collections.abc import Iterable, Sequence
from reprlib import repr as short
from typing import Any

from onecurve.errors import BadRow

_INTEGER = re.compile(r"-?[0-9]+")


def label_name(value: str | int | float) -> str:
    """Return a label's name, the same one from every format.

    A whole number with a point is the integer: pandas turns integers beside missing values into floats.
    """
    if isinstance(value, bool):
        return str(value).lower()
    name = str(value).strip()
    whole, point, rest = name.partition(".")
    return whole if point and rest == "0" and _INTEGER.fullmatch(whole) else name


def read_name(value: Any) -> str:
    """Return the name that a row's value is.

    Raises:
        BadRow: Neither text nor a whole number, or empty.
    """
    if not isinstance(value, str | int) and not (isinstance(value, float) and value.is_integer()):
        hint = "; for numbers to predict set task.problem_type: regression" if isinstance(value, float) else ""
        kind = type(value).__name__
        raise BadRow(f"label must be text or a whole number; got {short(value)} ({kind}){hint}")
    if isinstance(value, float):
        value = int(value)  # 1e20 has no point
    if not (name := label_name(value)):
        raise BadRow("label is empty")
    return name


def read_number(value: Any) -> float:
    """Return the number that a row's value is.

    Raises:
        BadRow: Not a number, or not a finite one.
    """
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise BadRow(f"label must be a finite number; got {short(value)} ({type(value).__name__})")
    return number


def in_natural_order(names: Iterable[str]) -> list[str]:
    """Sort names: numbers by value, else A to Z."""
    names = list(names)
    are_numbers = all(_INTEGER.fullmatch(name) for name in names)
    return sorted(names, key=lambda name: (int(name), name) if are_numbers else (0, name))


def model_labels(config: Any) -> list[str]:
    """Return the label names in a model's config by the id that each has; none where the ids are not 0 to N-1."""
    names = {int(index): str(name).strip() for index, name in (getattr(config, "id2label", None) or {}).items()}
    return [names[index] for index in sorted(names)] if sorted(names) == list(range(len(names))) else []


def are_placeholders(names: Sequence[str]) -> bool:
    """Whether these are transformers' LABEL_0, LABEL_1, ..., which say nothing of what a head learnt."""
    return all(name == f"LABEL_{index}" for index, name in enumerate(names))


def rows_by_name(labels: Sequence[str], known: Sequence[str]) -> list[int] | None:
    """Return where each label stands among the known names; None unless both are the same names, whatever their case.

    Exact spelling goes first: case tells labels apart where it has to.
    """
    for spelled in (str, str.casefold):
        here, there = [spelled(name) for name in labels], [spelled(name) for name in known]
        if len(set(here)) == len(here) and sorted(here) == sorted(there):
            return [there.index(name) for name in here]
    return None


def head_rows(labels: Sequence[str], known: Sequence[str], in_given_order: bool) -> list[int] | None:
    """Return the row of a trained head that each label has; None where nothing tells.

    Args:
        labels: The run's labels by id.
        known: The names in the checkpoint's config, by row.
        in_given_order: Whether the recipe says the labels' order: it then names the rows of a head without names.
    """
    rows = rows_by_name(labels, known)
    if rows is None and len(known) == len(labels) and are_placeholders(known):
        rows = rows_by_name(labels, [str(index) for index in range(len(known))])
        if rows is None and in_given_order:
            rows = list(range(len(known)))
    return rows
