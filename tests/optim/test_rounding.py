import copy

import pytest
import torch
from torch import nn

from onecurve.config import OptimSection, Recipe, check_effects
from onecurve.errors import ConfigError
from onecurve.model.loading import check_model
from onecurve.optim import build_optimizer
from onecurve.optim.rounding import round_stochastically
from onecurve.planning.disk_forecast import moments_per_parameter
from onecurve.seeds import start_stream
from onecurve.strategies import check_strategy


def train(
    rounding: str | None, dtype: torch.dtype, name: str = "adamw", steps: int = 200, seed: int = 0, order: int = 1
):
    """Move weights of about 1 by 1e-4 a step, a fortieth of the gap between bfloat16 values there; return them."""
    torch.manual_seed(1)
    model = nn.ModuleDict({"one": nn.Linear(64, 64), "other": nn.Linear(64, 64)})
    nn.init.uniform_(model["one"].weight, 1, 1.5)
    model = model.to(dtype)
    optimizer = build_optimizer(model, OptimSection(name=name, lr=1e-4 if name == "adamw" else 0.02, rounding=rounding))
    for step in range(steps):
        x = torch.linspace(0.5, 1, 64, dtype=dtype).expand(4, 64)
        (model["one"](x).mean() + model["other"](x).square().mean()).backward()
        start_stream(seed, "update", step)
        for group in optimizer.param_groups:
            group["params"] = group["params"][::order]
        optimizer.step()
        optimizer.zero_grad()
    return model["one"].weight.detach(), optimizer


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_plain_bfloat16_stalls_where_rounding_follows_float32(name):
    start, _ = train(None, torch.float32, name, steps=0)
    exact, _ = train(None, torch.float32, name)
    assert (exact != start).all()
    start_here = start.bfloat16()
    plain, _ = train(None, torch.bfloat16, name)
    assert torch.equal(plain, start_here), "plain bfloat16 did not stall"
    by_chance, _ = train("stochastic", torch.bfloat16, name)
    assert by_chance.dtype == torch.bfloat16
    assert (start_here.float() - by_chance.float()).mean() == pytest.approx((start - exact).mean().item(), rel=0.03)
    # what is carried makes each weight right, and not only their mean
    weights, optimizer = train("kahan", torch.bfloat16, name)
    carried = optimizer.state[optimizer.param_groups[0]["params"][0]]["carried"]
    torch.testing.assert_close(
        start_here.float() - (weights.float() + carried.float()), start - exact, rtol=0.03, atol=1e-4
    )
    assert (start_here.float() - weights.float() - (start - exact)).abs().max() < 2**-7, "more than a rounding apart"


def test_stochastic_rounding_is_right_on_average_and_exact_on_what_bfloat16_holds():
    for value in (1.0, -1.5, 0.0):
        assert torch.equal(round_stochastically(torch.full((9,), value), 3), torch.full((9,), value).bfloat16())
    for value in (1 + 2**-9, -(1 + 3 * 2**-10)):
        rounded = round_stochastically(torch.full((200_000,), value), 5).float()
        assert len(rounded.unique()) == 2
        assert rounded.mean().item() == pytest.approx(value, abs=5 * 2**-8 / 200_000**0.5)


def test_chance_is_named_by_seed_step_and_parameter_and_by_nothing_else():
    one, _ = train("stochastic", torch.bfloat16, steps=3)
    torch.rand(100)
    again, _ = train("stochastic", torch.bfloat16, steps=3, order=-1)
    assert torch.equal(one, again)
    other, _ = train("stochastic", torch.bfloat16, steps=3, seed=1)
    assert not torch.equal(one, other)


def test_moments_are_float32_and_are_counted(monkeypatch):
    _, optimizer = train("kahan", torch.bfloat16, steps=2)
    for state in optimizer.state.values():
        assert {key: value.dtype for key, value in state.items()} == {
            "step": torch.float32,
            "exp_avg": torch.float32,
            "exp_avg_sq": torch.float32,
            "carried": torch.bfloat16,
        }
    assert moments_per_parameter(OptimSection(rounding="stochastic")) == 4
    assert moments_per_parameter(OptimSection(rounding="kahan")) == 5


def test_eight_bit_moments_go_with_it():
    pytest.importorskip("bitsandbytes", reason="needs the extra quant")
    _, optimizer = train("kahan", torch.bfloat16, name="adamw_8bit", steps=2)
    kinds = {key: value.dtype for key, value in optimizer.state[optimizer.param_groups[0]["params"][0]].items()}
    assert (kinds["state1"], kinds["carried"]) == (torch.uint8, torch.bfloat16)
    assert moments_per_parameter(OptimSection(name="adamw_8bit", rounding="kahan")) == pytest.approx(2, rel=0.02)


RECIPE = {
    "output_dir": "unused",
    "task": {"name": "causal_lm"},
    "model": {"path": "unused", "dtype": "bfloat16"},
    "data": {"train": "unused"},
    "train": {"max_steps": 1},
    "optim": {"rounding": "kahan"},
}


def test_it_is_refused_where_nothing_is_rounded(monkeypatch):
    check_model(Recipe.model_validate(RECIPE))
    for changed in ({"peft": {"method": "lora"}}, {"model": {"path": "unused"}}):
        with pytest.raises(ConfigError, match=r"optim.rounding: has no effect: trained weights are float32 here"):
            check_effects(Recipe.model_validate(RECIPE | changed), {}, {})
    with pytest.raises(ConfigError, match=r"model.dtype: bfloat16 is for frozen weights"):
        check_model(Recipe.model_validate(copy.deepcopy(RECIPE) | {"optim": {}}))
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ConfigError, match=r"optim.rounding: ZeRO updates float32 master weights"):
        check_strategy(Recipe.model_validate(RECIPE))
