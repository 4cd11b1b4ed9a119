"""How a recipe differs from that of a finished run, and what it asks for that is left to do."""

import json
import os
from collections.abc import Iterable
from glob import glob
from pathlib import Path
from typing import Any

_NAMED = 10
"""How many changed settings a message names."""

LENGTH = ("train.epochs", "train.max_steps")
"""The settings that may be raised on a finished run, which then goes on."""

COMPARED_BY_CONTENT = ("data.train", "data.temperature", "data.max_samples", "regularization.synonyms")
"""Settings that may change while what they name stays the same."""
_SCORED = ("data.eval", "data.test")


def changed_settings(earlier: dict[str, Any], now: dict[str, Any], keys: Iterable[str]) -> dict[str, tuple[Any, Any]]:
    """Return what each of these settings was and is, where that differs; those that an earlier recipe lacks do not."""
    found = {}
    for section, name in (key.split(".") for key in keys):
        before, after = earlier.get(section, {}), now.get(section, {})
        if name in before and before[name] != after.get(name):
            found[f"{section}.{name}"] = before[name], after.get(name)
    return found


def not_applied(earlier: dict[str, Any], now: dict[str, Any]) -> str:
    """Say which sets a finished run has not scored."""
    changed = changed_settings(earlier, now, _SCORED)
    return f" Not scored, because the run is done: another {shown(changed)}." if changed else ""


def shown(changed: dict[str, tuple[Any, Any]]) -> str:
    """Name settings with what each was and what it is now, the first of many."""
    told = [f"{key} ({json.dumps(before)}, now {json.dumps(now)})" for key, (before, now) in changed.items()]
    more = f" and {len(told) - _NAMED} more" if len(told) > _NAMED else ""
    return ", ".join(told[:_NAMED]) + more


def written_since(moment: int, names: Iterable[str]) -> str:
    """Return the first file or folder that was written, or put in its place, after a moment; empty if none was.

    Args:
        moment: In nanoseconds, as a file's times are.
        names: Files, folders and patterns; others, such as a hub's datasets, are passed over.
    """
    for name in names:
        for found in map(Path, glob(os.path.expanduser(name), recursive=True)):
            files = (found, *found.rglob("*")) if found.is_dir() else (found,)
            times = (file.stat() for file in files if file.exists())
            if any(max(one.st_mtime_ns, one.st_ctime_ns) > moment for one in times):
                return str(found)
    return ""


def is_longer(changed: dict[str, tuple[Any, Any]], done: int, allowed: list[str]) -> bool:
    """Whether a recipe asks for more steps than the `done` ones of a finished run, and for nothing else that counts.

    From max_steps to epochs only the data tell: that is left to the resume.
    """
    if not changed.keys() & set(LENGTH) or changed.keys() - {*LENGTH, *allowed}:
        return False
    epochs, steps = (changed.get(key, (None, None)) for key in LENGTH)
    if steps[1] is not None:
        return steps[1] > done
    return epochs[1] is not None and (epochs[0] is None or epochs[1] > epochs[0])
