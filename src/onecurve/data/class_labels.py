"""Class labels as `datasets` declares them: integers whose names are in the features, at any depth."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from onecurve.content.labels import label_name
from onecurve.data.rows import Columns

Features = Mapping[str, Any]
"""Column -> feature, as `datasets.Features.to_dict` and a Parquet file's metadata spell it."""


def of_schema(metadata: Mapping[bytes, bytes] | None) -> Features:
    """Return the features in an Arrow schema's metadata, where `datasets` puts them; none where it has none."""
    try:
        return dict(json.loads((metadata or {})[b"huggingface"])["info"]["features"])
    except (KeyError, ValueError, TypeError):
        return {}


def with_labels(features: Features) -> dict[str, Any]:
    """Return the features that have a class label in them."""
    return {name: kind for name, kind in features.items() if any(_names(kind))}


def declared(features: Features, columns: Columns) -> list[list[str]]:
    """Return the names of every class label in the columns that a task reads, by id."""
    wanted = (features.get(name) for name in columns.wanted)
    return [[label_name(name) for name in names] for kind in wanted for names in _names(kind)]


def by_name(value: Any, kind: Any) -> Any:
    """Return a value with the names of its class labels in their place; -1, which stands for none, becomes None."""
    if value is None:
        return None
    if (names := _own(kind)) is not None:
        return names[value] if value >= 0 else None
    if (inner := _inner(kind)) is not None:
        if isinstance(value, Mapping):  # a sequence of structs is kept as a struct of sequences
            return {name: [by_name(part, inner[name]) for part in parts] for name, parts in value.items()}
        return [by_name(part, inner) for part in value]
    if isinstance(kind, Mapping) and isinstance(value, Mapping):
        return {name: by_name(part, kind.get(name)) for name, part in value.items()}
    return value


def _names(kind: Any) -> Iterator[list[str]]:
    if (names := _own(kind)) is not None:
        yield names
    elif (inner := _inner(kind)) is not None:
        yield from _names(inner)
    elif isinstance(kind, Mapping):
        for part in kind.values():
            yield from _names(part)


def _own(kind: Any) -> list[str] | None:
    return kind["names"] if isinstance(kind, Mapping) and kind.get("_type") == "ClassLabel" else None


def _inner(kind: Any) -> Any:
    """Return the feature of a list's items; None for what is no list."""
    if isinstance(kind, list):
        return kind[0]
    return kind["feature"] if isinstance(kind, Mapping) and "_type" in kind and "feature" in kind else None
