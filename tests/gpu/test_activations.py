import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from onecurve.model.activations import keep_activations

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SIZES = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 8}


def run(what):
    """Return the gradients, and the bytes that the forward pass leaves on the device."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=67, **SIZES)).cuda().train()
    keep_activations(model, what)
    ids = torch.randint(67, (4, 512), device="cuda")
    before = torch.cuda.memory_allocated()
    with torch.autocast("cuda", torch.bfloat16):
        logits = model(input_ids=ids, use_cache=False).logits
    held = torch.cuda.memory_allocated() - before
    logits.float().square().sum().backward()
    return [p.grad for p in model.parameters()], held


def test_gradients_are_the_same_and_less_stays_on_the_device():
    runs = {what: run(what) for what in ("keep", "selective", "recompute", "offload")}
    for what in ("selective", "recompute", "offload"):
        for ours, kept in zip(runs[what][0], runs["keep"][0], strict=True):
            assert float((ours - kept).norm() / kept.norm()) < 1e-3, what
    held = [held for _, held in runs.values()]
    assert held == sorted(held, reverse=True) and len(set(held)) == 4
