"""What is frozen from the start, and what thaws later: held against torch with parameters switched on by hand."""

import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from torch import nn

from onecurve.config import OptimSection, load_recipe
from onecurve.errors import ConfigError
from onecurve.optim import build_optimizer
from onecurve.strategies import rates
from onecurve.strategies.base import is_left_out
from onecurve.strategies.plain import Plain
from tests.config.test_effects import RECIPE
from tests.model.test_depth import probe
from tests.model.test_reach import CAUSAL_LM, CLASSIFICATION, COMMON, build

LAYERS = COMMON["num_hidden_layers"]


def frozen(model):
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


def test_patterns_words_and_blocks_freeze_what_they_name():
    told = probe(model := build(CLASSIFICATION, "Bert", COMMON), CLASSIFICATION, freeze=["embeddings", "*.layer.1.*"])
    names = [name for name, _ in model.named_parameters()]
    assert frozen(model) == {name for name in names if ".embeddings." in name or ".layer.1." in name}
    assert all(is_left_out(model.get_parameter(name)) for name in frozen(model))
    assert "frozen    bert.embeddings.word_embeddings.weight, " in told
    probe(model := build(CLASSIFICATION, "Bert", COMMON), CLASSIFICATION, freeze_blocks=1)
    assert frozen(model) == {name for name in names if ".embeddings." in name or ".layer.0." in name}
    assert not any("layer.0" in n for g in [build_optimizer(model, OptimSection())] for n in trained_names(model, g))


def trained_names(model, optimizer):
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[p] for group in optimizer.param_groups for p in group["params"]}


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"freeze": ["*.layr.*"]}, r"'\*\.layr\.\*' matches no trained parameter; their names are such as bert"),
        ({"freeze": ["*"]}, "nothing would be left to train"),
        ({"freeze_blocks": LAYERS + 1}, f"is {LAYERS + 1}, and the model has {LAYERS} blocks"),
        ({"freeze": ["classifier.*"]}, "classifier.weight, classifier.bias would stay as drawn at random"),
    ],
)
def test_what_cannot_be_frozen_is_refused(keys, said):
    model = build(CLASSIFICATION, "Bert", COMMON)
    model.drawn = frozenset({"classifier.weight", "classifier.bias"})
    with pytest.raises(ConfigError, match=f"regularization.freeze(_blocks)?: .*{said}"):
        probe(model, CLASSIFICATION, **keys)


def test_weights_drawn_at_random_are_not_frozen(tmp_path):
    (path := tmp_path / "recipe.yaml").write_text(RECIPE)
    with pytest.raises(ConfigError, match=r"model\.init is random"):
        load_recipe([str(path), "--model.init", "random", "--regularization.freeze_blocks", "1"])


THAWS, STEPS, CLIP, LR = 30, 40, 0.5, 0.01


def net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))


def batch(step):
    torch.manual_seed(step)
    return torch.randn(16, 6)


def ours(rewound=True):
    model = net()
    model.first_steps = {"0.weight": THAWS, "0.bias": THAWS}
    strategy = Plain(Accelerator(cpu=True), "no", CLIP)
    strategy.prepare(model, build_optimizer(model, OptimSection(lr=LR, weight_decay=0.1)), 1)
    for step in range(1, STEPS + 1):
        rates.set_rates(strategy.optimizer, LR, step)
        (strategy.model(batch(step)) - 1).pow(2).sum().backward()
        strategy.update()
        if rewound:
            rates.hold_back(strategy)
        if step == THAWS - 1:
            assert torch.equal(model[0].weight, net()[0].weight), "it moved before it thawed"
    return model


def by_hand():
    model = net()
    model[0].requires_grad_(False)
    groups = [{"params": [model[2].weight], "weight_decay": 0.1}, {"params": [model[2].bias], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, fused=True)
    for step in range(1, STEPS + 1):
        if step == THAWS:
            model[0].requires_grad_(True)
            optimizer.add_param_group({"params": [model[0].weight], "weight_decay": 0.1})
            optimizer.add_param_group({"params": [model[0].bias], "weight_decay": 0.0})
        (model(batch(step)) - 1).pow(2).sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
    return model


def test_what_thaws_is_trained_as_if_it_had_been_switched_on_by_hand():
    model, expected = ours(), by_hand()
    for name, value in expected.named_parameters():
        assert torch.allclose(model.get_parameter(name), value, rtol=0, atol=1e-6), name
    assert not torch.equal(model[0].weight, net()[0].weight), "nothing thawed"


def test_a_count_of_steps_that_went_on_meanwhile_is_found():
    assert not torch.allclose(ours(rewound=False)[0].weight, by_hand()[0].weight, rtol=0, atol=1e-3)


def test_blocks_thaw_from_the_head_down():
    told = probe(model := build(CLASSIFICATION, "Bert", COMMON), CLASSIFICATION, unfreeze_every=10)
    assert told.splitlines()[-1].startswith(f"thaws     by step: head 1, block {LAYERS} 11, ")
    steps = model.first_steps
    assert steps["classifier.weight"] == 1
    assert steps["bert.encoder.layer.0.output.dense.weight"] == 1 + 10 * LAYERS
    assert steps["bert.embeddings.word_embeddings.weight"] == 1 + 10 * (LAYERS + 1)


def test_what_is_trained_and_highest_is_first_to_train():
    model = get_peft_model(build(CAUSAL_LM, "Llama", COMMON), LoraConfig("CAUSAL_LM", target_modules=["q_proj"]))
    told = probe(model, CAUSAL_LM, unfreeze_every=10, layer_decay=0.5)
    order = [f"block {number}" for number in range(LAYERS, 0, -1)]
    rates = ", ".join(f"{block} {0.5 ** (1 + turn):.3g}" for turn, block in enumerate(order))
    steps = ", ".join(f"{block} {1 + 10 * turn}" for turn, block in enumerate(order))
    assert told.splitlines()[-2:] == [f"rates     {rates} times optim.lr", f"thaws     by step: {steps}"]
    found = {name: model.first_steps[name] for name, p in model.named_parameters() if p.requires_grad}
    assert {name: step for name, step in found.items() if step == 1} == {
        name: 1 for name in found if f".layers.{LAYERS - 1}." in name
    }


def test_a_frozen_head_and_a_frozen_block_take_no_turn():
    keys = {"freeze": ["classifier.*", "*pooler*", f"*.layer.{LAYERS - 1}.*"], "unfreeze_every": 10}
    told = probe(model := build(CLASSIFICATION, "Bert", COMMON), CLASSIFICATION, **keys)
    assert told.splitlines()[-1].startswith(f"thaws     by step: block {LAYERS - 1} 1, ")
    assert "head" not in told.splitlines()[-1]
    first = {model.first_steps[name] for name, p in model.named_parameters() if p.requires_grad}
    assert first == {1 + 10 * turn for turn in range(LAYERS)}, "the blocks that are left, and the embeddings"
