"""What the recipes that train in rounds share: rows read with a place for each mistake, and runs kept apart."""

import json
import sys

import pytest

from onecurve.errors import ConfigError
from recipes.over_seeds import measure_over_seeds, table
from recipes.rounds import digest, keep_apart, read_rows, write_rows


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1}\n{"a": \n', "line 2: is no JSON"),
        ('\n["a"]\n', "line 2: is no JSON object: "),
        (None, ": cannot be read: "),
    ],
    ids=["broken", "list", "absent"],
)
def test_a_file_that_is_no_json_lines_is_refused_with_the_place(tmp_path, text, said):
    file = tmp_path / "rows.jsonl"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError) as refused:
        read_rows(file)
    assert str(file) in str(refused.value) and said in str(refused.value)


def test_a_line_separator_in_a_text_ends_no_row(tmp_path):
    rows = [{"text": "one\u2028two\x85three", "label": "a"}, {"text": "four"}]
    write_rows(tmp_path / "rows.jsonl", rows)
    assert read_rows(tmp_path / "rows.jsonl") == rows


def test_what_was_made_of_other_files_is_not_taken_for_this(tmp_path):
    made, rows = tmp_path / "round-1", tmp_path / "rows.jsonl"
    rows.write_text("{}\n")
    keep_apart(made, {"rows": digest(rows), "weights": (1, 2)})
    rows.write_text('{"text": "other"}\n')
    keep_apart(made, {"rows": digest(rows), "weights": (1, 2)})  # nothing was made yet
    made.mkdir()
    keep_apart(made, {"rows": digest(rows), "weights": (1, 2)})
    with pytest.raises(ConfigError, match=r"round-1: was made with another rows, weights\."):
        keep_apart(made, {"rows": "", "weights": (1, 3)})
    keep_apart(made, {"rows": digest(rows), "weights": (1, 2)})  # what was noted stays


def test_a_table_has_mean_and_spread():
    told = table([{"a": 0.5, "b": 201}, {"a": 0.7, "b": 200}, {"a": 0.9, "b": 202}])
    assert "| a | 0.700 | 0.200 | 0.500, 0.700, 0.900 |" in told
    assert "| b | 201.0 | 1.0 | 201.0, 200.0, 202.0 |" in told
    assert "| a | 0.500 | - | 0.500 |" in table([{"a": 0.5}])


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Call a measure.py's command, whose measurements are only counted."""
    recipe, seeds = tmp_path / "sst2.yaml", []
    for file in (recipe, tmp_path / "train.jsonl", tmp_path / "dev.jsonl"):
        file.write_text(file.name)

    def measure(data, model, folder, seed):
        seeds.append(seed)
        return {"accuracy": 0.5 + seed / 10}

    def call(*words):
        given = ["--data", str(tmp_path), "--output_dir", str(tmp_path / "out"), *words]
        monkeypatch.setattr(sys, "argv", ["measure.py", *given])
        measure_over_seeds(measure, recipe, "", "unused")
        return seeds

    return call


def test_a_seed_is_measured_once_and_its_line_says_with_what(measured, tmp_path, capsys):
    assert measured("--seeds", "1", "--model", "a") == [0]
    assert measured("--seeds", "2", "--model", "a") == [0, 1]
    lines = [json.loads(line) for line in (tmp_path / "out/results.jsonl").read_text().splitlines()]
    assert [(line["seed"], line["model"], line["data"]) for line in lines] == [(n, "a", str(tmp_path)) for n in (0, 1)]
    assert lines[0]["recipe"] == digest(tmp_path / "sst2.yaml")
    assert "| accuracy | 0.550 | 0.071 | 0.500, 0.600 |" in capsys.readouterr().out


@pytest.mark.parametrize("changed", ["model", "recipe", "train.jsonl", "dev.jsonl"])
def test_what_was_measured_with_something_else_is_not_taken_for_this(measured, tmp_path, capsys, changed):
    measured("--seeds", "1", "--model", "a")
    if changed != "model":
        (tmp_path / {"recipe": "sst2.yaml"}.get(changed, changed)).write_text("other")
    with pytest.raises(SystemExit) as ended:
        measured("--seeds", "1", "--model", "b" if changed == "model" else "a")
    assert ended.value.code == 2
    assert f"seed 0 was measured with another {changed}, or does not say with which" in capsys.readouterr().err
