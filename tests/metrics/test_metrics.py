import json
import math
import random
import warnings
from pathlib import Path
from typing import Any

import pytest
from sklearn.metrics import f1_score, matthews_corrcoef

from onecurve.metrics.classification import score_classification
from onecurve.metrics.multilabel import score_multilabel
from onecurve.metrics.perplexity import perplexity
from onecurve.metrics.regression import score_regression


@pytest.fixture(autouse=True)
def every_warning_is_an_error() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_classification_by_hand() -> None:
    # references a a a b b c, predictions a a b b c c
    pairs = [(0, 0), (0, 0), (1, 0), (1, 1), (2, 1), (2, 2)]
    scores = score_classification(pairs, ["a", "b", "c"])
    assert scores["accuracy"] == pytest.approx(4 / 6)
    assert scores["confusion_matrix"] == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]
    assert scores["per_class"]["a"] == pytest.approx({"precision": 1.0, "recall": 2 / 3, "f1": 0.8, "support": 3})
    assert scores["per_class"]["b"] == pytest.approx({"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2})
    assert scores["per_class"]["c"] == pytest.approx({"precision": 0.5, "recall": 1.0, "f1": 2 / 3, "support": 1})
    assert scores["macro_f1"] == pytest.approx((0.8 + 0.5 + 2 / 3) / 3)
    # (4*6 - (3*2 + 2*2 + 1*2)) / sqrt((36 - 14) * (36 - 12))
    assert scores["matthews"] == pytest.approx(12 / math.sqrt(22 * 24))


def test_matthews_is_scikit_learns() -> None:
    draw = random.Random(0)
    pairs = [(draw.randrange(4), draw.randrange(4)) for _ in range(200)]
    predictions, references = zip(*pairs, strict=True)
    scores = score_classification(pairs, list("abcd"))
    assert scores["matthews"] == pytest.approx(matthews_corrcoef(references, predictions))
    assert scores["macro_f1"] == pytest.approx(f1_score(references, predictions, average="macro"))


def test_a_class_that_is_not_in_the_split_has_no_scores_and_pulls_nothing_down() -> None:
    scores = score_classification([(0, 0), (1, 1)], ["a", "b", "absent"])
    assert scores["per_class"]["absent"] == {"precision": None, "recall": None, "f1": None, "support": 0}
    assert scores["macro_f1"] == 1.0
    assert scores["confusion_matrix"] == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]
    predicted = score_classification([(0, 0), (2, 1)], ["a", "b", "absent"])
    assert predicted["per_class"]["absent"] == {"precision": 0.0, "recall": None, "f1": 0.0, "support": 0}
    assert predicted["per_class"]["b"] == {"precision": None, "recall": 0.0, "f1": 0.0, "support": 1}
    assert predicted["macro_f1"] == pytest.approx(1 / 3)


def test_a_constant_classifier_has_no_correlation() -> None:
    assert score_classification([(0, 0), (0, 1)], ["a", "b"])["matthews"] == 0.0
    assert score_classification([(0, 0)], ["a", "b"])["matthews"] == 0.0


def test_multilabel_by_hand() -> None:
    pairs = [([1, 0, 0], [1, 1, 0]), ([0, 1, 0], [0, 1, 0]), ([1, 0, 0], [0, 0, 0])]
    scores = score_multilabel(pairs, ["a", "b", "absent"])
    assert scores["per_class"]["a"] == pytest.approx({"precision": 0.5, "recall": 1.0, "f1": 2 / 3, "support": 1})
    assert scores["per_class"]["b"] == pytest.approx({"precision": 1.0, "recall": 0.5, "f1": 2 / 3, "support": 2})
    assert scores["per_class"]["absent"] == {"precision": None, "recall": None, "f1": None, "support": 0}
    assert scores["micro_f1"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert scores["macro_f1"] == pytest.approx(2 / 3)
    assert scores["subset_accuracy"] == pytest.approx(1 / 3)


def test_multilabel_with_nothing_to_find_and_nothing_found_is_undefined() -> None:
    scores = score_multilabel([([0, 0], [0, 0])], ["a", "b"])
    assert scores["micro_f1"] is None and scores["macro_f1"] is None and scores["subset_accuracy"] == 1.0


def test_multilabel_with_a_single_label() -> None:
    scores = score_multilabel([([1], [1]), ([0], [1]), ([0], [0])], ["a"])
    assert scores["per_class"]["a"] == pytest.approx({"precision": 1.0, "recall": 0.5, "f1": 2 / 3, "support": 2})
    assert scores["micro_f1"] == pytest.approx(2 / 3)


def test_regression_by_hand() -> None:
    scores = score_regression([(1.0, 1.0), (2.0, 3.0), (4.0, 2.0)])
    assert scores["mse"] == pytest.approx(5 / 3)
    assert scores["mae"] == pytest.approx(1.0)
    # deviations: predictions -4/3 -1/3 5/3, references -1 1 0
    assert scores["pearson"] == pytest.approx(1 / math.sqrt(14 / 3 * 2))
    assert scores["spearman"] == pytest.approx(0.5)


@pytest.mark.parametrize("pairs", [[(1.0, 1.0), (1.0, 2.0)], [(1.0, 2.0), (3.0, 2.0)], [(1.0, 2.0)]])
def test_a_constant_side_has_no_correlation_and_no_warning(pairs: list[tuple[float, float]]) -> None:
    scores = score_regression(pairs)
    assert scores["pearson"] is None and scores["spearman"] is None and scores["mse"] >= 0


def test_nearly_constant_predictions_give_no_warning() -> None:
    assert json.dumps(score_regression([(1.0, 1.0), (1.0 + 1e-15, 2.0), (1.0, 3.0)]), allow_nan=False)


def test_predictions_of_a_model_that_diverged_have_no_scores() -> None:
    assert set(score_regression([(math.nan, 1.0), (math.inf, 2.0)]).values()) == {None}


def test_perplexity_is_the_exponential_of_the_loss() -> None:
    assert perplexity(0.0) == 1.0
    assert perplexity(2.0) == pytest.approx(7.38905609893065)
    assert perplexity(1000.0) == math.inf
    assert math.isnan(perplexity(math.nan))


def test_scoring_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    score_classification([(0, 0), (1, 1)], ["a", "b"])
    assert not list(tmp_path.rglob("*"))


def test_values_are_plain() -> None:
    for scores in (
        score_classification([(0, 0), (1, 1)], ["a", "b"]),
        score_multilabel([([0, 1], [1, 1])], ["a", "b"]),
        score_regression([(0.0, 1.0), (2.0, 1.5)]),
    ):
        assert json.loads(json.dumps(scores, allow_nan=False)) == scores
