"""Suggests known names for an unknown one."""

from collections.abc import Iterable, Mapping
from difflib import SequenceMatcher, get_close_matches
from typing import Any

from onecurve.config.other_tools import called_here

_LISTED = 12
"""How many names are listed where none is near."""
_LONGEST = 60
"""Characters of a name that is listed: what is taken for labels may be whole texts."""
_NEAREST = 3
"""How many near keys are suggested."""


def nearest(unknown: str, known: Iterable[str]) -> str:
    """Suggest the known name that was probably meant, or list them, the first of many.

    Args:
        unknown: The name as the user wrote it, dotted or not.
        known: Every valid name.

    Returns:
        A sentence for an error message.
    """
    known = list(known)
    return closest(unknown, known) or _listed("Known", sorted(known))


def closest(unknown: str, known: Iterable[str]) -> str:
    """Suggest the known name that was probably meant; empty if none is similar."""
    known = sorted(known)
    by_leaf = {name.rsplit(".", 1)[-1]: name for name in known}
    match = get_close_matches(unknown, known, n=1, cutoff=0.75)
    leaf = get_close_matches(unknown.rsplit(".", 1)[-1], by_leaf, n=1, cutoff=0.6)
    return f"Did you mean '{match[0] if match else by_leaf[leaf[0]]}'?" if match or leaf else ""


def meant(key: str, known: Iterable[str], unknown: Mapping[str, Any] | None = None) -> str:
    """Say which setting an unknown one is here, or suggest the nearest few.

    Args:
        key: As the user wrote it, dotted.
        known: Every key of the recipe, sections included.
        unknown: All unknown settings by their last part, with their values.

    Returns:
        A sentence for an error message.
    """
    known = sorted(known)
    section, _, leaf = key.rpartition(".")
    if (told := called_here(key, unknown or {})) and f"'{key}'" not in told:
        return told
    same = [name for name in known if name.rpartition(".")[-1] == leaf and "." in name]
    if same:
        return f"Did you mean {_either(same)}?"
    if not section and (near := get_close_matches(key, [name for name in known if "." not in name], 1, 0.75)):
        return f"Did you mean '{near[0]}'?"
    if head := get_close_matches(section, {name.partition(".")[0] for name in known}, 1, 0.75) if section else []:
        section = head[0]
    alike = sorted(((_likeness(leaf, section, name), name) for name in known), reverse=True)
    if near := [name for score, name in alike[:_NEAREST] if score >= max(0.72, alike[0][0] - 0.05)]:
        return f"Did you mean {_either(near)}?"
    inside = [name for name in known if section and name.startswith(f"{section}.")]
    return _listed("Known", inside) if inside else "`train.py --help` lists every key."


def _likeness(leaf: str, section: str, name: str) -> float:
    """Compare the last parts, and prefer the section that the user named."""
    head, _, last = name.rpartition(".")
    return SequenceMatcher(None, leaf, last).ratio() + 0.1 * (bool(head) and head == section)


def _either(names: list[str]) -> str:
    return " or ".join(f"'{name}'" for name in names)


def _listed(what: str, names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{what}: {', '.join(map(_short, names[:_LISTED]))}{more}."


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 3]}..."
