"""Planted bugs in rates, frozen parts, averages and ensembles: each, done wrongly, fails the check that it passes."""

from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn

from onecurve.evaluation import best
from onecurve.model import depth, freezing
from onecurve.prediction import ensemble
from onecurve.strategies import rates, snapshot
from onecurve.strategies.average import Average
from onecurve.tasks.token_classification import Task as TokenClassification
from tests.evaluation import test_best
from tests.model import test_depth, test_freezing
from tests.prediction import test_ensemble
from tests.regularization.test_planted import must_fail
from tests.strategies import test_average

# Rates


def _counts_depths_from_the_embeddings(right):
    def find(*arguments):
        found = right(*arguments)
        return replace(found, of={name: found.num_blocks + 1 - number for name, number in found.of.items()})

    return find


def _goes_by_the_order_of_registration(right):
    return lambda model, called, key: right(model, [*model.modules()], key)


def _trains_all_at_one_rate(_):
    def set_rates(optimizer, lr, step):
        for group in optimizer.param_groups:
            group["lr"] = lr

    return set_rates


def _freezes_the_top_blocks(_):
    def lowest(model, number, called, trained):
        depths = depth.find_depths(model, called, "")
        return [name for name in trained if depths.of[name] <= number]

    return lowest


def _freezes_no_more_than_the_gradient(_):
    return lambda parameter: parameter.requires_grad_(False)


def _lets_gradients_of_what_is_closed_into_the_norm(_):
    return lambda self, name, parameter: self.names.add(name)


def _closes_no_rate(right):
    def set_rates(optimizer, lr, step):
        right(optimizer, lr, step)
        for group in optimizer.param_groups:
            group["lr"] = lr

    return set_rates


def _thaws_by_depth_whatever_is_trained(_):
    return lambda self, model: [*range(self.num_blocks + 2)]


# Averages


@contextmanager
def _set(owner, name, value):
    before = getattr(owner, name)
    setattr(owner, name, value)
    yield
    setattr(owner, name, before)


def _moves_by_the_decay(right):
    def move(self, mean):
        share = self.section.model_copy(update={"average_decay": 1 - self.section.average_decay})
        with _set(self, "section", share):
            right(self, mean)

    return move


def _counts_the_mean_as_one_weight_less(right):
    def move(self, mean):
        with _set(self, "count", self.count - 1):
            right(self, mean)

    return move


def _begins_at_zero(right):
    def copies(self):
        return {name: torch.zeros_like(value) for name, value in right(self).items()}

    return copies


def _averages_every_step(right):
    def move(self, step):
        with _set(self, "section", self.section.model_copy(update={"average_every": 1})):
            right(self, step)

    return move


def _keeps_one_more(right):
    def move(self, step):
        more = self.section.model_copy(update={"average_count": self.section.average_count + 1})
        with _set(self, "section", more):
            right(self, step)

    return move


def _halves_the_mean_with_each_weight(_):
    def mean_of_weights(values):
        mean = values[0]
        for value in values[1:]:
            mean = (mean + value) / 2
        return mean

    return mean_of_weights


def _keeps_the_latest_few(right):
    def keep(self, step, value):
        right(self, step, value if self.sign < 0 else step)

    return keep


def _takes_a_lower_score_for_a_worse_one(_):
    return lambda metric, dev: None


# Ensembles


def _matches_labels_by_their_place(right):
    def mean_of(answers, task):
        names = [*answers[0]["probabilities"]]
        told = [
            {**one, "probabilities": dict(zip(names, one["probabilities"].values(), strict=True))} for one in answers
        ]
        return right(told, task)

    return mean_of


def _answers_as_the_first(_):
    return lambda answers, task: answers[0]


def _takes_labels_that_any_names(right):
    def mean_of(answers, task):
        told = right(answers, task)
        return {**told, "label": sorted({name for one in answers for name in one.get("label", ())})}

    return mean_of


def _elects_by_the_last_model(right):
    return lambda self, votes: right(self, votes[-1:])


SHARES = test_depth.test_each_block_has_a_share_of_the_rate_above_it
FROZEN = test_freezing.test_patterns_words_and_blocks_freeze_what_they_name
THAWED = test_freezing.test_what_thaws_is_trained_as_if_it_had_been_switched_on_by_hand
TORCH = test_average.test_it_is_torch_s_own_average_bit_for_bit
LAST = test_average.test_the_last_are_averaged_and_no_more
BEST = test_best.test_the_mean_of_the_best_few_is_exported_and_scored
EMA = {"kind": "ema", "function": get_ema_multi_avg_fn(0.7)}
SWA = {"kind": "swa", "function": get_swa_multi_avg_fn()}
PLANTED: list[tuple[Any, Any, Any, dict[str, Any]]] = [
    (depth.find_depths, _counts_depths_from_the_embeddings, SHARES, {"family": "BERT"}),
    (depth.find_depths, _goes_by_the_order_of_registration, SHARES,
     {"family": "OPT, whose last norm is registered first"}),
    (rates.set_rates, _trains_all_at_one_rate, SHARES, {"family": "BERT"}),
    (freezing._lowest, _freezes_the_top_blocks, FROZEN, {}),
    (freezing.leave_out, _freezes_no_more_than_the_gradient, FROZEN, {}),
    (rates.Gate.hold, _lets_gradients_of_what_is_closed_into_the_norm, THAWED, {}),
    (rates.set_rates, _closes_no_rate, THAWED, {}),
    (depth.Depths.trained, _thaws_by_depth_whatever_is_trained,
     test_freezing.test_what_is_trained_and_highest_is_first_to_train, {}),
    (Average._move_mean, _moves_by_the_decay, TORCH, EMA),
    (Average._copies, _begins_at_zero, TORCH, EMA),
    (Average._move_mean, _counts_the_mean_as_one_weight_less, TORCH, SWA),
    (Average.move, _averages_every_step, TORCH, SWA),
    (Average.move, _keeps_one_more, LAST, {}),
    (snapshot.mean_of_weights, _halves_the_mean_with_each_weight, LAST, {}),
    (best.Best._keep, _keeps_the_latest_few, BEST, {"metric": "bleu", "steps": [2, 4, 5]}),
    (best._of_any_set, _takes_a_lower_score_for_a_worse_one, BEST, {"metric": "loss", "steps": [2, 4, 5]}),
    (ensemble.mean_of, _matches_labels_by_their_place,
     test_ensemble.test_classifiers_answer_with_the_mean_of_their_probabilities, {}),
    (ensemble.mean_of, _answers_as_the_first,
     test_ensemble.test_regressions_answer_with_the_mean_of_their_numbers, {}),
    (ensemble.mean_of, _takes_labels_that_any_names,
     test_ensemble.test_several_labels_are_those_of_which_the_mean_is_above_a_half, {}),
    (TokenClassification.elect, _elects_by_the_last_model,
     test_ensemble.test_a_word_that_one_model_has_not_read_is_tagged_by_the_others, {}),
]  # fmt: skip
"""What is computed wrongly, how, the check that must see it, and what the check is given besides fixtures."""


@pytest.mark.parametrize(("right", "bug", "check", "given"), PLANTED, ids=[bug.__name__ for _, bug, *_ in PLANTED])
def test_a_planted_bug_is_caught(request, monkeypatch, right, bug, check, given):
    must_fail(request, monkeypatch, right, bug, check, given)
