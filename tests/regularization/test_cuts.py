"""A step's gradient under every cure is the same however the step is cut; every cure changes it."""

import copy

import pytest
import torch

from onecurve.data.plan import Step
from onecurve.regularization import fgm, neftune
from onecurve.regularization.criterion import OfOneLabel
from onecurve.regularization.r_drop import RDrop, divergence
from tests.regularization.gradients import gradient, objective_of
from tests.tasks.contract import distance, in_double, prepare, without_dropout
from tests.tasks.test_causal_lm import CASES as TEXTS
from tests.tasks.test_dpo import CASES as PAIRS
from tests.tasks.test_image_classification import CASES as IMAGES
from tests.tasks.test_text_classification import CASES as LABELS
from tests.tasks.test_text_ranking import CASES as LISTS
from tests.tasks.test_token_classification import CASES as TAGS

CASES = {
    "label": ("text_classification", LABELS["single_label"]),
    "labels": ("text_classification", LABELS["multi_label"]),
    "tags": ("token_classification", next(iter(TAGS.values()))),
    "tokens": ("causal_lm", next(iter(TEXTS.values()))),
    "image": ("image_classification", IMAGES["images"]),
    "pair": ("dpo", PAIRS["dpo"]),
    "list": ("text_ranking", next(iter(LISTS.values()))),
}
CURES = [
    ("label", {"label_smoothing": 0.1, "focal_gamma": 2.0, "class_weights": {"no": 3.0}}),
    ("label", {"neftune_alpha": 5.0, "fgm": 1.0}),
    ("image", {"mixup_alpha": 0.4, "cutmix_alpha": 1.0, "label_smoothing": 0.1}),
]
REST = ("labels", "tags", "tokens")
SLOW_CURES = [
    ("tags", {"label_smoothing": 0.1, "focal_gamma": 0.5}),
    ("tokens", {"label_smoothing": 0.1}),
    ("labels", {"focal_gamma": 2.0}),
    ("label", {"fgm": 1.0}),
    ("tokens", {"fgm": 1.0, "label_smoothing": 0.1}),
    ("label", {"neftune_alpha": 5.0}),
    ("image", {"mixup_alpha": 0.4}),
    ("image", {"cutmix_alpha": 1.0}),
    ("pair", {"neftune_alpha": 5.0}),
    ("pair", {"fgm": 1.0}),
    ("list", {"neftune_alpha": 5.0, "fgm": 1.0}),
]


@pytest.fixture(scope="module")
def prepared(request):
    made = {}

    def of(name):
        if name not in made:
            task, case = CASES[name]
            case = type(case)(**{**vars(case), "task": task})
            made[name] = prepare(case, request.getfixturevalue(case.model))
            made[name].model = in_double(made[name].model)
        return copy.copy(made[name])

    return of


def without(case):
    case.model = without_dropout(copy.deepcopy(case.model))
    return case


def check(case, keys, cuts):
    objective = objective_of(case, **keys)
    whole = gradient(case, objective, len(case.examples))
    assert distance(gradient(case, objective_of(case), len(case.examples)), whole) > 1e-3, "the cure does nothing"
    for size, ranks in cuts:
        assert distance(whole, gradient(case, objective, size, ranks)) < 1e-5, (size, ranks)


@pytest.mark.parametrize(("name", "keys"), CURES)
def test_another_cut_has_the_same_gradient(prepared, name, keys):
    check(without(prepared(name)), keys, [(2, 1), (1, 2)])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "keys"), CURES + SLOW_CURES)
def test_any_other_cut_too(prepared, name, keys):
    check(without(prepared(name)), keys, [(1, 1), (2, 2), (1, 3)])


@pytest.mark.parametrize(
    "name", ["label", *(pytest.param(n, marks=pytest.mark.slow) for n in ("labels", "tags", "tokens"))]
)
def test_r_drop_under_another_number_of_ranks_has_the_same_gradient(prepared, name):
    """Its masks, like all dropout, are keyed by the micro-batch."""
    case = prepared(name)
    objective = objective_of(case, r_drop=2.0)
    one = gradient(case, objective, 1)
    assert distance(gradient(case, objective_of(case), 1), one) > 1e-3
    assert distance(one, gradient(case, objective, 1, 2)) < 1e-5


def test_r_drop_without_dropout_is_the_loss_itself(prepared):
    case = without(prepared("label"))
    assert distance(gradient(case, objective_of(case), 2), gradient(case, objective_of(case, r_drop=2.0), 2)) < 1e-6


def caught(case, cure, monkeypatch, where, name, planted):
    objective = objective_of(case, **cure)
    monkeypatch.setattr(where, name, planted)
    return distance(gradient(case, objective, len(case.examples)), gradient(case, objective, 1)) > 1e-3


def test_a_norm_over_the_micro_batch_is_caught(prepared, monkeypatch):
    def of_all(gradient, epsilon):
        return gradient / gradient.norm().clamp_min(1e-12) * epsilon

    assert caught(without(prepared("label")), {"fgm": 1.0}, monkeypatch, fgm, "perturbation", of_all)


def test_noise_that_is_scaled_by_the_padded_length_is_caught(prepared, monkeypatch):
    def padded(embedded, mask, keys, alpha):
        drawn = right(embedded, mask, keys, alpha)
        return drawn * (mask.sum(1) / mask.shape[1])[:, None, None] ** 0.5

    right = neftune.noise
    assert caught(without(prepared("label")), {"neftune_alpha": 5.0}, monkeypatch, neftune, "noise", padded)


def test_noise_from_the_global_stream_is_caught(prepared, monkeypatch):
    def unkeyed(embedded, *_):
        return torch.rand_like(embedded)

    assert caught(without(prepared("label")), {"neftune_alpha": 5.0}, monkeypatch, neftune, "noise", unkeyed)


def test_noise_keyed_by_the_place_in_the_micro_batch_is_caught(prepared, monkeypatch):
    def by_place(embedded, mask, keys, alpha):
        return right(embedded, mask, range(len(keys)), alpha)

    right = neftune.noise
    assert caught(without(prepared("label")), {"neftune_alpha": 5.0}, monkeypatch, neftune, "noise", by_place)


def test_a_divisor_of_the_micro_batchs_weights_is_caught(prepared, monkeypatch):
    def divided(self, logits, targets):
        return right(self, logits, targets) * len(targets) / torch.tensor(self.weights)[targets].sum()

    right = OfOneLabel.__call__
    cure = {"class_weights": {"no": 3.0}}
    assert caught(without(prepared("label")), cure, monkeypatch, OfOneLabel, "__call__", divided)


def test_one_dropout_mask_for_both_predictions_is_caught(prepared, monkeypatch):
    def once(self, one):
        logits, targets = self.task.classified(one.forward(one.batch), one.batch)
        loss = self.criterion(torch.cat([logits, logits]), torch.cat([targets, targets])) / 2
        return loss + self.alpha * divergence(logits, logits, independent=False) / 2

    monkeypatch.setattr(RDrop, "__call__", once)
    with pytest.raises(AssertionError):
        test_r_drop_under_another_number_of_ranks_has_the_same_gradient(prepared, "label")


def test_partners_from_the_micro_batch_are_caught(prepared, monkeypatch):
    case = without(prepared("image"))

    def rolled(step, position):
        return step.at(position)[0][::-1].copy(), step.passes_at(position)

    cure = {"mixup_alpha": 0.4}
    assert caught(case, cure, monkeypatch, Step, "partners", rolled)
