"""Buffers that training passes write to are named; what has a setting or is constant is not."""

import pytest
import torch
from torch import nn

from onecurve.model.moving_buffers import describe_moving, moving


class Codebook(nn.Module):
    """Moves the mean of what it sees, as vector quantisation does; in one of two ways."""

    def __init__(self, replaces):
        super().__init__()
        self.replaces = replaces
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x):
        if self.replaces:
            self.mean = self.mean + x.detach().mean(0)
        else:
            self.mean.lerp_(x.detach().mean(0), 0.1)
        return x - self.mean


def moved(*layers):
    model = nn.Sequential(nn.Linear(3, 3), *layers).train()
    with moving(model) as names:
        for _ in range(2):
            model(torch.randn(4, 3)).sum().backward()
    return names


@pytest.mark.parametrize(
    ("layer", "names"),
    [
        (lambda: Codebook(replaces=False), ["1.mean"]),
        (lambda: Codebook(replaces=True), ["1.mean"]),
        (lambda: nn.utils.spectral_norm(nn.Linear(3, 3)), ["1.weight_u", "1.weight_v"]),
        (lambda: nn.BatchNorm1d(3), []),
        (lambda: nn.InstanceNorm1d(3), []),
    ],
    ids=["written to", "replaced", "spectral norm", "batch norm", "instance norm"],
)
def test_what_moves_is_named(layer, names):
    constant = nn.Linear(3, 3)
    constant.register_buffer("scale", torch.ones(3))
    assert moved(layer(), constant) == names


def test_running_statistics_count_though_no_pass_before_step_1_moves_them():
    layer = nn.InstanceNorm1d(3, track_running_stats=True).eval()
    with moving(nn.Sequential(layer)) as names:
        layer(torch.randn(2, 3, 4))
    assert names == ["0.running_mean"]


def test_it_is_said_once_however_many_there_are():
    assert describe_moving([]) == ""
    assert "the model changes a.mean and 2 more in each training pass" in describe_moving(
        ["a.mean", "b.mean", "c.mean"]
    )
    assert "the model changes a.mean in each" in describe_moving(["a.mean"])
