"""Which learning rate each depth has: held against the rule that ELECTRA's own code writes down by name."""

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch import nn

from onecurve.config import OptimSection, RegularizationSection
from onecurve.errors import ConfigError
from onecurve.model import reach
from onecurve.model.depth import find_depths
from onecurve.optim import build_optimizer
from onecurve.strategies.rates import set_rates
from tests.model.test_reach import BART, CAUSAL_LM, CLASSIFICATION, COMMON, OPT, Split, build, texts
from tests.readings import padding

DECAY = 0.5
GPT2 = {"vocab_size": 61, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "pad_token_id": 0}
T5 = {"vocab_size": 61, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4,
    "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 2}  # fmt: skip
DEBERTA = {**COMMON, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "norm_rel_ebd": "layer_norm"}
FAMILIES = {  # task, kind, config, blocks, name -> its place from the embeddings, 0, up to the head
    "BERT": (CLASSIFICATION, "Bert", COMMON, r"encoder\.layer\.(\d+)", {"embeddings": 0, "pooler|classifier": 99}),
    "Llama": (CAUSAL_LM, "Llama", COMMON, r"model\.layers\.(\d+)", {"embed_tokens": 0, r"model\.norm|lm_head": 99}),
    "GPT-2, tied": (CAUSAL_LM, "GPT2", GPT2, r"\.h\.(\d+)", {"wte|wpe": 0, "ln_f": 99}),
    "OPT, whose last norm is registered first": (
        CAUSAL_LM, "OPT", OPT, r"decoder\.layers\.(\d+)", {"embed": 0, r"decoder\.final_layer_norm": 99}),
    "DeBERTa": (CLASSIFICATION, "DebertaV2", DEBERTA, r"encoder\.layer\.(\d+)",
        {r"embeddings\.|encoder\.LayerNorm": 0, "pooler|classifier": 99}),
}  # fmt: skip


def probe(model: Any, task: Any, **keys: Any) -> str:
    section = SimpleNamespace(quantization=None)
    recipe: Any = SimpleNamespace(seed=0, peft=None, model=section, regularization=RegularizationSection(**keys))
    accelerator = SimpleNamespace(device=torch.device("cpu"), num_processes=1, state=SimpleNamespace())
    return reach.probe(model, recipe, task, Split(texts(task)), padding(0), "no", accelerator)[0]


def rates(model: nn.Module, lr: float = 1.0) -> dict[str, float]:
    """The learning rate that the optimizer's groups give each trained parameter."""
    optimizer = build_optimizer(model, OptimSection(lr=lr))
    set_rates(optimizer, lr, 1)
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[p]: group["lr"] for group in optimizer.param_groups for p in group["params"]}


@pytest.mark.parametrize("family", FAMILIES)
def test_each_block_has_a_share_of_the_rate_above_it(family):
    task, kind, config, blocks, others = FAMILIES[family]
    told = probe(model := build(task, kind, config), task, layer_decay=DECAY)
    found = rates(model)
    count = 1 + max(int(match[1]) for name in found if (match := re.search(blocks, name)))
    assert count > 1
    for name, rate in found.items():
        if match := re.search(blocks, name):
            place = 1 + int(match[1])
        else:
            (place,) = (place for pattern, place in others.items() if re.search(pattern, name))
        assert rate == pytest.approx(DECAY ** (count + 1 - min(place, count + 1))), name
    head = "head 1, " if any(rate == 1 for rate in found.values()) else ""
    assert f"rates     {head}block {count} 0.5, " in told
    assert f"embeddings {DECAY ** (count + 1):.3g} times optim.lr" in told


@pytest.mark.parametrize(("kind", "config"), [("Bart", BART), ("T5", T5)])
def test_an_encoder_lies_below_its_decoder(kind, config):
    task = CLASSIFICATION
    probe(model := build(task, kind, config), task, layer_decay=DECAY)
    lowest: dict[str, float] = {}
    for name, rate in rates(model).items():
        lowest.setdefault(re.sub(r"(layers|block)\.(\d+)\..*", r"\1.\2", name), rate)
    decoder, encoder = (
        [rate for name, rate in sorted(lowest.items()) if re.search(rf"{part}\.(layers|block)\.", name)]
        for part in ("decoder", "encoder")
    )
    assert decoder == [DECAY ** (len(decoder) - n) for n in range(len(decoder))]
    assert encoder == [DECAY ** (len(decoder) + len(encoder) - n) for n in range(len(encoder))]
    shared = next(rate for name, rate in lowest.items() if "shared" in name)
    assert shared == DECAY ** (len(decoder) + len(encoder) + 1)
    assert next(rate for name, rate in lowest.items() if "classification_head" in name) == 1


def test_an_adapter_s_weights_have_the_rate_of_the_block_that_they_sit_in():
    base = build(CLASSIFICATION, "Bert", COMMON)
    model = get_peft_model(base, LoraConfig("SEQ_CLS", target_modules=["query"], modules_to_save=["classifier"]))
    probe(model, CLASSIFICATION, layer_decay=DECAY)
    found = rates(model)
    count = COMMON["num_hidden_layers"]
    assert {rate for name, rate in found.items() if "lora" in name} == {DECAY**d for d in range(1, count + 1)}
    assert {rate for name, rate in found.items() if "classifier" in name} == {1.0}


def test_without_the_key_there_is_one_rate():
    probe(model := build(CLASSIFICATION, "Bert", COMMON), CLASSIFICATION)
    assert set(rates(model, 0.3).values()) == {0.3}
    assert len(build_optimizer(model, OptimSection()).param_groups) == 2


def test_depth_that_cannot_be_told_is_refused():
    flat = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    with pytest.raises(ConfigError, match=r"regularization\.layer_decay: no blocks can be told apart in this Sequ"):
        find_depths(flat, list(flat.modules()), "regularization.layer_decay")
    base = build(CLASSIFICATION, "Bert", COMMON)
    prompted = get_peft_model(base, PromptTuningConfig("SEQ_CLS", num_virtual_tokens=3))
    with pytest.raises(ConfigError, match="virtual tokens act on all blocks"):
        probe(prompted, CLASSIFICATION, layer_decay=DECAY)


def test_code_of_a_model_s_own_needs_a_list_of_like_blocks():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.stem = nn.Linear(4, 2), nn.Linear(4, 4)  # registered in no telling order
            self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(4, 2, 8) for _ in range(3))

    model = Own()
    depths = find_depths(model, [model, model.stem, *model.blocks, model.head], "")
    assert {name: depth for name, depth in depths.of.items() if "blocks" not in name} == {
        "head.weight": 0, "head.bias": 0, "stem.weight": 4, "stem.bias": 4,
    }  # fmt: skip
    assert depths.of["blocks.0.linear1.weight"] == 3
