"""Packed rows: torch's variable-length kernel on a GPU, and in its place on a CPU a stand-in without a kernel."""

from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from onecurve.model import packed_attention
from onecurve.model.attention_kernels import fastest_attention
from onecurve.model.packed_attention import Documents, _Kernel, attend
from onecurve.model.packing import Packing
from tests.gpu.devices import CPU_AND_GPU, apart
from tests.varlen_kernel import document_by_document

SIZES = {"cuda": [37, 1, 300, 128], "cpu": [7, 1, 20, 8]}
HALF = torch.bfloat16
TOLERANCE = 1e-2
"""Of gradients in bfloat16, whose rounding comes to 2e-3 to 6e-3 here."""


def attended(device, dtype, heads, is_causal, dropout=0.0, sizes=None):
    torch.manual_seed(0)
    total = sum(SIZES[device])
    inputs = [torch.randn(1, n, total, 64).to(device, dtype).requires_grad_() for n in (8, heads, heads)]
    sizes = sizes or SIZES[device]
    documents = Documents(sizes, torch.tensor([0, *sizes], device=device).cumsum(0).int())
    output = attend(SimpleNamespace(is_causal=is_causal), *inputs, None, dropout=dropout, documents=documents)[0]
    output.float().pow(2).sum().backward()
    return [output.detach().float(), *(tensor.grad.float() for tensor in inputs)]


@pytest.fixture
def count(monkeypatch):
    """Count the calls of the kernel, which on a CPU is the stand-in; ask it to group heads or not."""

    def counted(device, groups_natively=True):
        kernel = packed_attention._kernel() if device == "cuda" else _Kernel(document_by_document, True)
        if kernel is None:
            pytest.skip("this torch has no variable-length attention of use")
        if groups_natively and not kernel.groups_heads:
            pytest.skip("this torch repeats keys and values")
        calls = []
        watched = _Kernel(lambda *a, **k: calls.append(1) or kernel.call(*a, **k), groups_natively)
        monkeypatch.setattr(packed_attention, "_kernel", lambda: watched)
        if device == "cpu":
            monkeypatch.setattr(packed_attention, "_has_kernel", lambda query, *_: query.dtype == HALF)
        return calls

    return counted


@pytest.mark.parametrize("groups_natively", [True, False])
@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("heads", [8, 2])
@pytest.mark.parametrize("device", CPU_AND_GPU)
def test_the_kernel_computes_what_each_document_alone_does(device, heads, is_causal, groups_natively, count):
    calls = count(device, groups_natively)
    at_once = attended(device, HALF, heads, is_causal)
    assert calls == [1]
    one_by_one = attended(device, torch.float32, heads, is_causal)
    assert calls == [1]
    for ours, exact in zip(at_once, one_by_one, strict=True):
        assert apart(ours, exact) < TOLERANCE


@pytest.mark.parametrize("device", CPU_AND_GPU)
def test_a_boundary_that_is_off_by_one_token_would_show(device, count):
    count(device)
    first, second, *rest = SIZES[device]
    off = attended(device, HALF, 2, True, sizes=[first - 1, second + 1, *rest])
    causal, two_sided = (attended(device, torch.float32, 2, is_causal) for is_causal in (True, False))
    for wrong in (off, two_sided):
        assert max(apart(ours, exact) for ours, exact in zip(wrong, causal, strict=True)) > 5 * TOLERANCE


@pytest.mark.parametrize("device", CPU_AND_GPU)
def test_dropout_takes_the_documents_one_by_one_and_keeps_them_apart(device, monkeypatch):
    monkeypatch.setattr(packed_attention, "_at_once", None)
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, 9, 8).to(device, HALF) for _ in range(3))
    value[:, :, 2:] = 0  # so that nothing may reach the second document
    documents = Documents([2, 7], torch.tensor([0, 2, 9], dtype=torch.int32, device=device))
    draws = [
        attend(SimpleNamespace(is_causal=False), query, key, value, None, dropout=0.5, documents=documents)[0]
        for _ in range(2)
    ]
    assert not torch.equal(*draws)
    assert all(bool((draw[:, 2:] == 0).all()) and bool(draw[:, :2].any()) for draw in draws)


def gradients(device, packed, half, wrong=False):
    """Return all gradients of a Llama whose weights are float32, in one vector; `wrong`: padding is attended to."""
    sizes = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=67, num_key_value_heads=2, **sizes))
    with torch.no_grad():
        for layer in model.model.layers:  # so that attention matters
            layer.self_attn.q_proj.weight.mul_(6)
            layer.self_attn.o_proj.weight.mul_(6)
    model = model.to(device).train()
    if packed:
        Packing(model)
    lengths = torch.tensor(SIZES[device], device=device)[:, None]
    ids = torch.randint(67, (4, int(lengths.max())), generator=torch.Generator().manual_seed(1)).to(device)
    mask = (torch.arange(ids.shape[1], device=device) < lengths).flip(1)  # on the left, where a causal mask hides none
    with fastest_attention(ids.device):
        with torch.autocast(device, HALF, enabled=half):
            given = torch.ones_like(mask) if wrong else mask
            positions = (mask.long().cumsum(1) - 1).clamp_min(0)
            logits = model(input_ids=ids, attention_mask=given.long(), position_ids=positions, use_cache=False).logits
        (logits.float()[mask].log_softmax(-1)[:, 3].sum() / mask.sum()).backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("device", CPU_AND_GPU)
def test_under_autocast_packed_gradients_are_as_exact_as_padded_ones(device, count):
    exact, of_padded = gradients(device, packed=False, half=False), gradients(device, packed=False, half=True)
    assert apart(gradients(device, packed=True, half=False), exact) < 1e-5
    calls = count(device)
    ours = apart(gradients(device, packed=True, half=True), exact)
    assert len(calls) == 3, "the kernel is to be reached with float32 weights"
    rounding = apart(of_padded, exact)
    assert ours < 1.5 * rounding + 1e-3
    assert apart(gradients(device, packed=False, half=True, wrong=True), exact) > 4 * rounding, "a wrong mask must show"
