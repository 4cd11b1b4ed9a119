"""Active learning on SST-2: 200 labels asked for in four rounds, against 200 drawn at random; several seeds.

    python -m recipes.active_learning.measure --data sst2 --seeds 3

Appends a line for each seed to `results.jsonl` and prints a table: mean and standard deviation over the seeds. Lines of
another model, other data or another recipe are refused: they need an --output_dir of their own.
"""

import random
from pathlib import Path
from statistics import mean

from onecurve import train
from recipes.active_learning.run import ROW, learn
from recipes.over_seeds import accuracy, draw, measure_over_seeds
from recipes.rounds import read_rows, write_rows

POOL, COUNTS = 600, [50, 50, 50, 50]
STRATEGY = "margin"  # with two labels, margin, entropy and least_confident ask for the same rows
RECIPE = Path(__file__).parent / "sst2.yaml"


def measure(data: Path, model: str, folder: Path, seed: int) -> dict[str, float]:
    """Go through all rounds with one draw of the pool; return each model's accuracy."""
    rows = draw(data / "train.jsonl", POOL, seed)
    folder.mkdir(parents=True, exist_ok=True)
    pool, drawn = (folder / f"{name}.jsonl" for name in ("pool", "drawn"))
    write_rows(pool, rows)
    given = {"model": {"path": model}, "checkpoint": {"every": None}, "seed": seed}
    rounds = folder / STRATEGY
    results = learn(RECIPE, pool, rounds, counts=COUNTS, strategy=STRATEGY, oracle=pool, **given)
    asked = [row for number in range(len(COUNTS)) for row in read_rows(rounds / f"to_label-{number}.jsonl")]
    begun = asked[: COUNTS[0]]  # drawn at random in both
    known = {row[ROW] for row in begun}
    others = [row for number, row in enumerate(rows) if number not in known]
    write_rows(drawn, [*begun, *random.Random(seed).sample(others, len(asked) - len(begun))])
    random_rows = train(RECIPE, output_dir=folder / "drawn", data={"train": drawn}, **given)
    found = {f"{sum(COUNTS)} labels of rows drawn at random": accuracy(random_rows.output_dir, data)}
    for number, result in enumerate(results):
        how = f"asked for by {STRATEGY}" if number else "drawn at random, where the asking begins"
        found[f"{sum(COUNTS[: number + 1])} labels, {how}"] = accuracy(result.output_dir, data)
    return found | {f"share of positive among the {len(asked)} asked": mean(r["label"] == "positive" for r in asked)}


if __name__ == "__main__":
    measure_over_seeds(measure, RECIPE, __doc__.split("\n")[0], "runs/active_learning_sst2")
