"""Several labels in one value: a list of names, text with names in it, or a vector of zeros and ones."""

import ast
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from reprlib import repr as short
from typing import Any

from onecurve.content.labels import label_name, read_name
from onecurve.errors import BadRow, DataError


@dataclass(frozen=True)
class LabelSets:
    """How the labels of a multi-label row are read.

    Zeros and ones are a vector, one for each label, only where `task.labels` says which label that is. The names 0 and
    1 look the same: what can be read both ways is refused.
    """

    separator: str
    """What stands between the names in text."""
    known: tuple[str, ...]
    """The names in `task.labels`; empty where it is not set."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """What the data has -> the label's name."""

    def names(self, value: Any) -> list[str]:
        """Return the names that a row has.

        Raises:
            BadRow: Not a list of names, a name twice, or a vector of another length or that may also be names.
        """
        parts = self._parts(value)
        bits = _bits(parts)
        is_distinct = len(set(bits or ())) == len(bits or ())
        if bits and self.known and len(bits) == len(self.known):
            if is_distinct and all(self._is_name(label_name(part)) for part in parts):
                raise BadRow(
                    f"label {short(value)} is ambiguous: the names 0 and 1, or a vector of zeros and ones; use other "
                    'names in task.labels, or write the names as text in a list: ["0", "1"]'
                )
            return [name for name, bit in zip(self.known, bits, strict=True) if bit]
        if bits and not is_distinct:
            named = f"task.labels has {len(self.known)} names" if self.known else "task.labels is not set"
            raise BadRow(
                f"label is a vector of {len(bits)} zeros and ones, and {named}: it must name the label of each position"
            )
        names = [self.renamed.get(name, name) for name in map(read_name, parts)]
        if len(set(names)) < len(names):
            raise BadRow(f"label repeats a name: {short(names)}")
        return names

    def seen(self, values: Iterable[Any]) -> set[str]:
        """Return every name in a split's labels.

        Raises:
            DataError: All of them may be vectors of one length, which would be taken for the names 0 and 1.
            BadRow: As `names` does.
        """
        names: set[str] = set()
        widths: set[int] = set()
        for value in values:
            names.update(self.names(value))
            parts = self._parts(value)
            widths.add(len(_bits(parts) or ()) if parts else -1)
        widths.discard(-1)  # a row without labels says nothing
        if not self.known and len(widths) == 1 and (width := widths.pop()):
            names_too = " If they are names, set it to [0, 1]." if width == 1 else ""
            raise DataError(
                f"each label is {width} zeros and ones in a row: a vector with a place for each label, or names?",
                where="data.train",
                fix=f"Set task.labels to {width} name(s), in the order of the places.{names_too}",
            )
        return names

    def _is_name(self, name: str) -> bool:
        return name in self.known or name in self.renamed

    def _parts(self, value: Any) -> list[Any]:
        if isinstance(value, str):
            text = value.strip()
            if text.startswith("[") and text.endswith("]"):
                value = _listed(text)
            else:
                value = [_bit_in_text(part) for part in text.split(self.separator)] if text else []
        if not isinstance(value, list | tuple):
            raise BadRow(
                f"label must be a list of names, or text with names between {self.separator!r}; "
                f"got {short(value)} ({type(value).__name__})"
            )
        return list(value)


def _listed(text: str) -> Any:
    """Return the list that a CSV cell spells, in JSON or, as pandas writes it, in Python."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    raise BadRow(f"label looks like a list but is not JSON: {short(text)}")


def _bit_in_text(part: str) -> str | int:
    name = label_name(part)
    return int(name) if name in ("0", "1") else part


def _bits(parts: list[Any]) -> list[int] | None:
    """Return parts that are all the numbers 0 or 1 (or false and true) as such; text in a list is a name."""
    are_bits = all(isinstance(part, int | float) and part in (0, 1) for part in parts)
    return [int(part) for part in parts] if are_bits and parts else None
