"""Count the labels that a model gets right: `scoring.py MODEL FILE [--since DATE] [--without FILE]` prints shares."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corrections import HEADS, Mistake, rows_of


@dataclass(frozen=True)
class Right:
    """How many labels of each head are right, of how many that are known."""

    right: Mapping[str, int]
    of: Mapping[str, int]

    @property
    def sum(self) -> int:
        """Right labels of all heads."""
        return sum(self.right.values())

    def __str__(self) -> str:
        return ", ".join(f"{head} {self.right[head]}/{self.of[head]}" for head in self.of)


def count(rows: Sequence[Mapping[str, Any]], told: Sequence[Mapping[str, Any]]) -> Right:
    """Count, for rows and the model's answers to them.

    Raises:
        Mistake: A row that the model has no answer for.
    """
    for row, answer in zip(rows, told, strict=True):
        if "error" in answer:
            raise Mistake(f"headline {row.get('headline')!r}: {answer['error']}.")
    known = {head: [row.get(head) is not None for row in rows] for head in HEADS}
    right = {
        head: sum(
            answer[head]["label"] == row[head]
            for row, answer, there in zip(rows, told, known[head], strict=True)
            if there
        )
        for head in HEADS
    }
    return Right(right, {head: sum(known[head]) for head in HEADS})


def score(model: Path, rows: Sequence[Mapping[str, Any]]) -> Right:
    """Ask a model about headlines, and count."""
    from onecurve import predict

    return count(rows, predict(model, [{"text": row["headline"]} for row in rows], batch_size=32))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--since", default="", metavar="DATE", help="leave out older headlines")
    parser.add_argument("--without", type=Path, help="leave out the headlines of this file")
    given = parser.parse_args()
    try:
        seen = {row["headline"] for row in rows_of(given.without)} if given.without else set()
        chosen = [r for r in rows_of(given.file) if r.get("date", "") >= given.since and r["headline"] not in seen]
        found = score(given.model, chosen)
    except Mistake as mistake:
        sys.exit(f"scoring.py: {mistake}")
    print(f"{given.model} on {len(chosen)} headlines of {given.file}")
    for head in HEADS:
        print(f"{head:<10} {found.right[head]}/{found.of[head]} {found.right[head] / max(1, found.of[head]):.3f}")
