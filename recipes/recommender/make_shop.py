"""Write an invented bookshop: items with texts, and what its users viewed, clicked and bought, the same each time.

A book has a subject, a setting and a manner, and its text shows all three in words of its own. A user has a taste in
each. What a user sees in the shop depends on how popular and how new a book is, and a little on the taste (shops
recommend already); whether the user clicks and buys depends on the taste. `events.csv` is in order of time.
"""

import json
import math
import random
from datetime import date, timedelta
from pathlib import Path
from typing import Any

SEED = 20260117
FIRST, DAYS = date(2026, 1, 1), 100
USERS, ITEMS = 400, 300
SEEN_A_DAY = 0.2
"""Books that a user looks at on a day, on average."""

SUBJECTS = {
    "cookery": (
        ["Bread", "Soups", "Preserves", "Pies", "Spices"],
        [
            "a hundred recipes from a country kitchen",
            "how to bake, simmer and season with little money",
            "dishes for every season and the stories behind them",
        ],
    ),
    "crime": (
        ["The Missing Clerk", "A Body", "The Third Key", "Murder", "The Silent Witness"],
        [
            "a detective with a limp hunts a patient killer",
            "an inspector reopens a case that everyone wants closed",
            "a stolen ledger leads to one corpse too many",
        ],
    ),
    "sailing": (
        ["Tides", "The Long Reach", "Knots", "Harbour Lights", "Under Canvas"],
        [
            "a skipper crosses rough water in a boat of her own making",
            "seamanship, winds and anchorages explained",
            "the log of a voyage in an open boat",
        ],
    ),
    "gardening": (
        ["Roses", "The Vegetable Plot", "Hedges", "Seeds", "Old Orchards"],
        [
            "how to sow, prune and harvest on poor soil",
            "beds and borders planned month by month",
            "a head gardener on compost, slugs and patience",
        ],
    ),
    "space": (
        ["Orbit Nine", "The Dark Between Stars", "Signal", "Colony", "Perihelion"],
        [
            "a crew wakes far from home with a failing engine",
            "settlers on a distant moon receive an old message",
            "a pilot and a thinking ship flee an empire",
        ],
    ),
    "birds": (
        ["Owls", "The Wader's Year", "Swifts", "Feathers", "Migration"],
        [
            "plumage, song and nests of every native species",
            "a ringer follows one flock across a continent",
            "notes from a hide, with sketches of hawks and finches",
        ],
    ),
    "railways": (
        ["Branch Lines", "Steam", "The Night Mail", "Signals", "Viaducts"],
        [
            "locomotives, timetables and the men who fired them",
            "a closed line walked from terminus to terminus",
            "how engineers drove a track through rock",
        ],
    ),
    "chess": (
        ["Endgames", "The Queen's Gambit Declined", "Openings", "Blunders", "Sixty Moves"],
        [
            "annotated games of forgotten grandmasters",
            "positions to solve, from pawn to mate",
            "a prodigy prepares for the match of her life",
        ],
    ),
    "mountains": (
        ["The North Face", "Rope and Ice", "Summits", "Huts", "Above the Snowline"],
        [
            "a climber returns to the ridge that took his brother",
            "routes, glaciers and shelters for walkers",
            "an expedition waits out a storm in a tent",
        ],
    ),
    "romance": (
        ["A Second Spring", "Letters to Nora", "The Dance", "Promises", "Midsummer"],
        [
            "two rivals fall in love against their better judgement",
            "a widow answers a letter meant for someone else",
            "old sweethearts meet again at a wedding",
        ],
    ),
}
SETTINGS = {
    "islands": (
        ["of the Islands", "at Sandwick Sound"],
        ["on a windswept island", "among fishing villages and ferries"],
    ),
    "city": (
        ["of the City", "in Tanner Street"],
        ["in the back streets of a great city", "between tenements, trams and markets"],
    ),
    "north": (["of the North", "in Lapland"], ["in the snowy north", "where winter nights never seem to end"]),
    "valley": (
        ["of the Valley", "in Kilbride"],
        ["in a green valley of small farms", "among orchards, mills and slow rivers"],
    ),
}
MANNERS = {
    "funny": (
        ["A Comedy of", "The Hopeless Guide to", "Laughing at"],
        ["Witty and full of absurd mishaps.", "You will laugh out loud on every page."],
    ),
    "scholarly": (
        ["A History of", "Studies in", "The Science of"],
        ["Carefully researched, with notes and an index.", "Draws on archives, letters and data."],
    ),
    "gentle": (
        ["A Little Book of", "Quiet Days with", "The Comfort of"],
        ["A warm and unhurried read.", "Tender, kind and consoling."],
    ),
    "dark": (
        ["The Shadow of", "Bitter", "The Last"],
        ["Bleak, tense and hard to put down.", "A grim tale of guilt and fear."],
    ),
}
ACTIONS = ("view", "click", "buy")


def items(draw: random.Random) -> list[dict[str, Any]]:
    """Return the books: titles differ; a fifth of them come out while the events go on."""
    found: dict[str, dict[str, Any]] = {}
    kinds = [(s, p, m) for s in SUBJECTS for p in SETTINGS for m in MANNERS]
    while len(found) < ITEMS:
        subject, place, manner = kinds[len(found) % len(kinds)]
        (nouns, about), (where, scene), (opening, mood) = SUBJECTS[subject], SETTINGS[place], MANNERS[manner]
        title = f"{draw.choice(opening)} {draw.choice(nouns)} {draw.choice(where)}"
        what = draw.choice(about)
        text = f"{what[0].upper()}{what[1:]}, {draw.choice(scene)}. {draw.choice(mood)}"
        if title not in found:
            day = draw.randrange(1, DAYS - 15) if draw.random() < 0.2 else -draw.randrange(1, 700)
            found[title] = {"title": title, "description": text, "kind": (subject, place, manner), "out": day}
    rows = [*found.values()]
    draw.shuffle(rows)
    return [{"item": f"b{number:03}", **row} for number, row in enumerate(rows)]


def tastes(draw: random.Random) -> list[dict[str, float]]:
    """Return how much each user likes each subject, setting and manner: log-odds."""
    found = []
    for _ in range(USERS):
        liked = dict.fromkeys([*SUBJECTS, *SETTINGS, *MANNERS], -1.0)
        liked |= dict.fromkeys(draw.sample([*SUBJECTS], 2), 2.0)
        liked |= dict.fromkeys(draw.sample([*SETTINGS], 1), 1.0)
        liked |= dict.fromkeys(draw.sample([*MANNERS], 1), 1.5)
        found.append(liked)
    return found


def events(shop: list[dict[str, Any]], draw: random.Random) -> list[dict[str, Any]]:
    """Return what users did, by day: each of view, click and buy of a book once, a buy after a click after a view."""
    fame = [1 / (1 + rank) ** 0.7 for rank in range(len(shop))]
    draw.shuffle(fame)
    found, done = [], set()
    likings = [[sum(taste[part] for part in book["kind"]) for book in shop] for taste in tastes(draw)]
    for day in range(DAYS):
        there = [number for number, book in enumerate(shop) if book["out"] <= day]
        shown = {n: fame[n] * (1 + 3 * math.exp(-max(0, day - shop[n]["out"]) / 20)) for n in there}
        for user, liking in enumerate(likings):
            while draw.random() < SEEN_A_DAY / (1 + SEEN_A_DAY):
                weights = [shown[n] * math.exp(0.5 * liking[n]) for n in there]
                (number,) = draw.choices(there, weights)
                if (user, number) in done:
                    continue
                done.add((user, number))
                steps = 1
                for bar in (0.5, 2.0):  # a click, and then a buy
                    if draw.random() >= 1 / (1 + math.exp(bar - liking[number])):
                        break
                    steps += 1
                found += [
                    {"day": day, "user": f"u{user:03}", "item": shop[number]["item"], "action": action}
                    for action in ACTIONS[:steps]
                ]
    return found


def write(folder: Path) -> None:
    """Write items.jsonl and events.csv."""
    draw = random.Random(SEED)
    shop = items(draw)
    happened = events(shop, draw)
    folder.mkdir(exist_ok=True)
    told = [
        {"item": b["item"], "title": b["title"], "description": b["description"], "out": _date(b["out"])} for b in shop
    ]
    lines = [f"{_date(one['day'])},{one['user']},{one['item']},{one['action']}\n" for one in happened]
    (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in told), encoding="utf-8")
    (folder / "events.csv").write_text("".join(["date,user,item,action\n", *lines]), encoding="utf-8")


def _date(day: int) -> str:
    return (FIRST + timedelta(days=day)).isoformat()


if __name__ == "__main__":
    write(Path(__file__).parent / "data")
