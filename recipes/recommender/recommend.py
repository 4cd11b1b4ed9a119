"""Recommend items to a user, with reasons: `recommend.py u017`."""

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from blending import Blend
from candidates import Vectors, ask, item_vectors
from shop import VERBS, Mistake, Shop, interests

_REASONS = 2
"""Items of the user that a recommendation is said to resemble."""


def recommend(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the list, the best first."""
    shop = Shop.read(given.data)
    if not shop.events:
        raise Mistake(f"{given.data / 'events.csv'} has no events.")
    day = given.day or max(one.date for one in shop.events) + timedelta(days=1)
    if note := shop.left_out(day):
        print(f"recommend.py: {note}", file=sys.stderr)
    shop = shop.before(day)
    own = shop.of(given.user)
    if not own:
        raise Mistake(f"{given.user!r} has done nothing before {day}; show what is popular to a user who is new.")
    if not (given.run / "blend.json").is_file():
        raise Mistake(f"{given.run / 'blend.json'} is not there; `make measure` fits the blend.")
    blend, there = Blend.read(given.run / "blend.json"), item_vectors(given.run, shop)
    (asked,) = ask(given.run, shop, day, [given.user], there)
    order = sorted(asked.features, key=lambda item: -blend.score(asked.features[item]))
    actions = {item: action for item, (_, action) in interests(own, day).items()}
    return [
        {
            "item": item,
            "title": shop.items[item].title,
            "score": blend.score(asked.features[item]),
            "like": [
                {"item": other, "title": shop.items[other].title, "action": actions[other], "cosine": cosine}
                for other, cosine in nearest(item, list(actions), there)
            ],
            "parts": blend.parts(asked.features[item]),
        }
        for item in order[: given.top]
    ]


def nearest(item: str, others: Sequence[str], vectors: Vectors) -> list[tuple[str, float]]:
    """Return the items that one resembles most, with their cosines."""
    cosines = {other: float(vectors[item] @ vectors[other]) for other in others}
    return sorted(cosines.items(), key=lambda pair: -pair[1])[:_REASONS]


def told(number: int, one: dict[str, Any]) -> str:
    """Return a recommendation for people: what it is, what it resembles, and what made its score."""
    like = "; ".join(f"{VERBS[o['action']]} {o['title']} ({o['cosine']:.2f})" for o in one["like"])
    parts = sorted(one["parts"].items(), key=lambda pair: -abs(pair[1]))
    weights = ", ".join(f"{name} {value:+.2f}" for name, value in parts)
    return f"{number:>2}. {one['title']} [{one['item']}]  {one['score']:+.2f}\n    like: {like}\n    from: {weights}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("user")
    parser.add_argument("--data", type=Path, default=Path(__file__).parent / "data")
    parser.add_argument("--run", type=Path, default=Path("runs/recommender"))
    parser.add_argument("--day", type=date.fromisoformat, help="what is known before it counts; default: all there is")
    parser.add_argument("--top", type=int, default=10)
    parser.add_argument("--json", action="store_true", help="write one JSON object an item")
    given = parser.parse_args()
    try:
        for number, one in enumerate(recommend(given), 1):
            print(json.dumps(one) if given.json else told(number, one))
    except Mistake as mistake:
        print(f"recommend.py: {mistake}", file=sys.stderr)
        sys.exit(2)
