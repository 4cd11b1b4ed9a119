import pytest
import torch
from torch import nn

from onecurve.config import OptimSection, Recipe
from onecurve.errors import ConfigError, LaunchError
from onecurve.model import quantization
from onecurve.optim import build_optimizer, check_optim
from onecurve.planning.disk_forecast import moments_per_parameter
from onecurve.strategies import check_strategy


@pytest.fixture(scope="module", autouse=True)
def _bitsandbytes():
    pytest.importorskip("bitsandbytes", reason="needs the extra quant")


def trained(name: str, steps: int) -> tuple[list[float], torch.optim.Optimizer]:
    """Fit a random linear map; the losses and the optimizer."""
    torch.manual_seed(0)
    model, wanted = nn.Linear(96, 64), nn.Linear(96, 64)
    optimizer = build_optimizer(model, OptimSection(name=name, lr=3e-3, weight_decay=0.01))
    losses = []
    for _ in range(steps):
        x = torch.randn(32, 96)
        loss = (model(x) - wanted(x)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, optimizer


def test_it_follows_adamw_with_a_quarter_of_its_state():
    (ours, optimizer), (theirs, _) = trained("adamw_8bit", 60), trained("adamw", 60)
    assert theirs[-1] < theirs[0] / 4
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=0.05, atol=1e-3)
    assert ours != theirs
    weight, bias = optimizer.state.values()
    assert {key: (value.dtype, value.numel()) for key, value in weight.items()} == {
        "step": (torch.float32, 1),
        "state1": (torch.uint8, 6144),
        "state2": (torch.uint8, 6144),
        "absmax1": (torch.float32, 24),
        "absmax2": (torch.float32, 24),
    }
    assert bias.keys() == {"step", "state1", "state2"}
    assert bias["state1"].dtype == torch.float32
    assert float(weight["step"]) == 60
    assert moments_per_parameter(OptimSection(name="adamw_8bit")) == pytest.approx(0.5, rel=0.02)


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    with pytest.raises(LaunchError, match=r'optim.name: adamw_8bit needs .* `pip install "onecurve\[quant\]"`'):
        check_optim(OptimSection(name="adamw_8bit"))


def test_zero_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    recipe = {
        "output_dir": "unused",
        "task": {"name": "causal_lm"},
        "model": {"path": "unused"},
        "data": {"train": "unused"},
        "train": {"max_steps": 1},
        "optim": {"name": "adamw_8bit"},
    }
    with pytest.raises(ConfigError, match=r"optim.name: adamw_8bit scales .* Use adamw under ZeRO, or adamw_8bit"):
        check_strategy(Recipe.model_validate(recipe))
