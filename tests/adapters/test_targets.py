"""What is adapted where a recipe names no layers: what PEFT knows, or all that an adapter can stand in for."""

from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DistilBertConfig,
    FalconH1Config,
    IBertConfig,
    Llama4TextConfig,
    LlamaConfig,
    MambaConfig,
    MixtralConfig,
)

from onecurve.adapters.targets import fill_targets
from onecurve.errors import ConfigError

SIZES = {"vocab_size": 60, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
MOE = {**SIZES, "num_key_value_heads": 2, "num_local_experts": 2, "num_experts_per_tok": 1}
MAMBA = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}
DISTIL = DistilBertConfig(vocab_size=60, dim=16, hidden_dim=16, n_layers=1, n_heads=2)
ATTENTION, EXPERT = {"q_proj", "k_proj", "v_proj", "o_proj"}, {"gate_proj", "up_proj", "down_proj"}


def targets(config: Any, auto_model: Any = AutoModelForCausalLM, **fields: Any) -> Any:
    with torch.device("meta"):
        model = auto_model.from_config(config)
    lora = LoraConfig(task_type="CAUSAL_LM", **fields)
    fill_targets(model, lora, "LORA")
    return lora.target_modules


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (LlamaConfig(**SIZES), {"q_proj", "v_proj"}),
        (MixtralConfig(**MOE), {"q_proj", "v_proj"}),
        (MambaConfig(**MAMBA), {"in_proj"}),  # PEFT names out_proj besides, and refuses it
        # Its router, of a class derived from a linear layer's, returns two tensors
        (Llama4TextConfig(**MOE, intermediate_size_mlp=16, moe_layers=[1], head_dim=8), ATTENTION | EXPERT),
        (
            FalconH1Config(**SIZES, num_key_value_heads=2, mamba_d_ssm=16, mamba_n_heads=2, mamba_d_head=8),
            ATTENTION | EXPERT | {"in_proj"},
        ),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_a_causal_language_model(config: Any, names: set[str]) -> None:
    assert targets(config) == names


def test_a_classifiers_head_is_left_out() -> None:
    layers = {"q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2", "pre_classifier"}
    assert targets(DISTIL, AutoModelForSequenceClassification) == layers


def test_what_the_recipe_names_stays() -> None:
    assert targets(DISTIL, AutoModelForSequenceClassification, target_modules=["q_lin"]) == {"q_lin"}


def test_a_model_without_linear_layers_is_refused() -> None:
    config = IBertConfig(**SIZES)
    with pytest.raises(ConfigError, match="IBertForSequenceClassification has no linear layers that lora could adapt"):
        targets(config, AutoModelForSequenceClassification)
