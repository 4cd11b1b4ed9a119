"""Each cure computes what its paper says, by an independent computation."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import nn
from torch.nn import functional

from onecurve.content.mixing import Mixing, cutmix, mixed, mixup
from onecurve.data.mixture import Mixture
from onecurve.data.plan import BatchPlan
from onecurve.errors import ConfigError, TrainingError
from onecurve.losses.cross_entropy import cross_entropy_sum, linear_cross_entropy_sum
from onecurve.regularization.base import Pass
from onecurve.regularization.class_weights import class_weights
from onecurve.regularization.criterion import OfAnyLabels, OfOneLabel
from onecurve.regularization.embeddings import changed_embeddings, input_embedding
from onecurve.regularization.fgm import Fgm, perturbation
from onecurve.regularization.neftune import noise
from onecurve.regularization.r_drop import RDrop, divergence


@pytest.fixture
def logits():
    torch.manual_seed(0)
    return (torch.randn(12, 5) * 3).requires_grad_()


TARGETS = torch.arange(12) % 5


def gradient_of(loss, tensor):
    return torch.autograd.grad(loss, tensor)[0]


def test_smoothed_and_weighted_it_is_pytorchs_cross_entropy(logits):
    weights, shares = [0.5, 2.0, 1.0, 0.1, 3.0], torch.rand(12, 5).softmax(1)
    for targets in (TARGETS, shares):
        for smoothing in (0.0, 0.1, 0.5):
            for some in ([], weights):
                ours = OfOneLabel(smoothing, 0.0, some)(logits, targets)
                weight = torch.tensor(some) if some else None
                theirs = functional.cross_entropy(logits, targets, weight, label_smoothing=smoothing, reduction="sum")
                assert float(ours) == pytest.approx(float(theirs), rel=1e-5)
                assert torch.allclose(gradient_of(ours, logits), gradient_of(theirs, logits), atol=1e-5)


def test_focal_is_the_paper_s_equation_4(logits):
    for gamma in (0.5, 2.0, 5.0):
        p = logits.softmax(1).gather(1, TARGETS[:, None])
        ours, theirs = OfOneLabel(0.0, gamma)(logits, TARGETS), ((1 - p) ** gamma * -p.log()).sum()
        assert float(ours) == pytest.approx(float(theirs), rel=1e-5)
        assert torch.allclose(gradient_of(ours, logits), gradient_of(theirs, logits), atol=1e-5)


def test_focal_of_any_labels_is_that_of_retinanet(logits):
    targets = torch.rand(12, 5).round()
    p = logits.sigmoid()
    p_t = p * targets + (1 - p) * (1 - targets)
    theirs = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none") * (1 - p_t) ** 2
    ours = OfAnyLabels(2.0)(logits, targets)
    assert float(ours) == pytest.approx(float(theirs.sum()), rel=1e-5)
    assert torch.allclose(gradient_of(ours, logits), gradient_of(theirs.sum(), logits), atol=1e-5)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_focal_has_a_gradient_where_the_model_is_certain(gamma):
    for criterion, targets in (
        (OfOneLabel(0.0, gamma), torch.tensor([0])),
        (OfAnyLabels(gamma), torch.tensor([[1.0, 0]])),
    ):
        certain = torch.tensor([[200.0, -200.0]], requires_grad=True)
        assert gradient_of(criterion(certain, targets), certain).isfinite().all()


@pytest.mark.parametrize("smoothing", [0.1, 0.6])
def test_a_large_vocabulary_is_smoothed_as_pytorch_does(logits, smoothing):
    theirs = functional.cross_entropy(logits, TARGETS, label_smoothing=smoothing, reduction="sum")
    ours = cross_entropy_sum(logits, TARGETS, smoothing)
    assert float(ours) == pytest.approx(float(theirs), rel=1e-5)
    assert torch.allclose(gradient_of(ours, logits), gradient_of(theirs, logits), atol=1e-6)
    hidden, weight = torch.randn(12, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    theirs = functional.cross_entropy(hidden @ weight.T, TARGETS, label_smoothing=smoothing, reduction="sum")
    ours = linear_cross_entropy_sum(hidden, weight, TARGETS, smoothing)
    assert float(ours) == pytest.approx(float(theirs), rel=1e-5)
    for one, other in zip(*(torch.autograd.grad(loss, (hidden, weight)) for loss in (ours, theirs)), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_balanced_weights_are_scikit_learns_and_their_mean_over_items_is_1():
    counts = np.array([8, 1, 3])
    items = np.repeat(np.arange(3), counts)
    theirs = compute_class_weight("balanced", classes=np.arange(3), y=items)
    ours = class_weights("balanced", ["a", "b", "c"], counts)
    assert ours == pytest.approx(theirs)
    mapped = class_weights({"b": 5, "c": 0.5}, ["a", "b", "c"], counts)
    assert mapped[1] / mapped[0] == pytest.approx(5) and mapped[2] / mapped[0] == pytest.approx(0.5)
    for weights in (ours, mapped):
        assert np.array(weights)[items].mean() == pytest.approx(1)


def test_a_label_that_no_item_has_weighs_1_and_labels_may_be_numbers():
    assert class_weights("balanced", ["0", "1", "2"], np.array([2, 2, 0])) == [1, 1, 1]
    assert class_weights({1: 3}, ["0", "1"], np.array([1, 1])) == [0.5, 1.5]


@pytest.mark.parametrize(
    ("asked", "said"),
    [({"spam": 2}, "class_weights: no label 'spam'.*Known|Did you mean"), ({"a": 0, "b": 0}, "are 0")],
)
def test_weights_that_cannot_be_are_refused(asked, said):
    with pytest.raises(ConfigError, match=said):
        class_weights(asked, ["a", "b"], np.array([3, 4]))


def kl(p, q):
    return functional.kl_div(q.log(), p, reduction="sum")


def test_r_drop_is_the_mean_of_two_losses_and_half_of_both_divergences(logits):
    batch = {"labels": TARGETS[:6]}
    doubled = []

    def forward(given):
        doubled.append(given["labels"])
        return logits

    task = SimpleNamespace(classes="label", classified=lambda outputs, given: (outputs, given["labels"]))
    loss = RDrop(task, OfOneLabel(), 3.0)(Pass(nn.Module(), forward, batch, []))
    first, second = logits[:6], logits[6:]
    p, q = first.softmax(1), second.softmax(1)
    expected = sum(functional.cross_entropy(one, TARGETS[:6], reduction="sum") for one in (first, second)) / 2
    expected = expected + 3.0 * (kl(p, q) + kl(q, p)) / 2
    assert torch.equal(doubled[0], torch.cat([TARGETS[:6]] * 2))
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    assert torch.allclose(gradient_of(loss, logits), gradient_of(expected, logits), atol=1e-5)


def test_independent_labels_diverge_each_for_itself(logits):
    first, second = logits.detach().chunk(2)
    both = [torch.stack([one.sigmoid(), 1 - one.sigmoid()]) for one in (first, second)]
    assert float(divergence(first, second, independent=True)) == pytest.approx(
        float(kl(both[0], both[1]) + kl(both[1], both[0])), rel=1e-4
    )


def test_noise_depends_on_the_example_alone_and_is_as_strong_as_the_paper_says():
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1]])
    whole = noise(torch.zeros(3, 6, 64), mask, [7, 8, 9], 5.0)
    alone = noise(torch.zeros(1, 2, 64), mask[:1, :2], [8], 5.0)
    assert torch.equal(whole[1, :2], alone[0]) and not whole[1, 2:].any()
    assert not whole[2, :3].any() and whole[2, 3:].all(), "padding on the left"
    for row, length in enumerate((6, 2, 3)):
        largest = float(whole[row].abs().max())
        assert 0.9 * 5 / (length * 64) ** 0.5 < largest <= 5 / (length * 64) ** 0.5
    twice = noise(torch.zeros(6, 6, 64), mask, [7, 8, 9], 5.0)
    assert torch.equal(twice[:3], whole) and not torch.equal(twice[3:], whole)


def test_a_perturbation_has_the_length_asked_for_and_none_where_there_is_no_gradient():
    gradient = torch.randn(4, 3, 2) * torch.tensor([1e-20, 1.0, 0.0, 1.0])[:, None, None]
    gradient[3, 0, 0] = torch.inf
    norms = perturbation(gradient, 0.7).flatten(1).norm(dim=1)
    assert norms.tolist() == pytest.approx([0.7, 0.7, 0, 0], rel=1e-5)


class Bag(nn.Module):
    """Reads embeddings without any order."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head = nn.Embedding(9, 4), nn.Linear(4, 3)
        self.config = SimpleNamespace(is_encoder_decoder=False)

    def get_input_embeddings(self):
        return self.table

    def of(self, embedded):
        return self.head(embedded.tanh().sum(1))


def test_fgm_steps_along_each_examples_own_gradient():
    model, ids, labels = Bag(), torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([0, 2])

    def loss_of(embedded, wanted):
        return functional.cross_entropy(model.of(embedded), wanted, reduction="sum")

    cure = Fgm(lambda one: loss_of(model.table(ids), labels), 0.5)
    for sweep in (0, 1):
        (cure(Pass(model, lambda _: None, {}, [], sweep)) * 64).backward()
    ours = [p.grad / 64 for p in model.parameters()]
    expected = [torch.zeros_like(p) for p in model.parameters()]
    for row in range(2):
        clean = model.table(ids[row : row + 1])
        step = gradient_of(loss_of(clean, labels[row : row + 1]), clean)
        again = model.table(ids[row : row + 1]) + 0.5 * step / step.norm()
        both = loss_of(model.table(ids[row : row + 1]), labels[row : row + 1]) + loss_of(again, labels[row : row + 1])
        for total, part in zip(expected, torch.autograd.grad(both, [*model.parameters()]), strict=True):
            total += part
    for one, other in zip(ours, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_an_embedding_that_is_not_called_is_told():
    model = Bag()
    with pytest.raises(TrainingError, match="did not call Embedding"), changed_embeddings(model, lambda e: e):
        model.of(torch.zeros(1, 2, 4))


def test_a_mixed_image_has_the_share_that_is_told():
    image, partner = np.zeros((3, 16, 20), np.float32), np.ones((3, 16, 20), np.float32)
    drawn = set()
    for seed in range(40):
        rng = np.random.default_rng(seed)
        for mix in (mixup, cutmix):
            seen, share = mix(image, partner, 0.8, rng)
            assert seen.mean() == pytest.approx(1 - share, abs=1e-6) and seen.dtype == np.float32
            assert not image.any()
        seen, _ = mixed(image, partner, Mixing(0.8, 0.8), rng)
        drawn.add(set(np.unique(seen)) <= {0, 1})
    assert drawn == {True, False}, "each of the two is drawn"
    rng = np.random.default_rng(0)
    shares = [mixup(image, partner, 0.2, rng)[1] for _ in range(2000)]
    assert np.var(shares) == pytest.approx(1 / (4 * (2 * 0.2 + 1)), rel=0.1), "of Beta(0.2, 0.2)"


def test_every_example_of_a_step_is_the_partner_of_one():
    plan = BatchPlan(np.ones(50, np.int64), 1, 20, 4, max_steps=4)
    for step in plan.steps(1, 4):
        partners = np.concatenate([step.partners(position)[0] for position in range(len(step.micro_batches))])
        assert sorted(partners) == sorted(step.sample_ids)
        assert partners.tolist() != step.sample_ids.tolist()
        whole = replace(step, micro_batches=[step.sample_ids])
        assert np.array_equal(whole.partners(0)[0], partners), "whatever the cut"


def test_partners_in_a_mixture_are_draws_of_it_with_the_pass_that_each_is_of():
    mixture = Mixture({"few": 3, "many": 40}, {"few": 1, "many": 1})
    step = BatchPlan(np.ones(43, np.int64), 1, 16, 4, max_steps=4, mixture=mixture).step(2)
    places = range(len(step.micro_batches))
    drawn = [pair for place in places for pair in zip(step.at(place)[0], step.passes_at(place), strict=True)]
    partners = [pair for place in places for pair in zip(*step.partners(place), strict=True)]
    assert len({of_pass for _, of_pass in drawn}) > 1, "one source is gone through several times in this step"
    assert sorted(partners) == sorted(drawn) and partners != drawn


def test_an_encoder_decoders_input_embedding_is_its_encoders(tiny_t5):
    from transformers import AutoModelForSeq2SeqLM, BartConfig, BartForConditionalGeneration

    bart = BartForConditionalGeneration(
        BartConfig(vocab_size=99, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
                   decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16)
    )  # fmt: skip
    for model in (AutoModelForSeq2SeqLM.from_pretrained(tiny_t5), bart):
        model.eval()
        seen = []
        ids = {"input_ids": torch.tensor([[5, 6, 7]]), "decoder_input_ids": torch.tensor([[1, 2]])}
        plain = model(**ids).logits
        with changed_embeddings(model, lambda embedded, seen=seen: seen.append(embedded.shape[1]) or embedded.flip(-1)):
            changed = model(**ids).logits
        assert seen == [3] and not torch.equal(plain, changed)
        assert isinstance(input_embedding(model), nn.Embedding)
