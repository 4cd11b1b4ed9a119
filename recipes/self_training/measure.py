"""Self-training on SST-2: 200 labels alone, 200 labels and 400 rows without, and 600 labels; several seeds.

    python -m recipes.self_training.measure --data sst2 --seeds 3

Appends a line for each seed to `results.jsonl` and prints a table: mean and standard deviation over the seeds. Lines of
another model, other data or another recipe are refused: they need an --output_dir of their own.
"""

from pathlib import Path
from statistics import mean

from onecurve import train
from recipes.over_seeds import accuracy, draw, measure_over_seeds, texts
from recipes.rounds import read_rows, write_rows
from recipes.self_training.run import self_train

LABELLED, UNLABELLED = 200, 400
RECIPE = Path(__file__).parent / "sst2.yaml"


def measure(data: Path, model: str, folder: Path, seed: int) -> dict[str, float]:
    """Train with one draw of the rows; return each model's accuracy."""
    rows = draw(data / "train.jsonl", LABELLED + UNLABELLED, seed)
    folder.mkdir(parents=True, exist_ok=True)
    labelled, unlabelled, everything = (folder / f"{name}.jsonl" for name in ("labelled", "unlabelled", "all"))
    write_rows(labelled, rows[:LABELLED])
    write_rows(unlabelled, texts(rows[LABELLED:]))
    write_rows(everything, rows)
    given = {"model": {"path": model}, "checkpoint": {"every": None}, "seed": seed}
    rounds = self_train(RECIPE, unlabelled, folder, data={"train": labelled}, **given)
    whole = train(RECIPE, output_dir=folder / "all", data={"train": everything}, **given)
    found = {f"{LABELLED} labels alone": accuracy(rounds[0].output_dir, data)}
    truth = {row["text"]: row["label"] for row in rows}
    for number, result in enumerate(rounds[1:], 1):
        pseudo = read_rows(folder / f"pseudo-{number}.jsonl")
        found[f"with pseudo-labels, round {number}"] = accuracy(result.output_dir, data)
        found[f"pseudo-labels of round {number}: how many"] = len(pseudo)
        found[f"pseudo-labels of round {number}: how many are right"] = mean(
            row["label"] == truth[row["text"]] for row in pseudo
        )
    return found | {f"{LABELLED + UNLABELLED} labels": accuracy(whole.output_dir, data)}


if __name__ == "__main__":
    measure_over_seeds(measure, RECIPE, __doc__.split("\n")[0], "runs/self_training_sst2")
