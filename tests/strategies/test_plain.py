"""What the strategy of one process makes of a model."""

import torch
from accelerate import Accelerator
from torch import nn

from onecurve.strategies.plain import Plain


def test_a_parameter_that_does_not_lie_in_one_piece_has_windows():
    model = nn.Linear(3, 2, bias=False)
    values = torch.randn(3, 2)
    model.weight.data = values.t()
    strategy = Plain(Accelerator(cpu=True), "no", 0.0)
    strategy.prepare(model, torch.optim.SGD(model.parameters(), 0.1), 1)
    (window,) = strategy.windows()
    assert torch.equal(window.view.view(2, 3), values.t())
    window.view.zero_()
    assert not model.weight.any()
