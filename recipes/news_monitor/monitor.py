"""Read what the model predicted of dated headlines: a table, sentiment by topic and day, and alarms where it turns.

Exit codes: 0 no new alarm; 3 new alarms; 2 a mistake in what was given; 1 the alarm's command failed.
"""

import argparse
import csv
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from surges import NEGATIVE, Days, Rule, Surge, balance, counts, surges

ALARM = 3
_EXAMPLES = 5
"""Headlines that an alarm quotes."""


class Mistake(Exception):
    """What was given cannot be read."""


@dataclass(frozen=True)
class Headline:
    """A dated headline and what the model says of it."""

    date: date
    headline: str
    topic: str
    topic_score: float
    sentiment: str
    sentiment_score: float


def read(path: Path) -> tuple[list[Headline], int]:
    """Read what `onecurve predict --json --keep date headline` wrote; also return how many rows have no answer.

    Raises:
        Mistake: No such file, or a line that is something else; says which.
    """
    found, lost = [], 0
    try:
        with open(path, encoding="utf-8") as file:
            lines = [*file]
    except OSError as error:
        raise Mistake(f"{path}: {error.strerror}") from None
    for number, line in enumerate(lines, 1):
        try:
            told = json.loads(line)
            if "error" in told:
                lost += 1
                continue
            kept, topic, mood = told["kept"], told["topic"], told["sentiment"]
            day = date.fromisoformat(str(kept["date"])[:10])
            found.append(
                Headline(
                    day, kept["headline"], topic["label"], topic["probability"], mood["label"], mood["probability"]
                )
            )
        except (ValueError, KeyError, TypeError) as error:
            raise Mistake(
                f"{path}, line {number}: {error}. It must be a line of `onecurve predict MODEL --json --keep date "
                "headline`, with heads topic and sentiment and a date such as 2026-03-01."
            ) from None
    if not found:
        raise Mistake(f"{path}: no headline has an answer.")
    return sorted(found, key=lambda one: one.date), lost


def write_table(path: Path, rows: Iterable[Headline]) -> None:
    """Write a CSV with a line a headline."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*Headline.__dataclass_fields__])
        writer.writeheader()
        writer.writerows({**asdict(one), "date": one.date.isoformat()} for one in rows)


def text_table(days: Days, found: Iterable[Surge]) -> str:
    """Return sentiment by day and topic: positive share less negative share, negative/all, and ! for a surge."""
    topics = sorted({topic for day in days.values() for topic in day})
    flagged = {(one.date, one.topic) for one in found}
    lines = ["".join([f"{'':<12}", *(f"{topic:>16}" for topic in topics)])]
    for day, by_topic in days.items():
        cells = []
        for topic in topics:
            today = by_topic.get(topic)
            mark = "!" if (day, topic) in flagged else " "
            told = f"{balance(today):+.2f} {today[NEGATIVE]}/{today.total()}{mark}" if today else "- "
            cells.append(f"{told:>16}")
        lines.append("".join([f"{day.isoformat():<12}", *cells]))
    return "\n".join(lines)


def plot(path: Path, days: Days, found: Iterable[Surge]) -> None:
    """Draw sentiment by topic and day, a panel a topic, with surges marked. Needs matplotlib."""
    from matplotlib.figure import Figure

    topics = sorted({topic for day in days.values() for topic in day})
    figure = Figure(figsize=(9, 1.6 * len(topics)), layout="constrained")
    panels = figure.subplots(len(topics), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    flagged = {(one.date, one.topic) for one in found}
    for panel, topic in zip(panels, topics, strict=True):
        points = [(day, balance(there[topic])) for day, there in days.items() if topic in there]
        panel.plot(*zip(*points, strict=True), marker=".", linewidth=1)
        alarms = [point for point in points if (point[0], topic) in flagged]
        if alarms:
            panel.plot(*zip(*alarms, strict=True), "v", color="tab:red", label="surge of negative news")
            panel.legend(loc="lower left")
        panel.axhline(0, color="grey", linewidth=0.5)
        panel.set(title=topic, ylim=(-1.05, 1.05), ylabel="pos. - neg.")
    figure.autofmt_xdate()
    figure.savefig(path, dpi=120)


def alarm(surge: Surge, rows: Iterable[Headline]) -> dict[str, Any]:
    """Return an alarm as a JSON object: the surge, and some of the headlines."""
    there = [one for one in rows if (one.date, one.topic, one.sentiment) == (surge.date, surge.topic, NEGATIVE)]
    there.sort(key=lambda one: -one.sentiment_score)
    return {
        **asdict(surge),
        "date": surge.date.isoformat(),
        "share": surge.negative / surge.headlines,
        "examples": [*dict.fromkeys(one.headline for one in there)][:_EXAMPLES],
    }


def raised(path: Path) -> Iterator[tuple[str, str]]:
    """Yield date and topic of the alarms that were raised before.

    Raises:
        Mistake: A line is something else.
    """
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    for number, line in enumerate(text.split("\n"), 1):
        if not line:
            continue
        try:
            told = json.loads(line)
            yield told["date"], told["topic"]
        except (ValueError, KeyError, TypeError):
            raise Mistake(f"{path}, line {number}: must be an alarm that monitor.py wrote.") from None


def raise_alarms(alarms: Iterable[dict[str, Any]], record: Path, command: str | None) -> int:
    """Tell of each alarm that `record` does not have, and then write it there; return the exit code.

    Args:
        alarms: All of them, old ones too.
        record: A JSON object a line.
        command: Run by the shell for each new alarm, with the alarm as JSON on its standard input. If it fails, the
            alarm is not recorded, so the next call raises it again.
    """
    known, code = set(raised(record)), 0
    for one in alarms:
        if (one["date"], one["topic"]) in known:
            continue
        print(
            f"ALARM {one['date']} {one['topic']}: {one['negative']} of {one['headlines']} headlines are negative, "
            f"usually {one['usual_share']:.0%}"
        )
        line = json.dumps(one, ensure_ascii=False) + "\n"
        if command and (failed := subprocess.run(command, shell=True, input=line, text=True).returncode):
            print(f"monitor.py: --on_alarm: the command ended with {failed}; the alarm stands.", file=sys.stderr)
            code = 1
            continue
        with open(record, "a", encoding="utf-8") as file:
            file.write(line)
        code = code or ALARM
    return code


def parser() -> argparse.ArgumentParser:
    """Return what the command takes."""
    default = Rule()
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("predictions", type=Path, help="what onecurve predict --json --keep date headline wrote")
    given.add_argument("--table", type=Path, help="a CSV to write, a line a headline")
    given.add_argument("--plot", type=Path, help="a PNG to write; needs matplotlib")
    given.add_argument("--alarms", type=Path, help="record of alarms that were raised; default: alarms.jsonl beside")
    given.add_argument(
        "--on_alarm", "--on-alarm", metavar="CMD", help="run for each new alarm, with the alarm as JSON on stdin"
    )
    given.add_argument("--window", type=int, default=default.window, help="days that make what is usual")
    given.add_argument("--false_alarms", type=float, default=default.false_alarms, help="chance of any on a usual day")
    given.add_argument("--min_headlines", type=int, default=default.min_headlines, help="fewer are not judged")
    given.add_argument("--min_history", type=int, default=default.min_history, help="headlines that the window needs")
    return given


def main(arguments: argparse.Namespace) -> int:
    """Write what is asked for, and raise what is new."""
    if not 0 < arguments.false_alarms < 1 or min(arguments.window, arguments.min_headlines, arguments.min_history) < 1:
        raise Mistake("--false_alarms must be between 0 and 1, and the numbers of days and headlines at least 1.")
    rule = Rule(arguments.window, arguments.false_alarms, arguments.min_headlines, arguments.min_history)
    rows, lost = read(arguments.predictions)
    if lost:
        print(f"{lost} rows have no answer and are left out: see `error` in {arguments.predictions}", file=sys.stderr)
    days = counts((one.date, one.topic, one.sentiment) for one in rows)
    found = surges(days, rule)
    print(text_table(days, found))
    if arguments.table:
        write_table(arguments.table, rows)
    if arguments.plot and find_spec("matplotlib"):
        plot(arguments.plot, days, found)
    elif arguments.plot:
        print(f"no {arguments.plot}: matplotlib is not installed (pip install matplotlib)", file=sys.stderr)
    record = arguments.alarms or arguments.predictions.with_name("alarms.jsonl")
    return raise_alarms([alarm(one, rows) for one in found], record, arguments.on_alarm)


if __name__ == "__main__":
    try:
        sys.exit(main(parser().parse_args()))
    except Mistake as mistake:
        print(f"monitor.py: {mistake}", file=sys.stderr)
        sys.exit(2)
