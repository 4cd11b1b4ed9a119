import numpy as np
import pytest
from transformers.models.wav2vec2.modeling_wav2vec2 import _compute_mask_indices

from onecurve.content.spec_augment import draw_spans


@pytest.mark.parametrize(("length", "prob", "span", "fewest"), [(200, 0.05, 10, 2), (60, 0.3, 5, 0), (25, 0.9, 10, 0)])
def test_as_much_is_masked_as_transformers_masks(length: int, prob: float, span: int, fewest: int) -> None:
    np.random.seed(0)  # theirs draws from the global state
    theirs = [_compute_mask_indices((1, length), prob, span, min_masks=fewest)[0] for _ in range(600)]
    ours = [draw_spans(length, prob, span, fewest, np.random.default_rng(number)) for number in range(600)]
    spread = np.std([mask.mean() for mask in theirs]) / 600**0.5 * 2**0.5
    assert abs(np.mean(ours) - np.mean(theirs)) < 4 * spread + 1e-9
    np.testing.assert_allclose(np.mean(ours, 0), np.mean(theirs, 0), atol=0.09)


def test_nothing_is_drawn_where_nothing_may_be_masked() -> None:
    rng = np.random.default_rng(0)
    assert not draw_spans(50, 0.0, 10, 2, rng).any() and not draw_spans(9, 1.0, 10, 2, rng).any()
    assert rng.random() == np.random.default_rng(0).random()
    assert draw_spans(10, 1.0, 10, 0, rng).all()
