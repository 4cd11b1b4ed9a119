"""The rule by which a day's negative news on a topic is a surge, and the counts that it looks at."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, timedelta

from scipy.stats import binom

NEGATIVE, POSITIVE = "negative", "positive"


@dataclass(frozen=True)
class Rule:
    """When a day of a topic is a surge.

    The usual share of a topic is that of negative headlines among those of the `window` days before, with one negative
    and one other headline added: (negative + 1) / (headlines + 2). A day is a surge if at least `min_headlines` were
    read on the topic and the chance of so many negative ones or more, were each negative with the usual share (the
    upper tail of the binomial distribution), is at most `false_alarms` divided by the number of topics of that day.
    """

    window: int = 14
    """Days before that make what is usual; those of earlier surges of the topic are left out of it."""
    false_alarms: float = 0.001
    """Chance of any alarm on a day on which nothing is unusual."""
    min_headlines: int = 5
    """Headlines on the topic below which a day is not judged."""
    min_history: int = 30
    """Headlines of the window below which a day is not judged. Where leaving surges out leaves fewer, they count as
    well: what goes on has become usual."""


@dataclass(frozen=True)
class Surge:
    """A day on which news on a topic was negative more often than chance explains."""

    date: date
    topic: str
    headlines: int
    negative: int
    usual_share: float
    chance: float
    """Of so many negative headlines or more, were the share the usual one."""


Days = Mapping[date, Mapping[str, Counter[str]]]
"""Day -> topic -> how many headlines of each sentiment."""


def counts(rows: Iterable[tuple[date, str, str]]) -> dict[date, dict[str, Counter[str]]]:
    """Count (day, topic, sentiment), by day in order."""
    found: dict[date, dict[str, Counter[str]]] = {}
    for day, topic, sentiment in rows:
        found.setdefault(day, {}).setdefault(topic, Counter())[sentiment] += 1
    return dict(sorted(found.items()))


def surges(days: Days, rule: Rule) -> list[Surge]:
    """Return the surges in order of day and topic; each day is judged by the days before it alone."""
    found: list[Surge] = []
    for day in sorted(days):
        alpha = rule.false_alarms / len(days[day])
        flagged = {(one.date, one.topic) for one in found}
        for topic, today in sorted(days[day].items()):
            before = [day - timedelta(days=back) for back in range(1, rule.window + 1)]
            usual = [earlier for earlier in before if (earlier, topic) not in flagged]
            history = _sum(days, usual, topic)
            if history.total() < rule.min_history:
                history = _sum(days, before, topic)
            if history.total() < rule.min_history or today.total() < rule.min_headlines:
                continue
            share = (history[NEGATIVE] + 1) / (history.total() + 2)
            chance = float(binom.sf(today[NEGATIVE] - 1, today.total(), share))
            if chance <= alpha:
                found.append(Surge(day, topic, today.total(), today[NEGATIVE], share, chance))
    return found


def _sum(days: Days, chosen: Iterable[date], topic: str) -> Counter[str]:
    return sum((days[day][topic] for day in chosen if topic in days.get(day, {})), Counter())


def balance(today: Counter[str]) -> float:
    """Return the share of positive headlines less that of negative ones: from -1 to 1."""
    return (today[POSITIVE] - today[NEGATIVE]) / today.total()
