import pytest
import torch
from torch.nn import functional

from onecurve import token_loss
from onecurve.token_loss import cross_entropy_sum


@pytest.fixture(params=[1, 100, 1 << 18], ids=["row by row", "a few chunks", "at once"])
def _chunks(request, monkeypatch):
    monkeypatch.setitem(token_loss._CHUNK_ELEMENTS, "cpu", request.param)


def logits_and_targets(dtype=torch.float32, scale=1.0):
    torch.manual_seed(0)
    logits = (torch.randn(23, 31) * scale).to(dtype).requires_grad_()
    return logits, torch.randint(31, (23,))


@pytest.mark.usefixtures("_chunks")
@pytest.mark.parametrize("scale", [1.0, 200.0])
def test_loss_and_gradient_are_those_of_pytorch(scale):
    logits, targets = logits_and_targets(scale=scale)
    (cross_entropy_sum(logits, targets) * 0.5).backward()
    ours, logits.grad = logits.grad, None
    theirs = functional.cross_entropy(logits, targets, reduction="sum")
    (theirs * 0.5).backward()
    assert torch.allclose(ours, logits.grad, atol=1e-7)
    assert float(cross_entropy_sum(logits, targets)) == pytest.approx(float(theirs), rel=1e-6)
    assert float(ours.abs().max()) > 0.1


@pytest.mark.usefixtures("_chunks")
def test_half_precision_is_summed_in_float32():
    logits, targets = logits_and_targets(torch.bfloat16)
    loss = cross_entropy_sum(logits, targets)
    loss.backward()
    assert loss.dtype == torch.float32 and logits.grad.dtype == torch.bfloat16
    exact = functional.cross_entropy(logits.detach().double(), targets, reduction="sum")
    assert float(loss) == pytest.approx(float(exact), rel=1e-6)


def test_logits_are_left_as_they_were():
    logits, targets = logits_and_targets()
    before = logits.detach().clone()
    cross_entropy_sum(logits, targets).backward()
    assert torch.equal(logits, before)


def test_a_second_backward_pass_is_refused_not_wrong():
    loss = cross_entropy_sum(*logits_and_targets())
    (loss * 2).backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="inplace"):
        (loss * 2).backward()
