import argparse

import pytest

from onecurve.cli import main, predict


@pytest.mark.parametrize(
    "words", [["a text", "--json"], ["--json", "a text"], ["--batch_size", "4", "a text"]], ids=" ".join
)
def test_a_text_may_stand_before_or_behind_an_option(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    seen: list[list[str]] = []

    def run(arguments: argparse.Namespace) -> int:
        seen.append(arguments.texts)
        return 0

    monkeypatch.setattr(predict, "run", run)
    assert main(["predict", "model", *words]) == 0
    assert seen == [["a text"]]


def test_an_option_that_does_not_exist_is_still_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["predict", "model", "--jsn", "a text"])
    assert "unrecognized arguments: --jsn a text" in capsys.readouterr().err
