"""What recipes that train in rounds share: JSON lines, and runs that are not taken for others when a script goes on."""

import argparse
import json
import os
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from onecurve import Result, train
from onecurve.config import Recipe
from onecurve.errors import ConfigError

Row = dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """Read JSON lines.

    Raises:
        ConfigError: No such file, or a line that is no JSON object.
    """
    rows = []
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
            if line.strip():
                rows.append(json.loads(line))
                if not isinstance(rows[-1], dict):
                    raise ConfigError(f"is no JSON object: {line[:60]}", where=f"{path}, line {number}")
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}.", where=str(path)) from None
    except ValueError as error:
        raise ConfigError(f"is no JSON: {error}.", where=f"{path}, line {number}") from None
    return rows


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write JSON lines, all of them or none."""
    new = path.with_name(f"{path.name}.new")
    new.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    os.replace(new, path)


def within(kind: type, low: float, high: float = float("inf")) -> Callable[[str], Any]:
    """Return what reads a number of the command line that must be from `low` to `high`."""

    def read(word: str) -> Any:
        try:
            value = kind(word)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            upper = "" if high == float("inf") else f" and at most {high:g}"
            raise argparse.ArgumentTypeError(f"must be {kind.__name__}, at least {low:g}{upper}; got {word!r}")
        return value

    return read


def check_one_label(recipe: Recipe, rows: Sequence[Row], where: Path) -> None:
    """Check that a recipe's model can be asked for one label a text, and that there are texts to ask about.

    Raises:
        ConfigError: Another task, or no row with the column that the recipe reads as text.
    """
    task, column = recipe.task, recipe.data.columns.get("text", "text")
    problem = task.extras.get("problem_type", "single_label_classification")
    if task.name != "text_classification" or problem != "single_label_classification":
        raise ConfigError(
            f"is {task.name} ({problem}); this script goes by the probabilities of one label a text.",
            where="task.name",
            fix="Use text_classification with one label a text.",
        )
    if not any(row.get(column) for row in rows):
        raise ConfigError(f"none of its {len(rows)} rows has {column!r}.", where=str(where), fix="See data.columns.")


def keep_apart(made: Path, of: Mapping[str, Any]) -> None:
    """Note beside a folder or file, in NAME.json, what it is made of; refuse one that was made of something else.

    A finished run is returned as it is, whatever its files hold by now: without this its scores would be taken for
    those of the changed files.

    Raises:
        ConfigError: Naming what differs.
    """
    record, told = made.with_name(f"{made.name}.json"), json.loads(json.dumps(of, default=str))
    if record.is_file() and made.exists():
        before = json.loads(record.read_text(encoding="utf-8"))
        if differing := sorted(key for key in before.keys() | told.keys() if before.get(key) != told.get(key)):
            raise ConfigError(
                f"was made with another {', '.join(differing)}.",
                where=str(made),
                fix="Choose another --output_dir, or delete this and what later rounds made.",
            )
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(told, indent=1), encoding="utf-8")


def digest(path: Path) -> str:
    """Return the SHA-256 of a file; empty where it is none, such as the name of a hub dataset."""
    return sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def train_round(recipe: Path, run: Path, files: Sequence[Path], **overrides: Any) -> Result:
    """Train a run; one that is finished is returned as it is.

    Args:
        recipe: The recipe.
        run: The run directory.
        files: What it reads.
        **overrides: As for `onecurve.train`.

    Raises:
        UserError: A mistake in recipe or data, or the run was made of other files or settings.
    """
    keep_apart(run, {"recipe": digest(recipe), **{str(file): digest(file) for file in files}, "settings": overrides})
    return train(recipe, output_dir=run, **overrides)


def describe(result: Result) -> str:
    """Return accuracy and macro-F1 of the splits that the recipe names, and where the model is."""
    scores = {name: value for name, value in result.scores.items() if name.endswith(("/accuracy", "/macro_f1"))}
    told = ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
    return f"{told or 'no data.eval or data.test'}: {result.output_dir / 'model'}"
