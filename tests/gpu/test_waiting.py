"""A step waits for its device once: on a GPU by CUDA's own count, on a CPU by the calls that read values."""

import warnings
from types import SimpleNamespace

import pytest
import torch

from onecurve.config import OptimSection, TrainSection
from onecurve.data import BatchPlan, Loader
from onecurve.optim import build_optimizer
from onecurve.run.history import History
from onecurve.step import train_step
from onecurve.strategies.plain import Plain
from onecurve.tasks.text_classification import Task, TextClassificationSettings
from tests.gpu.devices import CPU_AND_GPU
from tests.model.test_batch_norm import data, model  # noqa: F401  a fixture
from tests.readings import padding
from tests.test_step import Reads


def count(device, made):
    """Return how often `made` waits for a device."""
    if device == "cpu":
        with Reads() as reads:
            made()
        return len(reads.names)
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            made()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(warning.message) for warning in caught)


@pytest.mark.parametrize("device", CPU_AND_GPU)
def test_a_step_waits_once(data, device):  # noqa: F811
    place = torch.device(device, 0) if device == "cuda" else torch.device(device)
    alone = SimpleNamespace(
        device=place, num_processes=1, process_index=0, gather=lambda tensor: tensor, prepare_model=lambda model: model
    )
    made, task = model("train").to(place), Task(TextClassificationSettings())
    task.survey([{"text": "a", "label": label} for label in ("a", "b")])
    strategy = Plain(alone, "no", 0.5)
    strategy.prepare(made, build_optimizer(made, OptimSection(lr=0.01)), 4)
    loader, history = Loader(data.train, task, padding(0), alone), History(TrainSection())
    plan = BatchPlan(data.train.num_items, seed=3, global_batch_size=8, micro_batch_size=2, max_steps=9)

    def step(number):
        outcome = train_step(strategy, loader, plan.step(number), 0.01, 0, history, lambda: [1.0, 0.0])
        assert outcome["fault"] == "" and outcome["requests"] == [1.0, 0.0]

    step(1)  # makes the optimizer's state
    assert count(device, lambda: step(2)) == 1
