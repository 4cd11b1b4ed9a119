"""The result of a check: name, value, severity, and advice."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from onecurve.doctor.world import World

Level = Literal["ok", "warning", "failure"]


@dataclass(frozen=True)
class Finding:
    """One line of the report; equal findings of several ranks are merged."""

    name: str
    value: str
    level: Level = "ok"
    advice: str = ""


@dataclass(frozen=True)
class Patient:
    """The subject of the checks."""

    world: "World"
    folder: Path
    """The run directory, or the nearest folder above it that exists."""
    recipe: list[str]
    """A recipe's path and its overrides, as on train.py's command line; empty where there is none."""


Check = Callable[[Patient], Iterator[Finding]]
"""Runs on every rank. One that talks to the other ranks gives all of them the same calls in the same order."""
