"""Named sources of the training data and named evaluation sets: what may stand in `data.train`, `eval` and `test`."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Discriminator, Field, Tag

from onecurve.config.sections.base import Section

Format = Literal["auto", "jsonl", "json", "csv", "tsv", "parquet", "text", "conll", "media", "parallel"]
Quoting = Literal["auto", "minimal", "none"]
SampleBy = Literal["document", "paragraph", "line"]
PLAIN, NAMED = "<plain>", "<named>"
"""Names of the two forms in pydantic's errors, which messages leave out."""
SHARDS = "shards.json"
"""The index of a folder of encoded shards, which `onecurve data encode` writes."""
_NAME = re.compile(r"[A-Za-z0-9_-]+")


class NamedSet(Section):
    """One set of rows with how it is read, where that differs from `data`."""

    path: str | list[str] = Field(min_length=1)
    """As `data.train`: a file, a pattern, a folder, a hub dataset, or a list of them."""
    columns: dict[str, str] | None = None
    """Added to `data.columns`."""
    max_samples: int | None = Field(default=None, gt=0)
    """At most so many rows, drawn at random by `seed`; default: `data.max_samples`."""
    format: Format | None = None
    """Default: `data.format`, and so on for the keys below."""
    encoding: str | None = None
    header: bool | None = None
    delimiter: str | None = Field(default=None, min_length=1, max_length=1)
    quoting: Quoting | None = None
    sample_by: SampleBy | None = None
    hub_config: str | None = None


class NamedSource(NamedSet):
    """A source of the training data."""

    weight: Annotated[int | float, Field(gt=0)] | None = None
    """Its part of the draws, in proportion to the other sources' weights."""


def _kind(value: Any) -> str:
    return NAMED if isinstance(value, dict | BaseModel) else PLAIN


Paths = Annotated[str | list[str], Tag(PLAIN)]
_Entry = TypeVar("_Entry", bound=NamedSet)
OneOf = Annotated[Paths | Annotated[_Entry, Tag(NAMED)], Discriminator(_kind)]
"""A path, or a map with `path` and how it is read."""
Sources = Annotated[Paths | Annotated[dict[str, OneOf[NamedSource]], Tag(NAMED)], Discriminator(_kind)]
"""What `data.train` may be: a path, a list of them, or named sources."""
Sets = Annotated[Paths | Annotated[dict[str, OneOf[NamedSet]], Tag(NAMED)], Discriminator(_kind)]
"""What `data.eval` and `data.test` may be."""


def check_names(split: str, names: list[str]) -> None:
    """Raise `ValueError` where a name cannot be part of a key or of a metric's name."""
    for name in names:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{split} has the name {name!r}: use letters, digits, - and _")
        if name == "loss":
            raise ValueError(f"{split} has a source named loss, which is the name of a score: use another")


def path_of(entry: str | list[str] | NamedSet) -> str | list[str]:
    """Return the path of a source or a set."""
    return entry.path if isinstance(entry, NamedSet) else entry


def weights_of(train: Any) -> dict[str, float]:
    """Return the weights that named sources have; empty where there are none."""
    entries = train.items() if isinstance(train, dict) else ()
    return {name: one.weight for name, one in entries if isinstance(one, NamedSource) and one.weight is not None}


def shards_folders(train: Any) -> dict[str, Path]:
    """Return the folders of encoded shards among what `data.train` names: by source, `""` where it has no names."""
    entries = {name: path_of(one) for name, one in train.items()} if isinstance(train, dict) else {"": train}
    return {name: folder for name, path in entries.items() if (folder := shards_folder(path))}


def shards_folder(train: Any) -> Path | None:
    """Return the folder of encoded shards that a path names; None where it names rows."""
    folder = Path(train).expanduser() if isinstance(train, str) else None
    return folder if folder and (folder / SHARDS).is_file() else None
