"""A step has the host wait for the device once: what it has to know then comes together."""

from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch.overrides import TorchFunctionMode

from onecurve.config import OptimSection, TrainSection
from onecurve.faults.stopping import Stopping
from onecurve.optim import build_optimizer
from onecurve.run.directory import RunDirectory
from onecurve.run.history import History
from onecurve.step import train_step
from onecurve.strategies.plain import Plain
from tests.model.test_batch_norm import data, model, prepared  # noqa: F401  a fixture
from tests.model.test_waiting import Waits

READS = {"tolist", "item", "cpu", "__bool__", "__float__", "__int__", "__index__"}


class Reads(TorchFunctionMode):
    """Names the calls that bring a tensor's values to the host: on a GPU each waits for all that was asked of it."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function.__name__ in READS:
            self.names.append(function.__name__)
        return function(*args, **(kwargs or {}))


@pytest.fixture
def stopping(tmp_path, monkeypatch):
    monkeypatch.setattr("onecurve.faults.stopping.signal.signal", lambda number, handler: None)
    checkpoints = SimpleNamespace(seconds=1.0, plan=SimpleNamespace(max_steps=1000))
    section = TrainSection(max_steps=1000, time_limit=timedelta(hours=1))
    return Stopping(section, RunDirectory(tmp_path), checkpoints, Accelerator(cpu=True))


@pytest.mark.parametrize(("what", "ranks"), [("frozen", 1), ("train", 2)])
def test_the_host_waits_once(data, late_device, stopping, what, ranks):  # noqa: F811
    stopping.accelerator = SimpleNamespace(num_processes=ranks, is_main_process=True)
    strategy, loader, step = prepared(model(what), data, 2)
    strategy.optimizer = build_optimizer(strategy.unwrapped(), OptimSection(lr=0.1, max_grad_norm=0.5))
    history = History(TrainSection())
    strategy.max_grad_norm = 0.5
    train_step(strategy, loader, step, 0.1, 0, history, stopping.requests)  # makes the optimizer's state
    with Reads() as reads, Waits() as waits:
        outcome = train_step(strategy, loader, step, 0.1, 0, history, stopping.requests)
        stopping.seen.add("SIGTERM")  # when the ranks have agreed on this step's
        asked = stopping.asked(2, outcome["requests"])
    assert (reads.names, waits.names, late_device.waits) == (["tolist"], [], 0)
    assert asked.stop == ("SIGTERM" if ranks == 1 else "")
    assert outcome["fault"] == "" and outcome["grad_norm"] > 0


def test_a_request_that_ranks_learnt_of_beside_the_loss_is_acted_on(data, stopping):  # noqa: F811
    strategy, loader, step = prepared(model("frozen"), data, 2)
    stopping.accelerator = SimpleNamespace(num_processes=2, is_main_process=True)
    stopping.seen.add("SIGUSR1")
    outcome = train_step(strategy, loader, step, 0.1, 0, History(TrainSection()), stopping.requests)
    assert sum(outcome["requests"]) == 1
    asked = stopping.asked(1, outcome["requests"])
    assert (asked.save, asked.stop, asked.exit_code) == (True, "SIGUSR1", 75)


def test_a_norm_that_the_host_knows_gives_the_same_update(data):  # noqa: F811
    norms, weights = [], []
    for known in (False, True):
        made = model("frozen")
        strategy = Plain(Accelerator(cpu=True), "no", 0.5)
        strategy.prepare(made, torch.optim.SGD(made.parameters(), 0.1), 1)
        (made(torch.arange(6).view(2, 3), torch.ones(2, 3)).logits * 9).sum().backward()
        norm = strategy.gradient_norm() if known else None
        norms.append(float(strategy.update(None if norm is None else float(norm))[0]))
        weights.append(torch.cat([p.flatten() for p in made.parameters()]))
    assert norms[0] == norms[1] > 0.5
    assert torch.equal(*weights)
