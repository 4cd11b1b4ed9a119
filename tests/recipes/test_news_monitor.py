"""The news monitor: its data, its rules, and the whole chain with a tiny model."""

import argparse
import json
import math
import os
import subprocess
import sys
from collections import Counter
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import corrections
import make_headlines
import monitor
import pytest
import update
from scoring import Right, count
from surges import Rule, balance, counts, surges

from tests.launching import ROOT, environment

RECIPE = ROOT / "recipes" / "news_monitor"
START = date(2026, 3, 1)
MOODS = {"topic": ["business", "health"], "sentiment": ["negative", "neutral", "positive"]}


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


# The data


def test_the_data_are_what_the_generator_writes(tmp_path):
    make_headlines.write(tmp_path)
    for name in ("train", "dev", "test", "stream"):
        assert (tmp_path / f"{name}.jsonl").read_bytes() == (RECIPE / "data" / f"{name}.jsonl").read_bytes()


def test_the_splits_share_no_headline_no_pattern_and_no_name():
    texts = {name: {row["headline"] for row in read(RECIPE / "data" / f"{name}.jsonl")} for name in ("train", "dev")}
    assert not texts["train"] & texts["dev"]
    kinds = ("train", "test", "stream")
    for one, other in (("train", "test"), ("train", "stream"), ("test", "stream")):
        assert not {n for v in make_headlines.NAMES[one].values() for n in v} & {
            n for v in make_headlines.NAMES[other].values() for n in v
        }
    patterns = [text for by_kind in make_headlines.PATTERNS.values() for kind in kinds for text in by_kind[kind]]
    assert len(patterns) == len(set(patterns)) == 18 * (6 + 3 + 4)


def test_by_the_true_labels_the_planted_week_is_flagged_and_no_other_day():
    rows = read(RECIPE / "data" / "stream.jsonl")
    days = counts((date.fromisoformat(row["date"]), row["topic"], row["sentiment"]) for row in rows)
    first, last = make_headlines.SURGE
    planted = [first + timedelta(days=n) for n in range((last - first).days + 1)]
    assert [(one.topic, one.date) for one in surges(days, Rule())] == [("health", day) for day in planted]


# The rule


def week(today: tuple[int, int], before: tuple[int, int] = (2, 6), length: int = 14) -> dict[date, Any]:
    """Days of (negative, all) headlines on one topic: `length` usual ones, and today."""
    shares = [before] * length + [today]
    return {
        START + timedelta(days=n): {"health": Counter(negative=x, neutral=of - x)} for n, (x, of) in enumerate(shares)
    }


def test_a_surge_is_what_the_binomial_tail_says():
    share = (14 * 2 + 1) / (14 * 6 + 2)
    for negative in range(11):
        chance = sum(math.comb(10, x) * share**x * (1 - share) ** (10 - x) for x in range(negative, 11))
        found = surges(week((negative, 10)), Rule())
        assert bool(found) == (chance <= 0.001), negative
        if found:
            assert (found[0].negative, found[0].headlines) == (negative, 10)
            assert found[0].chance == pytest.approx(chance)
            assert found[0].usual_share == pytest.approx(share)
    assert surges(week((9, 10)), Rule()) and not surges(week((8, 10)), Rule())


def test_the_chance_is_shared_among_the_topics_of_the_day():
    days = week((9, 10))
    (found,) = surges(days, Rule())
    for day in days.values():
        day["sport"] = Counter(neutral=3)
    assert surges(days, Rule(false_alarms=found.chance * 1.01)) == []
    assert len(surges(days, Rule(false_alarms=found.chance * 2.01))) == 1


def test_few_headlines_and_a_short_history_are_not_judged():
    assert not surges(week((4, 4), before=(0, 6)), Rule(min_headlines=5))
    assert surges(week((4, 4), before=(0, 6)), Rule(min_headlines=4))
    assert not surges(week((9, 9), before=(0, 6), length=4), Rule(min_history=30))
    assert surges(week((9, 9), before=(0, 6), length=5), Rule(min_history=30))
    days = week((9, 9), before=(0, 6))  # what lies further back than the window is not looked at
    last = max(days)
    days[last + timedelta(days=20)] = days.pop(last)
    assert not surges(days, Rule())


def test_a_surge_does_not_become_usual_until_it_has_lasted():
    days = week((9, 10))
    for number in range(15, 45):
        days[START + timedelta(days=number)] = {"health": Counter(negative=9, neutral=1)}
    found = [(one.date - START).days for one in surges(days, Rule())]
    assert found[:5] == [14, 15, 16, 17, 18]  # five days in, still measured by the time before
    assert max(found) < 30  # in the end it is what is usual


def test_counts_and_balance():
    days = counts(
        [(START, "a", "positive"), (START, "a", "negative"), (START, "a", "neutral"), (START, "b", "positive")]
    )
    assert days == {START: {"a": Counter(positive=1, negative=1, neutral=1), "b": Counter(positive=1)}}
    assert balance(days[START]["a"]) == 0 and balance(days[START]["b"]) == 1
    table = monitor.text_table(days, [])
    assert table.splitlines()[1].split() == ["2026-03-01", "+0.00", "1/3", "+1.00", "0/1"]


# Alarms


@pytest.fixture
def predictions(tmp_path) -> Path:
    """What `onecurve predict` writes: usual days on health, then one that is all negative; and a row without answer."""
    lines = []
    for day, by_topic in week((9, 9), before=(1, 6)).items():
        for mood, number in by_topic["health"].items():
            for n in range(number):
                answers = {"topic": {"label": "health", "probability": 0.9}}
                answers["sentiment"] = {"label": mood, "probability": 0.5 + n / 100}
                lines.append({"id": 0, "kept": {"date": day.isoformat(), "headline": f"{mood} {n // 2}"}, **answers})
    lines.append({"id": 1, "kept": {"date": None, "headline": ""}, "error": "text is empty"})
    path = tmp_path / "predictions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def run_monitor(*words: Any) -> int:
    return monitor.main(monitor.parser().parse_args([*map(str, words)]))


def test_a_new_alarm_is_told_once_and_to_the_command(predictions, tmp_path, capsys):
    hook = ["--on_alarm", f"cat >> {tmp_path / 'told'}"]
    assert run_monitor(predictions, *hook, "--table", tmp_path / "table.csv") == monitor.ALARM == 3
    out, said = capsys.readouterr()
    assert "ALARM 2026-03-15 health: 9 of 9 headlines are negative, usually 17%" in out and "9/9!" in out
    assert said.startswith("1 rows have no answer and are left out")
    (told,) = read(tmp_path / "told")
    assert (told["date"], told["topic"], told["share"]) == ("2026-03-15", "health", 1.0)
    assert told["examples"] == [f"negative {n}" for n in (4, 3, 2, 1, 0)]  # those it is surest of, each once
    table = (tmp_path / "table.csv").read_text().splitlines()
    assert table[0] == "date,headline,topic,topic_score,sentiment,sentiment_score"
    assert table[1] == "2026-03-01,negative 0,health,0.9,negative,0.5" and len(table) == 1 + 14 * 6 + 9
    assert run_monitor(predictions, *hook) == 0
    assert len(read(tmp_path / "told")) == 1


def test_a_headline_may_hold_any_separator_that_json_leaves_as_it_is(predictions, capsys):
    text = predictions.read_text()
    for separator in ("\u2028", "\u2029", "\x85"):
        predictions.with_name("alarms.jsonl").unlink(missing_ok=True)
        predictions.write_text(text.replace("negative 4", f"negative{separator}4"))
        assert run_monitor(predictions) == monitor.ALARM
        assert f"negative{separator}4" in read(predictions.with_name("alarms.jsonl"))[0]["examples"]
        assert run_monitor(predictions) == 0  # and reads its own record
    capsys.readouterr()


@pytest.mark.parametrize(
    ("code", "lines", "expected", "said"),
    [
        (1, 'cat "$0.told"', 3, "1 rows have no answer and are left out"),  # one blank headline
        (2, 'cat "$0.told"', 2, None),
        (1, 'grep -v error "$0.told"', 1, None),  # it broke down, and not over a row
        (1, "false", 1, None),  # before it wrote: what an earlier call wrote is no answer
    ],
)
def test_make_monitor_goes_on_where_single_rows_had_no_answer(predictions, tmp_path, code, lines, expected, said):
    python, run = tmp_path / "python", tmp_path / "run"
    run.mkdir()
    (run / "predictions.jsonl").write_bytes(predictions.read_bytes())
    predictions.rename(tmp_path / "python.told")
    python.write_text(f"""#!/bin/sh
case "$*" in *"onecurve predict"*)
  for output; do :; done
  {{ {lines}; }} > "$output.new" && mv "$output.new" "$output"
  exit {code}
esac
exec {sys.executable} "$@"
""")
    python.chmod(0o755)
    command = ["make", "-C", str(RECIPE), f"RUN={run}", f"PYTHON={python}", "monitor"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60)
    assert f"Error {expected}" in done.stderr, done.stdout + done.stderr
    assert said in done.stderr if said else "monitor.py" not in done.stdout + done.stderr


def test_an_alarm_that_could_not_be_told_is_raised_again(predictions, capsys):
    assert run_monitor(predictions, "--on_alarm", "exit 7") == 1
    assert "the command ended with 7" in capsys.readouterr().err
    assert run_monitor(predictions, "--on_alarm", "true") == 3


def test_what_cannot_be_read_is_told_by_its_line(predictions, tmp_path):
    predictions.write_text(predictions.read_text().replace("2026-03-02", "2 March", 1))
    with pytest.raises(monitor.Mistake, match=r"predictions.jsonl, line 7: .*onecurve predict MODEL --json --keep"):
        monitor.read(predictions)
    with pytest.raises(monitor.Mistake, match="No such file"):
        monitor.read(tmp_path / "none.jsonl")
    (tmp_path / "none.jsonl").write_text('{"error": "text is empty"}\n')
    with pytest.raises(monitor.Mistake, match="no headline has an answer"):
        monitor.read(tmp_path / "none.jsonl")
    with pytest.raises(monitor.Mistake, match="--false_alarms must be between 0 and 1"):
        run_monitor(predictions, "--false_alarms", 2)


def test_a_plot_that_cannot_be_drawn_is_told(predictions, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(monitor, "find_spec", lambda name: None)
    run_monitor(predictions, "--plot", tmp_path / "plot.png")
    assert "matplotlib is not installed" in capsys.readouterr().err and not (tmp_path / "plot.png").exists()


def test_the_plot_is_an_image(predictions, tmp_path):
    pytest.importorskip("matplotlib")
    run_monitor(predictions, "--plot", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


# Corrections and updates


def test_corrections_are_split_by_their_text_and_what_was_said_last_counts():
    rows = [{"headline": f"headline {n}", "topic": "health"} for n in range(200)]
    learnt, held_out = corrections.halves(rows)
    assert 80 < len(learnt) < 120 and len(learnt) + len(held_out) == 200
    again = corrections.halves([*rows[100:], *rows[:50]])
    assert {r["headline"] for r in again[1]} <= {r["headline"] for r in held_out}
    said = [
        {"headline": "a", "topic": "sport", "sentiment": "neutral"},
        {"headline": "b"},
        {"headline": "a", "topic": "x"},
    ]
    assert corrections.latest(said) == [{"headline": "a", "topic": "x", "sentiment": "neutral"}, {"headline": "b"}]


def test_corrections_are_checked_before_any_is_written(tmp_path):
    good, path = {"headline": "a", "topic": "health"}, tmp_path / "corrections.jsonl"
    for bad, said in [
        ({"headline": " ", "topic": "health"}, "the headline is empty"),
        ({"headline": "a"}, "a topic, a sentiment, or both"),
        ({"headline": "a", "sentiment": "bad"}, "sentiment: must be one of negative, neutral, positive; got 'bad'"),
    ]:
        with pytest.raises(corrections.Mistake, match=said):
            corrections.append(path, [good, bad], MOODS)
    assert not path.exists()
    assert corrections.append(path, [good, good], MOODS) == 2 and len(read(path)) == 2
    with pytest.raises(corrections.Mistake, match=r"is no run of recipe\.yaml"):
        corrections.labels_of(tmp_path)


def test_corrections_with_separators_are_read_as_they_were_written(tmp_path):
    path, rows = tmp_path / "c.jsonl", [{"headline": f"a{c}b", "topic": "health"} for c in "\u2028\u2029\x85"]
    corrections.append(path, rows, MOODS)
    assert corrections.rows_of(path) == rows


@pytest.mark.parametrize("headline", [None, "", " "])
@pytest.mark.parametrize("name", ["test", "corrections"])
def test_an_update_reads_every_row_before_it_trains(tmp_path, monkeypatch, headline, name):
    rows = [{"headline": f"headline {n}", "topic": "health", "sentiment": "neutral"} for n in range(20)]
    for file in ("test", "corrections"):
        update.write(tmp_path / f"{file}.jsonl", [*rows, {**rows[0], "headline": headline if file == name else "x"}])
    (tmp_path / "models").mkdir()
    monkeypatch.setattr(update, "labels_of", lambda model: MOODS)
    monkeypatch.setattr(update.subprocess, "run", lambda command: pytest.fail("the run has started"))
    given = argparse.Namespace(run=tmp_path, test=tmp_path / "test.jsonl", min_held_out=1, recipe="update.yaml")
    with pytest.raises(corrections.Mistake, match=rf"{name}\.jsonl, line 21: the headline is empty\."):
        update.update(given, [])


def test_right_labels_are_counted_where_they_are_known():
    rows = [{"topic": "a", "sentiment": "up"}, {"topic": "b"}, {"topic": "a", "sentiment": "up", "headline": "x"}]
    told = [
        {"topic": {"label": "a"}, "sentiment": {"label": "down"}},
        {"topic": {"label": "b"}, "sentiment": {"label": "up"}},
        {"topic": {"label": "b"}, "sentiment": {"label": "up"}},
    ]
    assert count(rows, told) == Right({"topic": 2, "sentiment": 1}, {"topic": 3, "sentiment": 2})
    with pytest.raises(corrections.Mistake, match="headline 'x': text is empty"):
        count(rows, [*told[:2], {"error": "text is empty"}])


@pytest.mark.parametrize(
    ("test", "corrected", "tolerance", "stays"),
    [
        ((90, 80), (3, 4), 0, []),  # the same on the test set, one more correction
        ((91, 80), (3, 3), 0, ["is no gain"]),
        ((89, 99), (9, 9), 0, ["on the test set topic falls from 90 to 89 of 100"]),
        ((89, 99), (9, 9), 1, []),
        ((88, 78), (2, 4), 1, ["topic falls", "sentiment falls", "go from 6 to 6 of 20, which is no gain"]),
    ],
)
def test_a_model_is_replaced_by_one_that_loses_nothing_and_gains_on_corrections(test, corrected, tolerance, stays):
    def right(pair: tuple[int, int], of: int) -> Right:
        return Right(dict(zip(("topic", "sentiment"), pair, strict=True)), {"topic": of, "sentiment": of})

    old = {"test": right((90, 80), 100), "corrections": right((2, 4), 10)}
    found = update.reasons_to_stay(old, {"test": right(test, 100), "corrections": right(corrected, 10)}, tolerance)
    assert len(found) == len(stays)
    assert all(part in whole for part, whole in zip(stays, found, strict=True))


def test_the_current_model_is_changed_in_one_step(tmp_path):
    for name in ("000", "001"):
        (tmp_path / "models" / name).mkdir(parents=True)
    link = tmp_path / "current"
    for name in ("000", "001"):
        update.point(link, tmp_path / "models" / name)
        assert os.readlink(link) == f"models/{name}" and link.resolve() == tmp_path / "models" / name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["current", "models"]
    assert update.next_folder(tmp_path / "models").name == "002"


# The whole chain


@pytest.mark.slow
def test_the_whole_chain_with_a_tiny_model(tmp_path, tiny_bert):
    run = tmp_path / "run"

    stream = read(RECIPE / "data" / "stream.jsonl")[:300]
    blank = [{**stream[0], "headline": headline} for headline in ("", None)]  # each feed has one some day
    stream[7]["headline"] = stream[7]["headline"].replace(" ", "\u2028", 1)
    given = [*blank, *stream]
    (tmp_path / "stream.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))

    def make(*words: str, code: int = 0) -> str:
        places = [f"RUN={run}", f"INPUT={tmp_path / 'stream.jsonl'}", f"PYTHON={sys.executable}"]
        command = ["make", "-C", str(RECIPE), *places, *words]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=540)
        assert done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout + done.stderr

    small = f"--data.cache_dir {tmp_path / 'cache'} --train.max_steps"
    make("train", f"MORE=--model.path {tiny_bert} --train.epochs null {small} 30 --optim.lr 1e-3 --eval.every 30")
    assert (run / "current" / "model" / "sentiment" / "config.json").is_file()
    assert "2 of 302 rows could not be used" in make("predict")
    told = read(run / "predictions.jsonl")
    assert ["error" in one for one in told] == [True, True, *[False] * 300]
    assert [one["kept"] for one in told[2:]] == [{key: row[key] for key in ("date", "headline")} for row in stream]
    script = [sys.executable, str(RECIPE / "monitor.py"), str(run / "predictions.jsonl"), "--table", str(run / "t.csv")]
    done = subprocess.run(script, env=environment(), capture_output=True, text=True)
    assert "2 rows have no answer and are left out" in done.stderr
    found = read(run / "alarms.jsonl") if (run / "alarms.jsonl").exists() else []
    assert done.returncode == (3 if found else 0) and (run / "t.csv").read_text().count("\n") == 1 + len(stream)
    make("correct", "HEADLINE=Toll climbs as fever sweeps Ashdown", "TOPIC=health", "SENTIMENT=negative")
    make("correct", """HEADLINE=It's "over" for Ashdown""", "TOPIC=politics")
    assert read(run / "corrections.jsonl")[1]["headline"] == """It's "over" for Ashdown"""
    assert "got 'weird'" in make("correct", "HEADLINE=x", "TOPIC=weird", code=2)
    make("readers", "BEFORE=2026-03-08")
    wrong = len(corrections.latest(read(run / "corrections.jsonl")))
    assert wrong > 50  # thirty steps of a tiny model teach little

    out = make("update", f"MORE={small} 1 --optim.lr 1e-9", code=2)  # of make; update.py's is 1: nothing moved
    assert "000 stays" in out and "which is no gain" in out
    assert (run / "current").resolve().name == "000"
    out = make("update", f"MORE=--tolerance 144 {small} 60 --optim.lr 1e-3 --data.train.corrections.weight 3")
    assert "002 replaces 000, which is kept" in out
    assert (run / "current").resolve().name == "002" and (run / "models" / "000" / "model" / "task.json").is_file()
    config = json.loads((run / "models" / "002" / "model" / "task.json").read_text())
    assert config["survey"]["heads"].keys() == {"topic", "sentiment"}
    stays, replaced = read(run / "updates.jsonl")
    assert (stays["replaced"], replaced["replaced"], replaced["old"], replaced["new"]) == (False, True, "000", "002")
    old, new = (sum(scores["corrections"]["right"].values()) for scores in replaced["scores"])
    assert new > old
