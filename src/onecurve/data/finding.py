"""Finds what a setting names: a file, files by a pattern, a folder, a saved or a hub dataset, with its split."""

import glob
import re
from collections.abc import Iterator
from pathlib import Path

from onecurve.config import DataSection, shards_folder
from onecurve.data.files import DataFile
from onecurve.data.folders import files_of
from onecurve.data.formats import SUFFIXES, format_of
from onecurve.data.hub import HubSplit, is_saved, load_hub_split, load_saved
from onecurve.data.media_folder import MediaFolder, find_media_folder
from onecurve.data.parallel import ParallelFiles, find_parallel
from onecurve.data.rows import Columns
from onecurve.data.selection import share
from onecurve.errors import ConfigError

Part = DataFile | ParallelFiles | MediaFolder | HubSplit

_HUB_NAME = re.compile(r"(?P<name>[\w-][\w.-]*(/[\w.-]+)?)(:(?P<split>.+))?")
_FOLDER_SPLIT = re.compile(r"(?P<folder>[^:]+):(?P<split>[^/]+)")
_SPLITS = {"data.train": "train", "data.eval": "validation", "data.test": "test"}
"""The split that each setting reads where its value names none; a named source's or set's is that of the setting."""
_EXAMPLES = "Hub datasets are written as name, org/name or org/name:split, such as imdb:train[:90%]."


def find(key: str, spec: str, settings: DataSection, columns: Columns) -> Iterator[Part]:
    """Yield what one value of `data.train`, `data.eval` or `data.test` names.

    Raises:
        ConfigError: Nothing there, or an unknown format.
        DataError: A dataset that cannot be loaded.
    """
    path, split = _with_split(spec)
    parallel = None if path.is_file() or path.is_dir() else find_parallel(key, path, settings, columns)
    if parallel:
        yield parallel
    elif path.is_file():
        yield _data_file(key, path, settings)
    elif path.is_dir():
        yield from _in_folder(key, path, split, settings, columns)
    elif path.exists():
        raise ConfigError(f"{spec!r} is not a regular file or folder; data is read more than once.", where=key)
    elif found := _matching(spec):
        yield from (_data_file(key, one, settings) for one in found)
    elif "*" in spec or "?" in spec:
        raise ConfigError(f"no file matches {spec!r}.", where=key)
    else:
        yield _hub_split(key, spec, settings)


def _setting(key: str) -> str:
    """Return the setting that a key lies in: data.eval of data.eval.news."""
    return ".".join(key.split(".")[:2])


def folder_of(spec: str) -> Path | None:
    """Return the folder of data files that a value names; None where it names none, or a saved dataset."""
    path, _ = _with_split(spec)
    return path if path.is_dir() and not is_saved(path) else None


def is_local(spec: str) -> bool:
    """Whether a value names something on this machine, or a share of what another one names."""
    path, _ = _with_split(spec)
    return path.exists() or bool(_matching(spec)) or share(spec) is not None


def _with_split(spec: str) -> tuple[Path, str]:
    """Return the path and, where it is a folder's with `:split` behind it, the split; else an empty one."""
    path = Path(spec).expanduser()
    match = None if path.exists() else _FOLDER_SPLIT.fullmatch(spec)
    if match and (folder := Path(match["folder"]).expanduser()).is_dir():
        return folder, match["split"]
    return path, ""


def _matching(pattern: str) -> list[Path]:
    names = glob.glob(str(Path(pattern).expanduser()), recursive=True) if glob.has_magic(pattern) else []
    return [path for path in map(Path, sorted(names)) if path.is_file()]


def _in_folder(key: str, folder: Path, split: str, settings: DataSection, columns: Columns) -> Iterator[Part]:
    if shards_folder(str(folder)):
        raise ConfigError(
            f"'{folder}' holds encoded shards, which can only be data.train or one of its named sources.",
            where=key,
            fix="Name the rows that they were encoded from.",
        )
    asked = split or _SPLITS.get(_setting(key), "train")
    if is_saved(folder):
        yield from load_saved(key, folder, asked, is_named=bool(split))
        return
    if "[" in asked:
        raise ConfigError(
            f"{asked!r} is a part of a split, which is read only of hub and saved datasets.",
            where=key,
            fix="To use some rows of files, set data.max_samples; for a share as dev split, data.eval: 5%.",
        )
    if found := find_media_folder(key, folder, asked, bool(split), settings, columns.media):
        yield found
        return
    for path in files_of(key, folder, asked, bool(split), settings.format, settings.hub_config):
        yield _data_file(key, path, settings)


def _data_file(key: str, path: Path, settings: DataSection) -> DataFile:
    kind = format_of(path) if settings.format == "auto" else settings.format
    if kind is None:
        raise ConfigError(
            f"the format of '{path}' is unknown from its suffix; known are {', '.join(SUFFIXES)}.",
            where=key,
            fix="Name a data file, or set data.format.",
        )
    return DataFile(path, kind, settings)


def _hub_split(key: str, spec: str, settings: DataSection) -> HubSplit:
    match = _HUB_NAME.fullmatch(spec)
    if not match or format_of(Path(match["name"])):
        raise ConfigError(f"no such file or folder: {spec!r}.", where=key, fix=_EXAMPLES)
    split = match["split"] or _SPLITS.get(_setting(key))
    if split is None:
        raise ConfigError(
            f"no such file or folder: {spec!r}.", where=key, fix=f"Of a hub dataset, name the split, as in {spec}:test."
        )
    return load_hub_split(key, match["name"], split, settings.hub_config)
