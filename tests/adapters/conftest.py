"""Tiny models built from configs in memory: no network, no files."""

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
)

SIZES = dict(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
NO_DROPOUT = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def bert(**changes) -> PreTrainedModel:
    torch.manual_seed(0)
    config = BertConfig(**SIZES, **NO_DROPOUT, max_position_embeddings=64, **{"num_labels": 3, **changes})
    return BertForSequenceClassification(config)


def llama() -> PreTrainedModel:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2, max_position_embeddings=64))


def llama_classifier() -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES, num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, num_labels=3)
    return LlamaForSequenceClassification(config)


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Four texts of ten tokens; the first is padded by three."""
    ids = torch.randint(3, 64, (4, 10), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    ids[0, 7:], mask[0, 7:] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}
