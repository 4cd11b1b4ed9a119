"""Datasets of the Hugging Face hub: reached or refused within seconds, and read row by row."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

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
        """Yield every row; a class label is given by its name, and none (-1 upstream) as no value."""
        from datasets import ClassLabel

        selected = self.dataset.select_columns(columns.select(self.dataset.column_names))
        classes = {name: kind.names for name, kind in selected.features.items() if isinstance(kind, ClassLabel)}
        for number, row in enumerate(selected, 1):
            for name, names in classes.items():
                row[name] = names[row[name]] if row[name] is not None and row[name] >= 0 else None
            yield Located(f"row {number}", row)

    def digest(self) -> str:
        """Return what tells this data from other data: repository, configuration, commit and split."""
        return str(self.dataset._fingerprint)

    def stamp(self) -> str:
        """Return what changes when the data does: nothing, a hub split is pinned once loaded."""
        return self.digest()


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
