"""Self-training: a model labels rows without labels, and the next one learns from the confident ones beside the given.

    python -m recipes.self_training.run RECIPE --unlabelled FILE.jsonl [--rounds 2] [--threshold 0.8] [--share 0.5]

Sources: Lee, Pseudo-Label, ICML 2013 workshop (a model's own predictions as targets); Zou et al., Domain adaptation for
semantic segmentation via class-balanced self-training, ECCV 2018 (a share of each class); Cascante-Bonilla et al.,
Curriculum Labeling, AAAI 2021 (each round begins at the pretrained weights again).
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any

from onecurve import Result, predict
from onecurve.config import load_recipe
from onecurve.errors import ConfigError, UserError
from recipes.rounds import check_one_label, describe, read_rows, train_round, within, write_rows

Answer = Mapping[str, Any]


def choose(answers: Sequence[Answer], threshold: float, share: float) -> dict[int, str]:
    """Choose pseudo-labels: of the rows that are given a label, the most confident, in each class apart.

    Args:
        answers: What the model predicts of each row; `error` of one that it cannot read.
        threshold: The lowest probability to take.
        share: How much of each predicted class to take, rounded up.

    Returns:
        Row number -> label. Rows of equal probability are taken in their order.
    """
    predicted: dict[str, list[int]] = {}
    for number, answer in enumerate(answers):
        if "error" not in answer:
            predicted.setdefault(answer["label"], []).append(number)
    chosen = {}
    for label, rows in predicted.items():
        rows.sort(key=lambda number: -answers[number]["probability"])
        best = rows[: ceil(share * len(rows))]
        chosen |= {number: label for number in best if answers[number]["probability"] >= threshold}
    return dict(sorted(chosen.items()))


def describe_choice(answers: Sequence[Answer], chosen: Mapping[int, str]) -> str:
    """Say how many rows of each class were predicted and chosen, and how many could not be read."""
    read = [answer for answer in answers if "error" not in answer]
    counts = []
    for label in read[0]["probabilities"] if read else ():
        number = sum(answer["label"] == label for answer in read)
        counts.append(f"{label} {sum(one == label for one in chosen.values())} of {number}")
    unread = f"; {len(answers) - len(read)} rows could not be read" if len(read) < len(answers) else ""
    return f"{len(chosen)} of {len(answers)} rows chosen: {', '.join(counts)}{unread}"


def self_train(
    recipe: Path,
    unlabelled: Path,
    output_dir: Path,
    *,
    rounds: int = 2,
    threshold: float = 0.8,
    share: float = 0.5,
    weights: tuple[float, float] = (1, 1),
    **overrides: Any,
) -> list[Result]:
    """Train on the recipe's rows alone, then in each round on them and on the last model's confident predictions.

    Args:
        recipe: A recipe of text_classification with one label a text.
        unlabelled: JSON lines with the columns of the training data; labels in them are not read.
        output_dir: The folder for the runs `round-0`, `round-1`, ... and for `pseudo-1.jsonl`, ...
        rounds: How often the model labels anew.
        threshold: As of `choose`.
        share: As of `choose`.
        weights: Of the given rows and of the pseudo-labelled ones in the mixture.
        **overrides: Of the recipe, as for `onecurve.train`.

    Returns:
        The result of each round; the first is that of the given rows alone.

    Raises:
        UserError: A mistake in the recipe or the data, or no row is confident enough.
    """
    read, data = load_recipe([os.fspath(recipe)])[0], overrides.get("data", {})
    gold, rows = data.get("train", read.data.train), read_rows(unlabelled)
    check_one_label(read, rows, unlabelled)
    if isinstance(gold, dict):
        raise ConfigError("has named sources; this script adds its own.", where="data.train", fix="Name files.")
    shares = [name for name in ("eval", "test") if str(data.get(name, getattr(read.data, name))).endswith("%")]
    if shares:
        raise ConfigError(
            "is a share of the training rows: from round 1 on it would hold pseudo-labels.",
            where=f"data.{shares[0]}",
            fix="Name a file.",
        )
    files = [Path(name) for name in ([gold] if isinstance(gold, str | Path) else gold)]
    results = [train_round(recipe, output_dir / "round-0", files, **overrides)]
    for number in range(1, rounds + 1):
        answers = predict(results[-1].output_dir / "model", rows, batch_size=32)
        chosen = choose(answers, threshold, share)
        print(f"round {number}: {describe_choice(answers, chosen)}", flush=True)
        if not chosen:
            top = max((answer["probability"] for answer in answers if "error" not in answer), default=0)
            raise ConfigError(
                f"no row reaches {threshold:g}; the highest probability is {top:.3f}.",
                where="--threshold",
                fix="Lower it, or train longer on the labelled rows.",
            )
        column = read.data.columns.get("label", "label")
        pseudo = output_dir / f"pseudo-{number}.jsonl"
        write_rows(pseudo, [{**rows[place], column: label} for place, label in chosen.items()])
        mixture = {
            "gold": {"path": gold, "weight": weights[0]},
            "pseudo": {"path": str(pseudo), "weight": weights[1], "format": "jsonl"},
        }
        overrides["data"] = {**data, "train": mixture}
        results.append(train_round(recipe, output_dir / f"round-{number}", [*files, pseudo], **overrides))
    return results


def main() -> None:
    """Read the command line, train, and print the scores of each round."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--unlabelled", type=Path, required=True, help="JSON lines with the training data's columns")
    parser.add_argument("--rounds", type=within(int, 1), default=2, help="how often the model labels anew (default: 2)")
    parser.add_argument(
        "--threshold", type=within(float, 0, 1), default=0.8, help="lowest probability to take (default: 0.8)"
    )
    parser.add_argument(
        "--share", type=within(float, 1e-9, 1), default=0.5, help="share of each predicted class to take (default: 0.5)"
    )
    parser.add_argument("--weights", type=within(float, 1e-9), nargs=2, default=(1, 1), metavar=("GOLD", "PSEUDO"))
    parser.add_argument("--output_dir", type=Path, default=Path("runs/self_training"))
    told = vars(parser.parse_args())
    try:
        results = self_train(told.pop("recipe"), told.pop("unlabelled"), told.pop("output_dir"), **told)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    for number, result in enumerate(results):
        print(f"round {number}: {describe(result)}")


if __name__ == "__main__":
    main()
