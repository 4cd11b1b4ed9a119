"""Planted bugs: each cure, computed wrongly in a way that people do compute it, fails the check that it passes."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from onecurve.content import mixing
from onecurve.losses import cross_entropy
from onecurve.regularization import class_weights, fgm, focal, label_smoothing, neftune, r_drop
from onecurve.regularization.criterion import OfOneLabel
from tests.regularization import test_cures as cures

HOLDERS = ("onecurve.", "tests.")


def _smooths_over_the_other_classes(right):
    def smoothed(targets, num_classes, share):
        hard = right(targets, num_classes, 0)
        return hard * (1 - share) + (1 - hard) * share / (num_classes - 1)

    return smoothed


def _smooths_over_one_class_too_many(right):
    return lambda targets, num_classes, share: right(targets, num_classes, 0) * (1 - share) + share / (num_classes + 1)


def _takes_and_does_not_spread(right):
    return lambda targets, num_classes, share: right(targets, num_classes, 0) * (1 - share)


def _divides_by_the_sum_of_weights(right):
    def criterion(self, logits, targets):
        total = right(self, logits, targets)
        if not self.weights:
            return total
        weights, shares = torch.tensor(self.weights), right.__globals__["smoothed"](targets, logits.shape[1], 0.0)
        return total * len(logits) / (shares * weights).sum()

    return criterion


def _forgets_the_weights(right):
    return lambda self, *arguments: right(replace(self, weights=()), *arguments)


def _focuses_on_what_is_sure(_):
    return lambda log_probabilities, gamma: log_probabilities.exp() ** gamma


def _has_no_gradient_through_the_focus(right):
    return lambda log_probabilities, gamma: right(log_probabilities.detach(), gamma)


def _divides_zero_by_zero(_):
    return lambda log_probabilities, gamma: (-torch.expm1(log_probabilities)) ** gamma


def _focuses_both_answers_on_yes(_):
    def focal_binary_sum(logits, targets, gamma):
        yes, no = torch.nn.functional.logsigmoid(logits), torch.nn.functional.logsigmoid(-logits)
        return -(focal.focus(yes, gamma) * (targets * yes + (1 - targets) * no)).sum()

    return focal_binary_sum


def _makes_the_mean_over_labels_1(right):
    def weigh(*arguments):
        weights = right(*arguments)
        return (np.array(weights) / np.mean(weights)).tolist()

    return weigh


def _divides_by_the_rows(_):
    def total(scores, wanted, smoothing):
        return -(1 - smoothing) * scores.gather(1, wanted).sum() - smoothing / len(scores) * scores.sum()

    return total


def _smooths_the_loss_and_not_its_gradient(right):
    return lambda scores, wanted, smoothing: right(scores, wanted, 0.0)


def _diverges_one_way(_):
    def divergence(first, second, independent):
        log_p, log_q = first.log_softmax(1), second.log_softmax(1)
        return (log_p.exp() * (log_p - log_q)).sum()

    return divergence


def _holds_one_prediction_fixed(right):
    return lambda first, second, independent: right(first, second.detach(), independent)


def _adds_both_losses(right):
    return lambda self, one: right(replace(self, criterion=lambda *pair: 2 * self.criterion(*pair)), one)


def _keys_noise_by_the_place(right):
    return lambda embedded, mask, keys, alpha: right(embedded, mask, range(len(keys)), alpha)


def _scales_noise_by_the_padded_length(right):
    def noise(embedded, mask, keys, alpha):
        shrunk = (mask.sum(1) / mask.shape[1])[:, None, None] ** 0.5
        return right(embedded, mask, keys, alpha) * shrunk.repeat(len(embedded) // len(keys), 1, 1)

    return noise


def _gives_both_copies_one_noise(right):
    def noise(embedded, mask, keys, alpha):
        drawn = right(embedded[: len(keys)], mask, keys, alpha)
        return drawn.repeat(len(embedded) // len(keys), 1, 1)

    return noise


def _takes_one_norm_of_the_batch(_):
    return lambda gradient, epsilon: gradient / gradient.norm() * epsilon


def _leaves_the_gradient_as_long_as_it_is(_):
    return lambda gradient, epsilon: gradient * epsilon


def _goes_down(right):
    return lambda gradient, epsilon: right(gradient, -epsilon)


def _tells_the_partners_share(right):
    def mix(*arguments):
        image, share = right(*arguments)
        return image, 1 - share

    return mix


def _draws_the_share_evenly(right):
    return lambda image, partner, alpha, rng: right(image, partner, 1.0, rng)


def _tells_the_share_that_was_drawn(right):
    def cutmix(image, partner, alpha, rng):
        drawn = np.random.default_rng()
        drawn.bit_generator.state = rng.bit_generator.state
        return right(image, partner, alpha, rng)[0], float(drawn.beta(alpha, alpha))

    return cutmix


ONE_LABEL = cures.test_smoothed_and_weighted_it_is_pytorchs_cross_entropy
TOKENS = cures.test_a_large_vocabulary_is_smoothed_as_pytorch_does
FOCAL = cures.test_focal_is_the_paper_s_equation_4
R_DROP = cures.test_r_drop_is_the_mean_of_two_losses_and_half_of_both_divergences
NOISE = cures.test_noise_depends_on_the_example_alone_and_is_as_strong_as_the_paper_says
STEPS = cures.test_fgm_steps_along_each_examples_own_gradient
NORMS = cures.test_a_perturbation_has_the_length_asked_for_and_none_where_there_is_no_gradient
MIXED = cures.test_a_mixed_image_has_the_share_that_is_told
PLANTED = [
    (label_smoothing.smoothed, _smooths_over_the_other_classes, ONE_LABEL),
    (label_smoothing.smoothed, _smooths_over_one_class_too_many, ONE_LABEL),
    (label_smoothing.smoothed, _takes_and_does_not_spread, ONE_LABEL),
    (OfOneLabel.__call__, _divides_by_the_sum_of_weights, ONE_LABEL),
    (OfOneLabel.__call__, _forgets_the_weights, ONE_LABEL),
    (cross_entropy._chunk_sum, _divides_by_the_rows, TOKENS),
    (cross_entropy._chunk_gradient, _smooths_the_loss_and_not_its_gradient, TOKENS),
    (focal.focus, _focuses_on_what_is_sure, FOCAL),
    (focal.focus, _has_no_gradient_through_the_focus, FOCAL),
    (focal.focus, _divides_zero_by_zero, cures.test_focal_has_a_gradient_where_the_model_is_certain),
    (focal.focal_binary_sum, _focuses_both_answers_on_yes, cures.test_focal_of_any_labels_is_that_of_retinanet),
    (
        class_weights.class_weights,
        _makes_the_mean_over_labels_1,
        cures.test_balanced_weights_are_scikit_learns_and_their_mean_over_items_is_1,
    ),
    (r_drop.divergence, _diverges_one_way, R_DROP),
    (r_drop.divergence, _holds_one_prediction_fixed, R_DROP),
    (r_drop.RDrop.__call__, _adds_both_losses, R_DROP),
    (neftune.noise, _keys_noise_by_the_place, NOISE),
    (neftune.noise, _scales_noise_by_the_padded_length, NOISE),
    (neftune.noise, _gives_both_copies_one_noise, NOISE),
    (fgm.perturbation, _takes_one_norm_of_the_batch, STEPS),
    (fgm.perturbation, _leaves_the_gradient_as_long_as_it_is, NORMS),
    (fgm.perturbation, _goes_down, STEPS),
    (mixing.mixup, _tells_the_partners_share, MIXED),
    (mixing.mixup, _draws_the_share_evenly, MIXED),
    (mixing.cutmix, _tells_the_share_that_was_drawn, MIXED),
]  # fmt: skip
"""What is computed wrongly, how, and the check that must see it."""
WITH = {"smoothing": 0.1, "gamma": 0.5}


def run(check):
    """Run a check of test_cures, with the fixtures and parameters that it asks for."""
    torch.manual_seed(0)
    given = {"logits": (torch.randn(12, 5) * 3).requires_grad_(), **WITH}
    check(**{name: given[name] for name in check.__code__.co_varnames[: check.__code__.co_argcount]})


def plant(monkeypatch, right, planted):
    """Put a bug wherever what is right is held, and say in how many places."""
    owner, _, name = right.__qualname__.rpartition(".")
    if owner:
        monkeypatch.setattr(getattr(sys.modules[right.__module__], owner), name, planted)
        return 1
    modules = [module for name, module in sys.modules.items() if name.startswith(HOLDERS)]
    held = [(module, name) for module in modules for name, value in vars(module).items() if value is right]
    for module, name in held:
        monkeypatch.setattr(module, name, planted)
    return len(held)


def must_fail(request, monkeypatch, right, bug, check, given):
    """See a check pass and, with a bug planted, fail; what it is not `given` are fixtures."""
    asked = check.__code__.co_varnames[: check.__code__.co_argcount]
    given = {name: given[name] if name in given else request.getfixturevalue(name) for name in asked}
    check(**given)
    assert plant(monkeypatch, right, bug(right)) > 0
    with pytest.raises(AssertionError):
        check(**given)


@pytest.mark.parametrize(("right", "bug", "check"), PLANTED, ids=[bug.__name__ for _, bug, _ in PLANTED])
def test_a_planted_bug_is_caught(right, bug, check, monkeypatch):
    run(check)
    assert plant(monkeypatch, right, bug(right)) > 0
    with pytest.raises(AssertionError):
        run(check)
