"""Write what the two models learn from: the events before `shop.TRAIN_UNTIL`, and for their dev splits those after."""

import argparse
import json
import random
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

from shop import DEV_UNTIL, TRAIN_UNTIL, Event, Mistake, Shop, profile

SEED = 20260126
HISTORY = 2
"""Items that a user must have come across before the day that is learnt."""
OTHERS = 4
"""Draws of a list's other items: by popularity, of those that the user had not come across until then. They are with
replacement, so there may be fewer items."""
GRADES = {"view": 0, "click": 1, "buy": 2}


def moments(shop: Shop, start: date, end: date) -> Iterator[tuple[str, date, list[Event], dict[str, int]]]:
    """Yield user, day, the user's earlier events, and the grade of each item that was new to the user on that day."""
    for user in sorted({one.user for one in shop.events}):
        own = shop.of(user)
        for day in sorted({one.date for one in own if start <= one.date < end}):
            earlier = [one for one in own if one.date < day]
            known = {one.item for one in earlier}
            grades: dict[str, int] = {}
            for one in own:
                if one.date == day and one.item not in known:
                    grades[one.item] = max(grades.get(one.item, 0), GRADES[one.action])
            if len(known) >= HISTORY and any(grades.values()):
                yield user, day, earlier, grades


def pairs(shop: Shop, start: date, end: date) -> list[dict[str, str]]:
    """Return a row for each item that a user chose: what the user's text said that day, and the item's text."""
    return [
        {"query": profile(shop, earlier, day), "positive": shop.items[item].text}
        for _, day, earlier, grades in moments(shop, start, end)
        for item, grade in sorted(grades.items())
        if grade
    ]


def lists(shop: Shop, start: date, end: date, draw: random.Random) -> list[dict[str, Any]]:
    """Return a row for each user and day: the items of that day with their grades, and others with 0."""
    found = []
    for _, day, earlier, grades in moments(shop, start, end):
        known = {one.item for one in earlier} | grades.keys()
        popular = {n: weight + 1 for n, weight in shop.popularity(day).items() if shop.items[n].out <= day}
        free = {name: weight for name, weight in popular.items() if name not in known}
        others = dict.fromkeys(draw.choices([*free], [*free.values()], k=OTHERS), 0) if free else {}
        graded = [*{**grades, **others}.items()]
        if len(graded) < 2:  # nothing to rank
            continue
        draw.shuffle(graded)
        texts = [shop.items[item].text for item, _ in graded]
        found.append(
            {"query": profile(shop, earlier, day), "documents": texts, "labels": [grade for _, grade in graded]}
        )
    return found


def write(path: Path, rows: list[dict[str, Any]], at_most: int | None, draw: random.Random) -> None:
    """Write rows, or a sample of them, as JSONL."""
    draw.shuffle(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:at_most]), encoding="utf-8")
    print(f"{path}: {min(len(rows), at_most or len(rows))} of {len(rows)} rows")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(__file__).parent / "data")
    parser.add_argument("--run", type=Path, default=Path("runs/recommender"))
    parser.add_argument("--dev", type=int, default=40, help="rows of the models' dev splits, at most")
    given = parser.parse_args()
    try:
        shop = Shop.read(given.data)
    except Mistake as mistake:
        print(f"prepare.py: {mistake}", file=sys.stderr)
        sys.exit(2)
    given.run.mkdir(parents=True, exist_ok=True)
    for split, start, end, at_most in [
        ("train", date.min, TRAIN_UNTIL, None),
        ("dev", TRAIN_UNTIL, DEV_UNTIL, given.dev),
    ]:
        draw = random.Random(f"{SEED} pairs {split}")
        write(given.run / f"pairs-{split}.jsonl", pairs(shop, start, end), at_most, draw)
        draw = random.Random(f"{SEED} lists {split}")
        write(given.run / f"lists-{split}.jsonl", lists(shop, start, end, draw), at_most, draw)
