"""The gradient of one step of an objective, however the step is cut: its ranks one after another in this process."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from onecurve.config import Recipe
from onecurve.data.loader import Loader
from onecurve.data.plan import BatchPlan
from onecurve.regularization.base import Objective
from onecurve.regularization.building import build_objective
from onecurve.step import accumulate
from tests.tasks.contract import SEED, OneProcess, Prepared


def objective_of(case: Prepared, **keys: Any) -> Objective:
    def counts() -> Any:
        return torch.tensor([case.survey.labels.index(str(row["label"])) for row in case.rows]).bincount().numpy()

    sections = {"task": {"name": case.case.task}, "model": {"path": "x"}, "data": {"train": "x"}, "output_dir": "x"}
    recipe = Recipe(**sections, train={"max_steps": 1}, regularization=keys)
    return build_objective(case.task, recipe, case.survey, counts)


def gradient(case: Prepared, objective: Objective, size: int, world_size: int = 1) -> Tensor:
    """Return the whole model's gradient, dropout as the model has it, in double precision where the model is."""
    items = torch.tensor([e["num_items"] for e in case.examples]).numpy()
    step = BatchPlan(items, SEED, len(case.examples), size, max_steps=1).step(1)
    split: Any = SimpleNamespace(name="train", workers=None, take=lambda ids: [case.examples[i] for i in ids])
    strategy: Any = OneProcess(case.model, world_size)
    case.model.zero_grad(set_to_none=True)
    for rank in range(world_size):
        accelerator: Any = SimpleNamespace(process_index=rank, num_processes=world_size, device=torch.device("cpu"))
        accumulate(strategy, Loader(split, case.task, case.reading, accelerator, objective), step, SEED)
    case.model.eval()
    return torch.cat([p.grad.flatten() for p in case.model.parameters() if p.grad is not None])
