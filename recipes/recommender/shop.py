"""The shop's items and events: what a user has done before a day, and the text that says so."""

import csv
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

WEIGHTS = {"view": 1, "click": 2, "buy": 4}
"""What an action says of a user's taste, and of an item's popularity."""
HALF_LIFE = 30
"""Days after which an action counts half."""
PROFILE = 3
"""Items that a user's text names."""
POPULAR_DAYS = 30
"""Days before, whose actions make an item popular."""
TRAIN_UNTIL, DEV_UNTIL = date(2026, 3, 7), date(2026, 3, 22)
"""Models learn from the events before the first day; the blend from the days between; the rest is the test."""
VERBS = {"view": "viewed", "click": "clicked", "buy": "bought"}


class Mistake(Exception):
    """What was given cannot be used."""


@dataclass(frozen=True)
class Item:
    """Something to recommend."""

    name: str
    title: str
    description: str
    out: date

    @property
    def text(self) -> str:
        """What models read of it."""
        return f"{self.title}. {self.description}"


@dataclass(frozen=True)
class Event:
    """A user's action."""

    date: date
    user: str
    item: str
    action: str


@dataclass(frozen=True)
class Shop:
    """All items, and all events in order of time."""

    items: Mapping[str, Item]
    events: Sequence[Event]

    @classmethod
    def read(cls, folder: Path) -> "Shop":
        """Read items.jsonl and events.csv.

        Raises:
            Mistake: A file is not there, or a line is something else; says which.
        """
        items: dict[str, Item] = {}
        events: list[Event] = []

        def item(line: str) -> None:
            row = json.loads(line)
            out = date.fromisoformat(row["out"])
            items[row["item"]] = Item(row["item"], row["title"], row["description"], out)

        def event(one: Mapping[str, str]) -> None:
            if one["item"] not in items or one["action"] not in WEIGHTS:
                raise ValueError(f"no item {one['item']!r}, or no action {one['action']!r}")
            events.append(Event(date.fromisoformat(one["date"]), one["user"], one["item"], one["action"]))

        _each(folder / "items.jsonl", lambda file: file, item, 1)
        _each(folder / "events.csv", csv.DictReader, event, 2)
        return cls(items, sorted(events, key=lambda one: one.date))

    def before(self, day: date) -> "Shop":
        """Return the shop as it was at the beginning of a day: items that were out, and the events on them.

        Announced books may be viewed; that counts from the day they are out.
        """
        items = {name: item for name, item in self.items.items() if item.out <= day}
        return Shop(items, [one for one in self.events if one.date < day and one.item in items])

    def left_out(self, day: date) -> str:
        """Return a note on the earlier events that `before` leaves out; empty where there are none."""
        count = sum(one.date < day < self.items[one.item].out for one in self.events)
        return f"{count} events are left out: their items were not out on {day}" if count else ""

    def of(self, user: str) -> list[Event]:
        """Return what a user did."""
        return [one for one in self.events if one.user == user]

    def popularity(self, day: date) -> dict[str, float]:
        """Return each item's weighted actions of the days before; 0 where there were none."""
        found = dict.fromkeys(self.items, 0.0)
        for one in self.events:
            if 0 < (day - one.date).days <= POPULAR_DAYS:
                found[one.item] = found.get(one.item, 0.0) + WEIGHTS[one.action]
        return found


def _each(path: Path, reader: Callable[[Any], Iterable[Any]], take: Callable[[Any], None], first: int) -> None:
    """Have each record of a file taken, or say which one cannot be."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            for number, record in enumerate(reader(file), first):
                try:
                    take(record)
                except (ValueError, KeyError, TypeError) as error:
                    told = f"{path}, line {number}: {error!r}; README.md says what the columns are."
                    raise Mistake(told) from None
    except OSError as error:
        raise Mistake(f"{path}: {error.strerror}") from None


def interests(events: Iterable[Event], day: date) -> dict[str, tuple[float, str]]:
    """Return what a user's actions say: item -> (weight, strongest action), the heaviest first.

    An item counts by its strongest action, halved every `HALF_LIFE` days.
    """
    strongest: dict[str, Event] = {}
    for one in events:
        if one.item not in strongest or WEIGHTS[one.action] >= WEIGHTS[strongest[one.item].action]:
            strongest[one.item] = one
    weighed = {
        item: (WEIGHTS[one.action] * 0.5 ** ((day - one.date).days / HALF_LIFE), one.action)
        for item, one in strongest.items()
    }
    return dict(sorted(weighed.items(), key=lambda pair: (-pair[1][0], pair[0])))


def profile(shop: Shop, events: Iterable[Event], day: date) -> str:
    """Return the text of a user: the titles that weigh most, each with what was done; empty without any event."""
    heaviest = list(interests(events, day).items())[:PROFILE]
    return "; ".join(f"{VERBS[action]} {shop.items[item].title}" for item, (_, action) in heaviest)


def chosen(events: Iterable[Event], earlier: Iterable[Event]) -> list[str]:
    """Return the items that a user clicked or bought and had not come across before: what a list should have named."""
    known = {one.item for one in earlier}
    return sorted({one.item for one in events if one.action != "view"} - known)
