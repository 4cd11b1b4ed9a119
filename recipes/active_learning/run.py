"""Active learning: train, ask for the labels of the rows that the model is least certain of, and train again.

    python -m recipes.active_learning.run RECIPE --pool FILE.jsonl [--start 50] [--ask 50] [--rounds 3]

The first rows to label are drawn at random. The script writes them to `to_label-0.jsonl` in the output folder and
stops. Fill in their labels and run the same command again: it trains, writes `to_label-1.jsonl`, and so on. With
`--oracle FILE` (the pool with its labels) it goes through all rounds at once, to try a strategy on labelled data.

Sources: Settles, Active Learning Literature Survey, 2009, section 3.1 (least confident, margin, entropy).
"""

import argparse
import os
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from math import log
from pathlib import Path
from typing import Any

from onecurve import Result, predict
from onecurve.config import load_recipe
from onecurve.errors import ConfigError, UserError
from recipes.rounds import (
    Row,
    check_one_label,
    describe,
    digest,
    keep_apart,
    read_rows,
    train_round,
    within,
    write_rows,
)

ROW = "pool_row"
"""The column of a file to label that says which row of the pool each is, from 0."""


def margin(probabilities: Sequence[float]) -> float:
    """Return how near the two likeliest labels are: 1 where they are equally likely, 0 where one is certain."""
    first, second = sorted(probabilities)[-1:-3:-1]
    return 1 - (first - second)


def entropy(probabilities: Sequence[float]) -> float:
    """Return the entropy in nats."""
    return -sum(p * log(p) for p in probabilities if p > 0)


def least_confident(probabilities: Sequence[float]) -> float:
    """Return the probability of all labels but the likeliest."""
    return 1 - max(probabilities)


STRATEGIES: dict[str, Callable[[Sequence[float]], float] | None] = {
    "margin": margin, "entropy": entropy, "least_confident": least_confident, "random": None,
}  # fmt: skip
"""How uncertain a prediction is; random asks without looking."""


def pick(answers: Mapping[int, Mapping[str, Any]], strategy: str, count: int, seed: int) -> list[int]:
    """Pick the rows to label next.

    Args:
        answers: Row number -> what the model predicts, for each row without a label; `error` of one it cannot read.
        strategy: A name of `STRATEGIES`.
        count: How many rows, at most.
        seed: Of the random strategy.

    Returns:
        The row numbers, the least certain first; equally certain ones in their order.
    """
    readable = [number for number, answer in answers.items() if "error" not in answer]
    score = STRATEGIES[strategy]
    if score is None:
        return random.Random(seed).sample(readable, min(count, len(readable)))
    uncertainty = {number: score([*answers[number]["probabilities"].values()]) for number in readable}
    return sorted(readable, key=lambda number: -uncertainty[number])[:count]


def learn(
    recipe: Path,
    pool: Path,
    output_dir: Path,
    *,
    counts: Sequence[int],
    strategy: str = "margin",
    oracle: Path | None = None,
    **overrides: Any,
) -> list[Result] | Path:
    """Go through the rounds as far as there are labels.

    Args:
        recipe: A recipe of text_classification with one label a text and task.labels; its data.train is replaced.
        pool: JSON lines with the columns of the task; labels in them are not read.
        output_dir: The folder for the runs `round-0`, `round-1`, ... and for `to_label-0.jsonl`, ...
        counts: How many rows each round asks for; the first ones are drawn at random.
        strategy: A name of `STRATEGIES`.
        oracle: JSON lines of the same rows with their labels, which answer at once.
        **overrides: Of the recipe, as for `onecurve.train`.

    Returns:
        The result of each round; or the file to be labelled next.

    Raises:
        UserError: A mistake in the recipe, the data or a labelled file.
    """
    read, rows = load_recipe([os.fspath(recipe)])[0], read_rows(pool)
    check_one_label(read, rows, pool)
    labels, columns = read.task.extras.get("labels"), read.data.columns
    column, text = columns.get("label", "label"), columns.get("text", "text")
    if not labels:
        raise ConfigError("is not set, and the first rows may lack a label.", where="task.labels", fix="List them all.")
    seed = int(overrides.get("seed", read.seed))
    output_dir.mkdir(parents=True, exist_ok=True)
    answered = read_answers(oracle, rows, column) if oracle else [None] * len(rows)
    keep_apart(output_dir / "to_label-0.jsonl", {"pool": digest(pool)})
    results: list[Result] = []
    asked: list[Path] = []
    known: set[int] = set()
    for number, count in enumerate(counts):
        file = output_dir / f"to_label-{number}.jsonl"
        if not file.is_file():
            left = [place for place in range(len(rows)) if place not in known]
            answers = _predict(results[-1], rows, left) if results else _unseen(rows, left, text)
            chosen = pick(answers, strategy if results else "random", count, seed + number)
            told = sum("error" in answer for answer in answers.values())
            unread = f"; {told} rows of the pool could not be read" if told else ""
            print(f"round {number}: {len(chosen)} of {len(left)} rows to label{unread}", flush=True)
            if not chosen:
                break
            write_rows(file, [{ROW: place, **rows[place], column: answered[place]} for place in chosen])
        given = read_rows(file)
        known |= {_place(row, rows, file) for row in given}
        if any(row.get(column) in (None, "") for row in given):
            return file
        asked.append(file)
        overrides["data"] = {**overrides.get("data", {}), "train": [str(one) for one in asked]}
        results.append(train_round(recipe, output_dir / f"round-{number}", asked, **overrides))
    return results


def _unseen(rows: Sequence[Row], left: Sequence[int], text: str) -> dict[int, dict[str, Any]]:
    return {place: {} if rows[place].get(text) else {"error": "no text"} for place in left}


def _predict(result: Result, rows: Sequence[Row], left: Sequence[int]) -> dict[int, dict[str, Any]]:
    answers = predict(result.output_dir / "model", [rows[place] for place in left], batch_size=32)
    return dict(zip(left, answers, strict=True))


def read_answers(oracle: Path, rows: Sequence[Row], column: str) -> list[Any]:
    """Return the label of each row of the pool.

    Raises:
        ConfigError: The file has other rows than the pool, or a row without a label.
    """
    answered = read_rows(oracle)
    if len(answered) != len(rows):
        raise ConfigError(f"has {len(answered)} rows, and the pool {len(rows)}.", where=str(oracle))
    for number, (mine, row) in enumerate(zip(answered, rows, strict=True), 1):
        if mine.get(column) in (None, "") or any(mine.get(key) != row[key] for key in row.keys() - {column}):
            raise ConfigError(f"row {number} has no {column!r}, or is not row {number} of the pool.", where=str(oracle))
    return [row[column] for row in answered]


def _place(row: Row, rows: Sequence[Row], file: Path) -> int:
    """Return which row of the pool a labelled row is."""
    place = row.get(ROW)
    if not isinstance(place, int) or not 0 <= place < len(rows):
        raise ConfigError(
            f"has a row whose {ROW} is {place!r}; it says which of the pool's {len(rows)} rows it is.",
            where=str(file),
            fix="Leave this column as it was written.",
        )
    return place


def main() -> None:
    """Read the command line, go as far as there are labels, and say what is next."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--pool", type=Path, required=True, help="JSON lines with the task's columns")
    parser.add_argument(
        "--start", type=within(int, 2), default=50, help="rows drawn at random to begin with (default: 50)"
    )
    parser.add_argument("--ask", type=within(int, 1), default=50, help="rows that each round asks for (default: 50)")
    parser.add_argument("--rounds", type=within(int, 0), default=3, help="how often the model asks (default: 3)")
    parser.add_argument("--strategy", choices=STRATEGIES, default="margin", help="default: margin")
    parser.add_argument("--oracle", type=Path, help="the pool with its labels: answers at once")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/active_learning"))
    told = vars(parser.parse_args())
    command = " ".join(["python -m recipes.active_learning.run", *sys.argv[1:]])
    try:
        told["counts"] = [told.pop("start"), *[told.pop("ask")] * told.pop("rounds")]
        ended = learn(told.pop("recipe"), told.pop("pool"), told.pop("output_dir"), **told)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    if isinstance(ended, Path):
        print(f"to label: {ended}\nFill in the labels in it, then run the same command again: {command}")
        return
    for number, result in enumerate(ended):
        print(f"round {number}: {describe(result)}")


if __name__ == "__main__":
    main()
