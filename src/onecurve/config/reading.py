"""Reads a recipe: defaults, then the file, then the command line. The source of each value is recorded."""

import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from onecurve.config.explain import explain
from onecurve.config.recipe import Recipe
from onecurve.errors import ConfigError

Sources = dict[str, str]
"""Dotted key -> 'file' or 'command line'; keys not in here have their default."""

_EITHER_OR = (("train.max_steps", "train.epochs"), ("train.micro_batch_size", "train.micro_batch_tokens"))
_PUNCTUATION = re.compile(r"[^\w\[\]{}'\"~]*[^\w\[\]{}'\"~\s][^\w\[\]{}'\"~]*")
"""What is no value to a reader but text, such as a separator; YAML has other uses for |, #, & and so on."""

USAGE = "usage: train.py RECIPE.yaml [--section.key value ...]"


def load_recipe(argv: list[str]) -> tuple[Recipe, Sources]:
    """Read and check the recipe named on the command line.

    Args:
        argv: The recipe's path, then overrides: `--section.key value` or `--section.key=value`.

    Raises:
        ConfigError: No such file, invalid YAML, or a key or value that the schema rejects.
    """
    if not argv or argv[0].startswith("--"):
        raise ConfigError(USAGE)
    values = _read_file(Path(argv[0]))
    sources = dict.fromkeys(_leaves(values), "file")
    for key, value in _overrides(argv[1:]):
        _put(values, key, value)
        sources = {k: v for k, v in sources.items() if not k.startswith(f"{key}.")}
        sources.update(dict.fromkeys(_leaves(value, key), "command line"))
    _give_way(values, sources)
    try:
        return Recipe.model_validate(values), sources
    except ValidationError as error:
        raise explain(error, Recipe) from None


def _give_way(values: dict[str, Any], sources: Sources) -> None:
    """Have a choice on the command line replace the file's among settings that exclude each other."""
    for pair in _EITHER_OR:
        for chosen, other in (pair, pair[::-1]):
            section, _, name = other.partition(".")
            there = values.get(section)
            if sources.get(chosen) == "command line" and sources.get(other) == "file" and isinstance(there, dict):
                if there.get(chosen.partition(".")[-1]) is not None:
                    del there[name], sources[other]


def read_yaml(text: str) -> Any:
    """Read YAML 1.2: `2e-5` is a number and `no` is the word "no" (1.1 reads them as text and false)."""
    return YAML(typ="safe", pure=True).load(text)


def _read_file(path: Path) -> dict[str, Any]:
    try:
        values = read_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError("no such recipe.", where=str(path), fix=USAGE) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}.", where=str(path)) from None
    except YAMLError as error:
        mark = error.problem_mark if isinstance(error, MarkedYAMLError) else None
        problem = error.problem if isinstance(error, MarkedYAMLError) else str(error)
        place = f"{path}, line {mark.line + 1}" if mark else str(path)
        raise ConfigError(f"not valid YAML: {problem}.", where=place) from None
    if not isinstance(values, dict):
        raise ConfigError("must be a map of sections (task, model, data, ...).", where=str(path))
    return values


def _overrides(words: list[str]) -> list[tuple[str, Any]]:
    found = []
    rest = iter(words)
    for word in rest:
        if not word.startswith("--") or len(word) == 2:
            raise ConfigError(f"'{word}' is not an override.", fix="Write --section.key value.")
        key, equals, text = word[2:].partition("=")
        if not equals:
            text = next(rest, "")
            if not text or (text.startswith("--") and len(text) > 2):
                raise ConfigError(f"--{key} needs a value.", fix="Write --section.key value.")
        try:
            found.append((key, text if _PUNCTUATION.fullmatch(text) else read_yaml(text)))
        except YAMLError:
            raise ConfigError(f"--{key}: {text!r} is not a YAML value.") from None
    return found


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, leaf = key.split(".")
    for depth, section in enumerate(sections):
        if values.get(section) is None:
            values[section] = {}
        values = values[section]
        if not isinstance(values, dict):
            raise ConfigError(f"--{key}: '{'.'.join(sections[: depth + 1])}' is a value, not a section.")
    values[leaf] = value


def _leaves(value: Any, prefix: str = "") -> list[str]:
    if not isinstance(value, dict):
        return [prefix]
    return [leaf for k, v in value.items() for leaf in _leaves(v, f"{prefix}.{k}" if prefix else str(k))]
