from types import SimpleNamespace

import pytest
import torch

from onecurve.model import packed_attention
from onecurve.model.packed_attention import Documents, attend

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SIZES = [37, 1, 300, 128]


def attended(dtype, heads, is_causal, dropout=0.0):
    torch.manual_seed(0)
    total = sum(SIZES)
    inputs = [torch.randn(1, n, total, 64, device="cuda").to(dtype).requires_grad_() for n in (8, heads, heads)]
    boundaries = torch.tensor([0, *SIZES], device="cuda").cumsum(0).int()
    module = SimpleNamespace(is_causal=is_causal)
    output = attend(module, *inputs, None, dropout=dropout, documents=Documents(SIZES, boundaries))[0]
    output.float().pow(2).sum().backward()
    return [output.detach().float(), *(tensor.grad.float() for tensor in inputs)]


@pytest.mark.parametrize("groups_natively", [True, False])
@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("heads", [8, 2])
def test_the_kernel_computes_what_each_document_alone_does(heads, is_causal, groups_natively, monkeypatch):
    kernel, can_group = packed_attention._kernel()
    if kernel is None:
        pytest.skip("torch has no variable-length attention before 2.10")
    if groups_natively and not can_group:
        pytest.skip("this torch repeats keys and values")
    calls = []
    counted = (lambda *a, **k: calls.append(1) or kernel(*a, **k)), groups_natively
    monkeypatch.setattr(packed_attention, "_kernel", lambda: counted)
    at_once = attended(torch.bfloat16, heads, is_causal)
    assert calls == [1]
    one_by_one = attended(torch.float32, heads, is_causal)
    assert calls == [1]
    for ours, exact in zip(at_once, one_by_one, strict=True):
        assert float((ours - exact).norm() / exact.norm()) < 0.02


def test_dropout_takes_the_documents_one_by_one(monkeypatch):
    monkeypatch.setattr(packed_attention, "_at_once", None)
    assert all(tensor.isfinite().all() for tensor in attended(torch.bfloat16, 2, True, dropout=0.1))
