"""The table of measured effects: every run's recipe is valid, and what a table says of given results."""

import sys
from argparse import Namespace
from pathlib import Path

import pytest

from onecurve.config import Recipe

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks.regularization import CURES, SETS, differs, key, recipe, table


@pytest.fixture
def asked(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text('{"num_hidden_layers": 6}')
    for name in ("trec/train.jsonl", "wnut17/train.conll"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(
            '{"label": "LOC:city"}\n' if name.endswith("l") and "trec" in name else "Rome B-location\n"
        )
    return Namespace(data=tmp_path, model=tmp_path / "model", results=tmp_path / "results.jsonl")


@pytest.mark.parametrize("name", SETS)
def test_every_run_has_a_valid_recipe_of_its_own_and_changes_what_it_says(name, asked):
    made = {cure: recipe(name, cure, 0, asked) for cure in CURES}
    for cure, one in made.items():
        checked = Recipe(output_dir="runs/x", **one)
        changed = checked.regularization.model_dump(exclude_defaults=True)
        assert (changed == {}) == (cure == "plain"), cure
    assert len({key(one, asked) for one in made.values()}) == len(CURES)
    assert key(recipe(name, "plain", 1, asked), asked) != key(made["plain"], asked)
    asked.data = None
    Recipe(output_dir="runs/x", **recipe(name, "plain", 0, asked))


def test_an_effect_is_one_that_every_seed_agrees_on():
    assert differs([2.0, 2.2, 1.8]) and differs([-1.0, -1.1, -0.9])
    assert not differs([2.0, -1.0, 0.5]) and not differs([2.0]) and not differs([0.0, 0.0, 0.0])


def test_the_table_has_means_ranges_and_what_each_seed_gained():
    scores = {("plain", 0): 0.8, ("plain", 1): 0.7, ("r_drop", 0): 0.82, ("r_drop", 1): 0.72, ("fgm", 1): 0.6}
    lines = [{"set": "sst2", "cure": c, "seed": s, "scores": {"accuracy": v}} for (c, s), v in scores.items()]
    rows = {row.split(" | ")[0][2:]: row for row in table(lines, ["sst2", "trec"]).splitlines()}
    assert "75.0 (70.0 to 80.0)" in rows["plain"]
    assert "77.0 (72.0 to 82.0) | +2.0 (+2.0 to +2.0) * |" in rows["r_drop"]
    assert "60.0 (60.0 to 60.0, 1 seeds) | -10.0 (-10.0 to -10.0) |" in rows["fgm"]
    assert "not measured" in rows["focal"] and "as many of each label" in rows["class_weights"]
    assert "TREC" not in rows["cure"]
    assert table([], ["sst2"]).startswith("Nothing is measured")
