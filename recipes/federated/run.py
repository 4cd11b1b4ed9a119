"""Federated fine-tuning: each site trains an adapter on its own rows, and only adapters travel, round by round.

    python -m recipes.federated.run RECIPE --sites site-a.jsonl site-b.jsonl ... [--rounds 3]

In a round every site goes on from the average adapter of the round before, with its own optimizer, and the adapters
are averaged by the sites' numbers of examples. LoRA's A is frozen as it was drawn (`regularization.freeze`): all sites
draw the same from the seed, so the mean of B is the mean of the products B A. The head is trained and averaged.

Sources: McMahan et al., Communication-efficient learning of deep networks, AISTATS 2017, algorithm 1;
Sun et al., Improving LoRA in privacy-preserving federated learning, ICLR 2024 (FFA-LoRA: A frozen, B trained).
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from onecurve.config import load_recipe
from onecurve.errors import ConfigError, UserError
from recipes.rounds import digest, keep_apart, train_round, within

ADAPTER = "adapter_model.safetensors"
A_OF_LORA = "*lora_A*"


def average(runs: Sequence[Path], target: Path) -> None:
    """Average the sites' adapters as `onecurve checkpoint average` does, by their numbers of examples.

    Raises:
        UserError: The adapters cannot be averaged; the command has said why.
    """
    words = ["checkpoint", "average", *map(str, runs), "--output", str(target), "--weights", "examples"]
    print("$ onecurve", *words, flush=True)
    if subprocess.run([sys.executable, "-m", "onecurve", *words], check=False).returncode:
        raise UserError(f"the adapters of {', '.join(map(str, runs))} were not averaged.")


def federate(
    recipe: Path,
    sites: Sequence[Path],
    output_dir: Path,
    *,
    rounds: int = 3,
    averaged: Callable[[Sequence[Path], Path], None] = average,
    **overrides: Any,
) -> Path:
    """Train in rounds.

    Args:
        recipe: A recipe with `peft.method: lora`, task.labels, and A frozen; its data.train is replaced.
        sites: The training data of each site; no row is read by another site's runs.
        output_dir: The folder for the runs `round-1/site-1`, ... and the averages `round-1/average`, ...
        rounds: How often adapters are averaged.
        averaged: Writes the average of runs into a folder.
        **overrides: Of the recipe, as for `onecurve.train`.

    Returns:
        The last average.

    Raises:
        UserError: A mistake in the recipe or the data.
    """
    seed = check(recipe, overrides, exact=averaged is average)
    if len(sites) < 2:
        raise ConfigError("is one site; an average is of two or more.", where="--sites")
    start: dict[str, Any] = {}
    begun: list[Path] = []
    for number in range(1, rounds + 1):
        folder, runs = output_dir / f"round-{number}", []
        for place, site in enumerate(sites, 1):
            given = overrides | {"data": {**overrides.get("data", {}), "train": str(site)}, "seed": seed + number - 1}
            given["model"] = {**overrides.get("model", {}), **start}
            files = [site, *begun]
            runs.append(train_round(recipe, folder / f"site-{place}", files, **given).output_dir)
        target = folder / "average"
        keep_apart(target, {str(run): digest(run / "model" / ADAPTER) for run in runs})
        if not target.is_dir():  # of an earlier launch
            averaged(runs, target)
        start, begun = {"path": str(target), "revision": None}, [target / ADAPTER]
    return target


def check(recipe: Path, overrides: dict[str, Any], exact: bool) -> int:
    """Read the recipe and return its seed.

    Raises:
        ConfigError: Without LoRA or labels; or A is trained, where the average of adapters is to be `exact`.
    """
    read = load_recipe([os.fspath(recipe)])[0]
    if read.peft is None or read.peft.method != "lora":
        raise ConfigError("is not lora; only a LoRA adapter travels here.", where="peft.method")
    if not read.task.extras.get("labels"):
        raise ConfigError(
            "is not set, and a site may lack a label: its model would be another.",
            where="task.labels",
            fix="List them all.",
        )
    freeze = overrides.get("regularization", {}).get("freeze", read.regularization.freeze)
    if exact and A_OF_LORA not in freeze:
        raise ConfigError(
            f"does not have {A_OF_LORA!r}: with A of their own, adapters are averaged side by side, and the rank would "
            "grow in every round.",
            where="regularization.freeze",
            fix="Add it.",
        )
    return int(overrides.get("seed", read.seed))


def main() -> None:
    """Read the command line, train, and say where the result is."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--sites", nargs="+", type=Path, required=True, help="the training data of each site")
    parser.add_argument("--rounds", type=within(int, 1), default=3, help="how often adapters are averaged (default: 3)")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/federated"))
    told = vars(parser.parse_args())
    try:
        found = federate(told.pop("recipe"), told.pop("sites"), told.pop("output_dir"), **told)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    print(f"averaged adapter: {found}")


if __name__ == "__main__":
    main()
