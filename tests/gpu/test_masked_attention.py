"""Gradients of attention under a padding mask, at the lengths and scores where cuDNN's backward pass gave NaN."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from transformers import BertConfig, BertForSequenceClassification

from onecurve.model.attention_kernels import fastest_attention
from tests.gpu.devices import CPU_AND_GPU, apart

LENGTHS = (64, 192, 256, 320)
"""Of 64 modulo 128, and one that is not."""
HALF = torch.bfloat16


def gradients(inputs, mask):
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    scaled_dot_product_attention(*inputs, attn_mask=mask).float().pow(2).sum().backward()
    return [tensor.grad for tensor in inputs]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("device", CPU_AND_GPU)
def test_gradients_are_finite_and_right_where_all_scores_are_low(device, length):
    """Scores of about -200, so each row's log-sum-exp lies far below -88.7: the exponential of that is 0 in float32."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 4, length, 64) for _ in range(3))
    inputs = [tensor.to(device, HALF) for tensor in (1 + query / 10, -(25 + 2 * key), value)]
    mask = torch.ones(2, 1, 1, length, dtype=torch.bool, device=device)
    mask[1, ..., length // 2 :] = False
    with sdpa_kernel(SDPBackend.MATH):
        exact = gradients([tensor.double() for tensor in inputs], mask)
        unmasked = gradients([tensor.double() for tensor in inputs], torch.ones_like(mask))
    with fastest_attention(torch.device(device, 0 if device == "cuda" else None)):
        ours = gradients(inputs, mask)
    assert all(bool(gradient.isfinite().all()) for gradient in ours)
    # Keys that are nearly alike leave little of the gradient of queries, and most of that is bfloat16's rounding
    assert apart(ours[0], exact[0]) < 0.5
    for mine, true, wrong in zip(ours[1:], exact[1:], unmasked[1:], strict=True):
        assert apart(mine, true) < 0.02 < apart(wrong, true)


def of_bert(device, half, wrong=False):
    """Return all gradients of a BERT over texts of uneven length; `wrong`: it attends to padding."""
    sizes = {"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(vocab_size=67, **sizes, **none)).to(device).train()
    with torch.no_grad():
        for layer in model.bert.encoder.layer:
            attention = layer.attention
            for linear in (attention.self.query, attention.self.key, attention.self.value, attention.output.dense):
                linear.weight.mul_(6)  # so that attention matters
    lengths = torch.tensor([[192], [20], [100], [5]], device=device)
    mask = (torch.arange(192, device=device) < lengths).long()
    ids = torch.randint(1, 67, (4, 192), generator=torch.Generator().manual_seed(1)).to(device) * mask
    with fastest_attention(ids.device):
        with torch.autocast(device, HALF, enabled=half):
            logits = model(input_ids=ids, attention_mask=torch.ones_like(mask) if wrong else mask).logits
        logits.float().log_softmax(-1)[:, 1].sum().backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])


@pytest.mark.parametrize("device", CPU_AND_GPU)
def test_a_padded_batch_has_the_gradients_of_float64_to_half_precision(device):
    exact = of_bert("cpu", half=False)
    assert apart(of_bert(device, half=False), exact) < 1e-4
    ours = of_bert(device, half=True)
    assert bool(ours.isfinite().all())
    assert apart(ours, exact) < 2e-2 < apart(of_bert(device, half=False, wrong=True), exact)
