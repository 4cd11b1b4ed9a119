"""Datasets of the Hugging Face hub, read row by row; fails within seconds if the hub cannot be reached."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from onecurve.content.labels import label_name
from onecurve.data.rows import Broken, Columns, Located
from onecurve.errors import DataError
from onecurve.machine.hub import reachable


@dataclass(frozen=True)
class HubSplit:
    """One split of a hub dataset."""

    name: str
    dataset: Any
    """A map-style `datasets.Dataset`."""

    def records(self, columns: Columns) -> Iterator[Located | Broken]:
        """Yield every row; class labels are given by name at any depth, and none (-1 upstream) as no value."""
        selected = self.dataset.select_columns(columns.select(self.dataset.column_names))
        named = {name: kind for name, kind in selected.features.items() if any(_classes(kind))}
        for number, row in enumerate(selected, 1):
            for name, kind in named.items():
                row[name] = _by_name(row[name], kind)
            yield Located(f"row {number}", row)

    @property
    def reads(self) -> frozenset[str]:
        """The settings of `data` that change how this split is read."""
        return frozenset({"hub_config"})

    def columns(self) -> list[str]:
        """Return all columns, of which the records hold only some."""
        return list(self.dataset.column_names)

    def declared_labels(self, columns: Columns) -> list[list[str]]:
        """Return the names of every class label in the columns that a task reads, by id."""
        kinds = [self.dataset.features.get(name) for name in columns.wanted]
        return [[label_name(name) for name in names] for kind in kinds for names in _classes(kind)]

    def digest(self) -> str:
        """Return what tells this data from other data: repository, configuration, commit and split."""
        return str(self.dataset._fingerprint)

    def stamp(self) -> str:
        """Return what changes when the data does: nothing, a hub split is pinned once loaded."""
        return self.digest()


def _classes(kind: Any) -> Iterator[list[str]]:
    """Yield the names of every `ClassLabel` in a feature: itself, in a list, or in a struct."""
    from datasets import ClassLabel

    if isinstance(kind, ClassLabel):
        yield kind.names
    elif isinstance(kind, dict):
        for part in kind.values():
            yield from _classes(part)
    elif (inner := _inner(kind)) is not None:
        yield from _classes(inner)


def _inner(kind: Any) -> Any:
    """Return the feature of a list's items; None for what is no list."""
    return kind[0] if isinstance(kind, list) else getattr(kind, "feature", None)


def _by_name(value: Any, kind: Any) -> Any:
    from datasets import ClassLabel

    if value is None:
        return None
    if isinstance(kind, ClassLabel):
        return kind.names[value] if value >= 0 else None
    if isinstance(kind, dict):
        return {name: _by_name(part, kind[name]) for name, part in value.items()}
    if (inner := _inner(kind)) is not None:
        return [_by_name(part, inner) for part in value]
    return value


def load_hub_split(key: str, name: str, split: str, config: str | None) -> HubSplit:
    """Load one split of a hub dataset, from the local copy where the hub cannot be reached.

    Raises:
        DataError: No such dataset, configuration or split, or neither the hub nor a copy to be had.
    """
    import datasets

    if not reachable():
        datasets.config.HF_HUB_OFFLINE = True  # its own copy of the switch; spares 23 seconds of retries per split
    try:
        dataset = datasets.load_dataset(name, config, split=split)
    except ConnectionError as error:
        offline = datasets.config.HF_HUB_OFFLINE
        reason = "the hub cannot be reached and there is no copy in its local cache" if offline else _first_line(error)
        raise _neither(key, name, reason) from None
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise _neither(key, name, _first_line(error)) from None
    return HubSplit(f"{name}:{split}", dataset)


def _neither(key: str, name: str, reason: str) -> DataError:
    return DataError(
        f"{name!r} is neither a file or folder here nor a hub dataset that loads: {reason.rstrip('.')}.", where=key
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
