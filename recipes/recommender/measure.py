"""Fit the blend on the dev users, and measure all ways to make a list on the test users: README.md has the protocol."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path

import numpy as np
from blending import FEATURES, Blend
from bm25 import BM25
from candidates import Asked, Vectors, ask, item_vectors
from rankings import METRICS, TOP, diversity, interval, score
from shop import DEV_UNTIL, TRAIN_UNTIL, Mistake, Shop, chosen


def relevant_items(shop: Shop, start: date, end: date) -> dict[str, list[str]]:
    """Return the items that users who were there before chose from `start` on and before `end`, of those then out."""
    earlier = shop.before(start)
    found = {}
    for user in sorted({one.user for one in earlier.events}):
        later = [one for one in shop.of(user) if start <= one.date < end and one.item in earlier.items]
        if items := chosen(later, earlier.of(user)):
            found[user] = items
    return found


def lists_of(asked: Sequence[Asked], shop: Shop, blend: Blend) -> dict[str, list[list[str]]]:
    """Return each way's list for each user."""
    bm25 = BM25({name: item.text for name, item in shop.items.items()})
    found: dict[str, list[list[str]]] = {
        name: [] for name in ("popularity", "BM25", "bi-encoder", "cross-encoder", "blend")
    }
    for one in asked:
        by_words = bm25.scores(one.text)
        candidates = one.features
        orders = [
            one.popular,
            sorted(one.nearest, key=lambda item: (-by_words[item], item)),
            one.nearest,
            sorted(candidates, key=lambda item: -candidates[item]["relevance"]),
            sorted(candidates, key=lambda item: -blend.score(candidates[item])),
        ]
        for name, order in zip(found, orders, strict=True):
            found[name].append(list(order[:TOP]))
    return found


def tables(lists: Mapping[str, list[list[str]]], relevant: Sequence[Sequence[str]], vectors: Vectors) -> str:
    """Return the scores of each way with their intervals, the blend's gains, and how diverse the lists are."""
    scores = {
        name: [score(one, items) for one, items in zip(found, relevant, strict=True)] for name, found in lists.items()
    }
    lines = ["| list | " + " | ".join(METRICS) + " |", "|---|" + "--:|" * len(METRICS)]
    for name, of_users in scores.items():
        lines.append(f"| {name} | " + " | ".join(_told([one[m] for one in of_users]) for m in METRICS) + " |")
    for other in list(scores)[:-1]:
        gains = [
            _told([mine[m] - theirs[m] for mine, theirs in zip(scores["blend"], scores[other], strict=True)], "+")
            for m in METRICS
        ]
        lines.append(f"| blend less {other} | " + " | ".join(gains) + " |")
    lines += ["", "| list | distance in a list | coverage | Gini |", "|---|--:|--:|--:|"]
    for name, found in lists.items():
        told = diversity(found, vectors)
        lines.append(f"| {name} | {told['distance']:.3f} | {told['coverage']:.3f} | {told['gini']:.3f} |")
    return "\n".join(lines)


def _told(values: Sequence[float], sign: str = "") -> str:
    low, high = interval(values)
    return f"{np.mean(values):{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"


def main(given: argparse.Namespace) -> None:
    """Fit, measure, write."""
    shop = Shop.read(given.data)
    end = max(one.date for one in shop.events)
    days = {"dev": (TRAIN_UNTIL, DEV_UNTIL, given.dev_users), "test": (DEV_UNTIL, date.max, given.users)}
    there = item_vectors(given.run, shop)
    asked, relevant = {}, {}
    for split, (start, until, count) in days.items():
        found = relevant_items(shop, start, until)
        users = list(found)[:count]
        relevant[split] = [found[user] for user in users]
        asked[split] = ask(given.run, shop.before(start), start, users, there)
        if note := shop.left_out(start):
            print(f"{split}: {note}")
        print(f"{split}: {len(users)} of {len(found)} users, {sum(map(len, relevant[split]))} items", flush=True)
    known = [
        (features, item in items)
        for one, items in zip(asked["dev"], relevant["dev"], strict=True)
        for item, features in one.features.items()
    ]
    if len({label for _, label in known}) < 2:
        raise Mistake("no dev candidate was chosen, or all were; the blend needs both: raise --dev_users.")
    blend = Blend.fit([features for features, _ in known], [label for _, label in known])
    blend.write(given.run / "blend.json")
    print("blend: " + ", ".join(f"{name} {blend.weights[name]:+.3f}" for name in FEATURES))
    print(f"dev candidates: {len(known)}, of which {sum(label for _, label in known)} were chosen")
    reach = [
        len(set(one.features) & set(items)) / len(items)
        for one, items in zip(asked["test"], relevant["test"], strict=True)
    ]
    print(f"test: {np.mean(reach):.3f} of what was chosen is among the candidates; events until {end}\n")
    earlier = shop.before(DEV_UNTIL)
    lists = lists_of(asked["test"], earlier, blend)
    print(tables(lists, relevant["test"], {name: there[name] for name in earlier.items}))
    named = [one.user for one in asked["test"]]
    out = {"users": named, "relevant": relevant["test"], "lists": lists}
    (given.run / "lists.json").write_text(json.dumps(out) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(__file__).parent / "data")
    parser.add_argument("--run", type=Path, default=Path("runs/recommender"))
    parser.add_argument("--dev_users", type=int, default=1000, help="users that the blend is fitted on, at most")
    parser.add_argument("--users", type=int, default=1000, help="users that are measured, at most")
    try:
        main(parser.parse_args())
    except Mistake as mistake:
        print(f"measure.py: {mistake}", file=sys.stderr)
        sys.exit(2)
