"""A range test's curve as text, as tables, and as a picture."""

import csv
import io
import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from onecurve.range_test.curve import Curve, decades

_WIDTH, _HEIGHT = 70, 14
"""Columns and lines of the curve as text."""
_RULES = {
    "steepest": "where the smoothed loss falls steepest",
    "minimum/10": "a tenth of the rate at the lowest smoothed loss",
}


def read_curve(metrics: Path, num_steps: int) -> Curve:
    """Read what the test's run has left."""
    events = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    steps = [event for event in events if event["event"] == "train"]
    stopped = next(event["reason"] for event in events if event["event"] == "end")
    return Curve([step["lr"] for step in steps], [step["loss"] for step in steps], num_steps, stopped)


def as_text(curve: Curve) -> str:
    """Return the curve over the logarithm of the rate, what it suggests and what is to be said of it."""
    lines = [*_plot(curve)] if len(curve.rates) > 1 else []
    suggested = curve.suggestions()
    lines += [f"optim.lr {rate:.2e}: {_RULES[rule]} ({rule})" for rule, rate in suggested.items()]
    return "\n".join([*lines, *curve.remarks()])


def _plot(curve: Curve) -> list[str]:
    low, high = min(curve.smoothed), max(curve.smoothed)
    room = (high - low) / 4 or 1.0  # single losses scatter; those beyond are drawn at the edge
    low, high = low - room, high + room
    cells = [[" "] * _WIDTH for _ in range(_HEIGHT)]

    def draw(values: Sequence[float], mark: str) -> None:
        for rate, value in zip(curve.rates, values, strict=True):
            across = round(decades([curve.rates[0], rate]) / decades(curve.rates) * (_WIDTH - 1))
            up = round((min(max(value, low), high) - low) / (high - low) * (_HEIGHT - 1))
            cells[_HEIGHT - 1 - up][across] = mark

    draw(curve.losses, ".")
    draw(curve.smoothed, "#")
    at = [high - (high - low) * line / (_HEIGHT - 1) for line in range(_HEIGHT)]
    rows = [f"{value:10.4g} |{''.join(cell).rstrip()}" for value, cell in zip(at, cells, strict=True)]
    first, last = f"{curve.rates[0]:.1e}", f"{curve.rates[-1]:.1e}"
    ends = first + last.rjust(_WIDTH - len(first))
    return [
        "loss over the learning rate: . of a step, # smoothed",
        *rows,
        " " * 11 + "+" + "-" * _WIDTH,
        " " * 12 + ends,
    ]


def _rows(curve: Curve) -> list[dict[str, Any]]:
    steps = range(1, len(curve.rates) + 1)
    columns = zip(steps, curve.rates, curve.losses, curve.smoothed, strict=True)
    return [dict(zip(("step", "lr", "loss", "smoothed_loss"), row, strict=True)) for row in columns]


def write(curve: Curve, folder: Path, about: dict[str, Any]) -> str:
    """Write lr.json, lr.csv and, where matplotlib is installed, lr.png; say what was written.

    Args:
        curve: The curve.
        folder: Where to; files of these names are replaced.
        about: What else the JSON holds of the test.
    """
    rows = _rows(curve)
    found = {"suggestions": curve.suggestions(), "stopped": curve.stopped or None, "remarks": curve.remarks()}
    (folder / "lr.json").write_text(json.dumps({**about, **found, "points": rows}, indent=1) + "\n", encoding="utf-8")
    table = io.StringIO()
    writer = csv.DictWriter(table, ["step", "lr", "loss", "smoothed_loss"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    (folder / "lr.csv").write_text(table.getvalue(), encoding="utf-8")
    if not rows:
        return f"written to {folder}: lr.json, lr.csv; no lr.png: no step was made"
    if find_spec("matplotlib") is None:
        return f"written to {folder}: lr.json, lr.csv; no lr.png: matplotlib is not installed"
    _draw(curve, folder / "lr.png")
    return f"written to {folder}: lr.json, lr.csv, lr.png"


def _draw(curve: Curve, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panel = pyplot.subplots(figsize=(7, 4.2))
    panel.semilogx(curve.rates, curve.losses, ".", color="0.7", label="of a step")
    panel.semilogx(curve.rates, curve.smoothed, label="smoothed")
    for style, (rule, rate) in zip(("--", ":"), curve.suggestions().items(), strict=False):
        panel.axvline(rate, color="0.3", linestyle=style, label=f"{rule}: {rate:.1e}")
    # The last losses, of rates that destroy the weights, would flatten the rest
    shown = [*curve.smoothed, *sorted(curve.losses)[: -(-4 * len(curve.losses) // 5)]]
    room = (max(shown) - min(shown)) / 10 or 1.0
    panel.set_ylim(min(shown) - room, max(shown) + room)
    panel.set_xlabel("learning rate")
    panel.set_ylabel("loss")
    panel.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
