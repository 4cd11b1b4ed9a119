"""Splits a file over sites with unequal shares of the labels, to try federated training on data that lie in one place.

    python -m recipes.federated.split FILE.jsonl --num_sites 4 --alpha 0.5 --output_dir runs/federated/sites

Each label's rows are shared out by proportions that are drawn from a Dirichlet distribution: the smaller alpha, the
more unequal the sites. Source: Hsu et al., Measuring the effects of non-identical data distribution, 2019.
"""

import argparse
import random
import sys
from collections import Counter
from itertools import accumulate
from pathlib import Path

from onecurve.errors import ConfigError, UserError
from recipes.rounds import read_rows, within, write_rows


def split(labels: list[str], num_sites: int, alpha: float, seed: int) -> list[list[int]]:
    """Share rows out.

    Args:
        labels: Of each row.
        num_sites: Number of sites.
        alpha: Of the Dirichlet distribution, above 0.
        seed: Of what is drawn.

    Returns:
        The row numbers of each site, in order; a site may have none.
    """
    draw = random.Random(seed)
    sites: list[list[int]] = [[] for _ in range(num_sites)]
    for label in sorted(set(labels)):
        rows = [number for number, one in enumerate(labels) if one == label]
        draw.shuffle(rows)
        parts = [draw.gammavariate(alpha, 1) for _ in sites]  # a Dirichlet draw, once divided by its sum
        ends = [round(len(rows) * part / sum(parts)) for part in accumulate(parts)]
        for site, start, end in zip(sites, [0, *ends], ends, strict=False):
            site += rows[start:end]
    return [sorted(site) for site in sites]


def write_sites(file: Path, folder: Path, num_sites: int, alpha: float, seed: int, column: str = "label") -> list[Path]:
    """Write `site-1.jsonl`, ... and print the labels of each.

    Raises:
        ConfigError: Rows without a label, or a site would have none.
    """
    rows = read_rows(file)
    if lacking := [number for number, row in enumerate(rows, 1) if row.get(column) in (None, "")]:
        raise ConfigError(f"row {lacking[0]} has no {column!r}.", where=str(file), fix="Name the label with --column.")
    labels = [str(row[column]) for row in rows]
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, site in enumerate(split(labels, num_sites, alpha, seed), 1):
        if not site:
            raise ConfigError(
                f"site {number} of {num_sites} would have no rows.", fix="Take another --seed or a larger --alpha."
            )
        path = folder / f"site-{number}.jsonl"
        write_rows(path, [rows[place] for place in site])
        counts = Counter(labels[place] for place in site)
        print(f"{path}: {len(site)} rows: {', '.join(f'{label} {counts[label]}' for label in sorted(set(labels)))}")
        paths.append(path)
    return paths


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path, help="JSON lines with labels")
    parser.add_argument("--num_sites", type=within(int, 2), default=4, help="default: 4")
    parser.add_argument("--alpha", type=within(float, 1e-3), default=0.5, help="default: 0.5")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--column", default="label", help="the column of the label (default: label)")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/federated/sites"))
    told = parser.parse_args()
    try:
        write_sites(told.file, told.output_dir, told.num_sites, told.alpha, told.seed, told.column)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
