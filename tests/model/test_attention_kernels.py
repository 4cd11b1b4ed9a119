import pytest
import torch
from torch.nn.attention import SDPBackend

from onecurve.model.attention_kernels import fastest_attention


def order():
    return [SDPBackend(number) for number in torch._C._get_sdp_priority_order()]


@pytest.mark.parametrize(("capability", "first"), [((9, 0), True), ((8, 0), False), ((10, 0), False)])
def test_cudnn_comes_first_on_hopper_alone(monkeypatch, capability, first):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    before = order()
    assert before[0] != SDPBackend.CUDNN_ATTENTION
    with fastest_attention(torch.device("cuda", 0)):
        assert (order()[0] == SDPBackend.CUDNN_ATTENTION) == first
        assert set(order()) == set(before)
    assert order() == before


def test_a_cpu_is_asked_nothing(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", None)
    with fastest_attention(torch.device("cpu")):
        pass
