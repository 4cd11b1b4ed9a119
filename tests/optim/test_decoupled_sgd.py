"""Weight decay of every optimizer is decoupled: with no gradient, weights shrink by 1 - lr x decay a step."""

import pytest
import torch
from torch import nn

from onecurve.config import OptimSection
from onecurve.optim import build_optimizer


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "sgd"},
        {"name": "sgd", "momentum": 0.9},
        {"name": "sgd", "momentum": 0.9, "nesterov": True},
        {"name": "adamw"},
    ],
)
def test_without_a_gradient_weights_shrink_by_the_decay_alone(settings):
    model = nn.Linear(1, 1)
    with torch.no_grad():
        model.weight.fill_(1.0), model.bias.fill_(1.0)
    optimizer = build_optimizer(model, OptimSection(lr=0.1, weight_decay=0.5, **settings))
    for _ in range(3):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    assert model.weight.item() == pytest.approx(0.95**3)
    assert model.bias.item() == 1.0
    assert sorted(group["weight_decay"] for group in optimizer.param_groups) == [0.0, 0.5]


def test_without_decay_it_is_torch_s():
    ours, theirs = nn.Linear(3, 2), nn.Linear(3, 2)
    theirs.load_state_dict(ours.state_dict())
    one = build_optimizer(ours, OptimSection(name="sgd", lr=0.1, momentum=0.9))
    other = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        for model, optimizer in ((ours, one), (theirs, other)):
            optimizer.zero_grad()
            model(torch.ones(1, 3)).square().sum().backward()
            optimizer.step()
    assert torch.equal(ours.weight, theirs.weight)
