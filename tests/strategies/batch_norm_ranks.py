"""A rank that trains a ResNet on pictures, and writes its losses and the statistics that it then has."""

import json
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy
from transformers import ResNetConfig, ResNetForImageClassification

from onecurve.config import TrainSection
from onecurve.data.collation import Wanted
from onecurve.data.loader import Loader
from onecurve.data.plan import BatchPlan
from onecurve.machine.distributed import start
from onecurve.model.batch_norm import settle_batch_norm
from onecurve.run.history import History
from onecurve.step import train_step
from onecurve.tasks.base import Batch
from tests.strategies.branch_ranks import strategy_of

STEPS, PICTURES = 4, 20


class Pictures(Loader):
    """Makes a labelled picture of each number; a step's last micro-batch is of one."""

    def _read(self, wanted: Wanted) -> Batch:
        ids = np.frombuffer(wanted.ids, np.int64)
        values = torch.stack([torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(int(i))) for i in ids])
        labels = torch.tensor(ids % 2)
        return {"pixel_values": values + labels[:, None, None, None], "labels": labels}

    @cached_property
    def _ahead(self) -> None:
        return None

    def num_tokens(self, step: Any) -> int:
        return 0


def build(what: str) -> Any:
    torch.manual_seed(0)
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    model = ResNetForImageClassification(ResNetConfig(**sizes, num_labels=2))
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            torch.nn.init.uniform_(buffer, 0.5, 2)
    settle_batch_norm(model, what)
    return model


def main(argv: list[str], run: Any = None) -> None:
    what, folder = argv[0], Path(argv[1])
    accelerator = start([], "unused")
    model, strategy = build(what), strategy_of(accelerator)
    plan = BatchPlan(np.ones(PICTURES), seed=3, global_batch_size=9, micro_batch_size=2, max_steps=STEPS)
    strategy.prepare(model, torch.optim.SGD(model.parameters(), 0.0, 0.9), 5 // accelerator.num_processes + 1)
    task: Any = SimpleNamespace(
        terms={"loss": 1.0},
        forward=lambda model, batch: model(batch["pixel_values"]).logits,
        loss_sum=lambda logits, batch: cross_entropy(logits, batch["labels"], reduction="sum"),
    )
    split: Any = SimpleNamespace(name="train", workers=None)
    loader, history = Pictures(split, task, None, accelerator), History(TrainSection())  # type: ignore[arg-type]
    outcomes = [train_step(strategy, loader, plan.step(i), 0.02, 0, history) for i in range(1, STEPS + 1)]
    curve = [(outcome["fault"], outcome["loss"], outcome["grad_norm"]) for outcome in outcomes]
    rank = accelerator.process_index
    (folder / f"rank-{rank}.json").write_text(json.dumps(curve))
    save_file({name: buffer.clone() for name, buffer in model.named_buffers()}, folder / f"rank-{rank}.safetensors")
