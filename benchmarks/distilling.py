"""What distillation gives a student of half the layers, on SST-2: a Markdown table over seeds.

    python benchmarks/distilling.py FOLDER [--model models/all-MiniLM-L6-v2] [--work runs/distilling] [--seeds 3]

FOLDER holds train.jsonl and dev.jsonl (text, label). One teacher, the whole model, learns from 2,000 sentences. The
student, every second layer of the same model, learns from the same sentences in the same order, alone and from the
teacher. Scored on all of dev.jsonl, which no run learns or chooses from. A run that ends is not repeated.
"""

import argparse
import json
import random
import sys
from contextlib import redirect_stdout
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from onecurve import train

SENTENCES = 2000
_RECIPE: dict[str, Any] = {
    "optim": {"lr": 1e-4, "warmup_steps": 19, "weight_decay": 0.01},
    "train": {"epochs": 3, "global_batch_size": 32, "micro_batch_size": 16, "group_by_length": True},
    "checkpoint": {"every": None},
}
_CLASSIFIES = {"name": "text_classification", "labels": ["negative", "positive"]}


def main(argv: list[str]) -> int:
    """Train what is not trained yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="models/all-MiniLM-L6-v2")
    parser.add_argument("--work", type=Path, default=Path("runs/distilling"))
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args(argv)
    asked.work.mkdir(parents=True, exist_ok=True)
    rows = asked.work / "train.jsonl"
    lines = (asked.folder / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    rows.write_text("".join(random.Random(0).sample(lines, SENTENCES)), encoding="utf-8")
    data = {"train": str(rows), "test": str(asked.folder / "dev.jsonl")}
    teacher = _accuracy(asked.work / "teacher", _CLASSIFIES, asked.model, data, 0)
    _halve(asked.model, asked.work / "student")
    distils = {
        **_CLASSIFIES,
        "name": "distillation",
        "student_task": "text_classification",
        "teacher": str(asked.work / "teacher/model"),
        "temperature": 2.0,
        "weight": 0.5,
    }
    found: dict[str, list[float]] = {"student alone": [], "student, distilled": []}
    for seed in range(asked.seeds):
        for name, task in zip(found, (_CLASSIFIES, distils), strict=True):
            folder = asked.work / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
            found[name].append(_accuracy(folder, task, str(asked.work / "student"), data, seed))
    gains = [other - one for one, other in zip(*found.values(), strict=True)]
    print(f"teacher: {teacher:.3f}\n\n| | mean | standard deviation | each seed |\n|---|--:|--:|---|")
    for name, values in {**found, "gain": gains}.items():
        each = ", ".join(f"{value:.3f}" for value in values)
        print(f"| {name} | {mean(values):.3f} | {stdev(values) if len(values) > 1 else 0:.3f} | {each} |")
    return 0


def _accuracy(folder: Path, task: dict[str, Any], model: str, data: dict[str, str], seed: int) -> float:
    """Train unless it is done; return the accuracy on the test split."""
    done = folder / "accuracy.json"
    if not done.is_file():
        recipe = {**_RECIPE, "task": task, "model": {"path": model}, "data": data, "seed": seed}
        with open(folder.parent / "log.txt", "a", encoding="utf-8") as log, redirect_stdout(log):
            result = train(recipe, output_dir=folder, train={**_RECIPE["train"], "resume": "never"})
        done.write_text(json.dumps(result.scores["test/accuracy"]))
    return float(json.loads(done.read_text()))


def _halve(model: str, folder: Path) -> None:
    """Write a model with every second layer of another."""
    from transformers import AutoModel, AutoTokenizer

    whole = AutoModel.from_pretrained(model)
    whole.encoder.layer = whole.encoder.layer[::2]
    whole.config.num_hidden_layers = len(whole.encoder.layer)
    whole.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
