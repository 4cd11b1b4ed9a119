"""Changed texts: one curve under every launch form, exact over an interruption, refused with another list."""

import pytest

from tests.resume.conftest import recipes  # noqa: F401  a fixture
from tests.resume.curves import curve, partings

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def test_changed_texts_draw_one_curve_and_go_on_exactly(forks, recipes, tmp_path):  # noqa: F811
    recipe, words = recipes["text_classification"], tmp_path / "words.txt"
    words.write_text("headline\ttitle,head\n")
    keys = ["--regularization.word_swap", "0.3", "--regularization.word_deletion", "0.3"]
    keys += ["--regularization.synonyms", str(words), "--regularization.synonym_share", "0.5"]
    one = forks.train(recipe, tmp_path / "one", "python", *keys)
    assert "texts     changed in training: synonyms" in one.stdout
    assert curve(one)[0][1] == curve(forks.train(recipe, tmp_path / "plain"))[0][1]
    assert curve(one)[0][2] != curve(forks.train(recipe, tmp_path / "plain"))[0][2], "no text was changed"
    for how in ("ddp", "zero3"):
        assert not [*partings(one, forks.train(recipe, tmp_path / how, how, *keys))], how
    forks.train(recipe, tmp_path / "again", "python", *keys, "--train.stop_after", "5")
    assert not [*partings(one, forks.train(recipe, tmp_path / "again", "python", *keys), True)]
    forks.train(recipe, tmp_path / "other", "python", *keys, "--train.stop_after", "5")
    words.write_text("headline\ttitle\n")
    refused = forks.launch(recipe, tmp_path / "other", "python", *keys)
    assert refused.exit_code == 2 and "regularization.code" in refused.stderr, refused.stderr
