import math
import warnings

import pytest
import seqeval.metrics as seqeval
from hypothesis import given, settings
from hypothesis import strategies as st

from onecurve.metrics.entities import entities, has_entities, score_tags

IOB = ["O", "B-person", "I-person", "B-place", "I-place"]
IOBES = [*IOB, "E-person", "S-person", "E-place", "S-place"]


@pytest.mark.parametrize("names", [IOB, IOBES])
@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_entities_and_their_scores_are_those_of_seqeval(names: list[str], data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=5))
    predicted, right = (
        [data.draw(st.lists(st.integers(0, len(names) - 1), min_size=n, max_size=n)) for n in lengths] for _ in range(2)
    )
    told, asked = ([[names[n] for n in row] for row in rows] for rows in (predicted, right))
    for row in told:
        theirs = {(kind, start, end + 1) for kind, start, end in seqeval.sequence_labeling.get_entities(row)}
        assert set(entities(row)) == theirs
    scores = score_tags(list(zip(predicted, right, strict=True)), names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("precision", "recall", "f1"):
            theirs = getattr(seqeval, f"{name}_score")(asked, told)
            assert math.isclose(scores[name] or 0.0, theirs, abs_tol=1e-12)
        assert math.isclose(scores["accuracy"], seqeval.accuracy_score(asked, told))


def test_scores_by_hand() -> None:
    right = [[1, 2, 0, 3], [0, 1]]
    predicted = [[1, 2, 0, 1], [0, -1]]
    scores = score_tags(list(zip(predicted, right, strict=True)), IOB)
    assert scores["accuracy"] == pytest.approx(4 / 6)
    assert (scores["precision"], scores["recall"], scores["f1"]) == pytest.approx((1 / 2, 1 / 3, 2 / 5))
    assert scores["per_type"]["place"] == {"precision": None, "recall": 0.0, "f1": 0.0, "support": 1}
    assert scores["per_type"]["person"]["support"] == 2


def test_parts_of_speech_have_no_entities() -> None:
    assert not has_entities(["NOUN", "VERB", "X"])
    assert not has_entities(["O", "NOUN"])


def test_without_entities_the_scores_are_the_means_over_tags_of_scikit_learn() -> None:
    from sklearn.metrics import precision_recall_fscore_support

    predicted, right = [0, 1, 1, 2, 0, 0], [0, 0, 1, 1, 0, 1]
    scores = score_tags([(predicted, right)], ["NOUN", "VERB", "X", "ABSENT"])
    theirs = precision_recall_fscore_support(right, predicted, average="macro", zero_division=0)
    assert (scores["precision"], scores["recall"], scores["f1"]) == pytest.approx(theirs[:3])
    assert scores["accuracy"] == pytest.approx(1 / 2) and set(scores["per_type"]) == {"NOUN", "VERB", "X"}


def test_where_no_entity_is_or_was_found_there_is_no_score() -> None:
    scores = score_tags([([0, 0], [0, 0])], IOB)
    assert scores["f1"] is None and scores["precision"] is None and scores["per_type"] == {}
