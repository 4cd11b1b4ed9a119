"""Go on from the current model with the corrections, and replace it only by a better one.

Further words, such as --train.max_steps 20, go to the run of update.yaml. Exit codes: 0 the new model is current now;
1 the old one stays; 2 a mistake in what was given; else what `onecurve train` ended with.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from corrections import Mistake, check, check_text, halves, labels_of, rows_of
from scoring import Right, score

HERE = Path(__file__).parent
STAYS = 1


def reasons_to_stay(old: Mapping[str, Right], new: Mapping[str, Right], tolerance: int = 0) -> list[str]:
    """Return what speaks against replacing the old model by the new one; nothing where the new one is better.

    The new one must have as many right labels as the old one on the old test set, in each head, and more right labels
    on the held-out corrections, of all heads together.

    Args:
        old: What the old model gets right: on `test`, and on `corrections`.
        new: What the new one does.
        tolerance: Labels of a head that may be lost on the test set all the same.
    """
    found = [
        f"on the test set {head} falls from {before} to {new['test'].right[head]} of {old['test'].of[head]}"
        for head, before in old["test"].right.items()
        if new["test"].right[head] < before - tolerance
    ]
    if new["corrections"].sum <= old["corrections"].sum:
        told = f"{old['corrections'].sum} to {new['corrections'].sum} of {sum(old['corrections'].of.values())}"
        found.append(f"right labels on the held-out corrections go from {told}, which is no gain")
    return found


def point(link: Path, target: Path) -> None:
    """Have a link name another folder beside or below it, in one step: there is no moment without it."""
    beside = link.with_name(f"{link.name}.new")
    beside.unlink(missing_ok=True)
    beside.symlink_to(os.path.relpath(target, link.parent))
    beside.replace(link)


def next_folder(models: Path) -> Path:
    """Return a folder with the next free number."""
    numbers = [int(path.name) for path in models.iterdir() if path.name.isdigit()]
    return models / f"{max(numbers, default=-1) + 1:03}"


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a JSON object a line."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def checked(path: Path, check_row: Callable[[Mapping[str, Any]], None]) -> list[dict[str, Any]]:
    """Read a file of rows and check each, before anything is trained.

    Raises:
        Mistake: A row that cannot be used; says which line.
    """
    rows = rows_of(path)
    for number, row in enumerate(rows, 1):
        try:
            check_row(row)
        except Mistake as mistake:
            raise Mistake(f"{path}, line {number}: {mistake}") from None
    return rows


def update(given: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Train, compare, and replace or not; return the exit code."""
    run: Path = given.run
    link = run / "current"
    old, file, labels = link.resolve(), run / "corrections.jsonl", labels_of(link)
    rows = checked(file, lambda row: check(row, labels))
    test = checked(given.test, check_text)
    learnt, held_out = halves(rows)
    print(f"{len(learnt)} corrections to learn, {len(held_out)} held out", flush=True)
    if not learnt or len(held_out) < given.min_held_out:
        print(f"the old model stays: at least 1 to learn and {given.min_held_out} held out are needed")
        return STAYS
    write(run / "corrections-train.jsonl", learnt)
    new = next_folder(run / "models")
    words = ["--model.path", str(old / "model"), "--output_dir", str(new)]
    words += ["--data.train.corrections.path", str(run / "corrections-train.jsonl")]
    command = [sys.executable, "-m", "onecurve", "train", str(given.recipe), *words, *overrides]
    if code := subprocess.run(command).returncode:
        return code
    sets = {"test": test, "corrections": held_out}
    scores = [{name: score(model / "model", rows) for name, rows in sets.items()} for model in (old, new)]
    for name in sets:
        print(f"{name:<12} old: {scores[0][name]}; new: {scores[1][name]}")
    against = reasons_to_stay(*scores, given.tolerance)
    verdict = {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "old": old.name,
        "new": new.name,
        "replaced": not against,
        "reasons_to_stay": against,
        "scores": [{name: dict(vars(one)) for name, one in of_model.items()} for of_model in scores],
    }
    if not against:
        point(link, new)
    with open(run / "updates.jsonl", "a", encoding="utf-8") as record:
        record.write(json.dumps(verdict) + "\n")
    print(f"{old.name} stays: {'; '.join(against)}" if against else f"{new.name} replaces {old.name}, which is kept")
    return STAYS if against else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--run", type=Path, default=Path("runs/news_monitor"), help="the monitor's folder")
    parser.add_argument("--recipe", type=Path, default=HERE / "update.yaml")
    parser.add_argument("--test", type=Path, default=HERE / "data" / "test.jsonl", help="the old test set")
    parser.add_argument("--min_held_out", type=int, default=5, help="held-out corrections that a comparison needs")
    parser.add_argument("--tolerance", type=int, default=0, help="labels a head may lose on the test set")
    try:
        sys.exit(update(*parser.parse_known_args()))
    except Mistake as mistake:
        print(f"update.py: {mistake}", file=sys.stderr)
        sys.exit(2)
