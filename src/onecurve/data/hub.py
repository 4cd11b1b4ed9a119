"""Datasets of the hub, and those that `save_to_disk` wrote, row by row; a hub that is away is told within seconds."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onecurve.data.class_labels import by_name, declared, with_labels
from onecurve.data.files import content_digest, file_stamp
from onecurve.data.folders import SPLITS
from onecurve.data.rows import Broken, Columns, Located
from onecurve.errors import DataError
from onecurve.machine.hub import reachable


@dataclass(frozen=True)
class HubSplit:
    """One split of a hub dataset or of a saved one."""

    name: str
    dataset: Any
    """A map-style `datasets.Dataset`."""
    files: tuple[Path, ...] = ()
    """Those of a saved one, which could be changed; a hub split is pinned once loaded."""

    @property
    def folder(self) -> Path:
        """What relative paths in it are relative to."""
        return Path()

    def records(self, columns: Columns) -> Iterator[Located | Broken]:
        """Yield every row; class labels are given by name at any depth, and none (-1 upstream) as no value.

        Images and sounds are given as they are stored, `bytes` or `path`.
        """
        selected = _undecoded(self.dataset.select_columns(columns.select(self.dataset.column_names)))
        labels = with_labels(selected.features.to_dict())
        for number, row in enumerate(selected, 1):
            for name, kind in labels.items():
                row[name] = by_name(row[name], kind)
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
        return declared(self.dataset.features.to_dict(), columns)

    def digest(self) -> str:
        """Return what tells this data from other data: of a hub split its repository, configuration, commit and split.

        Of a saved one, a hash of its files' bytes and of the rows that are read of them.
        """
        rows = self.name.rpartition("[")[2] if "[" in self.name else ""
        return content_digest(self.files, rows) if self.files else str(self.dataset._fingerprint)

    def stamp(self) -> str:
        """Return what changes when the data does."""
        return " ".join(map(file_stamp, self.files)) or self.digest()


def _undecoded(dataset: Any) -> Any:
    import datasets

    for name, kind in dataset.features.items():
        if isinstance(kind, datasets.Image | datasets.Audio) and kind.decode:
            dataset = dataset.cast_column(name, type(kind)(decode=False))
    return dataset


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


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` of `datasets` wrote this folder."""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    )


def load_saved(key: str, folder: Path, split: str, is_named: bool) -> list[HubSplit]:
    """Load one split of what `save_to_disk` wrote, or parts of it such as train[:90%].

    Args:
        key: The setting, for messages.
        folder: Of a Dataset, which is one split, or of a DatasetDict.
        split: Its name.
        is_named: Whether the recipe names it; otherwise a Dataset is taken whole, whatever its split is called.

    Raises:
        DataError: No such split, or the folder cannot be read.
    """
    import datasets

    try:
        loaded = datasets.load_from_disk(str(folder))
        splits = loaded if isinstance(loaded, dict) else {str(loaded.split or "train"): loaded}
        if not is_named and not isinstance(loaded, dict):
            (split,) = splits
        wanted = "+".join(_known_as(part.strip(), splits) for part in split.split("+"))
        sizes = {known: len(dataset) for known, dataset in splits.items()}
        parts = datasets.ReadInstruction.from_spec(wanted).to_absolute(sizes)
    except (OSError, ValueError, AssertionError, KeyError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"{split!r} of the saved dataset '{folder}' cannot be read: {_first_line(error)}.", where=key
        ) from None
    return [_part(folder, splits[part.splitname], part) for part in parts]


def _part(folder: Path, dataset: Any, part: Any) -> HubSplit:
    start, stop, _ = slice(part.from_, part.to).indices(len(dataset))
    name, files = f"{folder}:{part.splitname}", tuple(Path(file["filename"]) for file in dataset.cache_files)
    if stop - start == len(dataset):
        return HubSplit(name, dataset, files)
    return HubSplit(f"{name}[{start}:{stop}]", dataset.select(range(start, stop)), files)


def _known_as(split: str, there: Any) -> str:
    """Return the split under the name that a dataset has it by: validation may be called dev."""
    name, bracket, rest = split.partition("[")
    names = [name, *SPLITS.get(name, ())]
    return next((known for known in names if known in there), name) + bracket + rest


def _neither(key: str, name: str, reason: str) -> DataError:
    return DataError(
        f"no such file or folder: {name!r}, and no hub dataset of that name loads: {reason.rstrip('.')}.", where=key
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
