"""recipes/self_training: which predictions become labels, and the whole chain."""

import json
import subprocess
import sys

import pytest

from onecurve.errors import ConfigError
from recipes.rounds import read_rows
from recipes.self_training.run import choose, describe_choice, main, self_train
from tests.launching import ROOT, environment

FOLDER = ROOT / "recipes" / "self_training"


def answers(*told):
    """Each told as a label and its probability; None: a row that cannot be read."""
    return [
        {"error": "no text"} if one is None else
        {"label": one[0], "probability": one[1], "probabilities": {"a": 0.0, "b": 0.0} | {one[0]: one[1]}}
        for one in told
    ]  # fmt: skip


def test_the_most_confident_share_of_each_class_is_chosen():
    told = answers(("a", 0.9), ("a", 0.99), ("b", 0.6), ("a", 0.8), ("b", 0.7), ("a", 0.7), None)
    assert choose(told, 0.0, 0.5) == {0: "a", 1: "a", 4: "b"}
    assert choose(told, 0.65, 1.0) == {0: "a", 1: "a", 3: "a", 4: "b", 5: "a"}
    assert choose(told, 0.0, 0.01) == {1: "a", 4: "b"}  # rounded up
    assert choose(told, 0.999, 1.0) == {}
    assert describe_choice(told, choose(told, 0.0, 0.5)) == (
        "3 of 7 rows chosen: a 2 of 4, b 1 of 2; 1 rows could not be read"
    )
    assert describe_choice(answers(None), {}) == "0 of 1 rows chosen: ; 1 rows could not be read"


def test_rows_of_equal_probability_are_taken_in_their_order():
    assert choose(answers(*[("a", 0.9)] * 5), 0.5, 0.4) == {0: "a", 1: "a"}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("  name: token_classification", "task.name: is token_classification"),
        ("  name: text_classification\n  problem_type: regression", "task.name: is text_classification (regression)"),
    ],
    ids=["tags", "regression"],
)
def test_a_task_without_one_label_a_text_is_refused_before_anything_is_trained(tmp_path, line, said):
    text = (FOLDER / "recipe.yaml").read_text()
    (tmp_path / "recipe.yaml").write_text(text.replace("  name: text_classification", line))
    with pytest.raises(ConfigError) as refused:
        self_train(tmp_path / "recipe.yaml", FOLDER / "unlabelled.jsonl", tmp_path)
    assert said in str(refused.value)


def test_rows_to_score_are_not_a_share_of_what_has_pseudo_labels(tmp_path):
    with pytest.raises(ConfigError, match=r"data.eval: is a share of the training rows"):
        self_train(FOLDER / "recipe.yaml", FOLDER / "unlabelled.jsonl", tmp_path, data={"eval": "5%"})


@pytest.mark.parametrize(
    "words", [["--share", "0"], ["--threshold", "1.5"], ["--rounds", "0"], ["--weights", "1", "x"]]
)
def test_a_number_out_of_its_range_is_refused(monkeypatch, capsys, words):
    monkeypatch.setattr(sys, "argv", ["run", str(FOLDER / "recipe.yaml"), "--unlabelled", "x.jsonl", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert f"argument {words[0]}: must be " in capsys.readouterr().err


def test_the_demonstration_s_rows_are_apart():
    labelled, unlabelled = (read_rows(FOLDER / f"{name}.jsonl") for name in ("labelled", "unlabelled"))
    assert not {row["body"] for row in labelled} & {row["body"] for row in unlabelled}
    assert all(row.keys() == {"body"} for row in unlabelled)


@pytest.mark.slow
def test_a_round_learns_from_its_own_confident_predictions(tmp_path):
    words = ["--unlabelled", FOLDER / "unlabelled.jsonl", "--rounds", 2, "--threshold", 0.5, "--output_dir", tmp_path]
    command = [sys.executable, "-m", "recipes.self_training.run", FOLDER / "recipe.yaml", *words]
    done = subprocess.run(
        [*map(str, command)], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stderr
    for number in (1, 2):
        pseudo = read_rows(tmp_path / f"pseudo-{number}.jsonl")
        assert 10 < len(pseudo) <= 34 and all(row.keys() == {"body", "mood"} for row in pseudo)
        assert f"round {number}: {len(pseudo)} of 64 rows chosen: negative " in done.stdout
        config = (tmp_path / f"round-{number}" / "config.yaml").read_text()
        assert f"pseudo-{number}.jsonl" in config and "init: random" in config  # begun anew, not at the last round
        events = [
            json.loads(line) for line in (tmp_path / f"round-{number}" / "metrics.jsonl").read_text().splitlines()
        ]
        assert sum(event["event"] == "train" for event in events) == 60
    assert "  gold      24 examples from 24 rows; weight 1, 50.0% of the draws" in done.stdout
    assert (tmp_path / "round-2" / "model" / "model.safetensors").is_file()
    assert "round 2: test/accuracy 0." in done.stdout
