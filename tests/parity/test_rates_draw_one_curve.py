"""Groups of their own learning rates: one curve under every launch form, on across an interruption bit for bit."""

import pytest

from tests.resume.conftest import recipes  # noqa: F401  a fixture
from tests.resume.curves import curve, partings, weights

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
DECAYED = ["--regularization.layer_decay", "0.5"]


@pytest.mark.parametrize("task", ["text_classification", "causal_lm"])
def test_layer_decay_draws_one_curve_and_goes_on_exactly(forks, recipes, tmp_path, task):  # noqa: F811
    one = forks.train(recipes[task], tmp_path / "one", "python", *DECAYED)
    assert "rates     " in one.stdout
    plain = forks.train(recipes[task], tmp_path / "plain")
    assert curve(plain)[0] == curve(one)[0], "the first loss is of the same weights"
    assert curve(plain)[-1][2] != curve(one)[-1][2], "the rates changed nothing"
    assert any((weights(plain)[name] != value).any() for name, value in weights(one).items())
    for how in ("ddp", "zero1", "zero2", "zero3"):
        whole = forks.train(recipes[task], tmp_path / how, how, *DECAYED)
        assert not [*partings(one, whole)], how
        forks.train(recipes[task], tmp_path / f"{how} again", how, *DECAYED, "--train.stop_after", "3")
        assert not [*partings(whole, forks.train(recipes[task], tmp_path / f"{how} again", how, *DECAYED), True)], how
    forks.train(recipes[task], tmp_path / "elsewhere", "zero3", *DECAYED, "--train.stop_after", "5")
    assert not [*partings(one, forks.train(recipes[task], tmp_path / "elsewhere", "python", *DECAYED))]


KEPT = ["--regularization.freeze", "[embeddings]", "--regularization.unfreeze_every", "2"]


def test_frozen_and_thawing_weights_draw_one_curve_and_go_on_exactly(forks, recipes, tmp_path):  # noqa: F811
    recipe, saved = recipes["text_classification"], ["--checkpoint.every", "1", "--checkpoint.keep", "9"]
    one = forks.train(recipe, tmp_path / "one", "python", *KEPT, *saved)
    assert "frozen    " in one.stdout and "thaws     by step: head 1, " in one.stdout
    assert curve(one)[-1][2] != curve(forks.train(recipe, tmp_path / "plain"))[-1][2]
    for how in ("ddp", "zero1", "zero2", "zero3"):
        whole = forks.train(recipe, tmp_path / how, how, *KEPT)
        assert not [*partings(one, whole)], how
        for stop in ("2", "3"):  # before a thaw, and after it
            again = tmp_path / f"{how} again {stop}"
            forks.train(recipe, again, how, *KEPT, "--train.stop_after", stop)
            assert not [*partings(whole, forks.train(recipe, again, how, *KEPT), True)], (how, stop)
    forks.train(recipe, tmp_path / "elsewhere", "zero3", *KEPT, "--train.stop_after", "2")
    assert not [*partings(one, forks.train(recipe, tmp_path / "elsewhere", "ddp", *KEPT))]
