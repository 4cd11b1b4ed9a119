"""How many tokens a model can read, by what its config says and its code does."""

from types import SimpleNamespace
from typing import Any

import pytest
from transformers import (
    BertConfig,
    Gemma3Config,
    GPT2Config,
    LlamaConfig,
    MPNetConfig,
    OPTConfig,
    PreTrainedConfig,
    RobertaConfig,
    T5Config,
    XLNetConfig,
)

from onecurve.errors import ConfigError
from onecurve.model.positions import resolve_max_length

TINY = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8, "vocab_size": 9}
NO_LIMIT: Any = SimpleNamespace(model_max_length=10**30)


@pytest.mark.parametrize(
    ("config", "room"),
    [
        (BertConfig(**TINY, max_position_embeddings=66), 66),
        # From behind the padding id on: 514 positions hold 512 tokens
        (RobertaConfig(**TINY, max_position_embeddings=66, pad_token_id=1), 64),
        (RobertaConfig(**TINY, max_position_embeddings=66, pad_token_id=0), 65),
        (MPNetConfig(**TINY, max_position_embeddings=66), 64),
        (OPTConfig(**TINY, word_embed_proj_dim=8, max_position_embeddings=66), 66),
        (GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=1, n_positions=66), 66),
        (LlamaConfig(**TINY, max_position_embeddings=66), 66),
        (Gemma3Config(text_config={**TINY, "max_position_embeddings": 66}), 66),
        (XLNetConfig(vocab_size=9, d_model=8, n_layer=1, n_head=1), None),  # says -1: any length
        (T5Config(vocab_size=9, d_model=8, n_positions=66), None),  # relative positions: any length
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, PreTrainedConfig) else str(value),
)
def test_an_example_may_have_as_many_tokens_as_the_model_has_positions(config: Any, room: int | None) -> None:
    if room is None:
        assert resolve_max_length(5000, NO_LIMIT, config, 0) == 5000
        with pytest.raises(ConfigError, match=r"data.max_length: must be set: this model has no length limit"):
            resolve_max_length(None, NO_LIMIT, config, 0)
        return
    assert resolve_max_length(None, NO_LIMIT, config, 0) == room
    assert resolve_max_length(room, NO_LIMIT, config, 0) == room
    with pytest.raises(ConfigError, match=f"must be at most {room}, the positions this model has; got {room + 1}"):
        resolve_max_length(room + 1, NO_LIMIT, config, 0)
