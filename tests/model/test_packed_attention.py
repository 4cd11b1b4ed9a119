"""What attention of packed rows is computed in, and when torch's variable-length kernel may compute it."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM

from onecurve.model import packed_attention
from onecurve.model.packed_attention import NAME, _has_kernel, _Kernel, _kernel
from onecurve.model.packing import Packing
from tests.varlen_kernel import document_by_document

HALF, FULL = torch.bfloat16, torch.float32
KERNEL = _Kernel(None, groups_heads=True)


@pytest.fixture
def llama(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A packed Llama with grouped heads, and the dtypes that its attention is given: of queries, keys and values."""
    given: list[tuple[torch.dtype, ...]] = []

    def attend(module: Any, query: Any, key: Any, value: Any, *rest: Any, **told: Any) -> Any:
        given.append((query.dtype, key.dtype, value.dtype))
        return packed_attention.attend(module, query, key, value, *rest, **told)

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=61, num_key_value_heads=2, **sizes))
    monkeypatch.setitem(AttentionInterface._global_mapping, NAME, attend)
    Packing(model)
    return model, given


def run(model: Any) -> torch.Tensor:
    ids = torch.randint(5, 61, (3, 7), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(7) < torch.tensor([[7], [2], [5]])).long()
    model.zero_grad()
    with torch.autocast("cpu", HALF):
        logits = model(input_ids=ids, attention_mask=mask).logits
    logits.float().pow(2).sum().backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def test_under_autocast_all_three_attend_in_its_dtype(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, given = llama
    passed: list[set[torch.dtype]] = []
    has_kernel = packed_attention._has_kernel

    def asked(query: Any, value: Any, dropout: float, kernel: Any) -> bool:
        passed.append({query.dtype, value.dtype})
        return has_kernel(query, value, dropout, kernel)

    monkeypatch.setattr(packed_attention, "_has_kernel", asked)
    run(model)
    assert given == [(FULL, FULL, HALF)] * 2  # as rotary embeddings leave them
    assert passed == [{HALF}] * 2


def test_the_kernel_gets_one_dtype_and_draws_the_same_gradients(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = llama
    one_by_one = run(model)
    calls: list[torch.dtype] = []

    def kernel(query: Any, *rest: Any, **told: Any) -> Any:
        calls.append(query.dtype)
        return document_by_document(query, *rest, **told)

    monkeypatch.setattr(packed_attention, "_kernel", lambda: _Kernel(kernel, groups_heads=True))
    monkeypatch.setattr(packed_attention, "_has_kernel", lambda *_: True)
    at_once = run(model)
    assert calls == [HALF] * 2
    assert float((at_once - one_by_one).norm() / one_by_one.norm()) < 5e-3


@pytest.mark.parametrize(
    ("takes_it", "changed"),
    [
        (True, {}),
        (True, {"head": 72}),
        (True, {"head": 256}),
        (False, {"head": 20}),  # no multiple of 8
        (False, {"head": 264}),
        (False, {"values": 128}),
        (False, {"dtype": FULL}),
        (False, {"value_dtype": FULL}),
        (False, {"dropout": 0.1}),
        (False, {"capability": (7, 5)}),
        (False, {"is_cuda": False}),
        (False, {"kernel": None}),
    ],
)
def test_the_kernel_is_asked_only_for_what_it_takes(
    takes_it: bool, changed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"head": 64, "dtype": HALF, "dropout": 0.0, "capability": (9, 0), "is_cuda": True, "kernel": KERNEL}
    asked |= changed
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: asked["capability"])
    query: Any = SimpleNamespace(
        is_cuda=asked["is_cuda"], dtype=asked["dtype"], device="cuda", shape=(1, 8, 30, asked["head"])
    )
    value: Any = SimpleNamespace(
        dtype=asked.get("value_dtype", asked["dtype"]), shape=(1, 2, 30, asked.get("values", asked["head"]))
    )
    assert _has_kernel(query, value, asked["dropout"], asked["kernel"]) is takes_it


def of_torch_2_10(
    query: Any, key: Any, value: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: int, max_k: int,
    is_causal: bool = False, return_aux: Any = None,
) -> None: ...  # fmt: skip


def without_groups(
    query: Any, key: Any, value: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: int, max_k: int,
    *, return_aux: Any = None, scale: float | None = None, window_size: tuple[int, int] = (-1, -1),
) -> None: ...  # fmt: skip


def with_groups(
    query: Any, key: Any, value: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: int, max_k: int,
    *, return_aux: Any = None, scale: float | None = None, window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> None: ...  # fmt: skip


@pytest.mark.parametrize(
    ("version", "found"),
    [
        (of_torch_2_10, None),
        (without_groups, _Kernel(without_groups, groups_heads=False)),
        (with_groups, _Kernel(with_groups, groups_heads=True)),
    ],
)
def test_what_a_version_of_torch_offers_is_read_from_its_signature(
    version: Any, found: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    varlen = pytest.importorskip("torch.nn.attention.varlen", reason="torch has none before 2.10")
    monkeypatch.setattr(varlen, "varlen_attn", version)
    _kernel.cache_clear()
    try:
        assert _kernel() == found
    finally:
        _kernel.cache_clear()
