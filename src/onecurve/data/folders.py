"""The data files of a folder, by split: as the hub and `datasets` name them, or as the folder's README.md lists them.

The words in names of files and folders are those of `datasets` (huggingface.co/docs/datasets/repository_structure), but
that `eval` is the dev split here, as in `data.eval`, and a test split there.
"""

import glob
import os
import re
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml.error import YAMLError

from onecurve.config import read_yaml
from onecurve.data.formats import SUFFIXES, format_of
from onecurve.errors import ConfigError

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval", "evaluation"),
    "test": ("test", "testing"),
}
"""Split -> the words that stand for it in the names of files and folders."""
_WORDS = {word: split for split, words in SPLITS.items() for word in words}
_ABOUT = re.compile(r"(readme|license|licence|notice|citation|changelog|contributing|requirements)\b.*", re.IGNORECASE)
_NAMED = 5
_STATE = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
_FRONT_MATTER = re.compile(r"---\s*\n(.*?)\n---\s*(\n|$)", re.DOTALL)


def files_of(key: str, folder: Path, split: str, is_named: bool, format: str, config: str | None) -> list[Path]:
    """List a folder's data files of one split, in the order of their relative names.

    Where nothing tells files of different splits apart, all are of the one that is asked for. What is hidden, no data
    or about the data is left out.

    Args:
        key: The setting, for messages.
        folder: Where to look, at every depth; links to folders are followed.
        split: Its name, or one of `SPLITS`.
        is_named: Whether the recipe names the split.
        format: `data.format`.
        config: `data.hub_config`.

    Raises:
        ConfigError: No data file, none of this split, or a list in README.md that has no such configuration.
    """
    if listed := _listed(key, folder, config):
        by_split = {name: _matching(folder, patterns) for name, patterns in listed.items()}
    else:
        found = list(_data_files(folder, format))
        if not found:
            others = [path.as_posix() for path in left_out(folder, ())]
            shown = ", ".join(others[:_NAMED]) + (", ..." if len(others) > _NAMED else "")
            raise ConfigError(
                f"the folder '{folder}' has no data files{f', but {shown}' if shown else ''}.", where=key, fix=_KNOWN
            )
        by_split = _by_split(found)
        if not by_split and not is_named:
            return [folder / path for path in found]
    wanted = [name for name in by_split if name == split or _WORDS.get(name) == split]
    paths = [path for name in wanted for path in by_split[name]]
    if not paths:
        there = ", ".join(by_split) or "no split by name"
        example = f"{folder}:{next(iter(by_split))}" if by_split else str(folder)
        raise ConfigError(
            f"the folder '{folder}' has no files of the split '{split}'; it has {there}.",
            where=key,
            fix=f"Name another split, as in {example}, or the files themselves.",
        )
    return [folder / path for path in paths]


_KNOWN = f"Known suffixes: {', '.join(SUFFIXES)}. For other names, set data.format."


def _data_files(folder: Path, format: str) -> Iterator[Path]:
    """Yield the relative paths of what is data: by its suffix, or anything where `data.format` says what it is."""
    for path in sorted(walk(folder), key=Path.as_posix):
        is_about = _ABOUT.fullmatch(path.name) or path.name in _STATE
        if not is_about and (format_of(path) if format == "auto" else path.suffix not in (".md", ".py")):
            yield path


def left_out(folder: Path, read: Container[Path]) -> Iterator[Path]:
    """Yield the relative paths of the files that are not among those that are read; a hidden folder is one path."""
    yield from (path for path in sorted(walk(folder, hidden=True), key=Path.as_posix) if folder / path not in read)


def walk(folder: Path, hidden: bool = False) -> Iterator[Path]:
    """Yield the relative paths of a folder's files at every depth; links are followed.

    Args:
        folder: Where to begin.
        hidden: Yield hidden files too, and each hidden folder, but not what is in it.
    """
    visited: set[tuple[int, int]] = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        stat = os.stat(root)
        if (stat.st_dev, stat.st_ino) in visited:  # a link to a folder above, or the same folder twice
            folders.clear()
            continue
        visited.add((stat.st_dev, stat.st_ino))
        if hidden:
            yield from (Path(root, name).relative_to(folder) for name in folders if name.startswith("."))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths = (Path(root, name) for name in names if hidden or not name.startswith("."))
        yield from (path.relative_to(folder) for path in paths if path.is_file())


def _by_split(paths: list[Path]) -> dict[str, list[Path]]:
    """Return the files of each split that names tell of: those of files; where none does, those of folders."""
    for name_of in (lambda path: path.name, lambda path: path.parent.as_posix()):
        found: dict[str, list[Path]] = {}
        for path in paths:
            if split := _split_in(name_of(path)):
                found.setdefault(split, []).append(path)
        if found:
            return found
    return {}


def split_of(name: str) -> str | None:
    """Return the split that a word stands for; None where it stands for none."""
    return _WORDS.get(name.lower())


def _split_in(name: str) -> str | None:
    words = re.split(r"[^a-z]+", name.lower())
    return next((_WORDS[word] for word in words if word in _WORDS), None)


def _listed(key: str, folder: Path, config: str | None) -> dict[str, list[str]]:
    """Return split -> patterns of one configuration in the YAML at the top of README.md; empty where it lists none."""
    configs = {str(entry.get("config_name", "default")): entry for entry in _configs(folder)}
    if not configs:
        if config:
            raise ConfigError(
                f"is {config!r}, but '{folder}' has no README.md that lists configurations.", where="data.hub_config"
            )
        return {}
    default = next((name for name, entry in configs.items() if entry.get("default")), "default")
    chosen = config or (next(iter(configs)) if len(configs) == 1 else default)
    if chosen not in configs:
        raise ConfigError(
            f"the configurations of '{folder}' are {', '.join(configs)}{f'; not {config}' if config else ''}.",
            where=key,
            fix="Name one in data.hub_config.",
        )
    return _patterns(configs[chosen]["data_files"])


def _configs(folder: Path) -> list[dict[str, Any]]:
    readme = folder / "README.md"
    match = _FRONT_MATTER.match(readme.read_text(encoding="utf-8", errors="replace")) if readme.is_file() else None
    try:
        values = read_yaml(match[1]) if match else {}
    except YAMLError as error:
        raise ConfigError(f"the YAML at its top is invalid: {error}", where=str(readme)) from None
    configs = values.get("configs") if isinstance(values, Mapping) else None
    return [dict(entry) for entry in configs or [] if isinstance(entry, Mapping) and entry.get("data_files")]


def _patterns(data_files: Any) -> dict[str, list[str]]:
    """Return split -> patterns: of one pattern or a list of them, all `train`, or a list of {split, path}."""
    entries = data_files if isinstance(data_files, list) else [data_files]
    found: dict[str, list[str]] = {}
    for entry in entries:
        split, path = (str(entry["split"]), entry["path"]) if isinstance(entry, Mapping) else ("train", entry)
        found.setdefault(split, []).extend(path if isinstance(path, list) else [path])
    return found


def _matching(folder: Path, patterns: list[str]) -> list[Path]:
    found = {name for pattern in patterns for name in glob.glob(pattern, root_dir=folder, recursive=True)}
    return [Path(name) for name in sorted(found) if (folder / name).is_file()]
