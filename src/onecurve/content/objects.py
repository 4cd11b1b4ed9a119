"""The objects in an image, as rows hold them: a box and a category each."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from reprlib import repr as short
from typing import Any

from onecurve.content.labels import label_name
from onecurve.errors import BadRow

_NAMES = ("category", "category_id", "label")
_ROUNDING = 1.0
"""Pixels by which a box may reach over the edge of its image, as those of COCO do; the rest is cut off."""


@dataclass(frozen=True)
class Object:
    """One object of an image."""

    name: str
    """Of its category."""
    box: tuple[float, float, float, float]
    """Left, top, right and bottom in pixels."""
    is_crowd: bool = False
    """Whether it stands for several that are not told apart: neither learnt nor scored, as in COCO."""


def read_objects(value: Any) -> list[Object]:
    """Read objects in the hub's form, {"bbox": [[x, y, width, height], ...], "category": [...]}, or a list of them.

    Raises:
        BadRow: Another form, numbers that are none, or a box without area.
    """
    if isinstance(value, Mapping):
        value = _from_columns(value)
    if not isinstance(value, list | tuple):
        raise BadRow(
            'objects must be {"bbox": [[x, y, width, height], ...], "category": [...]}, or a list of objects with bbox '
            f"and category; got {short(value)}"
        )
    return [_object(one, f"objects[{place}]") for place, one in enumerate(value)]


def inside(objects: list[Object], size: tuple[int, int]) -> list[Object]:
    """Return objects with boxes cut at the edges of their image.

    Raises:
        BadRow: A box that is not inside.
    """
    width, height = size
    found = []
    for place, one in enumerate(objects):
        left, top, right, bottom = one.box
        cut = max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height))
        if (
            max(abs(a - b) for a, b in zip(cut, one.box, strict=True)) > _ROUNDING
            or cut[0] >= cut[2]
            or cut[1] >= cut[3]
        ):
            raise BadRow(
                f"objects[{place}] ({one.name}) reaches from ({left:g}, {top:g}) to ({right:g}, {bottom:g}), outside "
                f"of its image of {width} x {height} pixels; a bbox is [x, y, width, height] in pixels"
            )
        found.append(Object(one.name, cut, one.is_crowd))
    return found


def _from_columns(value: Mapping[str, Any]) -> list[dict[str, Any]]:
    names = next((value[name] for name in _NAMES if value.get(name) is not None), None)
    boxes, crowds = value.get("bbox"), value.get("iscrowd")
    if not isinstance(boxes, list | tuple) or not isinstance(names, list | tuple):
        raise BadRow(f"objects must have the lists bbox and category; it has {', '.join(map(str, value)) or 'nothing'}")
    if len(boxes) != len(names):
        raise BadRow(f"objects has {len(boxes)} boxes and {len(names)} categories")
    flags = crowds if isinstance(crowds, list | tuple) and len(crowds) == len(boxes) else [0] * len(boxes)
    return [
        {"bbox": box, "category": name, "iscrowd": flag} for box, name, flag in zip(boxes, names, flags, strict=True)
    ]


def _object(value: Any, place: str) -> Object:
    if not isinstance(value, Mapping):
        raise BadRow(f"{place} must have bbox and category; got {short(value)}")
    name = next((value[name] for name in _NAMES if value.get(name) is not None), None)
    if not isinstance(name, str | int) or isinstance(name, bool) or not label_name(name):
        raise BadRow(f"{place} has no category: a name or a whole number; got {short(name)}")
    box = value.get("bbox")
    numbers = box if isinstance(box, list | tuple) else []
    if len(numbers) != 4 or not all(_is_number(number) for number in numbers):
        raise BadRow(f"{place} must have a bbox of four numbers, [x, y, width, height]; got {short(box)}")
    x, y, width, height = map(float, numbers)
    if width <= 0 or height <= 0:
        raise BadRow(f"{place} ({label_name(name)}) has no area: its bbox is {list(numbers)}, [x, y, width, height]")
    return Object(label_name(name), (x, y, x + width, y + height), bool(value.get("iscrowd")))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
