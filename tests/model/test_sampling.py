"""Tokens drawn by a key: from the right distribution, and by nothing but the key and the position."""

import math

import pytest
import torch

from onecurve.model.sampling import KeyedNoise, sampling


def draw(
    logits: torch.Tensor, keys: list[int], options: dict[str, float] | None = None, places: int = 1
) -> torch.Tensor:
    """Draw a token at each of so many places of each row: int64 [keys, places]."""
    asked = sampling({"do_sample": True, "max_new_tokens": 9, **(options or {})}, keys)
    assert asked["do_sample"] is False and asked["num_beams"] == 1 and "temperature" not in asked
    ids = torch.zeros(len(keys), 1, dtype=torch.long)
    found = [asked["logits_processor"](ids, logits.expand(len(keys), -1).clone()).argmax(-1) for _ in range(places)]
    return torch.stack(found, 1)


NOISE = [0.28116637, -0.81769940, 0.01205377, 0.23093824]
LOGITS = torch.tensor([[0.0, 1.0, -2.0, 3.0, 2.0, -math.inf]])


def check(drawn: torch.Tensor, probabilities: torch.Tensor) -> None:
    """Pearson's test with a bound that a right sampler passes but for one case in 100,000."""
    counts = torch.bincount(drawn.flatten(), minlength=LOGITS.shape[1]).double()
    expected = probabilities.double() * drawn.numel()
    there = expected > 0
    assert counts[~there].sum() == 0
    assert float(((counts - expected)[there] ** 2 / expected[there]).sum()) < 30


def test_draws_follow_the_distribution_over_keys_and_over_positions() -> None:
    check(draw(LOGITS, list(range(4000))), LOGITS.softmax(-1)[0])
    check(draw(LOGITS, [7], places=4000), LOGITS.softmax(-1)[0])


def test_they_follow_what_temperature_and_cuts_leave_of_it() -> None:
    keys = list(range(4000))
    check(draw(LOGITS, keys, {"temperature": 2.0}), (LOGITS / 2).softmax(-1)[0])
    left = LOGITS.clone()
    left[0, [0, 1, 2]] = -math.inf
    check(draw(LOGITS, keys, {"top_k": 2}), left.softmax(-1)[0])
    check(draw(LOGITS, keys, {"top_p": 0.75}), left.softmax(-1)[0])


def test_a_row_s_draws_depend_on_its_key_and_position_alone() -> None:
    together = draw(torch.zeros(1, 300), [5, 6, 7], places=20)
    assert torch.equal(draw(torch.zeros(1, 300), [6], places=20)[0], together[1])
    assert not torch.equal(together[0], together[1]) and len(set(together[0].tolist())) > 10


def test_the_noise_is_the_same_on_every_machine() -> None:
    (noise,) = KeyedNoise([3])(torch.zeros(1, 1), torch.zeros(1, 4, dtype=torch.bfloat16)).tolist()
    assert noise == pytest.approx(NOISE, rel=1e-6)
