from functools import partial

import pytest
import torch
from torch import nn

from onecurve.adapters import add_adapter
from onecurve.config import OptimSection, PeftSection
from onecurve.errors import ConfigError
from onecurve.optim import _GAINS as GAINS
from onecurve.optim import build_optimizer


def model():
    return nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.RMSNorm(4), nn.Linear(4, 2))


def test_weight_decay_leaves_out_biases_and_norms():
    built = model()
    decayed, plain = build_optimizer(built, OptimSection(weight_decay=0.1)).param_groups
    assert {id(p) for p in decayed["params"]} == {id(built[i].weight) for i in (0, 1, 4)}
    assert {id(p) for p in plain["params"]} == {
        id(p) for p in (built[1].bias, built[4].bias, *built[2].parameters(), built[3].weight)
    }
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)


def test_the_groups_do_not_depend_on_how_many_dimensions_a_parameter_seems_to_have():
    # ZeRO-3 makes every parameter an empty vector: choosing by ndim puts all of them in one group without a word
    built = model()
    shapes = [[p.numel() for p in g["params"]] for g in build_optimizer(built, OptimSection()).param_groups]
    for parameter in built.parameters():
        parameter.data = torch.empty(0)
    partitioned = build_optimizer(built, OptimSection()).param_groups
    assert [len(g["params"]) for g in partitioned] == [len(s) for s in shapes]


def test_frozen_weights_are_in_no_group_and_nothing_to_train_is_refused():
    built = model()
    built[1].requires_grad_(False)
    assert sum(len(g["params"]) for g in build_optimizer(built, OptimSection()).param_groups) == 6
    with pytest.raises(ConfigError, match="nothing is left to train"):
        build_optimizer(built.requires_grad_(False), OptimSection())


@pytest.mark.parametrize(
    ("name", "keys", "oracle"),
    [
        ("adamw", {"beta1": 0.5, "beta2": 0.7, "eps": 1e-3}, partial(torch.optim.AdamW, betas=(0.5, 0.7), eps=1e-3)),
        (
            "adafactor",
            {"beta2_decay": -0.5, "clip_threshold": 2},
            partial(torch.optim.Adafactor, beta2_decay=-0.5, d=2),
        ),
        ("sgd", {"momentum": 0.5, "nesterov": True}, partial(torch.optim.SGD, momentum=0.5, nesterov=True)),
    ],
)
def test_an_optimizer_and_its_keys_are_torchs(name, keys, oracle):
    torch.manual_seed(0)
    ours, plain = nn.Linear(3, 2), nn.Linear(3, 2)
    plain.load_state_dict(ours.state_dict())
    optimizers = (
        build_optimizer(ours, OptimSection(name=name, lr=0.1, **keys)),
        oracle(plain.parameters(), lr=0.1, weight_decay=0.0),
    )
    for value in (1.0, 2.0, 0.5):
        before = ours.weight.detach().clone()
        for built, optimizer in zip((ours, plain), optimizers, strict=True):
            optimizer.zero_grad()
            built(torch.full((1, 3), value)).square().sum().backward()
            optimizer.step()
        assert not torch.equal(before, ours.weight)
        torch.testing.assert_close(ours.state_dict(), plain.state_dict())


@pytest.mark.parametrize(
    ("fields", "plain"),
    [
        ({"method": "ia3", "target_modules": ["query"], "feedforward_modules": []}, ["ia3_l"]),
        ({"method": "lora", "use_dora": True}, ["lora_magnitude_vector"]),
        ({"method": "boft", "boft_block_size": 4, "target_modules": ["query"]}, ["boft_s"]),
        ({"method": "road", "group_size": 8, "target_modules": ["query"]}, ["road_alpha"]),
        ({"method": "psoft", "r": 8, "target_modules": ["query"]}, ["vector_a", "vector_b"]),
        ({"method": "prompt_tuning", "num_virtual_tokens": 4}, []),
    ],
    ids=lambda value: value["method"] if isinstance(value, dict) else "",
)
def test_an_adapter_s_factors_are_not_decayed_towards_zero(tiny_bert, fields, plain):
    from transformers import AutoModelForSequenceClassification

    base = AutoModelForSequenceClassification.from_pretrained(tiny_bert)
    adapted = add_adapter(base, PeftSection(**fields), task_type="SEQ_CLS", new_modules=["classifier"])
    decayed, exempt = build_optimizer(adapted, OptimSection(weight_decay=0.1)).param_groups
    names = {parameter: name for name, parameter in adapted.named_parameters()}
    left_out = [names[p] for p in exempt["params"] if not names[p].endswith("bias")]
    assert {part for name in left_out for part in name.split(".")} & {*GAINS} == {*plain}
    assert all(any(part in name.split(".") for part in plain) for name in left_out)
    for p in left_out and exempt["params"]:
        if names[p] in left_out and "magnitude" not in names[p]:
            assert bool((p == 1).all())  # a factor, and so nothing to shrink
    in_decay = {names[p] for p in decayed["params"]}
    assert any("classifier" in name for name in in_decay)
    assert plain or any("prompt_encoder" in name for name in in_decay)
