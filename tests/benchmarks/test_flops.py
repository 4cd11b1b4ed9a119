"""The arithmetic that utilisation is computed from, against PyTorch's own count of it."""

import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from flops import LlamaShape, causal_context, train_flops, utilisation

SHAPE = LlamaShape(
    vocab_size=320, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2,
)  # fmt: skip
EXAMPLES, LENGTH, R = 2, 48, 4


def counted(lora: bool) -> int:
    # Eager attention: plain products, which the counter counts in full, the masked half too
    config = LlamaConfig(**vars(SHAPE), attn_implementation="eager", tie_word_embeddings=False)
    model = LlamaForCausalLM(config)
    # Else the first layer's frozen weights pass no gradient on, which the rule does not know
    model.enable_input_require_grads()
    if lora:
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=R, target_modules="all-linear"))
    ids = torch.randint(0, SHAPE.vocab_size, (EXAMPLES, LENGTH))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("lora", [False, True])
def test_training_flops_are_those_that_pytorch_counts(lora):
    per_token = train_flops(SHAPE, context=LENGTH, lora_r=R if lora else None)
    # What is left over are the rotary angles: a product of LENGTH x head size / 2
    assert counted(lora) == pytest.approx(EXAMPLES * LENGTH * per_token, rel=1e-3)


def test_parameters_are_those_of_the_model():
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**vars(SHAPE), tie_word_embeddings=False))
        matrices = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name)
        adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=R, target_modules="all-linear"))
    assert SHAPE.body + SHAPE.head == matrices
    assert SHAPE.adapter(R) == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def test_a_token_attends_to_half_of_its_own_document():
    assert causal_context([100]) == 50
    assert causal_context([100, 100]) == 50
    assert causal_context([300, 100]) == pytest.approx((300 * 150 + 100 * 50) / 400)


def test_fewer_labels_take_the_head_off_and_utilisation_is_a_share():
    full, none = (train_flops(SHAPE, 24, labelled=share) for share in (1.0, 0.0))
    assert full - none == 6 * SHAPE.head
    assert utilisation(1000, 1e9, peak=4e12) == 0.25
