"""The file of corrections: a headline a line, with the labels that a reader says are right."""

import json
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

HEADS = ("topic", "sentiment")


class Mistake(Exception):
    """What was given cannot be used."""


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Read a file of JSON objects, one a line; a headline of null is an empty one.

    Raises:
        Mistake: It is not there, or a line is no object with a headline; says which.
    """
    try:
        with open(path, encoding="utf-8") as file:
            lines = [*file]  # not splitlines: a headline may hold separators that JSON leaves as they are
    except OSError as error:
        raise Mistake(f"{path}: {error.strerror}.") from None
    found = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            found.append({**row, "headline": "" if row["headline"] is None else str(row["headline"])})
        except (ValueError, KeyError, TypeError):
            raise Mistake(f"{path}, line {number}: must be a JSON object with `headline`.") from None
    return found


def latest(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the corrections, one a headline: what was said last of each head counts."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        found[row["headline"]] = found.get(row["headline"], {}) | {k: v for k, v in row.items() if v is not None}
    return [*found.values()]


def is_held_out(headline: str) -> bool:
    """Whether a correction is kept from training, to compare models by: half of all headlines, by a hash of the text.

    So the same headline is on the same side in every update, and no model is compared on what an earlier one learnt.
    """
    return sha256(headline.encode()).digest()[0] % 2 == 1


def halves(rows: Iterable[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the corrections that are learnt, and those that are held out."""
    learnt: list[dict[str, Any]] = []
    held_out: list[dict[str, Any]] = []
    for row in latest(rows):
        (held_out if is_held_out(row["headline"]) else learnt).append(row)
    return learnt, held_out


def labels_of(model: Path) -> dict[str, list[str]]:
    """Return the labels that a model's heads know.

    Raises:
        Mistake: No model there that has these heads.
    """
    try:
        told = json.loads((model / "model" / "task.json").read_text(encoding="utf-8"))
        return {head: told["survey"]["heads"][head]["labels"] for head in HEADS}
    except (OSError, ValueError, KeyError, TypeError):
        raise Mistake(f"{model} is no run of recipe.yaml; `make train` makes the first one.") from None


def check_text(row: Mapping[str, Any]) -> None:
    """Check that a row has something to ask a model about.

    Raises:
        Mistake: No text.
    """
    if not str(row.get("headline") or "").strip():
        raise Mistake("the headline is empty.")


def check(row: Mapping[str, Any], labels: Mapping[str, list[str]]) -> None:
    """Check a correction.

    Raises:
        Mistake: No text, no label, or a label that the model does not know.
    """
    check_text(row)
    if all(row.get(head) is None for head in HEADS):
        raise Mistake("a correction has a topic, a sentiment, or both.")
    for head in HEADS:
        if row.get(head) is not None and row[head] not in labels[head]:
            raise Mistake(f"{head}: must be one of {', '.join(labels[head])}; got {row[head]!r}.")


def append(path: Path, rows: Iterable[Mapping[str, Any]], labels: Mapping[str, list[str]]) -> int:
    """Check corrections, then add all of them to the file; return how many."""
    given = list(rows)
    for row in given:
        check(row, labels)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in given)
    return len(given)
