"""Runs of the same rounds become rows, and rows a table; a run whose losses are not ours is no run of the same work."""

import json
from dataclasses import dataclass, replace
from math import nan
from pathlib import Path
from statistics import mean, median

from watching import Measured

WARM_UP_STEPS = 3
SAVE_SHADOW = 3
"""Steps after a save that it may slow down: it goes on behind them."""
LOSS_TOLERANCE = {"no": (1e-5, 1e-4), "bf16": (1e-2, 1e-2)}
"""Largest relative difference of the first loss, and of the mean loss, that is rounding."""


@dataclass(frozen=True)
class Rounds:
    """One contender's runs on a work, one in each of the first rounds."""

    label: str
    runs: list[Measured]
    saves: list[int]
    """The step that each round saved after."""

    def steady(self, number: int) -> list[int]:
        """Return the steps of a round that are past the warm-up and clear of its save."""
        shadow = _shadow(self.saves[number])
        return [step for step in range(WARM_UP_STEPS + 1, len(self.runs[number].losses) + 1) if step not in shadow]

    def steady_seconds(self) -> list[float]:
        """Return each round's time of its steady steps."""
        return [run.seconds(self.steady(i)) for i, run in enumerate(self.runs)]

    def steady_processor_seconds(self) -> list[float]:
        """Return what of the processor they took."""
        return [run.processor_seconds(self.steady(i)) for i, run in enumerate(self.runs)]

    def save_seconds(self) -> list[float]:
        """Return what each save cost: the steps after it, less the same steps of the rounds that did not save there."""
        costs = []
        for number, (run, save) in enumerate(zip(self.runs, self.saves, strict=False)):
            shadow = _shadow(save)
            others = [
                other.seconds(shadow)
                for i, other in enumerate(self.runs)
                if i != number and not set(shadow) & set(_shadow(self.saves[i]))
            ]
            costs += [run.seconds(shadow) - median(others)] if others else []
        return costs


def save_step(number: int, num_steps: int) -> int:
    """Return the step that a round saves after: one of two, by turns, whose shadows do not meet."""
    return (num_steps - SAVE_SHADOW, num_steps - 2 * SAVE_SHADOW - 1)[number % 2]


def _shadow(save: int) -> range:
    return range(save + 1, save + 1 + SAVE_SHADOW)


def differences(theirs: Measured, ours: Measured) -> tuple[float, float]:
    """Return by how much the first loss and the mean loss differ, relatively."""
    return (
        abs(theirs.losses[0] / ours.losses[0] - 1),
        abs(mean(theirs.losses) / mean(ours.losses) - 1) if len(theirs.losses) == len(ours.losses) else 1.0,
    )


def row(theirs: Rounds, ours: Rounds, tokens: list[int], precision: str) -> dict[str, object]:
    """Return a contender's numbers on a work beside ours.

    Args:
        theirs: Its runs.
        ours: Ours, of as many rounds or more.
        tokens: Of each step, without padding.
        precision: A key of LOSS_TOLERANCE.

    Returns:
        A list holds a number a round. `ours_over_theirs` has paired ratios of speed, and of what is better small their
        inverse: above 1, ours is better.
    """
    ours = replace(ours, runs=ours.runs[: len(theirs.runs)])
    found, bar = [differences(a, b) for a, b in zip(theirs.runs, ours.runs, strict=True)], LOSS_TOLERANCE[precision]
    first, average = (max(pair[i] for pair in found) for i in (0, 1))
    numbers, our_numbers = _numbers(theirs, tokens), _numbers(ours, tokens)
    return {
        "contender": theirs.label,
        **numbers,
        "save_seconds": theirs.save_seconds(),
        "ours_over_theirs": {
            name: [
                (b / a if name == "tokens_per_second" else a / b)
                for a, b in zip(numbers[name], our_numbers[name], strict=True)
            ]
            for name in numbers
            if theirs.label != ours.label
        },
        "loss_differences": (first, average),
        "void": not (first <= bar[0] and average <= bar[1]),
    }


def _numbers(rounds: Rounds, tokens: list[int]) -> dict[str, list[float]]:
    counted = [sum(tokens[step - 1] for step in rounds.steady(i)) for i in range(len(rounds.runs))]
    processor = rounds.steady_processor_seconds()
    scored = [run.scored - run.moments[-1] for run in rounds.runs if run.scored is not None]
    return {
        "tokens_per_second": [n / s if s else nan for n, s in zip(counted, rounds.steady_seconds(), strict=True)],
        "first_step_seconds": [run.moments[0] for run in rounds.runs],
        "peak_megabytes": [run.peak / 1e6 for run in rounds.runs],
        "eval_seconds": scored,
        "last_loss_seconds": [run.moments[-1] for run in rounds.runs],
        "command_seconds": [run.ended for run in rounds.runs],
        "processor_seconds": [1000 * s / n if n else nan for n, s in zip(counted, processor, strict=True)],
    }


def count_tokens(examples: Path, examples_a_step: int) -> list[int]:
    """Return each step's tokens, without padding."""
    lengths = [len(json.loads(line)["input_ids"]) for line in examples.read_text().splitlines()]
    return [sum(lengths[i : i + examples_a_step]) for i in range(0, len(lengths), examples_a_step)]


_COLUMNS = {
    "tokens_per_second": "tokens/s",
    "first_step_seconds": "command to first step, s",
    "peak_megabytes": "peak memory, MB",
    "save_seconds": "a save costs, s",
    "eval_seconds": "scoring, s",
    "last_loss_seconds": "command to the last loss, s",
    "command_seconds": "whole command, s",
    "processor_seconds": "processor, s for 1,000 tokens",
}


def markdown(title: str, rows: list[dict[str, object]]) -> str:
    """Return a Markdown table: medians, and in brackets ours over theirs (median: range), or our own range."""
    lines = [f"### {title}", "", "| | " + " | ".join(_COLUMNS.values()) + " |", "|---|" + "--:|" * len(_COLUMNS)]
    for values in rows:
        lines.append("| " + " | ".join([str(values["contender"]), *_cells(values)]) + " |")
    return "\n".join([*lines, ""])


def _cells(values: dict[str, object]) -> list[str]:
    if values["void"]:
        first, average = values["loss_differences"]  # type: ignore[misc]
        return [
            f"void: its losses are others (first by {first:.1e}, mean by {average:.1e})",
            *[""] * (len(_COLUMNS) - 1),
        ]
    return [_cell(values[name], values["ours_over_theirs"].get(name)) for name in _COLUMNS]  # type: ignore[attr-defined]


def _cell(numbers: object, ratios: list[float] | None) -> str:
    assert isinstance(numbers, list)
    if not numbers:
        return "-"
    own = _said(median(numbers))
    told = [f"{median(ratios):.2f}"] if ratios else []
    if len(numbers) > 1:
        low, high = (f"{end(ratios):.2f}" if ratios else _said(end(numbers)) for end in (min, max))
        told.append(f"{low} to {high}")
    return f"{own} ({': '.join(told)})" if told else own


def _said(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
