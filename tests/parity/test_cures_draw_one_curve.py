"""Every cure against overfitting draws one curve under every launch form, and a resumed run goes on exactly."""

import pytest

from tests.parity.test_strategies_draw_one_curve import FULL, LORA, check, recipes  # noqa: F401  a fixture
from tests.resume.curves import partings

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def keys(**values):
    return [part for key, value in values.items() for part in (f"--regularization.{key}", value)]


CRITERION = keys(label_smoothing="0.1", focal_gamma="2", class_weights="balanced")
CURES = {
    "criterion": ("text_classification", CRITERION),
    "r_drop": ("text_classification", keys(r_drop="1")),
    "fgm": ("text_classification", keys(fgm="1")),
    "neftune": ("text_classification", keys(neftune_alpha="5")),
    "all": ("text_classification", [*CRITERION, *keys(r_drop="1", fgm="1", neftune_alpha="5", dropout="0.2")]),
    "tokens": ("causal_lm", keys(label_smoothing="0.1", fgm="1", dropout="0.2")),
    "tokens in chunks": ("causal_lm", [*keys(label_smoothing="0.1", neftune_alpha="5"), "--train.logits", "chunked"]),
    "source and target": ("seq2seq_lm", keys(label_smoothing="0.1", fgm="1", r_drop="1")),
    "mixing": ("image_classification", keys(mixup_alpha="0.4", cutmix_alpha="1", label_smoothing="0.1")),
}


@pytest.mark.parametrize("adapter", [FULL, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("cure", CURES)
def test_a_cure_draws_one_curve(forks, recipes, tmp_path, cure, adapter):  # noqa: F811
    task, overrides = CURES[cure]
    check(forks, recipes, tmp_path, task, [*overrides, *adapter], ["ddp", "zero2", "zero3"])


@pytest.mark.parametrize("cure", CURES)
def test_a_cure_changes_the_curve_and_a_resumed_run_goes_on_exactly(forks, recipes, tmp_path, cure):  # noqa: F811
    task, overrides = CURES[cure]
    plain = forks.train(recipes[task], tmp_path / "plain")
    whole = forks.train(recipes[task], tmp_path / "whole", "python", *overrides)
    forks.train(recipes[task], tmp_path / "parts", "python", *overrides, "--train.stop_after", "3")
    parts = forks.train(recipes[task], tmp_path / "parts", "python", *overrides)
    losses = [[step["loss"] for step in run.events("train")] for run in (plain, whole, parts)]
    assert losses[1] == losses[2]
    assert losses[0] != losses[1]
    assert "regularization" in whole.output_dir.joinpath("config.yaml").read_text()


@pytest.mark.parametrize(("before", "after"), [("ddp", "zero3"), ("zero3", "ddp")])
def test_a_run_with_cures_goes_on_under_another_launch_form(forks, recipes, tmp_path, before, after):  # noqa: F811
    overrides = keys(r_drop="1", fgm="1", neftune_alpha="5", word_deletion="0.3")
    recipe, moved = recipes["text_classification"], tmp_path / "moved"
    whole = forks.train(recipe, tmp_path / "whole", "python", *overrides)
    forks.train(recipe, moved, before, *overrides, "--train.stop_after", "3")
    run = forks.train(recipe, moved, after, *overrides)
    assert [event["step"] for event in run.events("resume")] == [3]
    assert not [*partings(whole, run)]
