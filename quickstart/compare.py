"""Set a trained classifier's test scores beside those of the untrained model and of the commonest label."""

import json
import os
import sys
from collections import Counter
from math import nan
from pathlib import Path
from typing import Any

from onecurve.errors import UserError
from onecurve.machine.log_noise import hush_transformers
from onecurve.preflight import heavy_imports, read

HEADLINE = "Shares of Lindqvist Foods slide after it trims its full-year outlook"


def compare(run_dir: Path) -> str:
    """Return the table, where the model lies, and a command to try it with."""
    checked = read([str(run_dir / "config.yaml")])
    recipe, task = checked.recipe, checked.task
    with heavy_imports(checked):
        hush_transformers()
        from onecurve.adapters import virtual_tokens
        from onecurve.data import Loader, load_data
        from onecurve.evaluation import Evaluator
        from onecurve.machine.distributed import start
        from onecurve.model.loading import load_model
        from onecurve.model.reading import Reading
        from onecurve.optim import build_optimizer
        from onecurve.strategies.plain import Plain
    reading = Reading(recipe.model, recipe.data.max_length, task.auto_processor, virtual_tokens(recipe.peft))
    data = load_data(recipe.data, task, reading, recipe.seed)
    assert data.test is not None and data.survey.labels, "compare.py reads runs of one label a text with data.test"

    # The same seed draws the same weights: this is the model as it stood before the first step
    accelerator = start([], recipe.output_dir)
    model = load_model(recipe, task, reading.config, data.survey, "no")
    strategy = Plain(accelerator, "no", recipe.optim.max_grad_norm)
    strategy.prepare(model, build_optimizer(model, recipe.optim), 1)
    loader = Loader(data.test, task, reading, accelerator)
    untrained = Evaluator(strategy, recipe, data.survey)(loader)

    commonest = Counter(data.train[i]["labels"] for i in range(len(data.train))).most_common(1)[0][0]
    pairs = [(commonest, data.test[i]["labels"]) for i in range(len(data.test))]
    rows = {
        "trained": test_scores(run_dir),
        "untrained": untrained,
        f"always '{data.survey.labels[commonest]}'": task.metrics(pairs, nan, data.survey),
    }
    table = [f"{f'test split, {len(data.test)} texts':<26}{'accuracy':>10}{'macro-F1':>10}"]
    table += [f"{name:<26}{scores['accuracy']:>10.3f}{scores['macro_f1']:>10.3f}" for name, scores in rows.items()]
    model_dir = run_dir / "model"
    return "\n".join([*table, "", f"model   {model_dir}", f'try it  {command()} predict {model_dir} "{HEADLINE}"'])


def test_scores(run_dir: Path) -> dict[str, Any]:
    """Return the run's own test scores."""
    events = map(json.loads, (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    found = [event for event in events if event["event"] == "test"]
    return found[-1] if found else sys.exit(f"compare.py: {run_dir} has no test scores.")


def command() -> str:
    """Return how this shell calls `onecurve`: with the environment's path where it is not activated."""
    if os.environ.get("VIRTUAL_ENV") == sys.prefix:
        return "onecurve"
    return os.path.relpath(Path(sys.executable).with_name("onecurve"))


if __name__ == "__main__":
    try:
        print("\n" + compare(Path(sys.argv[1])))  # noqa: T201
    except UserError as error:
        sys.exit(f"compare.py: {error}")
