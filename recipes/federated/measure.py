"""Federated LoRA on SST-2: four sites with unequal labels, against one run on all rows and each site alone.

    python -m recipes.federated.measure --data sst2 --seeds 3

Appends a line for each seed to `results.jsonl` and prints a table: mean and standard deviation over the seeds. Lines of
another model, other data or another recipe are refused: they need an --output_dir of their own.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from safetensors.torch import load_file, save_file

from onecurve import train
from recipes.federated.run import ADAPTER, federate
from recipes.federated.split import write_sites
from recipes.over_seeds import accuracy, draw, measure_over_seeds
from recipes.rounds import read_rows, write_rows

ROWS, SITES, ALPHA, ROUNDS, STEPS = 400, 4, 1.0, 2, 12
RECIPE = Path(__file__).parent / "sst2.yaml"


def average_factors(runs: Sequence[Path], target: Path) -> None:
    """Average A and B each for themselves (plain FedAvg), which is not the mean of the models; by numbers of rows."""
    shutil.copytree(runs[0] / "model", target, symlinks=True)
    sizes = [len(read_rows(run.parents[2] / "sites" / f"{run.name}.jsonl")) for run in runs]
    tensors = [load_file(run / "model" / ADAPTER) for run in runs]
    save_file(
        {
            name: sum(size * one[name] for size, one in zip(sizes, tensors, strict=True)) / sum(sizes)
            for name in tensors[0]
        },
        target / ADAPTER,
        metadata={"format": "pt"},
    )


def measure(data: Path, model: str, folder: Path, seed: int) -> dict[str, float]:
    """Split one draw of rows over sites and train in each way; return accuracy."""
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "all.jsonl", draw(data / "train.jsonl", ROWS, seed))
    sites = write_sites(folder / "all.jsonl", folder / "sites", SITES, ALPHA, seed)
    given = {"model": {"path": model}, "seed": seed}

    def alone(name: str, rows: Path) -> float:
        steps = {"max_steps": STEPS * ROUNDS}
        run = train(RECIPE, output_dir=folder / name, data={"train": rows}, train=steps, **given)
        return accuracy(run.output_dir, data)

    found = {"one run on all rows": alone("all", folder / "all.jsonl")}
    shared = federate(RECIPE, sites, folder / "shared", rounds=ROUNDS, **given)
    trained_a = {"regularization": {"freeze": []}, **given}
    factors = federate(RECIPE, sites, folder / "factors", rounds=ROUNDS, averaged=average_factors, **trained_a)
    found["federated, A frozen and shared"] = accuracy(shared, data)
    found["federated, A and B averaged (plain FedAvg)"] = accuracy(factors, data)
    each = [alone(site.stem, site) for site in sites]
    return found | {"a site alone, mean of the four": mean(each), "the best site alone": max(each)}


if __name__ == "__main__":
    measure_over_seeds(measure, RECIPE, __doc__.split("\n")[0], "runs/federated_sst2")
