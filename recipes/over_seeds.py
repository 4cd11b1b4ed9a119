"""What the measure.py of recipes share: several seeds, results kept in a file, and their table."""

import argparse
import json
import random
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from statistics import mean, stdev

from onecurve import predict
from recipes.rounds import Row, digest, read_rows

WORDS, SCORED = 20, 300
Measure = Callable[[Path, str, Path, int], dict[str, float]]
"""Takes the data's folder, the model, a folder of its own and the seed; returns numbers by name."""


def measure_over_seeds(measure: Measure, recipe: Path, description: str, output_dir: str) -> None:
    """Read the command line, measure with each seed, and print mean and standard deviation of each number.

    A line for each seed is appended to `results.jsonl`, with what it was measured with: model, data and recipe. A seed
    that is there is not measured again; where it was measured with others, the command ends with exit code 2. What the
    trainings print goes to `log.txt`.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, required=True, help="a folder with SST-2's train.jsonl and dev.jsonl")
    parser.add_argument("--model", default="models/all-MiniLM-L6-v2", help="a folder or a hub name")
    parser.add_argument("--seeds", type=int, default=3, help="0, 1, ... (default: 3)")
    parser.add_argument("--output_dir", type=Path, default=Path(output_dir))
    told = parser.parse_args()
    told.output_dir.mkdir(parents=True, exist_ok=True)
    results = told.output_dir / "results.jsonl"
    files = {"recipe": recipe, "train.jsonl": told.data / "train.jsonl", "dev.jsonl": told.data / "dev.jsonl"}
    of = {"model": told.model, **{name: digest(file) for name, file in files.items()}}
    lines = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()] if results.is_file() else []
    for line in lines:
        if differing := [name for name, value in of.items() if line.get(name) != value]:
            parser.error(
                f"{results}: seed {line['seed']} was measured with another {', '.join(differing)}, or does not say "
                "with which; choose another --output_dir."
            )
    done = {line["seed"]: line["found"] for line in lines}
    for seed in range(told.seeds):
        if seed not in done:
            with open(told.output_dir / "log.txt", "a", encoding="utf-8") as log, redirect_stdout(log):
                done[seed] = measure(told.data, told.model, told.output_dir / str(seed), seed)
            with open(results, "a", encoding="utf-8") as file:
                print(json.dumps({"seed": seed, **of, "data": str(told.data), "found": done[seed]}), file=file)
    print(table([done[seed] for seed in range(told.seeds)]))


def draw(file: Path, count: int, seed: int) -> list[Row]:
    """Draw sentences of at most `WORDS` words."""
    return random.Random(seed).sample([row for row in read_rows(file) if len(row["text"].split()) <= WORDS], count)


def accuracy(trained: Path, data: Path) -> float:
    """Return the share of right answers for `SCORED` sentences of dev.jsonl, the same for every seed."""
    scored = draw(data / "dev.jsonl", SCORED, 0)
    answers = predict(trained / "model" if (trained / "model").is_dir() else trained, texts(scored), batch_size=32)
    return mean(answer["label"] == row["label"] for answer, row in zip(answers, scored, strict=True))


def texts(rows: list[Row]) -> list[Row]:
    """Return the rows without their labels."""
    return [{"text": row["text"]} for row in rows]


def table(found: list[dict[str, float]]) -> str:
    """Return the numbers of all seeds as a table: mean, standard deviation of the sample, and each."""
    lines = ["| | mean | standard deviation | each seed |", "|---|--:|--:|---|"]
    for name in found[0]:
        values = [one[name] for one in found]
        digits = 3 if max(values) <= 1 else 1  # shares, or counts
        spread = f"{stdev(values):.{digits}f}" if len(values) > 1 else "-"
        each = ", ".join(f"{value:.{digits}f}" for value in values)
        lines.append(f"| {name} | {mean(values):.{digits}f} | {spread} | {each} |")
    return "\n".join(lines)
