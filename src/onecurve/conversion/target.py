"""The folder to write, and information that the source lacks."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onecurve.errors import ConfigError


@dataclass(frozen=True)
class Wanted:
    """A model folder to be written."""

    target: Path
    config: str | None = None
    """Where config and tokenizer come from when they do not lie beside the weights; for a checkpoint of ours, the
    run's config.yaml."""
    labels: list[str] = field(default_factory=list)
    """Label names in the order of their ids; empty: what the config says."""
    best: bool = False
    """The best step's weights, which the checkpoint keeps beside its own."""
    merge: bool = False
    """Merge an adapter into its base."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model or its tokenizer."""


def check_target(folder: Path) -> None:
    """Refuse to write over anything.

    Raises:
        ConfigError: There is something already.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{str(folder)!r} exists and is not empty.", fix="Name a new folder.")


def name_labels(config: Any, labels: list[str]) -> None:
    """Tell a transformers config the label names, where there are any."""
    if labels:
        config.update(
            {"id2label": dict(enumerate(labels)), "label2id": {name: index for index, name in enumerate(labels)}}
        )


def card(source: Path, what: str, use: str) -> str:
    """Return the README.md of a folder of which no more is known than where it came from and how to load it."""
    return f"# {what}\n\nConverted from `{source}` by onecurve.\n\n{use}"
