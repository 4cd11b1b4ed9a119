"""`recipes/regularization.yaml` has every cure for text; each of its lines, uncommented, runs."""

import re

import pytest
import yaml

from onecurve.config import RegularizationSection
from onecurve.preflight import read
from tests.launching import ROOT

RECIPE = ROOT / "recipes/regularization.yaml"
LINES = re.findall(
    r"^  (?:# )?(\w+: .*?)(?: +#.*)?$", RECIPE.read_text("utf-8").split("regularization:\n")[1], re.MULTILINE
)
FOR_IMAGES = {"mixup_alpha", "cutmix_alpha"}
FINER = {"average_count", "average_decay", "average_every", "average_start", "synonym_share"}
"""What only another key's effect depends on."""


def overrides(line):
    key, value = line.split(": ", 1)
    pretrained = ["--model.init", "pretrained"] if key.startswith("freeze") else []
    scored = ["--eval.best_metric", "accuracy", "--eval.every", "4"] if value == "best" else []
    return [*pretrained, *scored, f"--regularization.{key}", value]


def test_the_recipe_has_every_cure_for_text():
    keys = {line.split(":")[0] for line in LINES}
    assert keys == RegularizationSection.model_fields.keys() - FOR_IMAGES - FINER
    assert len(LINES) == len(set(LINES)) == 19


@pytest.mark.parametrize("line", LINES)
def test_each_line_would_start(line):
    section = read([str(RECIPE), *overrides(line)]).recipe.regularization
    assert section.model_dump(exclude_defaults=True) == {"dropout": 0.1, **yaml.safe_load(line)}


@pytest.mark.slow
@pytest.mark.distributed
def test_each_line_runs_and_changes_the_curve(forks, tmp_path):
    few = ["--train.max_steps", "12", "--train.epochs", "null", "--checkpoint.every", "null", "--eval.every", "0"]
    plain = forks.train(RECIPE, tmp_path / "plain", "python", *few)
    frozen = forks.train(
        RECIPE,
        tmp_path / "frozen",
        "python",
        *few,
        "--model.init",
        "pretrained",
        "--model.path",
        str(plain.output_dir / "model"),
    )
    losses = [run.events("eval")[-1]["loss"] for run in (plain, frozen)]
    for number, line in enumerate(LINES[1:]):
        path = ["--model.path", str(plain.output_dir / "model")] if line.startswith("freeze") else []
        run = forks.train(RECIPE, tmp_path / str(number), "python", *few, *path, *overrides(line))
        losses.append((run.events("average") or run.events("eval"))[-1]["loss"])
    assert len(set(losses)) == len(losses), losses
