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
