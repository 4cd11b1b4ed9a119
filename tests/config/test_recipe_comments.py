"""What the comments of recipes tell a user to type is a valid recipe."""

import re
from pathlib import Path

import pytest

from onecurve.errors import ConfigError
from onecurve.preflight import read

ROOT = Path(__file__).parents[2]
SETTING = re.compile(r"--([a-z_]+(?:\.[a-z_0-9]+)+|output_dir)\s+(\"[^\"]*\"|\S+)")


def alternatives(text: str) -> list[dict[str, str]]:
    """Return the settings that the comments at a recipe's head name: one that comes again begins another choice.

    A further choice keeps what was said before it: "--model.path A, or --model.path B" share the rest.
    """
    head = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    found: list[dict[str, str]] = []
    current: dict[str, str] = {}
    for key, value in SETTING.findall(head):
        if key in current:
            found.append(dict(current))
        current[key] = value[1:-1] if value.startswith('"') else value.rstrip(",;:.)")
    return [*found, current] if current else []


CHOICES = {
    f"{path.stem} {number}": (path.name, settings)
    for path in sorted((ROOT / "recipes").glob("*.yaml"))
    for number, settings in enumerate(alternatives(path.read_text()))
}


@pytest.mark.parametrize("choice", CHOICES)
def test_what_a_comment_says_can_be_typed(choice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    name, settings = CHOICES[choice]
    words = [word for key, value in settings.items() for word in (f"--{key}", value)]
    read([f"recipes/{name}", *words])


@pytest.mark.parametrize("choice", CHOICES)
def test_a_pretrained_model_comes_with_a_learning_rate(choice: str) -> None:
    """That of the recipe is for its own model, which has random weights."""
    settings = CHOICES[choice][1]
    if settings.get("model.init") == "pretrained" and not settings["model.path"].startswith("runs/"):
        assert "optim.lr" in settings


def test_choices_are_found_and_a_wrong_key_in_one_is_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {choice.split()[0] for choice in CHOICES} >= {"seq2seq_lm", "object_detection", "masked_lm", "sft"}
    assert CHOICES["seq2seq_lm 1"][1]["task.source_lang"] == "en_XX"
    assert CHOICES["object_detection 1"][1]["data.train"] == "rishitdagli/cppe-5:train"
    assert alternatives("# --a.b 1, or --a.b 2)\nkey: 1 # --c.d 3") == [{"a.b": "1"}, {"a.b": "2"}]
    monkeypatch.chdir(ROOT)
    with pytest.raises(ConfigError, match="sample_bye"):
        read(["recipes/masked_lm.yaml", "--data.sample_bye", "null"])
