"""recipes/active_learning: which rows are asked for, what stops it, and the whole chain."""

import json
import subprocess
import sys
from math import log
from types import SimpleNamespace

import pytest

from onecurve.errors import ConfigError
from recipes.active_learning import measure
from recipes.active_learning.run import ROW, entropy, learn, least_confident, margin, pick
from recipes.rounds import read_rows, write_rows
from tests.launching import ROOT, environment

RECIPE = ROOT / "recipes" / "active_learning" / "recipe.yaml"
POOL = RECIPE.parent / "pool.jsonl"


def answer(*probabilities):
    return {"probabilities": dict(zip("abc", probabilities, strict=True))}


ANSWERS = {
    3: answer(0.49, 0.48, 0.03),  # two labels are nearly as likely
    5: answer(0.45, 0.28, 0.27),  # all three are likely, and the first one least of all
    7: answer(0.98, 0.01, 0.01),
    9: {"error": "no text"},
    11: answer(0.46, 0.46, 0.08),
    12: answer(0.98, 0.01, 0.01),
}


def test_each_strategy_asks_for_what_it_is_least_certain_of():
    assert pick(ANSWERS, "margin", 3, 0) == [11, 3, 5]
    assert pick(ANSWERS, "entropy", 3, 0) == [5, 11, 3]
    assert pick(ANSWERS, "least_confident", 3, 0) == [5, 11, 3]
    assert pick(ANSWERS, "margin", 9, 0) == [
        11,
        3,
        5,
        7,
        12,
    ]  # ties in their order; 9 cannot be read
    assert pick(ANSWERS, "random", 9, 0) != pick(ANSWERS, "random", 9, 1)
    assert sorted(pick(ANSWERS, "random", 9, 0)) == [3, 5, 7, 11, 12]


def test_uncertainty_by_hand():
    assert margin([0.2, 0.5, 0.3]) == pytest.approx(0.8)
    assert entropy([0.5, 0.5, 0.0]) == pytest.approx(log(2))
    assert least_confident([0.2, 0.5, 0.3]) == pytest.approx(0.5)


def test_it_stops_until_every_row_has_its_label(tmp_path):
    file = learn(RECIPE, POOL, tmp_path, counts=[5, 5])
    assert file == tmp_path / "to_label-0.jsonl"
    asked, pool = read_rows(file), read_rows(POOL)
    assert len(asked) == 5
    assert all(row == {"pool_row": row["pool_row"], **pool[row["pool_row"]], "mood": None} for row in asked)
    write_rows(file, [{**row, "mood": "neutral"} for row in asked[:-1]] + asked[-1:])
    before = file.read_bytes()
    assert learn(RECIPE, POOL, tmp_path, counts=[5, 5]) == file
    assert file.read_bytes() == before, "what a user filled in was written over"
    assert {path.name for path in tmp_path.iterdir()} == {file.name, f"{file.name}.json"}
    write_rows(other := tmp_path / "other.jsonl", pool[1:])
    with pytest.raises(ConfigError, match=r"to_label-0.jsonl: was made with another pool\."):
        learn(RECIPE, other, tmp_path, counts=[5, 5])


def test_rows_without_a_text_are_counted_and_not_asked_for(tmp_path, capsys):
    write_rows(tmp_path / "pool.jsonl", [{"body": "a"}, {"body": ""}, {"text": "b"}, {"body": "c"}])
    file = learn(RECIPE, tmp_path / "pool.jsonl", tmp_path, counts=[4])
    assert sorted(row["pool_row"] for row in read_rows(file)) == [0, 3]
    assert "round 0: 2 of 4 rows to label; 2 rows of the pool could not be read" in capsys.readouterr().out


def test_what_does_not_fit_is_said_before_anything_is_trained(tmp_path):
    def refused(*arguments, **options):
        with pytest.raises(ConfigError) as found:
            learn(*arguments, **options)
        return str(found.value)

    write_rows(tmp_path / "short.jsonl", read_rows(POOL)[:3])
    assert "short.jsonl: has 3 rows, and the pool 88" in refused(
        RECIPE, POOL, tmp_path, counts=[5], oracle=tmp_path / "short.jsonl"
    )
    turned = tmp_path / "turned.jsonl"
    write_rows(turned, read_rows(POOL)[::-1])
    assert "row 1 has no 'mood', or is not row 1" in refused(RECIPE, POOL, tmp_path, counts=[5], oracle=turned)
    write_rows(tmp_path / "no_text.jsonl", [{"text": "a"}])
    assert "none of its 1 rows has 'body'" in refused(RECIPE, tmp_path / "no_text.jsonl", tmp_path, counts=[5])
    bare = tmp_path / "bare.yaml"
    bare.write_text(RECIPE.read_text().replace("  labels: [negative, neutral, positive]\n", ""))
    assert "task.labels: is not set" in refused(bare, POOL, tmp_path, counts=[5])
    write_rows(tmp_path / "to_label-0.jsonl", [{"body": "a", "mood": "neutral"}])
    assert "has a row whose pool_row is None" in refused(RECIPE, POOL, tmp_path, counts=[5])
    write_rows(tmp_path / "to_label-0.jsonl", [{"pool_row": 88, "body": "a", "mood": "neutral"}])
    assert "has a row whose pool_row is 88" in refused(RECIPE, POOL, tmp_path, counts=[5])


def test_the_measured_table_says_which_labels_were_asked_for(tmp_path, monkeypatch):
    rows = [{"text": f"text {number}", "label": "positive"} for number in range(measure.POOL)]

    def asked(recipe, pool, rounds, **given):
        rounds.mkdir()
        start = 0
        for number, count in enumerate(given["counts"]):
            write_rows(rounds / f"to_label-{number}.jsonl", [{**rows[n], ROW: n} for n in range(start, start + count)])
            start += count
        return [SimpleNamespace(output_dir=rounds)] * len(given["counts"])

    monkeypatch.setattr(measure, "draw", lambda *given: rows)
    monkeypatch.setattr(measure, "learn", asked)
    monkeypatch.setattr(measure, "train", lambda *words, **given: SimpleNamespace(output_dir=tmp_path))
    monkeypatch.setattr(measure, "accuracy", lambda *given: 0.5)
    found = [*measure.measure(tmp_path, "model", tmp_path / "0", 0)]
    assert found[1] == "50 labels, drawn at random, where the asking begins"
    assert found[2:5] == [f"{count} labels, asked for by margin" for count in (100, 150, 200)]
    readme = (RECIPE.parent / "README.md").read_text()
    assert all(f"\n| {name} | 0." in readme for name in found)


@pytest.mark.slow
def test_a_user_labels_between_two_rounds(tmp_path):
    words = ["--pool", POOL, "--start", 12, "--ask", 6, "--rounds", 1, "--output_dir", tmp_path]
    command = [sys.executable, "-m", "recipes.active_learning.run", RECIPE, *words]

    def run(code=0):
        done = subprocess.run(
            [*map(str, command)], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=1800
        )
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    pool = read_rows(POOL)
    for number, count in ((0, 12), (1, 6)):
        file = tmp_path / f"to_label-{number}.jsonl"
        told = run()
        assert f"to label: {file}\nFill in the labels" in told
        rows = read_rows(file)
        assert len(rows) == count
        write_rows(file, [{**row, "mood": pool[row["pool_row"]]["mood"]} for row in rows])
    told = run()
    asked = [row["pool_row"] for number in (0, 1) for row in read_rows(tmp_path / f"to_label-{number}.jsonl")]
    assert len(set(asked)) == 18
    assert "round 1: test/accuracy 0." in told
    events = [json.loads(line) for line in (tmp_path / "round-1" / "metrics.jsonl").read_text().splitlines()]
    assert sum(event["event"] == "train" for event in events) == 60
    assert "train     18 examples from 18 rows" in told
    changed = tmp_path / "to_label-0.jsonl"
    write_rows(changed, [{**row, "mood": "neutral"} for row in read_rows(changed)])
    assert f"round-0: was made with another {changed}." in run(code=2)
