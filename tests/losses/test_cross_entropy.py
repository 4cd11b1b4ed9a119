import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from onecurve.losses import cross_entropy as token_loss
from onecurve.losses.cross_entropy import cross_entropy_sum, linear_cross_entropy_sum


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


def hidden_weight_targets(dtype=torch.float32, rows=23, size=13, vocabulary=31, trained=True):
    torch.manual_seed(0)
    hidden = torch.randn(rows, size, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocabulary, size, dtype=dtype).requires_grad_(trained)
    return hidden, weight, torch.randint(vocabulary, (rows,))


@pytest.fixture(params=[1, 100, 1 << 24], ids=["row by row", "a few chunks", "at once"])
def _chunks_of_all(request, monkeypatch):
    monkeypatch.setitem(token_loss._CHUNK_OF_ALL, "cpu", request.param)


@pytest.mark.usefixtures("_chunks_of_all")
@pytest.mark.parametrize("trained", [True, False], ids=["full", "frozen"])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_without_all_logits_loss_and_gradients_are_those_of_pytorch(dtype, close, trained):
    hidden, weight, targets = hidden_weight_targets(dtype, trained=trained)
    loss = linear_cross_entropy_sum(hidden, weight, targets)
    (loss * 0.5).backward()
    ours = [loss.detach(), hidden.grad, weight.grad]
    hidden.grad = weight.grad = None
    loss = functional.cross_entropy(functional.linear(hidden, weight), targets, reduction="sum")
    (loss * 0.5).backward()
    theirs = [loss.detach(), hidden.grad, weight.grad]
    assert (ours[2] is None) == (theirs[2] is None) == (not trained)
    for one, other in zip(ours, theirs, strict=True):
        if other is not None:
            assert one.dtype == other.dtype == dtype
            assert torch.allclose(one, other, rtol=close, atol=close)
    assert float(ours[1].abs().max()) > 0.1


@pytest.mark.usefixtures("_chunks_of_all")
def test_without_all_logits_autocast_multiplies_in_half_precision_and_sums_in_float32():
    hidden, weight, targets = hidden_weight_targets()
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy_sum(hidden, weight, targets)
        logits = functional.linear(hidden, weight)
    loss.backward()
    assert loss.dtype == hidden.grad.dtype == weight.grad.dtype == torch.float32 and logits.dtype == torch.bfloat16
    exact = functional.cross_entropy(logits.double(), targets, reduction="sum")
    assert float(loss) == pytest.approx(float(exact), rel=1e-5)
    rounded = [hidden.grad, weight.grad]
    hidden.grad = weight.grad = None
    functional.cross_entropy(functional.linear(hidden, weight), targets, reduction="sum").backward()
    for ours, full in zip(rounded, (hidden.grad, weight.grad), strict=True):
        assert 0 < float((ours - full).norm() / full.norm()) < 0.02


class Computed(TorchDispatchMode):
    """The operators that ran, and the most elements that any returned."""

    def __init__(self):
        super().__init__()
        self.names, self.most = [], 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        self.names.append(operator._schema.name)
        self.most = max(self.most, result.numel() if isinstance(result, torch.Tensor) else 0)
        return result


def test_all_logits_are_never_there(monkeypatch):
    monkeypatch.setitem(token_loss._CHUNK_OF_ALL, "cpu", 5 * 1009)
    hidden, weight, targets = hidden_weight_targets(rows=64, size=4, vocabulary=1009)
    with Computed() as computed:
        linear_cross_entropy_sum(hidden, weight, targets).backward()
    assert computed.most == 5 * 1009
    with Computed() as computed:
        cross_entropy_sum(functional.linear(hidden, weight), targets).backward()
    assert computed.most == 64 * 1009


def test_a_second_backward_pass_without_logits_is_refused_not_wrong():
    loss = linear_cross_entropy_sum(*hidden_weight_targets())
    (loss * 2).backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="inplace"):
        (loss * 2).backward()


def test_without_gradients_none_are_made():
    computed = Computed()
    with torch.no_grad(), computed:
        loss = linear_cross_entropy_sum(*hidden_weight_targets())
    assert not loss.requires_grad
    assert computed.names.count("aten::mm") == 1
