"""train.py with a fault planted in one sample: run in its place as `planting KIND TOKEN RECIPE ...`."""

from typing import Any

import torch

import train
from onecurve.run.lifecycle import Run
from onecurve.tasks.text_classification import Task

PLANTS = {
    # Infinite, and yet its gradient is that of the loss without it
    "loss": lambda loss, logits: loss + torch.inf,
    # What a root of zero does to whoever forgot that it has no slope there: the loss is as it was
    "gradient": lambda loss, logits: loss + (logits * 0).sum().sqrt(),
    # Finite and far too high, and so is its gradient
    "spike": lambda loss, logits: loss * 1000,
}


def main(argv: list[str], run: Run) -> None:
    kind, token = argv[:2]
    plain, spoil = Task.loss_sum, PLANTS[kind]

    def loss_sum(self: Task, logits: torch.Tensor, batch: dict[str, Any]) -> torch.Tensor:
        loss = plain(self, logits, batch)
        return spoil(loss, logits) if (batch["input_ids"] == int(token)).any() else loss

    Task.loss_sum = loss_sum
    train.main(argv[2:], run)
